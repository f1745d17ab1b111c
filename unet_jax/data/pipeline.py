"""Batches of a dataset on the devices: grain reads, shuffles, batches.

The global order of examples depends on the seed alone. A process takes the part
of every global batch that its devices hold, so that any number of processes
trains on the same batches. Those that split rows of images take the same part.
"""

import functools
import sys
import threading
from typing import Any

import grain
import ml_collections
import numpy as np
from jax.sharding import Mesh

from unet_jax.data import prepared, windows
from unet_jax.runtime import mesh as mesh_lib

Batch = dict[str, Any]


class _ShuffledBatches:
  """The endless global batches of a set, reordered in each epoch.

  The seed and the index of a batch give its examples. Grain's own
  `shuffle().repeat().batch()` does the same example by example, at 80 us each,
  ten times the time to copy an image of 128 x 128 pixels; of a few examples at
  milliseconds each.

  Args:
    dataset: images, or windows drawn from them.
    config: of the run.
    count: parts of each batch.
  """

  def __init__(
    self,
    dataset: prepared.Dataset | windows.Draws,
    config: ml_collections.ConfigDict,
    count: int = 1,
  ):
    self._dataset, self._size = dataset, config.data.batch_size
    self._seed, self._count = config.seed, count
    self._order = functools.lru_cache(maxsize=2)(self._make_order)
    # Threads that come to a new epoch together make its order once.
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return sys.maxsize // self._size  # Endless, for all practical purposes.

  def _make_order(self, epoch: int) -> np.ndarray:
    rng = np.random.default_rng((epoch, self._seed))
    return rng.permutation(len(self._dataset))

  def __getitem__(self, index: int) -> prepared.Arrays:
    # Parts of all batches are numbered through.
    local = self._size // self._count
    first = index * local
    epochs, places = np.divmod(first + np.arange(local), len(self._dataset))
    with self._lock:
      indices = [
        self._order(epoch)[places[epochs == epoch]]
        for epoch in range(epochs[0], epochs[-1] + 1)
      ]
    rows = np.concatenate(indices)
    if isinstance(self._dataset, windows.Draws):
      return self._dataset.read_batch(rows, first)
    return self._dataset.read_batch(rows)


class _OrderedBatches:
  """The global batches of a set, in order; the `weight` of padding is 0.

  As in `_ShuffledBatches`, their parts are numbered through, and each process
  has as many.
  """

  def __init__(
    self,
    dataset: prepared.Dataset | windows.Tiles,
    config: ml_collections.ConfigDict,
    count: int = 1,
  ):
    self._dataset, self._size = dataset, config.data.batch_size
    self._count = count

  def __len__(self) -> int:
    return -(-len(self._dataset) // self._size) * self._count

  def __getitem__(self, index: int) -> Batch:
    local = self._size // self._count
    indices = index * local + np.arange(local)
    real = indices < len(self._dataset)
    examples = self._dataset.read_batch(np.where(real, indices, 0))
    return {**examples, 'weight': real.astype(np.float32)}


def _to_devices(
  batches: type[_ShuffledBatches] | type[_OrderedBatches],
  examples: Any,
  config: ml_collections.ConfigDict,
  mesh: Mesh,
) -> grain.DatasetIterator:
  """Reads this process's parts ahead, and keeps two on the devices."""
  mine = mesh_lib.part(mesh)
  parts = grain.MapDataset.source(batches(examples, config, mine.parts))
  parts = parts[mine.place :: mine.parts]
  # A thread makes a whole batch; more threads would only take memory.
  threads = min(prepared.num_workers(config), 16)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  ahead = parts.to_iter_dataset(options)
  placed = ahead.map(lambda batch: mesh_lib.to_devices(batch, mesh))
  return iter(
    grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=2)
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
  examples: prepared.Dataset | windows.Draws = dataset
  if config.data.resize == 'patch':
    examples = windows.Draws(dataset, config)
  return _to_devices(_ShuffledBatches, examples, config, mesh)


def eval_examples(
  dataset: prepared.Dataset, config: ml_collections.ConfigDict
) -> prepared.Dataset | windows.Tiles:
  """Returns what `eval_batches` goes through: images or their tiles."""
  if config.data.resize == 'patch':
    return windows.Tiles(dataset, config)
  return dataset


def eval_batches(
  dataset: prepared.Dataset, config: ml_collections.ConfigDict, mesh: Mesh
) -> grain.DatasetIterator:
  """Returns every example once, in order, in whole batches.

  With data.resize `patch` the examples are tiles of the images.

  Returns:
    As `train_batches`, and `weight` float32 [B]: 1, or 0 for padding; with
    tiles also `example` int32 [B]: the indices of their images.
  """
  examples = eval_examples(dataset, config)
  return _to_devices(_OrderedBatches, examples, config, mesh)
