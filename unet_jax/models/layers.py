"""Convolutions of stride 1 and norms, each with the activation behind it.

For images [B, H, W, C] and volumes [B, D, H, W, C]; shapes in docstrings are
those of images. Parameters and functions are those of the flax layers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unet_jax.kernels import convolution
from unet_jax.models import batch_norm, products, rows

Array = jax.Array
ModuleDef = Callable[..., Any]
Activation = Callable[[Array], Array]

# He et al. 2015 (arXiv 1502.01852), eq. 10, which the 2015 paper uses for all
# weights: a standard deviation of sqrt(2 / N), N inputs of one output.
KERNEL_INIT = nn.initializers.he_normal()


class Conv(nn.Conv):
  """`nn.Conv` of stride 1 without dilation and groups, and an activation.

  Attributes:
    kernel_size: K along each axis.
    padding: `SAME` or `VALID`.
    activation: of the result; None: none.
    native: take the kernels of unet_jax/kernels where they are faster; they
      must be loaded, and the devices be CPUs.
  """

  kernel_size: tuple[int, ...]
  padding: str = 'SAME'
  activation: Activation | None = None
  native: bool = False

  @nn.compact
  def __call__(self, x: Array | tuple[Array, ...]) -> Array:
    """[B, H, W, C], or arrays that make it along C, to [B, H', W', F]."""
    parts: Any = x if isinstance(x, tuple) else (x,)
    channels = sum(part.shape[-1] for part in parts)
    shape = (*self.kernel_size, channels, self.features)
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
    bias = None
    if self.use_bias:
      bias = self.param('bias', self.bias_init, (self.features,), jnp.float32)
    # The kernel stays in float32, see products.py.
    parts = nn.dtypes.promote_dtype(*parts, dtype=self.dtype)
    is_native = self.native and parts[0].dtype == jnp.float32
    fuses = is_native and self.activation is nn.relu
    y = convolve(tuple(parts), kernel, bias, self.padding, self.native, fuses)
    return y if fuses or self.activation is None else self.activation(y)


def convolve(
  x: Array | tuple[Array, ...],
  kernel: Array,
  bias: Array | None,
  padding: str,
  native: bool = False,
  relu: bool = False,
) -> Array:
  """Convolution of stride 1, in the form that is fast on each platform.

  XLA's 3-D convolutions on CPUs and their gradients run at a quarter of the
  rate of 2-D ones (jax 0.10.2). The same sum is one 2-D convolution of all
  planes, each with those around it as further channels.

  Args:
    x: [B, H, W, C] or [B, D, H, W, C], or arrays that make it along C.
    kernel: float32 [K, K, C, F] or [K, K, K, C, F].
    bias: [F] or None.
    padding: `SAME` or `VALID`.
    native: see `Conv`.
    relu: apply a ReLU.

  Returns:
    [B, H', W', F] or [B, D', H', W', F].
  """
  taps = kernel.shape[0]
  pad = ((taps - 1) // 2, taps // 2) if padding == 'SAME' else (0, 0)
  if isinstance(x, tuple):
    if native and convolution.joins(x, kernel):
      return convolution.convolve(x, kernel, pad[0], bias, relu)
    x = x[0] if len(x) == 1 else jnp.concatenate(x, -1)
  pads = (pad,) * (x.ndim - 2)
  if rows.parts() == 1:
    return _convolve(x, kernel, bias, pads, native, relu)
  # The rows get their padding as a halo.
  function = functools.partial(
    _convolve, pads=((0, 0), *pads[1:]), native=native, relu=relu
  )
  return rows.apply(function, x, kernel, bias, halo=pad)


def _convolve(
  x: Array,
  kernel: Array,
  bias: Array | None,
  pads: products.Pads,
  native: bool,
  relu: bool,
) -> Array:
  """As `convolve`, with zeros before and after each axis."""
  taps = kernel.shape[0]

  def stock(x: Array, kernel: Array, bias: Array | None) -> Array:
    y = products.convolve(x, kernel, 1, pads)
    y = y if bias is None else add_bias(y, bias)
    return nn.relu(y) if relu else y

  def by_planes(x: Array, kernel: Array, bias: Array | None) -> Array:
    return _convolve_planes(x, kernel, bias, pads, native, relu)

  # The kernels pad alike on all sides; `SAME` of an even K does not.
  is_centered = len({n for pad in pads for n in pad}) == 1
  if native and is_centered and convolution.supports(x, kernel):
    return convolution.convolve(x, kernel, pads[0][0], bias, relu)
  if x.ndim == 4 or taps == 1:
    return stock(x, kernel, bias)
  return jax.lax.platform_dependent(
    x, kernel, bias, cpu=by_planes, default=stock
  )


def add_bias(x: Array, bias: Array) -> Array:
  """Adds in float32, so that the bias' gradient, of all pixels, is summed so.

  On CPUs a sum of bfloat16 stops growing after some hundreds of them.
  """
  return (x.astype(jnp.promote_types(x.dtype, bias.dtype)) + bias).astype(
    x.dtype
  )


def _convolve_planes(
  x: Array,
  kernel: Array,
  bias: Array | None,
  pads: products.Pads,
  native: bool,
  relu: bool,
) -> Array:
  """3-D convolution as one 2-D convolution of all planes, see `convolve`."""
  taps = kernel.shape[0]
  x = jnp.pad(x, ((0, 0), pads[0], *((0, 0),) * 3))
  b, depth = x.shape[0], x.shape[1] - taps + 1
  x = jnp.concatenate([x[:, i : i + depth] for i in range(taps)], -1)
  # [K, K, K, C, F] to [K, K, K C, F].
  kernel = kernel.transpose(1, 2, 0, 3, 4)
  kernel = kernel.reshape(*kernel.shape[:2], -1, kernel.shape[-1])
  x = x.reshape(-1, *x.shape[2:])
  x = _convolve(x, kernel, bias, pads[1:], native, relu)
  return x.reshape(b, depth, *x.shape[1:])


def make_norm(
  kind: str,
  groups: int,
  epsilon: float,
  train: bool,
  dtype: Any,
  native: bool = False,
) -> ModuleDef | None:
  """Returns a factory of norm layers; their statistics are float32.

  The layers take an attribute `activation`; None: none.
  """
  if kind == 'batch':  # Ioffe and Szegedy 2015, arXiv 1502.03167.
    return functools.partial(
      BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=epsilon,
      dtype=dtype,
      native=native,
    )
  groups_of = {
    'group': groups,  # Wu and He 2018, arXiv 1803.08494.
    'instance': None,  # Ulyanov et al. 2016, arXiv 1607.08022.
    'layer': 1,  # Ba et al. 2016, arXiv 1607.06450: H, W and C together.
  }
  if kind not in groups_of:
    return None
  return functools.partial(
    _GroupNorm, groups=groups_of[kind], epsilon=epsilon, dtype=dtype
  )


class BatchNorm(nn.BatchNorm):
  """`nn.BatchNorm` and an activation.

  Attributes:
    native: take the sums of unet_jax/kernels in training, in float32.
  """

  activation: Activation | None = None
  native: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:  # type: ignore[override]
    activate = self.activation or (lambda x: x)
    if self.use_running_average:
      return activate(super().__call__(x))
    shape = x.shape[-1:]
    scale = self.param('scale', self.scale_init, shape, jnp.float32)
    bias = self.param('bias', self.bias_init, shape, jnp.float32)
    zeros, ones = jnp.zeros, jnp.ones
    mean = self.variable('batch_stats', 'mean', zeros, shape, jnp.float32)
    var = self.variable('batch_stats', 'var', ones, shape, jnp.float32)
    (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)
    fuses = self.activation is nn.relu
    is_native = self.native and x.dtype == jnp.float32
    x, *now = batch_norm.batch_norm(
      x, scale, bias, self.epsilon, fuses, is_native
    )
    if not self.is_initializing():
      for running, value in zip((mean, var), now):
        kept = self.momentum * running.value
        running.value = kept + (1 - self.momentum) * value
    return x if fuses else activate(x)


class _GroupNorm(nn.Module):
  """Group norm of at most `groups` groups; None: one group per channel."""

  groups: int | None
  epsilon: float
  dtype: Any
  activation: Activation | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = x.shape[-1]
    groups = c if self.groups is None else math.gcd(self.groups, c)
    x = nn.GroupNorm(
      groups,
      epsilon=self.epsilon,
      dtype=self.dtype,
      # The default of flax, E[x^2] - E[x]^2, is lost in rounding where the mean
      # is large beside the spread (1000 and 0.1: 27 times off).
      use_fast_variance=False,
      name='group_norm',
    )(x)
    return x if self.activation is None else self.activation(x)
