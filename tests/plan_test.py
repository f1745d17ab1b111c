"""--mode=plan: what the TPU's compiler makes of the steps."""

import importlib.util
import json
import types

import pytest

from tests import program, tiny
from unet_jax import plan
from unet_jax.planning import chips, programs

_NO_COMPILER = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs libtpu, pip install ".[plan]"',
)


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """The train step on two meshes of four chips, one of which has no such."""
  workdir = tmp_path_factory.mktemp('plan')
  out, err = program.run(
    '--mode=plan',
    '--config.plan.topology=v5e:2x2',
    '--config.plan.sweep=4x1x1:8,2x1x2:4,3x1x1',
    '--config.data.image_size=16,16',
    '--config.model.depth=1',
    '--config.model.base_features=4',
    '--config.model.norm=batch',
    '--config.model.dtype=bfloat16',
    '--config.optimizer.name=sgd',
    '--config.optimizer.ema_decay=0',
    f'--workdir={workdir}',
  )
  assert 'compiling the train step of 8 images for v5e:2x2' in err
  assert (workdir / 'plan.txt').read_text() == out
  return json.loads((workdir / 'plan.json').read_text())['sweep']


def _collectives(row):
  return {(c['kind'], *c['axes']) for c in row['collectives']}


@_NO_COMPILER
@pytest.mark.whole_runs
def test_the_train_step_on_a_slice(rows):
  by_data, by_rows, refused = rows
  assert 'does not fit 4 devices' in refused['refused']
  for row in (by_data, by_rows):
    memory = row['memory']
    # All of the state is donated; the metrics are new.
    assert 0 < memory['outputs'] - memory['donated'] < 8192
    assert memory['fits'] and memory['total'] < 2**26
    # Forward and backward; a head's logits are float32.
    assert sum(p['share'] for p in row['products'] if 'bf16' in p['dtypes']) > (
      0.99
    )
    both = [p['share'] for p in row['products'] if set(p['dtypes']) == {'bf16'}]
    assert sum(both) > 0.95
    assert row['images_per_second']['estimated'] > 0
  # No activation is gathered: moments of norms alone, two of each channel; and
  # gradients are summed along data, once, in float32.
  sent = {c['kind']: c for c in by_data['collectives']}
  assert _collectives(by_data) == {
    ('all-reduce', 'data'),
    ('all-gather', 'data'),
  }
  assert all(c['dtypes'] == ['f32'] for c in by_data['collectives'])
  num_norms, most_features = 6, 8
  assert sent['all-gather']['count'] == num_norms
  assert sent['all-gather']['bytes'] <= num_norms * 4 * 2 * most_features * 4
  # Those of the norms' gradients, and one of all kernels.
  assert sent['all-reduce']['count'] <= num_norms + 2
  assert ('collective-permute', 'spatial') in _collectives(by_rows)


@_NO_COMPILER
@pytest.mark.whole_runs
def test_a_slice_that_is_none(tmp_path):
  flags = '--mode=plan', '--config.plan.topology=v5e:3x3'
  _, err = program.run(*flags, f'--workdir={tmp_path}', code=1)
  assert err.startswith(
    'error: --config.plan.topology=v5e:3x3: libtpu knows no such slice ('
  )
  assert len(err.splitlines()) == 1


@_NO_COMPILER
@pytest.mark.whole_runs
def test_a_slice_of_several_hosts():
  process = program.fork(_ask_for_hosts)
  assert program.finish(process)[0] == '4 hosts: train 4, evaluate 4, predict 1'


def _ask_for_hosts():
  target = chips.make_slice('v5e:4x4')
  config = tiny.make_config(data={'batch_size': 32}, mesh={'fsdp': 2})
  names = []
  for name, make in programs.STEPS.items():
    step = make(config, target.devices)
    assert step.images == 32
    names.append(f'{name} {plan._hosts(step)}')
  print(f'{target.hosts} hosts: {", ".join(names)}', end='')


@pytest.mark.parametrize(
  'needs,expected',
  [
    # More than in proportion to the batch.
    (lambda n: 40 + 10 * n + 0.001 * n * n, 96),
    (lambda n: 40 + 12 * n + 0.001 * n * n, 80),
    # As much for small batches.
    (lambda n: 500 if n < 64 else 40 + 10 * n, 64),
  ],
)
def test_largest_batch(needs, expected, monkeypatch):
  config = tiny.make_config(plan={'largest_batch': True})
  target = types.SimpleNamespace(
    devices=(), chip=types.SimpleNamespace(hbm=1020.0)
  )
  compiled = []

  def compile(batch, target):
    compiled.append(batch)
    return {'memory': {'total': needs(batch)}}

  monkeypatch.setattr(plan, '_compile', compile)
  make = lambda config, devices: config.data.batch_size
  monkeypatch.setitem(programs.STEPS, 'train', make)
  found = {
    'images': 8,
    'mesh': {'data': 4, 'fsdp': 1, 'spatial': 1},
    'memory': {'total': needs(8), 'temporaries': needs(8) - 40},
  }
  largest = plan._largest_batch(found, target, config)
  assert largest == {'images': expected, 'compiled': True}
  assert expected in compiled and needs(expected) <= 1020
  assert len(compiled) <= 4 and max(compiled) < 200
  config.plan.largest_batch = False
  compiled.clear()
  largest = plan._largest_batch(found, target, config)
  assert not largest['compiled'] and largest['images'] > 8
  assert not compiled


def test_grid():
  config = tiny.make_config(plan={'sweep': ('grid',)})
  entries = plan._entries(config, 4)
  assert entries[:4] == ['4x1x1:8', '4x1x1:16', '4x1x1:32', '1x4x1:8']
  meshes = {e.partition(':')[0] for e in entries}
  assert meshes == {'4x1x1', '1x4x1', '2x2x1', '2x1x2'}
  config.model.spatial_dims = 3
  meshes = {e.partition(':')[0] for e in plan._entries(config, 4)}
  assert meshes == {'4x1x1', '1x4x1', '2x2x1'}
