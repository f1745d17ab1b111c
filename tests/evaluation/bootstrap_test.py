"""Bootstrap intervals against scores of drawn images, and against SciPy's."""

import numpy as np
import pytest
from scipy import stats

from unet_jax.evaluation import bootstrap, confusion

_NAMES = ('pet', 'background', 'border')
_FOREGROUND = ('pet', 'border')


def _counts(images=40):
  rng = np.random.default_rng(0)
  counts = rng.integers(0, 20, (images, 3, 3)) + 60 * np.eye(3, dtype=int)
  # Some images have no border, one counts nowhere.
  counts[::2, 2], counts[::2, :, 2] = 0, 0
  counts[1] = 0
  return counts


@pytest.mark.parametrize('weights', [1, 100, 10**6])
def test_percentiles_are_those_of_scores_of_drawn_images(weights, monkeypatch):
  monkeypatch.setattr(bootstrap, '_WEIGHTS', weights)
  counts = _counts(8)
  actual = bootstrap.bootstrap(counts, _NAMES, _FOREGROUND, 50, 7)
  drawn = np.random.default_rng(7).integers(0, 8, (50, 8))
  scores = [confusion.scores(counts[d], _NAMES, _FOREGROUND) for d in drawn]
  assert set(actual) == {
    'dataset_miou',
    'dataset_mdice',
    'image_miou',
    'pixel_accuracy',
    *(f'dataset_iou/{n}' for n in (*_NAMES, 'pet+border')),
  }
  for name, (low, high) in actual.items():
    expected = np.nanpercentile([s[name] for s in scores], [2.5, 97.5])
    np.testing.assert_allclose((low, high), expected, rtol=1e-12, err_msg=name)
    assert low < high


def test_intervals_are_those_of_scipy():
  counts = _counts()
  actual = bootstrap.bootstrap(counts, _NAMES, (), 2000, 0)
  for name in ('dataset_miou', 'image_miou', 'dataset_iou/border'):
    expected = stats.bootstrap(
      (np.arange(len(counts)),),
      lambda rows: confusion.scores(counts[rows], _NAMES)[name],
      n_resamples=400,
      method='percentile',
      vectorized=False,
      rng=np.random.default_rng(1),
    ).confidence_interval
    width = expected.high - expected.low
    np.testing.assert_allclose(actual[name], expected, atol=0.15 * width)


def test_a_seed_repeats_its_intervals():
  draw = lambda n, seed: bootstrap.bootstrap(_counts(), _NAMES, (), n, seed)
  assert draw(30, 1) == draw(30, 1) != draw(30, 2)
  assert draw(0, 0) == {}


def test_one_image_and_images_that_count_nowhere():
  counts = _counts()[:1]
  scores = confusion.scores(counts, _NAMES)
  actual = bootstrap.bootstrap(counts, _NAMES, (), 20, 0)
  for name in ('dataset_miou', 'image_miou', 'pixel_accuracy'):
    assert actual[name] == (pytest.approx(scores[name]),) * 2
  assert np.isnan(actual['dataset_iou/border']).all()
  nothing = bootstrap.bootstrap(0 * counts, _NAMES, _FOREGROUND, 20, 0)
  assert np.isnan(list(nothing.values())).all()
