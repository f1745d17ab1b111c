"""The benchmark of experiments/speed, at a tiny size."""

import json
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import oxford_pets, shapes
from experiments.speed import forms
from tests import folders
from unet_jax.data import prepare
from unet_jax.models import forms as model_forms
from unet_jax.models import unet
from unet_jax.runtime import errors

pytestmark = pytest.mark.whole_runs

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
  'config',
  [shapes.get_config(), *map(oxford_pets.get_config, ('small', 'large'))],
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
  config.data.image_size = (64, 60)
  assert torch_unet.unsupported(config) == 'data.image_size=(64, 60)'
  config.model.norm = 'group'
  assert torch_unet.unsupported(config) == 'model.norm=group'


def test_benchmark_measures_steps_and_pipeline(tmp_path):
  output = tmp_path / 'speed.json'
  arguments = (
    f'--output={output} --what=step,pipeline --repeats=2 --steps=2 '
    f'--config.data.cache_dir={tmp_path} --config.data.num_train=32 '
    '--config.data.image_size=16,16 --config.data.batch_size=4 '
    '--config.model.depth=1 --config.model.base_features=4 '
    '--config.cpu.kernels=xla'
  )
  process = subprocess.run(
    [sys.executable, '-m', 'experiments.speed.benchmark', *arguments.split()],
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
  if 'PyTorch is skipped' not in process.stdout:
    assert len(step['train']) == len(step['inference']) == 3
  caches = {'cache memory', 'cache disk', 'cache none'}
  assert set(pipeline['lost_share']) == set(pipeline['alone']) == caches
  assert pipeline['prepare']['images'] == 32


@pytest.fixture
def folder(tmp_path):
  """A folder of 12 pairs, some as JPEG files, and a config that reads it."""
  pairs = {}
  for i in range(12):
    image, mask = folders.make_pair(seed=i, size=(40 + i, 48))
    if i % 2:
      image = folders.encode(image, 'JPEG')
    pairs[f'{i:02d}'] = (image, mask)
  folders.write_pairs(tmp_path / 'train', pairs)
  folders.write_pairs(tmp_path / 'test', {'0': pairs['00']})
  return folders.make_config(
    tmp_path,
    batch_size=8,
    num_workers=1,
    cache='memory',
    mask_values=((0, 1), (1, 0)),
  )


def test_data_loader_does_the_same(folder):
  pytest.importorskip('torch')
  from experiments.speed import loader, torch_loader

  root = pathlib.Path(folder.data.dir, 'train')
  images, masks = (sorted((root / k).iterdir()) for k in ('images', 'masks'))
  peer = loader._Peer(folder, list(zip(images, masks)))
  ours = prepare.prepare(folder, 'train')
  # Workers get it pickled.
  theirs = pickle.loads(pickle.dumps(peer.prepared()))
  assert len(theirs) == len(ours) == 12
  for i in range(12):
    image, mask = (tensor.numpy() for tensor in theirs[i])
    np.testing.assert_array_equal(mask, ours[i]['mask'])
    assert image.dtype == np.uint8 and image.shape == ours[i]['image'].shape
    # Pillow's filter is wider.
    assert np.corrcoef(image.ravel(), ours[i]['image'].ravel())[0, 1] > 0.9

  arrays = [root / f'{k}.npy' for k in ('image', 'mask')]
  for path, k in zip(arrays, ('image', 'mask')):
    np.save(path, np.stack([ours[i][k] for i in range(12)]))
  batches = torch_loader.make_loader(torch_loader.Arrays(arrays), 8, 0)
  batch = next(torch_loader.endless(batches))
  for tensor, k in zip(batch, ('image', 'mask')):
    expected = np.stack([ours[i][k] for i in range(8)])
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_loader_is_measured_on_one_core(folder):
  from experiments.speed import loader, step

  cores = os.sched_getaffinity(0)
  with loader._on_cores([min(cores)]):
    results = loader.measure(folder, repeats=1, steps=1)
  assert os.sched_getaffinity(0) == cores
  assert set(results) == {'on 1 core(s)'}
  stages = results['on 1 core(s)']
  caches = [f'unet_jax, cache {c}' for c in ('disk', 'memory', 'none')]
  rows = {'decode': ['unet_jax'], 'prepare': caches[:2], 'read': caches}
  if step.HAS_TORCH:
    rows['decode'].append('PyTorch')
    rows['prepare'].append('PyTorch, in each epoch')
    rows['read'] += ['PyTorch, files', 'PyTorch, arrays, 0 workers']
  assert {stage: list(table) for stage, table in stages.items()} == rows
  for stage, count in (('decode', 12), ('prepare', 12), ('read', 8)):
    for row in stages[stage].values():
      np.testing.assert_allclose(
        row['images_per_second'] * row['median'], count, rtol=1e-6
      )


@pytest.mark.parametrize(
  'section, field, value, reason',
  [
    ('data', 'source', 'shapes', 'data.source=shapes, which has no files'),
    ('data', 'resize', 'pad', 'data.resize=pad'),
    ('data', 'mask_values', (((1, 2, 3), 0),), 'colours in data.mask_values'),
    ('loss', 'weight_map', 'border', 'loss.weight_map=border'),
  ],
)
def test_what_the_data_loader_does_not_do(
  folder, section, field, value, reason
):
  from experiments.speed import loader

  folder[section][field] = value
  with pytest.raises(errors.UserError) as e:
    loader.measure(folder, repeats=1, steps=1)
  assert str(e.value) == (
    f'--what=loader has no peer for {reason}; take files of your own with '
    '--config=configs/folder.py, or --config=configs/oxford_pets.py:small'
  )


def test_batches_of_sets_of_any_size_are_measured(monkeypatch):
  from experiments.speed import sizes

  monkeypatch.setattr(sizes, '_SIZES', (1, 70))
  config = shapes.get_config()
  config.data.update(image_size=(16, 16), batch_size=4)
  config.model.update(depth=1, base_features=4)
  results = sizes.measure(config, repeats=1, steps=1)
  sets = {'stretch, memory', 'stretch, disk', 'patch, memory', 'patch, disk'}
  assert set(results) == sets
  for table in results.values():
    assert list(table) == ['step', 'batch of 1 images', 'batch of 70 images']
    assert table['step']['ratio'] == 1
    assert all(row['min'] > 0 for row in table.values())


@pytest.mark.parametrize('operation', model_forms.FORMS)
@pytest.mark.parametrize('size', [(3, 4), (2, 3, 4)], ids=str)
def test_forms_that_are_compared_compute_the_same(operation, size):
  rng = np.random.default_rng(0)
  args = [rng.normal(size=s) for s in forms.inputs(operation, size, 4)]
  first, *others = forms.candidates(operation).values()
  expected = jax.jit(first)(*args)
  assert expected.shape[-1] == 4
  for form in others:
    np.testing.assert_allclose(jax.jit(form)(*args), expected, atol=1e-5)


def test_estimates_are_summed_and_those_missing_are_named():
  program = """
  %copy.1 = f32[2] copy(%x), backend_config={"estimated_cycles":"30"}
  %pool = f32[1] reduce-window(%copy.1, %zero), window={size=2}
  ROOT %sum = f32[2] fusion(%x), backend_config={"estimated_cycles":"12"}
  """
  estimate = forms.read_estimate(program, {'bytes accessed': 3e6})
  assert estimate == (42, 3.0, ('reduce-window',))
