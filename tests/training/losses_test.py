"""Losses against PyTorch, NumPy and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from unet_jax.config import default
from unet_jax.training import losses

_WEIGHTS = (0.5, 1.0, 2.5)
# Losses in which pixels may count that have no gradient.
_SPARSE = ('hard_pixels', 'lovasz', 'boundary')


def _spec(name='cross_entropy', **settings):
  settings = {'skeleton_steps': 1, **settings}  # Each takes time to compile.
  return losses.LossSpec(weights=((name, 1.0),), **settings)


@functools.partial(jax.jit, static_argnums=2)
def _both(logits, mask, spec):
  def loss(logits):
    total, count = losses.totals(logits, mask, spec), losses.counts(mask, spec)
    return losses.weighted_sum(total, count, spec)

  return jax.value_and_grad(loss)(logits)


def _loss(logits, mask, spec):
  return _both(logits, mask, spec)[0]


def _gradient(logits, mask, spec):
  return _both(logits, mask, spec)[1]


def _example(num_classes, seed=0, shape=(3, 5, 4)):
  rng = np.random.default_rng(seed)
  logits = 3 * rng.standard_normal((*shape, num_classes)).astype(np.float32)
  mask = rng.integers(0, max(num_classes, 2), shape).astype(np.uint8)
  mask[rng.random(shape) < 0.3] = 255
  return logits, mask


def _log_softmax(x):
  x = x.astype(np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize(
  'class_weights,smoothing',
  # Both together are defined differently, see the next test.
  [((), 0.0), (_WEIGHTS, 0.0), ((), 0.1), ((1.0, 0.0, 1.0), 0.0)],
)
def test_softmax_cross_entropy_is_that_of_torch(class_weights, smoothing):
  torch = pytest.importorskip('torch', reason='compares with PyTorch')
  logits, mask = _example(3)
  theirs = torch.tensor(logits, requires_grad=True)
  options = {'ignore_index': 255, 'label_smoothing': smoothing}
  if class_weights:
    options['weight'] = torch.tensor(class_weights)
  expected = torch.nn.functional.cross_entropy(
    theirs.permute(0, 3, 1, 2), torch.tensor(mask).long(), **options
  )
  expected.backward()
  spec = _spec(class_weights=class_weights, label_smoothing=smoothing)
  assert_allclose(_loss(logits, mask, spec), expected.item(), rtol=1e-5)
  gradient = _gradient(logits, mask, spec)
  assert_allclose(gradient, theirs.grad.numpy(), atol=1e-6)


def test_smoothed_and_weighted_cross_entropy_is_the_formula():
  """A pixel's whole term has its class's weight.

  PyTorch weighs the smoothed part by the classes that it is spread over.
  """
  logits, mask = _example(3)
  smoothing = 0.2
  total = count = 0.0
  log_p = _log_softmax(logits)
  for index in np.ndindex(*mask.shape):
    label = mask[index]
    if label == 255:
      continue
    target = np.full(3, smoothing / 3)
    target[label] += 1 - smoothing
    total += _WEIGHTS[label] * -(target * log_p[index]).sum()
    count += _WEIGHTS[label]
  spec = _spec(class_weights=_WEIGHTS, label_smoothing=smoothing)
  assert_allclose(_loss(logits, mask, spec), total / count, rtol=1e-5)


@pytest.mark.parametrize('class_weights', [(), (0.5, 2.0)])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_sigmoid_cross_entropy_is_that_of_torch(class_weights, smoothing):
  torch = pytest.importorskip('torch', reason='compares with PyTorch')
  logits, mask = _example(1)
  valid = mask != 255
  target = (mask == 1) * (1 - smoothing) + smoothing / 2
  table = np.array(class_weights or (1.0, 1.0))
  weight = np.where(valid, table[np.where(valid, mask, 0)], 0)
  total = torch.nn.functional.binary_cross_entropy_with_logits(
    *(torch.tensor(x).float() for x in (logits[..., 0], target, weight)),
    reduction='sum',
  )
  spec = _spec(class_weights=class_weights, label_smoothing=smoothing)
  expected = total.item() / weight.sum()
  assert_allclose(_loss(logits, mask, spec), expected, rtol=1e-5)


@pytest.mark.parametrize('num_classes', [1, 3])
def test_weight_map_makes_a_weighted_mean(num_classes):
  """Also with weights of classes, which multiply; float16 as in a batch."""
  logits, mask = _example(num_classes)
  rng = np.random.default_rng(1)
  weight_map = rng.uniform(0, 11, mask.shape).astype(np.float16)
  table = np.array(_WEIGHTS)
  if num_classes == 1:
    log_p = _log_softmax(np.concatenate([0 * logits, logits], -1))
  else:
    log_p = _log_softmax(logits)
  valid = mask != 255
  target = np.where(valid, mask, 0)
  picked = np.take_along_axis(log_p, target[..., None].astype(int), -1)[..., 0]
  weights = weight_map.astype(np.float64) * table[target] * valid
  expected = -(picked * weights).sum() / weights.sum()
  spec = _spec(class_weights=_WEIGHTS[: max(num_classes, 2)])

  @jax.jit
  def loss(logits, mask, weight_map):
    total = losses.totals(logits, mask, spec, weight_map)
    count = losses.counts(mask, spec, weight_map)
    return losses.weighted_sum(total, count, spec), count['cross_entropy']

  value, count = loss(logits, mask, weight_map)
  assert_allclose(value, expected, rtol=1e-5)
  assert_allclose(count, weights.sum(), rtol=1e-5)
  # The same for all classes: what a loss starts from.
  start, _ = loss(0 * logits, mask, weight_map)
  assert_allclose(start, np.log(max(num_classes, 2)), rtol=1e-5)


@pytest.mark.parametrize('name', ['dice', 'lovasz'])
def test_weight_map_is_not_for_regions(name):
  logits, mask = _example(3)
  spec = _spec(name)
  weight_map = np.full(mask.shape, 7, np.float16)
  with_map, without = (
    (losses.totals(logits, mask, spec, *w), losses.counts(mask, spec, *w))
    for w in ((weight_map,), ())
  )
  assert with_map == without


def test_sigmoid_cross_entropy_by_hand():
  # -log sigmoid(0) = log 2 for both classes; the third pixel is ignored.
  logits = np.zeros((1, 1, 3, 1), np.float32)
  logits[0, 0, 1] = np.log(3)  # Probability 3/4.
  mask = np.array([[[0, 1, 255]]], np.uint8)
  expected = (np.log(2) + np.log(4 / 3)) / 2
  assert_allclose(_loss(logits, mask, _spec()), expected, rtol=1e-6)


def _dice_loop(logits, mask, class_weights):
  """Pixel by pixel, image by image, as the docstring defines it."""
  num_classes = logits.shape[-1]
  values = []
  for image_logits, image_mask in zip(logits.astype(np.float64), mask):
    if (image_mask == 255).all():
      continue
    if num_classes == 1:
      p = 1 / (1 + np.exp(-image_logits))
      classes = [(p[..., 0], 1, 1.0)]
    else:
      p = np.exp(_log_softmax(image_logits))
      weights = class_weights or (1.0,) * num_classes
      classes = [(p[..., c], c, weights[c]) for c in range(num_classes)]
    dice, norm = 0.0, 0.0
    for probability, label, weight in classes:
      both = sizes = 0.0
      for index in np.ndindex(*image_mask.shape):
        if image_mask[index] != 255:
          hit = image_mask[index] == label
          both += probability[index] * hit
          sizes += probability[index] + hit
      dice += weight * (2 * both + 1) / (sizes + 1)
      norm += weight
    values.append(1 - dice / norm)
  return np.mean(values)


@pytest.mark.parametrize(
  'num_classes,class_weights,shape',
  [
    (1, (), (3, 5, 4)),
    (3, (), (3, 5, 4)),
    (3, _WEIGHTS, (3, 5, 4)),
    (1, (1, 5), (3, 5, 4)),
    (3, (), (3, 4, 5, 6)),  # Volumes.
  ],
)
def test_soft_dice_is_the_loop(num_classes, class_weights, shape):
  logits, mask = _example(num_classes, shape=shape)
  mask[1] = 255  # An image that does not count.
  spec = _spec('dice', class_weights=class_weights)
  expected = _dice_loop(logits, mask, class_weights)
  assert_allclose(_loss(logits, mask, spec), expected, rtol=1e-5)
  assert losses.counts(jnp.asarray(mask), spec)['dice'] == 2


def test_soft_dice_of_a_perfect_and_of_an_absent_class():
  mask = np.zeros((1, 4, 4), np.uint8)
  mask[0, :2] = 1
  logits = 100 * (mask[..., None] == np.arange(3)).astype(np.float32)
  # Class 2 is absent and not predicted, which scores 1 as the others do.
  assert_allclose(_loss(logits, mask, _spec('dice')), 0, atol=1e-6)


@pytest.mark.parametrize('num_classes', [1, 3])
@pytest.mark.parametrize('name', sorted(losses.LOSSES))
def test_ignored_pixels_count_nowhere(name, num_classes):
  """Neither single ones, nor a whole image, nor a whole batch."""
  logits, mask = _example(num_classes)
  spec = _spec(name)
  gradient = np.asarray(_gradient(logits, mask, spec))
  assert np.all(gradient[mask == 255] == 0)
  has_gradient = np.abs(gradient[mask != 255]).max(-1) > 0
  assert np.all(has_gradient) or name in _SPARSE and np.any(has_gradient)
  mask[2] = 255
  alone = _loss(logits[:2], mask[:2], spec)
  assert_allclose(_loss(logits, mask, spec), alone, rtol=1e-6)
  mask[:] = 255
  assert _loss(logits, mask, spec) == 0
  assert np.all(np.asarray(_gradient(logits, mask, spec)) == 0)


@pytest.mark.parametrize('name', sorted(losses.LOSSES))
def test_totals_and_counts_of_parts_add_up(name):
  logits, mask = _example(3, shape=(6, 5, 4))
  mask[0] = 255
  mask[1, 1:] = 255
  spec = _spec(name, class_weights=_WEIGHTS)
  total = jax.jit(lambda x, y: losses.totals(x, y, spec)[name])
  count = jax.jit(lambda y: losses.counts(y, spec)[name])
  parts = [slice(0, 2), slice(2, 4), slice(4, 6)]
  totals = [total(logits[p], mask[p]) for p in parts]
  counts = [count(mask[p]) for p in parts]
  assert_allclose(sum(totals), total(logits, mask), rtol=1e-5)
  assert_allclose(sum(counts), count(mask), rtol=1e-6)
  assert count(mask) > 0


@pytest.mark.parametrize(
  'num_classes,expected', [(1, 1e4), (3, 2e4)], ids=['sigmoid', 'softmax']
)
def test_large_logits_stay_finite(num_classes, expected):
  """Surely wrong: the cross-entropy is the distance of the logits."""
  mask = np.ones((1, 2, 2), np.uint8)
  logits = np.full((1, 2, 2, num_classes), -1e4, np.float32)
  if num_classes == 3:
    logits[..., 0] = 1e4
  assert _loss(logits, mask, _spec()) == expected
  for name in losses.LOSSES:
    assert np.isfinite(_loss(logits, mask, _spec(name)))
    assert np.all(np.isfinite(_gradient(logits, mask, _spec(name))))


def test_loss_is_the_weighted_sum_of_its_terms():
  logits, mask = _example(3)
  spec = losses.LossSpec(weights=(('cross_entropy', 0.25), ('dice', 3.0)))
  entropy, dice = (_loss(logits, mask, _spec(n)) for n, _ in spec.weights)
  expected = 0.25 * entropy + 3 * dice
  assert_allclose(_loss(logits, mask, spec), expected, rtol=1e-6)


def test_spec_of_a_config_skips_terms_of_weight_0():
  config = default.get_config()
  assert losses.make_spec(config).weights == (('cross_entropy', 1.0),)
  config.loss.weights.update(cross_entropy=0.0, dice=2.0)
  config.loss.update(class_weights=(1, 2, 3, 4), label_smoothing=0.1)
  config.loss.update(focal_gamma=1.5, hard_fraction=0.5, skeleton_steps=3)
  config.loss.tversky = (0.2, 0.8)
  expected = losses.LossSpec(
    (('dice', 2.0),), (1, 2, 3, 4), 0.1, 1.5, 0.5, (0.2, 0.8), 3
  )
  assert losses.make_spec(config) == expected
  # A registered loss without a field could never be chosen, and vice versa.
  assert set(config.loss.weights) == set(losses.LOSSES)


def test_losses_are_float32():
  logits, mask = _example(3)
  for name in losses.LOSSES:
    loss = _loss(jnp.asarray(logits), mask, _spec(name))
    assert loss.dtype == jnp.float32 and loss.shape == ()


@pytest.mark.parametrize('predicted,expected', [(-100.0, 0.0), (100.0, 1.0)])
def test_soft_dice_of_an_empty_mask(predicted, expected):
  """Right and wrong predictions: neither 0 nor 1 whatever is predicted."""
  mask = np.zeros((2, 32, 32), np.uint8)
  logits = np.full((2, 32, 32, 1), predicted, np.float32)
  assert_allclose(_loss(logits, mask, _spec('dice')), expected, atol=2e-3)
