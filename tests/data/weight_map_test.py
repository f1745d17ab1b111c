"""Weight maps against the formula: one whole transform for each instance."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import ndimage
from skimage import measure

from unet_jax.config import default
from unet_jax.data import weight_map


def _formula(instances, weight, sigma):
  """Equation 2's border term with the plain definition of d1 and d2."""
  distances = [
    ndimage.distance_transform_edt(instances != i)
    for i in np.unique(instances[instances != 0])
  ]
  if len(distances) < 2:
    return np.zeros(instances.shape)
  d1, d2 = np.sort(distances, axis=0)[:2]
  term = weight * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
  return np.where(instances == 0, term, 0)


def _blobs(seed, size=(97, 130), level=0.6):
  """Instances of many shapes, also at the border."""
  noise = np.random.default_rng(seed).random(size)
  noise = ndimage.gaussian_filter(noise, 3)
  return measure.label(noise > np.quantile(noise, level), connectivity=1)


@pytest.mark.parametrize('level', [0.6, 0.98])
@pytest.mark.parametrize('weight, sigma', [(10.0, 5.0), (3.0, 1.5), (50.0, 9)])
def test_border_term_is_the_formula(weight, sigma, level):
  instances = _blobs(0, level=level)
  got = weight_map.border_term(instances, weight, sigma)
  expected = _formula(instances, weight, sigma)
  assert got.dtype == np.float32
  assert_allclose(got, expected, atol=1.001e-4)
  assert np.ptp(instances) > 5 and expected.max() > 0.02
  # Left out only where it is negligible.
  assert np.all(got[expected > 1.001e-4] > 0)


def test_instances_of_several_parts_and_any_numbers():
  """A number is an instance, also in pieces; gaps in the numbers, a frame."""
  instances = np.zeros((40, 60), np.uint16)
  instances[5:9, 5:9] = instances[5:9, 30:40] = 1000
  instances[14:20, 4:50] = 7
  instances[0] = instances[-1] = 65535
  got = weight_map.border_term(instances, 10.0, 5.0)
  assert_allclose(got, _formula(instances, 10, 5), atol=1.001e-4)
  # Between the two pieces of one instance is no border.
  alone = np.where(instances == 1000, 1000, 0)
  assert not weight_map.border_term(alone, 10.0, 5.0).any()


_GAP = 10 * np.exp(-9 / 8)


@pytest.mark.parametrize(
  'instances, expected',
  [
    # Fewer than two.
    ([[0, 0, 0, 0]], [[0, 0, 0, 0]]),
    ([[3, 3], [3, 3]], [[0, 0], [0, 0]]),
    # Two pixels apart on one line: in the gap d1 + d2 = 1 + 2.
    ([[1, 0, 0, 2]], [[0, _GAP, _GAP, 0]]),
  ],
)
def test_border_term_by_hand(instances, expected):
  got = weight_map.border_term(np.array(instances), 10.0, 2.0)
  assert_allclose(got, expected, rtol=1e-6)


def test_connected_instances_of_each_class():
  mask = np.array(
    [[1, 1, 0, 2, 2], [0, 0, 1, 2, 255], [3, 0, 1, 1, 255], [3, 0, 0, 0, 1]],
    np.uint8,
  )
  got = weight_map.connected_instances(mask)
  # Diagonal neighbours are two; those of other classes are apart.
  groups = [
    [(0, 0), (0, 1)],
    [(1, 2), (2, 2), (2, 3)],
    [(3, 4)],
    [(0, 3), (0, 4), (1, 3)],
    [(2, 0), (3, 0)],
  ]
  numbers = [{int(got[p]) for p in group} for group in groups]
  assert sorted(numbers, key=min) == [{1}, {2}, {3}, {4}, {5}]
  inside = np.zeros(mask.shape, bool)
  inside[tuple(np.array(sum(groups, [])).T)] = True
  assert_array_equal(got > 0, inside)


def test_connected_instances_are_those_of_scikit_image():
  mask = (_blobs(1) > 0).astype(np.uint8) + (_blobs(2) > 0)
  got = weight_map.connected_instances(mask)
  expected = measure.label(mask, connectivity=1, background=0)
  pairs = np.unique(np.stack([got.ravel(), expected.ravel()]), axis=1)
  assert got.max() == expected.max() == pairs.shape[1] - 1


def test_class_balance():
  mask = np.array([[0, 0, 0, 1], [0, 0, 0, 255], [2, 2, 255, 255]], np.uint8)
  got = weight_map.class_balance(mask)
  valid = mask != 255
  assert_allclose(got[valid].mean(), 1, rtol=1e-6)
  sums = [got[mask == c].sum() for c in range(3)]
  assert_allclose(sums, 3, rtol=1e-6)
  ignored = np.full((2, 2), 255, np.uint8)
  assert not weight_map.class_balance(ignored).any()


def _make(**loss):
  config = default.get_config()
  config.loss.update(loss)
  return weight_map.make_weight_map(config)


def test_parts_add_up():
  instances = _blobs(3)
  mask = (instances > 0).astype(np.uint8)
  mask[:10, :20] = 255
  make = _make(weight_map='border', balance='image')
  got = make(mask, instances)
  assert got.dtype == np.float16
  expected = weight_map.class_balance(mask) + _formula(instances, 10, 5)
  expected[mask == 255] = 0
  # Half of float16's spacing below 16, and the negligible terms.
  assert_allclose(got, expected, atol=4.2e-3)
  assert_array_equal(
    make(mask), make(mask, weight_map.connected_instances(mask))
  )
  assert_array_equal(
    _make(balance='image')(mask),
    np.where(mask == 255, 0, weight_map.class_balance(mask)).astype(np.float16),
  )
  no_balance = _make(weight_map='border', border_weight=2.0)(mask, instances)
  outside = np.where(mask == 255, 0, 1 + _formula(instances, 2, 5))
  assert_allclose(no_balance, outside, atol=2e-3)


def test_settings():
  assert _make() is None
  assert _make(border_sigma=3.0) is None
  make = _make(weight_map='border', border_weight=4.0, border_sigma=3.0)
  assert make == weight_map.WeightMap(4.0, 3.0, balance=False)


def test_weights_stay_finite():
  """One pixel in a large image would be more than float16 holds."""
  mask = np.zeros((500, 500), np.uint8)
  mask[3, 4] = 1
  got = _make(balance='image')(mask)
  assert np.isfinite(got).all() and got[3, 4] == np.finfo(np.float16).max


def test_gaps_between_real_cells(shared_data):
  """As in figure 3d: membranes between near cells weigh most."""
  path = shared_data('isbi2012') / 'train/masks/0.png'
  mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8)[:200, :220]
  make = _make(weight_map='border')
  got = make(mask).astype(np.float32)
  instances, _ = ndimage.label(mask)
  assert_allclose(got, 1 + _formula(instances, 10, 5), atol=4.2e-3)
  gaps = got[mask == 0]
  assert np.median(gaps) > 5 > 1 == got[mask == 1].max()
