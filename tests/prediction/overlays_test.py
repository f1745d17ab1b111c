"""Pictures of images under their classes."""

import numpy as np
import pytest
from PIL import Image

from unet_jax.prediction import overlays, predictor
from unet_jax.reports import colors


def _add(overlay, image, classes, seed=0):
  rng, start = np.random.default_rng(seed), 0
  while start < len(image):
    stop = start + int(rng.integers(1, 9))
    overlay.add(image[start:stop], classes[start:stop])
    start = stop
  return overlay


def test_file(tmp_path):
  image = np.full((16, 24, 3), (200, 30, 90), np.uint8)
  raster, path = predictor.WholeImage(image), tmp_path / 'a.jpg'
  file = overlays.OverlayFile(path, raster, 2)
  for rows in (5, 11):
    file.write(np.zeros((rows, 24), np.uint8))
  file.close()
  with Image.open(path) as found:
    assert found.format == 'JPEG'
    np.testing.assert_allclose(np.asarray(found), image, atol=3)


def test_colors_and_outlines():
  image = np.full((12, 14, 3), (100, 50, 200), np.uint8)
  classes = np.zeros((12, 14), np.uint8)
  classes[2:10, 3:12] = 2
  overlay = _add(overlays.Overlay((12, 14)), image, classes)
  expected = image.copy()
  color = colors.class_colors(3)[2]
  expected[2:10, 3:12] = color
  expected[3:9, 4:11] = np.rint(0.6 * image[0, 0] + 0.4 * color.astype(float))
  np.testing.assert_array_equal(overlay.picture(3), expected)


def test_grey_images_become_rgb():
  image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
  overlay = _add(overlays.Overlay((3, 4)), image, np.zeros((3, 4), np.uint8))
  np.testing.assert_array_equal(overlay.picture(2), image.repeat(3, -1))


@pytest.mark.parametrize('size', [(33, 47), (35, 49), (20, 50)])
def test_large_images_are_reduced(size, monkeypatch):
  monkeypatch.setattr(overlays, '_LARGEST', 10)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
  overlay = _add(overlays.Overlay(size), image, np.zeros(size, np.uint8))
  # Means of 5 x 5 pixels; those at the edges repeat the last ones.
  padded = np.pad(
    image, [(0, -size[0] % 5), (0, -size[1] % 5), (0, 0)], mode='edge'
  ).astype(float)
  h, w = padded.shape[0] // 5, padded.shape[1] // 5
  expected = padded.reshape(h, 5, w, 5, 3).mean((1, 3))
  found = overlay.picture(2)
  assert max(found.shape) <= 10
  np.testing.assert_allclose(found, expected, atol=0.51)


def test_classes_are_those_in_the_middle(monkeypatch):
  monkeypatch.setattr(overlays, '_LARGEST', 4)
  classes = np.zeros((9, 12), np.uint8)
  classes[4, 4] = 1
  overlay = overlays.Overlay((9, 12))
  _add(overlay, np.zeros((9, 12, 3), np.uint8), classes)
  colored = overlay.picture(2).any(-1)
  assert np.argwhere(colored).tolist() == [[1, 1]]
