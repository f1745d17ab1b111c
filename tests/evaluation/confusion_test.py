"""Scores against loops over sets of pixels."""

import jax
import numpy as np
import pytest

from unet_jax.config import default, fields
from unet_jax.evaluation import confusion as confusion_lib
from unet_jax.prediction import probabilities

_NAMES = ('pet', 'background', 'border')


def _confusion(mask, prediction, num_classes):
  count = jax.jit(confusion_lib.confusion_counts, static_argnums=2)
  return np.asarray(count(mask, prediction, num_classes))


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


def _pixels(array, mask, label, image=None):
  """The set of pixels of a class, without those that are ignored."""
  return {
    tuple(i)
    for i in np.argwhere((array == label) & (mask != 255))
    if image is None or i[0] == image
  }


def _score(a, b, kind):
  """IoU or Dice of two sets; None where both are empty."""
  if not a | b:
    return None
  if kind == 'iou':
    return len(a & b) / len(a | b)
  return 2 * len(a & b) / (len(a) + len(b))


def _mean(values):
  values = [v for v in values if v is not None]
  return sum(values) / len(values) if values else np.nan


def _by_sets(mask, prediction, names):
  """What `metrics.scores` is documented to return."""
  result = {}
  for kind in ('iou', 'dice'):
    whole = [
      _score(_pixels(mask, mask, c), _pixels(prediction, mask, c), kind)
      for c in range(len(names))
    ]
    images = [
      [
        _score(_pixels(mask, mask, c, i), _pixels(prediction, mask, c, i), kind)
        for c in range(len(names))
      ]
      for i in range(len(mask))
    ]
    for c, name in enumerate(names):
      result[f'dataset_{kind}/{name}'] = _mean([whole[c]])
      result[f'image_{kind}/{name}'] = _mean([row[c] for row in images])
    result[f'dataset_m{kind}'] = _mean(whole)
    means = [_mean(row) for row in images]
    result[f'image_m{kind}'] = _mean([m for m in means if m == m])
  valid = mask != 255
  right = (mask == prediction) & valid
  result['pixel_accuracy'] = (
    right.sum() / valid.sum() if valid.any() else np.nan
  )
  return result


def _assert_scores(confusion, mask, prediction, names):
  actual, expected = (
    confusion_lib.scores(confusion, names),
    _by_sets(mask, prediction, names),
  )
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(actual[name], value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize('num_classes', [2, 3, 21, 255])
def test_confusion_is_the_bincount(num_classes):
  mask, prediction = _example(num_classes)
  confusion = _confusion(mask, prediction, num_classes)
  assert confusion.dtype == np.int32
  np.testing.assert_array_equal(
    confusion, _by_bincount(mask, prediction, num_classes)
  )


def test_confusion_has_the_mask_in_rows():
  mask = np.array([[[0, 0, 1, 255]]], np.uint8)
  prediction = np.array([[[0, 1, 1, 0]]], np.uint8)
  np.testing.assert_array_equal(
    _confusion(mask, prediction, 2), [[[1, 1], [0, 1]]]
  )


@pytest.mark.parametrize('exact', [1, 10, 63, 64])
def test_confusion_of_large_images_goes_in_parts(exact, monkeypatch):
  monkeypatch.setattr(confusion_lib, '_EXACT', exact)
  mask, prediction = _example(3)
  np.testing.assert_array_equal(
    # A function of its own: jit keeps what was traced with another limit.
    jax.jit(lambda m, p: confusion_lib.confusion_counts(m, p, 3))(
      mask, prediction
    ),
    _by_bincount(mask, prediction, 3),
  )


def test_the_limit_is_where_float32_ends_to_count():
  assert (
    np.float32(confusion_lib._EXACT - 1) + np.float32(1) == confusion_lib._EXACT
  )
  assert (
    np.float32(confusion_lib._EXACT) + np.float32(1) == confusion_lib._EXACT
  )


def test_counts_of_a_split_are_summed_in_64_bits():
  confusion = np.full((3, 2, 2), 2**31 - 1, np.int32)
  scores = confusion_lib.scores(confusion, ('a', 'b'))
  # 6 times 2**31 - 1 are wrong or right of each class, twice that in all.
  assert scores['dataset_iou/a'] == pytest.approx(1 / 3)
  assert scores['pixel_accuracy'] == 0.5
  assert scores['image_dice/a'] == 0.5


def test_scores_are_those_of_sets_of_pixels():
  mask, prediction = _example(3)
  mask[0][mask[0] == 2] = 0  # Absent from one image's mask,
  prediction[0][prediction[0] == 2] = 1  # and from its prediction.
  mask[1] = 255  # An image that counts nowhere.
  mask[2][mask[2] == 1] = 0  # Absent, but predicted.
  confusion = _confusion(mask, prediction, 3)
  _assert_scores(confusion, mask, prediction, _NAMES)


def test_one_channel_has_two_classes():
  mask, prediction = _example(2)
  confusion = _confusion(mask, prediction, 2)
  _assert_scores(confusion, mask, prediction, ('background', 'foreground'))


def test_one_pixel_objects():
  mask = np.zeros((3, 4, 4), np.uint8)
  prediction = np.zeros((3, 4, 4), np.uint8)
  mask[:, 1, 1] = 1
  prediction[0, 1, 1] = 1  # Found.
  prediction[1, 1, 2] = 1  # A pixel beside it.
  confusion = _confusion(mask, prediction, 2)
  _assert_scores(confusion, mask, prediction, ('ground', 'dot'))
  scores = confusion_lib.scores(confusion, ('ground', 'dot'))
  # One of 4 pixels in the union; found in one of three images.
  assert scores['dataset_iou/dot'] == 0.25
  assert scores['image_iou/dot'] == pytest.approx(1 / 3)
  assert scores['dataset_dice/dot'] == 0.4


def test_class_in_no_mask_and_no_prediction_is_nan_and_in_no_mean():
  mask = np.array([[[0, 0, 1, 1]]], np.uint8)
  prediction = np.array([[[0, 0, 0, 1]]], np.uint8)
  scores = confusion_lib.scores(_confusion(mask, prediction, 3), _NAMES)
  for name in ('dataset_iou', 'image_iou', 'dataset_dice', 'image_dice'):
    assert np.isnan(scores[f'{name}/border'])
  assert scores['dataset_miou'] == pytest.approx((2 / 3 + 1 / 2) / 2)
  assert scores['image_mdice'] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_class_that_is_predicted_but_absent_scores_0():
  mask = np.zeros((1, 1, 4), np.uint8)
  prediction = np.array([[[0, 0, 0, 2]]], np.uint8)
  scores = confusion_lib.scores(_confusion(mask, prediction, 3), _NAMES)
  assert scores['dataset_iou/border'] == scores['image_dice/border'] == 0
  assert np.isnan(scores['dataset_iou/background'])


def test_nothing_counts_where_all_is_ignored():
  mask = np.full((2, 3, 3), 255, np.uint8)
  prediction = np.zeros((2, 3, 3), np.uint8)
  confusion = _confusion(mask, prediction, 3)
  assert confusion.sum() == 0
  scores = confusion_lib.scores(confusion, _NAMES, ('pet', 'border'))
  assert len(scores) == 4 * 3 + 4 + 1 + 4
  assert all(np.isnan(v) for v in scores.values())


@pytest.mark.parametrize('foreground', [('pet', 'border'), ('background',)])
def test_foreground_is_scored_as_with_merged_masks(foreground):
  mask, prediction = _example(3)
  mask[1] = 255
  indices = [_NAMES.index(n) for n in foreground]
  merge = lambda x: np.where(x == 255, 255, np.isin(x, indices))
  confusion = _confusion(mask, prediction, 3)
  merged = _by_bincount(merge(mask), merge(prediction), 2)
  np.testing.assert_array_equal(
    confusion_lib.merge_foreground(confusion, indices), merged
  )
  scores = confusion_lib.scores(confusion, _NAMES, foreground)
  expected = _by_sets(merge(mask), merge(prediction), ('rest', 'object'))
  for score in ('dataset_iou', 'dataset_dice', 'image_iou', 'image_dice'):
    np.testing.assert_allclose(
      scores[f'{score}/{"+".join(foreground)}'],
      expected[f'{score}/object'],
      rtol=1e-12,
    )
  # The means are over the classes of the config.
  assert scores['dataset_miou'] == pytest.approx(
    _by_sets(mask, prediction, _NAMES)['dataset_miou']
  )


def test_scores_do_not_depend_on_the_batch_size():
  mask, prediction = _example(3)
  batched = [
    _confusion(mask[i : i + 4], prediction[i : i + 4], 3) for i in (0, 4)
  ]
  np.testing.assert_array_equal(
    np.concatenate(batched), _confusion(mask, prediction, 3)
  )


def test_counts_on_the_host_are_those_on_the_device(monkeypatch):
  monkeypatch.setattr(probabilities, '_PIXELS', 20)
  for num_classes in (2, 3, 21, 255):
    mask, prediction = _example(num_classes)
    counts = [
      confusion_lib.confusion_of_image(m, p, num_classes)
      for m, p in zip(mask, prediction)
    ]
    assert counts[0].dtype == np.int64
    np.testing.assert_array_equal(
      counts, _by_bincount(mask, prediction, num_classes)
    )


def test_further_scores_are_those_of_scikit_and_torchmetrics():
  sklearn = pytest.importorskip('sklearn.metrics', reason='compares with it')
  torch = pytest.importorskip('torch', reason='torchmetrics needs PyTorch')
  classification = pytest.importorskip(
    'torchmetrics.functional.classification', reason='compares with it'
  )
  mask, prediction = _example(3)
  prediction[mask == 2] = 0  # Recalls differ.
  confusion = _by_bincount(mask, prediction, 3)
  actual = confusion_lib.further_scores(confusion, _NAMES)
  valid = mask != 255
  truth, found = mask[valid].astype(int), prediction[valid].astype(int)
  precision, recall, _, _ = sklearn.precision_recall_fscore_support(
    truth, found, zero_division=0
  )
  for c, name in enumerate(_NAMES):
    assert actual[f'dataset_precision/{name}'] == pytest.approx(precision[c])
    assert actual[f'dataset_recall/{name}'] == pytest.approx(recall[c])
  assert actual['mean_accuracy'] == pytest.approx(
    sklearn.balanced_accuracy_score(truth, found)
  )
  expected = classification.multiclass_jaccard_index(
    torch.from_numpy(found), torch.from_numpy(truth), 3, average='weighted'
  )
  assert actual['dataset_fwiou'] == pytest.approx(float(expected), rel=1e-6)


def test_further_scores_of_absent_classes():
  # Class 1 is never predicted, class 2 in no mask.
  confusion = np.array([[[3, 0, 1], [4, 0, 0], [0, 0, 0]]])
  actual = confusion_lib.further_scores(confusion, _NAMES)
  assert np.isnan(actual['dataset_precision/background'])
  assert np.isnan(actual['dataset_recall/border'])
  assert actual['dataset_recall/background'] == 0
  assert actual['dataset_precision/border'] == 0
  assert actual['mean_accuracy'] == (3 / 4 + 0) / 2
  assert actual['dataset_fwiou'] == pytest.approx(3 / 8 / 2)
  nothing = confusion_lib.further_scores(0 * confusion, _NAMES)
  assert np.isnan(list(nothing.values())).all()


@pytest.mark.parametrize('foreground', [(), ('class_1', 'class_3')])
def test_scores_have_the_names_that_the_config_gives(foreground):
  config = default.get_config()
  config.eval.foreground = foreground
  scores = confusion_lib.scores(
    np.zeros((1, 4, 4), int), fields.class_names(config), foreground
  )
  names = {f'eval/{name}' for name in (*scores, 'loss')}
  assert names == set(fields.metric_names(config))
