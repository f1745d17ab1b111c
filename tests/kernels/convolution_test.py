"""Tests of unet_jax/kernels/convolution.{cc,py}: against NumPy in float64."""

import hashlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import program
from unet_jax.kernels import convolution


@pytest.fixture(autouse=True)
def kernels(native_cache):
  return native_cache


def _reference(x, kernel, dy, pad):
  """Value and gradients in float64, a tap at a time."""
  x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, dy))
  around = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  padded = np.pad(x, around)
  height, width = dy.shape[1:3]
  y, dx, dkernel = np.zeros_like(dy), np.zeros_like(padded), []
  for i, j in np.ndindex(kernel.shape[:2]):
    part = np.s_[:, i : i + height, j : j + width]
    y += padded[part] @ kernel[i, j]
    dx[part] += dy @ kernel[i, j].T
    dkernel.append(np.einsum('bhwc,bhwf->cf', padded[part], dy, optimize=True))
  inside = np.s_[:, pad : pad + x.shape[1], pad : pad + x.shape[2]]
  return y, dx[inside], np.reshape(dkernel, kernel.shape)


def _case(rng):
  """Sizes of a random convolution: odd ones, and those of each algorithm."""
  taps = int(rng.choice([1, 2, 3, 3, 3, 3, 5]))
  size = rng.integers(taps, 24, 2).tolist()
  channels = [1, 2, 3, 5, 8, 16, 17, 32, 33, 48, 64, 80, 128, 512]
  odds = np.array([2] * 10 + [1, 1, 1, 0.2])
  c, f = rng.choice(channels, 2, p=odds / odds.sum()).tolist()
  return (int(rng.integers(1, 4)), *size, c), (taps, taps, c, f)


def _normal(rng, shape):
  return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize('seed', range(2))
def test_values_and_gradients(seed):
  """25 shapes each; both algorithms occur."""
  rng = np.random.default_rng(seed)
  for _ in range(25):
    x_shape, kernel_shape = _case(rng)
    pad = int(rng.integers(0, kernel_shape[0]))
    x, kernel = _normal(rng, x_shape), _normal(rng, kernel_shape)
    y, vjp = jax.vjp(lambda x, k: convolution.convolve(x, k, pad), x, kernel)
    dy = _normal(rng, y.shape)
    wanted = _reference(x, kernel, dy, pad)
    for got, want in zip((y, *vjp(dy)), wanted):
      scale = np.abs(want).max()
      np.testing.assert_allclose(got / scale, want / scale, atol=1e-5)


def _digest():
  """Of a convolution's value and gradients, and the size of the pool."""
  rng = np.random.default_rng(0)
  digest = hashlib.sha256()
  for c, f in (3, 16), (16, 32), (128, 128), (24, 40):
    x, kernel = _normal(rng, (3, 37, 41, c)), _normal(rng, (3, 3, c, f))
    y, vjp = jax.vjp(lambda x, k: convolution.convolve(x, k, 1), x, kernel)
    for array in (y, *vjp(y)):
      digest.update(np.asarray(array).tobytes())
  return digest.hexdigest()


def test_bits_depend_on_no_number_of_threads(kernels):
  code = (
    'from tests.kernels import convolution_test as t; '
    f'from unet_jax.kernels import build; build.load({kernels!r}); '
    'print(t._digest())'
  )
  found = {
    subprocess.run(
      [sys.executable, '-c', code],
      # The size of XLA's pool.
      env={**program.os.environ, 'NPROC': str(threads)},
      cwd=program.ROOT,
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for threads in (1, 2, 4)
  }
  assert found == {_digest() + '\n'}


def test_bits_repeat():
  assert len({_digest() for _ in range(10)}) == 1


@pytest.mark.eight_devices
def test_batches_are_split_over_devices():
  rng = np.random.default_rng(0)
  x, kernel = _normal(rng, (8, 9, 10, 16)), _normal(rng, (3, 3, 16, 16))
  loss = lambda x, k: jnp.sum(jnp.sin(convolution.convolve(x, k, 1)))
  gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
  want = gradient(x, kernel)
  spec = jax.P(('data', 'fsdp'))
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=auto)
  x = jax.device_put(x, jax.NamedSharding(mesh, spec))
  kernel = jax.device_put(kernel, jax.NamedSharding(mesh, jax.P()))
  got = gradient(x, kernel)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
  assert got[1][0].sharding.spec == spec
  text = gradient.lower(x, kernel).compile().as_text()
  assert 'f32[1,9,10,16]' in text and 'all-gather' not in text


def test_what_it_supports():
  array = lambda *shape, dtype='float32': jax.ShapeDtypeStruct(shape, dtype)
  image, kernel = array(1, 8, 8, 16), array(3, 3, 16, 16)
  assert convolution.supports(image, kernel)
  for x, k in (
    (array(1, 4, 8, 8, 16), array(3, 3, 3, 16, 16)),
    (array(1, 8, 8, 16, dtype='bfloat16'), array(3, 3, 16, 16)),
    (image, array(1, 1, 16, 16)),
    (array(1, 8, 8, 1024), array(3, 3, 1024, 16)),
  ):
    assert not convolution.supports(x, k)
