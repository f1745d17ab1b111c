"""Decode, prepare and read, against a plain PyTorch DataLoader.

Both read the same files, on one core and on all. On one core ours has one
thread and the DataLoader no worker; on n, ours n threads and it n workers.
"""

import contextlib
import os
import pathlib
import tempfile
from concurrent import futures

import numpy as np

from experiments.speed import rounds, step
from unet_jax.data import pipeline, prepare, prepared, sources
from unet_jax.runtime import errors
from unet_jax.runtime import mesh as mesh_lib


def _check(config) -> None:
  """Raises UserError where the DataLoader here does not do the same."""
  data, reason = config.data, None
  if data.source == 'shapes':
    reason = 'data.source=shapes, which has no files'
  elif data.resize != 'stretch':
    reason = f'data.resize={data.resize}'
  elif any(isinstance(value, tuple) for value, _ in data.mask_values):
    reason = 'colours in data.mask_values'
  elif config.loss.weight_map != 'none':
    reason = f'loss.weight_map={config.loss.weight_map}'
  if reason:
    raise errors.UserError(
      f'--what=loader has no peer for {reason}; take files of your own with '
      '--config=configs/folder.py, or --config=configs/oxford_pets.py:small'
    )


def _write_files(source, root: pathlib.Path) -> list[tuple[str, str]]:
  """Writes examples as a folder that configs/folder.py reads.

  Returns:
    [(image path, mask path), ...].
  """
  for split in ('train', 'test'):  # Without another, some are held out.
    for folder in ('images', 'masks'):
      (root / split / folder).mkdir(parents=True)
  pairs = []
  for index in range(len(source)):
    example = source.read(index)
    # Decoders look at the bytes, not at the extension.
    image = root / f'train/images/{index}.jpg'
    mask = root / f'train/masks/{index}.png'
    image.write_bytes(example['image'])
    mask.write_bytes(example['mask'])
    pairs.append((str(image), str(mask)))
  return pairs


@contextlib.contextmanager
def _on_cores(cores):
  """Keeps every thread that there is, and those to come, on these cores."""
  before = os.sched_getaffinity(0)
  try:
    _set_cores(cores)
    yield
  finally:
    _set_cores(before)


def _set_cores(cores) -> None:
  for thread in os.listdir('/proc/self/task'):
    with contextlib.suppress(ProcessLookupError):  # It has just ended.
      os.sched_setaffinity(int(thread), cores)


class _Peer:
  """DataLoaders over the files, and over arrays prepared from them."""

  def __init__(self, config, pairs):
    from experiments.speed import torch_loader

    self._torch, self._pairs = torch_loader, pairs
    self._batch_size = config.data.batch_size
    self._size = tuple(config.data.image_size)
    self._mode = 'L' if config.data.num_channels == 1 else 'RGB'
    self._classes = np.arange(256, dtype=np.uint8)
    for value, c in config.data.mask_values:
      self._classes[value] = c

  def one_thread(self):
    return self._torch.one_thread()

  def _make(self, dataset, workers: int, **options):
    return self._torch.make_loader(
      dataset, self._batch_size, workers, **options
    )

  def _prepared(self):
    return self._torch.Files(self._pairs, self._mode, self._size, self._classes)

  def _epoch(self, loader):
    """A round of a loader whose workers have started."""

    def epoch():
      for _ in loader:
        pass

    epoch()
    return lambda: rounds.seconds(epoch)

  def decode(self, workers: int):
    dataset = self._torch.Files(self._pairs, self._mode)
    as_list = self._torch.as_list
    return self._epoch(self._make(dataset, workers, collate_fn=as_list))

  def prepare(self, workers: int):
    return self._epoch(self._make(self._prepared(), workers))

  def read(self, workers: int, warmup: int, count: int, arrays=None):
    """A round of shuffled batches; `arrays` are files of prepared arrays."""
    dataset = self._torch.Arrays(arrays) if arrays else self._prepared()
    loader = self._make(dataset, workers, shuffle=True, drop_last=True)
    return lambda: rounds.per_batch(self._torch.endless(loader), warmup, count)


def _measure_decode(config, source, peer, repeats: int, workers: int):
  local = sources.make_source(config, 'train')

  def decode(examples):
    with futures.ThreadPoolExecutor(prepared.num_workers(config)) as pool:
      # Nothing is kept, as in prepare.py.
      for _ in pool.map(lambda i: examples[i] is None, range(len(examples))):
        pass

  contenders = {'unet_jax': lambda: rounds.seconds(decode, local)}
  if type(source) is not type(local):
    name = f'unet_jax, {type(source).__name__}'
    contenders[name] = lambda: rounds.seconds(decode, source)
  if peer:
    contenders['PyTorch'] = peer.decode(workers)
  return rounds.report(
    f'decode {len(local)} images, s',
    rounds.in_turn(contenders, repeats),
    len(local),
  )


def _measure_prepare(config, peer, repeats: int, workers: int):
  config = config.copy_and_resolve_references()

  def ours(cache):
    config.data.cache = cache
    with tempfile.TemporaryDirectory() as folder:
      config.data.cache_dir = folder
      return rounds.seconds(prepare.prepare, config, 'train')

  contenders = {
    f'unet_jax, cache {cache}': lambda cache=cache: ours(cache)
    for cache in ('disk', 'memory')
  }
  if peer:
    contenders['PyTorch, in each epoch'] = peer.prepare(workers)
  count = len(sources.make_source(config, 'train'))
  return rounds.report(
    f'prepare {count} images, s', rounds.in_turn(contenders, repeats), count
  )


def _measure_read(config, peer, repeats: int, steps: int, workers: int):
  config = config.copy_and_resolve_references()
  mesh = mesh_lib.make_mesh(config)
  warmup, quick = 2 * prepared.num_workers(config) + 4, 10 * steps
  with tempfile.TemporaryDirectory() as folder:
    config.data.cache_dir = folder
    datasets = {}
    for cache in ('disk', 'memory', 'none'):
      config.data.cache = cache
      datasets[cache] = prepare.prepare(config, 'train')

    def ours(cache):
      batches = pipeline.train_batches(datasets[cache], config, mesh)
      return rounds.per_batch(
        batches, warmup, steps if cache == 'none' else quick
      )

    contenders = {
      f'unet_jax, cache {cache}': lambda cache=cache: ours(cache)
      for cache in datasets
    }
    if peer:
      # The whole set at random access, as a user would save it.
      arrays = [os.path.join(folder, f'{k}.npy') for k in ('image', 'mask')]
      examples = [datasets['memory'][i] for i in range(len(datasets['memory']))]
      for path, key in zip(arrays, ('image', 'mask')):
        np.save(path, np.stack([example[key] for example in examples]))
      contenders['PyTorch, files'] = peer.read(workers, warmup, steps)
      for n in sorted({0, workers}):
        name = f'PyTorch, arrays, {n} workers'
        contenders[name] = peer.read(n, warmup, quick, arrays)
    return rounds.report(
      f'read a batch of {config.data.batch_size} images, s',
      rounds.in_turn(contenders, repeats),
      config.data.batch_size,
    )


def measure(config, repeats: int, steps: int) -> dict:
  """Times decode, prepare and read, on one core and on all.

  Raises:
    UserError: the DataLoader does not do what the config asks for.
  """
  _check(config)
  config = config.copy_and_resolve_references()
  source = sources.make_source(config, config.data.train_split)
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    pairs = _write_files(source, pathlib.Path(folder))
    config.data.update(source='folder', dir=folder, num_workers=0)
    peer = None
    if step.HAS_TORCH:
      peer = _Peer(config, pairs)
    else:
      print('PyTorch is skipped: it is not installed')
    cores = sorted(os.sched_getaffinity(0))
    for n in sorted({1, len(cores)}):
      workers = n if n > 1 else 0
      print(f'\non {n} core(s); workers of the DataLoader: {workers}')
      one_thread = peer.one_thread() if peer else contextlib.nullcontext()
      with _on_cores(cores[:n]), one_thread:
        results[f'on {n} core(s)'] = {
          'decode': _measure_decode(config, source, peer, repeats, workers),
          'prepare': _measure_prepare(config, peer, repeats, workers),
          'read': _measure_read(config, peer, repeats, steps, workers),
        }
  return results
