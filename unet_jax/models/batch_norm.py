"""Batch norm of a training step: devices join one array each way.

Left to XLA's partitioner, they would wait for one another four times: for the
mean, then for the variance about it, and for each of the gradient's sums.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from unet_jax.kernels import batch_norm as kernels
from unet_jax.kernels import calls
from unet_jax.models import rows

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(
  x: Array,
  scale: Array,
  bias: Array,
  epsilon: float,
  relu: bool,
  native: bool = False,
) -> tuple[Array, Array, Array]:
  """Normalises each channel over the batch and the pixels.

  Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1; the gradient is that
  of its section 3. Sums are float32.

  Args:
    x: [B, H, W, C] or [B, D, H, W, C].
    scale, bias: float32 [C], gamma and beta.
    epsilon: added to the variance.
    relu: apply a ReLU to the result.
    native: take the sums of unet_jax/kernels; x is float32.

  Returns:
    The result, as x; mean and (biased) variance float32 [C] of x, which have no
    gradient.
  """
  return _forward(x, scale, bias, epsilon, relu, native)[0]


def _forward(
  x: Array, scale: Array, bias: Array, epsilon: float, relu: bool, native: bool
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
  if native:
    mean, var = kernels.moments(x)
  else:
    mean, var = rows.reduce(_moments, kernels.combine_moments, (x,))
  inverse = jax.lax.rsqrt(var + epsilon)
  factor = scale * inverse
  shift = bias - mean * factor
  y = x * factor + shift
  y = jnp.maximum(y, 0) if relu else y
  return (y.astype(x.dtype), mean, var), (x, mean, inverse, factor, shift)


def _backward(
  epsilon: float,
  relu: bool,
  native: bool,
  saved: tuple[Array, ...],
  gradients: Any,
) -> tuple[Array, Array, Array]:
  del epsilon
  (x, mean, inverse, factor, shift), dy = saved, gradients[0]
  # x * factor + shift > 0, by products that are exact: both uses must agree on
  # each pixel, or the gradient of a channel of one value is not centred.
  sign = jnp.sign(factor)
  limit = -shift * jnp.where(sign == 0, 1, sign / factor)
  if native:
    sums = kernels.gradient_sums(x, dy, mean, sign, limit, relu)
  else:
    sums = rows.reduce(
      functools.partial(_gradient_sums, relu=relu),
      calls.total,
      (x, dy),
      (mean, sign, limit),
    )
  dz = jnp.where(x * sign > limit, dy, 0) if relu else dy
  mean_dz, mean_dzx = sums / (x.size // x.shape[-1])
  dx = factor * (dz - mean_dz - (x - mean) * (inverse * inverse * mean_dzx))
  return dx.astype(x.dtype), sums[1] * inverse, sums[0]


batch_norm.defvjp(_forward, _backward)


def _moments(x: Array) -> Array:
  """As `kernels.moments`, of any type."""
  axes, x = tuple(range(x.ndim - 1)), x.astype(jnp.float32)
  # The difference of large squares would be lost in rounding.
  return jnp.stack([jnp.mean(x, axes), jnp.var(x, axes)])


def _gradient_sums(
  x: Array, dy: Array, mean: Array, sign: Array, limit: Array, relu: bool
) -> Array:
  """As `kernels.gradient_sums`, of any type."""
  axes, dz = tuple(range(x.ndim - 1)), dy.astype(jnp.float32)
  if relu:
    dz = jnp.where(x * sign > limit, dz, 0)
  return jnp.stack([jnp.sum(dz, axes), jnp.sum(dz * (x - mean), axes)])
