"""Objects against scikit-learn, scikit-image and loops over pairs."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, optimize
from skimage import metrics as sk_metrics

from unet_jax.evaluation import objects
from unet_jax.prediction import probabilities


def _labels(seed=0, shape=(24, 30), share=0.55):
  """Objects of a smooth random image, and of the same with noise."""
  rng = np.random.default_rng(seed)
  field = ndimage.gaussian_filter(rng.normal(size=shape), 2)
  noise = ndimage.gaussian_filter(rng.normal(size=shape), 1)
  level = np.quantile(field, 1 - share)
  found = field + 0.15 * noise > level
  return tuple(objects.components(x) for x in (field > level, found))


def test_components_have_four_neighbours():
  binary = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 0]], bool)
  labels = objects.components(binary)
  assert_array_equal(labels > 0, binary)
  # The middle touches the first pixel by a corner only.
  assert labels.max() == 2 and labels[0, 0] != labels[1, 1] == labels[0, 2]
  expected, count = ndimage.label(binary)
  assert count == 2 and sk_metrics.adapted_rand_error(expected, labels)[0] == 0


def _by_assignment(truth, found):
  """As StarDist matches: the assignment with the most pairs."""
  ones = [truth == i for i in np.unique(truth[truth > 0])]
  others = [found == j for j in np.unique(found[found > 0])]
  iou = [[(a & b).sum() / (a | b).sum() for b in others] for a in ones]
  result = []
  for i in range(10):
    same = np.array(iou) >= (50 + 5 * i) / 100
    tp = same[optimize.linear_sum_assignment(-same.astype(float))].sum()
    result.append((tp, len(others) - tp, len(ones) - tp))
  return result


@pytest.mark.parametrize('seed', [0, 1, 3])
def test_matches_are_those_of_the_best_assignment(seed, monkeypatch):
  monkeypatch.setattr(probabilities, '_PIXELS', 100)
  truth, found = _labels(seed)
  actual = objects.match_counts(truth, found)
  assert actual.dtype == np.int64
  assert_array_equal(actual, _by_assignment(truth, found))
  assert actual[0, 1:].sum() < actual[-1, 1:].sum()


def test_an_object_is_in_one_match_only():
  # Two halves of an object reach an IoU of 0.5 both.
  truth, found = np.array([[7, 7, 0, 9]]), np.array([[1, 2, 0, 0]])
  counts = objects.match_counts(truth, found)
  assert_array_equal(counts[0], [1, 1, 1])
  assert_array_equal(counts[1:], [[0, 2, 2]] * 9)
  counts = objects.match_counts(found, truth)
  assert_array_equal(counts[:2], [[1, 1, 1], [0, 2, 2]])
  # 11 of 20 pixels are an IoU of 0.55, which is reached.
  truth, found = np.zeros((2, 1, 20), int)
  truth[:], found[0, :11] = 1, 1
  counts = objects.match_counts(truth, found)
  assert_array_equal(counts[:3, 0], [1, 1, 0])


@pytest.mark.parametrize('shape', [(1, 1), (4, 5)])
def test_matches_where_objects_are_missing(shape):
  none, one = np.zeros(shape, int), np.ones(shape, int)
  for truth, found, expected in (
    (none, none, (0, 0, 0)),
    (one, none, (0, 0, 1)),
    (none, one, (0, 1, 0)),
    (one, one, (1, 0, 0)),
  ):
    counts = objects.match_counts(truth, found)
    assert_array_equal(counts, [expected] * 10)


def test_average_precision():
  counts = np.array([[2, 1, 1], [0, 0, 3], [0, 0, 0]])
  precision = objects.average_precision(counts)
  assert_array_equal(precision, [0.5, 0, np.nan])


def _by_pairs(truth, parts):
  """The F-score of pairs of pixels inside of the truth's objects."""
  inside = [tuple(i) for i in np.argwhere(truth)]
  together = {'both': 0, 'truth': 0, 'parts': 0}
  for a, b in itertools.combinations(inside, 2):
    same = truth[a] == truth[b], parts[a] == parts[b]
    together['truth'] += same[0]
    together['parts'] += same[1]
    together['both'] += all(same)
  return 2 * together['both'] / (together['truth'] + together['parts'])


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_v_scores_are_those_of_pairs_and_of_scikit(seed):
  cluster = pytest.importorskip('sklearn.metrics', reason='compares with it')
  truth, parts = _labels(seed, (15, 17))
  v_rand, v_info = objects.v_scores(truth, parts)
  assert v_rand == pytest.approx(_by_pairs(truth, parts), rel=1e-12)
  error, _, _ = sk_metrics.adapted_rand_error(truth, parts)
  assert v_rand == pytest.approx(1 - error, rel=1e-12)
  inside = truth > 0
  expected = cluster.v_measure_score(truth[inside], parts[inside])
  assert v_info == pytest.approx(expected, rel=1e-9)
  assert 0 < v_info < 1 and 0 < v_rand < 1


def test_v_scores_of_equal_partitions_are_1():
  truth, _ = _labels()
  for equal in (truth, np.ones((4, 4), int), np.array([[1, 2, 3]])):
    assert objects.v_scores(equal, equal) == (1, pytest.approx(1))
  # What is outside of the objects does not matter, numbers neither.
  parts = np.where(truth == 0, 5, 3 * truth)
  assert objects.v_scores(truth, parts) == (1, pytest.approx(1))


def test_v_scores_of_merged_split_and_missing_objects():
  truth = np.array([[1, 1, 2, 2]])
  merged, half = np.array([[1, 1, 1, 1]]), np.array([[1, 1, 0, 0]])
  # 2 pairs of pixels together in both, of 2 and 6.
  assert objects.v_scores(truth, merged) == (0.5, 0)
  assert objects.v_scores(merged, truth) == (0.5, 0)
  # The object that is skipped is a part of its own.
  assert objects.v_scores(truth, half) == (1, pytest.approx(1))
  # Nothing is found: all is one part.
  assert objects.v_scores(truth, 0 * truth) == (0.5, 0)
  assert np.isnan(objects.v_scores(0 * truth, truth)).all()


def test_thinning_takes_the_width_of_borders_out():
  # Two cells beside one another, with a border of 1 pixel between them.
  mask = np.ones((12, 21), np.uint8)
  mask[:, 10] = 0
  # Far from the middle of a cell its probability is low.
  column = np.abs(np.arange(21) - 10) / 10
  probability = np.broadcast_to(column, mask.shape).astype(np.float32)
  prediction = (probability >= 0.5).astype(np.uint8)
  actual = objects.measure(mask, prediction, probability, 1, 2)
  # A border of 9 pixels: 12 x 4 pixels of each cell are in one further part.
  n, lost = 120, 48
  pairs = lambda *sizes: sum(k * (k - 1) for k in sizes)
  both = pairs(n - lost, n - lost, lost, lost)
  whole = pairs(n, n) + pairs(n - lost, n - lost, 2 * lost)
  half = objects.HALF
  assert objects.THRESHOLDS[half] == 0.5
  assert actual['v_rand'][half] == pytest.approx(2 * both / whole)
  assert actual['v_rand'][half] < actual['v_rand'][0] == 1
  assert_array_equal(actual['v_rand_thin'], 1)
  assert_allclose(actual['v_info_thin'], 1)
  # 72 of 120 pixels are an IoU of 0.6.
  counts = [(2, 0, 0)] * 3 + [(0, 2, 2)] * 7
  assert_array_equal(actual['objects'], counts)


def test_objects_grow_to_where_the_other_is_more_probable():
  probability = np.array([[0.9, 0.4, 0.3, 0.1, 0.2, 0.8]], np.float32)
  parts = np.array([[1, 0, 0, 0, 0, 2]])
  grown = objects.grow(parts, probability)
  assert (grown > 0).all()
  assert_array_equal(grown[0, [0, 1, 2, 4, 5]], [1, 1, 1, 2, 2])


def test_instances_are_taken_inside_of_the_class_and_where_not_ignored():
  mask = np.ones((2, 8), np.uint8)
  mask[:, 6:], mask[0, 0] = 0, 255
  numbers = np.full((2, 8), 40)
  numbers[:, 3:] = 70
  prediction = np.ones((2, 8), np.uint8)
  probability = np.linspace(0, 1, 16, dtype=np.float32).reshape(2, 8)
  actual = objects.measure(mask, prediction, probability, 1, 2, numbers)
  # Objects of 5 and 6 pixels, and one predicted of 15 that are not ignored.
  assert_array_equal(actual['objects'], [(0, 1, 2)] * 10)
  connected = objects.measure(mask, prediction, probability, 1, 2)
  # One of 11 pixels: an IoU of 0.73.
  counts = [(1, 0, 0)] * 5 + [(0, 1, 1)] * 5
  assert_array_equal(connected['objects'], counts)
  truth = np.array([[0, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 2, 2, 2, 0, 0]])
  for i, threshold in enumerate(objects.THRESHOLDS):
    parts, _ = ndimage.label(probability >= threshold)
    assert actual['v_rand'][i] == pytest.approx(_by_pairs(truth, parts))


def test_predictions_inside_of_ignored_pixels_are_no_objects():
  mask, prediction = np.zeros((2, 5, 5), np.uint8)
  mask[:, :2], prediction[1, 0], prediction[3, 3] = 255, 1, 1
  probability = prediction.astype(np.float32)
  actual = objects.measure(mask, prediction, probability, 1, 2)
  assert_array_equal(actual['objects'], [(0, 1, 0)] * 10)
  for name in ('v_rand', 'v_info', 'v_rand_thin', 'v_info_thin'):
    assert actual[name].shape == (9,) and np.isnan(actual[name]).all()
