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
  groups = None

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
  count: int,
  config: ml_collections.ConfigDict,
  groups: np.ndarray | None = None,
) -> list[np.ndarray]:
  """Cuts `count` examples into data.num_folds parts of nearly equal size.

  Args:
    groups: int [count], ascending from 0: examples of one number stay together,
      as the pages of a file; None if each stands alone.

  Returns:
    The indices of each part, ascending; with data.holdout `last` a part is one
    block, so that few neighbours in a stack of slices are in two parts.

  Raises:
    UserError: there are fewer examples than folds.
  """
  data = config.data
  if groups is None:
    groups = np.arange(count)
  _, groups = np.unique(groups, return_inverse=True)
  number = groups[-1] + 1
  if number < data.num_folds:
    pages = f' in {number} file(s)' if number < count else ''
    raise errors.UserError(
      f'--config.data.num_folds={data.num_folds}: the {count} example(s)'
      f'{pages} of {data.train_split} cannot be cut into that many; at '
      f'most {number}'
    )
  order = examples.holdout_order(number, config)
  parts = np.array_split(order, data.num_folds)
  return [np.flatnonzero(np.isin(groups, part)) for part in parts]


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
  folds = cut_folds(len(source), config, source.groups)
  if split in names:
    return Subset(source, folds[names.index(split)], split)
  rest = np.setdiff1d(np.arange(len(source)), folds[data.fold])
  return Subset(source, rest, split)
