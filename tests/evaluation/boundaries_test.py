"""Outlines against SciPy, MONAI and distances of all pairs of pixels."""

import warnings

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from scipy.spatial import distance

from unet_jax.evaluation import boundaries


def _blobs(num_classes=3, shape=(40, 50), seed=0, noise=0.0):
  """A mask and a prediction that is the mask shifted, with some noise."""
  rng = np.random.default_rng(seed)
  noises = rng.normal(size=(num_classes, *shape))
  fields = ndimage.gaussian_filter(noises, (0, 5, 5))
  mask = fields.argmax(0).astype(np.uint8)
  prediction = np.roll(mask, (1, 3), (0, 1))
  random = rng.integers(0, num_classes, shape)
  wrong = rng.random(shape) < noise
  return mask, np.where(wrong, random, prediction).astype(np.uint8)


def _measure(mask, prediction, num_classes=3, ratio=0.05, tolerance=2.0):
  return boundaries.measure(mask, prediction, num_classes, ratio, tolerance)


def _region(binary, times):
  """The authors' `mask_to_boundary`, with SciPy."""
  return binary & ~ndimage.binary_erosion(binary, np.ones((3, 3)), times)


def _edges(binary):
  return binary & ~ndimage.binary_erosion(binary)


def _by_all_pairs(truth, found):
  a, b = np.argwhere(_edges(truth)), np.argwhere(_edges(found))
  pairs = distance.cdist(a, b)
  return pairs.min(1), pairs.min(0)


@pytest.mark.parametrize('times', [1, 2, 5, 100])
def test_region_is_what_erosions_take_away(times):
  mask, _ = _blobs()
  for c in range(3):
    region = boundaries.boundary_region((mask == c).astype(np.uint8), times)
    assert_array_equal(region, _region(mask == c, times))


def test_boundary_distance():
  for shape, ratio, expected in (
    ((30, 40), 0.02, 1),
    ((300, 400), 0.02, 10),
    ((375, 500), 0.02, 12),  # 12.5, to the even number, as Python has it.
    ((4, 3), 0.001, 1),
    ((1, 1), 0.0, 1),
  ):
    assert boundaries.boundary_distance(shape, ratio) == expected, shape


@pytest.mark.parametrize('ignored', [0.0, 0.1])
def test_boundary_counts_are_those_of_scipy(ignored):
  mask, prediction = _blobs()
  mask[np.random.default_rng(1).random(mask.shape) < ignored] = 255
  actual = _measure(mask, prediction)['boundary']
  assert actual.dtype == np.int64
  for c in range(3):
    # 5 % of the diagonal of 40 x 50.
    a = _region(mask == c, 3)
    b = _region((prediction == c) & (mask != 255), 3)
    assert_array_equal(actual[c], [(a & b).sum(), (a | b).sum()])


@pytest.mark.parametrize('uses_ipp', [True, False])
def test_surface_distances_are_exact_by_either_algorithm(monkeypatch, uses_ipp):
  """OpenCV has two, in float32; which one it takes may change between runs."""
  monkeypatch.setattr(boundaries, '_SPARSE', 0)
  rng = np.random.default_rng(0)
  truth, found = (rng.random((2, 40, 1300)) < 0.01).astype(np.uint8)
  # Beyond what float32 tells apart, too.
  found[:, 100:] = 0
  before = cv2.ipp.useIPP()
  cv2.ipp.setUseIPP(uses_ipp)
  try:
    there, back = boundaries.surface_distances(truth, found)
  finally:
    cv2.ipp.setUseIPP(before)
  for actual, start, goal in ((there, truth, found), (back, found, truth)):
    # Single pixels are their own edges.
    expected = ndimage.distance_transform_edt(1 - goal)[start > 0]
    assert_array_equal(actual, expected)
  assert there.max() > 1100


@pytest.mark.parametrize('sparse', [0.0, 1.0], ids=['transform', 'tree'])
@pytest.mark.parametrize('noise', [0.0, 0.1, 0.5])
def test_distances_are_the_least_of_all_pairs(noise, sparse, monkeypatch):
  monkeypatch.setattr(boundaries, '_SPARSE', sparse)
  mask, prediction = _blobs(noise=noise)
  for c in range(3):
    binary = [x == c for x in (mask, prediction)]
    actual = boundaries.surface_distances(*(x.astype(np.uint8) for x in binary))
    for distances, expected in zip(actual, _by_all_pairs(*binary)):
      assert_allclose(distances, expected, rtol=1e-6)


def _one_hot(array, valid):
  torch = pytest.importorskip('torch', reason='MONAI works on its tensors')
  hot = [(array == c) & valid for c in range(3)]
  return torch.from_numpy(np.stack(hot)[None].astype(np.float32))


def _monai(mask, prediction, tolerance):
  """HD95 and NSD of each class."""
  metrics = pytest.importorskip('monai.metrics', reason='compares with MONAI')
  valid = mask != 255
  tensors = _one_hot(prediction, valid), _one_hot(mask, valid)
  hd95 = metrics.HausdorffDistanceMetric(True, percentile=95)
  nsd = metrics.SurfaceDiceMetric([tolerance] * 3, include_background=True)
  with warnings.catch_warnings():
    # That a class is empty, which is what is tested.
    warnings.simplefilter('ignore')
    return [metric(*tensors).numpy()[0] for metric in (hd95, nsd)]


@pytest.mark.parametrize('tolerance', [0.0, 1.0, 2.0, 2.5])
@pytest.mark.parametrize('seed,noise', [(0, 0.0), (1, 0.02), (2, 0.3)])
def test_hd95_and_nsd_are_those_of_monai(seed, noise, tolerance):
  mask, prediction = _blobs(seed=seed, noise=noise)
  if seed:
    mask[:7, 5:20] = 255
  actual = _measure(mask, prediction, tolerance=tolerance)
  hd95, nsd = _monai(mask, prediction, tolerance)
  assert_allclose(actual['hd95'], hd95, rtol=1e-6)
  within, of = actual['nsd'].T
  assert_allclose(within / of, nsd, rtol=1e-6)


def test_absent_classes_are_those_of_monai():
  mask, prediction = np.zeros((2, 9, 9), np.uint8)
  mask[2, 3] = 1  # One pixel, not found; class 2 is nowhere.
  actual = _measure(mask, prediction)
  hd95, nsd = _monai(mask, prediction, 2.0)
  # MONAI's distances are infinite, but their percentile is NaN.
  assert actual['hd95'][1] == np.inf
  assert nsd[1] == 0
  assert_array_equal(actual['nsd'][1], [0, 1])
  assert np.isnan([actual['hd95'][2], hd95[2], nsd[2]]).all()
  assert_array_equal(actual['nsd'][2], [0, 0])
  assert_array_equal(actual['boundary'][1:], [[0, 1], [0, 0]])
  # The other way round: predicted, but absent.
  again = _measure(prediction, mask)
  for name in ('hd95', 'nsd'):
    assert_array_equal(again[name], actual[name])


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (12, 10)])
def test_one_class_that_fills_the_image(shape):
  mask = np.ones(shape, np.uint8)
  actual = _measure(mask, mask, tolerance=0.0)
  edges = _edges(mask.astype(bool)).sum()
  assert_array_equal(actual['nsd'], [[0] * 2, [2 * edges] * 2, [0] * 2])
  assert_array_equal(actual['hd95'], [np.nan, 0, np.nan])
  region = _region(mask.astype(bool), 1).sum()
  assert_array_equal(actual['boundary'][1], [region, region])


def test_pixels_beside_one_another():
  mask, prediction = np.zeros((2, 20, 20), np.uint8)
  mask[5, 5] = prediction[8, 9] = 1
  actual = _measure(mask, prediction, tolerance=5.0)
  assert actual['hd95'][1] == 5
  assert_array_equal(actual['nsd'][1], [2, 2])
  actual = _measure(mask, prediction, tolerance=4.99)
  assert_array_equal(actual['nsd'][1], [0, 2])


def test_perfect_predictions_stay_so_beside_ignored_pixels():
  mask, _ = _blobs()
  prediction = mask.copy()
  mask[10:20, 5:30] = 255
  actual = _measure(mask, prediction, tolerance=0.0)
  assert_array_equal(actual['hd95'], 0)
  for name in ('boundary', 'nsd'):
    assert_array_equal(actual[name][:, 0], actual[name][:, 1])
    assert (actual[name] > 0).all()


def test_nothing_counts_where_all_is_ignored():
  mask, prediction = np.full((8, 9), 255, np.uint8), np.ones((8, 9), np.uint8)
  actual = _measure(mask, prediction)
  assert not actual['boundary'].any() and not actual['nsd'].any()
  assert np.isnan(actual['hd95']).all()
  assert not boundaries.band(mask, 3, 3.0).any()


@pytest.mark.parametrize('width', [1.0, 1.5, 3.0, 60.0])
def test_band_is_where_another_class_is_near(width):
  mask, _ = _blobs(shape=(21, 27))
  mask[8:12, :9] = 255
  expected = np.zeros(mask.shape, bool)
  for c in range(3):
    # The distance to the nearest pixel of the other two.
    other = (mask != c) & (mask != 255)
    near = ndimage.distance_transform_edt(~other) <= width
    expected |= near & (mask == c)
  actual = boundaries.band(mask, 3, width)
  assert_array_equal(actual, expected)
  assert actual.any() and (width > 3 or not actual[mask != 255].all())
  # One class alone has no band.
  assert not boundaries.band(np.zeros((5, 1), np.uint8), 2, 3.0).any()
