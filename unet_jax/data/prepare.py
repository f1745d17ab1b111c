"""Examples of any size to uint8 arrays, made once and kept.

A prepared set holds `image` [H, W, C] and `mask` [H, W], both uint8, and the
`weight_map` [H, W], float16, where the config asks for one, at random access:
all of one size, or with data.resize `patch` each of its own. `prepare` makes it
in memory, on disk (memory-mapped, keyed by everything that it depends on, so
that it is never stale) or at each access. Of volumes, all have an axis D before
H; they are not resized.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import threading
from typing import Any

import cv2
import numpy as np
import PIL
import tqdm

from unet_jax.config import fields
from unet_jax.data import examples, sources, weight_map
from unet_jax.data import prepared as prepared_lib
from unet_jax.data.prepared import OnTheFly, Prepared
from unet_jax.runtime import errors, locks

_log = logging.getLogger(__name__)

# Raise it when the same sources and config would give other arrays.
_VERSION = 3
# Fields that prepared arrays depend on, besides the source's fingerprint.
_FIELDS = (
  'image_size',
  'num_channels',
  'num_classes',
  'mask_values',
  'intensity',
  'resize',
  'on_error',
)

# Examples that a thread prepares before it takes others.
_CHUNK = 8

# Threads are ours, a level above; OpenCV's own would fight them.
cv2.setNumThreads(1)


def prepare(config, split: str):
  """Returns the prepared set of a split, building it where it is not there.

  Args:
    config: of the run.
    split: named as in data.train_split; the result's `split` is its name in
      the source, where this is `auto`.

  Raises:
    UserError: any example is bad (see `prepare_example` and the sources), or
      the cache cannot be written.
  """
  return prepare_source(sources.make_source(config, split), config)


def prepare_source(source: examples.Source, config) -> OnTheFly | Prepared:
  """As `prepare`, of examples that are at hand."""
  prepared = _prepare(source, config)
  prepared.split = source.split
  return prepared


def _prepare(source: examples.Source, config) -> OnTheFly | Prepared:
  if config.data.cache == 'none':
    return OnTheFly(source, config)
  description = f'preparing {source.split}'
  if config.data.cache == 'memory':
    if config.data.resize == 'patch':
      arrays = {name: [None] * len(source) for name in _array_names(config)}
    else:
      arrays = {
        name: np.empty(shape, dtype)
        for name, (shape, dtype) in _array_specs(len(source), config).items()
      }
    skipped, about = _fill(source, config, arrays, description)
    kept = _kept(len(source), skipped)
    return _checked(Prepared(arrays, kept, *about), skipped)
  rows = None
  if isinstance(source, sources.Subset):
    # What is on disk is shared by all folds.
    source, rows = source.whole, source.rows
    description = f'preparing {source.split}'
  folder = pathlib.Path(fields.cache_dir(config), 'prepared')
  path = folder / cache_key(source, config)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with locks.lock(path.with_suffix('.lock'), description):
      if not path.exists():
        _build(source, config, path, description)
  except OSError as e:
    raise errors.UserError(
      f'{path}: cannot keep the prepared arrays there '
      f'({e.strerror or e}); free space, set --config.data.cache_dir=DIR, or '
      'use --config.data.cache=memory'
    ) from e
  return _load(path, rows)


def _array_names(config) -> tuple[str, ...]:
  has_weights = weight_map.make_weight_map(config) is not None
  return ('image', 'mask', 'weight_map')[: 2 + has_weights]


def _array_specs(n: int, config) -> dict[str, tuple]:
  """Shape and type of each array, where all images have one size."""
  shape = (n, *config.data.image_size)
  specs = {
    'image': ((*shape, config.data.num_channels), np.uint8),
    'mask': (shape, np.uint8),
    'weight_map': (shape, np.float16),
  }
  return {name: specs[name] for name in _array_names(config)}


def _kept(n: int, skipped) -> np.ndarray:
  return np.setdiff1d(np.arange(n), [s['index'] for s in skipped])


def cache_key(source: examples.Source, config) -> str:
  """A name that changes with whatever the arrays depend on."""
  depends_on = {
    'version': _VERSION,
    'libraries': [PIL.__version__, cv2.__version__],
    'source': source.fingerprint,
    **{field: config.data[field] for field in _FIELDS},
  }
  if config.data.resize == 'patch':
    del depends_on['image_size']  # Of the windows, not of what is kept.
  make_weights = weight_map.make_weight_map(config)
  if make_weights is not None:
    depends_on['weight_map'] = [
      weight_map.VERSION,
      dataclasses.astuple(make_weights),
      config.data.instance_key,
    ]
  text = json.dumps(depends_on, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:20]


def _build(source, config, path: pathlib.Path, description: str) -> None:
  """Builds the arrays beside `path` and renames them; the lock is held."""
  for leftover in path.parent.glob(path.name + '.tmp-*'):
    shutil.rmtree(leftover)  # Of a run that was killed.
  temporary = pathlib.Path(
    tempfile.mkdtemp(prefix=path.name + '.tmp-', dir=path.parent)
  )
  try:
    arrays = _create_arrays(temporary, len(source), config)
    skipped, (stats, places) = _fill(source, config, arrays, description)
    for array in arrays.values():
      if isinstance(array, np.memmap):
        array.flush()
    found = {
      f.name: getattr(stats, f.name)
      for f in dataclasses.fields(prepared_lib.Stats)[1:]
    }
    if places is not None:
      found.update(points=places.points, starts=places.starts)
    np.savez(temporary / 'stats.npz', **found)
    meta = {
      'length': len(source),
      'skipped': skipped,
      'arrays': list(arrays),
      'names': stats.names,
    }
    (temporary / 'meta.json').write_text(json.dumps(meta, indent=2))
    temporary.rename(path)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def _create_arrays(folder: pathlib.Path, n: int, config) -> dict[str, Any]:
  """The arrays of a cache, to be filled."""
  arrays = {}
  if config.data.resize == 'patch':
    for name in _array_names(config):
      (folder / f'{name}s').mkdir()
      arrays[name] = prepared_lib.Files(folder / f'{name}s')
    return arrays
  for name, (shape, dtype) in _array_specs(n, config).items():
    file = folder / f'{name}s.npy'
    arrays[name] = np.lib.format.open_memmap(file, 'w+', dtype, shape)
    # Otherwise a full disk is a bus error in the middle of writing.
    with open(file, 'r+b') as f:
      os.posix_fallocate(f.fileno(), 0, file.stat().st_size)
  return arrays


def _load(path: pathlib.Path, rows: np.ndarray | None) -> Prepared:
  """Opens what `_build` wrote: all of it, or the examples of some rows."""
  meta = json.loads((path / 'meta.json').read_text())
  arrays = {}
  for name in meta['arrays']:
    files = path / f'{name}s'
    arrays[name] = (
      prepared_lib.Files(files)
      if files.is_dir()
      else np.load(files.with_suffix('.npy'), mmap_mode='r')
    )
  with np.load(path / 'stats.npz') as found:
    found = dict(found)
  places = None
  if 'points' in found:
    places = prepared_lib.Places(found.pop('points'), found.pop('starts'))
  stats = prepared_lib.Stats(tuple(meta['names']), **found)
  skipped = meta['skipped']
  prepared = Prepared(arrays, _kept(meta['length'], skipped), stats, places)
  if rows is not None:
    prepared = prepared.select(rows)
    skipped = [s for s in skipped if s['index'] in rows]
  return _checked(prepared, skipped)


def _checked(prepared: Prepared, skipped) -> Prepared:
  """Lists what was left out, and refuses an empty rest."""
  for entry in skipped:
    _log.warning('left out: %s', entry['reason'])
  if not len(prepared):
    raise errors.UserError(
      f'none of the {len(skipped)} pairs could be decoded; the first: '
      f'{skipped[0]["reason"]}'
    )
  return prepared


def _fill(source, config, arrays: dict[str, Any], description: str):
  """Prepares every example into its row, in parallel, with a bar.

  Returns:
    [{'index', 'reason'}] of what could not be decoded and is left out, and
    (Stats, Places or None) of the rest.
  """
  skipped, found = [], {}
  # Places are drawn by these, so that they are the same in any kind of cache.
  is_part = isinstance(source, sources.Subset)
  rows = source.rows if is_part else np.arange(len(source))
  make_weights = weight_map.make_weight_map(config)
  stop = threading.Event()

  def work(index):
    try:
      example = source[index]
      name = example['name']
      example = prepared_lib.prepare_example(example, config.data, make_weights)
    except errors.DecodeError as e:
      if config.data.on_error == 'stop':
        raise
      skipped.append({'index': index, 'reason': str(e)})
      return
    for key, array in arrays.items():
      array[index] = example[key]
    found[index] = prepared_lib.describe(
      example, name, int(rows[index]), config
    )

  def work_through(indices):
    for index in indices:
      if not stop.is_set():
        work(index)
    return len(indices)

  # Several at once: to hand one over takes as long as to decode a small one.
  chunks = [
    range(i, min(i + _CHUNK, len(source)))
    for i in range(0, len(source), _CHUNK)
  ]
  _log.info('%s: %d examples', description, len(source))
  bar = tqdm.tqdm(
    total=len(source),
    desc=description,
    unit='image',
    disable=not sys.stderr.isatty(),
  )
  with (
    bar,
    concurrent.futures.ThreadPoolExecutor(
      prepared_lib.num_workers(config)
    ) as pool,
  ):
    try:
      for count in pool.map(work_through, chunks):
        bar.update(count)
    except BaseException:
      stop.set()  # What is queued returns at once.
      raise
  found = [found[index] for index in sorted(found)]
  return sorted(skipped, key=lambda s: s['index']), prepared_lib.collect(
    found, config
  )
