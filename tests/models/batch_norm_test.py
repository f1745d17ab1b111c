"""Batch norm, with native sums and with others, against NumPy in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unet_jax.models import batch_norm, rows


@pytest.fixture(params=[False, True], ids=['stock', 'native'])
def native(request):
  """Whether to take the kernels, which are loaded then."""
  if request.param:
    request.getfixturevalue('native_cache')
  return request.param


def _reference(x, scale, bias, dy, relu):
  """Value, moments and gradients (Ioffe and Szegedy 2015, section 3)."""
  x, scale, bias, dy = (np.asarray(a, np.float64) for a in (x, scale, bias, dy))
  axes = tuple(range(x.ndim - 1))
  mean, var = x.mean(axes), x.var(axes)
  inverse = 1 / np.sqrt(var + 1e-5)
  normal = (x - mean) * inverse
  y = normal * scale + bias
  if relu:
    dy, y = np.where(y > 0, dy, 0), np.maximum(y, 0)
  dscale, dbias = (dy * normal).sum(axes), dy.sum(axes)
  count = x.size / x.shape[-1]
  dx = scale * inverse * (dy - dbias / count - normal * dscale / count)
  return y, mean, var, dx, dscale, dbias


def _check(x, relu, native, seed=0):
  rng, c = np.random.default_rng(seed), x.shape[-1]
  scale, bias = (rng.normal(size=c).astype(np.float32) for _ in range(2))
  call = lambda *args: batch_norm.batch_norm(*args, 1e-5, relu, native)
  (y, mean, var), vjp = jax.vjp(call, x, scale, bias)
  dy = rng.normal(size=x.shape).astype(np.float32)
  gradients = vjp((dy, jnp.zeros(c), jnp.zeros(c)))
  wanted = _reference(x, scale, bias, dy, relu)
  for got, want in zip((y, mean, var, *gradients), wanted):
    size = np.abs(want).max() + 1e-3
    np.testing.assert_allclose(got / size, want / size, atol=1e-5)


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('channels', [1, 3, 8, 16, 24, 64, 100, 257])
def test_value_and_gradients(channels, relu, native):
  """Rows of vectors of one and of several pixels, and what is left over."""
  rng = np.random.default_rng(channels)
  x = 2 * rng.normal(size=(2, 13, 11, channels)).astype(np.float32) + 1
  _check(x, relu, native)


def test_many_pixels(native):
  """Of several parts, with a mean that is large beside the deviation."""
  rng = np.random.default_rng(0)
  x = 30 + rng.normal(size=(4, 130, 129, 5)).astype(np.float32)
  _check(x, True, native)


def test_nan_is_passed_on(native):
  x = jnp.ones((2, 9, 9, 3)).at[1, 2, 3, 1].set(jnp.nan)
  ones = jnp.ones(3)
  for result in batch_norm.batch_norm(x, ones, ones, 1e-5, True, native):
    found = np.isnan(result).reshape(-1, 3)
    np.testing.assert_array_equal(found.all(0), [False, True, False])
    assert not found[:, [0, 2]].any()


@pytest.mark.parametrize('scale', [-2.0, 0.0, 2.0])
@pytest.mark.parametrize('bias', [-1.0, 1.0])
def test_scales_of_any_sign(scale, bias, native):
  """The ReLU's side turns with it; of 0 it is that of the bias."""
  x = jnp.linspace(-3, 3, 2 * 6 * 7 * 16).reshape(2, 6, 7, 16)

  def loss(x, scale, bias, call):
    return jnp.sum(jnp.arange(x.size).reshape(x.shape) * call(x, scale, bias))

  def stock(x, scale, bias):
    axes = (0, 1, 2)
    normal = (x - x.mean(axes)) / jnp.sqrt(x.var(axes) + 1e-5)
    return jax.nn.relu(normal * scale + bias)

  ours = lambda *args: batch_norm.batch_norm(*args, 1e-5, True, native)[0]
  args = (x, jnp.full(16, scale), jnp.full(16, bias))
  got, want = (jax.grad(loss, (0, 1, 2))(*args, f) for f in (ours, stock))
  for a, b in zip(got, want):
    size = np.abs(b).max() + 1e-3
    np.testing.assert_allclose(a / size, b / size, atol=1e-4)


def test_the_gradient_of_one_value_alone_is_centred(native):
  """Where y is 0 but for rounding, the ReLU's mask is the same everywhere."""
  x = jnp.full((2, 8, 8, 16), 1.2345) * jnp.arange(1, 17) / 7
  call = lambda x: batch_norm.batch_norm(
    x, jnp.full(16, 0.7), jnp.zeros(16), 1e-5, True, native
  )[0]
  dy = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
  dx = jax.jit(lambda x: jax.vjp(call, x)[1](dy)[0])(x)
  total = np.abs(np.sum(np.asarray(dx, np.float64), (0, 1, 2)))
  assert total.max() < 1e-3 * np.abs(dy).sum()


@pytest.mark.eight_devices
def test_batches_are_split_over_devices(native):
  """Moments and gradients are those of the whole batch."""
  rng = np.random.default_rng(0)
  # Each device's part has a mean and a variance of its own.
  level = np.arange(1, 9, dtype=np.float32)[:, None, None, None]
  x = level * rng.normal(size=(8, 6, 5, 16)).astype(np.float32) + level
  ones = np.ones(16, np.float32)

  def loss(x, scale, bias):
    y, mean, var = batch_norm.batch_norm(x, scale, bias, 1e-5, True, native)
    return jnp.sum(jnp.sin(y)), (mean, var)

  gradient = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
  want = jax.jit(gradient)(x, ones, ones)
  auto = (jax.sharding.AxisType.Auto,) * 3
  axes = ('data', 'fsdp', 'spatial')
  mesh = jax.make_mesh((4, 2, 1), axes, axis_types=auto)
  place = lambda a, spec: jax.device_put(a, jax.NamedSharding(mesh, spec))
  spec = jax.P(('data', 'fsdp'))
  args = place(x, spec), place(ones, jax.P()), place(ones, jax.P())
  compiled = jax.jit(rows.split(mesh, gradient)).lower(*args).compile()
  got = compiled(*args)
  # A mean that is large beside the deviation: the variance keeps its digits.
  far = lambda x: batch_norm.batch_norm(x, ones, ones, 1e-5, True, native)[2]
  shifted = x + np.float32(3000)
  far_got = jax.jit(rows.split(mesh, far))(place(shifted, spec))
  np.testing.assert_allclose(far_got, jax.jit(far)(shifted), rtol=1e-4)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
  assert got[1][0].sharding.spec[0] == ('data', 'fsdp')
  # One array of moments, one of sums, and the loss.
  sent = re.findall(r'= (.*) all-(?:reduce|gather)\(', compiled.as_text())
  arrays = sorted(re.findall(r'f32\[[\d,]*\]', ''.join(sent)))
  assert arrays == ['f32[2,16]', 'f32[8,2,16]', 'f32[]']
