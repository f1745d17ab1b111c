"""Tests of unet_jax/data/augment.py: against skimage, SciPy, and itself."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage import color

from tests import tiny
from tests.data import helpers
from tests.data.augmenting import random_batch, run
from unet_jax.config import checks, default, fields
from unet_jax.data import augment
from unet_jax.data import augment_geometry as geometry
from unet_jax.models import unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import steps


def _config(probability=1.0, **values):
  """All that there is, with a probability; then {field: value}."""
  config = default.get_config()
  for name in fields.flatten(config):
    if name.startswith('augment.') and name.endswith(
      ('.probability', 'horizontal', 'vertical', '_90')
    ):
      config.update_from_flattened_dict({name: probability})
  config.update_from_flattened_dict(
    {f'augment.{name}': value for name, value in values.items()}
  )
  checks.validate(config)
  return config


def test_both_flips_are_independent_and_add_no_value():
  """All four orientations occur, in image and mask alike, also under jit."""
  config = helpers.make_config(**{'augment.flip_vertical': 0.5})
  transform = augment.make_augmentation(config)
  # Images hold the place of each pixel, and the example.
  rows, columns = np.mgrid[:5, :7]
  image = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)
  image = np.repeat(image[None], 64, 0)
  image[..., 2] = np.arange(64)[:, None, None]
  mask = image[..., 0] * np.uint8(7) + image[..., 1]
  mask[:, 0, 0] = 255
  batch = {'image': image, 'mask': mask}
  got = run(transform, batch)
  eager = transform(jax.random.key(0), batch)
  for name in batch:
    assert eager[name].dtype == got[name].dtype == np.uint8
    assert_array_equal(eager[name], got[name])
  corners = set()
  for i in range(64):
    assert sorted(got['mask'][i].flat) == sorted(mask[i].flat)
    corners.add(tuple(got['image'][i, 0, 0, :2].tolist()))
    row, column = np.argwhere(got['mask'][i] == 255)[0]
    assert got['image'][i, row, column].tolist() == [0, 0, i]
  assert corners == {(0, 0), (0, 6), (4, 0), (4, 6)}


_PHOTOMETRIC = 'brightness contrast saturation hue gamma blur noise cutout'
_GEOMETRY_ONLY = {f'{name}.probability': 0.0 for name in _PHOTOMETRIC.split()}


@pytest.mark.parametrize(
  'interpolation,border', [('bilinear', 'mirror'), ('bicubic', 'ignore')]
)
def test_image_mask_and_weights_move_together(interpolation, border):
  """Coordinates as an image: they say which mask must have come with them."""
  size = 16
  rows, columns = np.mgrid[:size, :size]
  image = np.stack([rows, columns, 0 * rows], -1) * 15
  batch = {
    'image': np.repeat(image[None], 32, 0).astype(np.uint8),
    'mask': np.repeat((rows * size + columns)[None], 32, 0).astype(np.uint8),
  }
  # 255 would be ignored.
  batch['mask'][:, -1, -1] = 0
  batch['weight_map'] = batch['mask'].astype(np.float16)
  config = _config(
    0.7,
    interpolation=interpolation,
    border=border,
    **{'elastic.sigma': (1.5, 1.5), **_GEOMETRY_ONLY},
  )
  transform = augment.make_augmentation(config)
  got = run(transform, batch, 1)
  place = got['image'][..., :2] / 15
  # Where the image is mirrored, a cubic bends the coordinates, and between two
  # pixels the nearest is undecided.
  margin = 1.0 if interpolation == 'bicubic' else 0.0
  clear = np.all((place >= margin) & (place <= size - 1 - margin), -1)
  clear &= np.all(np.abs(place - np.floor(place) - 0.5) > 1e-3, -1)
  clear &= got['mask'] != 255
  assert clear.mean() > 0.5
  nearest = np.rint(place).astype(int)
  expected = batch['mask'][0][nearest[..., 0], nearest[..., 1]]
  assert_array_equal(got['mask'][clear], expected[clear])
  kept = got['mask'] != 255
  assert_array_equal(got['weight_map'][kept], got['mask'][kept])
  assert np.any(~kept) == (border == 'ignore')
  # Nearly all were changed, and each in its own way.
  assert len({m.tobytes() for m in got['mask']}) >= 31


_CONFIGS = {
  'keep': {},
  'ignore': {
    'interpolation': 'bicubic',
    'border': 'ignore',
    'cutout.mask': 'ignore',
    'noise.range': (0.0, 100.0),
  },
}


@functools.cache
def _compiled(name):
  """All transforms of one of _CONFIGS, each with a probability of 0.2."""
  return jax.jit(augment.make_augmentation(_config(0.2, **_CONFIGS[name])))


@pytest.mark.parametrize('name', _CONFIGS)
def test_masks_gain_no_value_and_what_was_not_drawn_stays(name):
  """Over random masks, of values that differ from image to image."""
  rng = np.random.default_rng(5)
  untouched = ignored = 0
  for seed in range(12):
    batch = random_batch(rng, 16, 16, 16)
    for i in range(16):
      values = rng.integers(0, 255, 3)
      batch['mask'][i] = rng.choice(values, (16, 16))
    got = jax.tree.map(np.asarray, _compiled(name)(jax.random.key(seed), batch))
    assert got['image'].dtype == np.float32 and got['mask'].dtype == np.uint8
    assert got['weight_map'].dtype == np.float16
    assert got['image'].shape == batch['image'].shape
    assert 0 <= got['image'].min() and got['image'].max() <= 255
    assert np.all(np.isfinite(got['image']))
    for i in range(16):
      gained = set(np.unique(got['mask'][i])) - set(np.unique(batch['mask'][i]))
      assert gained <= ({255} if name == 'ignore' else set())
      ignored += 255 in gained
      untouched += all(np.array_equal(got[k][i], batch[k][i]) for k in batch)
  # Bit by bit: 14 draws of 0.8 leave 4.4 % of 192 images, 8.4, alone.
  assert 3 <= untouched <= 20
  assert (ignored > 0) == (name == 'ignore')


def test_the_key_decides_everything():
  batch = random_batch(np.random.default_rng(11), 16, 16, 16)
  run = lambda key: jax.tree.map(
    np.asarray, _compiled('ignore')(jax.random.key(key), batch)
  )
  first, again, other = run(0), run(0), run(1)
  for name in batch:
    assert_array_equal(first[name], again[name])
  differ = [np.any(a != b) for a, b in zip(first['image'], other['image'])]
  assert sum(differ) >= 14


def _sharded(mesh, batch):
  """Returns the shardings of a batch, and the batch on the devices."""
  made = mesh_lib.make_mesh(
    helpers.make_config(**{f'mesh.{axis}': n for axis, n in mesh.items()})
  )
  shardings = {
    name: mesh_lib.batch_sharding(made)['mask' if x.ndim == 3 else 'image']
    for name, x in batch.items()
  }
  return shardings, jax.device_put(batch, shardings)


@pytest.mark.eight_devices
def test_sharded_equals_unsharded():
  batch = random_batch(np.random.default_rng(12), 16, 16, 16)
  _, sent = _sharded({'data': 2, 'fsdp': 2, 'spatial': 2}, batch)
  assert len(sent['image'].addressable_shards) == 8
  key = jax.random.key(2)
  # Compiled once more, for the sharded batch.
  got, expected = (_compiled('ignore')(key, x) for x in (sent, batch))
  assert_allclose(got['image'], expected['image'], atol=5e-2)
  for name in ('mask', 'weight_map'):
    # A place between two pixels may be rounded otherwise.
    assert np.mean(got[name] != expected[name]) < 2e-3


@pytest.mark.eight_devices
def test_devices_look_up_in_their_own_images():
  batch = random_batch(np.random.default_rng(12), 16, 16, 16)
  shardings, sent = _sharded({'data': 8}, batch)
  transform = augment.make_augmentation(_config(**_GEOMETRY_ONLY))
  compiled = jax.jit(transform, out_shardings=shardings)
  text = compiled.lower(jax.random.key(0), sent).compile().as_text()
  assert 'gather(' in text
  for word in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
    assert word not in text


def _changed(image, functions, amounts):
  """{name: image changed by each of the amounts}, [amounts, H, W, C]."""
  amounts = np.asarray(amounts, np.float32).reshape(-1, 1, 1, 1)
  image = np.repeat(image[None].astype(np.float32), len(amounts), 0)
  call = jax.jit(lambda x, a: {n: f(x, a, None) for n, f in functions.items()})
  return jax.tree.map(np.asarray, call(image, amounts))


_LUMA = np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize('channels', [1, 3])
def test_brightness_contrast_saturation_and_gamma(channels):
  shape = (5, 6, channels)
  x = np.random.default_rng(7).integers(0, 256, shape).astype(np.float64)
  grey = (x @ _LUMA)[..., None] if channels == 3 else x
  mean = grey.mean()
  amounts = (0.0, 0.6, 1.0, 1.7)
  formulas = {
    'brightness': lambda a: a * x,
    'contrast': lambda a: mean + a * (x - mean),
    'saturation': lambda a: grey + a * (x - grey),
    'gamma': lambda a: 255 * (x / 255) ** a,
  }
  functions = {name: getattr(augment, name) for name in formulas}
  for name, got in _changed(x, functions, amounts).items():
    expected = np.stack([formulas[name](amount) for amount in amounts])
    assert_allclose(got, expected, atol=2e-3)


def test_hue_is_that_of_skimage():
  rng = np.random.default_rng(8)
  image = rng.integers(0, 256, (11, 27, 3))
  # Greys, pure colours, and channels that are equal.
  levels = np.array([0, 128, 255])
  image[0] = np.stack(np.meshgrid(*[levels] * 3), -1).reshape(27, 3)
  amounts = (-170.0, -18.0, 0.0, 60.0, 100.0)
  got = _changed(image, {'hue': augment.hue}, amounts)['hue']
  for i, degrees in enumerate(amounts):
    hsv = color.rgb2hsv(image / 255)
    hsv[..., 0] = (hsv[..., 0] + degrees / 360) % 1
    assert_allclose(got[i], 255 * color.hsv2rgb(hsv), atol=2e-3)


# The second is wider than the image.
@pytest.mark.parametrize('radius,shape', [(4, (11, 7, 3)), (6, (3, 5, 1))])
def test_blur_is_that_of_scipy(radius, shape):
  image = np.random.default_rng(9).integers(0, 256, shape)
  # scipy's kernel of sigma 0 is a division by zero.
  amounts = (1e-3, 0.6, 2.0)
  blur = {'blur': augment.Blur(radius)}
  got = _changed(image, blur, (0.0, *amounts))['blur']
  assert_array_equal(got[0], image)
  for i, sigma in enumerate(amounts):
    expected = ndimage.gaussian_filter(
      image.astype(float),
      (sigma, sigma, 0),
      mode='mirror',
      radius=(radius, radius, 0),
    )
    assert_allclose(got[i + 1], expected, atol=1e-3)


@pytest.mark.parametrize(
  'change', [augment.contrast, augment.Blur(3)], ids=['contrast', 'blur']
)
def test_sums_without_ignored_pixels(change):
  """What they hold changes nothing elsewhere; other pixels count as ever."""
  rng = np.random.default_rng(3)
  image = rng.integers(0, 256, (3, 16, 12, 3), np.uint8)
  mask = np.zeros((3, 16, 12), np.uint8)
  mask[0, :, 5:9] = 255
  mask[1] = 255
  other = np.where(mask[..., None] == 255, 255 - image, image)
  transform = augment.Photometric(change, 1.0, (1.5, 1.5), skips_ignored=True)
  got, of_other = (
    run(transform, {'image': i, 'mask': mask})['image'] for i in (image, other)
  )
  assert_allclose(got[mask == 0], of_other[mask == 0], atol=1e-3)
  assert np.isfinite(got).all()
  as_before = dataclasses.replace(transform, skips_ignored=False)
  before = run(as_before, {'image': image, 'mask': mask})['image']
  assert_allclose(got[2], before[2], atol=1e-3)
  assert np.abs(got[0, :, :5] - before[0, :, :5]).max() > 1
  if change is augment.contrast:
    valid = image[0][mask[0] == 0].astype(float)
    mean = (valid @ _LUMA).mean()
    expected = (mean + 1.5 * (valid - mean)).clip(0, 255)
    assert_allclose(got[0][mask[0] == 0], expected, atol=1e-2)
  else:
    flat = np.full((1, 16, 12, 3), 90, np.uint8)
    flat[0, :, 5:9] = 7
    blurred = run(transform, {'image': flat, 'mask': mask[:1]})['image']
    assert_allclose(blurred[mask[:1] == 0], 90, atol=1e-3)


def test_ignored_pixels_are_skipped_where_some_are_no_data():
  config = helpers.make_config(
    **{'augment.contrast.probability': 0.5, 'augment.blur.probability': 0.5}
  )
  for nodata in ((), (0,)):
    config.data.nodata = nodata
    changes = augment.make_augmentation(config).transforms[1:]
    assert [t.skips_ignored for t in changes] == [bool(nodata)] * 2


def test_noise_is_gaussian_and_independent():
  image = np.full((4, 40, 40, 3), 128, np.uint8)
  photometric = augment.Photometric(augment.noise, 1.0, (10.0, 10.0))
  noise, again = (
    run(photometric, {'image': image, 'mask': image[..., 0]}, key)['image']
    - 128
    for key in (0, 1)
  )
  assert_allclose(noise.std((1, 2, 3)), 10, rtol=0.05)
  assert abs(noise.mean()) < 4 * 10 / noise.size**0.5
  assert abs(np.mean(np.abs(noise) < 10) - 0.6827) < 0.015
  for shifted in (
    noise[:, 1:] * noise[:, :-1],
    noise[:, :, 1:] * noise[:, :, :-1],
    noise[..., 1:] * noise[..., :-1],
    noise[1:] * noise[:-1],
  ):
    assert abs(shifted.mean()) < 4 * 100 / shifted.size**0.5
  assert abs(np.corrcoef(noise.flat, again.flat)[0, 1]) < 0.02


def test_probability_and_amounts_of_a_photometric_transform():
  image = np.full((4000, 1, 1, 1), 100, np.uint8)
  batch = {'image': image, 'mask': image[..., 0]}
  photometric = augment.Photometric(augment.brightness, 0.3, (0.5, 3.0))
  log = dataclasses.replace(photometric, log=True)
  got = run(lambda key, b: (photometric(key, b), log(key, b)), batch)
  got, got_log = (b['image'].ravel() / 100 for b in got)
  drawn = got != 1
  assert abs(drawn.mean() - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
  # 300 is cut off.
  assert 0.5 <= got.min() < 0.51 and got.max() == 2.55
  assert_allclose(np.mean(got[drawn] == 2.55), 0.45 / 2.5, atol=0.05)
  below = got[drawn & (got < 2.5)]
  counts = np.histogram(below, 4, (0.5, 2.5))[0] / len(below)
  assert_allclose(counts, 0.25, atol=0.06)
  # Half of them are below the geometric mean.
  middle = (0.5 * 3) ** 0.5
  share = np.mean(got_log[got_log != 1] < middle)
  assert_allclose(share, 0.5, atol=0.06)


@pytest.mark.parametrize('kind', ['keep', 'ignore'])
def test_cutout_is_a_square_about_any_pixel(kind):
  height, width = 10, 15
  batch = random_batch(np.random.default_rng(10), 600, height, width, values=4)
  fill = (1.5, 2.5, 3.5)
  cutout = augment.Cutout(0.8, (0.5, 0.5), fill, kind)
  got = run(cutout, batch)
  covered = np.all(got['image'] == fill, -1)
  drawn = np.any(covered, (1, 2))
  assert abs(drawn.mean() - 0.8) < 4 * (0.8 * 0.2 / 600) ** 0.5
  assert_array_equal(got['image'][~covered], batch['image'][~covered])
  ignored = covered & (kind == 'ignore')
  expected = np.where(ignored, 255, batch['mask'])
  assert_array_equal(got['mask'], expected)
  centres = set()
  for square in covered[drawn]:
    rows, columns = np.flatnonzero(square.any(1)), np.flatnonzero(square.any(0))
    for line in (rows, columns):
      assert 3 <= len(line) <= 5 and np.all(np.diff(line) == 1)
    assert square.sum() == len(rows) * len(columns)
    if len(rows) == len(columns) == 5:  # Not cut off at the border.
      centres.add((rows[2], columns[2]))
  assert len(centres) >= 60  # Of 6 * 11.
  # A whole square half as high as the image, for its shorter edge of 10.
  assert covered.sum((1, 2)).max() == 25


def test_off_compiles_to_the_step_that_never_had_it(monkeypatch):
  config = tiny.make_config(
    model={'depth': 0}, augment={'flip_horizontal': 0.0}
  )
  model = unet.create_model(config)
  optimizer = optimizer_lib.make_optimizer(config)
  mesh = mesh_lib.make_mesh(config)
  state = tiny.make_state(config, model, optimizer, mesh)
  batch = tiny.make_batch(config)

  def lowered():
    step = steps.make_train_step(config, model, optimizer, mesh, state)
    return step.lower(state, batch, jax.random.key(0)).as_text()

  off = lowered()
  config.augment.blur.probability = 1e-3
  assert lowered() != off
  monkeypatch.setattr(
    augment, 'make_augmentation', lambda config: lambda key, batch: batch
  )
  assert lowered() == off


def test_make_augmentation():
  choices = fields.CHOICES['augment.interpolation']
  assert set(geometry.INTERPOLATIONS) == set(choices)

  def transforms(**values):
    values = {f'augment.{name}': value for name, value in values.items()}
    return augment.make_augmentation(
      helpers.make_config(mean=(0.2, 0.4, 0.6), **values)
    ).transforms

  assert transforms() == (geometry.Flip(axis=2, probability=0.5),)
  moves = {'flip_horizontal': 0.25, 'flip_vertical': 0.75, 'rotate_90': 0.4}
  flips = (
    geometry.Flip(axis=2, probability=0.25),
    geometry.Flip(axis=1, probability=0.75),
    geometry.Turn(0.4),
  )
  assert transforms(**moves) == flips
  crop = geometry.Crop(0.1, (0.25, 1.0), (0.75, 1.3333))
  assert transforms(**moves, **{'crop.probability': 0.1}) == (
    geometry.Resample((*flips, crop), None, 'bilinear', 'mirror'),
  )
  config = _config(0.3, **{'blur.range': (0.1, 2.1), 'elastic.grid': 4})
  resample, *others = augment.make_augmentation(config).transforms
  affine = geometry.Affine(
    0.3, (-15.0, 15.0), (0.7, 1.4), (-10.0, 10.0), (-0.1, 0.1)
  )
  assert resample.maps[3:] == (
    affine,
    dataclasses.replace(crop, probability=0.3),
  )
  assert resample.elastic == geometry.Elastic(0.3, 4, (10.0, 10.0))
  assert others == [
    augment.Photometric(augment.brightness, 0.3, (0.75, 1.25)),
    augment.Photometric(augment.contrast, 0.3, (0.75, 1.25)),
    augment.Photometric(augment.saturation, 0.3, (0.6, 1.4)),
    augment.Photometric(augment.hue, 0.3, (-18.0, 18.0)),
    augment.Photometric(augment.gamma, 0.3, (0.7, 1.5), log=True),
    augment.Photometric(augment.Blur(7), 0.3, (0.1, 2.1)),
    augment.Photometric(augment.noise, 0.3, (0.0, 15.0)),
    augment.Cutout(0.3, (0.1, 0.5), (127.5,) * 3, 'keep'),
  ]
  off = {'flip_horizontal': 0.0, 'cutout.probability': 0.0}
  (cutout,) = transforms(**{**off, 'cutout.probability': 1.0})
  assert_allclose(cutout.fill, (51, 102, 153))
  assert transforms(**off) == ()
  batch = random_batch(np.random.default_rng(0), 2, 5, 7)
  assert augment.Augmentation()(jax.random.key(0), batch) is batch
