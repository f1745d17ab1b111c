"""Statistics of a sweep against brute force, SciPy, and simulated sweeps."""

import itertools

import numpy as np
import pytest
from scipy import stats

from experiments.sweep.report import contrasts, statistics
from unet_jax.evaluation import bootstrap
from unet_jax.evaluation import confusion as confusion_lib

_FACTORS = ('upsample', 'depth')
_GRID = list(itertools.product(('nearest', 'transpose'), ('10', '2', '3')))


def _simulate(rng, effects, seeds=3, images=40, of_seed=0.02, of_pair=0.05):
  """Scores [V * seeds, images] with known effects, and each one's variant."""
  count = len(effects) * seeds
  values = (
    np.repeat(effects, seeds)[:, None]
    + 0.2 * rng.standard_normal(images)
    + of_seed * rng.standard_normal((count, 1))
    + of_pair * rng.standard_normal((count, images))
  )
  return values, np.repeat(np.arange(len(effects)), seeds)


def _draws(values, variants, resamples=1000, seed=0, seeds=None):
  """Of networks whose seeds are all different, unless they are given."""
  return statistics.bootstrap(
    statistics.means_of_images(values),
    variants,
    range(len(values)) if seeds is None else seeds,
    resamples,
    seed,
  )


def _alike(scores, images=12):
  """Of networks that have the same score on each image."""
  return np.repeat(np.reshape(scores, (-1, 1)), images, 1)


def _compare(draws, contrasts):
  comparisons, interaction = statistics.compare(draws, contrasts)
  assert interaction is None
  return comparisons


def _one(weights=(1, -1)):
  return contrasts.Contrast('depth', ('2', '1'), (), weights)


def test_mean_and_deviation_over_seeds():
  values, variants = _simulate(np.random.default_rng(0), [0, 1, 2], images=7)
  values[0, 3] = values[4, :2] = np.nan
  # Seeds of a variant need not lie side by side, nor be as many.
  order = [5, 0, 8, 3, 2, 7, 1, 4]
  draws = _draws(values[order], variants[order], 3)
  means = np.nanmean(values, 1)
  parts = means[:3], means[3:6], means[7:]
  np.testing.assert_allclose(draws.scores, [p.mean() for p in parts])
  # Pooled as in a one-way analysis of variance, whose F-test knows it too.
  squares = sum(((p - p.mean()) ** 2).sum() for p in parts)
  assert draws.freedom == 5
  assert draws.deviation == pytest.approx((squares / 5) ** 0.5)
  f = stats.f_oneway(*parts).statistic
  grand = np.concatenate(parts).mean()
  between = sum(len(p) * (p.mean() - grand) ** 2 for p in parts) / 2
  assert between / f == pytest.approx(draws.deviation**2)


def test_interval_over_images_is_that_of_scipy():
  """One seed each: what is left is the paired bootstrap of images."""
  values, variants = _simulate(np.random.default_rng(1), [0, 0.01], seeds=1)
  values[:, 5] = np.nan
  (found,) = _compare(_draws(values, variants, 20000), [_one((-1, 1))])
  expected = stats.bootstrap(
    tuple(values[:, ~np.isnan(values[0])]),
    lambda a, b, axis: b.mean(axis) - a.mean(axis),
    paired=True,
    method='percentile',
    n_resamples=20000,
    rng=np.random.default_rng(2),
  ).confidence_interval
  width = expected.high - expected.low
  limits = found.low, found.high
  np.testing.assert_allclose(limits, expected, atol=0.04 * width)
  assert found.difference == pytest.approx(np.nanmean(values[1] - values[0]))
  # Unpaired the interval would be far wider.
  assert width < 0.5 * np.sqrt(2) * 2 * 1.96 * 0.2 / np.sqrt(40)


def test_draws_are_scores_of_the_drawn_images(monkeypatch):
  rng = np.random.default_rng(3)
  confusion = rng.integers(0, 30, (4, 9, 3, 3))
  confusion[:, ::2, 2], confusion[:, ::2, :, 2] = 0, 0
  confusion[:, 1] = 0
  iou, _ = confusion_lib.iou_and_dice(confusion)
  counts = statistics.counts_of_images(iou, confusion.sum(3), confusion.sum(2))
  both = np.diagonal(confusion, axis1=2, axis2=3)
  either = confusion.sum(3) + confusion.sum(2) - both
  np.testing.assert_array_equal(counts, np.stack([both, either], -1))
  draws = statistics.bootstrap(counts, range(4), range(4), 20, 5)
  monkeypatch.setattr(bootstrap, '_WEIGHTS', 1)
  in_parts = statistics.bootstrap(counts, range(4), range(4), 20, 5)
  np.testing.assert_allclose(in_parts.draws, draws.draws, rtol=1e-12)
  drawn = np.random.default_rng(5).integers(0, 9, (20, 9))
  miou = lambda counts: confusion_lib.scores(counts, [*'abc'])['dataset_miou']
  expected = [[miou(c[rows]) for c in confusion] for rows in drawn]
  np.testing.assert_allclose(draws.draws, expected, rtol=1e-12)


def test_trainings_spread_as_students_t():
  """All images are alike, so that only the seeds are left."""
  means = np.array([0.50, 0.52, 0.57, 0.61, 0.61])
  # Both variants' seeds deviate alike.
  means[3:] += np.array([1, -1]) * means[:3].std(ddof=1) / np.sqrt(2)
  draws = _draws(_alike(means), [0, 0, 0, 1, 1], 40000)
  _assert_agrees(draws, stats.ttest_ind(means[3:], means[:3]), 0.03)


def _assert_agrees(draws, expected, tolerance):
  """The one comparison is SciPy's test, up to a share of its interval."""
  (found,) = _compare(draws, [_one((-1, 1))])
  interval = expected.confidence_interval()
  width = interval.high - interval.low
  limits = found.low, found.high
  np.testing.assert_allclose(limits, interval, atol=tolerance * width)
  assert found.p == pytest.approx(expected.pvalue, abs=0.01)


def test_seeds_in_common_cancel_as_in_a_paired_t_test():
  """All images are alike, so that only the seeds are left."""
  means = np.array([0.50, 0.61, 0.57, 0.52, 0.64, 0.58])
  values = _alike(means)
  # They need not be in the same order.
  draws = _draws(values, [0, 0, 0, 1, 1, 1], 40000, 0, [*'abc', *'acb'])
  assert draws.has_blocks and draws.freedom == 2
  _assert_agrees(draws, stats.ttest_rel(means[[3, 5, 4]], means[:3]), 0.04)


def test_a_missing_network_is_made_up_for_by_its_seed():
  """Least squares, by another coding; its variant lacks the bad seed."""
  rng = np.random.default_rng(0)
  variants, seeds = np.repeat(range(4), 3)[:-1], np.tile(range(3), 4)[:-1]
  effects, of_seed = np.array([0, 0.1, 0.2, 0.3]), np.array([0, 0.05, -0.5])
  means = effects[variants] + of_seed[seeds] + 0.01 * rng.standard_normal(11)
  draws = _draws(_alike(means), variants, 4000, 0, seeds)
  coding = np.hstack([np.eye(4)[variants], np.eye(3)[seeds][:, 1:]])
  found, squares, *_ = np.linalg.lstsq(coding, means)
  scores = found[:4] + (found[4] + found[5]) / 3
  np.testing.assert_allclose(draws.scores, scores)
  np.testing.assert_allclose(draws.scores - draws.scores[0], effects, atol=0.03)
  assert draws.freedom == 11 - 6
  assert draws.deviation == pytest.approx((squares[0] / 5) ** 0.5)
  # The variance of a difference, by the normal equations; t has 5 / 3 of 1.
  weights = np.array([-1, 0, 0, 1, 0, 0])
  variance = weights @ np.linalg.inv(coding.T @ coding) @ weights
  drawn = (draws.draws[:, 3] - draws.draws[:, 0]).std()
  pooled = draws.deviation * (5 / 3 * variance) ** 0.5
  # Some variant's own deviation is larger than the pooled one.
  assert 0.95 * pooled < drawn < 1.6 * pooled


def test_seeds_that_no_variants_share_are_told_from_nothing():
  """C and D share a seed that A and B lack: what it does cannot be told."""
  values, variants = _simulate(np.random.default_rng(0), [0, 0, 5, 5])
  for seeds, has_blocks, freedom in (
    (np.tile(range(3), 4), True, 6),
    ([0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5], False, 0),
    # A chain of seeds in common is enough, and so are none.
    ([0, 1, 2, 0, 1, 3, 3, 4, 5, 3, 4, 5], True, 3),
    (range(12), False, 8),
  ):
    draws = _draws(values, variants, 100, 0, seeds)
    assert (draws.has_blocks, draws.freedom) == (has_blocks, freedom)
    assert draws.can_tell == (freedom > 0)


def test_a_restless_variant_has_its_own_deviation_in_blocks():
  """All images are alike; residuals by hand, whose variance is 3 / 4 of one."""
  means = np.array([0, 0.5, -0.4, 0, 0.01, 0, 0.01, 0, 0, 0, 0, 0.01])
  variants, seeds = np.repeat(range(4), 3), np.tile(range(3), 4)
  draws = _draws(_alike(means, 30), variants, 20000, 0, seeds)
  table = means.reshape(4, 3)
  rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
  own = np.sqrt((rest[0] ** 2).sum() / (2 * 3 / 4))
  assert own > draws.deviation == pytest.approx(((rest**2).sum() / 6) ** 0.5)
  # t of 6 degrees of freedom has a variance of 6 / 4.
  expected = np.array([own, *[draws.deviation] * 3]) * np.sqrt(1.5 / 3)
  np.testing.assert_allclose(draws.draws.std(0), expected, rtol=0.05)


def test_an_average_deviates_as_its_values_do():
  """Seeds do to all variants of a depth alike; images are alike."""
  rng = np.random.default_rng(0)
  of_value = rng.standard_normal((3, 4))
  table = of_value[:, None] + 0.001 * rng.standard_normal((3, 5, 4))
  weights = np.repeat([[-1, 1, 0], [0, -1, 1]], 5, 1) / 5
  variants, seeds = np.repeat(range(15), 4), np.tile(range(4), 15)
  draws = _draws(_alike(table, 30), variants, 40000, 0, seeds)
  found = _compare(draws, [_one(tuple(w)) for w in weights])
  means = table.mean(1)
  rest = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()
  for comparison, w in zip(found, ((-1, 1, 0), (0, -1, 1))):
    assert comparison.difference == pytest.approx(w @ means.mean(1))
    half = stats.t.ppf(1 - 0.05 / 4, 6) * np.sqrt(2 * (rest**2).sum() / 6 / 4)
    assert comparison.high - comparison.low == pytest.approx(2 * half, rel=0.05)
  # Without that, it would be a fifth part of a single difference's variance.
  assert (draws.draws @ weights.T).std(0).max() < half / 4


def test_a_seed_that_is_bad_for_all_hides_nothing():
  rng, blocks, alone = np.random.default_rng(0), 0, 0
  seeds, bad = np.tile(range(3), 4), np.tile([0, -0.2, 0.01], 4)[:, None]
  for i in range(50):
    values, variants = _simulate(rng, [0, 0.05, 0, 0], 3, 30, 0.01, 0.01)
    contrasts = [_one((-1, 1, 0, 0)), _one((-1, 0, 1, 0))]
    found = _compare(_draws(values + bad, variants, 400, i, seeds), contrasts)
    blocks += found[0].is_certain
    assert abs(found[1].difference) < 0.05
    found = _compare(_draws(values + bad, variants, 400, i), contrasts)
    alone += any(c.is_certain for c in found)
  assert blocks >= 40 and alone == 0


def test_a_restless_variant_is_not_judged_by_calm_ones():
  """Two of eight variants are equal, and differ by the luck of their seeds."""
  rng, claims = np.random.default_rng(0), 0
  of_seed = np.repeat([0.02, 0.02, *[0.003] * 6], 3)[:, None]
  for i in range(100):
    values, variants = _simulate(rng, np.zeros(8), 3, 30, of_seed, 0.01)
    draws = _draws(values, variants, 400, i)
    (found,) = _compare(draws, [_one((1, -1, *[0] * 6))])
    claims += found.is_certain
  # 5 of 100 would be as stated; by the pooled deviation alone it is 36.
  assert claims <= 18


@pytest.mark.parametrize('shared', [0, 0.1])
@pytest.mark.parametrize('of_seed,of_pair', [(0.02, 0.05), (0, 0.1), (0.05, 0)])
def test_coverage(of_seed, of_pair, shared):
  """Of 300 sweeps the intervals hold the truth in about 95 % at once."""
  rng = np.random.default_rng(0)
  effects = np.array([0, 0.03, 0.03])
  seeds = np.tile(range(3), 3)[:-1] if shared else range(9)
  contrasts = [_one((-1, 1, 0)), _one((0, -1, 1))]
  all_hold = claims = 0
  for i in range(300):
    values, variants = _simulate(rng, effects, 3, 30, of_seed, of_pair)
    if shared:
      # What a seed does to all, and a network that is missing.
      values = values[:-1]
      values += shared * rng.standard_normal(3)[seeds][:, None]
      variants = variants[:-1]
    found = _compare(_draws(values, variants, 400, i, seeds), contrasts)
    holds = [c.low <= truth <= c.high for c, truth in zip(found, (0.03, 0))]
    all_hold += all(holds)
    claims += found[1].is_certain
  # Percentiles of 30 images are a little narrow (their deviation is biased by
  # sqrt(29 / 30), their tails are normal), and wide where own deviations exceed
  # the pooled one; 0.95 of 300 is 285 +- 3.8.
  assert 0.91 * 300 <= all_hold
  assert claims <= 0.05 * 300


def test_holm():
  # The example of 4 tests: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 after it.
  np.testing.assert_allclose(
    statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]
  )
  assert statistics.holm([0.6, 0.7]).tolist() == [1, 1]
  assert statistics.holm([]).size == 0


def test_more_comparisons_are_less_certain():
  rng = np.random.default_rng(0)
  values, variants = _simulate(rng, [0, 0.05, 0, 0.05])
  draws = _draws(values, variants, 4000)
  contrast = _one((-1, 1, 0, 0))
  (alone,) = _compare(draws, [contrast])
  cells = np.array([[0, 1], [2, 3]])
  among, p = statistics.compare(draws, [contrast] * 5, cells)
  drawn = draws.draws[:, 1] - draws.draws[:, 0]
  limits = np.quantile(drawn, (0.025 / 6, 1 - 0.025 / 6))
  assert (among[0].low, among[0].high) == pytest.approx(tuple(limits))
  assert among[0].low < alone.low and among[0].high > alone.high
  assert among[0].p == pytest.approx(6 * alone.p)
  assert alone.p == pytest.approx(2 * ((drawn <= 0).sum() + 1) / 4001)
  # The largest of the six is not made larger.
  assert p == statistics.interaction(draws, cells) > 2 * alone.p
  assert statistics.compare(draws, [], cells) == ([], None)


def test_what_differs_is_certain():
  values, variants = _simulate(np.random.default_rng(0), [0, 0.3])
  (found,) = _compare(_draws(values, variants), [_one((-1, 1))])
  assert found.is_certain and found.low > 0.2 and found.p < 0.005


@pytest.mark.parametrize('seeds', [1, 3])
def test_identical_variants_never_differ(seeds):
  rng = np.random.default_rng(0)
  values, variants = _simulate(rng, [0, 0], seeds, of_seed=0)
  values[seeds:] = values[:seeds]
  (found,) = _compare(_draws(values, variants), [_one()])
  assert found.difference == 0 and found.low <= 0 <= found.high
  assert found.p > 0.9 and not found.is_certain


@pytest.mark.parametrize('seeds,images', [(1, 40), (3, 1), (3, 9)])
def test_too_few_seeds_or_images_are_never_certain(seeds, images):
  rng = np.random.default_rng(0)
  values, variants = _simulate(rng, [0, 5], seeds, images, of_seed=0.001)
  draws = _draws(values, variants)
  assert not draws.can_tell
  (found,) = _compare(draws, [_one((-1, 1))])
  assert found.low > 4 and not found.is_certain
  assert np.isnan(draws.deviation) == (seeds == 1)


def test_a_seed_repeats_its_draws():
  values, variants = _simulate(np.random.default_rng(0), [0, 1])
  draws = lambda seed: _draws(values, variants, 20, seed).draws
  first, again, other = map(draws, (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert (first != other).all()


def test_interaction():
  rng = np.random.default_rng(0)
  cells = np.array([[0, 1, 2], [3, 4, 5]])
  # Sums of two effects have none; a cell that stands out has one.
  additive, apart = [0, 0.1, 0.3, 0.2, 0.3, 0.5], [0, 0, 0, 0, 0, 0.3]
  p = lambda e: statistics.interaction(_draws(*_simulate(rng, e)), cells)
  assert p(additive) > 0.1 and p(apart) == pytest.approx(1 / 1001)
  values, variants = _simulate(rng, [0] * 6, of_seed=0)
  values[:] = values[0]
  assert statistics.interaction(_draws(values, variants), cells) == 1


def test_interaction_is_seldom_found_where_there_is_none():
  rng, cells = np.random.default_rng(1), np.array([[0, 1], [2, 3]])
  draws = lambda i: _draws(*_simulate(rng, [0, 0.1, 0.2, 0.3]), 300, i)
  p = [statistics.interaction(draws(i), cells) for i in range(200)]
  # Of 200, 0.05 are 10 +- 3.1.
  assert 2 <= np.sum(np.array(p) < 0.05) <= 19


def test_contrasts_of_a_grid():
  asked = contrasts.make_contrasts(_FACTORS, _GRID, {'upsample': 'transpose'})
  found = [(c.factor, c.values, c.others) for c in asked]
  up = ('nearest', 'transpose')
  # Numbers by size with the lower neighbour.
  steps = ('3', '2'), ('10', '3')
  assert found == [
    ('upsample', up, ()),
    *(('depth', pair, ()) for pair in steps),
    *(('upsample', up, (('depth', d),)) for d in ('10', '2', '3')),
    *(('depth', pair, (('upsample', u),)) for pair in steps for u in up),
  ]
  scores = np.array([1, 2, 4, 8, 16, 32])  # Of _GRID, in its order.
  differences = [scores @ c.weights for c in asked]
  assert differences == pytest.approx(
    [-49 / 3, (2 + 16) / 2, (-3 - 24) / 2, -7, -14, -28, 2, 16, -3, -24]
  )
  cells = contrasts.full_grid(_FACTORS, _GRID)
  np.testing.assert_array_equal(cells, [[1, 2, 0], [4, 5, 3]])


def test_contrasts_of_a_grid_with_a_hole():
  asked = contrasts.make_contrasts(_FACTORS, _GRID[:-1], {})
  assert contrasts.full_grid(_FACTORS, _GRID[:-1]) is None
  # Without a baseline, the first; averaged where all are there alone.
  found = [(c.factor, c.values, c.others) for c in asked]
  assert found == [
    ('upsample', ('transpose', 'nearest'), (('depth', '10'),)),
    ('upsample', ('transpose', 'nearest'), (('depth', '2'),)),
    ('depth', ('3', '2'), (('upsample', 'nearest'),)),
    ('depth', ('10', '3'), (('upsample', 'nearest'),)),
  ]


def test_contrasts_of_one_factor_and_of_none():
  variants = [('concat',), ('add',), ('none',)]
  asked = contrasts.make_contrasts(['skip'], variants, {'skip': 'add'})
  assert [(c.values, c.weights) for c in asked] == [
    (('concat', 'add'), (1, -1, 0)),
    (('none', 'add'), (0, -1, 1)),
  ]
  assert contrasts.make_contrasts((), [()], {}) == []
  # Two fields that vary together.
  variants = [('8', '5'), ('16', '3'), ('32', '1')]
  asked = contrasts.make_contrasts(('width', 'depth'), variants, {})
  assert [(c.factor, c.values, c.weights) for c in asked] == [
    ('width, depth', ('16, 3', '8, 5'), (-1, 1, 0)),
    ('width, depth', ('32, 1', '8, 5'), (-1, 0, 1)),
  ]


def test_contrasts_of_weights_that_are_alone_or_together():
  """Cross-entropy against Dice differs in two fields, and is the question."""
  variants = [('1', '0'), ('0', '1'), ('1', '1')]
  asked = contrasts.make_contrasts(('entropy', 'dice'), variants, {})
  assert [c.values for c in asked] == [('0, 1', '1, 0'), ('1, 1', '1, 0')]
  assert not contrasts.is_grid(('entropy', 'dice'), variants)
  assert contrasts.is_grid(('entropy', 'dice'), [*variants, ('0', '0')])
