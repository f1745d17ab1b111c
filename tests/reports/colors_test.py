"""Colours of classes and of weights."""

import matplotlib
import numpy as np
import pytest
from skimage import color

from unet_jax.reports import colors


@pytest.mark.parametrize('num_classes', [1, 2, 8, 9, 255])
def test_colors_of_classes_differ(num_classes):
  found = colors.class_colors(num_classes)
  assert found.shape == (num_classes, 3) and found.dtype == np.uint8
  assert len({tuple(c) for c in found}) == num_classes
  assert (255, 255, 255) not in {tuple(c) for c in found}


# What is seen without the cones for red or green, of linear RGB (Machado et al.
# 2009, doi 10.1109/TVCG.2009.113, severity 1).
_BLIND = {
  'red': [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  'green': [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
  ],
}


def _seen(rgb, matrix):
  """sRGB [N, 3] of 0..1 as it is seen, by the matrix above."""
  linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
  linear = (linear @ np.transpose(matrix)).clip(0, 1)
  powers = 1.055 * linear ** (1 / 2.4) - 0.055
  return np.where(linear <= 0.0031308, 12.92 * linear, powers)


@pytest.mark.parametrize(
  'matrix, smallest',
  [(np.eye(3), 20), (_BLIND['red'], 9), (_BLIND['green'], 9)],
  ids=['all cones', 'no red', 'no green'],
)
def test_twenty_classes_can_be_told_apart(matrix, smallest):
  """A CIEDE2000 of 1 is just seen, of 5 seen at a glance."""
  # White are ignored pixels.
  rgb = np.concatenate([colors.class_colors(20), [[255, 255, 255]]]) / 255
  lab = color.rgb2lab(_seen(rgb, matrix))
  distances = color.deltaE_ciede2000(lab[:, None], lab[None])
  np.fill_diagonal(distances, np.inf)
  assert distances.min() > smallest


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
