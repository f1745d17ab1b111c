"""Tests of unet_jax/data/pipeline.py."""

import collections

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.data import helpers
from tests.refusals import message_of
from unet_jax.data import pipeline
from unet_jax.evaluation import step
from unet_jax.runtime import errors
from unet_jax.training import programs


class _Numbers:
  """Examples that hold their own index."""

  def __init__(self, length, bad=()):
    self._length, self._bad = length, bad

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    if index in self._bad:
      raise errors.UserError(f'example {index} is bad; fix it')
    return {
      'image': np.full((4, 2, 3), index, np.uint8),
      'mask': np.full((4, 2), index, np.uint8),
    }

  def read_batch(self, indices):
    rows = [self[i] for i in indices]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _config(batch_size=4, **fields):
  return helpers.make_config(batch_size=batch_size, num_workers=2, **fields)


def _indices(batch):
  mask = np.asarray(batch['mask'])
  assert_array_equal(np.asarray(batch['image']), np.stack([mask] * 3, -1))
  return mask[:, 0, 0].tolist()


@pytest.fixture
def train():
  """A function that starts `train_batches`; they are closed at the end."""
  started = []

  def start(dataset, config):
    started.append(pipeline.train_batches(dataset, config, helpers.make_mesh()))
    return started[-1]

  yield start
  for batches in started:
    batches.close()


def _take(batches, n):
  return [_indices(next(batches)) for _ in range(n)]


@pytest.mark.parametrize('length, batch_size', [(12, 4), (10, 4), (3, 8)])
def test_each_epoch_has_every_example_once(train, length, batch_size):
  """Also where batches go across the end, or are larger than the set."""
  batches = train(_Numbers(length), _config(batch_size))
  taken = _take(batches, -(-5 * length // batch_size))
  assert all(len(batch) == batch_size for batch in taken)
  order = sum(taken, [])
  epochs = [order[i * length : (i + 1) * length] for i in range(5)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(length))
  assert len(set(map(tuple, epochs))) > 2
  if length > 3:
    assert len(set(map(tuple, epochs))) == 5
    assert list(range(length)) not in epochs


def test_the_seed_alone_decides_the_order(train):
  take = lambda config: _take(train(_Numbers(40), config), 7)
  first = take(_config(8, seed=3))
  config = _config(8, seed=3)
  config.data.num_workers = 5
  assert take(config) == first
  assert take(_config(8, seed=4)) != first


@pytest.mark.parametrize('k', [0, 1, 5])
def test_goes_on_from_a_state(train, k):
  """The position is after the taken batches, not those read ahead."""
  numbers, config = _Numbers(11), _config()
  expected = _take(train(numbers, config), 12)
  batches = train(numbers, config)
  assert _take(batches, k) == expected[:k]
  state = batches.get_state()
  # Going on does not change a state that was taken.
  assert _take(batches, 2) == expected[k : k + 2]

  fresh = train(numbers, config)
  fresh.set_state(state)
  assert _take(fresh, 12 - k) == expected[k:]

  used = train(numbers, config)
  _take(used, 3)
  used.set_state(state)
  assert used.get_state() == state
  assert _take(used, 12 - k) == expected[k:]


@pytest.mark.eight_devices
def test_batches_on_the_devices():
  batches = pipeline.train_batches(
    _Numbers(16), _config(8), helpers.make_mesh(4)
  )
  batch = next(batches)
  batches.close()
  assert set(batch) == {'image', 'mask'}
  abstract = programs.abstract_batch(
    _config(8, image_size=(4, 2)), helpers.make_mesh(4)
  )
  describe = lambda x: (x.shape, x.dtype, x.sharding)
  assert jax.tree.map(describe, abstract) == jax.tree.map(describe, batch)
  assert batch['image'].shape == (8, 4, 2, 3)
  assert batch['image'].dtype == batch['mask'].dtype == np.uint8
  for array in batch.values():
    assert len(array.addressable_shards) == 4
    assert {s.data.shape[0] for s in array.addressable_shards} == {2}


@pytest.mark.eight_devices
def test_batches_of_an_evaluation_are_as_its_step_expects_them():
  config, mesh = _config(8, image_size=(4, 2)), helpers.make_mesh(4)
  batches = pipeline.eval_batches(_Numbers(9), config, mesh)
  batch = next(batches)
  batches.close()
  describe = lambda x: (x.shape, x.dtype, x.sharding)
  abstract = step.abstract_batch(config, mesh)
  assert jax.tree.map(describe, abstract) == jax.tree.map(describe, batch)


@pytest.mark.parametrize('num_processes', [2, 4])
def test_processes_train_on_parts_of_the_same_batches(num_processes):
  # 10 examples in batches of 4: the third lies in two epochs.
  config, dataset = _config(), _Numbers(10)
  whole = [
    _indices(pipeline._ShuffledBatches(dataset, config)[i]) for i in (0, 2)
  ]
  parts = pipeline._ShuffledBatches(dataset, config, num_processes)
  for i, expected in zip((0, 2), whole):
    rows = range(i * num_processes, (i + 1) * num_processes)
    assert [index for k in rows for index in _indices(parts[k])] == expected


@pytest.mark.eight_devices
@pytest.mark.parametrize('length, batch_size', [(12, 4), (13, 4), (3, 8)])
def test_evaluation_has_every_example_once_in_order(length, batch_size):
  batches = pipeline.eval_batches(
    _Numbers(length), _config(batch_size), helpers.make_mesh(2)
  )
  taken = list(batches)
  assert len(taken) == -(-length // batch_size)
  order, weights = [], []
  for batch in taken:
    assert batch['image'].shape == (batch_size, 4, 2, 3)
    assert batch['weight'].dtype == np.float32
    order += _indices(batch)
    weights += np.asarray(batch['weight']).tolist()
  assert order[:length] == list(range(length))
  assert weights == [1.0] * length + [0.0] * (len(order) - length)


def test_every_process_evaluates_as_many_batches(monkeypatch):
  """Otherwise one would wait for the other without end."""
  start = lambda: pipeline.eval_batches(
    _Numbers(5), _config(4), helpers.make_mesh()
  )
  counts = collections.Counter()
  for batches in helpers.of_processes(monkeypatch, 4, start):
    part = list(batches)
    assert len(part) == 2
    for batch in part:
      for index, weight in zip(_indices(batch), np.asarray(batch['weight'])):
        counts[index] += weight
  assert counts == {i: 1 for i in range(5)}


def test_a_mistake_in_the_data_reaches_the_caller(train):
  numbers, config = _Numbers(10, bad=(7,)), _config()
  batches = pipeline.eval_batches(numbers, config, helpers.make_mesh())
  for read in (lambda: _take(train(numbers, config), 3), lambda: list(batches)):
    assert message_of(read) == 'example 7 is bad; fix it'


def test_a_batch_of_one(train):
  """The 2015 paper's."""
  batches = train(_Numbers(3), _config(batch_size=1))
  assert sorted(_indices(next(batches))[0] for _ in range(3)) == [0, 1, 2]
