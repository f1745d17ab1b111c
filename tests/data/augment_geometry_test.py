"""Tests of unet_jax/data/augment_geometry.py: against NumPy, SciPy, skimage."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage import transform

from tests.data.augmenting import drawn_by, random_batch, run
from unet_jax.data import augment_geometry as geometry


@pytest.mark.parametrize('axis', [1, 2])
def test_flips_move_image_and_mask_together(axis):
  batch = random_batch(np.random.default_rng(0), 32, 5, 7)
  flip = lambda probability: run(geometry.Flip(axis, probability), batch)
  for probability, expected in ((0.0, np.array), (1.0, np.flip)):
    for name, got in flip(probability).items():
      options = {'axis': axis} if probability else {}
      assert_array_equal(got, expected(batch[name], **options))
  got = flip(0.5)
  assert got['image'].dtype == got['mask'].dtype == np.uint8
  flipped = np.any(got['mask'] != batch['mask'], (1, 2))
  assert 4 < flipped.sum() < 28  # Drawn for each image.
  for i, turned in enumerate(flipped):
    for name, array in batch.items():
      expected = np.flip(array[i], axis - 1) if turned else array[i]
      assert_array_equal(got[name][i], expected)


def test_probability_is_the_share():
  mask = np.arange(2, dtype=np.uint8)[None, None].repeat(4000, 0)
  batch = {'image': mask[..., None], 'mask': mask}
  got = run(geometry.Flip(2, 0.2), batch, 3)['mask']
  # Four standard deviations of a binomial.
  assert abs(np.mean(got[:, 0, 0]) - 0.2) < 4 * (0.2 * 0.8 / 4000) ** 0.5


def _turns(got, batch):
  """The quarter turns of each image; mask and weight map share them."""
  turns = []
  for i, image in enumerate(batch['image']):
    turned = [np.rot90(image, k) for k in range(4)]
    (k,) = [k for k in range(4) if np.array_equal(got['image'][i], turned[k])]
    turns.append(k)
    for name in ('mask', 'weight_map'):
      assert_array_equal(got[name][i], np.rot90(batch[name][i], k))
  return turns


def test_turns_are_those_of_numpy_and_equally_frequent():
  batch = random_batch(np.random.default_rng(0), 600, 5, 5)
  got = run(geometry.Turn(0.75), batch)
  turns = _turns(got, batch)
  assert all(got[name].dtype == x.dtype for name, x in batch.items())
  # 150 expected of each; four standard deviations of a binomial.
  assert np.all(np.abs(np.bincount(turns) - 150) < 43)


def test_flips_and_turns_inside_a_resampling_are_exact():
  """And in their order: a flip and a turn do not commute."""
  batch = random_batch(np.random.default_rng(1), 16, 6, 6)
  maps = (geometry.Flip(2, 1.0), geometry.Turn(1.0))
  got = run(geometry.Resample(maps, interpolation='bicubic'), batch)
  flipped = {name: array[:, :, ::-1] for name, array in batch.items()}
  assert set(_turns(got, flipped)) == {1, 2, 3}


@pytest.mark.parametrize('channels,height,width', [(3, 9, 6), (1, 4, 2)])
def test_lookup_between_pixels_is_that_of_scipy(channels, height, width):
  """Also far outside, where it is mirrored several times."""
  rng = np.random.default_rng(2)
  batch = random_batch(rng, 3, height, width, channels)
  shape = (3, height, width)
  rows = rng.uniform(-20, 20 + height, shape).astype(np.float32)
  columns = rng.uniform(-20, 20 + width, shape).astype(np.float32)
  rows[0], columns[0] = np.mgrid[:height, :width]
  got = run(
    lambda key, b: geometry.resample(b, rows, columns, 'bilinear', 'mirror'),
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
      assert_allclose(got['image'][i, ..., c], expected, atol=2e-3)
    nearest = look_up(batch['mask'][i], 0)
    assert_array_equal(got['mask'][i], nearest)
    weights = look_up(batch['weight_map'][i].astype(np.float32), 0)
    assert_array_equal(got['weight_map'][i], weights)
  for name in batch:
    assert_array_equal(got[name][0], batch[name][0])


def test_affine_and_bicubic_are_those_of_skimage():
  """Forward maps composed by scikit-image, and its Catmull-Rom lookup."""
  height, width = 24, 20
  batch = random_batch(np.random.default_rng(3), 1, height, width)
  smooth = ndimage.gaussian_filter(batch['image'].astype(float), (0, 2, 2, 0))
  smooth = (smooth - smooth.min()) * 255 / np.ptp(smooth)
  batch['image'] = smooth.astype(np.uint8)
  affine = geometry.Affine(
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
  turn = geometry.Affine(1.0, (25, 25), (1, 1), (0, 0), (0, 0))
  transforms = {
    'bilinear': geometry.Resample((affine,)),
    'bicubic': geometry.Resample((affine,), interpolation='bicubic'),
    'turned': geometry.Resample((turn,)),
  }
  all_got = run(
    lambda key, b: {name: t(key, b) for name, t in transforms.items()}, batch
  )
  warp = lambda image, order, **options: transform.warp(
    image, forward.inverse, order=order, mode='reflect', **options
  )
  image = batch['image'][0].astype(float)
  mask = warp(batch['mask'][0], 0, preserve_range=True)
  for interpolation, order in (('bilinear', 1), ('bicubic', 3)):
    got = all_got[interpolation]
    expected = np.clip(warp(image, order, clip=False), 0, 255)
    assert_allclose(got['image'][0], expected, atol=2e-2)
    # One pixel may lie between two, up to rounding.
    assert np.sum(got['mask'][0] != mask) <= 1
  turned = transform.rotate(image, 25, mode='reflect', clip=False)
  assert_allclose(all_got['turned']['image'][0], turned, atol=2e-2)


def test_ranges_of_affine_are_drawn_for_each_image():
  """Scale and angle from the matrices; both are spread over their ranges."""
  affine = geometry.Affine(0.75, (-30, 60), (0.5, 2.0), (0, 0), (-0.2, 0.4))
  inverse = drawn_by(affine.inverse, jax.random.key(0), 4000, (100, 50))
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
    assert_allclose(counts, 0.2, atol=0.04)
  assert abs(np.corrcoef(moved[:, 0], moved[:, 1])[0, 1]) < 0.1
  assert abs(np.corrcoef(angle, scale)[0, 1]) < 0.1


def test_crop_is_a_window_of_the_image():
  crop = geometry.Crop(1.0, (0.25, 0.25), (4.0, 4.0))
  size = (20, 40)
  rows, columns = drawn_by(
    geometry.Resample((crop,)).places, jax.random.key(0), 500, size
  )
  # A quarter of the height; the width would be all of it: 0.25 * 4 = 1.
  assert_allclose(columns[:, 0], np.tile(np.arange(40), (500, 1)))
  top = rows[:, 0, 0] - 0.25 * 0.5 + 0.5
  expected = top[:, None] + (np.arange(20) + 0.5) * 0.25 - 0.5
  assert_allclose(rows[:, :, 7], expected, atol=1e-4)
  assert 0 <= top.min() < 0.5 and 14.5 < top.max() <= 15
  assert_allclose(top.mean(), 7.5, atol=4 * 15 / 12**0.5 / 500**0.5)
  crop = geometry.Crop(1.0, (0.04, 1.0), (0.25, 4.0))
  inverse = drawn_by(crop.inverse, jax.random.key(1), 2000, size)
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
  elastic = geometry.Elastic(0.5, grid, (4.0, 4.0))
  # Sizes at which the nodes lie on pixels.
  size = (8 * (grid - 1) + 1, 4 * (grid - 1) + 1)
  (key,) = jax.random.split(jax.random.key(1), 1)
  resample = geometry.Resample((), elastic)
  got, (rows, columns) = drawn_by(
    lambda key_of_resample: (
      elastic.displacement(key, 400, size),
      resample.places(key_of_resample, 400, size),
    ),
    jax.random.key(1),
  )
  nodes = got[:, :, ::8, ::4]
  drawn = np.any(got != 0, (0, 2, 3))
  assert 0.4 < drawn.mean() < 0.6
  assert_allclose(nodes[:, drawn].std(), 4, rtol=0.05)
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
      assert_allclose(got[axis, i], expected, atol=1e-4)
  pixel = np.meshgrid(*map(np.arange, size), indexing='ij')
  assert_allclose(rows, pixel[0] + got[0], atol=1e-4)
  assert_allclose(columns, pixel[1] + got[1], atol=1e-4)


def test_composition_is_one_after_the_other():
  """Elastic, crop and affine, from the result backwards."""
  affine = geometry.Affine(1.0, (40, 40), (0.8, 0.8), (5, 5), (0.1, 0.1))
  crop = geometry.Crop(1.0, (0.3, 0.3), (1.5, 1.5))
  elastic = geometry.Elastic(1.0, 3, (3.0, 3.0))
  size, key = (12, 16), jax.random.key(5)
  resample = geometry.Resample((affine, crop), elastic)
  keys = jax.random.split(key, 3)
  pixel = np.stack(np.meshgrid(*map(np.arange, size), indexing='ij'))
  middle = (np.array(size) - 1).reshape(2, 1, 1) / 2
  both, moved, *inverses = drawn_by(
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
      assert_allclose(both[axis][i], expected, atol=1e-4)


def test_ignored_border_is_what_lies_outside():
  batch = random_batch(np.random.default_rng(4), 8, 12, 10, values=3)
  affine = geometry.Affine(0.7, (-40, 40), (0.6, 1.0), (0, 0), (-0.2, 0.2))
  resample = geometry.Resample((affine,), border='ignore')
  mirror = geometry.Resample((affine,))
  got, mirrored = jax.tree.map(
    np.asarray,
    jax.jit(lambda key: (resample(key, batch), mirror(key, batch)))(
      jax.random.key(3)
    ),
  )
  rows, columns = drawn_by(resample.places, jax.random.key(3), 8, (12, 10))
  outside = (rows < -0.5) | (rows >= 11.5) | (columns < -0.5)
  outside |= columns >= 9.5
  assert 0.1 < outside.mean() < 0.6
  expected = np.where(outside, 255, mirrored['mask'])
  assert_array_equal(got['mask'], expected)
  assert_array_equal(got['image'], mirrored['image'])
  # Nothing was drawn for some, and nothing of them is ignored.
  same = [np.array_equal(a, b) for a, b in zip(got['image'], batch['image'])]
  assert 1 <= sum(same) <= 6 and not np.any(outside[same])
