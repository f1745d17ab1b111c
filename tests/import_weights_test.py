"""Import and export: files, names that do not match, and main.py."""

import json
import os
import pickle
import sys
from unittest import mock

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from numpy.testing import assert_array_equal
from safetensors import numpy as safetensors_numpy

from tests import program, tiny
from tests.refusals import message_of
from unet_jax import export_weights, import_weights
from unet_jax.models import unet
from unet_jax.runtime import locks
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import checkpoint, optimizer
from unet_jax.weights import files, match, naming


def _arrays(config):
  """A network's arrays by name, drawn."""
  shape = (*config.data.image_size, config.data.num_channels)
  wanted = naming.abstract_variables(unet.create_model(config), shape)
  rng = np.random.default_rng(0)
  return {
    name: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    for name, leaf in naming.flatten(wanted).items()
  }


def _save(path, arrays):
  np.savez(path, **arrays)
  return str(path)


def _take(path, config):
  """Arrays by name, as an import takes them."""
  variables = match.variables_of_file(files.read(str(path)), config)
  return naming.flatten(variables)


def _assert_same(actual, expected):
  assert set(actual) == set(expected)
  for name, array in expected.items():
    assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize(
  'model',
  [{}, {'norm': 'group', 'upsample': 'bilinear'}, {'norm': 'none', 'depth': 0}],
  ids=str,
)
@pytest.mark.parametrize('separator', ['/', '.'])
def test_npz_with_our_names(model, separator, tmp_path):
  config = tiny.make_config(model=model)
  arrays = _arrays(config)
  ours = {}
  for name, array in arrays.items():
    is_stat = name.endswith(('mean', 'var'))
    name = f'{"batch_stats" if is_stat else "params"}/{name}'
    ours[name.replace('/', separator)] = array
  path = _save(tmp_path / 'weights.npz', ours)
  _assert_same(_take(path, config), arrays)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_types_become_float32(dtype, tmp_path, caplog):
  config = tiny.make_config()
  arrays = {k: v.astype(dtype) for k, v in _arrays(config).items()}
  path = tmp_path / 'weights.safetensors'
  safetensors_numpy.save_file(arrays, path)
  with caplog.at_level('INFO', 'unet_jax'):
    actual = _take(path, config)
  assert f'head/bias: {np.dtype(dtype)} to float32' in caplog.text
  assert {a.dtype for a in actual.values()} == {np.dtype(np.float32)}
  _assert_same(actual, {k: v.astype(np.float32) for k, v in arrays.items()})


def test_names_that_do_not_match_are_listed_on_both_sides(tmp_path, caplog):
  config = tiny.make_config(model={'norm': 'none'})
  arrays = _arrays(config)
  del arrays['head/bias']
  arrays['teapot.handle'] = np.ones(2)
  arrays['up_0/conv1/kernel'] = np.ones((3, 3, 8, 5))
  path = _save(tmp_path / 'weights.npz', arrays)
  with caplog.at_level('INFO', 'unet_jax'):
    line = message_of(_take, path, config)
  assert line == (
    f"{path} does not fit the config's network: 1 arrays of "
    'the file are not in the network, 1 of the network are not in the file, 1 '
    'have another shape (all listed above); choose the config that it was '
    'trained with'
  )
  assert caplog.messages == [
    'in the file, not in the network: teapot.handle (teapot/handle) (2,)',
    'in the network, not in the file: head/bias (3,)',
    'of another shape, the file: up_0/conv1/kernel (3, 3, 8, 5), the network '
    '(3, 3, 8, 4)',
  ]


def test_another_network_is_named_by_its_flags(tmp_path):
  other = tiny.make_config(
    model={'depth': 2, 'base_features': 3, 'max_features': 6},
    data={'num_classes': 5},
  )
  path = _save(tmp_path / 'weights.npz', _arrays(other))
  line = message_of(_take, path, tiny.make_config())
  assert line.endswith(
    'try --config.data.num_classes=5 --config.model.depth=2 '
    '--config.model.base_features=3 --config.model.max_features=6'
  )


@pytest.mark.parametrize(
  'model,open_choices',
  [
    ({'upsample': 'pixel_shuffle', 'upsample_kernel': 3}, ''),
    (
      {'upsample': 'nearest', 'skip': 'add'},
      'is nearest or bilinear; the file leaves open whether model.skip is add '
      'or none',
    ),
    ({'features': (4, 6, 16), 'convs': 3, 'kernel_size': 5}, ''),
    ({'max_features': 10}, ''),
    ({'norm': 'group'}, 'group, instance or layer, and model.norm_groups'),
    ({'norm': 'instance'}, 'instance, group or layer'),
    ({'upsample': 'nearest', 'upsample_kernel': 0}, 'is nearest or bilinear'),
  ],
  ids=str,
)
def test_shapes_show_the_network(model, open_choices, tmp_path, caplog):
  config = tiny.make_config(model={'depth': 2, **model})
  path = _save(tmp_path / 'weights.npz', _arrays(config))
  with caplog.at_level('INFO', 'unet_jax'):
    deduced = match.deduced_config({'weights.path': path})
  assert deduced.model == config.model
  assert '; '.join(caplog.messages[2:]).endswith(open_choices)
  # By name, what no shape shows.
  assumed = (
    "--config.data.mean='(0.5,0.5,0.5)' --config.data.std='(0.25,0.25,0.25)' "
    '--config.model.downsample=max --config.model.norm_epsilon=1e-05 '
    '--config.model.activation=relu --config.model.padding=same'
  )
  if deduced.model.upsample == 'transpose':
    assumed += ' --config.model.upsample=transpose'
  assert caplog.messages[1] == f'not in the file, assumed: {assumed}'


def test_a_field_that_is_given_is_not_assumed(tmp_path, caplog):
  config = tiny.make_config(model={'activation': 'elu'})
  path = _save(tmp_path / 'weights.npz', _arrays(config))
  given = {'model.activation': 'elu', 'data.mean': (0.1,) * 3}
  with caplog.at_level('INFO', 'unet_jax'):
    deduced = match.deduced_config({'weights.path': path, **given})
  assert deduced.model == config.model
  assert 'assumed: --config.data.std=' in caplog.messages[1]
  assert 'activation' not in caplog.messages[1]


def test_biases_that_the_file_does_not_have_are_0(tmp_path, caplog):
  """Of convolutions in front of a norm (`use_bias=False`), all or none."""
  config = tiny.make_config(model={'norm': 'layer'})
  arrays = _arrays(config)
  biases = [k for k in arrays if k.endswith(('conv1/bias', 'conv2/bias'))]
  without = {k: v for k, v in arrays.items() if k not in biases}
  path = _save(tmp_path / 'without.npz', without)
  with caplog.at_level('INFO', 'unet_jax'):
    taken = _take(path, config)
  zeros = {k: np.zeros_like(arrays[k]) for k in biases}
  _assert_same(taken, {**without, **zeros})
  assert caplog.messages == [
    '6 biases of convolutions, which the file does not have, are 0'
  ]
  del arrays[biases[0]]
  line = message_of(_take, _save(tmp_path / 'broken.npz', arrays), config)
  assert '1 of the network are not in the file' in line


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
  pytest.importorskip('torch', reason='needs PyTorch')

  class Bomb:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / 'bang'),)

  path = tmp_path / 'bomb.pth'
  path.write_bytes(pickle.dumps({'head.weight': Bomb()}, protocol=2))
  line = message_of(files.read, str(path))
  assert line.startswith(f'{path}: cannot be read (UnpicklingError: ')
  assert not (tmp_path / 'bang').exists()


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
  missing = tmp_path / 'weights.pth'
  assert message_of(files.read, str(missing)) == (
    f'--config.weights.path={missing}: no such file; give a .pth, '
    '.safetensors, .npz, .keras or .h5 file'
  )
  cut = tmp_path / 'cut.safetensors'
  safetensors_numpy.save_file({'a': np.ones(99)}, cut)
  cut.write_bytes(cut.read_bytes()[:-1])
  assert 'cannot be read (SafetensorError: ' in message_of(files.read, str(cut))
  monkeypatch.setitem(sys.modules, 'h5py', None)
  (tmp_path / 'x.h5').write_bytes(b'\x89HDF\r\n\x1a\n')
  assert message_of(files.read, str(tmp_path / 'x.h5')) == (
    f'{tmp_path}/x.h5: reading it needs the package h5py: pip install h5py'
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir with a checkpoint whose ema differs from its parameters."""
  workdir = str(tmp_path_factory.mktemp('run'))
  config = tiny.make_config(optimizer={'ema_decay': 0.9})
  mesh = mesh_lib.make_mesh(config)
  model = unet.create_model(config)
  state = tiny.make_state(config, model, optimizer.make_optimizer(config), mesh)
  state = state.replace(
    step=state.step + 7,
    ema_params=jax.tree.map(lambda x: x + 0.1, state.ema_params),
  )
  checkpoints = checkpoint.Checkpoints(workdir, config)
  checkpoints.save(state, 7, {})
  checkpoints.wait()
  checkpoints.close()
  return workdir, config, jax.device_get(state)


@pytest.mark.parametrize('which', ['ema', 'raw'])
def test_an_export_is_imported_bit_for_bit(run, which, tmp_path, capsys):
  workdir, config, state = run
  path = str(tmp_path / 'weights.safetensors')
  config.export.path, config.eval.params = path, which
  export_weights.run(config, workdir)
  expected = naming.flatten(state.variables(which))
  with safetensors.safe_open(path, framework='numpy') as f:
    assert 'down_0.norm1.mean' in f.keys()
    metadata = f.metadata()
  assert (metadata['step'], metadata['params']) == ('7', which)
  assert json.loads(metadata['config'])['model']['base_features'] == 4
  taken = match.deduced_config({'weights.path': path})
  assert taken.model == config.model
  _assert_same(_take(path, taken), expected)
  assert capsys.readouterr().out.startswith('wrote ')


def test_export_in_names_that_the_network_does_not_have(run, tmp_path):
  workdir, config, _ = run
  config = config.copy_and_resolve_references()
  path = tmp_path / 'none' / 'x.safetensors'
  config.export.update(path=str(path), format='milesial')
  assert message_of(export_weights.run, config, workdir) == (
    f'--config.export.path={path}: there is no folder {path.parent}; make it, '
    'or choose another'
  )
  config.model.norm = 'group'
  assert message_of(export_weights.named, {}, config) == (
    '--config.export.format=milesial: that network has model.norm=batch, this '
    'run has group'
  )


@pytest.mark.whole_runs
def test_training_goes_on_from_what_was_imported(tmp_path):
  model = {'depth': 1, 'base_features': 2}
  config = tiny.make_config(model=model, data={'num_classes': 4})
  arrays, workdir = _arrays(config), tmp_path / 'run'
  path = _save(tmp_path / 'weights.npz', arrays)
  run = lambda mode, *fields: program.run(
    *(f'--mode={mode}', f'--workdir={workdir}'),
    *(f'--config.{field}' for field in fields),
  )
  data = (f'data.cache_dir={tmp_path}', 'data.image_size=16,16')
  out, err = run('import', f'weights.path={path}', *data)
  flags = '--config.model.base_features=2 --config.model.depth=1'
  assert out.endswith(f'step 0. Its network: {flags}\n')
  assert 'deduced from the file: --config.data.num_channels=3 ' in err
  saved = json.loads((workdir / 'config.json').read_text())
  # As it is by default: it does not bind.
  assert saved['model']['max_features'] == 1024
  # Another config (configs/shapes.py) and optimiser, the same network.
  run(
    *('train', 'model.base_features=2', 'model.depth=1', *data),
    *('data.mean=(0.5,0.5,0.5)', 'data.num_train=8', 'data.num_eval=2'),
    *('data.batch_size=4', 'optimizer.name=sgd', 'optimizer.learning_rate=0.0'),
    *('train.num_steps=1', 'log.tensorboard=false'),
  )
  exported = tmp_path / 'exported.safetensors'
  run('export', 'eval.params=raw', f'export.path={exported}')
  # A step without a learning rate changes the running statistics alone.
  actual = files.read(str(exported)).arrays
  for name, array in arrays.items():
    same = np.array_equal(actual[name.replace('/', '.')], array)
    assert same != name.endswith(('/mean', '/var')), name


@pytest.mark.whole_runs
def test_mistakes_on_the_command_line(tmp_path):
  out, err = program.run('--mode=import', '--config.weights.path=x', code=2)
  assert err == 'error: --mode=import needs --workdir=DIR, a new run\n'


def test_an_import_leaves_what_a_run_is_saving(run, tmp_path):
  """Opening the checkpoints to write removes unfinished ones."""
  _, config, _ = run
  arrays = {'x': np.zeros(3, np.float32)}
  config.weights.path = str(tmp_path / 'x.safetensors')
  unfinished = tmp_path / 'run/checkpoints/00000003.orbax-checkpoint-tmp'
  unfinished.mkdir(parents=True)
  files.write_safetensors(config.weights.path, arrays, {})
  variables = {'params': arrays}
  with (
    mock.patch.object(match, 'variables_of_file', return_value=variables),
    locks.lock(tmp_path / 'run/.lock', 'training', wait=False),
  ):
    message = message_of(import_weights.run, config, str(tmp_path / 'run'))
  assert message == (
    f'training in {tmp_path}/run: another run does it; wait for it, or stop it'
  )
  assert unfinished.exists()
