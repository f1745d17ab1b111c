"""What an image is: its content, not its name, path or place.

A run keeps the names and digests of the images that it trains on and of those
that it holds out in WORKDIR/split.json. What continues or evaluates it goes by
that record: images may be renamed or lie elsewhere, some may be gone, changed
or new, and none changes sides.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import stat as stat_lib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import imagecodecs
import ml_collections

from unet_jax.config import fields
from unet_jax.data import examples
from unet_jax.runtime import errors, processes, whole_files

_log = logging.getLogger(__name__)

FILE = 'split.json'
# How files are digested now, and before: in a split.json that does not say it.
KIND, FIRST_KIND = 'blocks', 'sha1'
# Bytes of a block.
_BLOCK = 2**16


def digest(content: bytes | memoryview) -> bytes:
  """Returns 16 bytes that tell contents apart: of a file, or of pixels.

  The SHA-1 of the first block and of the CRC-32 of each further one. Two
  contents are taken for one only if all blocks that differ have the same CRC.
  That takes an eighth of the time of SHA-1.
  """
  view = memoryview(content)
  starts = range(0, len(view), _BLOCK)
  return _of_blocks(view[start : start + _BLOCK] for start in starts)


def _of_blocks(blocks: Iterator[bytes | memoryview]) -> bytes:
  found = hashlib.sha1(next(blocks, b''))
  for block in blocks:
    found.update(imagecodecs.deflate_crc32(block).to_bytes(4, 'little'))
  return found.digest()[:16]


def of_file(path: str | os.PathLike, kind: str = KIND) -> str:
  """Returns a file's digest, 32 digits; '' if it cannot be read.

  It is read in parts.

  Args:
    path: of the file.
    kind: KIND, or the name of one of hashlib's, as older records have them.
  """
  try:
    with open(path, 'rb') as f:
      if kind == KIND:
        return _of_blocks(iter(lambda: f.read(_BLOCK), b'')).hex()
      return hashlib.file_digest(f, kind).hexdigest()[:32]
  except OSError:
    return ''  # What decodes it says why.


class Image(NamedTuple):
  """An image and its mask.

  Attributes:
    name: its place in the data, such as `images/a.png`.
    content: digest of the image.
    mask: of its mask, and of its instances where it has them.
  """

  name: str
  content: str
  mask: str


@runtime_checkable
class OfFiles(Protocol):
  """A source whose examples may change one by one."""

  def images(self, read: bool, kind: str = KIND) -> list[Image] | None:
    """Returns what each example is.

    Args:
      read: read the files that are not known yet; otherwise the result is None
        if there are any.
      kind: of the digests.
    """


def images_of(
  source: examples.Source, record: 'Record | None' = None
) -> list[Image]:
  """Returns what each example of a source is, by the digests of a record.

  Those of a source without files are what their numbers say: a version of a
  TFDS set does not change.
  """
  if isinstance(source, OfFiles):
    found = source.images(True, record.kind if record else KIND)
    assert found is not None
    return found
  names = [f'{source.split}[{i}]' for i in range(len(source))]
  return [Image(name, name, '') for name in names]


class Digests:
  """Digests of files, each of which is read once.

  They are kept under `digests/` of the cache by path, size and times of change.
  """

  def __init__(self, config: ml_collections.ConfigDict, root: pathlib.Path):
    key = hashlib.sha1(os.fsencode(root.resolve())).hexdigest()[:20]
    self._index = pathlib.Path(
      fields.cache_dir(config), 'digests', f'{key}.json'
    )
    self._workers = config.data.num_workers or len(os.sched_getaffinity(0))
    # [path, size, times] of each file that was asked for, and the digests by
    # kind and path with the size and times of then.
    self._stamps: dict[str, list] = {}
    self._kept: dict[str, list] = {}
    self._is_saved = True
    self._resolved = functools.cache(os.path.realpath)
    self._load()

  def _load(self) -> None:
    try:
      kept = json.loads(self._index.read_text())
    except (OSError, ValueError):
      return  # None yet, or damaged: the files are read again.
    self._kept = {**kept, **self._kept}

  def stamp(self, path: str) -> list:
    """Returns what changes with a file without reading it."""
    if path not in self._stamps:
      try:
        folder, name = os.path.split(path)
        stat, name = os.lstat(path), f'{self._resolved(folder)}/{name}'
        if stat_lib.S_ISLNK(stat.st_mode):
          stat, name = os.stat(path), os.path.realpath(path)
        # Of two files that trade names, nothing else may differ: unpacked
        # archives have one time for many files of one size.
        found = [name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
      except OSError:  # Such as a link to nowhere; reading it reports that.
        found = [path, None, None]
      self._stamps[path] = found
    return self._stamps[path]

  def note(self, path: str, content: bytes) -> None:
    """Keeps the digest of a file that was read, and stamped before."""
    if self._known(path, KIND) is None:
      self._keep(path, KIND, digest(content).hex())

  def _keep(self, path: str, kind: str, found: str) -> None:
    name, *when = self.stamp(path)
    self._kept[f'{kind}:{name}'] = [*when, found]
    self._is_saved = False

  def _known(self, path: str, kind: str) -> str | None:
    name, *when = self.stamp(path)
    kept = self._kept.get(f'{kind}:{name}')
    return kept[-1] if kept is not None and kept[:-1] == when else None

  def of(
    self, paths: Sequence[str], read: bool, kind: str
  ) -> dict[str, str] | None:
    """Returns the digests of files; None if some had to be read and may not."""
    known = functools.partial(self._known, kind=kind)
    missing = [path for path in paths if known(path) is None]
    if missing:
      self._load()  # Another run may have read them.
      missing = [path for path in missing if known(path) is None]
    if missing and not read:
      return None
    if missing:
      _log.info('reading %d files once, to know them again', len(missing))
      with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
        read_one = functools.partial(of_file, kind=kind)
        for path, found in zip(missing, pool.map(read_one, missing)):
          if found:
            self._keep(path, kind, found)
    self._save()
    # Whoever needs a file that cannot be read reports that.
    unread = lambda path: f'unread {os.path.basename(path)}'
    return {path: known(path) or unread(path) for path in paths}

  def _save(self) -> None:
    if self._is_saved:
      return
    self._is_saved = True
    try:
      self._index.parent.mkdir(parents=True, exist_ok=True)
      with whole_files.replacing(self._index) as f:
        f.write(json.dumps(dict(self._kept)))
    except OSError:
      pass  # They are read again next time.


def _stem(name: str) -> str:
  """A name without its ending: images may be stored anew in another format."""
  return os.path.splitext(name)[0]


@dataclasses.dataclass(frozen=True)
class Placed:
  """Images of today in a record.

  Attributes:
    parts: the part of each image; None of a new one.
    new, changed, remasked: names of images that the record lacks; that have
      another content under their name; and whose mask is another.
    gone: (part, name) of the record's images that are not there.
  """

  parts: list[str | None]
  new: list[str]
  changed: list[str]
  remasked: list[str]
  gone: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Record:
  """The images of a run by the part that they belong to.

  Attributes:
    workdir: of the run.
    held_out: the part that is evaluated; all others are trained on.
    parts: {part: images}, with those that were there earlier at its end.
    continues: whether the run goes on; otherwise it is evaluated.
    kind: of its digests.
    said: lines that were logged; each is logged once.
  """

  workdir: str
  held_out: str
  parts: Mapping[str, Sequence[Image]]
  continues: bool = False
  kind: str = KIND
  said: set[str] = dataclasses.field(default_factory=set)

  def say(self, text: str) -> None:
    """Logs a line, once."""
    if text not in self.said and processes.is_first():
      _log.warning('warning: %s', text)
    self.said.add(text)

  def place(
    self, images: Sequence[Image], parts: Sequence[str] = ()
  ) -> Placed | None:
    """Finds images in the record: by content, then by name.

    Args:
      images: of today.
      parts: those of which images may be gone.

    Returns:
      None if none of them is in the record.
    """
    by_pair: dict[tuple[str, ...], str] = {}
    by_content: dict[str, str] = {}
    by_name: dict[str, str] = {}
    masks: dict[str, set[str]] = collections.defaultdict(set)
    # Of a content in two parts, that which is trained on counts: it comes last.
    ordered = sorted(self.parts, key=lambda part: part != self.held_out)
    entries = [(part, image) for part in ordered for image in self.parts[part]]
    there = {image.content for image in images}
    for part, image in entries:
      by_pair[image[:2]] = by_content[image.content] = part
      masks[image.content].add(image.mask)
      if image.content not in there:
        by_name[_stem(image.name)] = part
    found: list[str | None] = []
    new: list[str] = []
    changed: list[str] = []
    remasked: list[str] = []
    # Names whose earlier contents are not gone, but were replaced.
    replaced = set()
    for image in images:
      stem = _stem(image.name)
      place = by_pair.get(image[:2]) or by_content.get(image.content)
      if place is None:
        place = by_name.get(stem)
        (changed if place else new).append(image.name)
      elif image.mask not in masks[image.content]:
        remasked.append(image.name)
      if image[:2] in by_pair or image.content not in by_content:
        replaced.add(stem)
      found.append(place)
    if not any(found):
      return None
    gone = [
      (part, image.name)
      for part, image in entries
      if part in parts and image.content not in there
      if _stem(image.name) not in replaced
    ]
    return Placed(found, new, changed, remasked, gone)

  def trained(self, images: Iterable[Image]) -> list[str]:
    """Returns the names of those images that the run was trained on."""
    contents = {
      image.content
      for part, known in self.parts.items()
      if part != self.held_out
      for image in known
    }
    return [image.name for image in images if image.content in contents]

  def say_changes(self, placed: Placed, rule: str) -> None:
    """Says what is new, gone or changed, and what becomes of new images."""
    gone = [name for _, name in placed.gone]
    listed = [
      f'{len(names)} {one if len(names) == 1 else many} ({errors.some(names)})'
      for names, one, many in (
        (placed.new, 'image is new', 'images are new'),
        (gone, 'image is gone', 'images are gone'),
        (placed.changed, 'image has changed', 'images have changed'),
        (placed.remasked, 'mask has changed', 'masks have changed'),
      )
      if names
    ]
    if not listed:
      return
    text = f'since {self.workdir} was trained, ' + ', '.join(listed)
    if placed.new:
      text += f'. {rule}'
    lost = sum(part == self.held_out for part, _ in placed.gone)
    if lost:
      text += f'. {lost} of those that are gone were held out'
    self.say(text)


def continued(
  workdir: str,
  config: ml_collections.ConfigDict,
  saved: ml_collections.ConfigDict,
) -> Record | None:
  """Returns the record of a run that goes on, or says that it has none.

  With a record, the images tell whether the data are the same, not the saved
  config's `data.dir`: that becomes the one of today.
  """
  record = read(workdir, continues=True)
  if record is None:
    say_missing(config, workdir)
  else:
    saved.data.dir = config.data.dir
  return record


def say_missing(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Says that a run of an older version has no record."""
  if config.data.source == 'folder' and processes.is_first():
    _log.warning(
      'warning: %s has no %s, as runs of older versions: what is held out is '
      'chosen anew, right only if the files are those of then',
      workdir,
      FILE,
    )


def read(workdir: str, continues: bool = False) -> Record | None:
  """Returns the record of a run; None where older versions made none."""
  path = pathlib.Path(workdir, FILE)
  try:
    found = json.loads(path.read_text())
    parts = {
      part: [Image(*image) for image in images]
      for part, images in found['parts'].items()
    }
    kind = found.get('digest', FIRST_KIND)
    return Record(workdir, found['held_out'], parts, continues, kind)
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise errors.UserError(
      f'{path} cannot be read ({e}); restore it, or remove it to go on without '
      'a record of the images'
    ) from e


def write(
  workdir: str,
  held_out: str,
  parts: Mapping[str, Sequence[Image]],
  earlier: Record | None,
) -> None:
  """Writes the record of a run, in process 0.

  Args:
    workdir: of the run.
    held_out: the part that is evaluated.
    parts: {part: images} of today, see `images_of`.
    earlier: the record that it goes on from. Its images stay where they were,
      also those that are gone: they may come back.
  """
  if not processes.is_first():
    return
  known = {image[:2] for images in parts.values() for image in images}
  merged: dict[str, list[Any]] = {k: list(v) for k, v in parts.items()}
  for part, images in earlier.parts.items() if earlier else ():
    old = [image for image in images if image[:2] not in known]
    merged[part] = merged.get(part, []) + old
  kind = earlier.kind if earlier else KIND
  content = {'digest': kind, 'held_out': held_out, 'parts': merged}
  with whole_files.replacing(pathlib.Path(workdir, FILE)) as f:
    f.write(json.dumps(content))
