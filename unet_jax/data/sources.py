"""The table of sources, and cross-validation folds of a source."""

from collections.abc import Callable

import ml_collections
import numpy as np

from unet_jax.data import examples, folder_source, shapes, tfds_source
from unet_jax.runtime import errors

SOURCES: dict[str, Callable[..., examples.Source]] = {
  'tfds': tfds_source.TfdsSource,
  'folder': folder_source.FolderSource,
  'shapes': shapes.ShapesSource,
}


class Subset:
  """The examples `rows`, int [K], of a source, as a source."""

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


def cut_folds(
  count: int, config: ml_collections.ConfigDict
) -> list[np.ndarray]:
  """Cuts `count` examples into data.num_folds parts of nearly equal size.

  Returns:
    The indices of each part, ascending; with data.holdout `last` a part is one
    block, so that few neighbours in a stack of slices are in two parts.

  Raises:
    UserError: there are fewer examples than folds.
  """
  data = config.data
  if count < data.num_folds:
    raise errors.UserError(
      f'--config.data.num_folds={data.num_folds}: the {count} example(s) of '
      f'{data.train_split} cannot be cut into that many'
    )
  order = examples.holdout_order(count, config)
  return [np.sort(part) for part in np.array_split(order, data.num_folds)]


def make_source(
  config: ml_collections.ConfigDict,
  split: str,
  problems: list[examples.Problem] | None = None,
) -> examples.Source:
  """Returns the examples of a split.

  Args:
    split: named as in data.train_split. With data.num_folds each fold i is
      `fold_i`, `auto` is the fold data.fold, and data.train_split the rest.
    problems: collects mistakes in files as a whole, which are then skipped;
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
