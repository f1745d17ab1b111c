"""Decode, prepare and read, against a plain PyTorch DataLoader.

Both read the same files, on one core and on all. On one core ours has one
thread and the DataLoader no worker; on n, ours n threads and it n workers.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import ml_collections
import numpy as np

from experiments.speed import rounds, step
from unet_jax.data import examples, pipeline, prepare, prepared, sources
from unet_jax.runtime import errors
from unet_jax.runtime import mesh as mesh_lib

# Seconds of a round.
_Round = Callable[[], float]


def _check(config: ml_collections.ConfigDict) -> None:
  """Raises UserError where the DataLoader here does not do the same."""
  data, reason = config.data, None
  if data.source == 'shapes':
    reason = 'data.source=shapes, which has no files'
  elif data.resize != 'stretch':
    reason = f'data.resize={data.resize}'
  elif not all(isinstance(value, int) for value, _ in data.mask_values):
    reason = 'colours or others in data.mask_values'
  elif config.loss.weight_map != 'none':
    reason = f'loss.weight_map={config.loss.weight_map}'
  if reason:
    raise errors.UserError(
      f'--what=loader has no peer for {reason}; take files of your own with '
      '--config=configs/folder.py, or --config=configs/oxford_pets.py:small'
    )


def _write_files(
  source: examples.Source, root: pathlib.Path
) -> list[tuple[str, str]]:
  """Writes a folder that configs/folder.py reads; returns images and masks."""
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


def _set_cores(cores: Iterable[int]) -> None:
  for thread in os.listdir('/proc/self/task'):
    with contextlib.suppress(ProcessLookupError):  # It has just ended.
      os.sched_setaffinity(int(thread), cores)


@contextlib.contextmanager
def _on_cores(cores: Iterable[int]) -> Iterator[None]:
  """Keeps every thread that there is, and those to come, on these cores."""
  before = os.sched_getaffinity(0)
  try:
    _set_cores(cores)
    yield
  finally:
    _set_cores(before)


class _Peer:
  """DataLoaders over the files, and over arrays prepared from them."""

  def __init__(
    self, config: ml_collections.ConfigDict, pairs: list[tuple[str, str]]
  ):
    from experiments.speed import torch_loader

    self.torch, self._pairs, self._config = torch_loader, pairs, config
    self._mode = 'L' if config.data.num_channels == 1 else 'RGB'
    self._classes = np.arange(256, dtype=np.uint8)
    for value, c in config.data.mask_values:
      self._classes[value] = c

  def _make(self, dataset: Any, workers: int, **options: Any) -> Any:
    size = self._config.data.batch_size
    return self.torch.make_loader(dataset, size, workers, **options)

  def prepared(self) -> Any:
    size = tuple(self._config.data.image_size)
    return self.torch.Files(self._pairs, self._mode, size, self._classes)

  def _epoch(self, loader: Iterable[Any]) -> _Round:
    """Returns a round of a loader whose workers have started."""

    def epoch() -> None:
      for _ in loader:
        pass

    epoch()
    return functools.partial(rounds.seconds, epoch)

  def decode(self, workers: int) -> _Round:
    dataset = self.torch.Files(self._pairs, self._mode)
    as_list = self.torch.as_list
    return self._epoch(self._make(dataset, workers, collate_fn=as_list))

  def prepare(self, workers: int) -> _Round:
    return self._epoch(self._make(self.prepared(), workers))

  def read(
    self, workers: int, count: int, arrays: list[str] | None = None
  ) -> _Round:
    """A round of shuffled batches; `arrays` are files of prepared arrays."""
    dataset = self.torch.Arrays(arrays) if arrays else self.prepared()
    loader = self._make(dataset, workers, shuffle=True, drop_last=True)
    # By the clock, as all here: the processors' share of workers is not known.
    return lambda: (
      rounds.per_batch(self.torch.endless(loader), self._config, count).wall
    )


@dataclasses.dataclass(frozen=True)
class _Measurement:
  """Decode, prepare and read on some cores, by ours and perhaps by the peer."""

  config: ml_collections.ConfigDict
  source: examples.Source
  peer: _Peer | None
  repeats: int
  steps: int
  # Of the DataLoader.
  workers: int

  def decode(self) -> rounds.Table:
    """Decodes the files, and the examples of another source."""
    contenders = {'unet_jax': sources.make_source(self.config, 'train')}
    if type(self.source) is not type(contenders['unet_jax']):
      contenders[f'unet_jax, {type(self.source).__name__}'] = self.source

    def decode(pairs: examples.Source) -> None:
      workers = prepared.num_workers(self.config)
      with futures.ThreadPoolExecutor(workers) as pool:
        # Nothing is kept, as in prepare.py.
        for _ in pool.map(lambda i: pairs[i] is None, range(len(pairs))):
          pass

    calls: dict[str, _Round] = {
      name: functools.partial(rounds.seconds, decode, pairs)
      for name, pairs in contenders.items()
    }
    if self.peer:
      calls['PyTorch'] = self.peer.decode(self.workers)
    return self._compare('decode', calls)

  def prepare(self) -> rounds.Table:
    config = self.config.copy_and_resolve_references()

    def ours(cache: str) -> float:
      with tempfile.TemporaryDirectory() as folder:
        config.data.update(cache=cache, cache_dir=folder)
        return rounds.seconds(prepare.prepare, config, 'train')

    calls: dict[str, _Round] = {
      f'unet_jax, cache {cache}': functools.partial(ours, cache)
      for cache in ('disk', 'memory')
    }
    if self.peer:
      calls['PyTorch, in each epoch'] = self.peer.prepare(self.workers)
    return self._compare('prepare', calls)

  def _compare(self, what: str, calls: dict[str, _Round]) -> rounds.Table:
    n = len(self.source)
    return rounds.compare(f'{what} {n} images, s', calls, self.repeats, n)

  def read(self) -> rounds.Table:
    config, peer = self.config.copy_and_resolve_references(), self.peer
    mesh, steps, quick = mesh_lib.make_mesh(config), self.steps, 10 * self.steps
    with tempfile.TemporaryDirectory() as folder:

      def ours(dataset: prepared.Dataset, count: int) -> float:
        batches = pipeline.train_batches(dataset, config, mesh)
        return rounds.per_batch(batches, config, count).wall

      calls: dict[str, _Round] = {}
      for cache, count in (('disk', quick), ('memory', quick), ('none', steps)):
        config.data.update(cache=cache, cache_dir=folder)
        dataset = prepare.prepare(config, 'train')
        name = f'unet_jax, cache {cache}'
        calls[name] = functools.partial(ours, dataset, count)
      if peer:
        # The whole set at random access, as a user would save it.
        whole = [dataset[i] for i in range(len(dataset))]
        arrays = [f'{folder}/{key}.npy' for key in ('image', 'mask')]
        for path, key in zip(arrays, ('image', 'mask')):
          np.save(path, np.stack([example[key] for example in whole]))
        calls['PyTorch, files'] = peer.read(self.workers, steps)
        for n in sorted({0, self.workers}):
          name = f'PyTorch, arrays, {n} workers'
          calls[name] = peer.read(n, quick, arrays)
      size = config.data.batch_size
      title = f'read a batch of {size} images, s'
      return rounds.compare(title, calls, self.repeats, size)


def measure(
  config: ml_collections.ConfigDict, repeats: int, steps: int
) -> dict[str, Any]:
  """Times decode, prepare and read, on one core and on all.

  Raises:
    UserError: the DataLoader does not do what the config asks for.
  """
  _check(config)
  config = config.copy_and_resolve_references()
  source = sources.make_source(config, config.data.train_split)
  results, peer = {}, None
  with tempfile.TemporaryDirectory() as folder:
    pairs = _write_files(source, pathlib.Path(folder))
    config.data.update(source='folder', dir=folder, num_workers=0)
    if step.HAS_TORCH:
      peer = _Peer(config, pairs)
    else:
      print('PyTorch is skipped: it is not installed')
    cores = sorted(os.sched_getaffinity(0))
    for n in sorted({1, len(cores)}):
      workers = n if n > 1 else 0
      print(f'\non {n} core(s); workers of the DataLoader: {workers}')
      one_thread = peer.torch.one_thread() if peer else contextlib.nullcontext()
      with _on_cores(cores[:n]), one_thread:
        on = _Measurement(config, source, peer, repeats, steps, workers)
        results[f'on {n} core(s)'] = {
          'decode': on.decode(),
          'prepare': on.prepare(),
          'read': on.read(),
        }
  return results
