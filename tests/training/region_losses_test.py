"""Losses of regions against MONAI, in value and gradient, and by brute force.

What all losses share (ignored pixels, sums of parts) is in losses_test.py.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from unet_jax.training import losses, region_losses

_SHAPES = [(2, 9, 8), (2, 5, 6, 7)]
_WEIGHTS = (0.5, 1.0, 2.5)


def _example(shape=_SHAPES[0], num_classes=3):
  rng = np.random.default_rng(0)
  logits = 2 * rng.standard_normal((*shape, num_classes)).astype(np.float32)
  mask = rng.integers(0, max(num_classes, 2), shape).astype(np.uint8)
  mask[0][mask[0] == 2] = 1  # A class that is absent.
  return logits, mask


@functools.partial(jax.jit, static_argnums=(2, 3))
def _both(logits, mask, name, settings):
  spec = losses.LossSpec(weights=((name, 1.0),), **dict(settings))
  count = losses.counts(mask, spec)[name]
  total = lambda x: losses.totals(x, mask, spec)[name] / count
  return jax.value_and_grad(total)(logits)


def _check(name, logits, mask, loss_of_torch, **settings):
  """Compares with a function of probabilities and masks [B, C, ...]."""
  torch = pytest.importorskip('torch', reason='compares with PyTorch')
  theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
  first = theirs.movedim(-1, 1)
  count = logits.shape[-1]
  p = torch.softmax(first, 1) if count > 1 else torch.sigmoid(first)
  labels = np.arange(count) if count > 1 else np.array([1])
  hot = torch.tensor(
    mask[:, None] == labels.reshape(-1, *[1] * (mask.ndim - 1))
  )
  expected = loss_of_torch(p, hot.double())
  expected.backward()
  value, gradient = _both(logits, mask, name, tuple(settings.items()))
  assert_allclose(value, expected.item(), rtol=2e-5, atol=1e-6)
  assert_allclose(gradient, theirs.grad.numpy(), atol=2e-6)


def _monai(name, **options):
  module = pytest.importorskip('monai.losses', reason='compares with MONAI')
  return getattr(module, name)(**options)


@pytest.mark.parametrize('shape', _SHAPES, ids=str)
@pytest.mark.parametrize('num_classes', [1, 3])
@pytest.mark.parametrize('weights', [(0.3, 0.7), (0.5, 0.5)], ids=str)
def test_tversky_is_that_of_monai(shape, num_classes, weights):
  alpha, beta = weights
  theirs = _monai(
    'TverskyLoss', alpha=alpha, beta=beta, smooth_nr=0.5, smooth_dr=0.5
  )
  logits, mask = _example(shape, num_classes)
  _check('tversky', logits, mask, theirs, tversky=weights)
  if alpha == beta:
    dice = _monai('DiceLoss', smooth_nr=1, smooth_dr=1)
    _check('tversky', logits, mask, dice, tversky=weights)


@pytest.mark.parametrize('shape', _SHAPES, ids=str)
def test_generalized_dice_is_that_of_monai(shape):
  theirs = _monai('GeneralizedDiceLoss', smooth_nr=0, smooth_dr=0)
  logits, mask = _example(shape)
  _check('generalized_dice', logits, mask, theirs)
  # One channel is that of two, the first of which is 0.
  one, two = logits[..., :1], np.concatenate([0 * logits, logits], -1)[..., 2:4]
  mask = mask % 2
  value, _ = _both(one, mask, 'generalized_dice', ())
  expected, _ = _both(two, mask, 'generalized_dice', ())
  assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize('shape', _SHAPES, ids=str)
@pytest.mark.parametrize('num_classes', [1, 3])
def test_boundary_is_that_of_monai(shape, num_classes):
  logits, mask = _example(shape, num_classes)
  # Regions, so that distances are not all 1.
  order = np.argsort(mask, axis=None, kind='stable')
  mask = mask.ravel()[order].reshape(shape)
  mask[1, ..., :4] = 0
  _check('boundary', logits, mask, _monai('BoundaryLoss'))


@pytest.mark.parametrize('shape', [(1, 12, 17), (1, 6, 5, 9)], ids=str)
def test_distances_are_those_of_scipy(shape):
  ndimage = pytest.importorskip('scipy.ndimage')
  goal = np.random.default_rng(0).random((*shape, 2)) > 0.95
  found = jax.jit(region_losses._distance)(goal)
  for k in range(2):
    expected = ndimage.distance_transform_edt(~goal[0, ..., k])
    assert_allclose(found[0, ..., k], expected, rtol=1e-6)


@pytest.mark.parametrize('shape', _SHAPES, ids=str)
@pytest.mark.parametrize('num_classes', [1, 3])
def test_cl_dice_is_that_of_monai(shape, num_classes):
  theirs = _monai('SoftclDiceLoss', iter_=2, smooth=1e-9)

  def mean(p, hot):
    classes = range(num_classes > 1, p.shape[1])
    each = [theirs(p[:, [c]], hot[:, [c]]) for c in classes]
    return sum(each) / len(each)

  logits, mask = _example(shape, num_classes)
  _check('cl_dice', logits, mask, mean, skeleton_steps=2)


def _lovasz_by_sets(p, mask, weights):
  """Equation 9 of the paper, of one image: of growing sets of pixels."""
  values = []
  for c in range(p.shape[-1]):
    label = c if p.shape[-1] > 1 else 1
    truth = {i for i in range(len(mask)) if mask[i] == label}
    if not truth and p.shape[-1] > 1:
      continue
    error = {
      i: 1 - p[i, c] if i in truth else p[i, c]
      for i in range(len(mask))
      if mask[i] != 255
    }
    wrong, before, value = set(), 0.0, 0.0
    for i in sorted(error, key=error.get, reverse=True):
      wrong.add(i)
      jaccard = len(truth - wrong) / len(truth | wrong)
      value += error[i] * (1 - jaccard - before)
      before = 1 - jaccard
    values.append((value, weights[c]))
  return sum(v * w for v, w in values) / sum(w for _, w in values)


@pytest.mark.parametrize('num_classes', [1, 3])
def test_lovasz_is_the_extension_of_the_jaccard_loss(num_classes):
  logits, mask = _example(num_classes=num_classes)
  mask[1, :2] = 255
  weights = _WEIGHTS if num_classes > 1 else (1.0,)

  def loop(logits):
    x = logits.astype(np.float64)
    if num_classes == 1:
      p = 1 / (1 + np.exp(-x))
    else:
      p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    p = p.reshape(len(mask), -1, num_classes)
    pairs = zip(p, mask.reshape(len(mask), -1))
    return np.mean([_lovasz_by_sets(*pair, weights) for pair in pairs])

  settings = (('class_weights', weights),) if num_classes > 1 else ()
  value, gradient = _both(logits, mask, 'lovasz', settings)
  assert_allclose(value, loop(logits), rtol=1e-5)
  assert np.all(np.asarray(gradient)[mask == 255] == 0)
  for seed in range(3):
    direction = np.random.default_rng(seed).standard_normal(logits.shape)
    ends = (
      loop(logits.astype(np.float64) + s * direction) for s in (1e-7, -1e-7)
    )
    slope = float(np.subtract(*ends)) / 2e-7
    assert_allclose(np.sum(gradient * direction), slope, rtol=1e-3, atol=1e-6)


def test_lovasz_of_certain_predictions_is_1_minus_the_iou():
  rng = np.random.default_rng(0)
  mask, predicted = rng.integers(0, 3, (2, 1, 20, 20)).astype(np.uint8)
  logits = 100 * (predicted[..., None] == np.arange(3)).astype(np.float32)
  value, _ = _both(logits, mask, 'lovasz', ())
  iou = [
    np.sum((mask == c) & (predicted == c))
    / np.sum((mask == c) | (predicted == c))
    for c in range(3)
  ]
  assert_allclose(value, 1 - np.mean(iou), rtol=1e-6)


def test_skeleton_of_lines_and_bars():
  """A line is its own skeleton; a bar's is within it, and as long."""
  x = np.zeros((1, 32, 32, 1), np.float32)
  x[0, 4, 4:28] = 1
  x[0, 14:21, 4:28] = 1
  found = np.asarray(region_losses._skeleton(x, 5))[0, ..., 0]
  assert_allclose(found[4], x[0, 4, :, 0])
  assert set(np.unique(found)) == {0, 1} and np.all(found <= x[0, ..., 0])
  assert np.all(found[17, 8:24] == 1)
  middle = itertools.product((14, 15, 16, 18, 19, 20), range(8, 24))
  assert not any(found[place] for place in middle)
