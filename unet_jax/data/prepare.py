"""Builds, caches and loads prepared datasets.

A dataset holds `image` [H, W, C] and `mask` [H, W], both uint8, and the
`weight_map` [H, W], float16, where the config asks for one, at random access:
all of one size, or with data.resize `patch` each of its own. Volumes have an
axis D before H and are not resized. By data.cache, arrays are in memory, on
disk (memory-mapped, keyed by all that they depend on), or made at each access.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import cv2
import imagecodecs
import ml_collections
import numpy as np
import PIL
import tifffile

from unet_jax.config import fields
from unet_jax.data import (
  array_files,
  examples,
  folder_source,
  identity,
  masks,
  prepared,
  sources,
  weight_map,
)
from unet_jax.data import noticed as noticed_lib
from unet_jax.runtime import errors, locks, progress

_log = logging.getLogger(__name__)

# Raise it when the same sources and config would give other arrays.
_VERSION = 7
# Fields that prepared arrays depend on, besides the source's fingerprint.
_FIELDS = (
  'image_size',
  'num_channels',
  'num_classes',
  'mask_values',
  'intensity',
  'intensity_range',
  'nodata',
  'pages',
  'bands',
  'alpha',
  'orientation',
  'resize',
  'on_error',
)

# Examples that a thread takes at once: handing one over takes as long as
# decoding a small image.
_CHUNK = 8
# Threads are ours, a level above; OpenCV's own would fight them.
cv2.setNumThreads(1)


def prepare(config: ml_collections.ConfigDict, split: str) -> prepared.Dataset:
  """Returns the dataset of a split, building it where it is not cached.

  Args:
    split: named as in data.train_split; the result's `split` is its name in
      the source, where this is `auto`.

  Raises:
    UserError: any example is bad (see `prepare_example` and the sources), or
      the cache cannot be written.
  """
  return prepare_source(sources.make_source(config, split), config)


def prepare_source(
  source: examples.Source, config: ml_collections.ConfigDict
) -> prepared.Dataset:
  """As `prepare`, for a source."""
  make_weights = weight_map.make_weight_map(config)
  split, rows = source.split, None
  if config.data.cache == 'none':
    return prepared.OnTheFly(source, config.data, make_weights)
  if config.data.cache == 'memory':
    arrays = _memory_arrays(len(source), config)
    skipped, about, notes = _fill(source, config, arrays, make_weights)
    kept = _kept(len(source), skipped)
    dataset = prepared.Prepared(split, arrays, kept, *about)
    return _checked(dataset, skipped, notes)
  if isinstance(source, sources.Subset):
    # All folds share the files.
    rows, source = source.rows, source.whole
  folder = pathlib.Path(fields.cache_dir(config), 'prepared')
  key = lambda: folder / cache_key(source, config, make_weights)
  path = key()
  load = lambda: _load(path, source, split, rows)
  try:
    found = _load(path, source, split, rows, say=False)
    if found is None:  # What is there can be read by who cannot write.
      folder.mkdir(parents=True, exist_ok=True)
      with locks.lock(path.with_suffix('.lock'), f'preparing {source.split}'):
        path = key()  # Perhaps of content that was not known before.
        found = load()
        if found is None:
          array_files.set_aside(path)
          _build(source, config, key, make_weights)
          path = key()
          found = load()
  except OSError as e:
    raise errors.UserError(
      f'{path}: cannot keep the prepared arrays there '
      f'({e.strerror or e}); free space, set --config.data.cache_dir=DIR, or '
      'use --config.data.cache=memory'
    ) from e
  assert found is not None, f'{path}: damaged while it was written'
  return _checked(*found)


def _memory_arrays(n: int, config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns arrays for n examples, to be filled."""
  specs = prepared.array_specs(config)
  if config.data.resize == 'patch':
    return {name: [None] * n for name in specs}
  return {
    name: np.empty((n, *shape), dtype) for name, (shape, dtype) in specs.items()
  }


def _disk_arrays(
  n: int, config: ml_collections.ConfigDict, folder: pathlib.Path
) -> dict[str, Any]:
  """As `_memory_arrays`, in the files of a cache."""
  arrays: dict[str, Any] = {}
  for name, (shape, dtype) in prepared.array_specs(config).items():
    path = folder / f'{name}s'
    if config.data.resize == 'patch':
      path.mkdir()
      arrays[name] = array_files.Files(path)
      continue
    file = path.with_suffix('.npy')
    arrays[name] = np.lib.format.open_memmap(file, 'w+', dtype, (n, *shape))
    # Otherwise a full disk is a bus error in the middle of writing.
    with open(file, 'r+b') as f:
      os.posix_fallocate(f.fileno(), 0, file.stat().st_size)
  return arrays


def _kept(n: int, skipped: list[dict]) -> np.ndarray:
  return np.setdiff1d(np.arange(n), [s['index'] for s in skipped])


def cache_key(
  source: examples.Source,
  config: ml_collections.ConfigDict,
  make_weights: weight_map.WeightMap | None,
) -> str:
  """A name that changes with whatever the arrays depend on.

  A copy of files has the same; it changes once their content is known.
  """
  what = source.fingerprint
  if isinstance(source, identity.OfFiles):
    images = source.images(read=False)
    what = what if images is None else [image[1:] for image in images]
  depends_on = {
    'version': _VERSION,
    'libraries': [m.__version__ for m in (PIL, cv2, tifffile, imagecodecs)],
    'source': what,
    **{field: config.data[field] for field in _FIELDS},
  }
  if config.data.resize == 'patch':
    del depends_on['image_size']  # Of the windows; images keep their size.
  if config.data.nodata:
    depends_on['mean'] = config.data.mean  # Fills pixels without data.
  if make_weights is not None:
    depends_on['weight_map'] = [
      weight_map.VERSION,
      dataclasses.astuple(make_weights),
      config.data.instance_key,
    ]
  text = json.dumps(depends_on, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:20]


def _build(
  source: examples.Source,
  config: ml_collections.ConfigDict,
  key: Callable[[], pathlib.Path],
  make_weights: weight_map.WeightMap | None,
) -> None:
  """Builds the arrays beside their place and renames them.

  The lock is held. The place, `key()`, may be another once all is read.
  """
  path = key()
  for leftover in path.parent.glob('*.tmp-*'):  # Of runs that were killed.
    owner = path.with_name(leftover.name.partition('.tmp-')[0] + '.lock')
    if owner == path.with_suffix('.lock') or locks.is_free(owner):
      shutil.rmtree(leftover, ignore_errors=True)
  temporary = pathlib.Path(
    tempfile.mkdtemp(prefix=path.name + '.tmp-', dir=path.parent)
  )
  try:
    arrays = _disk_arrays(len(source), config, temporary)
    skipped, (stats, pixels, palette), notes = _fill(
      source, config, arrays, make_weights
    )
    for array in arrays.values():
      if isinstance(array, np.memmap):
        array.flush()
    found: dict[str, Any] = stats.arrays()
    if pixels is not None:
      found.update(points=pixels.points, starts=pixels.starts)
    np.savez(temporary / 'stats.npz', **found)
    meta = {
      'length': len(source),
      'skipped': skipped,
      'arrays': list(arrays),
      'names': stats.names,
      'notes': notes,
      'palette': list(palette.items()),
      'bytes': array_files.num_bytes(temporary),
    }
    (temporary / 'meta.json').write_text(json.dumps(meta, indent=2))
    if not (path := key()).exists():  # Another run may have had a copy.
      temporary.rename(path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _load(
  path: pathlib.Path,
  source: examples.Source,
  split: str,
  rows: np.ndarray | None,
  say: bool = True,
) -> tuple[prepared.Prepared, list[dict], list[str]] | None:
  """Opens the files of `_build`: all of them, or the examples of some rows.

  Damaged ones are warned of with `say`: who holds the lock has looked twice.

  Returns:
    What `_checked` takes; None where they are not there, or damaged.
  """
  if not path.exists():
    return None
  try:
    return _open(path, source, split, rows)
  except array_files.DAMAGE as e:  # What cannot be opened for now is none.
    if say:
      text = ' '.join(str(e).split())
      _log.warning('%s is damaged (%s): preparing again', path, text[:100])
    return None


def _open(
  path: pathlib.Path,
  source: examples.Source,
  split: str,
  rows: np.ndarray | None,
) -> tuple[prepared.Prepared, list[dict], list[str]]:
  """As `_load`; raises where they are damaged."""
  meta = json.loads((path / 'meta.json').read_text())
  if meta.get('bytes') not in (None, array_files.num_bytes(path)):
    raise ValueError('files are gone or cut off')
  arrays: dict[str, Any] = {}
  for name in meta['arrays']:
    files = path / f'{name}s'
    arrays[name] = (
      array_files.Files(files)
      if files.is_dir()
      else np.load(files.with_suffix('.npy'), mmap_mode='r')
    )
  with np.load(path / 'stats.npz') as file:
    found = dict(file)
  pixels = None
  if 'points' in found:
    num_classes = found['class_pixels'].shape[1] - 1
    points, starts = found.pop('points'), found.pop('starts')
    pixels = prepared.ClassPixels(points, starts, num_classes)
  skipped = meta['skipped']
  kept = _kept(meta['length'], skipped)
  names = tuple(meta['names'])
  if isinstance(source, folder_source.FolderSource):
    # The arrays may be those of a copy elsewhere.
    names = tuple(source.name(i) for i in kept)
  stats = prepared.Stats(names, **found)
  palette = {v: (tuple(color), name) for v, (color, name) in meta['palette']}
  dataset = prepared.Prepared(split, arrays, kept, stats, pixels, palette)
  if rows is not None:
    dataset = dataset.select(rows)
    skipped = [s for s in skipped if s['index'] in rows]
  return dataset, skipped, meta['notes']


def _checked(
  dataset: prepared.Prepared, skipped: list[dict], notes: list[str]
) -> prepared.Prepared:
  """Logs the notes and the skipped examples, and refuses an empty rest."""
  for note in notes:
    _log.warning('%s', note)
  for entry in skipped:
    _log.warning('skipped: %s', entry['reason'])
  if not len(dataset):
    raise errors.UserError(
      f'none of the {len(skipped)} pairs could be decoded; the first: '
      f'{skipped[0]["reason"]}'
    )
  return dataset


def _fill(
  source: examples.Source,
  config: ml_collections.ConfigDict,
  arrays: dict[str, Any],
  make_weights: weight_map.WeightMap | None,
) -> tuple[list[dict], tuple, list[str]]:
  """Prepares every example into its row.

  Returns:
    [{'index', 'reason'}] of the files that could not be decoded; the
    statistics, sampled pixels and palette of the rest, as for `Prepared`; and
    lines to warn of.

  Raises:
    UserError: see `prepare`.
  """
  skipped: list[dict] = []
  palettes = masks.Palettes(config.data)
  noticed = noticed_lib.Noticed(len(source), config.data)
  found: dict[int, dict] = {}
  # Pixels are sampled by these, so that all kinds of cache hold the same.
  rows = np.arange(len(source))
  if isinstance(source, sources.Subset):
    rows = source.rows

  def work(index: int) -> None:
    try:
      example = source[index]
      row = prepared.prepare_example(example, config.data, make_weights)
    except errors.DecodeError as e:
      if config.data.on_error == 'stop':
        raise
      skipped.append({'index': index, 'reason': str(e)})
      return
    for key, array in arrays.items():
      array[index] = row[key]
    noticed.see(index, example)
    palettes.add(example)
    found[index] = prepared.describe(row, example, int(rows[index]), config)

  in_threads(work, len(source), config, f'preparing {source.split}')
  about = prepared.collect([found[index] for index in sorted(found)], config)
  skipped.sort(key=lambda s: s['index'])
  notes = [f'{source.split}: {line}' for line in noticed.lines()]
  return skipped, (*about, palettes.found), notes


def in_threads(
  work: Callable[[int], None],
  count: int,
  config: ml_collections.ConfigDict,
  description: str,
) -> None:
  """Calls work(0) to work(count - 1); raises the first error."""
  stop = threading.Event()

  def work_through(indices: range) -> int:
    for index in indices:
      if not stop.is_set():
        work(index)
    return len(indices)

  _log.info('%s: %d examples', description, count)
  indices, workers = range(count), prepared.num_workers(config)
  # Of a few large images, each thread gets some.
  size = min(_CHUNK, max(count // workers, 1))
  chunks = [indices[i : i + size] for i in range(0, count, size)]
  with (
    progress.Progress(description, count) as bar,
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
  ):
    try:
      for done in pool.map(work_through, chunks):
        bar.update(done)
    except BaseException:
      stop.set()  # Queued chunks return at once.
      raise
