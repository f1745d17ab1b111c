"""Halving, doubling, cropping and padding of features.

All functions take images [B, H, W, C] and volumes [B, D, H, W, C]; shapes in
docstrings are those of images. Each is written in the form that XLA compiles to
fast code on all backends.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def max_pool_2x(x: Array) -> Array:
  """Returns the maxima of 2x2 windows; an odd last row or column is dropped.

  Equals `nn.max_pool(x, (2, 2), (2, 2))`, whose gradient, a select-and-scatter,
  is slow on CPUs; that of a maximum of two is a comparison. Where two values
  are equal, each gets half of the gradient. Of [B, H, W, C] these are
  [B, H // 2, W // 2, C].
  """
  return _pool_2x(x, jnp.maximum)


def average_pool_2x(x: Array) -> Array:
  """Returns the means of 2x2 windows, as `nn.avg_pool(x, (2, 2), (2, 2))`.

  [B, H, W, C] to [B, H // 2, W // 2, C]; an odd last row or column is dropped.
  """
  return _pool_2x(x, jnp.add) * 0.5 ** (x.ndim - 2)


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


def _even(x: Array) -> Array:
  """Drops the last row, column or plane of each axis of odd size."""
  return x[(slice(None), *(slice(n // 2 * 2) for n in x.shape[1:-1]))]


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
    align_corners: align the centres of the corner pixels instead, as
      `torch.nn.Upsample(2, mode='bilinear', align_corners=True)`: pixel i of
      the 2 N is interpolated at i (N - 1) / (2 N - 1).
  """
  for axis in range(1, x.ndim - 1):
    n = x.shape[axis]
    before_weight: Any = 0.25
    after_weight: Any = 0.25
    if align_corners:
      along = [n if i == axis else 1 for i in range(x.ndim)]
      ramp = jnp.arange(n).reshape(along) / (2 * n - 1)
      before_weight = ramp.astype(x.dtype)
      after_weight = jnp.flip(before_weight, axis)
    part = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
    first, last = part(0, 1), part(n - 1, n)
    before = jnp.concatenate([first, part(0, n - 1)], axis)
    after = jnp.concatenate([part(1, n), last], axis)
    pair = [
      (1 - before_weight) * x + before_weight * before,
      (1 - after_weight) * x + after_weight * after,
    ]
    shape = x.shape[:axis] + (2 * n,) + x.shape[axis + 1 :]
    x = jnp.stack(pair, axis + 1).reshape(shape)
  return x


# By the value of model.downsample; `conv` is a layer, `blocks.Conv2x`.
POOLINGS: dict[str, Callable[[Array], Array]] = {
  'max': max_pool_2x,
  'average': average_pool_2x,
}
# Interpolations by model.upsample; a convolution follows each. `transpose` is a
# layer, `blocks.ConvTranspose2x`.
UPSAMPLINGS: dict[str, Callable[[Array], Array]] = {
  'bilinear': bilinear_2x,
  'bilinear_corners': functools.partial(bilinear_2x, align_corners=True),
  'nearest': nearest_2x,
  # Shi et al. 2016, arXiv 1609.05158: C channels become C/4 at twice the size.
  'pixel_shuffle': depth_to_space_2x,
}


def center_crop(x: Array, *size: int) -> Array:
  """Returns the middle `size` (height, width) of [B, H, W, ...]."""
  starts = [(n - s) // 2 for n, s in zip(x.shape[1:], size)]
  return x[(slice(None), *(slice(a, a + s) for a, s in zip(starts, size)))]


def crop_to_common(x: Array, y: Array) -> tuple[Array, Array]:
  """Returns the middles of two arrays [B, H, W, ...], of the smaller size."""
  size = [min(a, b) for a, b in zip(x.shape[1:-1], y.shape[1:-1])]
  return center_crop(x, *size), center_crop(y, *size)


def drop_border(x: Array) -> Array:
  """Drops the outermost pixels: [B, H, W, C] to [B, H - 2, W - 2, C]."""
  return x[(slice(None), *(slice(1, n - 1) for n in x.shape[1:-1]))]


def pad_to(x: Array, *size: int, mode: str = 'constant') -> Array:
  """Appends zeros: [B, H, W, C] to [B, *size, C]; `edge` repeats the last."""
  after = [(0, s - n) for n, s in zip(x.shape[1:], size)]
  return jnp.pad(x, ((0, 0), *after, (0, 0)), mode=mode)
