"""Batches of a dataset on the devices: grain reads, shuffles, batches.

The global order of examples depends on the seed alone: process i of n takes the
i-th n-th of every global batch, so that any number of processes trains on the
same batches.
"""

import functools
import sys
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from unet_jax.data import prepared, windows
from unet_jax.runtime import mesh as mesh_lib

Batch = dict[str, Any]


class _ShuffledBatches:
  """The endless global batches of a dataset, reordered in each epoch.

  The seed and the index of a batch give its examples. Grain's own
  `shuffle().repeat().batch()` does the same example by example, at 80 us each,
  ten times the time to copy an image of 128 x 128 pixels.
  """

  def __init__(
    self, dataset: prepared.Dataset, config: ml_collections.ConfigDict
  ):
    self._dataset, self._size = dataset, config.data.batch_size
    self._seed, self._count = config.seed, jax.process_count()
    self._order = functools.lru_cache(maxsize=2)(self._make_order)

  def __len__(self) -> int:
    return sys.maxsize // self._size  # Endless, for all practical purposes.

  def _make_order(self, epoch: int) -> np.ndarray:
    rng = np.random.default_rng((epoch, self._seed))
    return rng.permutation(len(self._dataset))

  def __getitem__(self, index: int) -> prepared.Arrays:
    # Batches of all processes are numbered through: each has its part.
    local = self._size // self._count
    n = len(self._dataset)
    epochs, places = np.divmod(index * local + np.arange(local), n)
    indices = [
      self._order(epoch)[places[epochs == epoch]]
      for epoch in range(epochs[0], epochs[-1] + 1)
    ]
    return self._dataset.read_batch(np.concatenate(indices))


class _WithPadding:
  """A dataset padded to whole batches; the `weight` of padding is 0."""

  def __init__(self, dataset: prepared.Dataset | windows.Tiles, multiple: int):
    self._dataset = dataset
    self._length = -(-len(dataset) // multiple) * multiple

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Batch:
    real = index < len(self._dataset)
    example = self._dataset[index if real else 0]
    return {**example, 'weight': np.float32(real)}


def _local_batches(
  dataset: grain.MapDataset, config: ml_collections.ConfigDict
) -> grain.MapDataset:
  """The parts of each global batch that this process reads."""
  local = config.data.batch_size // jax.process_count()
  return dataset.batch(local)[jax.process_index() :: jax.process_count()]


def _to_devices(
  dataset: grain.MapDataset, config: ml_collections.ConfigDict, mesh: Mesh
) -> grain.IterDataset:
  """Reads ahead in threads and keeps two batches on the devices."""
  # A thread makes a whole batch; more threads would only take memory.
  threads = min(prepared.num_workers(config), 16)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  batches = dataset.to_iter_dataset(options)
  batches = batches.map(lambda batch: mesh_lib.to_devices(batch, mesh))
  return grain.experimental.ThreadPrefetchIterDataset(
    batches, prefetch_buffer_size=2
  )


def train_batches(
  dataset: prepared.Dataset, config: ml_collections.ConfigDict, mesh: Mesh
) -> grain.DatasetIterator:
  """Returns endless batches, shuffled anew in each epoch.

  With data.resize `patch` these are windows drawn from the images.

  Returns:
    An iterator of {'image': uint8 [B, H, W, C], 'mask': uint8 [B, H, W]} and,
    where the config asks for one, 'weight_map': float16 [B, H, W], on the
    devices. `get_state()` is the position after the last batch that was taken
    (not of those that were read ahead), `set_state()` continues from there.

  Raises:
    UserError: there is nothing to draw windows around.
  """
  if config.data.resize == 'patch':
    batches = _local_batches(windows.train_windows(dataset, config), config)
  else:
    batches = grain.MapDataset.source(_ShuffledBatches(dataset, config))
    batches = batches[jax.process_index() :: jax.process_count()]
  return iter(_to_devices(batches, config, mesh))


def abstract_batch(
  config: ml_collections.ConfigDict, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes, types and shardings of `train_batches`, no arrays."""
  size, shardings = config.data.batch_size, mesh_lib.batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=shardings[name])
    for name, (shape, dtype) in prepared.array_specs(config).items()
  }


def eval_batches(
  dataset: prepared.Dataset, config: ml_collections.ConfigDict, mesh: Mesh
) -> grain.DatasetIterator:
  """Returns every example once, in order, in whole batches.

  With data.resize `patch` the examples are tiles of the images.

  Returns:
    As `train_batches`, and `weight` float32 [B]: 1, or 0 for padding; with
    tiles also `example` int32 [B]: the indices of their images.
  """
  examples: prepared.Dataset | windows.Tiles = dataset
  if config.data.resize == 'patch':
    examples = windows.Tiles(dataset, config)
  padded = _WithPadding(examples, config.data.batch_size)
  batches = _local_batches(grain.MapDataset.source(padded), config)
  return iter(_to_devices(batches, config, mesh))
