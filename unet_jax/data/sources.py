"""Where examples come from: tfds, folder or shapes.

A source is random access over one split: `len(source)` and `source[i]`, a dict

  image: uint8 [H, W, C] with C = data.num_channels
  mask:  integers [H, W], or uint8 RGB [H, W, 3], as stored
  name:  str, what a person would call the example
  mask_name: str, the file that the mask came from, where it has one
  instances: where the data has them: integers [H, W], 0 is none, each other
    value is one object

Volumes are [D, H, W, C] and [D, H, W]; only shapes has them.

`source.read(i)` is the same with the bytes of the files in place of the arrays,
where there are files. `source.fingerprint` is a JSON-able value that changes
with the examples. Sources are read from many threads at once.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import re
from typing import Any, Protocol

import numpy as np

from unet_jax import config as config_lib
from unet_jax import errors
from unet_jax.data import decode

_log = logging.getLogger(__name__)

Example = dict[str, Any]


class Source(Protocol):
  """Random access over the examples of a split."""

  split: str  # Its name in the source, where `auto` was asked for.
  held_out: bool  # Whether the source chose what is not trained on.
  fingerprint: Any

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def read(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Problem:
  """What is wrong with files as a whole: pairs, stems, lists.

  Attributes:
    kind: one word, such as `unpaired`.
    message: one line: what, where, how to mend it.
    names: every file concerned.
  """

  kind: str
  message: str
  names: tuple[str, ...]


def _report(problem: Problem, problems: list[Problem] | None) -> None:
  """Raises the problem, or adds it to those that are collected."""
  if problems is None:
    raise errors.UserError(problem.message)
  problems.append(problem)


def decode_example(example: Example, data) -> Example:
  """Returns what `read` gave with arrays in place of the files' bytes.

  Args:
    example: see `Source.read`.
    data: the section `data` of the config.

  Raises:
    DecodeError: a file is broken.
    UserError: values that cannot be used, see decode.py.
  """
  if isinstance(example['image'], np.ndarray):
    return example
  image = decode.decode_image(
    example['image'], example['name'], data.num_channels, data.intensity
  )
  mask = decode.decode_mask(example['mask'], example['mask_name'])
  result = {**example, 'image': image, 'mask': mask}
  if 'instances' in example:
    instances = decode.decode_mask(
      example['instances'], f'the instance mask of {example["name"]}'
    )
    if instances.ndim == 3:  # A colour is an object; black is none.
      instances = instances.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    result['instances'] = instances
  return result


class TfdsSource:
  """A split of a TFDS data set, read without TensorFlow."""

  held_out = False

  def __init__(self, config, split: str, problems=None):
    del problems  # Pairs are records here.
    import tensorflow_datasets as tfds

    data = config.data
    self._data = data
    if data.name == 'oxford_iiit_pet':
      from unet_jax.data import oxford_iiit_pet

      builder = oxford_iiit_pet.prepare(data.dir, config_lib.cache_dir(config))
    else:
      builder = _prepare_tfds(config)
    if split == 'auto':
      split = _first_of(('val', 'validation', 'test'), builder.info.splits)
    self.split = split
    features = builder.info.features
    keys = [data.image_key, data.mask_key]
    keys += [data.instance_key] * bool(data.instance_key)
    for key in keys:
      if key not in features:
        raise errors.UserError(
          f'TFDS set {data.name} has no feature {key!r}'
          f'{config_lib.nearest(key, features)}; set --config.data.image_key, '
          f'data.mask_key (and instance_key) to some of '
          f'{", ".join(sorted(features))}'
        )
    skip = tfds.decode.SkipDecoding()
    try:
      self._records = builder.as_data_source(
        split,
        decoders=dict.fromkeys(keys, skip),
      )
    except (KeyError, ValueError) as e:
      raise errors.UserError(
        f'TFDS set {data.name} has no split {split!r}; it has '
        f'{", ".join(builder.info.splits)}'
      ) from e
    self.fingerprint = [
      'tfds',
      builder.info.full_name,
      split,
      str(builder.data_path),
    ]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Example:
    return decode_example(self.read(index), self._data)

  def read(self, index: int) -> Example:
    record, data = self._records[index], self._data
    name = record.get('file_name', f'{data.name}/{self.split}[{index}]')
    name = name.decode() if isinstance(name, bytes) else str(name)
    example = {
      'image': record[data.image_key],
      'mask': record[data.mask_key],
      'name': name,
      'mask_name': f'the mask of {name}',
    }
    if data.instance_key:
      example['instances'] = record[data.instance_key]
    return example


def _prepare_tfds(config):
  """Any other TFDS set, with TFDS's own builder."""
  import tensorflow_datasets as tfds

  data = config.data
  if data.dir:
    raise errors.UserError(
      f'--config.data.dir with the TFDS set {data.name}: only '
      'oxford_iiit_pet is read from a local copy; leave data.dir out to '
      'download, or use --config=configs/folder.py'
    )
  try:
    builder = tfds.builder(
      data.name,
      data_dir=os.path.join(config_lib.cache_dir(config), 'tfds'),
      file_format='array_record',
    )
    builder.download_and_prepare()
  except tfds.core.registered.DatasetNotFoundError as e:
    raise errors.UserError(
      f'--config.data.name={data.name}: TFDS has no such set'
      f'{config_lib.nearest(data.name, tfds.list_builders())}'
    ) from e
  return builder


def _first_of(names, available) -> str:
  for name in names:
    if name in available:
      return name
  raise errors.UserError(
    f'data.eval_split=auto finds none of {", ".join(names)} among the splits '
    f'{", ".join(available)}; name one with --config.data.eval_split'
  )


def natural_key(name: str) -> list:
  """Sorts slice_2 before slice_10."""
  parts = re.split(r'(\d+)', name)
  # The name itself orders slice_1 and slice_01.
  return [[int(s) if s.isdecimal() else s for s in parts], name]


class FolderSource:
  """Images and masks in folders, paired by stem (see configs/folder.py)."""

  def __init__(self, config, split: str, problems=None):
    self._data = config.data
    root = pathlib.Path(config.data.dir).expanduser()
    if not root.is_dir():
      raise errors.UserError(
        f'--config.data.dir={config.data.dir}: no such folder'
      )
    self.split, self.held_out, self._pairs = _find_pairs(
      root, split, config, problems
    )
    self.fingerprint = [
      'folder',
      [_file_stamp(p) for pair in self._pairs for p in pair],
    ]

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, index: int) -> Example:
    return decode_example(self.read(index), self._data)

  def read(self, index: int) -> Example:
    image_path, mask_path, *instance_path = self._pairs[index]
    example = {
      'image': _read_bytes(image_path),
      'mask': _read_bytes(mask_path),
      'name': str(image_path),
      'mask_name': str(mask_path),
    }
    for path in instance_path:
      example['instances'] = _read_bytes(path)
    return example


def _read_bytes(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as e:
    raise errors.DecodeError(
      f'{path} cannot be read ({e.strerror}); mend it, or leave such pairs '
      'out with --config.data.on_error=skip'
    ) from e


def _file_stamp(path: pathlib.Path) -> list:
  try:
    stat = path.stat()
  except OSError:  # Such as a link to nowhere; reading it says so.
    return [str(path), None, None]
  return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _find_pairs(root: pathlib.Path, split: str, config, problems):
  """Returns a split's name, whether it is held out, and its pairs.

  The pairs, see `_pair_files`, are in order.
  """
  folders = [s for s in ('train', 'val', 'test') if (root / s).is_dir()]
  usable = [s for s in folders if (root / s / 'masks').is_dir()]
  lists = [s for s in ('train', 'val', 'test') if (root / f'{s}.txt').is_file()]
  if not usable and not (root / 'images').is_dir():
    raise errors.UserError(
      f'--config.data.dir={root}: has neither images/ and masks/, nor '
      'train/ with images/ and masks/ in it' + _what_is_in(root)
    )
  for name in sorted(set(folders) - set(usable)) if split == 'auto' else ():
    _log.info('%s has no masks/: not used', root / name)
  splits = usable or lists or ['train']
  if split == 'auto':
    split = next((s for s in ('val', 'test') if s in splits), 'val')
  held_out = not {'val', 'test'} & set(splits)
  if config.data.num_folds:
    held_out = False  # The folds take the place of `val`, see `make_source`.
  if held_out:
    splits = ['train', 'val']
  if split not in splits:
    raise errors.UserError(
      f'{root} has no split {split!r}{config_lib.nearest(split, splits)}; '
      f'it has {", ".join(splits)}'
    )
  part = 'train' if held_out else split
  folder = root / part if usable else root
  pairs = _pair_files(folder, problems)
  if lists and not usable:
    pairs = _listed(pairs, root / f'{part}.txt', problems)
  if held_out:
    pairs = _hold_out(pairs, split, config, folder)
  return split, held_out, pairs


def _what_is_in(root: pathlib.Path) -> str:
  names = sorted(p.name for p in root.iterdir())
  if not names:
    return ' (it is empty)'
  more = f' and {len(names) - 6} more' if len(names) > 6 else ''
  return f' (it has {", ".join(names[:6])}{more})'


def _files_by_stem(folder: pathlib.Path, problems) -> dict[str, pathlib.Path]:
  """Returns {stem: path} of the image files of a folder, in natural order."""
  if not folder.is_dir():
    raise errors.UserError(f'{folder}: no such folder; put the files there')
  files = {}
  for path in sorted(folder.iterdir()):
    known = path.suffix.lower() in decode.EXTENSIONS
    if path.name.startswith('.') or not known:
      continue
    if path.stem in files:
      other = files[path.stem]
      text = (
        f'{other} and {path} have the same stem; pairs are made by stem, '
        'rename or remove one'
      )
      _report(Problem('same stem', text, (str(other), str(path))), problems)
    files[path.stem] = path
  if not files:
    raise errors.UserError(
      f'{folder}: has no image files ({", ".join(decode.EXTENSIONS)})'
    )
  return dict(sorted(files.items(), key=lambda item: natural_key(item[0])))


def _pair_files(folder: pathlib.Path, problems):
  """Returns [(image path, mask path[, path of the instances]), ...]."""
  images = _files_by_stem(folder / 'images', problems)
  masks = _files_by_stem(folder / 'masks', problems)
  paired = [images, masks]
  wanted = [(images, masks, 'mask'), (masks, images, 'image')]
  if (folder / 'instances').is_dir():
    paired.append(_files_by_stem(folder / 'instances', problems))
    wanted.append((images, paired[2], 'instance'))
  for have, want, what in wanted:
    missing = [stem for stem in have if stem not in want]
    if missing:
      other = folder / f'{what}s'
      text = (
        f'{have[missing[0]]} has no {what}: {other} has no file with the '
        f'stem {missing[0]!r}{config_lib.nearest(missing[0], want)}; '
        f'{len(missing)} file(s) like this. Add the {what} or remove the '
        'file'
      )
      names = tuple(str(have[stem]) for stem in missing)
      _report(Problem('unpaired', text, names), problems)
  return [
    tuple(files[stem] for files in paired)
    for stem in images
    if all(stem in files for files in paired)
  ]


def _listed(pairs, path: pathlib.Path, problems):
  """The pairs whose stems a list names, in the list's order."""
  if not path.is_file():
    raise errors.UserError(f'{path}: no such list of stems')
  by_stem = {pair[0].stem: pair for pair in pairs}
  text = path.read_text('utf-8-sig', 'replace')
  chosen = []
  for line in filter(None, map(str.strip, text.splitlines())):
    # Lists name stems or files, which may hold spaces, or more may follow.
    names = (line, pathlib.Path(line).stem, line.split()[0])
    names += (pathlib.Path(names[-1]).stem,)
    stem = next((name for name in names if name in by_stem), None)
    if stem is None:
      text = (
        f'{path} names {line}, which images/ does not have'
        f'{config_lib.nearest(line, by_stem)}'
      )
      _report(Problem('listed in vain', text, (line,)), problems)
      continue
    chosen.append(by_stem[stem])
  if not chosen:
    raise errors.UserError(f'{path}: is empty; one stem a line')
  return chosen


def _hold_out(pairs, split: str, config, folder: pathlib.Path):
  """Splits pairs into train and val as data.val_fraction and holdout say."""
  count = max(round(len(pairs) * config.data.val_fraction), 1)
  if count >= len(pairs):
    raise errors.UserError(
      f'{folder}: {len(pairs)} pair(s) leave nothing to train on once '
      f'data.val_fraction={config.data.val_fraction} is held out'
    )
  order = np.arange(len(pairs))
  if config.data.holdout == 'random':
    order = np.random.default_rng(config.seed).permutation(order)
  chosen = order[-count:] if split == 'val' else order[:-count]
  return [pairs[i] for i in sorted(chosen)]


class ShapesSource:
  """Drawn images; the example is a function of seed, split and index."""

  held_out = False

  def __init__(self, config, split: str, problems=None):
    from unet_jax.data import shapes

    del problems  # There are no files.
    self._draw = shapes.draw
    if split == 'auto':
      split = 'test'
    if split not in ('train', 'test'):
      raise errors.UserError(
        f'the shapes source has no split {split!r}; it has train, test'
      )
    data = config.data
    if data.num_classes != shapes.NUM_CLASSES or data.num_channels != 3:
      raise errors.UserError(
        f'the shapes source draws {shapes.NUM_CLASSES} classes in RGB: '
        f'data.num_classes must be {shapes.NUM_CLASSES} and '
        'data.num_channels 3'
      )
    self.split = split
    self._length = data.num_train if split == 'train' else data.num_eval
    # The two splits count up from different ends of the seeds.
    self._seed = (config.seed, ('train', 'test').index(split))
    self._size = tuple(data.image_size)
    code = hashlib.sha256(pathlib.Path(shapes.__file__).read_bytes())
    drawn_by = [code.hexdigest(), np.__version__]
    self.fingerprint = ['shapes', self._seed, self._length, self._size]
    self.fingerprint += drawn_by

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Example:
    image, mask = self._draw((*self._seed, index), self._size)
    name = f'{self.split} shape {index}'
    return {'image': image, 'mask': mask, 'name': name, 'mask_name': name}

  read = __getitem__


class Subset:
  """Some examples of a source, as a source: a fold, or the others.

  Args:
    whole: the source.
    rows: int [K]: their indices in it.
    split: what they are called.
  """

  held_out = True

  def __init__(self, whole: Source, rows: np.ndarray, split: str):
    self.whole, self.rows, self.split = whole, rows, split
    self.fingerprint = [whole.fingerprint, rows.tolist()]

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Example:
    return self.whole[self.rows[index]]

  def read(self, index: int) -> Example:
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
  'tfds': TfdsSource,
  'folder': FolderSource,
  'shapes': ShapesSource,
}


def make_source(
  config, split: str, problems: list[Problem] | None = None
) -> Source:
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
