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
from unet_jax.runtime import errors, mesh
from unet_jax.training import optimizer, state


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
  names = {'network.png', 'network.svg', 'summary.json', 'summary.txt'}
  assert {p.name for p in workdir.iterdir()} == names
  assert (workdir / 'summary.txt').read_text() == out
  metrics = json.loads((workdir / 'summary.json').read_text())
  # Two 3x3 convolutions of 2, two of 4, back to 2 and to 1 channel.
  count = sum([20, 38, 76, 148, 2 * 4 * 4 + 2, 74, 38, 3])
  assert metrics['parameters'] == count
  assert f'parameters                    {431}\n' in out
  step = metrics['train_step']
  assert step['backend'] == 'cpu' and step['devices'] == 1
  assert step['temp_bytes'] > 0 and step['flops'] > metrics['flops']
  with Image.open(workdir / 'network.png') as image:
    image.load()


def test_totals_are_sums_of_the_printed_rows(tmp_path, capsys):
  metrics = _run(_config(), tmp_path)
  lines = capsys.readouterr().out.splitlines()
  rule = [i for i, line in enumerate(lines) if set(line) == {'-'}]
  assert len(rule) == 2
  rows = lines[rule[0] + 1 : rule[1]]
  assert len(rows) == len(metrics['layers'])
  for row, layer in zip(rows, metrics['layers']):
    assert row.startswith(layer['path'] + ' ')
    assert ' x '.join(map(str, layer['output'])) in row
  for key in ('parameters', 'flops', 'bytes'):
    name = 'activation_bytes' if key == 'bytes' else key
    assert metrics[name] == sum(layer[key] for layer in metrics['layers'])
  assert lines[rule[1] + 1].split()[1] == f'{metrics["parameters"]:,}'
  assert metrics['train_step'] is None
  assert lines[-1] == 'The train step was not compiled (summary.compile=False).'


@pytest.mark.eight_devices
def test_memory_of_the_train_step(tmp_path):
  """What goes in is the state, a batch and a key; the state comes back."""
  config = _config(mesh={'data': 4, 'fsdp': 2}, summary={'compile': True})
  step = _run(config, tmp_path)['train_step']
  assert step['devices'] == 8 and step['batch_size'] == 8
  model, tx = unet.create_model(config), optimizer.make_optimizer(config)
  arrays = state.abstract_train_state(config, model, tx, mesh.make_mesh(config))
  size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  state_bytes = sum(map(size, jax.tree.leaves(arrays)))
  image_bytes = 16 * 16 * (3 + 1)  # One image and mask for each device.
  key_bytes = 8
  assert step['argument_bytes'] == state_bytes + image_bytes + key_bytes
  # All of the state is donated; the rest are the metrics, and pointers.
  assert step['alias_bytes'] == state_bytes
  assert state_bytes < step['output_bytes'] < state_bytes + 1000
  of = lambda name: step[f'{name}_bytes']
  total = of('argument') + of('output') - of('alias') + of('temp')
  assert of('total') == total


def test_backend_that_reports_nothing(tmp_path):
  metrics = {**_run(_config(), tmp_path), 'flops': 2}
  metrics['train_step'] = {
    **dict.fromkeys((*summary._MEMORY, 'flops', 'total_bytes')),
    **{'backend': 'tpu', 'devices': 2, 'batch_size': 4},
  }
  lines = summary.format_summary(metrics).splitlines()
  shown = {line[:30].strip(): line[30:] for line in lines if len(line) > 30}
  assert shown['FLOP, 3 x forward x images'] == '12'
  for name in ('arguments', 'temporaries', 'all memory'):
    assert shown[name] == 'not given'


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
