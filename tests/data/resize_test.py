"""Tests of unet_jax/data/resize.py: against SciPy, scikit-image and NumPy."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage import transform

from unet_jax.data import resize

_KINDS = pytest.mark.parametrize('kind', ['stretch', 'pad', 'crop'])


def _random(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@_KINDS
@pytest.mark.parametrize(
  'size, target',
  [
    ((90, 120), (30, 40)),
    ((97, 131), (47, 53)),
    ((131, 97), (40, 53)),
    ((50, 47), (128, 131)),
    ((301, 99), (64, 128)),
    ((99, 301), (128, 64)),
    ((64, 64), (96, 96)),
    ((128, 128), (64, 64)),
  ],
)
def test_image_and_mask_stay_on_one_another(size, target, kind):
  """A disk has the same centre in image and mask, where it belongs."""
  center = np.array(size) * (0.47, 0.52)
  rows, columns = np.indices(size) + 0.5
  inside = np.hypot(rows - center[0], columns - center[1]) < 0.2 * min(size)
  disk = inside.astype(np.uint8)
  image, mask = resize.resize_pair(
    np.stack([disk * 255] * 3, -1), disk, target, kind
  )
  assert image.shape == (*target, 3) and mask.shape == target
  assert image.dtype == mask.dtype == np.uint8
  in_image = ndimage.center_of_mass(image[..., 0].astype(float))
  in_mask = ndimage.center_of_mass(mask == 1)
  assert_allclose(in_image, in_mask, atol=0.2)  # One disc's.
  if kind == 'stretch':
    expected = center * target / size - 0.5
    assert_allclose(in_image, expected, atol=0.1)


@_KINDS
@pytest.mark.parametrize(
  'size, target',
  [((150, 90), (50, 30)), ((101, 67), (33, 40)), ((40, 50), (101, 111))],
)
def test_coordinates_as_image_and_as_mask(size, target, kind):
  """Coordinates as pixels are the same in both, on average."""
  for place in np.indices(size).astype(np.uint8):
    image, mask = resize.resize_pair(place[..., None], place, target, kind)
    valid = mask != 255
    difference = image[..., 0][valid].astype(float) - mask[valid]
    assert np.abs(difference).max() < 3
    assert abs(difference.mean()) < 0.25


@pytest.mark.parametrize('factor', [2, 3, 5])
def test_shrinking_averages_areas(factor):
  image = _random(12 * factor, 7 * factor, 3)
  got, _ = resize.resize_pair(image, image[..., 0], (12, 7), 'stretch')
  blocks = image.reshape(12, factor, 7, factor, 3).mean((1, 3))
  assert_allclose(got, blocks, atol=0.51)


def test_shrinking_one_side_and_growing_the_other():
  column = _random(64, 1, 1)
  image = np.repeat(column, 10, 1)
  got, _ = resize.resize_pair(image, image[..., 0], (16, 25), 'stretch')
  expected = np.repeat(column.reshape(16, 4).mean(1)[:, None], 25, 1)
  assert_allclose(got[..., 0], expected, atol=1)


@pytest.mark.parametrize('target', [(20, 14), (23, 31)])
def test_growing_is_linear(target):
  image = _random(10, 7, 3)
  got, _ = resize.resize_pair(image, image[..., 0], target, 'stretch')
  expected = transform.resize(
    image.astype(float), target, order=1, mode='edge', anti_aliasing=False
  )
  assert_allclose(got, expected, atol=1)


def _area_weights(old, new):
  """Shares of old pixels in new ones along an axis: float64 [new, old]."""
  edges = np.arange(new + 1)[:, None] * old / new
  covered = np.clip(edges - np.arange(old), 0, 1)
  return np.diff(covered[::-1], axis=0)[::-1] * -new / old


# Old to new edge; factors of 1/16 to 4, odd, even and broken.
_EDGES = (
  *((256, 16), (144, 16), (128, 32), (96, 32), (100, 50), (75, 50), (64, 48)),
  *((97, 53), (48, 72), (48, 64), (40, 80), (33, 99), (32, 128)),
)


@pytest.mark.parametrize('old, new', _EDGES)
def test_image_and_mask_move_by_less_than_a_hundredth_of_a_pixel(old, new):
  """Centres of discs on average, against the exact areas."""
  weights = _area_weights(old, new)
  assert_allclose(weights.sum(1), 1)
  rng, moved = np.random.default_rng(0), []
  centers = rng.uniform(0.4 * old, 0.6 * old, (400, 2))
  for center, radius in zip(centers, rng.uniform(0.15, 0.35, 400) * old):
    rows, columns = np.indices((old, old)) + 0.5
    inside = np.hypot(rows - center[0], columns - center[1]) < radius
    mask = inside.astype(np.uint8)
    image, mask = resize.resize_pair(
      mask[..., None] * 255, mask, (new, new), 'stretch'
    )
    exact = weights @ inside.astype(np.float64) @ weights.T
    places = [ndimage.center_of_mass(a) for a in (exact, image[..., 0], mask)]
    moved.append(np.array(places[1:]) - places[0])
  assert_allclose(np.mean(moved, 0), 0, atol=0.01)


@pytest.mark.parametrize(
  'size, target',
  [
    ((12, 8), (6, 4)),
    ((128, 128), (96, 97)),
    ((500, 333), (128, 128)),
    ((37, 41), (64, 64)),
    ((999, 5), (64, 48)),
  ],
)
@pytest.mark.parametrize('dtype', [np.int32, np.uint16])
def test_labels_take_a_pixel_at_the_centre(size, target, dtype):
  """Either one where the centre lies on a border; both as often."""
  for axis, place in enumerate(np.indices(size).astype(dtype)):
    got = resize.resize_labels(place, target, 'stretch', 0)
    assert got.dtype == dtype
    t, n = target[axis], size[axis]
    centre = np.moveaxis(np.empty(target), axis, -1)
    centre[:] = (np.arange(t) + 0.5) * n / t
    off = got + 0.5 - np.moveaxis(centre, -1, axis)
    assert np.abs(off).max() <= 0.5
    assert abs(off.mean()) < 0.01


@pytest.mark.parametrize('factor', [2, 4, 6])
def test_straight_borders_of_labels_stay_in_place(factor):
  """Of a border in the middle of new pixels, these get either label."""
  for axis in (0, 1):
    place = np.indices((64 * factor, 64 * factor))[axis]
    labels = (place >= 21 * factor + factor // 2).astype(np.uint8)
    got = resize.resize_labels(labels, (64, 64), 'stretch', 0)
    shares = got.mean(1 - axis)
    assert shares[:21].max() == 0 and shares[22:].min() == 1
    assert shares[21] == 0.5


@_KINDS
@pytest.mark.parametrize('channels', [1, 3])
def test_the_right_size_is_left_alone(kind, channels):
  image = _random(9, 14, channels)
  mask = _random(9, 14)[::-1]
  got = resize.resize_pair(image, mask, (9, 14), kind)
  assert_array_equal(got[0], image)
  assert_array_equal(got[1], mask)


@pytest.mark.parametrize(
  'size, target, rows, columns',
  [
    ((10, 20), (20, 20), slice(5, 15), slice(0, 20)),
    ((20, 10), (11, 10), slice(0, 11), slice(2, 8)),
    ((30, 10), (15, 8), slice(0, 15), slice(1, 6)),
  ],
)
def test_pad(size, target, rows, columns):
  """Padding is 0 in the image and 255 in the mask, on both sides."""
  image, mask = resize.resize_pair(
    np.full((*size, 3), 200, np.uint8), np.ones(size, np.uint8), target, 'pad'
  )
  expected = np.zeros(target, np.uint8)
  expected[rows, columns] = 200
  assert_array_equal(image, np.stack([expected] * 3, -1))
  assert_array_equal(mask, np.where(expected, 1, 255))


@pytest.mark.parametrize('size', [(20, 40), (40, 20)])
def test_crop(size):
  """The middle is kept; nothing is filled in."""
  place = np.indices(size)[np.argmax(size)].astype(np.uint8)
  image, mask = resize.resize_pair(place[..., None], place, (20, 20), 'crop')
  expected = np.tile(np.arange(10, 30), (20, 1))
  expected = expected if size[1] == 40 else expected.T
  assert_array_equal(mask, expected)
  assert_array_equal(image[..., 0], expected)


@pytest.mark.parametrize('kind', ['pad', 'crop'])
@pytest.mark.parametrize('size', [(1, 1000), (1000, 1), (7, 5), (1, 1)])
def test_extreme_sizes(kind, size):
  image, mask = resize.resize_pair(
    np.full((*size, 1), 9, np.uint8), np.ones(size, np.uint8), (6, 8), kind
  )
  assert image.shape == (6, 8, 1) and mask.shape == (6, 8)
  assert np.any(mask == 1)
  assert np.all((image[..., 0] == 9) == (mask == 1))
