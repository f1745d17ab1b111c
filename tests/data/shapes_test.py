"""Tests of unet_jax/data/shapes.py."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import ndimage
from skimage import measure

from tests.data import helpers
from tests.refusals import message_of
from unet_jax.data import shapes, sources

_MANY = [shapes.draw((0, 0, i), (64, 64)) for i in range(50)]


def test_pure_function_of_seed_and_index():
  # Another drawing in between, and another order, change nothing.
  for i in (7, 3):
    image, mask = shapes.draw((0, 0, i), (64, 64))
    assert_array_equal(image, _MANY[i][0])
    assert_array_equal(mask, _MANY[i][1])


@pytest.mark.parametrize('seed', [(1, 0, 3), (0, 1, 3), (0, 0, 4)])
def test_other_seeds_give_other_drawings(seed):
  image, mask = shapes.draw(seed, (64, 64))
  assert np.mean(image != _MANY[3][0]) > 0.9
  assert np.any(mask != _MANY[3][1])


@pytest.mark.parametrize('size', [(64, 64), (48, 80), (33, 20)])
def test_shapes_types_and_values(size):
  image, mask = shapes.draw((5, 0, 1), size)
  assert image.shape == (*size, 3) and image.dtype == np.uint8
  assert mask.shape == size and mask.dtype == np.uint8
  assert set(np.unique(mask)) <= {0, 1, 2, 3, 255}


@pytest.mark.parametrize('radius', [4.0, 12.0])
def test_shapes_and_their_rims_are_within_reach(radius):
  x = np.arange(-2 * radius - 3, 2 * radius + 3, 0.2)
  offsets = np.meshgrid(x, x)
  for kind in range(1, shapes.NUM_CLASSES):
    for turn in np.linspace(0, np.pi / 2, 19):
      direction = np.sin(turn), np.cos(turn)
      distance = shapes._signed_distance(kind, offsets, radius, direction)
      changed = distance < max(shapes._RIMS.values())
      assert np.abs(offsets)[:, changed].max() <= shapes._reach(radius)


def test_every_class_occurs_over_50_images():
  pixels = np.stack([mask for _, mask in _MANY])
  assert set(np.unique(pixels)) == {0, 1, 2, 3, 255}
  for kind in range(shapes.NUM_CLASSES):
    assert np.mean(pixels == kind) > 0.02, kind
  # Each picture has a background and something on it.
  for mask in pixels:
    assert {0, 255} < set(np.unique(mask))


def test_rim_is_where_classes_meet():
  rim, thin = 0, 0
  for _, mask in _MANY:
    for a, b in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
      # Two classes never touch without a rim between them.
      assert not np.any((a != b) & (a != 255) & (b != 255))
    ignored = mask == 255
    rim += ignored.sum()
    # And the rim is no wider than that, but where two rims meet.
    thin += (ndimage.distance_transform_edt(ignored)[ignored] < 1.5).sum()
  assert 0.02 < rim / (50 * 64 * 64) < 0.2
  assert thin / rim > 0.97


def _region(kind, radius=40.0, angle=0.5):
  offsets = np.mgrid[-75:76, -75:76].astype(float)
  direction = (np.sin(angle), np.cos(angle))
  return shapes._signed_distance(kind, offsets, radius, direction)


def test_outlines():
  disk, ring, bar = (
    measure.regionprops((_region(kind) < 0).astype(int))[0]
    for kind in (1, 2, 3)
  )
  assert disk.area == pytest.approx(np.pi * 40**2, rel=0.01)
  assert disk.euler_number == 1 and disk.eccentricity < 0.1
  # A ring is a disk with a hole.
  assert ring.euler_number == 0 and ring.eccentricity < 0.1
  assert ring.area_filled == pytest.approx(disk.area, rel=0.01)
  assert bar.euler_number == 1 and bar.eccentricity > 0.9
  # Between the long axis and the rows, counter-clockwise (y runs down).
  assert abs(bar.orientation) == pytest.approx(np.pi / 2 - 0.5, abs=0.02)


@pytest.mark.parametrize('kind', [1, 2])
def test_distance_is_in_pixels(kind):
  distance = _region(kind)
  inside = distance < 0
  expected = ndimage.distance_transform_edt(inside)
  expected -= ndimage.distance_transform_edt(~inside)
  # The transform measures to pixels, half a pixel off the outline.
  assert np.abs(expected + distance).max() < 1.5


def test_classes_differ_in_nothing_but_the_outline():
  """The mean colour does not give the class away."""
  means = [
    [image[mask == kind].mean() for image, mask in _MANY if kind in mask]
    for kind in range(1, 4)
  ]
  for a in means:
    # Of colours that are spread over 40..215, 100 and more drawings.
    assert abs(np.mean(a) - 127) < 30 and np.std(a) > 15


def test_source():
  def make(split='train', **fields):
    return sources.make_source(
      helpers.make_config(
        **{'num_train': 5, 'num_eval': 3, 'image_size': (24, 40), **fields}
      ),
      split,
    )

  train, test = make(), make('auto')
  assert (len(train), len(test)) == (5, 3)
  images = [s[i]['image'] for s in (train, test) for i in range(len(s))]
  assert all(image.shape == (24, 40, 3) for image in images)
  # No drawing of one split is in the other.
  assert len({image.tobytes() for image in images}) == 8
  assert make().fingerprint == train.fingerprint
  others = [train, test, make(seed=1), make(num_train=6)]
  assert len({str(source.fingerprint) for source in others}) == 4


def test_split_that_does_not_exist():
  message = message_of(sources.make_source, helpers.make_config(), 'val')
  assert message == "the shapes source has no split 'val'; it has train, test"
