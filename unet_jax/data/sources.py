"""The table of sources, and the parts that are cut of one."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np

from unet_jax.data import (
  digests,
  examples,
  folder_source,
  identity,
  shapes,
  tfds_source,
)
from unet_jax.runtime import errors

# {part: rows, int [K], of a source, ascending}.
Parts = dict[str, np.ndarray]

# The part of images that came after the cut into folds: it is in no fold.
_NEW = 'new'

SOURCES: dict[str, Callable[..., examples.Source]] = {
  'tfds': tfds_source.TfdsSource,
  'folder': folder_source.FolderSource,
  'shapes': shapes.ShapesSource,
}


class Subset:
  """The examples `rows`, int [K], of a source, as a source.

  Where the source is cut into folds, `parts` has the rows of each.
  """

  held_out = True

  def __init__(
    self,
    whole: examples.Source,
    rows: np.ndarray,
    split: str,
    parts: Parts | None = None,
  ):
    self.whole, self.rows, self.split = whole, rows, split
    self.parts = parts or {}
    self.fingerprint = [whole.fingerprint, rows.tolist()]
    self.groups = None if whole.groups is None else whole.groups[rows]

  def images(
    self, read: bool, kind: str = digests.KIND
  ) -> list[identity.Image] | None:
    images: list[identity.Image] | None
    if isinstance(self.whole, identity.OfFiles):
      images = self.whole.images(read, kind)
    else:
      images = identity.images_of(self.whole)
    return images and [images[i] for i in self.rows]

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
    groups: int [count]: examples of one number stay together, as the pages of
      a file; None if each stands alone.

  Returns:
    The indices of each part, ascending; with data.holdout `last` a part is one
    block, so that few neighbours in a stack of slices are in two parts.

  Raises:
    UserError: there are fewer examples than folds.
  """
  data = config.data
  if groups is None:
    groups = np.arange(count)
  found, groups = np.unique(groups, return_inverse=True)
  number = len(found)
  if number < data.num_folds:
    what = 'folder' if data.holdout == 'folder' else 'file'
    pages = f' in {number} {what}(s)' if number < count else ''
    raise errors.UserError(
      f'--config.data.num_folds={data.num_folds}: the {count} example(s)'
      f'{pages} of {data.train_split} cannot be cut into that many; at '
      f'most {number}'
    )
  order = examples.holdout_order(number, config)
  parts = np.array_split(order, data.num_folds)
  return [np.flatnonzero(np.isin(groups, part)) for part in parts]


def _hold_out(groups: np.ndarray, config: ml_collections.ConfigDict) -> Parts:
  """Cuts examples into `train` and `val`: those of a group stay together."""
  data, numbers = config.data, np.unique(groups)
  count = len(numbers)
  held_out = max(round(count * data.val_fraction), 1)
  if held_out >= count:
    what = 'folder(s) of pairs' if data.holdout == 'folder' else 'pair(s)'
    raise errors.UserError(
      f'{data.dir}: {count} {what} leave nothing to train on once '
      f'data.val_fraction={data.val_fraction} is held out; add '
      'pairs, or evaluate on them too: --config.data.val_fraction=0 '
      '--config.data.eval_split=train'
    )
  order = examples.holdout_order(count, config)
  parts = {'train': order[:-held_out], 'val': order[-held_out:]}
  return {
    name: np.flatnonzero(np.isin(groups, numbers[chosen]))
    for name, chosen in parts.items()
  }


def make_source(
  config: ml_collections.ConfigDict,
  split: str,
  problems: list[examples.Problem] | None = None,
  record: identity.Record | None = None,
) -> examples.Source:
  """Returns the examples of a split.

  Args:
    split: named as in data.train_split. With data.num_folds each fold i is
      `fold_i`, `auto` is the fold data.fold, and data.train_split the rest.
    problems: collects mistakes in files as a whole, which are then skipped;
      None raises the first.
    record: of the run that goes on or is evaluated. What it held out is the
      part that is held out, and new images are for training.

  Raises:
    UserError: the data or the split is not there, or has no example.
  """
  data = config.data
  folds = [f'fold_{i}' for i in range(data.num_folds)]
  if folds and split == 'auto':
    split = folds[data.fold]
  is_fold = bool(folds) and split in (data.train_split, *folds)
  whole = data.train_split if is_fold else split
  source = SOURCES[data.source](config, whole, problems)
  if not len(source):
    raise errors.UserError(
      f'split {whole!r} of the {data.source} source has no example'
    )
  part: examples.Source = source
  if is_fold:
    cut = cut_folds(len(source), config, source.groups)
    parts = dict(zip(folds, cut))
    if record is not None:
      names = dict(zip(folds, folds))
      parts = _recorded(source, record, names, _NEW, config) or parts
    rows = parts.get(split)
    if rows is None:
      held_out = parts[folds[data.fold]]
      rows = np.setdiff1d(np.arange(len(source)), held_out)
      _report_folders(source, (rows, held_out), problems)
    part = Subset(source, rows, split, parts)
  elif isinstance(source, folder_source.FolderSource) and source.held_out:
    parts = _hold_out(source.groups, config)
    if record is not None:
      names = {record.held_out: 'val'}
      parts = _recorded(source, record, names, 'train', config) or parts
    part = source.select(parts[source.split])
    if source.split == data.train_split:
      _report_folders(source, parts.values(), problems)
  elif record is not None:
    part = _on_its_side(source, record, config)
  if not len(part):
    assert record is not None
    raise errors.UserError(
      f'none of the images of {part.split} that {record.workdir} has in '
      f'{identity.FILE} is in {_place(config)}; give the data that have them, '
      'or start another --workdir'
    )
  return part


def _report_folders(
  source: examples.Source,
  parts: Iterable[np.ndarray],
  problems: list[examples.Problem] | None,
) -> None:
  """Says whether images of one folder are trained on and held out."""
  if not isinstance(source, folder_source.FolderSource):
    return
  trained, held_out = (set(source.folders[rows]) for rows in parts)
  shared = trained & held_out
  if shared and len(trained | held_out) > 1:
    text = (
      f'{len(shared)} folder(s) have images both in train and in what is held '
      'out; if a folder is a patient or a place, hold out whole ones: '
      '--config.data.holdout=folder'
    )
    problem = examples.Problem('shared folders', text, (), 'note')
    examples.report(problem, problems)


def _place(config: ml_collections.ConfigDict) -> str:
  """Where the data are, for people."""
  data = config.data
  return data.name if data.source == 'tfds' else data.dir or data.source


def _known(
  placed: identity.Placed | None,
  record: identity.Record,
  config: ml_collections.ConfigDict,
) -> bool:
  """Says where the data have nothing of the record; a run cannot go on so."""
  if placed is not None:
    return True
  text = f'{_place(config)} has none of the images of {record.workdir}'
  if record.continues:
    raise errors.UserError(
      f'{text}; give the data that have them, or start another --workdir'
    )
  record.say(f'{text}: it is taken as other data')
  return False


def _recorded(
  source: examples.Source,
  record: identity.Record,
  names: dict[str, str],
  rest: str,
  config: ml_collections.ConfigDict,
) -> Parts | None:
  """Cuts a source as a record says.

  Args:
    source: all examples.
    record: of the run.
    names: {part of the record: its name}.
    rest: name of the part of all others, and of new images.
    config: of the run.

  Returns:
    None for other data.
  """
  images = identity.images_of(source, record)
  placed = record.place(images, tuple(record.parts))
  if not _known(placed, record, config):
    return None
  assert placed is not None
  record.say_changes(
    placed, 'New images are for training, what was held out stays so'
  )
  groups = range(len(source)) if source.groups is None else source.groups
  # One that is new has no part, unless it is of a file that has one.
  of_group = {g: part for g, part in zip(groups, placed.parts) if part}
  found = np.array(
    [
      names.get(part or of_group.get(group, ''), rest)
      for group, part in zip(groups, placed.parts)
    ]
  )
  wanted = (*names.values(), rest)
  return {name: np.flatnonzero(found == name) for name in wanted}


def _on_its_side(
  source: examples.Source,
  record: identity.Record,
  config: ml_collections.ConfigDict,
) -> examples.Source:
  """Leaves out of a split what the run has on the other side.

  Nothing that was trained on becomes a part of the split that is evaluated,
  nor the reverse. Other splits are left as they are.
  """
  split, held_out = source.split, record.held_out
  trains = split == config.data.train_split
  if not trains and split != held_out:
    return source
  placed = record.place(identity.images_of(source, record), (split,))
  if not _known(placed, record, config):
    return source
  assert placed is not None
  use = 'for training' if trains else 'evaluated too'
  record.say_changes(placed, f'New images of {split} are {use}')
  is_other = np.array(
    [part is not None and (part == held_out) == trains for part in placed.parts]
  )
  rows = np.flatnonzero(~is_other)
  if len(rows) == len(source):
    return source
  was = 'held out' if trains else 'trained on'
  record.say(
    f'{len(source) - len(rows)} of {len(source)} images of {split} were {was} '
    f'by {record.workdir}: they are left out'
  )
  return Subset(source, rows, split)


def keep_record(
  workdir: str,
  splits: Sequence[examples.Source],
  earlier: identity.Record | None,
  train_set: Any = None,
) -> None:
  """Writes which images a run trains on and which it evaluates.

  Args:
    workdir: of the run.
    splits: the one that it trains on, and the one that it evaluates.
    earlier: the record that these were cut by.
    train_set: the first of them, prepared; its pixels are kept too.
  """
  trained, evaluated = splits
  if isinstance(trained, Subset) and trained.parts:
    images = identity.images_of(trained.whole, earlier)
    parts = {k: [images[i] for i in v] for k, v in trained.parts.items()}
  else:
    parts = {s.split: identity.images_of(s, earlier) for s in splits}
  # Nothing is held out where the split that is trained on is evaluated.
  held_out = evaluated.split if evaluated.split != trained.split else ''
  pixels = identity.pixels_of(train_set) if train_set is not None else {}
  identity.write(workdir, held_out, parts, earlier, pixels.values())
