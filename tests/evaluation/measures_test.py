"""A whole evaluation against torchmetrics, scikit-learn and its own parts."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from unet_jax.config import default
from unet_jax.evaluation import (
  bootstrap,
  boundaries,
  calibration,
  confusion,
  measures,
)
from unet_jax.prediction import probabilities

_NAMES = ('pet', 'background', 'border')
# Boundary ratio, band, tolerance, instances, bins, resamples and seed.
_SPEC = measures.Spec(
  _NAMES, ('pet', 'border'), 0.05, 3.0, 2.0, 'pet', 15, 20, 0
)
_PARTITIONS = ('v_rand', 'v_info', 'v_rand_thin', 'v_info_thin')


def _example(seed, shape=(24, 31), num_classes=3):
  """Logits and a mask that they have in parts."""
  rng = np.random.default_rng(seed)
  smooth = lambda sigma: ndimage.gaussian_filter(
    rng.normal(size=(num_classes, *shape)), (0, sigma, sigma)
  )
  truth = smooth(4)
  mask = truth.argmax(0).astype(np.uint8)
  mask[: seed + 3, :9] = 255
  logits = np.moveaxis(15 * truth + 2 * smooth(2), 0, -1)
  return logits.astype(np.float32), mask


def _examples():
  """Also images of other sizes, without some class, and that count nowhere."""
  examples = [_example(i) for i in range(3)]
  logits, mask = _example(3, (9, 14))
  mask[mask == 2], logits[..., 2] = 0, -99
  examples.append((logits, mask))
  logits, mask = _example(4)
  examples.append((logits, np.full_like(mask, 255)))
  logits, mask = _example(5)
  mask[mask == 0] = 1  # No pet, but one is predicted.
  return [*examples, (logits, mask)]


def _measure(logits, mask, spec=_SPEC, **instances):
  prediction = probabilities.predict(logits)
  return measures.measure_image(logits, prediction, mask, spec, **instances)


def _measured(spec=_SPEC):
  return [_measure(x, mask, spec) for x, mask in _examples()]


def _pixels():
  """Classes of mask and prediction of all pixels that count."""
  pairs = [
    (mask[mask != 255], x.argmax(-1)[mask != 255]) for x, mask in _examples()
  ]
  return (np.concatenate(x).astype(np.int64) for x in zip(*pairs))


def _is_same(actual, expected):
  return actual == pytest.approx(expected, rel=1e-6, nan_ok=True)


def _assert_same(actual, expected):
  """All that is expected, by name."""
  for name, value in expected.items():
    assert _is_same(actual[name], value), name


def test_metrics_are_those_of_torchmetrics_and_scikit():
  torch = pytest.importorskip('torch', reason='torchmetrics needs PyTorch')
  classification = pytest.importorskip(
    'torchmetrics.functional.classification', reason='compares with it'
  )
  sklearn = pytest.importorskip('sklearn.metrics', reason='compares with it')
  measured = _measured()
  metrics, _ = measures.summarize(measured, _SPEC)
  truth, found = _pixels()
  counts = sklearn.confusion_matrix(truth, found)
  np.testing.assert_array_equal(measures.confusion(measured), counts)
  accuracy = sklearn.accuracy_score(truth, found)
  assert _is_same(metrics['pixel_accuracy'], accuracy)
  target, preds = torch.from_numpy(truth), torch.from_numpy(found)
  of_classes = {
    'dataset_iou': classification.multiclass_jaccard_index,
    'dataset_dice': classification.multiclass_f1_score,
    'dataset_precision': classification.multiclass_precision,
    'dataset_recall': classification.multiclass_recall,
  }
  for score, function in of_classes.items():
    expected = function(preds, target, 3, average='none').tolist()
    names = [f'{score}/{name}' for name in _NAMES]
    _assert_same(metrics, dict(zip(names, expected)))
  logits = np.concatenate([x[mask != 255] for x, mask in _examples()])
  p = torch.softmax(torch.from_numpy(logits).double(), -1)
  for name, norm in (('ece', 'l1'), ('mce', 'max')):
    error = classification.multiclass_calibration_error(p, target, 3, 15, norm)
    assert metrics[name] == pytest.approx(float(error), rel=1e-4)
  nll = sklearn.log_loss(truth, p.numpy())
  assert metrics['nll'] == pytest.approx(nll, rel=1e-5)


def test_metrics_are_made_of_those_of_the_parts():
  measured = _measured()
  metrics, limits = measures.summarize(measured, _SPEC)
  stacked = {k: np.stack([m[k] for m in measured]) for k in measured[0]}
  of = (stacked['confusion'], _NAMES, _SPEC.foreground)
  scores = confusion.scores(*of)
  assert len(scores) == 21
  _assert_same(metrics, scores)
  assert limits == bootstrap.bootstrap(*of, 20, 0)
  with np.errstate(invalid='ignore'):
    nsd = stacked['nsd'][..., 0] / stacked['nsd'][..., 1]
    boundary = stacked['boundary'][..., 0] / stacked['boundary'][..., 1]
  hd95 = stacked['hd95']
  for c, name in enumerate(_NAMES):
    both, either = stacked['boundary'][:, c].sum(0)
    expected = {
      'image_nsd': np.nanmean(nsd[:, c]),
      'image_hd95': hd95[np.isfinite(hd95[:, c]), c].mean(),
      'image_boundary_iou': np.nanmean(boundary[:, c]),
      'dataset_boundary_iou': both / either,
    }
    _assert_same(metrics, {f'{k}/{name}': v for k, v in expected.items()})
  # The pet of the last image is predicted, but not there.
  assert np.isinf(hd95[5, 0]) and nsd[5, 0] == 0
  assert metrics['hd95_infinite/pet'] == np.isinf(hd95[:, 0]).sum() >= 1
  # Means over the classes of each image, then over images.
  counts = [0, 1, 2, 3, 5]  # Nothing counts in the fifth.
  assert np.isnan(nsd[4]).all()
  mnsd = np.mean([np.nanmean(nsd[i]) for i in counts])
  miou = np.mean([metrics[f'dataset_boundary_iou/{n}'] for n in _NAMES])
  expected = {'image_mnsd': mnsd, 'dataset_boundary_miou': miou}
  _assert_same(metrics, expected)


def test_band_scores_are_those_of_the_pixels_in_the_band():
  metrics, _ = measures.summarize(_measured(), _SPEC)
  counts = np.zeros((3, 3), int)
  for logits, mask in _examples():
    near = boundaries.band(mask, 3, _SPEC.band)
    np.add.at(counts, (mask[near], logits.argmax(-1)[near]), 1)
  iou, _ = confusion.iou_and_dice(counts)
  names = [f'dataset_band_iou/{name}' for name in _NAMES]
  _assert_same(metrics, dict(zip(names, iou), dataset_band_miou=iou.mean()))
  assert metrics['dataset_band_miou'] < metrics['dataset_miou']


def test_objects_are_summed_and_thresholds_are_those_of_the_split():
  measured = _measured()
  # Matches that differ between all thresholds.
  for i, m in enumerate(measured):
    tp = np.arange(10 + i, i, -1)
    m['objects'] = np.stack([tp, 20 - tp, 25 + i - tp], 1)
  metrics, _ = measures.summarize(measured, _SPEC)
  counts = sum(m['objects'] for m in measured)
  precision = counts[:, 0] / counts.sum(1)
  ap50, ap75, ap = precision[0], precision[5], precision.mean()
  _assert_same(metrics, {'ap50': ap50, 'ap75': ap75, 'ap': ap})
  for name in _PARTITIONS:
    values = np.stack([m[name] for m in measured])
    # Two images have no pet.
    assert np.isnan(values[4:]).all()
    means = values[:4].mean(0)
    _assert_same(metrics, {name: means[4], f'{name}_best': means.max()})
    assert metrics[f'{name}_best_threshold'] == (means.argmax() + 1) / 10


def test_rows_are_metrics_of_one_image():
  measured = _measured()
  rows = measures.image_rows(measured, list('abcdef'), _SPEC)
  assert [r['image'] for r in rows] == list('abcdef')
  assert all(r.keys() == rows[0].keys() for r in rows)
  alone = ('pixel_accuracy', 'ece', 'nll', 'brier', 'ap50', 'ap', *_PARTITIONS)
  same = {n: n for n in alone} | {'miou': 'image_miou'}
  scores = ('iou', 'dice', 'boundary_iou', 'hd95', 'nsd')
  columns = [f'{score}/{n}' for score in scores for n in _NAMES]
  columns += ['iou/pet+border', 'dice/pet+border']
  same |= {column: f'image_{column}' for column in columns}
  counted = [f'{of}pixels/{n}' for of in ('', 'predicted_') for n in _NAMES]
  assert rows[0].keys() == {'image', *same, *counted}
  for row, m in zip(rows, measured):
    metrics, _ = measures.summarize([m], _SPEC)
    for column, name in same.items():
      value = row[column]
      if column.startswith('hd95') and np.isinf(value):
        assert metrics[f'hd95_infinite/{column.partition("/")[2]}'] == 1
        value = np.nan
      assert _is_same(value, metrics[name]), column
  assert np.isinf(rows[5]['hd95/pet'])


def test_rows_count_the_pixels_of_mask_and_prediction():
  rows = measures.image_rows(_measured(), list('abcdef'), _SPEC)
  of_mask, of_prediction = (
    [[row[f'{of}pixels/{n}'] for n in _NAMES] for row in rows]
    for of in ('', 'predicted_')
  )
  for i, (logits, mask) in enumerate(_examples()):
    prediction = logits.argmax(-1)[mask != 255]
    assert of_mask[i] == [(mask == c).sum() for c in range(3)]
    assert of_prediction[i] == [(prediction == c).sum() for c in range(3)]
  assert of_mask != of_prediction


def test_rows_need_a_name_for_each_image():
  with pytest.raises(ValueError, match='zip'):
    measures.image_rows(_measured(), ['a'], _SPEC)


def test_a_perfect_prediction():
  _, mask = _example(0)
  logits = 50 * (mask[..., None] == np.arange(3)).astype(np.float32)
  metrics, limits = measures.summarize([_measure(logits, mask)] * 2, _SPEC)
  zero = {'ece', 'mce', 'nll', 'brier'}
  for name, value in metrics.items():
    if not name.endswith('threshold'):
      is_zero = name in zero or 'hd95' in name
      assert value == pytest.approx(0 if is_zero else 1, abs=1e-6), name
  assert set(limits.values()) == {(1.0, 1.0)}


def test_one_channel_is_two():
  logits, mask = _example(1, num_classes=2)
  one = logits[..., 1:] - logits[..., :1]
  two = np.concatenate([np.zeros_like(one), one], -1)
  spec = dataclasses.replace(
    _SPEC, names=('rest', 'cell'), foreground=(), instances='cell'
  )
  actual, expected = (_measure(x, mask, spec) for x in (one, two))
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)
  assert actual['confusion'].shape == (2, 2) and actual['confusion'].all()


def test_large_images_go_in_parts(monkeypatch):
  whole = _measure(*_example(0))
  monkeypatch.setattr(probabilities, '_PIXELS', 100)
  parts = _measure(*_example(0))
  for name, value in whole.items():
    np.testing.assert_allclose(parts[name], value, rtol=1e-6, err_msg=name)


def test_shapes_are_fixed_for_a_spec():
  for m in zip(*(x.items() for x in _measured())):
    assert len({(name, v.shape, v.dtype) for name, v in m}) == 1


@pytest.mark.parametrize('shape', [(1, 1), (1, 6), (13, 1)])
@pytest.mark.parametrize('label', [0, 2, 255])
def test_smallest_images_and_those_of_one_class(shape, label):
  mask = np.full(shape, label, np.uint8)
  logits = np.zeros((*shape, 3), np.float32)
  logits[..., 2] = 1
  metrics, limits = measures.summarize([_measure(logits, mask)], _SPEC)
  right = {0: 0.0, 2: 1.0, 255: np.nan}[label]
  same = 'dataset_iou', 'image_nsd', 'dataset_boundary_iou'
  _assert_same(metrics, {f'{name}/border': right for name in same})
  assert _is_same(metrics['pixel_accuracy'], right)
  assert metrics['hd95_infinite/border'] == (label == 0)
  assert np.isnan(metrics['dataset_band_miou'])
  assert np.isnan(metrics['nll']) == (label == 255)
  assert np.isnan(metrics['v_rand']) == (label != 0)
  assert np.isnan(limits['dataset_miou']).all() == (label == 255)


def test_given_instances_are_the_truth():
  mask = np.zeros((6, 8), np.uint8)
  logits = 9 * (mask[..., None] == np.arange(3)).astype(np.float32)
  numbers = np.repeat([[3, 8]], 4, 1) * np.ones((6, 1), int)
  given = _measure(logits, mask, instances=numbers)
  np.testing.assert_array_equal(given['objects'][0], [1, 0, 1])
  connected = _measure(logits, mask)
  np.testing.assert_array_equal(connected['objects'][0], [1, 0, 0])


def test_without_instances_and_intervals():
  spec = dataclasses.replace(_SPEC, instances='', resamples=0, foreground=())
  measured = _measured(spec)
  metrics, limits = measures.summarize(measured, spec)
  assert limits == {}
  names = {*metrics, *measures.image_rows(measured, list('abcdef'), spec)[0]}
  assert not names & {'ap', 'v_rand', 'iou/pet+border'}
  assert 'iou/border' in names


def test_reliability_is_that_of_all_pixels():
  actual = measures.reliability(_measured())
  logits, masks = (
    np.concatenate([x.reshape(1, -1, *x.shape[2:]) for x in arrays], 1)
    for arrays in zip(*_examples())
  )
  expected = calibration.reliability(
    calibration.measure(logits, probabilities.predict(logits), masks, 15)
  )
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(actual[name], value, rtol=1e-6, err_msg=name)


def test_every_field_of_a_spec_comes_from_the_config():
  config = default.get_config()
  names = ('class_0', 'class_1', 'class_2', 'class_3')
  expected = measures.Spec(names, (), 0.02, 3.0, 2.0, '', 15, 1000, 0)
  assert measures.make_spec(config) == expected
  config.seed = 3
  config.data.class_names = ('a', 'b', 'c', 'd')
  config.eval.update(foreground=('b',), instances='c', calibration_bins=10)
  config.eval.update(boundary_ratio=0.1, band=5.0, tolerance=1.0, bootstrap=7)
  assert measures.make_spec(config) == measures.Spec(
    ('a', 'b', 'c', 'd'), ('b',), 0.1, 5.0, 1.0, 'c', 10, 7, 3
  )
