"""Examples from folders of images and masks, paired by stem."""

import logging
import pathlib

import ml_collections

from unet_jax.config import fields
from unet_jax.data import decode, examples
from unet_jax.runtime import errors

_log = logging.getLogger(__name__)

# Paths of an image, its mask and, where there is one, its instance mask.
Pair = tuple[pathlib.Path, ...]
Problems = list[examples.Problem] | None


class FolderSource:
  """Images and masks in folders; configs/folder.py shows the layouts."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    split: str,
    problems: Problems = None,
  ):
    self._data = config.data
    root = pathlib.Path(config.data.dir).expanduser()
    if not root.is_dir():
      raise errors.UserError(
        f'--config.data.dir={config.data.dir}: no such folder'
      )
    self.split, self.held_out, self._pairs = _find_pairs(
      root, split, config, problems
    )
    stamps = [_file_stamp(path) for pair in self._pairs for path in pair]
    self.fingerprint = ['folder', stamps]

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, index: int) -> examples.Example:
    return examples.decode_example(self.read(index), self._data)

  def read(self, index: int) -> examples.Example:
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
      f'{path} cannot be read ({e.strerror}); fix it, or skip such pairs with '
      '--config.data.on_error=skip'
    ) from e


def _file_stamp(path: pathlib.Path) -> list:
  try:
    stat = path.stat()
  except OSError:  # Such as a link to nowhere; reading it reports that.
    return [str(path), None, None]
  return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _find_pairs(
  root: pathlib.Path,
  split: str,
  config: ml_collections.ConfigDict,
  problems: Problems,
) -> tuple[str, bool, list[Pair]]:
  """Returns a split's name, whether it is held out, and its pairs in order."""
  folders = [s for s in ('train', 'val', 'test') if (root / s).is_dir()]
  usable = [s for s in folders if (root / s / 'masks').is_dir()]
  lists = [s for s in ('train', 'val', 'test') if (root / f'{s}.txt').is_file()]
  if not usable and not (root / 'images').is_dir():
    raise errors.UserError(
      f'--config.data.dir={root}: has neither images/ and masks/, nor '
      'train/ with images/ and masks/ in it' + _contents(root)
    )
  for name in sorted(set(folders) - set(usable)) if split == 'auto' else ():
    _log.info('%s has no masks/: not used', root / name)
  splits = usable or lists or ['train']
  if split == 'auto':
    split = next((s for s in ('val', 'test') if s in splits), 'val')
  # Folds take the place of `val`, see `sources.make_source`.
  held_out = not ({'val', 'test'} & set(splits) or config.data.num_folds)
  if held_out:
    splits = ['train', 'val']
  if split not in splits:
    raise errors.UserError(
      f'{root} has no split {split!r}{fields.nearest(split, splits)}; '
      f'it has {", ".join(splits)}'
    )
  part = 'train' if held_out else split
  folder = root / part if usable else root
  pairs = _pair_files(folder, problems)
  if lists and not usable:
    pairs = _select_listed(pairs, root / f'{part}.txt', problems)
  if held_out:
    pairs = _hold_out(pairs, split, config, folder)
  return split, held_out, pairs


def _contents(root: pathlib.Path) -> str:
  names = sorted(p.name for p in root.iterdir())
  if not names:
    return ' (it is empty)'
  more = f' and {len(names) - 6} more' if len(names) > 6 else ''
  return f' (it has {", ".join(names[:6])}{more})'


def _files_by_stem(
  folder: pathlib.Path, problems: Problems
) -> dict[str, pathlib.Path]:
  """Returns {stem: path} of the image files of a folder, in natural order."""
  if not folder.is_dir():
    raise errors.UserError(f'{folder}: no such folder; put the files there')
  files: dict[str, pathlib.Path] = {}
  for path in sorted(folder.iterdir()):
    known = path.suffix.lower() in decode.EXTENSIONS
    if path.name.startswith('.') or not known:
      continue
    if path.stem in files:
      names = str(files[path.stem]), str(path)
      text = (
        f'{names[0]} and {names[1]} have the same stem; pairs are made by '
        'stem, rename or remove one'
      )
      examples.report(examples.Problem('same stem', text, names), problems)
    files[path.stem] = path
  if not files:
    raise errors.UserError(
      f'{folder}: has no image files ({", ".join(decode.EXTENSIONS)})'
    )
  return {stem: files[stem] for stem in sorted(files, key=examples.natural_key)}


def _pair_files(folder: pathlib.Path, problems: Problems) -> list[Pair]:
  images = _files_by_stem(folder / 'images', problems)
  masks = _files_by_stem(folder / 'masks', problems)
  kinds = [images, masks]
  required = [(images, masks, 'mask'), (masks, images, 'image')]
  if (folder / 'instances').is_dir():
    kinds.append(_files_by_stem(folder / 'instances', problems))
    required.append((images, kinds[2], 'instance'))
  for have, want, kind in required:
    missing = [stem for stem in have if stem not in want]
    if missing:
      text = (
        f'{have[missing[0]]} has no {kind}: {folder / kind}s has no file with '
        f'the stem {missing[0]!r}{fields.nearest(missing[0], want)}; '
        f'{len(missing)} file(s) like this. Add the {kind} or remove the file'
      )
      names = tuple(str(have[stem]) for stem in missing)
      examples.report(examples.Problem('unpaired', text, names), problems)
  return [
    tuple(files[stem] for files in kinds)
    for stem in images
    if all(stem in files for files in kinds)
  ]


def _select_listed(
  pairs: list[Pair], path: pathlib.Path, problems: Problems
) -> list[Pair]:
  """Returns the pairs whose stems a list names, in the list's order."""
  if not path.is_file():
    raise errors.UserError(f'{path}: no such list of stems')
  by_stem = {pair[0].stem: pair for pair in pairs}
  chosen = []
  content = path.read_text('utf-8-sig', 'replace')
  for line in filter(None, map(str.strip, content.splitlines())):
    # A line is a stem or file name, perhaps with spaces, perhaps with more
    # columns after it.
    first = line.split()[0]
    names = (line, pathlib.Path(line).stem, first, pathlib.Path(first).stem)
    stem = next((name for name in names if name in by_stem), None)
    if stem is not None:
      chosen.append(by_stem[stem])
      continue
    text = (
      f'{path} names {line}, which images/ does not have'
      f'{fields.nearest(line, by_stem)}'
    )
    examples.report(
      examples.Problem('listed but missing', text, (line,)), problems
    )
  if not chosen:
    raise errors.UserError(f'{path}: is empty; one stem a line')
  return chosen


def _hold_out(
  pairs: list[Pair],
  split: str,
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
) -> list[Pair]:
  """Splits pairs into train and val by data.val_fraction and data.holdout."""
  count = max(round(len(pairs) * config.data.val_fraction), 1)
  if count >= len(pairs):
    raise errors.UserError(
      f'{folder}: {len(pairs)} pair(s) leave nothing to train on once '
      f'data.val_fraction={config.data.val_fraction} is held out'
    )
  order = examples.holdout_order(len(pairs), config)
  chosen = order[-count:] if split == 'val' else order[:-count]
  return [pairs[i] for i in sorted(chosen)]
