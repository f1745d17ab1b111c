"""Scores against loops over sets of pixels."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from unet_jax.config import default, fields
from unet_jax.evaluation import confusion
from unet_jax.prediction import probabilities

_NAMES = ('pet', 'background', 'border')
_count = jax.jit(confusion.confusion_counts, static_argnums=2)


def _by_bincount(mask, prediction, num_classes):
  """Independent of one-hot products: one pair of labels, one number."""
  result = []
  for m, p in zip(mask, prediction):
    pairs = (m.astype(int) * num_classes + p)[m < num_classes]
    counts = np.bincount(pairs, minlength=num_classes**2)
    result.append(counts.reshape(num_classes, num_classes))
  return np.stack(result)


def _example(num_classes=3, shape=(6, 7, 9), seed=0, ignored=0.2):
  rng = np.random.default_rng(seed)
  mask = rng.integers(0, num_classes, shape).astype(np.uint8)
  prediction = rng.integers(0, num_classes, shape).astype(np.uint8)
  # Right half of the time, so that the scores differ between classes.
  prediction = np.where(rng.random(shape) < 0.5, mask, prediction)
  mask[rng.random(shape) < ignored] = 255
  return mask, prediction


def _rows(*rows):
  """Images of one row each: the mask's, the prediction's."""
  return tuple(np.array([[row]], np.uint8) for row in rows)


def _scores(mask, prediction, names=_NAMES, foreground=()):
  counts = np.asarray(_count(mask, prediction, len(names)))
  return confusion.scores(counts, names, foreground)


def _pixels(array, mask, label, image):
  """The set of pixels of a class, without those that are ignored."""
  return {
    tuple(i)
    for i in np.argwhere((array == label) & (mask != 255))
    if image is None or i[0] == image
  }


def _score(kind, mask, prediction, label, image=None):
  """IoU or Dice of two sets; None where both are empty."""
  a, b = (_pixels(x, mask, label, image) for x in (mask, prediction))
  if not a | b:
    return None
  if kind == 'iou':
    return len(a & b) / len(a | b)
  return 2 * len(a & b) / (len(a) + len(b))


def _mean(values):
  values = [v for v in values if v is not None]
  return sum(values) / len(values) if values else np.nan


def _by_sets(mask, prediction, names=_NAMES):
  """What `confusion.scores` is documented to return."""
  result, pair, classes = {}, (mask, prediction), range(len(names))
  for kind in ('iou', 'dice'):
    whole = [_score(kind, *pair, c) for c in classes]
    images = [
      [_score(kind, *pair, c, i) for c in classes] for i in range(len(mask))
    ]
    for c, name in enumerate(names):
      result[f'dataset_{kind}/{name}'] = _mean([whole[c]])
      result[f'image_{kind}/{name}'] = _mean([row[c] for row in images])
    result[f'dataset_m{kind}'] = _mean(whole)
    means = [_mean(row) for row in images]
    result[f'image_m{kind}'] = _mean([m for m in means if m == m])
  valid = mask != 255
  result['pixel_accuracy'] = _mean((mask == prediction)[valid].tolist())
  return result


@pytest.mark.parametrize('num_classes', [2, 3, 21, 255])
def test_confusion_is_the_bincount(num_classes, monkeypatch):
  """On the device and, in parts, on the host."""
  monkeypatch.setattr(probabilities, '_PIXELS', 20)
  pair = _example(num_classes)
  device = _count(*pair, num_classes)
  host = [confusion.confusion_of_image(*x, num_classes) for x in zip(*pair)]
  assert device.dtype == np.int32 and host[0].dtype == np.int64
  expected = _by_bincount(*pair, num_classes)
  assert_array_equal(device, expected)
  assert_array_equal(host, expected)


def test_confusion_has_the_mask_in_rows():
  pair = _rows([0, 0, 1, 255], [0, 1, 1, 0])
  assert_array_equal(_count(*pair, 2), [[[1, 1], [0, 1]]])


@pytest.mark.parametrize('exact', [1, 10, 63, 64])
def test_confusion_of_large_images_goes_in_parts(exact, monkeypatch):
  monkeypatch.setattr(confusion, '_EXACT', exact)
  pair = _example()
  # A function of its own: jit keeps what was traced with another limit.
  count = jax.jit(lambda m, p: confusion.confusion_counts(m, p, 3))
  assert_array_equal(count(*pair), _by_bincount(*pair, 3))


def test_the_limit_is_where_float32_ends_to_count():
  limit, one = confusion._EXACT, np.float32(1)
  assert np.float32(limit - 1) + one == limit
  assert np.float32(limit) + one == limit


def test_counts_of_a_split_are_summed_in_64_bits():
  counts = np.full((3, 2, 2), 2**31 - 1, np.int32)
  scores = confusion.scores(counts, ('a', 'b'))
  # 6 times 2**31 - 1 are wrong or right of each class, twice that in all.
  assert scores['dataset_iou/a'] == pytest.approx(1 / 3)
  assert scores['pixel_accuracy'] == 0.5
  assert scores['image_dice/a'] == 0.5


def _partly_absent():
  mask, prediction = _example()
  mask[0][mask[0] == 2] = 0  # Absent from one image's mask,
  prediction[0][prediction[0] == 2] = 1  # and from its prediction.
  mask[1] = 255  # An image that counts nowhere.
  mask[2][mask[2] == 1] = 0  # Absent, but predicted.
  return mask, prediction


def _dots():
  mask, prediction = np.zeros((2, 3, 4, 4), np.uint8)
  mask[:, 1, 1] = 1
  prediction[0, 1, 1] = 1  # Found.
  prediction[1, 1, 2] = 1  # A pixel beside it.
  return mask, prediction


@pytest.mark.parametrize(
  'pair,names',
  [
    (_partly_absent(), _NAMES),
    (_example(2), ('background', 'foreground')),
    (_dots(), ('ground', 'dot')),
  ],
  ids=['partly_absent', 'two_classes', 'dots'],
)
def test_scores_are_those_of_sets_of_pixels(pair, names):
  actual, expected = _scores(*pair, names), _by_sets(*pair, names)
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    assert_allclose(actual[name], value, rtol=1e-12, err_msg=name)


def test_one_pixel_objects():
  scores = _scores(*_dots(), ('ground', 'dot'))
  # One of 4 pixels in the union; found in one of three images.
  assert scores['dataset_iou/dot'] == 0.25
  assert scores['image_iou/dot'] == pytest.approx(1 / 3)
  assert scores['dataset_dice/dot'] == 0.4


def test_class_in_no_mask_and_no_prediction_is_nan_and_in_no_mean():
  scores = _scores(*_rows([0, 0, 1, 1], [0, 0, 0, 1]))
  for name in ('dataset_iou', 'image_iou', 'dataset_dice', 'image_dice'):
    assert np.isnan(scores[f'{name}/border'])
  assert scores['dataset_miou'] == pytest.approx((2 / 3 + 1 / 2) / 2)
  assert scores['image_mdice'] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_class_that_is_predicted_but_absent_scores_0():
  scores = _scores(*_rows([0, 0, 0, 0], [0, 0, 0, 2]))
  assert scores['dataset_iou/border'] == scores['image_dice/border'] == 0
  assert np.isnan(scores['dataset_iou/background'])


def test_nothing_counts_where_all_is_ignored():
  mask, prediction = np.full((2, 3, 3), 255, np.uint8), np.zeros((2, 3, 3), int)
  assert not _count(mask, prediction, 3).any()
  scores = _scores(mask, prediction, foreground=('pet', 'border'))
  assert len(scores) == 4 * 3 + 4 + 1 + 4
  assert all(np.isnan(v) for v in scores.values())


@pytest.mark.parametrize('foreground', [('pet', 'border'), ('background',)])
def test_foreground_is_scored_as_with_merged_masks(foreground):
  pair = _example()
  pair[0][1] = 255
  indices = [_NAMES.index(n) for n in foreground]
  merged = [np.where(x == 255, 255, np.isin(x, indices)) for x in pair]
  actual = confusion.merge_foreground(np.array(_count(*pair, 3)), indices)
  assert_array_equal(actual, _by_bincount(*merged, 2))
  scores = _scores(*pair, foreground=foreground)
  expected = _by_sets(*merged, ('rest', 'object'))
  for score in ('dataset_iou', 'dataset_dice', 'image_iou', 'image_dice'):
    actual = scores[f'{score}/{"+".join(foreground)}']
    assert_allclose(actual, expected[f'{score}/object'], rtol=1e-12)
  # The means are over the classes of the config.
  miou = _by_sets(*pair)['dataset_miou']
  assert scores['dataset_miou'] == pytest.approx(miou)


def test_scores_do_not_depend_on_the_batch_size():
  mask, prediction = _example()
  batches = [_count(mask[s], prediction[s], 3) for s in np.s_[:4, 4:]]
  assert_array_equal(np.concatenate(batches), _count(mask, prediction, 3))


def test_further_scores_are_those_of_scikit_and_torchmetrics():
  sklearn = pytest.importorskip('sklearn.metrics', reason='compares with it')
  torch = pytest.importorskip('torch', reason='torchmetrics needs PyTorch')
  classification = pytest.importorskip(
    'torchmetrics.functional.classification', reason='compares with it'
  )
  mask, prediction = _example()
  prediction[mask == 2] = 0  # Recalls differ.
  counts = _by_bincount(mask, prediction, 3)
  actual = confusion.further_scores(counts, _NAMES)
  valid = mask != 255
  truth, found = mask[valid].astype(int), prediction[valid].astype(int)
  precision, recall, _, _ = sklearn.precision_recall_fscore_support(
    truth, found, zero_division=0
  )
  for c, name in enumerate(_NAMES):
    assert actual[f'dataset_precision/{name}'] == pytest.approx(precision[c])
    assert actual[f'dataset_recall/{name}'] == pytest.approx(recall[c])
  accuracy = sklearn.balanced_accuracy_score(truth, found)
  assert actual['mean_accuracy'] == pytest.approx(accuracy)
  fwiou = classification.multiclass_jaccard_index(
    torch.from_numpy(found), torch.from_numpy(truth), 3, average='weighted'
  )
  assert actual['dataset_fwiou'] == pytest.approx(float(fwiou), rel=1e-6)


def test_further_scores_of_absent_classes():
  # Class 1 is never predicted, class 2 in no mask.
  counts = np.array([[[3, 0, 1], [4, 0, 0], [0, 0, 0]]])
  actual = confusion.further_scores(counts, _NAMES)
  assert np.isnan(actual['dataset_precision/background'])
  assert np.isnan(actual['dataset_recall/border'])
  assert actual['dataset_recall/background'] == 0
  assert actual['dataset_precision/border'] == 0
  assert actual['mean_accuracy'] == (3 / 4 + 0) / 2
  assert actual['dataset_fwiou'] == pytest.approx(3 / 8 / 2)
  nothing = confusion.further_scores(0 * counts, _NAMES)
  assert np.isnan(list(nothing.values())).all()


@pytest.mark.parametrize('foreground', [(), ('class_1', 'class_3')])
def test_scores_have_the_names_that_the_config_gives(foreground):
  config = default.get_config()
  config.eval.foreground = foreground
  names = fields.class_names(config)
  scores = confusion.scores(np.zeros((1, 4, 4), int), names, foreground)
  names = {f'eval/{name}' for name in (*scores, 'loss')}
  assert names == set(fields.metric_names(config))
