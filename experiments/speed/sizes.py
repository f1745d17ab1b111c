"""Processor time of a batch against a step's, by the size of the set.

In processor time of all threads, so that other work of the machine does not
count. Sets are 64 drawn images, repeated.
"""

import contextlib
import functools
import itertools
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments.speed import inputs, rounds, step
from unet_jax.data import pipeline, prepare, prepared
from unet_jax.runtime import mesh as mesh_lib

_SIZES = (1, 2, 5, 30, 300, 3680, 100_000)
_DRAWN = 64


class _Repeated(prepared.Dataset):
  """As many examples as asked for, made of a few."""

  def __init__(self, dataset: prepared.Prepared, count: int):
    self._dataset, self._rows = dataset, np.arange(count) % len(dataset)
    self.split, self.stats = dataset.split, dataset.stats.select(self._rows)
    self.pixels = dataset.pixels and dataset.pixels.select(self._rows)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> prepared.Arrays:
    return self._dataset[self._rows[index]]

  def read_batch(self, indices: Any) -> prepared.Arrays:
    return self._dataset.read_batch(self._rows[indices])


def _processor_time(call: Callable[[int], Any], count: int) -> float:
  return rounds.per_step(call, count, count).processor


def _read(
  dataset: prepared.Dataset, config: ml_collections.ConfigDict, count: int
) -> float:
  mesh = mesh_lib.make_mesh(config)

  def take(n: int) -> None:
    for batch in itertools.islice(batches, n):
      jax.block_until_ready(batch)

  with contextlib.closing(
    pipeline.train_batches(dataset, config, mesh)
  ) as batches:
    return _processor_time(take, count)


def measure(
  config: ml_collections.ConfigDict, repeats: int, steps: int
) -> dict[str, Any]:
  """Times batches of images and of windows, in memory and on disk."""
  config = config.copy_and_resolve_references()
  size = config.data.batch_size
  ours = step.Ours(config)
  batch = mesh_lib.to_devices(inputs.random_batch(config), ours.mesh)
  train = functools.partial(ours.train, itertools.repeat(batch))
  results: dict[str, Any] = {}
  # The shapes' classes, whatever number of them the network has.
  table = ((0, 0), (1, 1), (2, 1), (3, 1), (255, 255))
  config.data.update(source='shapes', mask_values=table, num_train=_DRAWN)
  for resize, cache in itertools.product(
    ('stretch', 'patch'), ('memory', 'disk')
  ):
    with tempfile.TemporaryDirectory() as folder:
      config.data.update(resize=resize, cache=cache, cache_dir=folder)
      drawn = prepare.prepare(config, 'train')
      assert isinstance(drawn, prepared.Prepared)
      calls = {'step': functools.partial(_processor_time, train, steps)}
      for count in _SIZES:
        dataset = _Repeated(drawn, count)
        name = f'batch of {count} images'
        calls[name] = functools.partial(_read, dataset, config, 10 * steps)
      title = f'{size} images, resize {resize}, cache {cache}: processor s'
      results[f'{resize}, {cache}'] = rounds.compare(title, calls, repeats)
  return results
