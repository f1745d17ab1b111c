"""The gradient of max_pool.cc against NumPy in float64."""

import jax
import numpy as np
import pytest

from unet_jax.models import resample

pytestmark = pytest.mark.usefixtures('native_cache')


def _arrays(*size):
  """Images of few values, many of them equal, and two gradients."""
  rng, pooled = np.random.default_rng(0), [n // 2 for n in size[:2]]
  draw = lambda *size: rng.normal(size=(8, *size, 16)).astype(np.float32)
  x = rng.integers(0, 3, (8, *size, 16)).astype(np.float32)
  return x, (draw(*pooled), draw(*size))


def _reference(x, dy, dskip):
  dx = dskip.astype(np.float64)
  for b, h, w, c in np.ndindex(dy.shape):
    rows, columns = slice(2 * h, 2 * h + 2), slice(2 * w, 2 * w + 2)
    place = np.argmax(x[b, rows, columns, c])  # The first of equal ones.
    dx[b, 2 * h + place // 2, 2 * w + place % 2, c] += dy[b, h, w, c]
  return dx


def _gradient(x, d):
  (y, skip), vjp = jax.vjp(resample.max_pool_and_skip, x)
  return y, skip, vjp(d)[0]


@pytest.mark.parametrize('size', [(6, 8), (5, 7), (1, 4), (3, 1)])
def test_the_gradient(size):
  x, d = _arrays(*size)
  assert 'UnetMaxPoolGradient' in jax.jit(_gradient).lower(x, d).as_text()
  y, skip, dx = jax.jit(_gradient)(x, d)
  np.testing.assert_array_equal(y, resample.max_pool_2x(x))
  np.testing.assert_array_equal(skip, x)
  np.testing.assert_allclose(dx, _reference(x, *d), atol=1e-6)


@pytest.mark.eight_devices
def test_split_batches_and_vmap():
  x, d = _arrays(5, 6)
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ('data',), axis_types=auto)
  sent = jax.device_put((x, d), jax.NamedSharding(mesh, jax.P('data')))
  each = jax.jit(jax.vmap(lambda x, d: _gradient(x, d)[2]))
  alone = jax.tree.map(lambda a: a[:, None], (x, d))
  wanted = jax.jit(_gradient)(x, d)[2]
  split = jax.jit(lambda x, d: _gradient(x, d)[2])(*sent)
  assert len(split.sharding.device_set) == 8
  np.testing.assert_array_equal(split, wanted)
  np.testing.assert_array_equal(each(*alone)[:, 0], wanted)
