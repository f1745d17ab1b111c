"""Lists that name the images of each split: `train.txt` beside `images/`."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence

from unet_jax.data import decode, examples, folders, pairing
from unet_jax.runtime import errors

Problems = list[examples.Problem] | None

# Where lists are, the first place that has some: ours, and that of Pascal VOC.
_PLACES = ('', 'ImageSets/Segmentation')


def find(root: str) -> dict[str, str]:
  """Returns {split: path} of the lists for a folder of images and masks.

  Raises:
    UserError: two are of one split.
  """
  places = [os.path.join(root, place) for place in _PLACES]
  found = (_in(place) for place in places if os.path.isdir(place))
  return next(filter(None, found), {})


def _in(folder: str) -> dict[str, str]:
  found: dict[str, str] = {}
  for name in sorted(os.listdir(folder)):
    stem, ending = os.path.splitext(name)
    split = folders.split_name(stem)
    if ending.lower() != '.txt' or split not in folders.SPLITS:
      continue
    path = os.path.join(folder, name)
    if split in found:
      raise errors.UserError(
        f'{found[split]} and {path} are lists of one split; remove one'
      )
    found[split] = path
  return {split: found[split] for split in folders.SPLITS if split in found}


def select(path: str, keys: Sequence[str], problems: Problems) -> list[str]:
  """Returns the keys of images that a list names, each once, in its order.

  A line is a stem, a file's name or its path, perhaps with spaces, perhaps with
  more columns after it.

  Raises:
    UserError: it is not there, or empty.
  """
  lines = _lines(path)
  known = _Known(keys)
  chosen: dict[str, None] = {}
  missing, again = [], []
  for line in lines:
    key = known.find(line)
    if key is None:
      missing.append(line)
    elif key in chosen:
      again.append(line)
    else:
      chosen[key] = None
  # A comment, unless there is an image of that name.
  missing = [line for line in missing if not line.startswith('#')]
  if missing:
    text = (
      f'{path} names {missing[0]}, which images/ does not have'
      f'{known.hint(missing[0])}; {len(missing)} name(s) like this. Correct or '
      'remove them'
    )
    if not chosen:  # Nothing is left to go on with.
      raise errors.UserError(text)
    examples.report(
      examples.Problem('listed but missing', text, tuple(missing)), problems
    )
  if again:
    text = f'{path} names {again[0]} again; each image is used once'
    text += f' ({len(again)} line(s) like this)'
    examples.report(
      examples.Problem('listed twice', text, tuple(again), 'warning'), problems
    )
  if not chosen:
    raise errors.UserError(f'{path}: is empty; one stem a line')
  return list(chosen)


def _lines(path: str) -> list[str]:
  """Returns the lines that are not empty, of any system's editor."""
  try:
    with open(path, 'rb') as f:
      content = f.read()
  except OSError as e:
    raise errors.UserError(f'{path}: no such list of stems') from e
  if content[:2] in (b'\xff\xfe', b'\xfe\xff'):
    text = content.decode('utf-16', 'replace')
  else:
    try:
      text = content.decode('utf-8-sig')
    except UnicodeDecodeError:
      text = content.decode('cp1252', 'replace')
  return [line.strip() for line in text.splitlines() if line.strip()]


class _Known:
  """Finds images by what lists call them."""

  def __init__(self, keys: Sequence[str]):
    self._keys = set(keys)
    self._has_folders = any('/' in key for key in keys)
    # {end of a key: keys}, such as the stem alone.
    self._by_end: dict[str, list[str]] = {}
    for key in keys if self._has_folders else ():
      parts = key.split('/')
      for i in range(1, len(parts)):
        self._by_end.setdefault('/'.join(parts[i:]), []).append(key)

  def find(self, line: str) -> str | None:
    for name in self._names(line):
      if name in self._keys:
        return name
      ends = self._by_end.get(name, ())
      if len(ends) == 1:
        return ends[0]
    return None

  def hint(self, line: str) -> str:
    """Why a line was not found."""
    for name in self._names(line):
      if name in self._by_end:
        return f' once, but in {" and ".join(self._by_end[name][:3])}'
    return pairing.nearest(line, self._keys)

  def _names(self, line: str) -> Iterator[str]:
    """What a line may mean: the whole or its first column, with less path."""
    for text in (line, re.split(r'[\s,;]', line)[0]):
      path = pairing.normal_form(text.strip('"\'').replace('\\', '/'))
      stem, ending = os.path.splitext(path)
      is_file = ending.lower() in decode.EXTENSIONS
      for name in (path, stem) if is_file else (path,):
        parts = [part for part in name.split('/') if part != '.']
        yield from self._ends(parts)
        # Folders of kinds and splits are not in keys.
        yield from self._ends(
          [p for p in parts[:-1] if folders.meaning(p) == ('', '')] + parts[-1:]
        )

  def _ends(self, parts: list[str]) -> Iterable[str]:
    """Joins the last parts; another patient's image is not this one's."""
    yield '/'.join(parts)
    for i in range(1, len(parts)):
      is_absolute = not parts[0] or parts[0].endswith(':')
      if (
        not self._has_folders
        or is_absolute
        or folders.meaning(parts[i - 1]) != ('', '')
      ):
        yield '/'.join(parts[i:])
