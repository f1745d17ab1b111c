"""Layers against the stock ones, in 2-D and 3-D; gates against Torch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.models import networks
from unet_jax.models import blocks, layers, resample

_random = networks.random
_assert_same = networks.assert_same_value_and_gradient
_assert_close = functools.partial(
  np.testing.assert_allclose, rtol=1e-5, atol=1e-5
)


def _apply(block, params, *args):
  return jax.jit(block.apply)({'params': params}, *args)


@pytest.mark.parametrize('native', [False, True])
@pytest.mark.parametrize('size', [(5, 6), (2, 3, 4)])
@pytest.mark.parametrize('kind', ['transpose', 'strided'])
def test_halving_and_doubling_equal_the_stock_convolutions(
  native_cache, kind, size, native
):
  """With their parameters."""
  two = (2,) * len(size)
  ours, stock = {
    'transpose': (
      blocks.ConvTranspose2x(4, native=native),
      nn.ConvTranspose(4, two, two),
    ),
    'strided': (
      blocks.Conv2x(4, native=native),
      nn.Conv(4, two, two, padding='VALID'),
    ),
  }[kind]
  x = _random(2, *size, 7)
  shapes = jax.eval_shape(stock.init, jax.random.key(0), x)
  assert shapes == jax.eval_shape(ours.init, jax.random.key(0), x)
  _assert_same(
    lambda x, k, b: ours.apply({'params': {'kernel': k, 'bias': b}}, x),
    lambda x, k, b: stock.apply({'params': {'kernel': k, 'bias': b}}, x),
    x,
    _random(*two, 7, 4),
    _random(4),
  )


@pytest.mark.parametrize(
  'kind,resize',
  [('bilinear', resample.bilinear_2x), ('nearest', resample.nearest_2x)],
)
def test_1x1_convolution_before_interpolating_equals_after(kind, resize):
  x = _random(2, 4, 5, 8)
  up = blocks.Upsample(4, kind, 1, nn.Conv, jnp.float32)
  conv = {'kernel': _random(1, 1, 8, 4), 'bias': _random(4)}
  expected = _apply(nn.Conv(4, (1, 1)), conv, resize(x))
  _assert_close(_apply(up, {'conv': conv}, x), expected)


def test_squeeze_excite_equals_its_equations():
  x = np.asarray(_random(2, 5, 3, 6))
  block = blocks.SqueezeExcite(2, nn.Conv)
  w1, b1 = np.asarray(_random(6, 3, seed=1)), np.asarray(_random(3, seed=2))
  w2, b2 = np.asarray(_random(3, 6, seed=3)), np.asarray(_random(6, seed=4))
  hidden = np.maximum(x.mean((1, 2)) @ w1 + b1, 0)
  scale = 1 / (1 + np.exp(-(hidden @ w2 + b2)))
  assert np.any(hidden == 0) and np.any(hidden > 0)
  params = {
    'reduce': {'kernel': w1[None, None], 'bias': b1},
    'expand': {'kernel': w2[None, None], 'bias': b2},
  }
  expected = x * scale[:, None, None]
  _assert_close(_apply(block, params, x), expected, atol=1e-6)


@pytest.mark.parametrize('size', [(8, 6), (7, 9), (4, 7, 6)])
def test_attention_gate_equals_one_of_torch(size):
  torch = pytest.importorskip('torch')
  F = torch.nn.functional
  n, c, gating_c = len(size), 4, 6
  skip = np.asarray(_random(2, *size, c))
  gating = np.asarray(_random(2, *(s // 2 for s in size), gating_c, seed=1))
  gate = blocks.AttentionGate(nn.Conv, jnp.float32)
  params = networks.draw(gate.init, skip, gating)['params']

  to_torch = lambda x: torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy())
  # [..., C, F] to [F, C, ...].
  weight = lambda p: torch.from_numpy(
    np.array(p['kernel']).transpose(n + 1, n, *range(n)).copy()
  )
  bias = lambda p: torch.from_numpy(np.array(p['bias']))
  conv = {2: F.conv2d, 3: F.conv3d}[n]
  x, g = to_torch(skip), to_torch(gating)
  q = conv(x, weight(params['skip']), stride=2)
  q = torch.relu(q + conv(g, weight(params['gating']), bias(params['gating'])))
  q = torch.sigmoid(conv(q, weight(params['psi']), bias(params['psi'])))
  mode = {2: 'bilinear', 3: 'trilinear'}[n]
  q = F.interpolate(q, scale_factor=2, mode=mode, align_corners=False)
  # The row that halving dropped has its neighbour's coefficient.
  pad = [p for s in reversed(size) for p in (0, s % 2)]
  q = F.pad(q, pad, mode='replicate')
  expected = np.moveaxis((x * q).numpy(), 1, -1)
  _assert_close(_apply(gate, params, skip, gating), expected)


def test_untrained_attention_gate_lets_nearly_everything_pass():
  gate = blocks.AttentionGate(nn.Conv, jnp.float32)
  skip, gating = _random(1, 4, 4, 2), _random(1, 2, 2, 3)

  @jax.jit
  def biases():  # Alone: compiling the draws of kernels takes seconds.
    params = gate.init(jax.random.key(0), skip, gating)['params']
    return params['gating']['bias'], params['psi']['bias']

  of_gating, of_psi = biases()
  assert_array_equal(of_gating, [0, 0])
  assert 0.9 < jax.nn.sigmoid(of_psi[0]) < 1


@pytest.mark.parametrize('channels', [4, 6])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
def test_residual_block_adds_its_input(channels, padding):
  """In front of the last activation; projected where the channels differ."""
  x = _random(2, 9, 8, channels)
  conv = functools.partial(layers.Conv, padding=padding)
  block = blocks.ConvBlock(4, 4, conv, None, nn.relu, residual=True)
  params = networks.draw(block.init, x)['params']
  assert ('shortcut' in params) == (channels != 4)
  stock = nn.Conv(4, (3, 3), padding=padding)
  first = nn.relu(_apply(stock, params['conv1'], x))
  second = _apply(stock, params['conv2'], first)
  shortcut = x if padding == 'SAME' else x[:, 2:-2, 2:-2]
  if channels != 4:
    kernel = params['shortcut']['kernel'][0, 0]
    shortcut = shortcut @ kernel + params['shortcut']['bias']
  _assert_close(_apply(block, params, x), nn.relu(second + shortcut))
