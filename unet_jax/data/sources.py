"""The table of sources, and folds of one."""

import numpy as np

from unet_jax.data import examples, folder_source, shapes, tfds_source
from unet_jax.runtime import errors


class Subset:
  """Some examples of a source, as a source: a fold, or the others.

  Args:
    whole: the source.
    rows: int [K]: their indices in it.
    split: what they are called.
  """

  held_out = True

  def __init__(self, whole: examples.Source, rows: np.ndarray, split: str):
    self.whole, self.rows, self.split = whole, rows, split
    self.fingerprint = [whole.fingerprint, rows.tolist()]

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> examples.Example:
    return self.whole[self.rows[index]]

  def read(self, index: int) -> examples.Example:
    return self.whole.read(self.rows[index])


def cut_folds(count: int, config) -> list[np.ndarray]:
  """Cuts `count` examples into data.num_folds parts of nearly equal size.

  Returns:
    The indices of each part, ascending; with data.holdout `last` a part is one
    block, so that few of a stack's neighbours are in two.

  Raises:
    UserError: there are fewer examples than folds.
  """
  data = config.data
  if count < data.num_folds:
    raise errors.UserError(
      f'--config.data.num_folds={data.num_folds}: the {count} example(s) of '
      f'{data.train_split} cannot be cut into that many'
    )
  order = np.arange(count)
  if data.holdout == 'random':
    order = np.random.default_rng(config.seed).permutation(order)
  return [np.sort(part) for part in np.array_split(order, data.num_folds)]


SOURCES = {
  'tfds': tfds_source.TfdsSource,
  'folder': folder_source.FolderSource,
  'shapes': shapes.ShapesSource,
}


def make_source(
  config, split: str, problems: list[examples.Problem] | None = None
) -> examples.Source:
  """Returns the examples of a split.

  Args:
    config: of the run.
    split: named as in data.train_split; with data.num_folds that one is without
      its fold data.fold, which is `auto`, and each fold i is `fold_i`.
    problems: gets what is wrong with files as a whole, which are then left out;
      None raises the first.

  Raises:
    UserError: the data or the split is not there, or has no example.
  """
  data = config.data
  names = [f'fold_{i}' for i in range(data.num_folds)]
  if names and split == 'auto':
    split = names[data.fold]
  is_part = bool(names) and split in (data.train_split, *names)
  whole = data.train_split if is_part else split
  source = SOURCES[data.source](config, whole, problems)
  if not len(source):
    raise errors.UserError(
      f'split {whole!r} of the {data.source} source has no example'
    )
  if not is_part:
    return source
  folds = cut_folds(len(source), config)
  if split in names:
    return Subset(source, folds[names.index(split)], split)
  rest = np.setdiff1d(np.arange(len(source)), folds[data.fold])
  return Subset(source, rest, split)
