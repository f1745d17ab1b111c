"""The parts of a U-Net, for images [B, H, W, C] and volumes [B, D, H, W, C].

Each takes either: the number of spatial axes is that of its input, and sizes in
the docstrings are written for images. Pooling, strided and transposed
convolutions and bilinear upsampling are written in the form that XLA compiles
to fast code on all backends; each computes the same function, from the same
parameters, as the stock layer that its docstring names.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
ModuleDef = Callable[..., Any]

ACTIVATIONS = {
  'relu': nn.relu,
  'leaky_relu': nn.leaky_relu,
  'elu': nn.elu,
  'gelu': nn.gelu,
  'silu': nn.silu,
}
# He et al. 2015 (arXiv 1502.01852), eq. 10, as the 2015 paper asks for of all
# weights: a standard deviation of sqrt(2 / N), N inputs of one output.
KERNEL_INIT = nn.initializers.he_normal()


def _even(x: Array) -> Array:
  """Drops the last row, column or plane of each axis of odd size."""
  return x[(slice(None), *(slice(n // 2 * 2) for n in x.shape[1:-1]))]


def _pool_2x(x: Array, combine: Callable[[Array, Array], Array]) -> Array:
  """Combines the values of 2x2 windows, two at a time."""
  *outer, last = (n // 2 for n in x.shape[1:-1])
  b, c = x.shape[0], x.shape[-1]
  pairs = [n for size in outer for n in (size, 2)]
  x = _even(x).reshape(b, *pairs, last, 2 * c)
  for axis in range(2, 2 + len(outer)):
    before = (slice(None),) * axis
    x = combine(x[*before, 0], x[*before, 1])
  return combine(x[..., :c], x[..., c:])


def max_pool_2x(x: Array) -> Array:
  """Returns the maxima of 2x2 windows; an odd last row or column is dropped.

  Equals `nn.max_pool(x, (2, 2), (2, 2))`, whose gradient, a select-and-scatter,
  is slow on CPUs; that of a maximum of two is a comparison. Where two values
  are equal, each gets half of the gradient.

  Args:
    x: [B, H, W, C].

  Returns:
    [B, H // 2, W // 2, C].
  """
  return _pool_2x(x, jnp.maximum)


def average_pool_2x(x: Array) -> Array:
  """Returns the means of 2x2 windows, as `nn.avg_pool(x, (2, 2), (2, 2))`.

  [B, H, W, C] to [B, H // 2, W // 2, C]; an odd last row or column is dropped.
  """
  return _pool_2x(x, jnp.add) * 0.5 ** (x.ndim - 2)


def depth_to_space_2x(x: Array) -> Array:
  """[B, H, W, 4C] to [B, 2H, 2W, C]; channels are ordered (row, column, C)."""
  b, *size, channels = x.shape
  n = len(size)
  c = channels // 2**n
  x = x.reshape(b, *size, *(2,) * n, c)
  axes = [axis for i in range(n) for axis in (1 + i, 1 + n + i)]
  return x.transpose(0, *axes, 1 + 2 * n).reshape(b, *(2 * s for s in size), c)


def space_to_depth_2x(x: Array) -> Array:
  """The inverse of `depth_to_space_2x`: [B, 2H, 2W, C] to [B, H, W, 4C].

  An odd last row or column is dropped.
  """
  b, *size, c = x.shape
  n = len(size)
  size = [s // 2 for s in size]
  x = _even(x).reshape(b, *(m for s in size for m in (s, 2)), c)
  axes = [*range(1, 1 + 2 * n, 2), *range(2, 2 + 2 * n, 2)]
  return x.transpose(0, *axes, 1 + 2 * n).reshape(b, *size, 2**n * c)


def nearest_2x(x: Array) -> Array:
  """Repeats each pixel along both sides: [B, H, W, C] to [B, 2H, 2W, C]."""
  b, *size, c = x.shape
  pairs = [n for s in size for n in (s, 2)]
  after_each = [slice(None), *(slice(None), None) * len(size)]
  x = jnp.broadcast_to(x[*after_each], (b, *pairs, c))
  return x.reshape(b, *(2 * s for s in size), c)


def bilinear_2x(x: Array, align_corners: bool = False) -> Array:
  """Doubles height and width: [B, H, W, C] to [B, 2H, 2W, C].

  Equals `jax.image.resize(x, ..., 'bilinear')` (pixel centres aligned, borders
  repeated), as two shifted sums per axis instead of a dense matrix product.
  Volumes: trilinear.

  Args:
    x: [B, H, W, C].
    align_corners: the middles of the corner pixels stay where they are instead,
      as in `torch.nn.Upsample(2, mode='bilinear', align_corners=True)`: pixel i
      of the 2 N is interpolated at i (N - 1) / (2 N - 1).
  """
  for axis in range(1, x.ndim - 1):
    n = x.shape[axis]
    before_weight = after_weight = 0.25
    if align_corners:
      shape = [n if i == axis else 1 for i in range(x.ndim)]
      ramp = jnp.arange(n).reshape(shape) / (2 * n - 1)
      before_weight = ramp.astype(x.dtype)
      after_weight = jnp.flip(before_weight, axis)
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last = jax.lax.slice_in_dim(x, n - 1, n, axis=axis)
    before = jnp.concatenate(
      [first, jax.lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis
    )
    after = jnp.concatenate(
      [jax.lax.slice_in_dim(x, 1, n, axis=axis), last], axis
    )
    pair = [
      (1 - before_weight) * x + before_weight * before,
      (1 - after_weight) * x + after_weight * after,
    ]
    shape = x.shape[:axis] + (2 * n,) + x.shape[axis + 1 :]
    x = jnp.stack(pair, axis + 1).reshape(shape)
  return x


def center_crop(x: Array, *size: int) -> Array:
  """Returns the middle `size` (height, width) of [B, H, W, ...]."""
  starts = [(n - s) // 2 for n, s in zip(x.shape[1:], size)]
  return x[(slice(None), *(slice(a, a + s) for a, s in zip(starts, size)))]


def crop_to_common(x: Array, y: Array) -> tuple[Array, Array]:
  """Returns the middles of two arrays [B, H, W, ...], of the smaller size."""
  size = [min(a, b) for a, b in zip(x.shape[1:-1], y.shape[1:-1])]
  return center_crop(x, *size), center_crop(y, *size)


def _without_border(x: Array) -> Array:
  """Drops the outermost pixels: [B, H, W, C] to [B, H - 2, W - 2, C]."""
  return x[(slice(None), *(slice(1, n - 1) for n in x.shape[1:-1]))]


def pad_to(x: Array, *size: int, mode: str = 'constant') -> Array:
  """Appends zeros: [B, H, W, C] to [B, *size, C]; `edge` repeats the last."""
  after = [(0, s - n) for n, s in zip(x.shape[1:], size)]
  return jnp.pad(x, ((0, 0), *after, (0, 0)), mode=mode)


def convolve(x: Array, kernel: Array, strides, padding, **kwargs) -> Array:
  """`jax.lax.conv_general_dilated`, for `nn.Conv`; faster in 3-D on CPUs.

  There, XLA's 3-D convolutions and their gradients run at a quarter of the rate
  of 2-D ones (jax 0.10.2). The same sum is one 2-D convolution of all planes,
  each with those around it as further channels.

  Args:
    x: [B, H, W, C] or [B, D, H, W, C].
    kernel: [K, K, C, F] or [K, K, K, C, F].
    strides: 1 along each axis.
    padding: `SAME` or `VALID`.
    **kwargs: of `conv_general_dilated`; without dilation nor groups.

  Returns:
    [B, H', W', F] or [B, D', H', W', F].
  """
  taps = kernel.shape[0]
  if x.ndim < 5 or taps == 1 or jax.default_backend() != 'cpu':
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)
  if padding == 'SAME':
    around = ((taps - 1) // 2, taps // 2)
    x = jnp.pad(x, ((0, 0), around, *((0, 0),) * 3))
  b, depth = x.shape[0], x.shape[1] - taps + 1
  x = jnp.concatenate([x[:, i : i + depth] for i in range(taps)], -1)
  # [K, K, K, C, F] to [K, K, K C, F].
  kernel = kernel.transpose(1, 2, 0, 3, 4)
  kernel = kernel.reshape(*kernel.shape[:2], -1, kernel.shape[-1])
  x = jax.lax.conv_general_dilated(
    x.reshape(-1, *x.shape[2:]),
    kernel,
    strides[1:],
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=kwargs.get('precision'),
  )
  return x.reshape(b, depth, *x.shape[1:])


class Conv2x(nn.Module):
  """2x2 convolution of stride 2: [B, H, W, C] to [B, H // 2, W // 2, F].

  The same function and parameters (`kernel` [2, 2, C, F], `bias` [F]) as
  `nn.Conv(F, (2, 2), (2, 2), padding='VALID')`. Since the windows do not
  overlap, it is space to depth followed by one product.
  """

  features: int
  use_bias: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (*(2,) * (x.ndim - 2), x.shape[-1], self.features)
    kernel = self.param('kernel', KERNEL_INIT, shape, jnp.float32)
    bias = None
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    x = space_to_depth_2x(x) @ kernel.reshape(-1, self.features)
    return x if bias is None else x + bias


class ConvTranspose2x(nn.Module):
  """2x2 transposed convolution of stride 2: [B, H, W, C] to [B, 2H, 2W, F].

  The same function and parameters (`kernel` [2, 2, C, F], `bias` [F]) as
  `nn.ConvTranspose(F, (2, 2), (2, 2))`. Since the windows do not overlap, it is
  one product to 4 F channels followed by depth to space; the stock layer's
  weight gradient is many times slower (jax issue 31662).
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    n = x.ndim - 2
    shape = (*(2,) * n, x.shape[-1], self.features)
    # An output has C inputs: it sees one place of the kernel, not all 2x2.
    init = nn.initializers.he_normal(batch_axis=tuple(range(n)))
    kernel = self.param('kernel', init, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    # [2, 2, C, F] to [C, 2, 2, F]; lax's kernel runs against the output's axes.
    kernel = kernel[(slice(None, None, -1),) * n]
    kernel = kernel.transpose(n, *range(n), n + 1)
    x = x @ kernel.reshape(x.shape[-1], -1)
    return depth_to_space_2x(x) + bias


class SqueezeExcite(nn.Module):
  """Scales each channel by what all pixels say of it: [B, H, W, C] to the same.

  Hu et al. 2018 (arXiv 1709.01507), eq. 2 to 4: mean over the pixels, a layer
  to C / ratio channels with ReLU, a layer back to C with a sigmoid.
  """

  ratio: int
  conv: ModuleDef

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c, n = x.shape[-1], x.ndim - 2
    # A mean of many values: in float32.
    axes = tuple(range(1, 1 + n))
    scale = jnp.mean(x, axes, jnp.float32, keepdims=True).astype(x.dtype)
    conv = functools.partial(self.conv, kernel_size=(1,) * n, use_bias=True)
    scale = nn.relu(conv(c // self.ratio, name='reduce')(scale))
    return x * nn.sigmoid(conv(c, name='expand')(scale))


class AttentionGate(nn.Module):
  """Weakens a skip where the coarser stage sees nothing of interest.

  The additive gate of Oktay et al. 2018 (arXiv 1804.03999), eq. 1 and 2 and
  figure 2: the skip, brought to half its size by a 2x2 convolution of stride 2,
  and the gating signal are added in as many channels as the skip has; ReLU, one
  channel, sigmoid; the coefficients are interpolated to the skip's size.

  Attributes:
    conv: makes a convolution.
    dtype: of the activations.
    is_valid: leave out the outermost pixels, whose coefficients a repeated
      border has reached.
  """

  conv: ModuleDef
  dtype: Any
  is_valid: bool = False

  @nn.compact
  def __call__(self, skip: Array, gating: Array) -> Array:
    """Weighs the skip, each pixel with a number between 0 and 1.

    Args:
      skip: features of the encoder, [B, H, W, C].
      gating: features of the decoder, one stage coarser, [B, H // 2, W // 2,
        F].

    Returns:
      [B, H, W, C], with `is_valid` [B, H - 2, W - 2, C].
    """
    c, n = skip.shape[-1], skip.ndim - 2
    conv = functools.partial(self.conv, kernel_size=(1,) * n, use_bias=True)
    x = Conv2x(c, use_bias=False, dtype=self.dtype, name='skip')(skip)
    x = nn.relu(x + conv(c, name='gating')(gating))
    # As in the paper, an untrained gate lets (nearly) everything pass.
    opened = nn.initializers.constant(3.0)
    x = nn.sigmoid(conv(1, bias_init=opened, name='psi')(x))
    x = pad_to(bilinear_2x(x), *skip.shape[1:-1], mode='edge')
    if self.is_valid:
      skip, x = _without_border(skip), _without_border(x)
    return skip * x


class ConvBlock(nn.Module):
  """Convolution, norm, activation, `convs` times.

  [B, H, W, C] to [B, H', W', F]; H' is H with `same` padding and
  H - convs * (kernel_size - 1) with `valid`.

  Attributes:
    features: of all convolutions but the last.
    out_features: F, of the last.
    conv: makes a convolution; its dtype and padding are bound.
    norm: makes a norm; None: none.
    activation: of arrays.
    convs: how many.
    kernel_size: pixels along each axis.
    residual: the block's input is added before the last activation (He et al.
      2016, arXiv 1512.03385, figure 2; in a U-Net: Zhang et al. 2018, arXiv
      1711.10684), through a 1x1 convolution and norm where its channels are not
      F, and cropped with `valid` padding.
    squeeze_excite: ratio of a `SqueezeExcite` at the end, in front of the sum
      where there is one (Hu et al., figures 2 and 3); 0: none.
  """

  features: int
  out_features: int
  conv: ModuleDef
  norm: ModuleDef | None
  activation: Callable[[Array], Array]
  convs: int = 2
  kernel_size: int = 3
  residual: bool = False
  squeeze_excite: int = 0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shortcut, n = x, x.ndim - 2
    for i in range(1, self.convs + 1):
      features = self.features if i < self.convs else self.out_features
      x = self.conv(features, (self.kernel_size,) * n, name=f'conv{i}')(x)
      if self.norm is not None:
        x = self.norm(name=f'norm{i}')(x)
      if i < self.convs or not self.residual:
        x = self.activation(x)
    if self.squeeze_excite:
      x = SqueezeExcite(self.squeeze_excite, self.conv, name='squeeze_excite')(
        x
      )
    if not self.residual:
      return x
    shortcut = center_crop(shortcut, *x.shape[1:-1])
    if shortcut.shape[-1] != self.out_features:
      conv = self.conv(self.out_features, (1,) * n, name='shortcut')
      shortcut = conv(shortcut)
      if self.norm is not None:
        shortcut = self.norm(name='shortcut_norm')(shortcut)
    return self.activation(x + shortcut)


class Upsample(nn.Module):
  """Doubles height and width: [B, H, W, C] to [B, H', W', F].

  `transpose` learns the upsampling. The others are fixed and followed by a
  convolution: `bilinear`, `bilinear_corners` (see `bilinear_2x`), `nearest` and
  `pixel_shuffle` (Shi et al. 2016, arXiv 1609.05158: C channels become C/4 at
  twice the size). With a `kernel_size` of 0 there is no convolution, and F = C.

  H' is 2H; without padding 2H less
  `config.output_size.upsampling_loss(kind, kernel_size)`.

  Attributes:
    features: F.
    kind: see above.
    kernel_size: pixels along each axis of the convolution.
    conv: makes a convolution; its padding is bound.
    dtype: of the activations.
    is_valid: leave out the outermost pixels of a bilinear interpolation, which
      a repeated border has reached.
  """

  features: int
  kind: str
  kernel_size: int
  conv: ModuleDef
  dtype: Any
  is_valid: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.kind == 'transpose':
      return ConvTranspose2x(self.features, dtype=self.dtype, name='conv')(x)
    cropped_2x = lambda x: _without_border(bilinear_2x(x))
    resize = {
      'bilinear': cropped_2x if self.is_valid else bilinear_2x,
      'bilinear_corners': functools.partial(bilinear_2x, align_corners=True),
      'nearest': nearest_2x,
      'pixel_shuffle': depth_to_space_2x,
    }[self.kind]
    if self.kernel_size == 0:
      return resize(x)
    conv = self.conv(
      self.features,
      (self.kernel_size,) * (x.ndim - 2),
      use_bias=True,
      name='conv',
    )
    if self.kernel_size == 1 and self.kind != 'pixel_shuffle':
      # A 1x1 convolution and an interpolation commute, borders and bias too;
      # this order has a quarter of the products.
      return resize(conv(x))
    return conv(resize(x))


def make_norm(
  kind: str, groups: int, epsilon: float, train: bool, dtype: Any
) -> ModuleDef | None:
  """Returns a factory of norm layers; their statistics are float32."""
  if kind == 'batch':  # Ioffe and Szegedy 2015, arXiv 1502.03167.
    return functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=epsilon,
      dtype=dtype,
    )
  group_norm = functools.partial(_GroupNorm, epsilon=epsilon, dtype=dtype)
  if kind == 'group':  # Wu and He 2018, arXiv 1803.08494.
    return functools.partial(group_norm, groups=groups)
  if kind == 'instance':  # Ulyanov et al. 2016, arXiv 1607.08022.
    return functools.partial(group_norm, groups=None)
  if kind == 'layer':  # Ba et al. 2016, arXiv 1607.06450: H, W and C together.
    return functools.partial(group_norm, groups=1)
  return None


class _GroupNorm(nn.Module):
  """Group norm of at most `groups` groups; None: one group per channel."""

  groups: int | None
  epsilon: float
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = x.shape[-1]
    groups = c if self.groups is None else math.gcd(self.groups, c)
    return nn.GroupNorm(
      groups, epsilon=self.epsilon, dtype=self.dtype, name='group_norm'
    )(x)
