"""Batch norm of a training step, with the sums of batch_norm.cc."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unet_jax.kernels import calls

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
  x: Array, scale: Array, bias: Array, epsilon: float, relu: bool
) -> tuple[Array, Array, Array]:
  """Normalises each channel over the batch and the pixels.

  Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1; the gradient is that
  of its section 3.

  Args:
    x: float32 [B, H, W, C] or [B, D, H, W, C].
    scale, bias: float32 [C], gamma and beta.
    epsilon: added to the variance.
    relu: apply a ReLU to the result.

  Returns:
    The result, as x; mean and (biased) variance [C] of x, which have no
    gradient.
  """
  return _batch_norm_fwd(x, scale, bias, epsilon, relu)[0]


def _batch_norm_fwd(
  x: Array, scale: Array, bias: Array, epsilon: float, relu: bool
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
  mean, var = _moments(_pixels(x))
  inverse = jax.lax.rsqrt(var + epsilon)
  factor = scale * inverse
  shift = bias - mean * factor
  y = x * factor + shift
  y = jnp.maximum(y, 0) if relu else y
  return (y, mean, var), (x, mean, inverse, factor, shift)


def _batch_norm_bwd(
  epsilon: float, relu: bool, saved: tuple[Array, ...], gradients: Any
) -> tuple[Array, Array, Array]:
  del epsilon
  (x, mean, inverse, factor, shift), dz = saved, gradients[0]
  # x * factor + shift > 0, by products that are exact: both uses must agree on
  # each pixel, or the gradient of a channel of one value is not centred.
  sign = jnp.sign(factor)
  limit = -shift * jnp.where(sign == 0, 1, sign / factor)
  sums = _gradient_sums(relu)(_pixels(x), _pixels(dz), mean, sign, limit)
  if relu:
    dz = jnp.where(x * sign > limit, dz, 0)
  mean_dz, mean_dzx = sums / (x.size // x.shape[-1])
  dx = factor * (dz - mean_dz - (x - mean) * (inverse * inverse * mean_dzx))
  return dx, sums[1] * inverse, sums[0]


batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)


def _pixels(x: Array) -> Array:
  """[B, H, W, C] to [B, H W, C]."""
  return x.reshape(x.shape[0], -1, x.shape[-1])


def _call(name: str, x: Array, *operands: Array, **attributes: Any) -> Array:
  result = jax.ShapeDtypeStruct((2, x.shape[-1]), x.dtype)
  return jax.ffi.ffi_call(name, result)(x, *operands, **attributes)


def _combine_moments(moments: Array, axes: Any) -> Array:
  """Of the devices' equal parts; no difference of large squares is taken."""
  mean, var = moments
  whole = jax.lax.pmean(mean, axes)
  var = jax.lax.pmean(var + (mean - whole) ** 2, axes)
  return jnp.stack([whole, var])


# Mean and variance of the channels of [B, N, C]: [2, C].
_moments = calls.over_batch(
  functools.partial(_call, 'UnetMoments'), 'b n c -> k c', _combine_moments
)


@functools.cache
def _gradient_sums(relu: bool) -> Callable[..., Array]:
  """Returns (x, dy, mean, sign, limit) -> sums of dz and dz (x - mean).

  They are [2, C]; dz is the gradient in front of the ReLU, if there is one.
  """
  call = functools.partial(_call, 'UnetNormGradientSums', relu=relu)
  return calls.over_batch(call, 'b n c, b n c, c, c, c -> k c', calls.total)
