"""The benchmark of experiments/speed, at a tiny size."""

import json
import os
import pathlib
import pickle
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from configs import oxford_pets, shapes, volumes
from experiments.speed import forms, inputs, rounds
from tests import folders
from unet_jax.data import prepare
from unet_jax.models import forms as model_forms
from unet_jax.models import trace, unet
from unet_jax.runtime import errors

pytestmark = pytest.mark.whole_runs

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
  'config',
  [
    shapes.get_config(),
    volumes.get_config(),
    *map(oxford_pets.get_config, ('small', 'large')),
  ],
  ids=['shapes', 'volumes', 'pets-small', 'pets-large'],
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


@pytest.mark.parametrize('size', [(4, 6), (2, 4, 6)], ids=str)
def test_torch_network_at_half_size_has_blocks_of_pixels(size):
  torch = pytest.importorskip('torch')
  from experiments.speed import torch_unet

  def mean(x):
    assert x.shape == (3, 2 ** len(size), *(s // 2 for s in size))
    return x.mean(1, keepdim=True).expand_as(x)

  rng = np.random.default_rng(0)
  x = torch.tensor(rng.normal(size=(3, 1, *size)))
  expected = x
  for axis, n in enumerate(size, 2):
    pairs = expected.unflatten(axis, (n // 2, 2)).mean(axis + 1)
    expected = pairs.repeat_interleave(2, axis)
  torch.testing.assert_close(torch_unet.HalfSize(mean)(x), expected)
  torch.testing.assert_close(torch_unet.HalfSize(lambda x: x)(x), x)


@pytest.mark.slow
def test_steps_of_volumes_are_measured():
  from experiments.speed import step

  config = volumes.get_config()
  config.data.image_size = (4, 8, 4)
  config.model.update(depth=1, features=(2, 3))
  config.cpu.kernels = 'xla'
  results = step.measure(config, 1, 1, torch_compile=False)
  rows = ['unet_jax']
  if step.HAS_TORCH:
    rows += ['PyTorch, channels_last', 'PyTorch, default layout']
  for what in ('train', 'inference'):
    assert list(results[what]) == list(results[f'{what}_first_call']) == rows


def test_torch_weighs_classes_and_flips_volumes(monkeypatch):
  torch = pytest.importorskip('torch')
  from experiments.speed import torch_unet

  config = volumes.get_config()
  config.data.image_size = (4, 8, 4)
  config.augment.update(flip_horizontal=1.0, flip_vertical=1.0)
  batch = inputs.random_batch(config)
  seen = []

  def model(image):
    seen.append(image)
    return torch.linspace(0, 1, 4).view(1, 4, 1, 1, 1).expand(2, 4, 4, 8, 4)

  loss = lambda *args, **_: (
    seen.append(args[2]) or torch.zeros((), requires_grad=True)
  )
  monkeypatch.setattr(torch_unet.F, 'cross_entropy', loss)
  placed = torch_unet.to_device(batch, torch.device('cpu'))
  assert placed[0].is_contiguous(memory_format=torch.channels_last_3d)
  optimizer = types.SimpleNamespace(zero_grad=lambda: 0, step=lambda: 0)
  torch_unet.train_step(model, optimizer, placed, config)
  image, weight = seen
  expected = batch['image'][:, :, ::-1, ::-1].transpose(0, 4, 1, 2, 3)
  np.testing.assert_array_equal(image.numpy(), expected)
  assert weight.tolist() == [1, 2, 2, 4]


def test_both_clocks_are_read_and_compared(monkeypatch):
  now = {'wall': 0.0, 'processor': 0.0}
  clocks = types.SimpleNamespace(
    perf_counter=lambda: now['wall'], process_time=lambda: now['processor']
  )
  monkeypatch.setattr(rounds, 'time', clocks)

  def contender(wall, processor):
    def call(n):
      now['wall'] += wall * n
      now['processor'] += processor * n

    return lambda: rounds.per_step(call, 4)

  calls = {'a': contender(1, 2), 'b': contender(3, 3)}
  table = rounds.compare('step, s', calls, repeats=2, images=6)
  assert [row['median'] for row in table.values()] == [1, 3]
  assert [row['images_per_second'] for row in table.values()] == [6, 2]
  assert [row['ratio'] for row in table.values()] == [1, 3]
  processor = [row['processor'] for row in table.values()]
  assert [row['values'] for row in processor] == [[2, 2], [3, 3]]
  assert [row['ratio'] for row in processor] == [1, 1.5]


@pytest.mark.slow
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
      assert row['processor']['min'] > 0
  assert step['train']['unet_jax']['ratio'] == 1
  if 'PyTorch is skipped' not in process.stdout:
    assert len(step['train']) == len(step['inference']) == 3
  caches = {'cache memory', 'cache disk', 'cache none'}
  assert set(pipeline['lost_share']) == set(pipeline['alone']) == caches
  assert pipeline['prepare']['images'] == 32


@pytest.mark.slow
def test_a_process_says_how_much_memory_it_took(monkeypatch):
  """One of ours in truth; the rounds with processes that are pretended."""
  from experiments.speed import memory

  flags = '--config=configs/shapes.py --config.data.image_size=16,16'
  flags += ' --config.model.depth=1 --config.model.base_features=4'
  flags += ' --config.cpu.kernels=xla'
  # No process that imports JAX takes less, in MB.
  assert memory._peak(['1', *flags.split()], 'unet_jax') > 100
  pretended = {'unet_jax': 3.0, 'channels_last': 6.0}
  monkeypatch.setattr(
    memory, '_peak', lambda command, who, cache='': pretended.get(who, 9.0)
  )
  table = memory.measure(shapes.get_config(), [], repeats=1, steps=1)
  assert list(table)[:2] == ['unet_jax, compiles', 'unet_jax, programs kept']
  assert [row['ratio'] for row in table.values()] in ([1, 1, 2, 3], [1, 1])


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
    (
      'data',
      'mask_values',
      (((1, 2, 3), 0),),
      'colours or others in data.mask_values',
    ),
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


@pytest.mark.slow
def test_batches_of_sets_of_any_size_are_measured(monkeypatch, tmp_path):
  from experiments.speed import sizes

  monkeypatch.setattr(sizes, '_SIZES', (1, 70))
  config = shapes.get_config()
  config.cpu.kernels, config.data.cache_dir = 'xla', str(tmp_path)
  # As the pets: fewer classes than shapes have, by a table.
  config.data.update(image_size=(16, 16), batch_size=4, num_classes=3)
  config.data.update(class_names=(), mask_values=((1, 0), (2, 1), (3, 2)))
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


@pytest.mark.parametrize('native', [False, True], ids=['xla', 'native'])
@pytest.mark.parametrize('size', [(5, 6), (4, 5, 6)], ids=str)
@pytest.mark.parametrize('padding', ['same', 'valid'])
def test_layers_that_are_compared_compute_the_same(
  native, size, padding, request
):
  from experiments.speed import layers, step

  if native:
    request.getfixturevalue('native_cache')
  pad, n = int(padding == 'same'), len(size)
  y = tuple(s - 2 + 2 * pad for s in size)
  layer = layers.Layer((2, *size, 3), (*(3,) * n, 3, 4), (2, *y, 4), pad)
  to_first = {
    'value': (0, n + 1, *range(1, n + 1)),
    'input': (0, n + 1, *range(1, n + 1)),
    'kernel': (n + 1, n, *range(n)),
  }
  for direction in layers.DIRECTIONS:
    contenders = layers.calls(layer, direction, native)
    expected = set(layers.CONTENDERS)
    expected -= set() if native else {'native'}
    expected -= set() if step.HAS_TORCH else {'PyTorch'}
    assert set(contenders) == expected
    results = {name: np.asarray(call()) for name, call in contenders.items()}
    shape = dict(zip(layers.DIRECTIONS, (layer.y, layer.x, layer.kernel)))
    assert results['XLA'].shape == shape[direction]
    for name, result in results.items():
      want = results['XLA']
      if name == 'PyTorch':
        want = want.transpose(to_first[direction])
      np.testing.assert_allclose(result, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('padding', ['same', 'valid'])
def test_rates_are_those_of_the_networks_layers(padding, capsys):
  from experiments.speed import layers

  config = shapes.get_config()
  config.data.update(image_size=(32, 32), batch_size=3)
  config.model.update(
    depth=1, base_features=4, padding=padding, upsample='bilinear'
  )
  config.cpu.kernels = 'xla'
  found = layers.find(config)
  stages = ('down_0', 'bottleneck', 'up_0')
  paths = [f'{stage}/conv{i}' for stage in stages for i in (1, 2)]
  assert list(found) == paths
  assert found['down_0/conv1'].x == (3, 32, 32, 3)
  traced = trace.Trace(unet.create_model(config), (32, 32, 3)).flops()
  for path, layer in found.items():
    assert layer.flop == 3 * traced[tuple(path.split('/'))]

  rows = layers.measure(config, repeats=1, steps=1)
  names = [
    *(f'value {path}' for path in paths),
    'value total',
    *(f'input {path}' for path in paths[1:]),
    'input total',
    *(f'kernel {path}' for path in paths),
    'kernel total',
  ]
  assert list(rows) == ['product', *names]
  for direction in layers.DIRECTIONS:
    parts = [
      row['XLA'].wall
      for name, row in rows.items()
      if name.startswith(direction) and 'total' not in name
    ]
    np.testing.assert_allclose(
      rows[f'{direction} total']['XLA'].wall, sum(parts)
    )
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 1 + len(rows)
