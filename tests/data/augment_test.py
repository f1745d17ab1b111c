"""Tests of unet_jax/data/augment.py."""

import jax
import numpy as np
import pytest

from configs import default
from unet_jax.data import augment


def _batch(n=32, height=5, width=7):
  """Images that say where each pixel was, and masks that say the same."""
  rows, columns = np.mgrid[:height, :width]
  image = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)
  image = np.repeat(image[None], n, 0)
  image[..., 2] = np.arange(n)[:, None, None]  # Which example it was.
  mask = np.repeat((rows * width + columns)[None], n, 0).astype(np.uint8)
  return image, mask


def _apply(transform, key, image, mask):
  image, mask = transform(jax.random.key(key), image, mask)
  return np.asarray(image), np.asarray(mask)


@pytest.mark.parametrize('axis', [1, 2])
def test_flip_moves_image_and_mask_together(axis):
  image, mask = _batch()
  flip = augment.Flip(axis, 0.5)
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
  got = _apply(augment.Flip(axis, 0.0), 0, image, mask)
  np.testing.assert_array_equal(got[0], image)
  np.testing.assert_array_equal(got[1], mask)
  got = _apply(augment.Flip(axis, 1.0), 0, image, mask)
  np.testing.assert_array_equal(got[0], np.flip(image, axis))
  np.testing.assert_array_equal(got[1], np.flip(mask, axis))


def test_probability_is_the_share():
  mask = np.arange(2, dtype=np.uint8)[None, None].repeat(4000, 0)
  _, got = _apply(augment.Flip(2, 0.2), 3, mask[..., None], mask)
  # Four standard deviations of a binomial.
  assert abs(np.mean(got[:, 0, 0]) - 0.2) < 4 * (0.2 * 0.8 / 4000) ** 0.5


def test_the_key_alone_decides():
  image, mask = _batch()
  flip = augment.Flip(2, 0.5)
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


def test_make_augmentation():
  config = default.get_config()
  config.augment.flip_horizontal = 0.25
  config.augment.flip_vertical = 0.75
  assert augment.make_augmentation(config).transforms == (
    augment.Flip(axis=2, probability=0.25),
    augment.Flip(axis=1, probability=0.75),
  )
  config.augment.flip_horizontal = 0.0
  config.augment.flip_vertical = 0.0
  transform = augment.make_augmentation(config)
  assert transform.transforms == ()
  image, mask = _batch()
  np.testing.assert_array_equal(_apply(transform, 0, image, mask)[0], image)
