"""Tests of unet_jax/kernels/adamw.{cc,py}: against NumPy in float64."""

import jax
import numpy as np
import pytest

from unet_jax.kernels import adamw

_RATES = (0.01, 0.3, 0.2, 0.4)
_FIELDS = dict(b1=0.9, b2=0.99, eps=1e-6)


@pytest.fixture(autouse=True)
def kernels(native_cache):
  return native_cache


def _trees(shapes, count):
  rng = np.random.default_rng(0)
  draw = lambda: [rng.normal(size=s).astype(np.float32) for s in shapes]
  trees = [draw() for _ in range(count)]
  trees[3] = [x**2 for x in trees[3]]
  return trees


def _expected(gradients, state, decay, max_norm):
  """Loshchilov and Hutter 2019, algorithm 2, with given corrections."""
  gradients, *state = jax.tree.map(np.float64, (gradients, *state))
  norm = np.sqrt(sum((g**2).sum() for g in gradients))
  factor = min(1, max_norm / norm) if max_norm else 1
  rate, correction1, correction2, average_rate = _RATES
  rows = []
  for g, p, m, v, *average, d in zip(gradients, *state, decay):
    g = factor * g
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    direction = m / correction1 / (np.sqrt(v / correction2) + 1e-6)
    p = p - rate * (direction + d * p)
    rows.append((p, m, v, *(a + average_rate * (p - a) for a in average)))
  return [list(column) for column in zip(*rows)], norm


@pytest.mark.parametrize('max_norm', [0.0, 1.0, 1e6])
@pytest.mark.parametrize('averages', [False, True])
def test_is_the_algorithm(averages, max_norm):
  """Of numbers that fill no vector, fill some, and take several parts."""
  shapes = [(), (7,), (64,), (3, 3, 40, 61), (2, 8192)]
  gradients, *state = _trees(shapes, 5 if averages else 4)
  decay = [0.0, 0.5, 0.0, 0.1, 0.2]
  moments = adamw.Moments(*state, *[None] * (not averages))
  step = jax.jit(
    lambda g, s: adamw.update(g, s, _RATES, decay, max_norm=max_norm, **_FIELDS)
  )
  got, norm = step(gradients, moments)
  expected, expected_norm = _expected(gradients, state, decay, max_norm)
  np.testing.assert_allclose(norm, expected_norm, rtol=1e-6)
  assert (got.average is not None) == averages
  for tree, values in zip(got, expected):
    for x, value in zip(tree, values):
      np.testing.assert_allclose(x, value, rtol=2e-6, atol=2e-6)
  # What is not given away is not changed.
  np.testing.assert_array_equal(moments.params[3], _trees(shapes, 4)[1][3])


def test_a_gradient_that_is_no_number_is_seen():
  gradients, *state = _trees([(5,), (100,)], 4)
  gradients[1][50] = np.nan
  moments = adamw.Moments(*state, None)
  got, norm = adamw.update(
    gradients, moments, _RATES, [0.0, 0.0], max_norm=1.0, **_FIELDS
  )
  assert np.isnan(norm) and np.isnan(got.params[0]).all()
