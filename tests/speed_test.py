"""The benchmark of experiments/speed, at a tiny size."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import oxford_pets, shapes
from unet_jax.models import unet

_ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
  'config',
  [
    shapes.get_config(),
    oxford_pets.get_config('small'),
    oxford_pets.get_config('large'),
  ],
  ids=['shapes', 'pets-small', 'pets-large'],
)
def test_torch_network_is_the_same_size(config):
  pytest.importorskip('torch')
  from experiments.speed import torch_unet

  assert torch_unet.unsupported(config) is None
  theirs = torch_unet.create_network(config).parameters()
  image = jax.ShapeDtypeStruct((1, *config.data.image_size, 3), np.float32)
  variables = jax.eval_shape(
    lambda x: unet.create_model(config).init(jax.random.key(0), x, train=False),
    image,
  )
  ours = jax.tree.leaves(variables['params'])
  # Kernel by kernel: transposed, but of the same sizes.
  assert sorted(p.numel() for p in theirs) == sorted(x.size for x in ours)


def test_each_difference_of_the_torch_network_is_named():
  pytest.importorskip('torch')
  from experiments.speed import torch_unet

  config = shapes.get_config()
  config.model.norm = 'group'
  assert torch_unet.unsupported(config) == 'model.norm=group'
  config = shapes.get_config()
  config.data.image_size = (64, 60)
  assert torch_unet.unsupported(config) == 'data.image_size=(64, 60)'


def test_benchmark_measures_steps_and_pipeline(tmp_path):
  output = tmp_path / 'speed.json'
  process = subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.speed.benchmark',
      '--what=step,pipeline',
      '--repeats=2',
      '--steps=2',
      f'--output={output}',
      f'--config.data.cache_dir={tmp_path}',
      '--config.data.num_train=32',
      '--config.data.image_size=16,16',
      '--config.data.batch_size=4',
      '--config.model.depth=1',
      '--config.model.base_features=4',
    ],
    cwd=_ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  results = json.loads(output.read_text())['results']
  step, pipeline = results['step'], results['pipeline']
  for table in (step['train'], step['inference'], pipeline['training']):
    for row in table.values():
      assert len(row['values']) == 2
      assert 0 < row['min'] <= row['median'] <= row['max']
      np.testing.assert_allclose(
        row['images_per_second'] * row['median'], 4, rtol=1e-6
      )
  assert step['train']['unet_jax']['ratio'] == 1
  if 'PyTorch is left out' not in process.stdout:
    assert len(step['train']) == len(step['inference']) == 3
  caches = {'cache memory', 'cache disk', 'cache none'}
  assert set(pipeline['lost_share']) == set(pipeline['alone']) == caches
  assert pipeline['prepare']['images'] == 32
