"""Tests of convolutions by unet_jax/kernels: against NumPy in float64."""

import hashlib
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import program
from tests.kernels import parity
from unet_jax.kernels import convolution
from unet_jax.models import layers, rows


@pytest.fixture(autouse=True)
def kernels(native_cache):
  return native_cache


def _normal(rng, shape):
  return rng.standard_normal(shape, np.float32)


@pytest.mark.parametrize('seed', range(2))
def test_values_and_gradients(seed):
  """25 shapes each; both algorithms occur."""
  found = parity.worst(25, seed, (parity.float64,))
  assert max(error for error, _ in found.values()) <= 1e-5, found


def test_parity_with_xla_and_pytorch():
  """A few of the shapes of parity.py, which takes minutes for all."""
  references = [parity.xla]
  if importlib.util.find_spec('torch'):
    references.append(parity.pytorch)
  found = parity.worst(6, 2, references)
  assert max(error for error, _ in found.values()) <= 1e-5, found


@pytest.mark.parametrize('c,f', [(3, 16), (16, 3), (5, 7), (32, 16), (48, 33)])
@pytest.mark.parametrize('form', ['relu', 'bias', '2x', 'transpose_2x'])
def test_forms_equal_those_of_xla(form, c, f):
  """Bias and ReLU, stride 2, and the transposed convolution."""
  rng = np.random.default_rng(c)
  size = (2, 8, 12) if form == '2x' else (2, 7, 9)
  taps = 2 if '2x' in form else 3
  args = [_normal(rng, s) for s in ((*size, c), (taps, taps, c, f), (f,))]
  layout = ('NHWC', 'HWIO', 'NHWC')

  def xla(x, kernel, bias):
    if form == 'transpose_2x':
      return jax.lax.conv_transpose(x, kernel, (2, 2), 'VALID') + bias
    stride, padding = ((2, 2), 'VALID') if form == '2x' else ((1, 1), 'SAME')
    y = jax.lax.conv_general_dilated(
      x, kernel, stride, padding, dimension_numbers=layout
    )
    return jax.nn.relu(y + bias) if form == 'relu' else y + bias

  native = {
    'relu': lambda x, k, b: convolution.convolve(x, k, 1, b, True),
    'bias': lambda x, k, b: convolution.convolve(x, k, 1, b),
    '2x': convolution.convolve_2x,
    'transpose_2x': convolution.convolve_transpose_2x,
  }[form]
  (y, vjp), (want, want_vjp) = (jax.vjp(call, *args) for call in (native, xla))
  dy = _normal(rng, y.shape)
  for a, b in zip((y, *vjp(dy)), (want, *want_vjp(dy)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize('channels', [(16, 16), (64, 32)])
def test_two_arrays_are_as_one(channels):
  """Read where they are, and joined: value and gradients."""
  rng = np.random.default_rng(0)
  x, y = (_normal(rng, (2, 9, 11, c)) for c in channels)
  kernel = _normal(rng, (3, 3, sum(channels), 32))
  assert convolution.joins((x, y), kernel)
  assert not convolution.joins((x, y[..., :8]), kernel[:, :, :-8])
  apart = lambda x, y, k: convolution.convolve((x, y), k, 1)
  joined = lambda x, y, k: convolution.convolve(
    jnp.concatenate([x, y], -1), k, 1
  )
  (a, vjp), (b, want) = (jax.vjp(f, x, y, kernel) for f in (apart, joined))
  np.testing.assert_array_equal(a, b)
  dy = _normal(rng, a.shape)
  for got, wanted in zip(vjp(dy), want(dy), strict=True):
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(got / scale, wanted / scale, atol=1e-6)


@pytest.mark.parametrize('c', [16, 5])
def test_relu_passes_nan_on(c):
  """As JAX's; a network that diverged must not look sound."""
  x = jnp.zeros((1, 6, 6, c)).at[0, 3, 3, 0].set(jnp.nan)
  y = convolution.convolve(x, jnp.ones((3, 3, c, c)), 1, jnp.ones(c), True)
  assert np.isnan(y[0, 3, 3]).all() and not np.isnan(y[0, 0, 0]).any()


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


def _run(kernels, code, **env):
  """Runs code in a process of its own, with the library; returns its output."""
  load = f'from unet_jax.kernels import build; build.load({kernels!r})\n'
  done = subprocess.run(
    [sys.executable, '-c', load + code],
    env={**os.environ, **env},
    cwd=program.ROOT,
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  return done.stdout


def test_bits_depend_on_no_number_of_threads(kernels):
  code = """
import os, pathlib
from tests.kernels import convolution_test
print(convolution_test._digest())
tasks = pathlib.Path('/proc/self/task').glob('*/comm')
print(sum('XLAEigen' in task.read_text() for task in tasks))
"""
  # The size of XLA's pool.
  printed = [_run(kernels, code, NPROC=str(n)).split() for n in (1, 2, 4)]
  assert {digest for digest, _ in printed} == {_digest()}
  if sys.platform == 'linux':
    assert [threads for _, threads in printed] == ['1', '2', '4']


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


@pytest.mark.eight_devices
def test_rows_are_split_over_devices():
  rng = np.random.default_rng(0)
  x, kernel = _normal(rng, (2, 16, 9, 16)), _normal(rng, (3, 3, 16, 16))

  def loss(x, kernel):
    y = layers.convolve(x, kernel, None, 'SAME', native=True, relu=True)
    return jnp.sum(jnp.sin(y))

  gradient = jax.value_and_grad(loss, (0, 1))
  auto = (jax.sharding.AxisType.Auto,) * 3
  mesh = jax.make_mesh((2, 1, 4), ('data', 'fsdp', 'spatial'), axis_types=auto)
  sent = jax.device_put((x, kernel), jax.NamedSharding(mesh, jax.P()))
  got = jax.jit(rows.split(mesh, gradient))(*sent)
  want = jax.jit(gradient)(x, kernel)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_what_it_supports():
  array = lambda *shape, dtype='float32': jax.ShapeDtypeStruct(shape, dtype)
  image, kernel = array(1, 8, 8, 16), array(3, 3, 16, 16)
  assert convolution.supports(image, kernel)
  for x, k in (
    (array(1, 4, 8, 8, 16), array(3, 3, 3, 16, 16)),
    (array(1, 8, 8, 16, dtype='bfloat16'), array(3, 3, 16, 16)),
    (image, array(5, 5, 16, 16)),
    (array(1, 8, 8, 1024), array(3, 3, 1024, 16)),
  ):
    assert not convolution.supports(x, k)


@pytest.mark.parametrize('axes', [(0, 0), (0, None), (None, 0)])
def test_vmap_is_one_after_the_other(axes):
  rng = np.random.default_rng(0)
  shapes = (2, 7, 8, 16), (3, 3, 16, 16)
  arrays = [
    _normal(rng, shape if axis is None else (3, *shape))
    for shape, axis in zip(shapes, axes)
  ]

  def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())

  loss = lambda x, k: jnp.mean(convolution.convolve(x, k, 1) ** 2)
  gradient = jax.value_and_grad(loss, (0, 1))
  got = jax.jit(jax.vmap(gradient, axes))(*arrays)
  for i in range(3):
    want = gradient(*(a if n is None else a[i] for a, n in zip(arrays, axes)))
    jax.tree.map(lambda a, b, i=i: assert_close(a[i], b), got, want)
  total = lambda *arrays: jnp.sum(jax.vmap(loss, axes)(*arrays))
  for a, b, axis in zip(jax.grad(total, (0, 1))(*arrays), got[1], axes):
    assert_close(a, b.sum(0) if axis is None else b)


def test_second_derivatives_are_refused():
  x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
  loss = lambda k: jnp.sum(convolution.convolve(x, k, 1)) ** 2
  with pytest.raises(NotImplementedError, match='no second derivatives'):
    jax.grad(lambda k: jnp.sum(jax.grad(loss)(k)))(kernel)


@pytest.mark.parametrize('pad,size', [(-1, 8), (3, 8), (0, 2)])
def test_what_is_no_convolution_is_refused(pad, size):
  x, kernel = jnp.ones((1, 8, size, 1)), jnp.ones((3, 3, 1, 1))
  with pytest.raises(ValueError, match=f'a pad of {pad}: it takes'):
    convolution.convolve(x, kernel, pad)


@pytest.mark.parametrize('empty', [(0, 2, 3), (2, 0, 3), (2, 2, 0)])
def test_of_nothing(empty):
  """No image, no channel to or from: zeros, or nothing."""
  b, c, f = empty
  x, kernel = jnp.ones((b, 5, 5, c)), jnp.ones((3, 3, c, f))
  y, vjp = jax.vjp(lambda x, k: convolution.convolve(x, k, 1), x, kernel)
  assert y.shape == (b, 5, 5, f)
  for array in (y, *vjp(y)):
    assert not np.any(array)


_LITTLE_MEMORY = """
import resource
import jax
import jax.numpy as jnp
from unet_jax.kernels import convolution
from unet_jax.models import layers, rows
x, kernel = jnp.zeros((2, 3, 3000, 4096)), jnp.zeros((3, 3, 4096, 1))
call = jax.jit(lambda x, k: convolution.convolve(x, k, 1))
call = call.lower(x, kernel).compile()
jax.block_until_ready((x, kernel))
pages = int(open('/proc/self/statm').read().split()[0])
most = pages * resource.getpagesize() + 2**24
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
  jax.block_until_ready(call(x, kernel))
except jax.errors.JaxRuntimeError as e:
  print(e)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='asks Linux for the size')
def test_a_lack_of_memory_is_an_error(kernels):
  """On the threads, of which each takes 150 MB for two rows of an image."""
  assert 'bad_alloc' in _run(kernels, _LITTLE_MEMORY, NPROC='2')
