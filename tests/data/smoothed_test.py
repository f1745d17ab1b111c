"""What smooth resizing leaves in masks, and right masks that look alike."""

import itertools
import pathlib

import cv2
import numpy as np
import pytest
from PIL import Image

from unet_jax.data import smoothed

_PILLOW = Image.Resampling
_PETS = pathlib.Path('../shared/data/oxford_pets_128/annotations/trimaps')


def _shapes(seed, *values, size=192):
  rng = np.random.default_rng(seed)
  mask = np.full((size, size), values[0], np.uint8)
  for i in range(6):
    y, x = rng.integers(0, size, 2).tolist()
    a, b = rng.integers(size // 16, size // 5, 2).tolist()
    value = values[1 + i % (len(values) - 1)]
    if i % 2:
      cv2.ellipse(mask, (x, y), (a, b), 30 * i, 0, 360, value, -1)
    else:
      mask[y : y + a, x : x + b] = value
  return mask


def _outlined(mask, width):
  """Every border becomes a line of value 1; 0 and 1 of the mask are 0 and 2."""
  lines = np.zeros_like(mask)
  outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
  cv2.drawContours(lines, outlines, -1, 1, width)
  return np.where(lines == 1, np.uint8(1), 2 * mask)


def _resized(mask, scale, kind):
  size = tuple(int(n * scale) for n in mask.shape[::-1])
  if isinstance(kind, _PILLOW):
    return np.asarray(Image.fromarray(mask).resize(size, kind))
  return cv2.resize(mask, size, interpolation=kind)


_KINDS = {
  'bilinear': _PILLOW.BILINEAR,
  'bicubic': _PILLOW.BICUBIC,
  'Lanczos': _PILLOW.LANCZOS,
  'OpenCV bilinear': cv2.INTER_LINEAR,
  'OpenCV area': cv2.INTER_AREA,
}


@pytest.mark.parametrize('scale', [0.37, 0.5, 0.77])
@pytest.mark.parametrize('kind', _KINDS)
@pytest.mark.parametrize(
  'values', [(0, 255), (0, 2), (0, 1, 2), (0, 5, 15), (0, 1, 2, 3, 4, 5)]
)
def test_smoothed_masks_are_found(values, kind, scale):
  found = [
    smoothed.find(_resized(_shapes(seed, *values), scale, _KINDS[kind]))
    for seed in range(6)
  ]
  known = [f for f in found if f]
  assert len(known) >= 3
  for f in known:
    assert set(f.drawn) <= set(values)
    assert set(f.values) & set(range(values[0] + 1, values[-1]))
    assert 0 < f.share < 0.2


@pytest.mark.parametrize('kind', list(_KINDS)[:3])
def test_enlarged_black_and_white(kind):
  mask = _resized(_shapes(0, 0, 255), 2.5, _KINDS[kind])
  assert smoothed.find(mask).drawn == (0, 255)
  # Other types, too.
  assert smoothed.find(100 * mask.astype(np.int64)).drawn == (0, 25500)


@pytest.mark.parametrize('kind', ['bilinear', 'OpenCV bilinear'])
@pytest.mark.parametrize('values', [(0, 2), (0, 1, 2)])
def test_few_neighbouring_values_that_were_enlarged_two_times(values, kind):
  """Lines of a class between two others, everywhere, but at every second place.

  By cubic resizing and Lanczos', 0 and 2 have nothing between them.
  """
  for seed in range(6):
    mask = _resized(_shapes(seed, *values), 2, _KINDS[kind])
    for cut in (mask, mask[3:, 1:], 3 + mask.T.astype(np.int32)):
      found = smoothed.find(cut)
      middle = int(cut.min()) + 1
      assert found.values == (middle,)
      assert {middle - 1, middle + 1} <= set(found.drawn)
    nearest = _shapes(seed, *values).repeat(2, 0).repeat(2, 1)
    assert smoothed.find(nearest) is None


def test_right_masks_are_not():
  for seed in range(6):
    mask = _shapes(seed, 0, 1)
    assert smoothed.find(mask) is None
    for width in (1, 2, 3):
      lines = _outlined(mask, width)
      for right in (lines, lines.repeat(2, 0).repeat(2, 1)):
        assert smoothed.find(right) is None
    # A line along some of the borders, and every class a thin layer.
    part = _outlined(mask, 1)
    part[:96] = 2 * mask[:96]
    assert smoothed.find(part) is None
    assert smoothed.find(_shapes(seed, 0, 1, 2, 3, 4)) is None
    layers = np.arange(192) // (2 + seed)
    assert smoothed.find(np.tile(layers[:, None], 192)) is None
    # Patches of a few pixels, of many classes.
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 9, (64, 64), np.uint8)
    for side in (1, 2, 3):
      large = patches.repeat(side, 0).repeat(side, 1)
      assert smoothed.find(large) is None


@pytest.mark.skipif(not _PETS.is_dir(), reason='needs the pets')
def test_real_trimaps_in_any_order_are_not():
  for path in sorted(_PETS.iterdir())[:12]:
    mask = np.asarray(Image.open(path))
    for order in itertools.permutations((0, 1, 2)):
      turned = np.array([0, *order], np.uint8)[mask]
      for scale in (1, 0.5):
        small = _resized(turned, scale, _PILLOW.NEAREST)
        assert smoothed.find(small) is None


def test_values_of_areas():
  mask = _shapes(0, 0, 7)
  mask[::9, ::7] = 3
  mask[100:102] = 5
  assert smoothed.drawn_values(mask) == (0, 7)
  assert smoothed.drawn_values(mask.astype(np.int32) - 3) == (-3, 4)
  # Ids of more objects than a byte has are none to speak of.
  assert smoothed.drawn_values(np.arange(400).reshape(20, 20)) == ()
