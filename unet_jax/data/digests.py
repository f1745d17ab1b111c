"""Digests of contents: of files, which are read once, and of images."""

import concurrent.futures
import functools
import hashlib
import json
import logging
import os
import pathlib
import stat as stat_lib
from collections.abc import Iterator, Sequence
from typing import Any

import imagecodecs
import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.runtime import whole_files

_log = logging.getLogger(__name__)

# How files are digested now, and before: in a split.json that does not say it.
KIND, FIRST_KIND = 'blocks', 'sha1'
# Bytes of a block.
_BLOCK = 2**16


def digest(content: bytes | np.ndarray) -> bytes:
  """Returns 16 bytes that tell contents apart: of a file, or of an image.

  The SHA-1 of the first block and of the CRC-32 of each further one. Two
  contents are taken for one only if all blocks that differ have the same CRC.
  That takes an eighth of the time of SHA-1.
  """
  if isinstance(content, np.ndarray):
    view = content.ravel().data
  else:
    view = memoryview(content)
  starts = range(0, len(view), _BLOCK)
  return _of_blocks(view[start : start + _BLOCK] for start in starts)


def _of_blocks(blocks: Iterator[Any]) -> bytes:
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
