"""Which folders hold images, which masks, and of which split, by their names.

Split and kind may be in one name or two, in any order: `train/images`,
`images/train`, `train_images`, `imagesTr`. Every other folder (a patient, a
place) is a part of the keys of its files, see pairing.py.
"""

import collections
import dataclasses
import functools
import os
import re
from typing import NamedTuple

from unet_jax.data import decode, pairing
from unet_jax.runtime import errors

# The usual names of each split and of each kind of folder, the first is ours.
# Letter case and what is neither letter nor digit do not count.
SPLITS = {
  'train': ('train', 'training'),
  'val': ('val', 'valid', 'validation', 'dev'),
  'test': ('test', 'testing'),
}
KINDS = {
  'images': (
    *('images', 'image', 'imgs', 'img', 'jpegimages', 'original', 'originals'),
    *('scans', 'photos', 'frames', 'inputs', 'input'),
  ),
  'masks': (
    *('masks', 'mask', 'labels', 'label', 'annotations', 'annotation'),
    *('annots', 'annot', 'gt', 'gts', 'groundtruth', 'groundtruths'),
    *('segmentations', 'segmentation', 'segs', 'seg', 'segmentationclass'),
    *('manual', '1stmanual', '2ndmanual', 'targets', 'target'),
  ),
  'instances': ('instances', 'instance', 'segmentationobject'),
}
# Short names of splits that stand behind a kind: `imagesTr`.
_SHORT = {'train': ('tr',), 'val': ('va',), 'test': ('ts', 'te')}
# Levels of other folders that are looked through for images and masks.
_DEPTH = 2

Files = dict[str, list[str]]


def _meanings() -> dict[str, tuple[str, str, str]]:
  """Returns {name: (split, kind, the word for it)}; each may be ''."""
  found: dict[str, tuple[str, str, str]] = {}
  for split, names in SPLITS.items():
    found |= dict.fromkeys(names, (split, '', ''))
    for kind, words in KINDS.items():
      for word in words:
        found[word] = ('', kind, word)
        for name in names:
          found[name + word] = found[word + name] = (split, kind, word)
        for name in _SHORT[split]:
          found[word + name] = (split, kind, word)
  return found


_MEANINGS = _meanings()
_SEPARATORS = re.compile(r'[\W_]+')


def _meaning(name: str) -> tuple[str, str, str]:
  word = _SEPARATORS.sub('', name).casefold()
  found = _MEANINGS.get(word)
  if found is None:  # `manual1` is one of several, `train2` may be a patient.
    found = _MEANINGS.get(word.rstrip('0123456789'), ('', '', ''))
    return found if found[1] else ('', '', '')
  return found


def meaning(name: str) -> tuple[str, str]:
  """Returns the split and the kind that a folder's name says, each or ''."""
  return _meaning(name)[:2]


def word_of(folder: 'Folder') -> str:
  """Returns the word that said the kind of a folder's files."""
  return ''.join(_meaning(name)[2] for name in folder.label.split('/'))


def split_name(name: str) -> str:
  """Returns our name of a split that is called by another usual one."""
  split, kind = meaning(name)
  return name if kind or not split else split


class _Place(NamedTuple):
  """What the names of the folders down to one say."""

  split: str = ''
  kind: str = ''
  label: str = ''  # The names that said both.
  parts: str = ''  # The other names, with a slash behind each.


@dataclasses.dataclass
class Folder:
  """The files whose split and kind the same names say.

  Attributes:
    path: the first folder of these names.
    label: the names.
    files: {key: paths}.
    others: {ending: paths} of those that are not read.
  """

  path: str
  label: str = ''
  files: Files = dataclasses.field(default_factory=dict)
  others: dict[str, list[str]] = dataclasses.field(default_factory=dict)


class Tree:
  """The image files below a folder, by split and kind.

  Attributes:
    root: the folder.
    passed_over: folders that were not looked into.

  Raises:
    UserError: a folder cannot be read.
  """

  def __init__(self, root: str):
    self.root = root
    self.passed_over: list[str] = []
    # By what was said; files in no folder of a kind have the kind ''.
    self._found: dict[tuple[str, str], dict[str, Folder]] = (
      collections.defaultdict(dict)
    )
    self._above: list[tuple[int, int]] = []
    self._add(root, _Place(), 0)

  def kinds(
    self, split: str, patterns: tuple[str, str] | None
  ) -> dict[str, Folder] | None:
    """Returns images and masks, and where there are, instances, of a split.

    Args:
      split: our name of it; '' is for files that no name puts into one.
      patterns: of images and masks, if given: see pairing.py.

    Returns:
      None unless there are images and masks.

    Raises:
      UserError: several folders may be the images, or the masks.
    """
    found = {kind: self._choose(split, kind) for kind in KINDS}
    loose = self._choose(split, '')
    if loose and not (found['images'] and found['masks']):
      if found['masks']:
        found['images'] = loose
      elif not found['images']:
        found |= _part(loose, patterns)
    if not (found['images'] and found['masks']):
      return None
    kinds = {kind: folder for kind, folder in found.items() if folder}
    of_images = {_folder_of(key) for key in kinds['images'].files}
    for kind, folder in kinds.items():
      if of_images.isdisjoint(map(_folder_of, folder.files)):
        kinds[kind] = _unwrap(folder)
    return kinds

  def loose(self) -> list[str]:
    """Returns keys of images in the folder itself, if there is no other."""
    if any(group for (_, kind), group in self._found.items() if kind):
      return []
    folder = self._choose('', '')
    return list(folder.files) if folder and folder.path == self.root else []

  def unused(self, used: list[Folder]) -> list[str]:
    """Returns folders of a kind, and loose images, that `used` leaves out."""
    paths = {folder.path for folder in used}
    folders = (f for group in self._found.values() for f in group.values())
    return sorted(f.path for f in folders if f.files and f.path not in paths)

  def _choose(self, split: str, kind: str) -> Folder | None:
    """Returns the folder of a kind: ours by name, or else the only one."""
    found = self._found[split, kind]
    filled = {name: f for name, f in found.items() if f.files} or found
    names = [name for name in filled if kind in name.casefold().split('/')]
    names = names or list(filled)
    if len(names) > 1:
      paths = ' and '.join(filled[name].path for name in names)
      raise errors.UserError(
        f'{paths} may all be the {kind or "images"}; keep one, or name the '
        f'right one {kind or "images"}/ and the others differently'
      )
    return filled[names[0]] if names else None

  def _add(self, folder: str, place: _Place, depth: int) -> None:
    """Adds the files of a folder and of those below it."""
    try:
      stat = os.stat(folder)
      with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
      names = [e.name for e in entries if e.is_dir()]
    except OSError as e:
      raise errors.UserError(
        f'{e.filename} cannot be read ({e.strerror}); allow it, or move it away'
      ) from e
    if (stat.st_dev, stat.st_ino) in self._above:
      return  # A link to a folder that it is in.
    self._above.append((stat.st_dev, stat.st_ino))
    if {'images', 'masks'} <= {meaning(name)[1] for name in names}:
      place = place._replace(kind='')  # A set, not a kind.
    of_place = self._found[place.split, place.kind]
    into = of_place.get(place.label) or Folder(folder, place.label)
    before, is_folder = len(into.files), set(names)
    for entry in entries:
      if entry.name not in is_folder:
        _add_file(into, entry, place.parts)
    if place.kind or into.files:
      of_place[place.label] = into
    has_files = len(into.files) > before
    self._add_folders(folder, place, names, depth, has_files)
    self._above.pop()

  def _add_folders(
    self,
    folder: str,
    place: _Place,
    names: list[str],
    depth: int,
    has_files: bool,
  ) -> None:
    """Adds the folders of a folder, by what their names say that is new."""
    names = [name for name in names if not name.startswith('.')]
    said = {name: meaning(name) for name in names}
    places = {
      name: place._replace(
        split=place.split or split,
        kind=place.kind or kind,
        label=f'{place.label}/{name}',
      )
      for name, (split, kind) in said.items()
      if (split and not place.split)
      or (kind and not place.kind and split in ('', place.split))
    }
    if place.kind and (has_files or len(places) < len(names)):
      places = {}  # No splits: patients, one of which is called `test`.
    for name in names:
      path = os.path.join(folder, name)
      if name in places:
        self._add(path, places[name], depth)
      elif place.kind and said[name][1] == place.kind:
        self._add(path, place, depth)  # Archives often unpack to masks/masks/.
      elif place.kind or not places and depth < _DEPTH:
        parts = f'{place.parts}{name}/'
        deeper = depth + (not place.kind)
        self._add(path, place._replace(parts=parts), deeper)
      else:
        self.passed_over.append(path)


def _add_file(into: Folder, entry: os.DirEntry, parts: str) -> None:
  stem, ending = os.path.splitext(entry.name)
  ending = ending.lower()
  if entry.name.startswith('.'):
    ending = 'hidden'
  elif ending in decode.EXTENSIONS:
    key = pairing.normal_form(parts + stem)
    into.files.setdefault(key, []).append(entry.path)
    return
  into.others.setdefault(ending or 'no ending', []).append(entry.path)


def _part(loose: Folder, patterns: tuple[str, str] | None) -> dict[str, Folder]:
  """Parts files of one folder into images and masks; {} without masks."""
  is_mask = pairing.is_mask_name
  if patterns and patterns[1] != pairing.STEM:
    is_mask = functools.partial(_fits, pattern=patterns[1])
  masks = {key: f for key, f in loose.files.items() if is_mask(key)}
  if not masks or len(masks) == len(loose.files):
    return {}
  images = {key: f for key, f in loose.files.items() if key not in masks}
  return {
    'images': dataclasses.replace(loose, files=images),
    'masks': dataclasses.replace(loose, files=masks, others={}),
  }


def _fits(key: str, pattern: str) -> bool:
  return pairing.core(key, pattern) is not None


def _folder_of(key: str) -> str:
  return key.rpartition('/')[0]


def _unwrap(folder: Folder) -> Folder:
  """Takes off the keys the folders that all files are in."""
  shared = os.path.commonprefix(
    [f'{_folder_of(key)}/'.split('/') for key in folder.files]
  )
  start = len(''.join(f'{part}/' for part in shared if part))
  files = {key[start:]: paths for key, paths in folder.files.items()}
  return dataclasses.replace(folder, files=files)
