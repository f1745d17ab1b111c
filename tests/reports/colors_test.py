"""Colours of classes and of weights."""

import matplotlib
import numpy as np
import pytest

from unet_jax.reports import colors


@pytest.mark.parametrize('num_classes', [1, 2, 8, 9, 255])
def test_colors_of_classes_differ(num_classes):
  found = colors.class_colors(num_classes)
  assert found.shape == (num_classes, 3) and found.dtype == np.uint8
  assert len({tuple(c) for c in found}) == num_classes
  assert (255, 255, 255) not in {tuple(c) for c in found}


def test_mask_in_colors():
  mask = np.array([[0, 1], [2, 255]], np.uint8)
  expected = [[[0, 0, 0], [230, 159, 0]], [[86, 180, 233], [255, 255, 255]]]
  np.testing.assert_array_equal(colors.color_mask(mask, 3), expected)


def test_a_class_keeps_its_color_as_classes_are_added():
  many = colors.class_colors(200)
  for n in (2, 8, 11):
    np.testing.assert_array_equal(colors.class_colors(n), many[:n])


def test_scale_is_viridis():
  shares = np.linspace(0, 1, 256).reshape(16, 16)
  expected = 255 * matplotlib.colormaps['viridis'](shares)[..., :3]
  np.testing.assert_allclose(colors.color_scale(shares), expected, atol=8)
  outside, ends = np.array([[-1.0, 2.0], [0.0, 1.0]])
  ends = colors.color_scale(ends)
  np.testing.assert_array_equal(colors.color_scale(outside), ends)
