"""Volumes from the drawing to the metrics, against NumPy and themselves."""

import json
import shutil

import jax
import numpy as np
import pytest
from scipy import ndimage

from configs import volumes
from tests import program, tiny
from unet_jax.config import checks
from unet_jax.data import augment, pipeline, prepare, shapes
from unet_jax.evaluation import counting
from unet_jax.models import unet
from unet_jax.prediction import step as step_lib
from unet_jax.reports import sheets
from unet_jax.runtime import errors
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import optimizer, steps

_SIZE = (8, 16, 12)
_MANY = [shapes.draw((0, 0, i), (24, 32, 32)) for i in range(20)]


def _config(**fields):
  """configs/volumes.py at a tiny size, in memory."""
  config = volumes.get_config()
  config.data.update(image_size=_SIZE, cache='memory', batch_size=8)
  config.data.update(num_train=16, num_eval=11)
  config.model.update(depth=1, base_features=4, features=())
  config.optimizer.update(name='sgd', learning_rate=0.1)
  config.optimizer.update(warmup_steps=0, schedule='constant')
  config.log.num_examples = 2
  config.cpu.kernels = 'xla'  # To compile native ones takes seconds.
  config.update_from_flattened_dict(fields)
  checks.validate(config)
  return config


def _without_flips(**fields):
  flips = ('augment.flip_horizontal', 'augment.flip_vertical')
  return _config(**dict.fromkeys(flips, 0.0) | fields)


def _setup(config):
  mesh, model = mesh_lib.make_mesh(config), unet.create_model(config)
  tx = optimizer.make_optimizer(config)
  state = tiny.make_state(config, model, tx, mesh)
  step = steps.make_train_step(config, model, tx, mesh, state)
  return mesh, model, state, step


def test_drawn_volumes_are_a_function_of_the_seed():
  for i in (7, 3):
    image, mask = shapes.draw((0, 0, i), (24, 32, 32))
    np.testing.assert_array_equal(image, _MANY[i][0])
    np.testing.assert_array_equal(mask, _MANY[i][1])
  other, _ = shapes.draw((1, 0, 3), (24, 32, 32))
  assert np.mean(other != _MANY[3][0]) > 0.9
  image, mask = shapes.draw((0, 0, 0), _SIZE)
  assert image.shape == (*_SIZE, 3) and image.dtype == np.uint8
  assert mask.shape == _SIZE and mask.dtype == np.uint8


def test_drawn_volumes_have_every_class_and_a_rim_where_they_meet():
  masks = np.stack([mask for _, mask in _MANY])
  assert set(np.unique(masks)) == {0, 1, 2, 3, 255}
  for kind in range(4):
    assert np.mean(masks == kind) > 0.01, kind
  for axis in (1, 2, 3):
    a, b = np.delete(masks, -1, axis), np.delete(masks, 0, axis)
    assert not np.any((a != b) & (a != 255) & (b != 255))


def test_outlines_of_ball_shell_and_rod():
  offsets = np.mgrid[-40:41, -40:41, -40:41].astype(float)
  direction = np.array([2, -1, 2]) / 3
  ball, shell, rod = (
    shapes._signed_distance(kind, offsets, 20.0, direction) < 0
    for kind in (1, 2, 3)
  )
  volume = 4 / 3 * np.pi * 20**3
  assert ball.sum() == pytest.approx(volume, rel=0.01)
  # A ball of half the radius is missing, and closed in.
  assert shell.sum() == pytest.approx(volume * 7 / 8, rel=0.01)
  np.testing.assert_array_equal(ndimage.binary_fill_holes(shell), ball)
  assert rod.sum() == pytest.approx(np.pi * 7**2 * 56, rel=0.02)
  places = np.argwhere(rod) - 40.0
  _, vectors = np.linalg.eigh(places.T @ places)
  assert abs(vectors[:, -1] @ direction) > 0.999


@pytest.mark.parametrize(
  'field, axis', [('flip_horizontal', 3), ('flip_vertical', 2)]
)
def test_flips_move_volume_and_mask_together(field, axis):
  config = _without_flips(**{f'augment.{field}': 0.5})
  batch = tiny.make_batch(config)
  flipped = augment.make_augmentation(config)(jax.random.key(3), batch)
  chosen = []
  for i in range(len(batch['mask'])):
    turned = np.any(flipped['mask'][i] != batch['mask'][i])
    chosen.append(turned)
    for name in ('image', 'mask'):
      expected = batch[name][i]
      expected = np.flip(expected, axis - 1) if turned else expected
      np.testing.assert_array_equal(flipped[name][i], expected)
  assert any(chosen) and not all(chosen)


def test_changes_of_values_take_volumes():
  """As of an image whose rows are those of all planes."""
  config = _without_flips()
  names = ('brightness', 'contrast', 'saturation', 'hue', 'gamma', 'noise')
  for name in names:
    config.augment[name].probability = 1.0
  batch = tiny.make_batch(config)
  d, h, w = _SIZE
  flat = {k: v.reshape(-1, d * h, w, *v.shape[4:]) for k, v in batch.items()}
  for transform in augment.make_augmentation(config).transforms:
    key = jax.random.key(1)
    actual = transform(key, batch)
    assert np.any(actual['image'] != batch['image'])
    if transform.change is augment.noise:  # Drawn in the shape of the batch.
      spread = np.asarray(actual['image'] - batch['image'], float).std()
      assert 2 < spread < 15
      continue
    expected = transform(key, flat)['image'].reshape(batch['image'].shape)
    np.testing.assert_allclose(actual['image'], expected, atol=2e-3)


@pytest.mark.slow
@pytest.mark.eight_devices
def test_loss_falls_and_sharding_changes_nothing():
  """Deep supervision and Dice as well."""
  fields = {'model.depth': 2, 'model.convs': 1, 'model.stem': 'none'}
  fields |= {'model.deep_supervision': (0.5,), 'loss.weights.dice': 1.0}
  fields['optimizer.learning_rate'] = 0.3
  histories = []
  for parts in ({'mesh.data': 8}, {'mesh.data': 4, 'mesh.fsdp': 2}):
    config = _without_flips(**fields, **parts)
    mesh, _, state, step = _setup(config)
    batch = mesh_lib.to_devices(tiny.make_batch(config), mesh)
    history = []
    for _ in range(6):
      state, values = step(state, batch, jax.random.key(0))
      history.append(float(values['loss']))
    histories.append(history)
  assert histories[0][-1] < 0.9 * histories[0][0]
  np.testing.assert_allclose(*histories, rtol=1e-4)


def test_evaluation_counts_as_numpy_does(tmp_path):
  config = _config()
  dataset = prepare.prepare(config, 'test')
  assert dataset.stats.sizes.tolist() == [list(_SIZE)] * 11
  mesh, model, state, _ = _setup(config)
  variables = state.variables('raw')
  evaluator = counting.Evaluator(config, model, dataset, mesh)
  result, _, shown = evaluator.run(variables)
  image, mask = (
    np.stack([dataset[i][k] for i in range(11)]) for k in ('image', 'mask')
  )
  scale = {'mean': config.data.mean, 'std': config.data.std}
  logits = step_lib.predict_step(variables, image, model=model, **scale)
  predicted = np.argmax(logits, -1)
  valid = mask != 255
  ious = []
  for c, name in enumerate(config.data.class_names):
    both = (valid & (mask == c) & (predicted == c)).sum()
    either = (valid & ((mask == c) | (predicted == c))).sum()
    ious.append(both / either)
    assert result[f'eval/dataset_iou/{name}'] == pytest.approx(ious[-1])
  assert result['eval/dataset_miou'] == pytest.approx(np.mean(ious))
  accuracy = (mask == predicted)[valid].mean()
  assert result['eval/pixel_accuracy'] == pytest.approx(accuracy)
  counts = [np.sum(dataset.stats.class_pixels[:, c]) for c in range(5)]
  assert counts == [(mask == c).sum() for c in (0, 1, 2, 3, 255)]
  # The middle slice of each is drawn.
  assert shown[0]['image'].shape == (*_SIZE, 3)
  middle = [{k: v[_SIZE[0] // 2] for k, v in e.items()} for e in shown]
  pictures = []
  for examples in (shown, middle):
    path = tmp_path / f'{len(pictures)}.png'
    sheets.write_predictions(str(path), examples, config.data.class_names)
    pictures.append(path.read_bytes())
  assert pictures[0] == pictures[1]


def test_batches_go_on_where_they_were():
  config = _config()
  mesh = mesh_lib.make_mesh(config)
  dataset = prepare.prepare(config, 'train')
  batches = pipeline.train_batches(dataset, config, mesh)
  next(batches)
  position = batches.get_state()
  expected = next(batches)
  again = pipeline.train_batches(dataset, config, mesh)
  again.set_state(position)
  np.testing.assert_array_equal(next(again)['image'], expected['image'])
  assert expected['image'].shape == (8, *_SIZE, 3)
  batches.close()
  again.close()


@pytest.mark.whole_runs
def test_run_of_main_is_continued(tmp_path):
  command = [
    '--config=configs/volumes.py',
    f'--config.data.cache_dir={tmp_path}/cache',
    '--config.data.image_size=8,16,12',
    '--config.data.num_train=24',
    '--config.data.num_eval=5',
    '--config.model.depth=1',
    '--config.model.features=4,8',
    '--config.train.num_steps=8',
    '--config.checkpoint.every=4',
    '--config.optimizer.schedule=constant',
    '--config.log.every=1',
    '--config.log.tensorboard=False',
  ]

  def run(workdir):
    program.run(*command, f'--workdir={workdir}')
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return {
      line['step']: (line['train/loss'], line.get('eval/loss'))
      for line in map(json.loads, lines)
      if 'train/loss' in line
    }

  whole = run(tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'parts')
  # As if it had been killed after step 4.
  shutil.rmtree(tmp_path / 'parts/checkpoints/00000008')
  (tmp_path / 'parts/eval.json').unlink()
  assert run(tmp_path / 'parts') == whole and len(whole) == 8
  assert (tmp_path / 'parts/figures/predictions.png').is_file()
  result = json.loads((tmp_path / 'parts/eval.json').read_text())
  assert result['step'] == 8 and result['num_examples'] == 5


def test_what_is_for_images_is_refused():
  allowed = {
    ('data.source', 'tfds'): 'shapes',
    ('data.source', 'folder'): 'shapes',
    ('data.resize', 'patch'): 'stretch',
    ('data.resize', 'pad'): 'stretch',
    ('augment.rotate_90', 0.5): '0.0',
    ('loss.weight_map', 'border'): 'none',
    ('loss.balance', 'image'): 'none',
  }
  for name in ('affine', 'elastic', 'crop', 'blur', 'cutout'):
    allowed[f'augment.{name}.probability', 0.5] = '0.0'
  for (field, value), only in allowed.items():
    with pytest.raises(errors.UserError) as e:
      _config(**{field: value})
    assert str(e.value) == (
      f'--config.{field}={value} is for images: volumes (model.spatial_dims=3) '
      f'take {only} only'
    )


@pytest.mark.parametrize(
  'field, value, message',
  [
    (
      *('data.image_size', (16, 16)),
      '(16, 16): takes 3 values (depth, height, width of a volume), not 2',
    ),
    (
      *('model.spatial_dims', 2),
      '(8, 16, 12): takes 2 values (height, width), not 3',
    ),
    (
      *('data.image_size', (8, 0, 16)),
      '(8, 0, 16): takes three numbers of pixels, at least 1 each',
    ),
  ],
)
def test_sizes_that_are_no_volumes_are_refused(field, value, message):
  with pytest.raises(errors.UserError) as e:
    _config(**{field: value})
  assert str(e.value) == f'--config.data.image_size={message}'


def test_inspection_of_volumes_is_refused():
  with pytest.raises(errors.UserError) as e:
    checks.validate(volumes.get_config(), 'inspect')
  assert str(e.value) == (
    '--mode=inspect looks at images, not at volumes (model.spatial_dims=3); a '
    'training run checks what it can (data.check)'
  )
