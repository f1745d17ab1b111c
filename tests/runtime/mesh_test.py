"""Meshes of eight devices against one device; what runs on one alone."""

import collections
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal

from tests import refusals, tiny
from unet_jax.evaluation import counting
from unet_jax.models import unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import steps

pytestmark = pytest.mark.eight_devices

_STEPS = 3
# The set is no multiple of the batch: the last one is padded.
_NUM_EVAL = 11


def _config(**mesh):
  # Batch norm, dropout and flips: what could depend on the parts. Without a
  # kink in the activation, rounding stays small.
  return tiny.make_config(
    model={'dropout': 0.3, 'activation': 'silu'},
    optimizer={'momentum': 0.5, 'ema_decay': 0.5},
    augment={'flip_vertical': 0.5},
    mesh=mesh,
  )


def _weigh(example):
  """An example or a batch with a weight for each of its pixels."""
  weight_map = np.where(example['mask'] == 0, 3, 0.5).astype(np.float16)
  return {**example, 'weight_map': weight_map}


def _create(config, mesh):
  model = unet.create_model(config)
  optimizer = optimizer_lib.make_optimizer(config)
  return model, optimizer, tiny.make_state(config, model, optimizer, mesh)


def _train(config, mesh):
  """Returns the losses of some steps, the last state and its evaluation."""
  model, optimizer, state = _create(config, mesh)
  step = steps.make_train_step(config, model, optimizer, mesh, state)
  history = []
  for i in range(_STEPS):
    batch = _weigh(tiny.make_batch(config, seed=i))
    batch = mesh_lib.to_devices(batch, mesh)
    state, metrics = step(state, batch, jax.random.key(3))
    history.append(jax.tree.map(float, metrics))
  examples = tiny.make_examples(config, _NUM_EVAL, seed=99)
  dataset = tiny.Examples([_weigh(example) for example in examples])
  evaluator = counting.Evaluator(config, model, dataset, mesh)
  result, _, examples = evaluator.run(state.variables('ema'))
  assert evaluator.num_examples == _NUM_EVAL
  # Those of the plot are from all over the set.
  spread = np.linspace(0, _NUM_EVAL - 1, config.log.num_examples, dtype=int)
  for i, example in zip(spread, examples, strict=True):
    assert_array_equal(example['image'], dataset[i]['image'])
  return history, state, result, examples


@pytest.fixture(scope='module')
def one_device():
  history, state, result, examples = _train(_config(), tiny.one_device())
  return history, jax.tree.map(np.asarray, state), result, examples


@pytest.mark.parametrize(
  'mesh',
  [
    pytest.param({'data': 8}, marks=pytest.mark.slow),
    {'data': 2, 'fsdp': 4},
    {'data': 2, 'spatial': 4},
    {'data': 2, 'fsdp': 2, 'spatial': 2},
  ],
  ids=['data', 'fsdp', 'spatial', 'all'],
)
def test_every_mesh_gives_the_numbers_of_one_device(mesh, one_device):
  config = _config(**mesh)
  history, state, result, examples = _train(config, mesh_lib.make_mesh(config))
  expected_history, expected, expected_result, shown = one_device
  assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == 8
  for actual, metrics in zip(history, expected_history):
    for name, value in metrics.items():
      assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-6), state, expected
  )
  moved = expected.batch_stats['down_0']['norm1']['mean']
  assert np.all(np.abs(moved) > 1e-4)
  for name, value in expected_result.items():
    # One pixel whose two classes are equal up to rounding may turn.
    if name != 'eval/seconds':
      assert_allclose(result[name], value, atol=2e-3, err_msg=name)
  assert len(examples) == len(shown) == config.log.num_examples
  for a, b in zip(examples, shown):
    assert_array_equal(a['image'], b['image'])
    assert np.mean(a['prediction'] == b['prediction']) > 0.99


def test_state_is_split_over_fsdp():
  config = _config(data=2, fsdp=4)
  _, _, state = _create(config, mesh_lib.make_mesh(config))
  part = lambda x: x.addressable_shards[0].data.shape
  kernel = state.params['bottleneck']['conv2']['kernel']
  assert kernel.shape == (3, 3, 8, 8) and part(kernel) == (3, 3, 2, 8)
  kernel = state.params['bottleneck']['conv1']['kernel']
  assert kernel.shape == (3, 3, 4, 8) and part(kernel) == (3, 3, 4, 2)
  # No axis of the head's bias divides; the step is a scalar.
  assert part(state.params['head']['bias']) == (3,)
  assert part(state.step) == ()
  sizes = collections.Counter()
  for path, x in jax.tree.leaves_with_path(state):
    sizes[path[0].name, 'all'] += x.size
    sizes[path[0].name, 'part'] += int(np.prod(part(x)))
  for name in ('params', 'ema_params', 'opt_state', 'batch_stats'):
    assert sizes[name, 'part'] < 0.3 * sizes[name, 'all'], name


def test_state_is_replicated_without_fsdp():
  mesh = mesh_lib.make_mesh(_config(data=4, spatial=2))
  shapes = {'kernel': jax.ShapeDtypeStruct((3, 3, 8, 8), np.float32)}
  assert mesh_lib.state_sharding(mesh, shapes)['kernel'].spec == P()


def test_batch_is_split_over_data_and_fsdp_and_its_rows_over_spatial():
  mesh = mesh_lib.make_mesh(_config(data=2, fsdp=2, spatial=2))
  batch = {
    'image': np.arange(8 * 16 * 16 * 3, dtype=np.uint8).reshape(8, 16, 16, 3),
    'mask': np.zeros((8, 16, 16), np.uint8),
    'weight_map': np.ones((8, 16, 16), np.float16),
    'weight': np.ones(8, np.float32),
  }
  sent = mesh_lib.to_devices(batch, mesh)
  part = lambda x: x.addressable_shards[0].data.shape
  assert part(sent['image']) == (2, 8, 16, 3)
  assert part(sent['mask']) == part(sent['weight_map']) == (2, 8, 16)
  assert part(sent['weight']) == (2,)
  for name, value in batch.items():
    assert sent[name].dtype == value.dtype
    assert_array_equal(sent[name], value)


@pytest.mark.parametrize(
  'mesh,expected',
  [
    ({}, (8, 1, 1)),
    ({'fsdp': 2}, (4, 2, 1)),
    ({'fsdp': 2, 'spatial': 4}, (1, 2, 4)),
    ({'data': 2, 'fsdp': 2, 'spatial': 2}, (2, 2, 2)),
  ],
)
def test_mesh_of_a_config(mesh, expected):
  made = mesh_lib.make_mesh(_config(**mesh))
  assert dict(made.shape) == dict(zip(('data', 'fsdp', 'spatial'), expected))


_REFUSED = """\
mesh.data=3
  mesh data=3, fsdp=1, spatial=1 does not fit 8 devices; their product must be 8
  (--config.mesh.data=-1 takes what the others leave)
mesh.fsdp=3
  mesh data=-1, fsdp=3, spatial=1 does not fit 8 devices; their product must be
  8 (--config.mesh.data=-1 takes what the others leave)
mesh.spatial=16
  mesh data=-1, fsdp=1, spatial=16 does not fit 8 devices; their product must be
  8 (--config.mesh.data=-1 takes what the others leave)
data.batch_size=20
  --config.data.batch_size=20 is not divisible by 8 (devices along data and
  fsdp, times optimizer.accumulate_steps); the nearest that are: 16 or 24
data.batch_size=6 mesh.fsdp=2 mesh.spatial=2 optimizer.accumulate_steps=3
  --config.data.batch_size=6 is not divisible by 12 (devices along data and
  fsdp, times optimizer.accumulate_steps); the nearest that are: 12
data.image_size=(18,16) mesh.spatial=4
  --config.mesh.spatial=4 does not divide the 18 rows of data.image_size; the
  nearest that it does: 16 or 20
model.padding=valid mesh.spatial=2
  --config.mesh.spatial=2 needs --config.model.padding=same; with valid, split
  the batch alone (mesh.spatial=1)
"""


@pytest.mark.parametrize('fields,message', refusals.cases(_REFUSED))
def test_mesh_that_does_not_fit(fields, message):
  config = tiny.make_config()
  config.update_from_flattened_dict(refusals.parse_fields(fields))
  assert refusals.message_of(mesh_lib.make_mesh, config) == message


class _Of(NamedTuple):
  """A device of another process."""

  process_index: int


def _mesh_of(processes, spatial):
  """A mesh of devices of these processes, in this order."""
  devices = np.empty(len(processes), object)
  devices[:] = [_Of(i) for i in processes]
  return _Mesh(devices.reshape(-1, 1, spatial))


class _Mesh:
  def __init__(self, devices):
    self.devices, self.size = devices, devices.size
    self.shape = dict(zip(('data', 'fsdp', 'spatial'), devices.shape))


@pytest.mark.parametrize(
  'processes,spatial,groups',
  [
    ((0, 0, 1, 1), 2, [[0], [1]]),
    ((0, 0, 1, 1), 4, [[0, 1]]),
    ((0, 1, 0, 1), 2, [[0, 1]]),
    ((0, 1, 2, 3), 2, [[0, 1], [2, 3]]),
    # Neighbours on a torus, which JAX puts side by side.
    ((3, 1, 3, 1, 0, 2, 0, 2), 2, [[1, 3], [0, 2]]),
    ((0, 1, 1, 0), 1, [[0], [1]]),
  ],
)
def test_processes_with_rows_of_the_same_images(
  monkeypatch, processes, spatial, groups
):
  mesh = _mesh_of(processes, spatial)
  for index, group in enumerate(groups):
    for member, process in enumerate(group):
      monkeypatch.setattr(jax, 'process_index', lambda i=process: i)
      found = mesh_lib.part(mesh)
      assert found == (index, len(groups), member, len(group))


def test_processes_that_share_some_of_their_images_only():
  mesh = _mesh_of((0, 0, 0, 1, 1, 1), 2)
  assert refusals.message_of(mesh_lib.part, mesh) == (
    '--config.mesh.spatial=2: of processes with 3 devices, two would share '
    'some of their images only; take what divides 3, or a multiple of it'
  )


def test_devices_of_one_process():
  devices = [_Of(1), _Of(0), _Of(1)]
  assert mesh_lib.of_one_process(devices) == [devices[0], devices[2]]
