"""Convolutions and norms against the stock layers; XLA's and the kernels'."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import networks
from unet_jax.models import layers

_random = networks.random
_assert_same = networks.assert_same_value_and_gradient


@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize('taps', [1, 2, 3])
def test_convolution_by_planes_equals_the_stock_one(padding, taps):
  """With its gradients; 2 taps reach further to the right."""
  axes = ('NDHWC', 'DHWIO', 'NDHWC')
  stock = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1, 1), padding, dimension_numbers=axes
  )
  ours = lambda x, k: layers.convolve(x, k, None, padding)
  x, kernel = _random(2, 5, 4, 6, 3), _random(taps, taps, taps, 3, 2, seed=1)
  _assert_same(ours, stock, x, kernel)


@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize('size', [(6, 5), (3, 4, 5)], ids=str)
def test_native_convolution_of_an_even_kernel(native_cache, size, padding):
  """`SAME` pads it more behind than in front, which the kernels do not."""
  x, kernel = _random(2, *size, 3), _random(*(2,) * len(size), 3, 4, seed=1)
  native, xla = (
    functools.partial(layers.convolve, native=native)
    for native in (True, False)
  )
  _assert_same(
    lambda x, k: native(x, k, None, padding),
    lambda x, k: xla(x, k, None, padding),
    x,
    kernel,
  )


@pytest.mark.parametrize('native', [False, True])
@pytest.mark.parametrize('activation', [None, nn.relu, nn.elu])
def test_conv_equals_the_stock_layer_and_the_activation(
  native_cache, native, activation
):
  x, kernel, bias = _random(2, 6, 5, 3), _random(3, 3, 3, 4), _random(4)
  ours = layers.Conv(4, (3, 3), activation=activation, native=native)
  activate = activation or (lambda x: x)
  apply = lambda layer, x, k, b: layer.apply(
    {'params': {'kernel': k, 'bias': b}}, x
  )
  _assert_same(
    functools.partial(apply, ours),
    lambda *args: activate(apply(nn.Conv(4, (3, 3)), *args)),
    x,
    kernel,
    bias,
  )


@pytest.mark.parametrize('size', [(6, 5), (3, 4, 5)], ids=str)
@pytest.mark.parametrize('activation', [None, nn.relu, nn.elu])
def test_native_batch_norm_equals_the_stock_one(native_cache, size, activation):
  """Value, gradients, and the running statistics."""
  x = 3 * _random(4, *size, 7) + 2
  params = {'scale': _random(7, seed=1), 'bias': _random(7, seed=2)}
  stats = {'mean': _random(7, seed=3), 'var': jnp.full(7, 2.0)}
  activate = activation or (lambda x: x)

  def call(layer, x, scale, bias):
    variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': stats}
    return layer.apply(variables, x, mutable=['batch_stats'])

  fields = {'use_running_average': False, 'momentum': 0.9}
  ours = layers.BatchNorm(**fields, activation=activation, native=True)
  stock = nn.BatchNorm(**fields)
  args = (x, params['scale'], params['bias'])
  _assert_same(
    lambda *args: call(ours, *args)[0],
    lambda *args: activate(call(stock, *args)[0]),
    *args,
  )
  got, want = (call(layer, *args)[1] for layer in (ours, stock))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    got,
    want,
  )
  shapes = lambda layer: jax.eval_shape(layer.init, jax.random.key(0), x)
  assert shapes(ours) == shapes(stock)


@pytest.mark.parametrize('kind', ['batch', 'group', 'instance', 'layer'])
@pytest.mark.parametrize('native', [False, True])
def test_norms_of_a_large_mean_and_a_small_spread(native_cache, kind, native):
  """Where E[x^2] - E[x]^2, the default of flax, is 27 times off."""
  make = layers.make_norm(kind, 4, 1e-5, True, jnp.float32, native)
  x = 1000 + 0.1 * np.asarray(_random(4, 16, 16, 8), np.float64)
  x = x.astype(np.float32)
  axes = {'batch': (0, 1, 2), 'instance': (1, 2)}.get(kind, (1, 2, 3))
  parts = x.reshape(4, 16, 16, 4, 2) if kind == 'group' else x
  axes = (1, 2, 4) if kind == 'group' else axes
  exact = parts.astype(np.float64)
  exact = exact - exact.mean(axes, keepdims=True)
  exact = exact / np.sqrt((exact**2).mean(axes, keepdims=True) + 1e-5)
  layer = make()
  variables = layer.init(jax.random.key(0), x)
  y, _ = layer.apply(variables, x, mutable=['batch_stats'])
  # float32 has 1/16,000 at 1000, of a spread of 1/10.
  assert abs(y - exact.reshape(x.shape)).max() < 0.02


def test_dropout_in_bfloat16_drops_as_many():
  """A probability of 0.999 in bfloat16 would be 0.996 or 1."""
  dropped = nn.Dropout(0.001, deterministic=False).apply(
    {}, jnp.ones(2**20, jnp.bfloat16), rngs={'dropout': jax.random.key(0)}
  )
  assert (dropped == 0).mean() == pytest.approx(0.001, rel=0.15)


def test_gradients_of_a_bfloat16_bias_are_summed_in_float32():
  """Of 4,096 pixels; in bfloat16 the sum of ones would end at 256."""
  x = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
  loss = lambda bias: layers.add_bias(x, bias).astype(jnp.float32).sum()
  assert jax.jit(jax.grad(loss))(jnp.zeros(1)) == 4096
