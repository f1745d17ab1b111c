"""Polygons cover the pixels of their parts exactly."""

import json

import numpy as np
import pytest
import scipy.ndimage

from unet_jax.prediction import contours

_NAMES = ('ground', 'cell', 'border')


def _area(ring) -> float:
  """Signed, by the shoelace formula."""
  points = np.array(ring)
  x, y = points.T
  return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


def _inside(ring, shape) -> np.ndarray:
  """Whether the middle of each pixel is inside, by the crossings to its left.

  Only edges that are upright count; each inverts all pixels to its right.
  """
  crossings = np.zeros((shape[0], shape[1] + 1), int)
  for (x0, y0), (x1, y1) in zip(ring, ring[1:]):
    if x0 == x1:
      crossings[min(y0, y1) : max(y0, y1), x0] += 1
  return np.cumsum(crossings, 1)[:, :-1] % 2 == 1


def _rasterise(feature, shape) -> np.ndarray:
  outer, *holes = feature['geometry']['coordinates']
  filled = _inside(outer, shape)
  for hole in holes:
    inside = _inside(hole, shape)
    assert np.all(filled[inside])
    filled &= ~inside
  return filled


@pytest.mark.parametrize('smooth', [0, 1, 2])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.9])
def test_polygons_cover_their_pixels(share, smooth):
  rng = np.random.default_rng(0)
  noise = scipy.ndimage.gaussian_filter(rng.random((40, 57)), smooth)
  classes = (noise > np.quantile(noise, 1 - share)).astype(np.uint8)
  classes[noise > np.quantile(noise, 1 - share / 2)] = 2
  probabilities = rng.integers(90, 256, classes.shape).astype(np.uint8)
  found = list(contours.features(classes, probabilities, _NAMES))
  for c, name in enumerate(_NAMES[1:], 1):
    labels, count = scipy.ndimage.label(classes == c)
    features = [f for f in found if f['properties']['class'] == name]
    assert len(features) == count
    for feature in features:
      filled = _rasterise(feature, classes.shape)
      part = labels == labels[filled][0]
      np.testing.assert_array_equal(filled, part)
      properties = feature['properties']
      assert properties['class_index'] == c
      assert properties['area'] == part.sum()
      mean = probabilities[part].mean() / 255
      assert properties['mean_probability'] == pytest.approx(mean, abs=5.1e-5)
      rings = feature['geometry']['coordinates']
      assert sum(map(_area, rings)) == part.sum()
      assert all(_area(ring) < 0 for ring in rings[1:])
      for ring in rings:
        assert ring[0] == ring[-1]
        # No point twice: a ring touches itself nowhere.
        assert len({tuple(point) for point in ring[1:]}) == len(ring) - 1
        # Every point is a corner.
        upright = np.diff(np.array(ring)[:, 0]) == 0
        assert np.all(upright != np.roll(upright, 1))


def test_corners_alone_are_named():
  classes = np.zeros((6, 8), np.uint8)
  classes[1:5, 2:7] = 1
  classes[2, 3:5] = 0
  (feature,) = contours.features(classes, classes * 255, _NAMES)
  outer, hole = feature['geometry']['coordinates']
  assert sorted(outer[1:]) == [[2, 1], [2, 5], [7, 1], [7, 5]]
  assert sorted(hole[1:]) == [[3, 2], [3, 3], [5, 2], [5, 3]]
  properties = {'class': 'cell', 'class_index': 1}
  properties |= {'area': 18, 'mean_probability': 1.0}
  assert feature['properties'] == properties


def test_text_is_geojson():
  classes = np.eye(3, dtype=np.uint8)
  found = list(contours.features(classes, classes * 255, _NAMES))
  parsed = json.loads(''.join(contours.to_text(iter(found))))
  assert parsed['type'] == 'FeatureCollection'
  assert 'upper left corner' in parsed['coordinates']
  assert parsed['features'] == found and len(found) == 3
  empty = json.loads(''.join(contours.to_text(iter(()))))
  assert empty['features'] == []
