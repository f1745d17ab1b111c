"""--mode=summary, through main.py and alone."""

import json
import math

import jax
import pytest
from PIL import Image

from configs import keras_lesson
from tests import program, tiny
from unet_jax import summary
from unet_jax.config import checks
from unet_jax.models import unet
from unet_jax.runtime import errors
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import optimizer
from unet_jax.training import state as state_lib


def _config(**sections):
  sections.setdefault('summary', {'compile': False})
  return tiny.make_config(**sections)


def _run(config, workdir):
  summary.run(config, str(workdir))
  return json.loads((workdir / 'summary.json').read_text())


@pytest.mark.whole_runs
def test_main(tmp_path):
  """The lesson's config asks for a folder, but nothing is read."""
  workdir = tmp_path / 'deep' / 'run'
  flags = [
    '--mode=summary',
    '--config=configs/keras_lesson.py',
    '--config.data.image_size=16,16',
    '--config.model.base_features=2',
    '--config.model.depth=1',
    f'--config.data.cache_dir={tmp_path}',
    f'--workdir={workdir}',
  ]
  out, _ = program.run(*flags)
  assert sorted(p.name for p in workdir.iterdir()) == [
    'network.png',
    'network.svg',
    'summary.json',
    'summary.txt',
  ]
  assert (workdir / 'summary.txt').read_text() == out
  figures = json.loads((workdir / 'summary.json').read_text())
  # Two 3x3 convolutions of 2, two of 4, back to 2 and to 1 channel.
  assert figures['parameters'] == sum(
    [20, 38, 76, 148, 2 * 4 * 4 + 2, 74, 38, 3]
  )
  assert f'parameters                    {431}\n' in out
  step = figures['train_step']
  assert step['backend'] == 'cpu' and step['devices'] == 1
  assert step['temp_bytes'] > 0 and step['flops'] > figures['flops']
  with Image.open(workdir / 'network.png') as image:
    image.load()


def test_totals_are_sums_of_the_printed_rows(tmp_path, capsys):
  figures = _run(_config(), tmp_path)
  lines = capsys.readouterr().out.splitlines()
  rule = [i for i, line in enumerate(lines) if set(line) == {'-'}]
  assert len(rule) == 2
  rows = lines[rule[0] + 1 : rule[1]]
  assert len(rows) == len(figures['layers'])
  for row, layer in zip(rows, figures['layers']):
    assert row.startswith(layer['path'] + ' ')
    assert ' x '.join(map(str, layer['output'])) in row
  for name, key in (
    ('parameters', 'parameters'),
    ('flops', 'flops'),
    ('activation_bytes', 'bytes'),
  ):
    assert figures[name] == sum(layer[key] for layer in figures['layers'])
  assert lines[rule[1] + 1].split()[1] == f'{figures["parameters"]:,}'
  assert figures['train_step'] is None
  assert lines[-1] == 'The train step was not compiled (summary.compile=False).'


@pytest.mark.eight_devices
def test_memory_of_the_train_step(tmp_path):
  """What goes in is the state, a batch and a key; the state comes back."""
  config = _config(mesh={'data': 4, 'fsdp': 2}, summary={'compile': True})
  step = _run(config, tmp_path)['train_step']
  assert step['devices'] == 8 and step['batch_size'] == 8
  model, mesh = unet.create_model(config), mesh_lib.make_mesh(config)
  state = state_lib.abstract_train_state(
    config, model, optimizer.make_optimizer(config), mesh
  )
  shard = lambda x: (
    x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
  )
  state_bytes = sum(map(shard, jax.tree.leaves(state)))
  image_bytes = 16 * 16 * (3 + 1)  # One image and mask for each device.
  key_bytes = 8
  assert step['argument_bytes'] == state_bytes + image_bytes + key_bytes
  # All of the state is donated; the rest are the figures, and pointers.
  assert step['alias_bytes'] == state_bytes
  assert state_bytes < step['output_bytes'] < state_bytes + 1000
  assert step['total_bytes'] == (
    step['argument_bytes']
    + step['output_bytes']
    - step['alias_bytes']
    + step['temp_bytes']
  )


def test_backend_that_tells_nothing():
  figures = {
    'image': (8, 8, 1),
    'output': (8, 8, 1),
    'parameters': 1,
    'flops': 2,
    'compiler_flops': None,
    'activation_bytes': 4,
    'receptive_field': 1,
    'layers': [
      {
        'path': 'head',
        'kind': 'conv 1x1',
        'output': (8, 8, 1),
        'parameters': 1,
        'flops': 2,
        'bytes': 4,
      }
    ],
    'train_step': dict.fromkeys(summary._MEMORY)
    | {
      'backend': 'tpu',
      'devices': 2,
      'batch_size': 4,
      'flops': None,
      'total_bytes': None,
    },
  }
  lines = summary.format_summary(figures).splitlines()
  told = {line[:30].strip(): line[30:] for line in lines if len(line) > 30}
  assert told['FLOP, 3 x forward x images'] == '12'
  for name in ('arguments', 'temporaries', 'all memory'):
    assert told[name] == 'not given'


def test_validation_without_data():
  config = keras_lesson.get_config()
  checks.validate(config, 'summary')
  with pytest.raises(errors.UserError, match='needs --config.data.dir=DIR'):
    checks.validate(config)


def test_workdir_that_cannot_be_written(tmp_path):
  file = tmp_path / 'file'
  file.write_text('')
  with pytest.raises(errors.UserError, match='cannot be written .*another'):
    summary.run(_config(), str(file / 'run'))
