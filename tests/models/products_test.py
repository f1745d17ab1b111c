"""Gradients of bfloat16 products against sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from unet_jax.models import products


def _stock_transpose(x, kernel):
  axes = (
    ('NDHWC', 'DHWIO', 'NDHWC') if x.ndim == 5 else ('NHWC', 'HWIO', 'NHWC')
  )
  two = (2,) * (x.ndim - 2)
  return jax.lax.conv_transpose(x, kernel, two, 'SAME', dimension_numbers=axes)


def _stock(stride, pads):
  def convolve(x, kernel):
    axes = ('NDHWC', 'DHWIO', 'NDHWC') if x.ndim == 5 else None
    axes = axes or ('NHWC', 'HWIO', 'NHWC')
    strides = (stride,) * (x.ndim - 2)
    return jax.lax.conv_general_dilated(
      x, kernel, strides, pads, dimension_numbers=axes
    )

  return convolve


def _ours(stride, pads):
  return lambda x, kernel: products.convolve(x, kernel, stride, pads)


_CENTRED, _UNEVEN = ((1, 1), (1, 1)), ((0, 1), (2, 1))
_CASES = {
  'matmul': (products.matmul, jnp.matmul, (5, 4, 3), (3, 2)),
  'same': (_ours(1, _CENTRED), _stock(1, _CENTRED), (2, 5, 6, 3), (3, 3, 3, 4)),
  'uneven': (_ours(1, _UNEVEN), _stock(1, _UNEVEN), (2, 5, 6, 3), (3, 3, 3, 2)),
  'strided': (
    # A last column that no window reaches.
    *(_ours(2, ((0, 0),) * 2), _stock(2, ((0, 0),) * 2)),
    *((2, 6, 7, 3), (2, 2, 3, 4)),
  ),
  'volume': (
    *(_ours(1, ((1, 1),) * 3), _stock(1, ((1, 1),) * 3)),
    *((1, 4, 3, 5, 2), (3, 3, 3, 2, 3)),
  ),
  'transpose': (
    *(products.convolve_transpose_2x, _stock_transpose),
    *((2, 3, 4, 5), (2, 2, 5, 3)),
  ),
  'transpose_volume': (
    *(products.convolve_transpose_2x, _stock_transpose),
    *((1, 2, 3, 4, 3), (2, 2, 2, 3, 2)),
  ),
}


@pytest.mark.parametrize('name', _CASES)
def test_gradients_of_bfloat16(name):
  ours, stock, x_shape, kernel_shape = _CASES[name]
  rng = np.random.default_rng(0)
  # Numbers that bfloat16 has, so that nothing but sums is rounded.
  draw = lambda shape: rng.integers(-8, 9, shape) / 8
  x, kernel = draw(x_shape), draw(kernel_shape)
  with jax.enable_x64(True):
    y, transpose = jax.vjp(stock, x, kernel)
    dy = draw(y.shape)
    expected_x, expected = transpose(dy)
  found, transpose = jax.vjp(
    ours, jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.float32)
  )
  found_x, found_kernel = transpose(jnp.asarray(dy, jnp.bfloat16))
  assert found.dtype == found_x.dtype == jnp.bfloat16
  assert found_kernel.dtype == jnp.float32
  assert_allclose(found_kernel, expected, rtol=1e-6, atol=1e-6)
  rounded = lambda x: np.asarray(x, np.float32)
  assert_allclose(rounded(found), y, rtol=2**-8, atol=1e-6)
  assert_allclose(rounded(found_x), expected_x, rtol=2**-8, atol=1e-6)


@pytest.mark.eight_devices
def test_devices_sum_gradients_in_float32():
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharding = lambda *axes: jax.NamedSharding(mesh, jax.P(*axes))
  x = jax.ShapeDtypeStruct(
    (8, 6, 6, 2), jnp.bfloat16, sharding=sharding('data')
  )
  kernel = jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.float32, sharding=sharding())

  def loss(kernel, x):
    y = products.convolve(x, kernel, 1, _CENTRED)
    return jnp.sum(y.astype(jnp.float32) ** 2)

  text = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text()
  sums = [line for line in text.splitlines() if ' all-reduce(' in line]
  assert sums and all('f32[3,3,2,4]' in line for line in sums)
