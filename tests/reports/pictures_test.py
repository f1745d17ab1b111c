"""The panels of pages, as a browser paints them."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests import html_page
from unet_jax.reports import colors, pictures

_IMAGE, _OUTLINED, _OVERLAY = 0, 1, 2


def _example(size=(40, 60), channels=3):
  rng = np.random.default_rng(5)
  mask = np.zeros(size, np.uint8)
  mask[10:30, 20:45] = 1
  image = rng.integers(0, 256, (*size, channels), np.uint8)
  return {'name': 'a.png', 'image': image, 'mask': mask}


def _paint(panels, i):
  """The layers of a panel, which may show those of earlier panels again."""
  layers = [layer for panel in panels for layer in panel.layers]
  uris = {layer.key: layer.uri for layer in layers if layer.uri}
  shown = panels[i].layers
  return [html_page.decode(layer.uri or uris[layer.key]) for layer in shown]


def _paint_arrays(panels, i):
  return [np.asarray(layer) for layer in _paint(panels, i)]


def _places(panels):
  """How many layers lie in the page, and how many show these again."""
  uris = [bool(layer.uri) for panel in panels for layer in panel.layers]
  return uris.count(True), uris.count(False)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'size,shown,lines',
  [
    ((40, 60), (40, 60), (160, 240)),
    ((128, 100), (128, 100), (128, 100)),
    ((300, 480), (150, 240), (150, 240)),
    ((30, 4000), (2, 240), (2, 240)),
  ],
)
def test_size_of_pictures(size, shown, lines, channels):
  example = _example(size, channels)
  panels = pictures.example_panels(example, 3)
  (plain,) = _paint(panels, _IMAGE)
  photo, outline = _paint(panels, _OUTLINED)
  _, overlay = _paint(panels, _OVERLAY)
  assert photo == plain
  # The photo lies in the page once, and so do the two layers on it.
  assert _places(panels) == (3, 2)
  assert plain.size == overlay.size == shown[::-1]
  assert outline.size == lines[::-1]
  assert plain.mode == ('L' if channels == 1 else 'RGB')
  if max(size) <= 64:
    assert_array_equal(np.asarray(plain), example['image'].squeeze())
    expected = colors.color_mask(example['mask'], 3)
    assert_array_equal(np.asarray(overlay), expected)
  # All layers fill the same box.
  assert {panel.size for panel in panels} == {shown}


def test_masks_are_shrunk_to_the_centres_of_pixels():
  """As the image is, so that the two do not shift against each other."""
  example = _example(size=(720, 360))
  example['mask'][:] = 0
  example['mask'][1::3, 1::3] = 1
  panels = pictures.example_panels(example, 3)
  _, overlay = _paint_arrays(panels, _OVERLAY)
  assert overlay.shape == (240, 120, 3)
  assert (overlay == (230, 159, 0)).all()


def test_outline_lies_on_the_border():
  panels = pictures.example_panels(_example(), 3)
  _, layer = _paint_arrays(panels, _OUTLINED)
  # The rectangle [10:30, 20:45], at four times the size.
  inside = np.zeros((160, 240), bool)
  inside[40:120, 80:180] = True
  inner = inside.copy()
  inner[41:119, 81:179] = False
  outer = np.zeros((160, 240), bool)
  outer[39:121, 79:181] = True
  outer &= ~inside
  outer[[39, 39, 120, 120], [79, 180, 79, 180]] = False  # Not beside it.
  assert (layer[inner] == (230, 159, 0, 255)).all()
  assert (layer[outer] == (0, 0, 0, 255)).all()
  assert not layer[~inner & ~outer, 3].any()


def test_outline_beside_ignored_pixels():
  mask = np.array([[0, 0, 255, 255, 2, 2, 1, -1]], np.int16)
  line = pictures.outline(np.repeat(mask, 2, 0), 3)
  black, white, blue, none = [0] * 3, [255] * 3, [86, 180, 233], [0] * 3
  expected = [none, black, white, black, blue, blue, black, none]
  assert_array_equal(line[0, :, :3], expected)
  alpha = [0, 255, 255, 255, 255, 255, 255, 0]
  assert_array_equal(line[1, :, 3], alpha)


def test_batch_of_a_valid_network():
  example = _example()
  mask = example['mask'][10:30, 10:50]
  weights = np.linspace(0, 8, 20 * 40).reshape(20, 40)
  shown = {'image': example['image'], 'mask': mask, 'weight_map': weights}
  panels = pictures.batch_panels(shown, 'image 0', 3, 8.0)
  photo, outline = _paint_arrays(panels, 0)
  assert_array_equal(photo, example['image'])
  alpha = outline[..., 3]
  context = np.ones((160, 240), bool)
  context[40:120, 40:200] = False
  assert (alpha[context] == 140).all() and (alpha[~context] != 140).all()
  # The rectangle reaches the mask's edge, which is no border.
  assert not alpha[40, 100] and alpha[60, 80] == 255
  (drawn,) = _paint_arrays(panels, 1)
  assert_array_equal(drawn, colors.color_mask(mask, 3))
  (drawn,) = _paint_arrays(panels, 2)
  assert_array_equal(drawn, colors.color_scale(weights / 8))


@pytest.mark.parametrize('channels', [1, 3])
def test_prediction_side_by_side(channels):
  example = _example(channels=channels)
  example['mask'][:2] = 255
  example['prediction'] = example['mask'].copy()
  example['prediction'][:2] = 0
  example['prediction'][10:12, 20:45] = 2
  panels = pictures.prediction_panels(example, 3)
  (photo,) = _paint_arrays(panels, 0)
  assert_array_equal(photo, example['image'].squeeze())
  for i, what in ((1, 'mask'), (2, 'prediction')):
    (drawn,) = _paint_arrays(panels, i)
    assert_array_equal(drawn, colors.color_mask(example[what], 3))
  below, errors = _paint_arrays(panels, 3)
  assert_array_equal(below, photo)
  expected = np.full((40, 60, 4), (255, 255, 255, 190), np.uint8)
  expected[:2] = 255
  expected[10:12, 20:45] = 220, 40, 40, 255
  assert_array_equal(errors, expected)
  # The photo lies in the page once.
  assert _places(panels) == (4, 1)


def test_prediction_of_a_valid_network():
  example = _example()
  example['prediction'] = example['mask'][10:30, 10:50].copy()
  example['prediction'][0, 0] = 1
  panels = pictures.prediction_panels(example, 3)
  (photo,) = _paint_arrays(panels, 0)
  assert_array_equal(photo, example['image'][10:30, 10:50])
  _, errors = _paint_arrays(panels, 3)
  wrong = (errors == (220, 40, 40, 255)).all(-1)
  assert wrong.sum() == 1 and wrong[0, 0]


def test_dim_images_are_stretched():
  """A set of few levels, as 12 of 255, is not shown black."""
  rng = np.random.default_rng(0)
  image = rng.integers(3, 15, (40, 60, 1), np.uint8)
  shown, note = pictures.stretch(image)
  assert note == 'levels 3 to 14 stretched'
  assert shown.min() == 0 and shown.max() == 255
  assert len(np.unique(shown)) == 12
  # Brighter stays brighter.
  assert (
    np.diff(shown.ravel()[np.argsort(image.ravel())].astype(int)) >= 0
  ).all()
  panels = pictures.example_panels({**_example(), 'image': image}, 3)
  assert _paint_arrays(panels, _IMAGE)[0].max() == 255


@pytest.mark.parametrize(
  'levels', [(0, 255), (100, 200), (7, 7), (7, 9)], ids=str
)
def test_other_images_are_shown_as_they_are(levels):
  """So are images of one colour: there would be noise."""
  image = np.resize(np.array(levels, np.uint8), (40, 60, 3))
  shown, note = pictures.stretch(image)
  assert_array_equal(shown, image)
  assert note == ''
