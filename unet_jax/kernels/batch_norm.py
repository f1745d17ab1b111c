"""The sums of a batch norm's training step, by batch_norm.cc."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unet_jax.kernels import calls

Array = jax.Array


def moments(x: Array) -> Array:
  """Mean and variance [2, C] of the channels of float32 [B, H, W, C]."""
  return _moments(_pixels(x))


def gradient_sums(
  x: Array, dy: Array, mean: Array, sign: Array, limit: Array, relu: bool
) -> Array:
  """Sums [2, C] of dz and dz (x - mean), see models/batch_norm.py."""
  return _gradient_sums(relu)(_pixels(x), _pixels(dy), mean, sign, limit)


def _pixels(x: Array) -> Array:
  """[B, H, W, C] to [B, H W, C]."""
  return x.reshape(x.shape[0], -1, x.shape[-1])


def _call(name: str, x: Array, *operands: Array, **attributes: Any) -> Array:
  result = jax.ShapeDtypeStruct((2, x.shape[-1]), x.dtype)
  return jax.ffi.ffi_call(name, result)(x, *operands, **attributes)


def combine_moments(part: Array, axes: Any) -> Array:
  """Mean and variance [2, C] of the whole, from those of equal parts.

  Args:
    part: mean and variance [2, C] of this device's part.
    axes: of the mesh, over whose devices the parts lie.
  """
  # The mean of squares less the square of the mean would lose digits.
  mean, var = jnp.moveaxis(jax.lax.all_gather(part, axes), 1, 0)
  whole = jnp.mean(mean, 0)
  return jnp.stack([whole, jnp.mean(var + (mean - whole) ** 2, 0)])


_moments = calls.over_batch(
  functools.partial(_call, 'UnetMoments'), 'b n c -> k c', combine_moments
)


@functools.cache
def _gradient_sums(relu: bool) -> Callable[..., Array]:
  call = functools.partial(_call, 'UnetNormGradientSums', relu=relu)
  return calls.over_batch(call, 'b n c, b n c, c, c, c -> k c', calls.total)
