"""The U-Net (Ronneberger et al. 2015, arXiv 1505.04597) and its blocks.

Everything is [B, H, W, C]. The blocks with two forms (pooling, transposed
convolution, bilinear upsampling) are written in the form that XLA compiles to
fast code on all backends; each computes the same function, from the same
parameters, as the stock layer that its docstring names.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unet_jax import errors

Array = jax.Array
ModuleDef = Callable[..., Any]

ACTIVATIONS = {
  'relu': nn.relu,
  'leaky_relu': nn.leaky_relu,
  'elu': nn.elu,
  'gelu': nn.gelu,
  'silu': nn.silu,
}
# He et al. 2015 (arXiv 1502.01852), eq. 10, as the 2015 paper asks for.
_KERNEL_INIT = nn.initializers.he_normal()


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
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2 * c)
  x = jnp.maximum(x[:, :, 0], x[:, :, 1])
  return jnp.maximum(x[..., :c], x[..., c:])


def depth_to_space_2x(x: Array) -> Array:
  """[B, H, W, 4C] to [B, 2H, 2W, C]; channels are ordered (row, column, C)."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, 2, 2, c // 4)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


def nearest_2x(x: Array) -> Array:
  """Repeats each pixel along both sides: [B, H, W, C] to [B, 2H, 2W, C]."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)


def bilinear_2x(x: Array) -> Array:
  """Doubles height and width: [B, H, W, C] to [B, 2H, 2W, C].

  Equals `jax.image.resize(x, ..., 'bilinear')` (pixel centres aligned, borders
  repeated), as two shifted sums per axis instead of a dense matrix product.
  """
  for axis in (1, 2):
    n = x.shape[axis]
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last = jax.lax.slice_in_dim(x, n - 1, n, axis=axis)
    before = jnp.concatenate(
      [first, jax.lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis
    )
    after = jnp.concatenate(
      [jax.lax.slice_in_dim(x, 1, n, axis=axis), last], axis
    )
    pair = [0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after]
    shape = x.shape[:axis] + (2 * n,) + x.shape[axis + 1 :]
    x = jnp.stack(pair, axis + 1).reshape(shape)
  return x


def center_crop(x: Array, height: int, width: int) -> Array:
  """Returns the middle `height` x `width` pixels of [B, H, W, ...]."""
  top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
  return x[:, top : top + height, left : left + width]


def _pad_to(x: Array, height: int, width: int) -> Array:
  """Appends zeros: [B, H, W, C] to [B, height, width, C]."""
  rows, columns = height - x.shape[1], width - x.shape[2]
  return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))


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
    shape = (2, 2, x.shape[-1], self.features)
    kernel = self.param('kernel', _KERNEL_INIT, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    # [2, 2, C, F] to [C, 2, 2, F]; lax's kernel runs against the output's axes.
    kernel = kernel[::-1, ::-1].transpose(2, 0, 1, 3)
    x = x @ kernel.reshape(x.shape[-1], -1)
    return depth_to_space_2x(x) + bias


class ConvBlock(nn.Module):
  """Twice: 3x3 convolution, norm, activation. [B, H, W, C] to [B, H', W', F].

  H' is H with `same` padding and H - 4 with `valid`.
  """

  features: int
  conv: ModuleDef
  norm: ModuleDef | None
  activation: Callable[[Array], Array]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for i in ('1', '2'):
      x = self.conv(self.features, (3, 3), name='conv' + i)(x)
      if self.norm is not None:
        x = self.norm(name='norm' + i)(x)
      x = self.activation(x)
    return x


class Upsample(nn.Module):
  """Doubles height and width: [B, H, W, C] to [B, 2H, 2W, F].

  `transpose` learns the upsampling. The others are fixed and followed by a
  convolution: `bilinear`, `nearest` and `pixel_shuffle` (Shi et al. 2016, arXiv
  1609.05158: C channels become C/4 at twice the size).
  """

  features: int
  kind: str
  kernel_size: int
  conv: ModuleDef
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.kind == 'transpose':
      return ConvTranspose2x(self.features, dtype=self.dtype, name='conv')(x)
    conv = self.conv(
      self.features,
      (self.kernel_size, self.kernel_size),
      padding='SAME',
      use_bias=True,
      name='conv',
    )
    if self.kind == 'pixel_shuffle':
      return conv(depth_to_space_2x(x))
    resize = {'bilinear': bilinear_2x, 'nearest': nearest_2x}[self.kind]
    if self.kernel_size == 1:
      # A 1x1 convolution and an interpolation commute, borders and bias too;
      # this order has a quarter of the products.
      return resize(conv(x))
    return conv(resize(x))


class UNet(nn.Module):
  """A U-Net; the fields are explained in configs/default.py, section model.

  Attributes:
    num_classes: channels of the logits (1: one sigmoid channel).
    depth: number of 2x downsamplings; 4 in the 2015 paper.
    base_features: channels of the first stage, doubled at each further one up
      to `max_features`.
    dtype: of activations and products; parameters and logits are float32.
  """

  num_classes: int
  depth: int = 4
  base_features: int = 64
  max_features: int = 1024
  upsample: str = 'transpose'
  upsample_kernel: int = 1
  skip: str = 'concat'
  norm: str = 'none'
  norm_groups: int = 8
  activation: str = 'relu'
  dropout: float = 0.0
  padding: str = 'same'
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Returns logits.

    Args:
      x: images, [B, H, W, C], normalised floats.
      train: use the batch's own statistics and dropout (which needs an rng
        named `dropout`).

    Returns:
      float32 [B, H', W', num_classes]; H', W' are `output_size((H, W), ...)`.

    Raises:
      UserError: H or W does not fit depth and padding.
    """
    output_size(x.shape[1:3], self.depth, self.padding)
    norm = make_norm(self.norm, self.norm_groups, train, self.dtype)
    conv = functools.partial(
      nn.Conv,
      padding=self.padding.upper(),
      # A norm subtracts the mean, so that a bias before it would do nothing.
      use_bias=norm is None,
      kernel_init=_KERNEL_INIT,
      dtype=self.dtype,
    )
    block = functools.partial(
      nn.remat(ConvBlock) if self.remat else ConvBlock,
      conv=conv,
      norm=norm,
      activation=ACTIVATIONS[self.activation],
    )
    features = [
      min(self.base_features * 2**i, self.max_features)
      for i in range(self.depth + 1)
    ]

    x = x.astype(self.dtype)
    skips = []
    for i in range(self.depth):
      x = block(features[i], name=f'down_{i}')(x)
      skips.append(x)
      x = max_pool_2x(x)
    x = block(features[-1], name='bottleneck')(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    for i in reversed(range(self.depth)):
      x = Upsample(
        features[i],
        self.upsample,
        self.upsample_kernel,
        conv,
        self.dtype,
        name=f'upsample_{i}',
      )(x)
      x = self._join(x, skips.pop())
      x = block(features[i], name=f'up_{i}')(x)
    # Logits in float32: the loss exponentiates them. One cast, here.
    return nn.Conv(self.num_classes, (1, 1), name='head')(x.astype(jnp.float32))

  def _join(self, x: Array, skip: Array) -> Array:
    """Brings `x` and the skip to one size and joins them."""
    if self.padding == 'valid':
      skip = center_crop(skip, x.shape[1], x.shape[2])
    else:
      # Pooling dropped an odd last row or column; the mask still has it.
      x = _pad_to(x, skip.shape[1], skip.shape[2])
    if self.skip == 'concat':
      return jnp.concatenate([skip, x], axis=-1)
    return x + skip if self.skip == 'add' else x


def make_norm(
  kind: str, groups: int, train: bool, dtype: Any
) -> ModuleDef | None:
  """Returns a factory of norm layers; their statistics are float32."""
  if kind == 'batch':  # Ioffe and Szegedy 2015, arXiv 1502.03167.
    return functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      dtype=dtype,
    )
  if kind == 'group':  # Wu and He 2018, arXiv 1803.08494.
    return functools.partial(_GroupNorm, groups=groups, dtype=dtype)
  if kind == 'instance':  # Ulyanov et al. 2016, arXiv 1607.08022.
    return functools.partial(_GroupNorm, groups=None, dtype=dtype)
  if kind == 'layer':  # Ba et al. 2016, arXiv 1607.06450: H, W and C together.
    return functools.partial(_GroupNorm, groups=1, dtype=dtype)
  return None


class _GroupNorm(nn.Module):
  """Group norm of at most `groups` groups; None: one group per channel."""

  groups: int | None
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = x.shape[-1]
    groups = c if self.groups is None else math.gcd(self.groups, c)
    return nn.GroupNorm(
      groups, epsilon=1e-5, dtype=self.dtype, name='group_norm'
    )(x)


def create_model(config) -> UNet:
  """Returns the network of a config."""
  fields = config.model.to_dict()
  fields['dtype'] = jnp.dtype(fields['dtype'])
  return UNet(num_classes=config.data.num_classes, **fields)


def _valid_output(size: int, depth: int) -> int | None:
  """Output pixels of a `valid` network, or None where `size` does not fit."""
  for _ in range(depth):
    size -= 4
    if size <= 0 or size % 2:
      return None
    size //= 2
  size -= 4
  for _ in range(depth):
    size = 2 * size - 4
  return size if size > 0 else None


def output_size(
  size: tuple[int, int], depth: int, padding: str
) -> tuple[int, int]:
  """Returns the logits' height and width for an image's, in pixels.

  With `same` padding they are equal. With `valid`, each of the 3x3
  convolutions takes a pixel from each border, and every pooled size must be
  even: 572 gives 388 at depth 4 (figure 1 of the 2015 paper).

  Args:
    size: height and width of the image.
    depth: number of 2x downsamplings.
    padding: `same` or `valid`.

  Raises:
    UserError: the size does not fit; the message names the nearest that do.
  """
  if padding == 'same':
    if min(size) < 2**depth:
      raise errors.UserError(
        f'an image of {size[0]} x {size[1]} pixels cannot be halved {depth} '
        f'times (model.depth={depth}); use at least {2**depth} pixels or a '
        'smaller depth'
      )
    return tuple(size)
  for n in size:
    if _valid_output(n, depth) is None:
      above = n + 1
      while _valid_output(above, depth) is None:
        above += 1
      below = n - 1
      while below > 0 and _valid_output(below, depth) is None:
        below -= 1
      nearest = f'{below} or {above}' if below > 0 else f'{above}'
      raise errors.UserError(
        f'an image size of {n} pixels does not fit model.padding=valid at '
        f'model.depth={depth}; the nearest that do are {nearest} '
        '(--config.data.image_size=H,W)'
      )
  return tuple(_valid_output(n, depth) for n in size)
