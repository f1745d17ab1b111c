"""The measure of checkerboards, on noise, smooth pictures and patterns."""

import numpy as np
import pytest
from scipy import ndimage

from experiments.sweep import checkerboard

_N = 128


@pytest.fixture(scope='module')
def noise():
  return np.random.default_rng(0).normal(size=(4, _N, _N, 2))


def _tone(period):
  """A pattern along the rows with mean square 1."""
  # Sampled so that no value is 0; of period 2 it is 1, -1, 1, ...
  phase = 2 * np.pi * (np.arange(_N) + 0.5) / period
  tone = np.sin(phase) * (1 if period == 2 else 2**0.5)
  return tone[None, :, None, None]


@pytest.mark.parametrize('sigma', [0, 1, 2, 4])
def test_noise_and_smooth_pictures_have_no_pattern(noise, sigma):
  smooth = ndimage.gaussian_filter(noise, (0, sigma, sigma, 0), mode='reflect')
  measured = checkerboard.measure(smooth)
  assert list(measured) == ['period_2', 'period_4', 'period_8']
  # 3 of 128 bins and their mirror images have 5 % of it.
  np.testing.assert_allclose(list(measured.values()), 0, atol=0.005)


@pytest.mark.parametrize('amplitude', [0.1, 0.5, 2])
@pytest.mark.parametrize('period', checkerboard.PERIODS)
def test_a_pattern_is_measured_by_its_share(noise, period, amplitude):
  smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
  smooth /= smooth.std()
  # Of lines that are to have no mean.
  energy = (smooth - smooth.mean(1, keepdims=True)).var()
  spectrum = checkerboard.power(smooth + amplitude * _tone(period), axis=1)
  expected = amplitude**2 / (amplitude**2 + energy)
  measured = checkerboard.share(spectrum, period)
  assert measured == pytest.approx(expected, rel=0.1, abs=0.002)
  for other in set(checkerboard.PERIODS) - {period}:
    assert checkerboard.share(spectrum, other) == pytest.approx(0, abs=0.005)


def test_both_axes_count_alike(noise):
  rows = checkerboard.measure(noise + _tone(4))
  columns = checkerboard.measure((noise + _tone(4)).swapaxes(1, 2))
  assert rows == pytest.approx(columns)


def test_images_that_are_too_small_for_a_period(noise):
  measured = checkerboard.measure(noise[:, :24, :24])
  # Cut to 16: period 4 is bin 4, and bins 0 to 2 are next to its peak.
  assert np.isfinite(measured['period_2'])
  assert np.isnan(measured['period_4']) and np.isnan(measured['period_8'])


def test_constant_logits_have_none():
  measured = checkerboard.measure(np.ones((1, 64, 64, 3)))
  assert all(np.isnan(value) for value in measured.values())
