"""Losses of pixels against NumPy in float64 and PyTorch.

The cross-entropy, and what all losses share, are in losses_test.py.
"""

import functools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from unet_jax.training import losses

_WEIGHTS = (0.5, 1.0, 2.5)


@functools.partial(jax.jit, static_argnums=2)
def _both(logits, mask, spec, weight_map=None):
  ((name, _),) = spec.weights
  count = losses.counts(mask, spec, weight_map)[name]
  total = lambda x: losses.totals(x, mask, spec, weight_map)[name] / count
  return jax.value_and_grad(total)(logits)


def _example(num_classes):
  rng = np.random.default_rng(0)
  shape = (3, 5, 4)
  logits = 2 * rng.standard_normal((*shape, num_classes)).astype(np.float32)
  mask = rng.integers(0, max(num_classes, 2), shape).astype(np.uint8)
  mask[rng.random(shape) < 0.3] = 255
  mask[1] = 255
  return logits, mask, rng.uniform(0, 5, shape).astype(np.float16)


def _entropy(torch, logits, mask):
  """Of each pixel, in float64; and the logits, which have a gradient."""
  x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
  both = x if x.shape[-1] > 1 else torch.cat([0 * x, x], -1)
  target = torch.tensor(np.where(mask == 255, 0, mask)).long()
  return -torch.log_softmax(both, -1).gather(-1, target[..., None])[..., 0], x


@pytest.mark.parametrize('num_classes', [1, 3])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('weighs', [False, True])
def test_focal_is_the_formula(num_classes, gamma, weighs):
  torch = pytest.importorskip('torch', reason='compares with PyTorch')
  logits, mask, weight_map = _example(num_classes)
  weight_map = weight_map if weighs else None
  table = _WEIGHTS[: max(num_classes, 2)] if weighs else ()
  weight = (mask != 255) * (1.0 if weight_map is None else weight_map)
  if table:
    weight = weight * np.array(table)[np.where(mask == 255, 0, mask)]
  entropy, x = _entropy(torch, logits, mask)
  values = (1 - torch.exp(-entropy)) ** gamma * entropy
  expected = (values * torch.tensor(weight)).sum() / weight.sum()
  expected.backward()
  spec = losses.LossSpec(
    (('focal', 1.0),), class_weights=table, focal_gamma=gamma
  )
  value, gradient = _both(logits, mask, spec, weight_map)
  assert_allclose(value, expected.item(), rtol=1e-5)
  assert_allclose(gradient, x.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize('num_classes', [1, 3])
@pytest.mark.parametrize('fraction', [0.05, 0.35, 1.0])
@pytest.mark.parametrize('weighs', [False, True])
def test_hard_pixels_are_those_of_a_sort(num_classes, fraction, weighs):
  torch = pytest.importorskip('torch', reason='compares with PyTorch')
  logits, mask, weight_map = _example(num_classes)
  entropy, x = _entropy(torch, logits, mask)
  if weighs:
    entropy = entropy * torch.tensor(weight_map.astype(np.float64))
  total, count = 0.0, 0
  for values, one in zip(entropy, mask):
    values = values[torch.tensor(one != 255)]
    number = int(np.ceil(round(len(values) * fraction, 6)))
    total, count = (
      total + torch.topk(values, number).values.sum(),
      count + number,
    )
  (total / count).backward()
  spec = losses.LossSpec((('hard_pixels', 1.0),), hard_fraction=fraction)
  value, gradient = _both(logits, mask, spec, weight_map if weighs else None)
  assert_allclose(value, total.item() / count, rtol=1e-5)
  assert_allclose(gradient, x.grad.numpy(), atol=1e-6)


def test_pixels_that_are_equally_hard_share_what_is_left():
  """Three of four pixels that are alike: the value and gradient of three."""
  logits, mask = (
    np.zeros((1, 2, 2, 1), np.float32),
    np.ones((1, 2, 2), np.uint8),
  )
  spec = losses.LossSpec((('hard_pixels', 1.0),), hard_fraction=0.75)
  value, gradient = _both(logits, mask, spec)
  assert_allclose(value, np.log(2), rtol=1e-6)
  assert_allclose(gradient, np.full(logits.shape, -0.5 / 4), rtol=1e-6)
