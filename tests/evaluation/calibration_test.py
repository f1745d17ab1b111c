"""Calibration against torchmetrics, PyTorch and loops over one-hot classes."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special

from unet_jax.evaluation import calibration
from unet_jax.prediction import probabilities


def _example(num_channels=4, shape=(19, 23), ignored=0.2, seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(*shape, num_channels)).astype(np.float32) * 2
  mask = rng.integers(0, max(num_channels, 2), shape).astype(np.uint8)
  mask[rng.random(shape) < ignored] = 255
  return logits, mask


def _measure(logits, mask, bins):
  prediction = probabilities.predict(logits)
  return calibration.measure(logits, prediction, mask, bins)


def _probabilities(logits):
  """float64 [H, W, C]."""
  z = logits.astype(np.float64)
  if z.shape[-1] == 1:
    p = special.expit(z)
    return np.concatenate([1 - p, p], -1)
  return special.softmax(z, -1)


@pytest.mark.parametrize('num_channels', [1, 2, 4])
@pytest.mark.parametrize('bins', [1, 10, 15])
def test_errors_are_those_of_torchmetrics(num_channels, bins):
  torch = pytest.importorskip('torch', reason='compares with PyTorch')
  classification = pytest.importorskip(
    'torchmetrics.functional.classification', reason='compares with it'
  )
  logits, mask = _example(num_channels)
  actual = calibration.metrics(_measure(logits, mask, bins))
  p = torch.from_numpy(_probabilities(logits)[mask != 255]).float()
  target = torch.from_numpy(mask[mask != 255]).long()
  for name, norm in (('ece', 'l1'), ('mce', 'max')):
    expected = classification.multiclass_calibration_error(
      p, target, p.shape[-1], bins, norm
    )
    assert actual[name] == pytest.approx(float(expected), rel=1e-5)
  if num_channels > 1:
    x = torch.from_numpy(logits[mask != 255])
    nll = torch.nn.functional.cross_entropy(x, target)
    assert actual['nll'] == pytest.approx(float(nll), rel=1e-6)


@pytest.mark.parametrize('num_channels', [1, 2, 4])
@pytest.mark.parametrize('pixels', [7, 23 * 5, 10**6])
def test_sums_are_those_of_loops(num_channels, pixels, monkeypatch):
  monkeypatch.setattr(probabilities, '_PIXELS', pixels)
  logits, mask = _example(num_channels)
  actual = _measure(logits, mask, 5)
  p = _probabilities(logits)
  count, correct = [0] * 5, [0] * 5
  confidence, nll, brier = [0.0] * 5, 0.0, 0.0
  for i in np.argwhere(mask != 255):
    row, label = p[tuple(i)], mask[tuple(i)]
    # The bin (m / 5, (m + 1) / 5] of the highest probability.
    m = next(m for m in range(5) if m / 5 < row.max() <= (m + 1) / 5)
    count[m] += 1
    correct[m] += row.argmax() == label
    confidence[m] += row.max()
    nll -= np.log(row[label])
    brier += sum((q - (c == label)) ** 2 for c, q in enumerate(row))
  assert_array_equal(actual['calibration_count'], count)
  assert_array_equal(actual['calibration_correct'], correct)
  sums = {'calibration_confidence': confidence, 'nll': nll, 'brier': brier}
  for name, value in sums.items():
    assert_allclose(actual[name], value, rtol=1e-6)
  metrics = calibration.metrics(actual)
  for name in ('nll', 'brier'):
    assert metrics[name] == pytest.approx(sums[name] / sum(count))


def test_large_logits_neither_overflow_nor_leave_the_bins():
  logits = np.array([[[1e4, -1e4], [-1e4, 1e4], [-1e4, 1e4]]], np.float32)
  mask = np.array([[0, 1, 0]], np.uint8)
  actual = _measure(logits, mask, 4)
  assert_array_equal(actual['calibration_count'], [0, 0, 0, 3])
  assert_array_equal(actual['calibration_correct'], [0, 0, 0, 2])
  metrics = calibration.metrics(actual)
  assert metrics['ece'] == metrics['mce'] == pytest.approx(1 / 3)
  assert metrics['nll'] == pytest.approx(2e4 / 3)
  assert metrics['brier'] == pytest.approx(2 / 3)


def test_equal_logits_are_the_first_class_in_the_lower_bin():
  # A confidence of 1/2 belongs to (0, 1/2].
  logits, mask = np.zeros((1, 2, 2), np.float32), np.array([[0, 1]], np.uint8)
  actual = _measure(logits, mask, 2)
  assert_array_equal(actual['calibration_count'], [2, 0])
  assert_array_equal(actual['calibration_correct'], [1, 0])
  # So it is for a sigmoid, whose class 1 begins above a logit of 0.
  again = _measure(logits[..., :1], mask, 2)
  for name, value in actual.items():
    assert_array_equal(again[name], value)


def test_sums_of_images_are_those_of_one():
  logits, mask = _example()
  whole = _measure(logits, mask, 15)
  halves = [_measure(logits[s], mask[s], 15) for s in np.s_[:8, 8:]]
  for name, value in whole.items():
    assert_allclose(sum(h[name] for h in halves), value, rtol=1e-6)


def test_nothing_counts_where_all_is_ignored():
  logits, mask = _example(ignored=1.0)
  actual = _measure(logits, mask, 15)
  assert not any(v.any() for v in actual.values())
  assert all(np.isnan(v) for v in calibration.metrics(actual).values())
  assert np.isnan(calibration.reliability(actual)['accuracy']).all()


def test_reliability_has_the_means_of_the_bins():
  sums = {
    'calibration_count': np.array([0, 4]),
    'calibration_correct': np.array([0, 3]),
    'calibration_confidence': np.array([0.0, 3.6]),
  }
  actual = calibration.reliability(sums)
  assert_array_equal(actual['edges'], [0, 0.5, 1])
  assert_array_equal(actual['count'], [0, 4])
  assert_array_equal(actual['accuracy'], [np.nan, 0.75])
  assert_array_equal(actual['confidence'], [np.nan, 0.9])


@pytest.mark.parametrize('num_channels', [1, 4])
def test_probability_of_a_class(num_channels, monkeypatch):
  monkeypatch.setattr(probabilities, '_PIXELS', 60)
  logits, _ = _example(num_channels)
  for c in range(max(num_channels, 2)):
    actual = calibration.probability(logits, c)
    assert actual.dtype == np.float32
    assert_allclose(actual, _probabilities(logits)[..., c], rtol=1e-5)
