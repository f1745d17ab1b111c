"""What the files of an output folder were made of: its index.json.

{
  "networks": {KEY: {"parameters": a digest, "steps": [...], "workdirs": [...],
                     "files": [...], of the checkpoints,
                     "settings": {field: value, where it is not the default}}},
  "images": {NAME: {"source": path, "content": a digest, "network": KEY}}
}

An image is done for a content, parameters and settings; its files exist whole
or not at all. While it is predicted its entry has neither content nor network
but a `run`, which holds the lock of that name: what a killed run leaves is made
again, and of several runs in a folder no two make one image at once.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from unet_jax.data import digests, prepared, stored
from unet_jax.prediction import names, network, outputs
from unet_jax.runtime import errors, locks, processes, progress, whole_files

_log = logging.getLogger(__name__)

# Seconds after which finished images are written to the index.
_INTERVAL = 10.0


def _kind(content: str) -> str:
  """How an entry's content is digested; older ones have the whole SHA-256."""
  return 'sha256' if len(content) == 64 else digests.KIND


def _has_content(path: pathlib.Path, content: str) -> bool:
  return digests.of_file(path, _kind(content)) == content[:32]


@dataclasses.dataclass(frozen=True)
class Item:
  """An image to predict.

  Attributes:
    source: its file.
    name: of its files, without suffix.
    num_pages: images in the file.
    paths: its files.
    is_done: whether these are made already, of this content and network.
    stale: files that it has, of another content or network, and that are not
      asked for now.
  """

  source: pathlib.Path
  name: str
  num_pages: int
  paths: outputs.Paths
  is_done: bool
  stale: tuple[pathlib.Path, ...]


class Index:
  """The index of a folder, as one run changes it, which closes it after."""

  def __init__(self, folder: pathlib.Path, predicts: network.Network):
    self._folder, self._network = folder, predicts
    self._path, self._lock = folder / 'index.json', threading.Lock()
    text = json.dumps([predicts.parameters, predicts.settings], sort_keys=True)
    self._key = hashlib.sha256(text.encode()).hexdigest()[:16]
    self._networks: dict[str, dict[str, Any]] = {}
    self._images: dict[str, dict[str, str]] = {}
    self._changed: dict[str, dict[str, str]] = {}
    self._written = time.monotonic()
    self._run, self._claim = uuid.uuid4().hex, contextlib.ExitStack()

  def plan(
    self,
    sources: Sequence[pathlib.Path],
    config: ml_collections.ConfigDict,
  ) -> list[Item]:
    """Plans this process's part of the images.

    Names them, says which are done, and notes the others as begun.

    Raises:
      UserError: the folder has files of these names that no index knows,
        another run is making one of the images, or there is no name for one.
    """
    with self._held():
      self._read()
      every = self._names(sources)
      chosen = {source: every[source] for source in processes.share(sources)}
      self._refuse_running(chosen.values())
      found = self._files(list(chosen.values()))
      self._refuse_unknown([n for n in found if found[n]])
      changes = self._all_changes(chosen, prepared.num_workers(config))
      items = []
      for source, name in chosen.items():
        count = _num_pages(source, config.data)
        paths = outputs.make_paths(source, self._folder, name, config, count)
        asked, there, why = set(paths.files(count)), found[name], changes[name]
        stale = tuple(sorted(there - asked)) if why else ()
        is_done = not why and asked <= there
        item = Item(source, name, count, paths, is_done, stale)
        items.append(item)
        content = None if why else self._images[name]['content']
        self._note(item, content, is_done)
      if not all(item.is_done for item in items):
        self._claim.enter_context(self._lock_of(self._run, 'predicting'))
      again = {n: changes[n] for n in found if found[n] and changes[n]}
      _say_again(again, sum(len(item.stale) for item in items))
      self._write()
    return items

  def _files(self, names: list[str]) -> dict[str, set[pathlib.Path]]:
    """Returns the files that the folder has of some names, in their order."""
    by_stem = outputs.found(self._folder)
    # `a.page_0001` may be a page of `a`, or an image of that name.
    pages = by_stem.keys() - {*names, *self._images}
    found = {name: by_stem.get(name, set()) for name in names}
    for stem in pages:
      name = outputs.without_page(stem)
      if name in found:
        found[name] = found[name] | by_stem[stem]
    return found

  def _names(self, sources: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Returns the name of each image's files; says which get folders.

    An image that was moved keeps its name: where no file is at the path of
    before, and the content is the same.
    """
    known = {entry['source']: name for name, entry in self._images.items()}
    gone, kinds = {}, set()
    for place, name in known.items():
      content = self._images[name].get('content')
      if content and not os.path.exists(place):
        gone[pathlib.Path(place).stem, content[:32]] = place
        kinds.add(_kind(content))
    stems = {stem for stem, _ in gone}
    for source in sources:
      place = os.path.abspath(source)
      if place in known or source.stem not in stems:
        continue
      for kind in kinds:
        found = (source.stem, digests.of_file(source, kind))
        if found in gone:
          known[place] = known.pop(gone.pop(found))
          break
    chosen = names.choose(sources, known)
    new = [
      f'{source} is {name}'
      for source, name in chosen.items()
      if name != source.stem and os.path.abspath(source) not in known
    ]
    if new:
      _log.info(
        '%d images have the stems of others, so their files are named by '
        'folder or suffix too: %s',
        len(new),
        errors.some(new),
      )
    return chosen

  def _refuse_unknown(self, there: Iterable[str]) -> None:
    unknown = [name for name in there if name not in self._images]
    if unknown:
      raise errors.UserError(
        f'{self._folder} has files of {len(unknown)} images '
        f'({errors.some(unknown)}), and no {self._path.name} says of which '
        'content and checkpoint they are; remove them, or set '
        '--config.predict.output to another folder'
      )

  @contextlib.contextmanager
  def _lock_of(self, run: str, what: str) -> Iterator[None]:
    """Holds a run's lock, whose file is removed then."""
    path = self._folder / f'.{run}.lock'
    with locks.lock(path, what, wait=False):
      try:
        yield
      finally:
        path.unlink(missing_ok=True)

  def _refuse_running(self, chosen: Iterable[str]) -> None:
    """Raises UserError where another run that is alive makes an image."""
    runs: dict[str, list[str]] = collections.defaultdict(list)
    for name in chosen:
      if run := self._images.get(name, {}).get('run'):
        runs[run].append(name)
    for run, names_ in runs.items():
      what = f'predicting {errors.some(names_)} into {self._folder}'
      with self._lock_of(run, what):
        pass

  def _all_changes(
    self, chosen: Mapping[pathlib.Path, str], workers: int
  ) -> dict[str, str]:
    """Returns what changed since each image was predicted; '' is nothing."""
    found = {name: self._changes(name) for name in chosen.values()}
    same = {
      source: self._images[name]['content']
      for source, name in chosen.items()
      if not found[name]
    }
    with (
      progress.Progress('comparing with the index', len(same)) as bar,
      concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
      are = pool.map(_has_content, same, same.values())
      for source, is_same in zip(same, are):
        bar.update()
        if not is_same:
          found[chosen[source]] = 'the content changed'
    return found

  def _changes(self, name: str) -> str:
    """As `_all_changes`, of one image, but for its content."""
    entry = self._images.get(name, {})
    if 'content' not in entry:
      return 'their run ended early'
    if entry['network'] == self._key:
      return ''
    before, found = self._networks[entry['network']], []
    if before['parameters'] != self._network.parameters:
      steps = [
        '+'.join(map(str, of['steps'])) for of in (before, self._network.about)
      ]
      found.append(f'the checkpoint changed (step {steps[0]}, now {steps[1]})')
    old, now = before['settings'], self._network.settings
    other = [f for f in {**old, **now} if old.get(f) != now.get(f)]
    return ', '.join([*found, *(f'{field} changed' for field in other)])

  def _note(self, item: Item, content: str | None, is_done: bool) -> None:
    """Changes the entry of an image; without content all files are made."""
    entry = {'source': os.path.abspath(item.source)}
    if content is not None:
      entry |= {'content': content, 'network': self._key}
    if not is_done:
      entry['run'] = self._run
    self._changed[item.name] = entry

  def finish(self, item: Item, content: str) -> None:
    """Notes that all files of an image are written."""
    with self._lock:
      self._note(item, content, True)
      is_due = time.monotonic() > self._written + _INTERVAL
    if is_due:
      self.write()

  def write(self) -> None:
    """Puts what was finished into the file."""
    with self._lock, self._held():
      self._read()
      self._write()

  def close(self) -> None:
    """Leaves the images to other runs."""
    self._claim.close()

  def _held(self) -> contextlib.AbstractContextManager[None]:
    # Other runs may predict into the same folder.
    self._folder.mkdir(parents=True, exist_ok=True)
    return locks.lock(self._folder / '.index.lock', f'writing {self._path}')

  def _read(self) -> None:
    """Reads the file, if there is one; raises UserError if it is no index."""
    try:
      found = json.loads(self._path.read_text())
      self._networks, self._images = found['networks'], found['images']
    except FileNotFoundError:
      pass
    except (ValueError, TypeError, KeyError) as e:
      raise errors.UserError(
        f'{self._path} is no index of predictions ({e}); restore it, or set '
        '--config.predict.output to another folder'
      ) from e

  def _write(self) -> None:
    self._images.update(self._changed)
    self._networks[self._key] = {
      'parameters': self._network.parameters,
      **self._network.about,
      'settings': self._network.settings,
    }
    used = {entry.get('network') for entry in self._images.values()}
    networks = {k: v for k, v in self._networks.items() if k in used}
    found = {'networks': networks, 'images': self._images}
    whole_files.write_json(self._path, found, by_all=True)
    self._changed, self._written = {}, time.monotonic()


def _num_pages(source: pathlib.Path, data: ml_collections.ConfigDict) -> int:
  """Returns how many images a file holds; 1 where that is not to be known."""
  if data.pages == 'one':
    return 1  # Others are refused when they are opened.
  try:
    return stored.count_pages(source)
  except errors.DecodeError:
    return 1  # What opens it says why.


def _say_again(reasons: Mapping[str, str], num_removed: int) -> None:
  """Logs which images are predicted again, {name: why}."""
  if reasons:
    removed = f'; {num_removed} files that are not asked for now are removed'
    _log.info(
      'predicting %d images again (%s): %s%s',
      len(reasons),
      errors.some(list(reasons)),
      '; '.join(dict.fromkeys(reasons.values())),
      removed if num_removed else '',
    )
