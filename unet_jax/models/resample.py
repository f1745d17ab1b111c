"""Halving, doubling, cropping and padding of features.

All functions take images [B, H, W, C] and volumes [B, D, H, W, C]; shapes in
docstrings are those of images. Those that halve and double take the form that
`forms.FORMS` has for the platform.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from unet_jax.kernels import max_pool
from unet_jax.models import forms, rows

Array = jax.Array


def max_pool_2x(x: Array) -> Array:
  """Returns the maxima of 2x2 windows; an odd last row or column is dropped.

  Equals `nn.max_pool(x, (2, 2), (2, 2))`. Where values are equal, the first in
  row-major order gets the gradient, as there, in PyTorch and in TensorFlow. Of
  [B, H, W, C] these are [B, H // 2, W // 2, C].
  """
  return forms.apply('max_pool', x)


def max_pool_and_skip(x: Array) -> tuple[Array, Array]:
  """`max_pool_2x` and x; both gradients in one pass where kernels take it."""
  if max_pool.supports(x) and rows.parts() == 1:
    return _pool_and_skip(x)
  return max_pool_2x(x), x


@jax.custom_vjp
def _pool_and_skip(x: Array) -> tuple[Array, Array]:
  return max_pool_2x(x), x


_pool_and_skip.defvjp(
  lambda x: (_pool_and_skip(x), x),
  lambda x, d: (max_pool.gradient(x, d[1], d[0]),),
)


def average_pool_2x(x: Array) -> Array:
  """Returns the means of 2x2 windows, as `nn.avg_pool(x, (2, 2), (2, 2))`.

  [B, H, W, C] to [B, H // 2, W // 2, C]; an odd last row or column is dropped.
  """
  return forms.apply('average_pool', x)


def depth_to_space_2x(x: Array) -> Array:
  """[B, H, W, 4C] to [B, 2H, 2W, C]; channels are ordered (row, column, C)."""
  return forms.apply('depth_to_space', x)


def space_to_depth_2x(x: Array) -> Array:
  """The inverse of `depth_to_space_2x`: [B, 2H, 2W, C] to [B, H, W, 4C].

  An odd last row or column is dropped.
  """
  if rows.parts() == 1:
    return forms.space_to_depth(x)
  return rows.apply(forms.space_to_depth, x, multiple=2)


def nearest_2x(x: Array) -> Array:
  """Repeats each pixel along both sides: [B, H, W, C] to [B, 2H, 2W, C]."""
  return forms.apply('nearest', x)


def bilinear_2x(x: Array, align_corners: bool = False) -> Array:
  """Doubles height and width: [B, H, W, C] to [B, 2H, 2W, C].

  Equals `jax.image.resize(x, ..., 'bilinear')` (pixel centres aligned, borders
  repeated). Volumes: trilinear.

  Args:
    x: [B, H, W, C].
    align_corners: align the centres of the corner pixels instead, as
      `torch.nn.Upsample(2, mode='bilinear', align_corners=True)`: pixel i of
      the 2 N is interpolated at i (N - 1) / (2 N - 1).
  """
  return forms.apply('bilinear', x, align_corners=align_corners)


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
