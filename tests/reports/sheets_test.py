"""Predictions side by side, and legends."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from unet_jax.reports import colors, sheets

_NAMES = ('ground', 'cell', 'rim')
_TOP = 22  # Of the titles.


def _panels(sheet, shape, top=_TOP):
  """The four panels of a row, each pixel by the middle of its square."""
  pixels, scale = np.asarray(sheet), sheets.PANEL / max(shape)
  ys, xs = (((np.arange(n) + 0.5) * scale).astype(int) for n in shape)
  width = round(shape[1] * scale)
  for i in range(4):
    step = sheets.PANEL + sheets.GAP
    left = sheets.GAP + i * step + (sheets.PANEL - width) // 2
    yield pixels[top + ys][:, left + xs]


def test_predictions_side_by_side(tmp_path):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (6, 8, 3), np.uint8)
  mask = rng.integers(0, 3, (6, 8)).astype(np.uint8)
  prediction = mask.copy()
  prediction[2, 3] = (mask[2, 3] + 1) % 3
  mask[0, 0] = 255
  rgb = {'image': image, 'mask': mask, 'prediction': prediction}
  # Grey, and of a `valid` network, which predicts the centre.
  grey = {'image': image[..., :1], 'mask': mask, 'prediction': mask[1:5, 2:5]}
  path = tmp_path / 'figures/predictions.png'
  sheets.write_predictions(str(path), [rgb, grey], _NAMES)
  with Image.open(path) as sheet:
    of_rgb = list(_panels(sheet, (6, 8)))
    second = _TOP + round(6 / 8 * sheets.PANEL) + sheets.GAP
    of_grey = list(_panels(sheet, (4, 3), second))
  assert_array_equal(of_rgb[0], image)
  assert_array_equal(of_rgb[1], colors.color_mask(mask, 3))
  assert_array_equal(of_rgb[2], colors.color_mask(prediction, 3))
  errors = of_rgb[3]
  assert tuple(errors[2, 3]) == (220, 40, 40)
  assert tuple(errors[0, 0]) == (255, 255, 255)
  assert (errors == (220, 40, 40)).all(-1).sum() == 1
  assert_array_equal(of_grey[0], image[1:5, 2:5, :1].repeat(3, -1))
  assert_array_equal(of_grey[1], colors.color_mask(mask[1:5, 2:5], 3))
  assert not (of_grey[3] == (220, 40, 40)).all(-1).any()


@pytest.fixture
def labels(monkeypatch):
  """The labels of the legends that are drawn."""
  found, legend = [], sheets.legend

  def keep(labels, *args):
    found.append(labels)
    return legend(labels, *args)

  monkeypatch.setattr(sheets, 'legend', keep)
  return found


def _example(shape=(4, 4), image=0, mask=0):
  whole = lambda value: np.full(shape, value, np.uint8)
  image = whole(image)[..., None] if np.isscalar(image) else image
  return {'image': image, 'mask': whole(mask), 'prediction': whole(0)}


def test_legend_names_ignored_pixels_only_where_there_are_any(labels):
  sheets.predictions([_example()], _NAMES)
  sheets.predictions([_example(mask=255)], ('a', 'b' * 40))
  assert labels == [list(_NAMES), ['a', 'b' * 23 + '…', 'ignored']]


def test_many_classes_are_named_below_one_another():
  few = sheets.predictions([_example()], _NAMES)
  many = sheets.predictions([_example()], [f'class {i}' for i in range(40)])
  assert few.width == many.width and many.height > few.height + 50


def test_dim_images_are_stretched_and_it_is_said():
  dim = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
  plain = sheets.predictions([_example(image=200)], _NAMES)
  sheet = sheets.predictions([_example(image=dim)], _NAMES)
  assert np.ptp(next(_panels(sheet, (4, 4)))) > 200
  assert sheet.height == plain.height + 22


def test_large_images_are_shrunk_without_mixing_classes():
  rng = np.random.default_rng(0)
  example = _example((700, 500), rng.integers(0, 256, (700, 500, 3), np.uint8))
  example['mask'] = rng.integers(0, 3, (700, 500)).astype(np.uint8)
  sheet = sheets.predictions([example], _NAMES)
  image, mask, *_ = _panels(sheet, (sheets.PANEL, round(sheets.PANEL * 5 / 7)))
  assert image.std() < 0.7 * example['image'].std()
  found = {tuple(color) for color in mask.reshape(-1, 3).tolist()}
  assert found == {tuple(c) for c in colors.class_colors(3).tolist()}
