"""Tests of unet_jax/data/augment.py."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy import ndimage
from skimage import color, transform

from tests import tiny
from unet_jax.config import checks, default
from unet_jax.config import fields as fields_lib
from unet_jax.data import augment, augment_geometry
from unet_jax.models import unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import steps


def _batch(n=32, height=5, width=7):
  """Images that say where each pixel was, and masks that say the same."""
  rows, columns = np.mgrid[:height, :width]
  image = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)
  image = np.repeat(image[None], n, 0)
  image[..., 2] = np.arange(n)[:, None, None]  # Which example it was.
  mask = np.repeat((rows * width + columns)[None], n, 0).astype(np.uint8)
  return image, mask


def _apply(transform, key, image, mask):
  batch = transform(jax.random.key(key), {'image': image, 'mask': mask})
  return np.asarray(batch['image']), np.asarray(batch['mask'])


@pytest.mark.parametrize('axis', [1, 2])
def test_flip_moves_image_and_mask_together(axis):
  image, mask = _batch()
  flip = augment_geometry.Flip(axis, 0.5)
  new_image, new_mask = _apply(flip, 0, image, mask)
  assert new_image.dtype == new_mask.dtype == np.uint8
  np.testing.assert_array_equal(
    new_mask, new_image[..., 0] * 7 + new_image[..., 1]
  )
  flipped = np.any(new_mask != mask, (1, 2))
  assert 4 < flipped.sum() < 28  # Drawn for each image.
  for i, turned in enumerate(flipped):
    expected = np.flip(mask[i], axis - 1) if turned else mask[i]
    np.testing.assert_array_equal(new_mask[i], expected)
    assert np.all(new_image[i, ..., 2] == i)


@pytest.mark.parametrize('axis', [1, 2])
def test_probabilities_0_and_1(axis):
  image, mask = _batch()
  got = _apply(augment_geometry.Flip(axis, 0.0), 0, image, mask)
  np.testing.assert_array_equal(got[0], image)
  np.testing.assert_array_equal(got[1], mask)
  got = _apply(augment_geometry.Flip(axis, 1.0), 0, image, mask)
  np.testing.assert_array_equal(got[0], np.flip(image, axis))
  np.testing.assert_array_equal(got[1], np.flip(mask, axis))


def test_probability_is_the_share():
  mask = np.arange(2, dtype=np.uint8)[None, None].repeat(4000, 0)
  _, got = _apply(augment_geometry.Flip(2, 0.2), 3, mask[..., None], mask)
  # Four standard deviations of a binomial.
  assert abs(np.mean(got[:, 0, 0]) - 0.2) < 4 * (0.2 * 0.8 / 4000) ** 0.5


def test_the_key_alone_decides():
  image, mask = _batch()
  flip = augment_geometry.Flip(2, 0.5)
  first, again = _apply(flip, 1, image, mask), _apply(flip, 1, image, mask)
  np.testing.assert_array_equal(first[0], again[0])
  np.testing.assert_array_equal(first[1], again[1])
  other = _apply(flip, 2, image, mask)
  assert np.any(first[1] != other[1])


def test_both_flips_are_independent_and_add_no_value():
  """All four orientations occur, in image and mask alike, also under jit."""
  config = default.get_config()
  config.augment.flip_vertical = 0.5
  transform = augment.make_augmentation(config)
  image, mask = _batch(64)
  mask[:, 0, 0] = 255
  got = _apply(transform, 0, image, mask)
  jitted = _apply(jax.jit(transform), 0, image, mask)
  for eager, compiled in zip(got, jitted):
    assert eager.dtype == compiled.dtype == np.uint8
    np.testing.assert_array_equal(eager, compiled)
  corners = []
  for i in range(64):
    assert sorted(got[1][i].flat) == sorted(mask[i].flat)
    corners.append(tuple(got[0][i, 0, 0, :2].tolist()))
    row, column = np.argwhere(got[1][i] == 255)[0]
    np.testing.assert_array_equal(got[0][i, row, column], [0, 0, i])
  assert set(corners) == {(0, 0), (0, 6), (4, 0), (4, 6)}


def _batch_of(rng, n, height, width, channels=3, values=256):
  return {
    'image': rng.integers(0, 256, (n, height, width, channels), np.uint8),
    'mask': rng.integers(0, values, (n, height, width), np.uint8),
    'weight_map': rng.random((n, height, width)).astype(np.float16),
  }


def _config(probability=1.0, **fields):
  """All that there is, with a probability; then {field: value}."""
  config = default.get_config()
  for name in fields_lib.flatten(config):
    if name.startswith('augment.') and name.endswith(
      ('.probability', 'horizontal', 'vertical', '_90')
    ):
      config.update_from_flattened_dict({name: probability})
  config.update_from_flattened_dict(
    {f'augment.{name}': value for name, value in fields.items()}
  )
  checks.validate(config)
  return config


_PHOTOMETRIC = (
  'brightness',
  'contrast',
  'saturation',
  'hue',
  'gamma',
  'blur',
  'noise',
  'cutout',
)
_GEOMETRY_ONLY = {f'{name}.probability': 0.0 for name in _PHOTOMETRIC}


def _run(transform, batch, key=0):
  return jax.tree.map(
    np.asarray, jax.jit(transform)(jax.random.key(key), batch)
  )


def _drawn(method, key, *args):
  """What a method draws for images; compiled as a whole, which is faster."""
  call = jax.jit(lambda key: method(key, *args))
  return jax.tree.map(np.asarray, call(key))


def test_turns_are_those_of_numpy_and_equally_frequent():
  batch = _batch_of(np.random.default_rng(0), 600, 5, 5)
  got = _run(augment_geometry.Turn(0.75), batch)
  turns = []
  for i in range(600):
    same = [
      k
      for k in range(4)
      if np.array_equal(got['image'][i], np.rot90(batch['image'][i], k))
    ]
    (k,) = same
    turns.append(k)
    for name in ('mask', 'weight_map'):
      np.testing.assert_array_equal(got[name][i], np.rot90(batch[name][i], k))
  assert {name: x.dtype for name, x in got.items()} == {
    'image': np.uint8,
    'mask': np.uint8,
    'weight_map': np.float16,
  }
  # 150 expected of each; four standard deviations of a binomial.
  assert np.all(np.abs(np.bincount(turns) - 150) < 43)


def test_flips_and_turns_inside_a_resampling_are_exact():
  """And in their order: a flip and a turn do not commute."""
  batch = _batch_of(np.random.default_rng(1), 16, 6, 6)
  maps = (augment_geometry.Flip(2, 1.0), augment_geometry.Turn(1.0))
  got = _run(augment_geometry.Resample(maps, interpolation='bicubic'), batch)
  turns = set()
  for i in range(16):
    flipped = batch['image'][i][:, ::-1]
    (k,) = [
      k
      for k in range(4)
      if np.array_equal(got['image'][i], np.rot90(flipped, k))
    ]
    turns.add(k)
    for name in ('mask', 'weight_map'):
      expected = np.rot90(batch[name][i][:, ::-1], k)
      np.testing.assert_array_equal(got[name][i], expected)
  assert turns == {1, 2, 3}


@pytest.mark.parametrize('channels,height,width', [(3, 9, 6), (1, 4, 2)])
def test_lookup_between_pixels_is_that_of_scipy(channels, height, width):
  """Also far outside, where it is mirrored several times."""
  rng = np.random.default_rng(2)
  batch = _batch_of(rng, 3, height, width, channels)
  shape = (3, height, width)
  rows = rng.uniform(-20, 20 + height, shape).astype(np.float32)
  columns = rng.uniform(-20, 20 + width, shape).astype(np.float32)
  rows[0], columns[0] = np.mgrid[:height, :width]
  got = _run(
    lambda key, b: augment_geometry.resample(
      b, rows, columns, 'bilinear', 'mirror'
    ),
    batch,
  )
  assert got['image'].dtype == np.float32 and got['mask'].dtype == np.uint8
  assert got['weight_map'].dtype == np.float16
  for i in range(3):
    places = [rows[i].astype(np.float64), columns[i].astype(np.float64)]
    look_up = lambda x, order: ndimage.map_coordinates(
      x, places, order=order, mode='mirror'
    )
    for c in range(channels):
      expected = look_up(batch['image'][i, ..., c].astype(np.float64), 1)
      np.testing.assert_allclose(got['image'][i, ..., c], expected, atol=2e-3)
    nearest = look_up(batch['mask'][i], 0)
    np.testing.assert_array_equal(got['mask'][i], nearest)
    weights = look_up(batch['weight_map'][i].astype(np.float32), 0)
    np.testing.assert_array_equal(got['weight_map'][i], weights)
  for name in batch:
    np.testing.assert_array_equal(got[name][0], batch[name][0])


def test_affine_and_bicubic_are_those_of_skimage():
  """Forward maps composed by scikit-image, and its Catmull-Rom lookup."""
  height, width = 24, 20
  batch = _batch_of(np.random.default_rng(3), 1, height, width)
  smooth = ndimage.gaussian_filter(batch['image'].astype(float), (0, 2, 2, 0))
  smooth = (smooth - smooth.min()) * 255 / np.ptp(smooth)
  batch['image'] = smooth.astype(np.uint8)
  affine = augment_geometry.Affine(
    1.0, (25, 25), (1.2, 1.2), (12, 12), translation=(0.1, 0.1)
  )
  new = lambda **kwargs: transform.AffineTransform(**kwargs)
  middle = np.array([(width - 1) / 2, (height - 1) / 2])
  # Applied from left to right; (x, y), and y points down, so that a positive
  # rotation is clockwise there.
  forward = (
    new(translation=-middle)
    + new(matrix=[[1, np.tan(np.deg2rad(12)), 0], [0, 1, 0], [0, 0, 1]])
    + new(scale=1.2)
    + new(rotation=-np.deg2rad(25))
    + new(translation=middle + (0.1 * width, 0.1 * height))
  )
  turn = augment_geometry.Affine(1.0, (25, 25), (1, 1), (0, 0), (0, 0))
  transforms = {
    'bilinear': augment_geometry.Resample((affine,)),
    'bicubic': augment_geometry.Resample((affine,), interpolation='bicubic'),
    'turned': augment_geometry.Resample((turn,)),
  }
  all_got = _run(
    lambda key, b: {name: t(key, b) for name, t in transforms.items()}, batch
  )
  for interpolation, order in (('bilinear', 1), ('bicubic', 3)):
    got = all_got[interpolation]
    expected = transform.warp(
      batch['image'][0].astype(float),
      forward.inverse,
      order=order,
      mode='reflect',
      clip=False,
    )
    np.testing.assert_allclose(
      got['image'][0], np.clip(expected, 0, 255), atol=2e-2
    )
    mask = transform.warp(
      batch['mask'][0],
      forward.inverse,
      order=0,
      mode='reflect',
      preserve_range=True,
    )
    # One pixel may lie between two, up to rounding.
    assert np.sum(got['mask'][0] != mask) <= 1
  turned = transform.rotate(
    batch['image'][0].astype(float), 25, mode='reflect', clip=False
  )
  got = all_got['turned']
  np.testing.assert_allclose(got['image'][0], turned, atol=2e-2)


def test_ranges_of_affine_are_drawn_for_each_image():
  """Scale and angle from the matrices; both are spread over their ranges."""
  affine = augment_geometry.Affine(
    0.75, (-30, 60), (0.5, 2.0), (0, 0), (-0.2, 0.4)
  )
  inverse = _drawn(affine.inverse, jax.random.key(0), 4000, (100, 50))
  drawn = np.any(inverse != np.eye(3), (1, 2))
  assert abs(drawn.mean() - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
  forward = np.linalg.inv(inverse[drawn])
  scale = np.sqrt(np.linalg.det(forward[:, :2, :2]))
  angle = np.rad2deg(np.arctan2(-forward[:, 0, 1], forward[:, 0, 0]))
  moved = forward[:, :2, 2] / (100, 50)
  for values, low, high in (
    (np.log2(scale), -1, 1),
    (angle, -30, 60),
    (moved[:, 0], -0.2, 0.4),
    (moved[:, 1], -0.2, 0.4),
  ):
    assert low - 1e-3 < values.min() and values.max() < high + 1e-3
    counts = np.histogram(values, 5, (low, high))[0] / drawn.sum()
    np.testing.assert_allclose(counts, 0.2, atol=0.04)
  assert abs(np.corrcoef(moved[:, 0], moved[:, 1])[0, 1]) < 0.1
  assert abs(np.corrcoef(angle, scale)[0, 1]) < 0.1


def test_crop_is_a_window_of_the_image():
  crop = augment_geometry.Crop(1.0, (0.25, 0.25), (4.0, 4.0))
  size = (20, 40)
  rows, columns = _drawn(
    augment_geometry.Resample((crop,)).places, jax.random.key(0), 500, size
  )
  # A quarter of the height; the width would be all of it: 0.25 * 4 = 1.
  np.testing.assert_allclose(columns[:, 0], np.tile(np.arange(40), (500, 1)))
  top = rows[:, 0, 0] - 0.25 * 0.5 + 0.5
  expected = top[:, None] + (np.arange(20) + 0.5) * 0.25 - 0.5
  np.testing.assert_allclose(rows[:, :, 7], expected, atol=1e-4)
  assert 0 <= top.min() < 0.5 and 14.5 < top.max() <= 15
  np.testing.assert_allclose(top.mean(), 7.5, atol=4 * 15 / 12**0.5 / 500**0.5)
  crop = augment_geometry.Crop(1.0, (0.04, 1.0), (0.25, 4.0))
  inverse = _drawn(crop.inverse, jax.random.key(1), 2000, size)
  sides = np.diagonal(inverse, axis1=1, axis2=2)[:, :2]
  assert sides.min() >= 0.1 - 1e-6 and sides.max() == 1
  whole = np.all(sides < 1, 1)  # Not cut off at the image's side.
  aspect = sides[whole, 1] / sides[whole, 0]
  assert 0.25 <= aspect.min() < 0.3 and 3.5 < aspect.max() <= 4
  assert 0.45 < np.mean(aspect < 1) < 0.55
  # Windows never leave the image.
  reach = sides / 2 + np.abs(inverse[:, :2, 2]) / size
  assert reach.max() <= 0.5 + 1e-6


@pytest.mark.parametrize('grid', [3, 5])
def test_elastic_displacement_is_scipys_spline_of_a_coarse_grid(grid):
  elastic = augment_geometry.Elastic(0.5, grid, (4.0, 4.0))
  # Sizes at which the nodes lie on pixels.
  size = (8 * (grid - 1) + 1, 4 * (grid - 1) + 1)
  (key,) = jax.random.split(jax.random.key(1), 1)
  resample = augment_geometry.Resample((), elastic)
  got, (rows, columns) = _drawn(
    lambda key_of_resample: (
      elastic.displacement(key, 400, size),
      resample.places(key_of_resample, 400, size),
    ),
    jax.random.key(1),
  )
  nodes = got[:, :, ::8, ::4]
  drawn = np.any(got != 0, (0, 2, 3))
  assert 0.4 < drawn.mean() < 0.6
  np.testing.assert_allclose(nodes[:, drawn].std(), 4, rtol=0.05)
  # Every node has a displacement of its own.
  flat = nodes[:, drawn].swapaxes(0, 1).reshape(drawn.sum(), -1)
  correlation = np.corrcoef(flat.T) - np.eye(flat.shape[1])
  assert np.abs(correlation).max() < 0.35
  places = np.meshgrid(
    *(np.linspace(0, grid - 1, n) for n in size), indexing='ij'
  )
  for i in np.flatnonzero(drawn)[:3]:
    for axis in range(2):
      expected = ndimage.map_coordinates(
        nodes[axis, i].astype(float), places, order=3, mode='mirror'
      )
      np.testing.assert_allclose(got[axis, i], expected, atol=1e-4)
  pixel = np.meshgrid(*map(np.arange, size), indexing='ij')
  np.testing.assert_allclose(rows, pixel[0] + got[0], atol=1e-4)
  np.testing.assert_allclose(columns, pixel[1] + got[1], atol=1e-4)


def test_composition_is_one_after_the_other():
  """Elastic, crop and affine, from the result backwards."""
  affine = augment_geometry.Affine(
    1.0, (40, 40), (0.8, 0.8), (5, 5), (0.1, 0.1)
  )
  crop = augment_geometry.Crop(1.0, (0.3, 0.3), (1.5, 1.5))
  elastic = augment_geometry.Elastic(1.0, 3, (3.0, 3.0))
  size, key = (12, 16), jax.random.key(5)
  resample = augment_geometry.Resample((affine, crop), elastic)
  keys = jax.random.split(key, 3)
  pixel = np.stack(np.meshgrid(*map(np.arange, size), indexing='ij'))
  middle = (np.array(size) - 1).reshape(2, 1, 1) / 2
  both, moved, *inverses = _drawn(
    lambda key: (
      resample.places(key, 2, size),
      elastic.displacement(keys[2], 2, size),
      crop.inverse(keys[1], 2, size),
      affine.inverse(keys[0], 2, size),
    ),
    key,
  )
  for i in range(2):
    place = pixel + moved[:, i] - middle
    for inverse in inverses:
      linear, offset = inverse[i, :2, :2], inverse[i, :2, 2, None, None]
      place = np.einsum('ij,jyx->iyx', linear, place) + offset
    for axis in range(2):
      expected = (place + middle)[axis]
      np.testing.assert_allclose(both[axis][i], expected, atol=1e-4)


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
  got = _run(transform, batch, 1)
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
  np.testing.assert_array_equal(got['mask'][clear], expected[clear])
  kept = got['mask'] != 255
  np.testing.assert_array_equal(got['weight_map'][kept], got['mask'][kept])
  assert np.any(~kept) == (border == 'ignore')
  # Nearly all were changed, and each in its own way.
  assert len({m.tobytes() for m in got['mask']}) >= 31


def test_ignored_border_is_what_lies_outside():
  batch = _batch_of(np.random.default_rng(4), 8, 12, 10, values=3)
  affine = augment_geometry.Affine(
    0.7, (-40, 40), (0.6, 1.0), (0, 0), (-0.2, 0.2)
  )
  resample = augment_geometry.Resample((affine,), border='ignore')
  mirror = augment_geometry.Resample((affine,))
  got, mirrored = jax.tree.map(
    np.asarray,
    jax.jit(lambda key: (resample(key, batch), mirror(key, batch)))(
      jax.random.key(3)
    ),
  )
  rows, columns = _drawn(resample.places, jax.random.key(3), 8, (12, 10))
  outside = (rows < -0.5) | (rows >= 11.5) | (columns < -0.5)
  outside |= columns >= 9.5
  assert 0.1 < outside.mean() < 0.6
  expected = np.where(outside, 255, mirrored['mask'])
  np.testing.assert_array_equal(got['mask'], expected)
  np.testing.assert_array_equal(got['image'], mirrored['image'])
  # Nothing was drawn for some, and nothing of them is ignored.
  same = [np.array_equal(a, b) for a, b in zip(got['image'], batch['image'])]
  assert 1 <= sum(same) <= 6 and not np.any(outside[same])


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
    batch = _batch_of(rng, 16, 16, 16)
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
  batch = _batch_of(np.random.default_rng(11), 16, 16, 16)
  run = lambda key: jax.tree.map(
    np.asarray, _compiled('ignore')(jax.random.key(key), batch)
  )
  first, again, other = run(0), run(0), run(1)
  for name in batch:
    np.testing.assert_array_equal(first[name], again[name])
  differ = [np.any(a != b) for a, b in zip(first['image'], other['image'])]
  assert sum(differ) >= 14


def _sharded(mesh, batch):
  """Returns the shardings of a batch, and the batch on the devices."""
  config = default.get_config()
  config.mesh.update(mesh)
  made = mesh_lib.make_mesh(config)
  shardings = {
    name: mesh_lib.batch_sharding(made)['mask' if x.ndim == 3 else 'image']
    for name, x in batch.items()
  }
  return shardings, jax.device_put(batch, shardings)


def test_sharded_equals_unsharded():
  batch = _batch_of(np.random.default_rng(12), 16, 16, 16)
  _, sent = _sharded({'data': 2, 'fsdp': 2, 'spatial': 2}, batch)
  assert len(sent['image'].addressable_shards) == 8
  key = jax.random.key(2)
  # Compiled once more, for the sharded batch.
  got, expected = (
    _compiled('ignore')(key, sent),
    _compiled('ignore')(key, batch),
  )
  np.testing.assert_allclose(got['image'], expected['image'], atol=5e-2)
  for name in ('mask', 'weight_map'):
    # A place between two pixels may be rounded otherwise.
    assert np.mean(got[name] != expected[name]) < 2e-3


def test_devices_look_up_in_their_own_images():
  batch = _batch_of(np.random.default_rng(12), 16, 16, 16)
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
  functions = {
    f.__name__: f
    for f in (
      augment.brightness,
      augment.contrast,
      augment.saturation,
      augment.gamma,
    )
  }
  got = _changed(x, functions, amounts)
  for i, amount in enumerate(amounts):
    for name, expected in (
      ('brightness', amount * x),
      ('contrast', mean + amount * (x - mean)),
      ('saturation', grey + amount * (x - grey)),
      ('gamma', 255 * (x / 255) ** amount),
    ):
      np.testing.assert_allclose(got[name][i], expected, atol=2e-3)


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
    np.testing.assert_allclose(got[i], 255 * color.hsv2rgb(hsv), atol=2e-3)


# The second is wider than the image.
@pytest.mark.parametrize('radius,shape', [(4, (11, 7, 3)), (6, (3, 5, 1))])
def test_blur_is_that_of_scipy(radius, shape):
  image = np.random.default_rng(9).integers(0, 256, shape)
  # scipy's kernel of sigma 0 is a division by zero.
  amounts = (1e-3, 0.6, 2.0)
  blur = {'blur': augment.Blur(radius)}
  got = _changed(image, blur, (0.0, *amounts))['blur']
  np.testing.assert_array_equal(got[0], image)
  for i, sigma in enumerate(amounts):
    expected = ndimage.gaussian_filter(
      image.astype(float),
      (sigma, sigma, 0),
      mode='mirror',
      radius=(radius, radius, 0),
    )
    np.testing.assert_allclose(got[i + 1], expected, atol=1e-3)


def test_noise_is_gaussian_and_independent():
  image = np.full((4, 40, 40, 3), 128, np.uint8)
  photometric = augment.Photometric(augment.noise, 1.0, (10.0, 10.0))
  noise, again = (
    _run(photometric, {'image': image, 'mask': image[..., 0]}, key)['image']
    - 128
    for key in (0, 1)
  )
  np.testing.assert_allclose(noise.std((1, 2, 3)), 10, rtol=0.05)
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
  got = _run(lambda key, b: (photometric(key, b), log(key, b)), batch)
  got, got_log = (b['image'].ravel() / 100 for b in got)
  drawn = got != 1
  assert abs(drawn.mean() - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
  # 300 is cut off.
  assert 0.5 <= got.min() < 0.51 and got.max() == 2.55
  np.testing.assert_allclose(np.mean(got[drawn] == 2.55), 0.45 / 2.5, atol=0.05)
  below = got[drawn & (got < 2.5)]
  counts = np.histogram(below, 4, (0.5, 2.5))[0] / len(below)
  np.testing.assert_allclose(counts, 0.25, atol=0.06)
  # Half of them are below the geometric mean.
  middle = (0.5 * 3) ** 0.5
  share = np.mean(got_log[got_log != 1] < middle)
  np.testing.assert_allclose(share, 0.5, atol=0.06)


@pytest.mark.parametrize('kind', ['keep', 'ignore'])
def test_cutout_is_a_square_about_any_pixel(kind):
  height, width = 10, 15
  batch = _batch_of(np.random.default_rng(10), 600, height, width, values=4)
  fill = (1.5, 2.5, 3.5)
  cutout = augment.Cutout(0.8, (0.5, 0.5), fill, kind)
  got = _run(cutout, batch)
  covered = np.all(got['image'] == fill, -1)
  drawn = np.any(covered, (1, 2))
  assert abs(drawn.mean() - 0.8) < 4 * (0.8 * 0.2 / 600) ** 0.5
  np.testing.assert_array_equal(
    got['image'][~covered], batch['image'][~covered]
  )
  ignored = covered & (kind == 'ignore')
  expected = np.where(ignored, 255, batch['mask'])
  np.testing.assert_array_equal(got['mask'], expected)
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
  choices = fields_lib.CHOICES['augment.interpolation']
  assert set(augment_geometry.INTERPOLATIONS) == set(choices)
  config = default.get_config()
  assert augment.make_augmentation(config).transforms == (
    augment_geometry.Flip(axis=2, probability=0.5),
  )
  config.augment.flip_horizontal = 0.25
  config.augment.flip_vertical = 0.75
  config.augment.rotate_90 = 0.4
  flips = (
    augment_geometry.Flip(axis=2, probability=0.25),
    augment_geometry.Flip(axis=1, probability=0.75),
    augment_geometry.Turn(0.4),
  )
  assert augment.make_augmentation(config).transforms == flips
  config.augment.crop.probability = 0.1
  crop = augment_geometry.Crop(0.1, (0.25, 1.0), (0.75, 1.3333))
  assert augment.make_augmentation(config).transforms == (
    augment_geometry.Resample((*flips, crop), None, 'bilinear', 'mirror'),
  )
  config.data.mean = (0.2, 0.4, 0.6)
  transforms = augment.make_augmentation(
    _config(0.3, **{'blur.range': (0.1, 2.1), 'elastic.grid': 4})
  ).transforms
  affine = augment_geometry.Affine(
    0.3, (-15.0, 15.0), (0.7, 1.4), (-10.0, 10.0), (-0.1, 0.1)
  )
  crop = dataclasses.replace(crop, probability=0.3)
  assert transforms[0].maps[3:] == (affine, crop)
  assert transforms[0].elastic == augment_geometry.Elastic(0.3, 4, (10.0, 10.0))
  assert transforms[1:] == (
    augment.Photometric(augment.brightness, 0.3, (0.75, 1.25)),
    augment.Photometric(augment.contrast, 0.3, (0.75, 1.25)),
    augment.Photometric(augment.saturation, 0.3, (0.6, 1.4)),
    augment.Photometric(augment.hue, 0.3, (-18.0, 18.0)),
    augment.Photometric(augment.gamma, 0.3, (0.7, 1.5), log=True),
    augment.Photometric(augment.Blur(7), 0.3, (0.1, 2.1)),
    augment.Photometric(augment.noise, 0.3, (0.0, 15.0)),
    augment.Cutout(0.3, (0.1, 0.5), (127.5,) * 3, 'keep'),
  )
  config = default.get_config()
  config.data.mean = (0.2, 0.4, 0.6)
  config.augment.flip_horizontal = 0.0
  config.augment.cutout.probability = 1.0
  (cutout,) = augment.make_augmentation(config).transforms
  np.testing.assert_allclose(cutout.fill, (51, 102, 153))
  config.augment.cutout.probability = 0.0
  transform = augment.make_augmentation(config)
  assert transform.transforms == ()
  image, mask = _batch()
  np.testing.assert_array_equal(_apply(transform, 0, image, mask)[0], image)
