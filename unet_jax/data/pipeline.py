"""Batches of a prepared set on the devices: grain reads, shuffles, batches.

The global order of examples depends on the seed alone: process i of n takes the
i-th n-th of every global batch, so that any number of processes trains on the
same batches.
"""

from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from unet_jax import sharding
from unet_jax.data import prepare, windows

Batch = dict[str, Any]


class _WithPadding:
  """A set extended to whole batches; `weight` is 0 for what was added."""

  def __init__(self, dataset, multiple: int):
    self._dataset = dataset
    self._length = -(-len(dataset) // multiple) * multiple

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    real = index < len(self._dataset)
    example = self._dataset[index if real else 0]
    return {**example, 'weight': np.float32(real)}


def _local_batches(dataset: grain.MapDataset, config) -> grain.MapDataset:
  """The parts of each global batch that this process reads."""
  local = config.data.batch_size // jax.process_count()
  return dataset.batch(local)[jax.process_index() :: jax.process_count()]


def _to_devices(
  dataset: grain.MapDataset, config, mesh: Mesh
) -> grain.IterDataset:
  """Reads ahead in threads and keeps two batches on the devices."""
  # A thread makes a whole batch; more of them than this only take memory.
  threads = min(prepare.num_workers(config), 16)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  batches = dataset.to_iter_dataset(options)
  batches = batches.map(lambda batch: sharding.to_devices(batch, mesh))
  return grain.experimental.ThreadPrefetchIterDataset(
    batches, prefetch_buffer_size=2
  )


def train_batches(dataset, config, mesh: Mesh) -> grain.DatasetIterator:
  """Returns endless batches, shuffled anew in each epoch.

  Args:
    dataset: see prepare.py; with data.resize `patch` windows are drawn of it.
    config: the config of the run.
    mesh: where the batches go.

  Returns:
    An iterator of {'image': uint8 [B, H, W, C], 'mask': uint8 [B, H, W]} and,
    where the config asks for one, 'weight_map': float16 [B, H, W], on the
    devices. `get_state()` is the position after the last batch that was taken
    (not of what was read ahead), `set_state()` goes on from there.

  Raises:
    UserError: there is nothing to draw windows around.
  """
  if config.data.resize == 'patch':
    examples = windows.train_windows(dataset, config)
  else:
    examples = grain.MapDataset.source(dataset).shuffle(config.seed).repeat()
  batches = _local_batches(examples, config)
  return iter(_to_devices(batches, config, mesh))


def eval_batches(dataset, config, mesh: Mesh) -> Iterator[Batch]:
  """Returns every example once, in order, in whole batches.

  Args:
    dataset: see prepare.py; with data.resize `patch` it is laid out in tiles.
    config: the config of the run.
    mesh: where the batches go.

  Returns:
    As `train_batches`, and `weight` float32 [B]: 1, or 0 for padding; of tiles
    also `example` int32 [B]: the indices of their images.
  """
  if config.data.resize == 'patch':
    dataset = windows.Tiles(dataset, config)
  padded = _WithPadding(dataset, config.data.batch_size)
  batches = _local_batches(grain.MapDataset.source(padded), config)
  return iter(_to_devices(batches, config, mesh))
