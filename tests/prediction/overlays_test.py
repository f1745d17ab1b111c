"""Pictures of images under their classes."""

import numpy as np
import pytest
from PIL import Image

from unet_jax.prediction import overlays, predictor
from unet_jax.reports import colors


def _overlay(path, image, classes, num_classes=2, seed=0):
  """A file to which all rows were written; not closed."""
  raster = predictor.WholeImage(image)
  file = overlays.OverlayFile(path / 'a.jpg', raster, num_classes)
  heights = np.random.default_rng(seed).integers(1, 9, len(image))
  stops = [n for n in np.cumsum(heights) if n < len(image)]
  for rows in np.split(classes, stops):
    file.write(rows)
  return file


@pytest.fixture
def draw(tmp_path):
  """A function that returns the picture of an image and its classes."""
  files = []

  def call(*args):
    files.append(_overlay(tmp_path, *args))
    return files[-1].picture()

  yield call
  for file in files:
    file.abort()


@pytest.mark.parametrize('count', [2, 7, 45])
def test_legend(tmp_path, count):
  """Each class has a square of its colour, but for the first, and a name."""
  names = ['background', *(f'class {"ij" * i}' for i in range(1, count))]
  overlays.write_legend(tmp_path / 'overlays', names)
  assert [p.name for p in (tmp_path / 'overlays').iterdir()] == ['legend.png']
  with Image.open(tmp_path / 'overlays/legend.png') as found:
    legend = np.asarray(found)
  assert max(legend.shape) < 30 * 22 + 22 * count
  squares = [
    np.argwhere((legend == color).all(-1))
    for color in colors.class_colors(count)[1:]
  ]
  # 14 x 14 px inside of a line.
  assert min(map(len, squares)) >= 14**2
  # Names do not run into the next square, nor out of the picture.
  assert np.all(legend[:, -1] == 255) and np.all(legend[-1] == 255)
  first = squares[0].min(0)
  assert np.all(legend[: first[0] - 6, :3] == 255)


def test_file(tmp_path):
  image = np.full((16, 24, 3), (200, 30, 90), np.uint8)
  file = _overlay(tmp_path, image, np.zeros((16, 24), np.uint8))
  file.close()
  with Image.open(tmp_path / 'a.jpg') as found:
    assert found.format == 'JPEG'
    np.testing.assert_allclose(np.asarray(found), image, atol=3)


def test_colors_and_outlines(draw):
  image = np.full((12, 14, 3), (100, 50, 200), np.uint8)
  classes = np.zeros((12, 14), np.uint8)
  classes[2:10, 3:12] = 2
  expected = image.copy()
  color = colors.class_colors(3)[2]
  expected[2:10, 3:12] = color
  expected[3:9, 4:11] = np.rint(0.6 * image[0, 0] + 0.4 * color.astype(float))
  np.testing.assert_array_equal(draw(image, classes, 3), expected)


def test_grey_images_become_rgb(draw):
  image = 20 * np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
  picture = draw(image, np.zeros((3, 4), np.uint8))
  np.testing.assert_array_equal(picture, image.repeat(3, -1))


@pytest.mark.parametrize('size', [(33, 47), (35, 49), (20, 50)])
def test_large_images_are_reduced(size, draw, monkeypatch):
  monkeypatch.setattr(overlays, '_LARGEST', 10)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
  # Means of 5 x 5 pixels; those at the edges repeat the last ones.
  added = [(0, -size[0] % 5), (0, -size[1] % 5), (0, 0)]
  padded = np.pad(image, added, mode='edge').astype(float)
  h, w = padded.shape[0] // 5, padded.shape[1] // 5
  expected = padded.reshape(h, 5, w, 5, 3).mean((1, 3))
  found = draw(image, np.zeros(size, np.uint8))
  assert max(found.shape) <= 10
  np.testing.assert_allclose(found, expected, atol=0.51)


def test_classes_are_those_in_the_middle(draw, monkeypatch):
  monkeypatch.setattr(overlays, '_LARGEST', 4)
  classes = np.zeros((9, 12), np.uint8)
  classes[4, 4] = 1
  colored = draw(np.zeros((9, 12, 3), np.uint8), classes).any(-1)
  assert np.argwhere(colored).tolist() == [[1, 1]]


def test_dim_images_are_stretched(draw):
  """And a line at the bottom says so."""
  image = np.resize(np.arange(3, 15, dtype=np.uint8), (60, 200, 1))
  picture = draw(image, np.zeros((60, 200), np.uint8))
  assert picture[0, 0].max() == 0 and picture[0, 11].min() == 255
  is_white = (picture[45:] == 255).all(-1)
  # The image itself has one white column in twelve.
  assert is_white.any(0).sum() > 30
