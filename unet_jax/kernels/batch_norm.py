"""Batch norm of a training step, with the sums of batch_norm.cc."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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


def _batch_norm_fwd(x, scale, bias, epsilon, relu):
  mean, var = _moments(_pixels(x))
  inverse = jax.lax.rsqrt(var + epsilon)
  factor = scale * inverse
  shift = bias - mean * factor
  y = x * factor + shift
  y = jnp.maximum(y, 0) if relu else y
  return (y, mean, var), (x, mean, inverse, factor, shift)


def _batch_norm_bwd(epsilon, relu, saved, gradients):
  del epsilon
  x, mean, inverse, factor, shift = saved
  dz = gradients[0]
  sums = _gradient_sums(_pixels(x), _pixels(dz), mean, factor, shift, relu)
  if relu:
    dz = jnp.where(x * factor + shift > 0, dz, 0)
  mean_dz, mean_dzx = sums / (x.size // x.shape[-1])
  slope = inverse * inverse * mean_dzx
  dx = factor * (dz - (mean_dz - mean * slope) - x * slope)
  return dx, sums[1] * inverse, sums[0]


batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)


def _pixels(x: Array) -> Array:
  return x.reshape(x.shape[0], -1, x.shape[-1])


def _call(name: str, x: Array, *operands: Array, **attributes: Any) -> Array:
  result = jax.ShapeDtypeStruct((2, x.shape[-1]), x.dtype)
  return jax.ffi.ffi_call(name, result)(x, *operands, **attributes)


def _batch_axes(info: Any) -> Any:
  """The mesh's axes over which the first axis of an operand is split."""
  spec = info.sharding.spec
  return spec[0] if spec else None


@custom_partitioning
def _moments(x: Array) -> Array:
  """Mean and variance of x [B, N, C]: [2, C]."""
  return _call('UnetMoments', x)


def _partition_moments(mesh, args, result):
  axes = _batch_axes(args[0])

  def lower(x):
    moments = _call('UnetMoments', x)
    if axes is None:
      return moments
    mean, var = moments
    mean, square = jax.lax.pmean((mean, var + mean * mean), axes)
    return jnp.stack([mean, jnp.maximum(square - mean * mean, 0)])

  whole = NamedSharding(mesh, P())
  return mesh, lower, whole, (NamedSharding(mesh, P(axes)),)


_moments.def_partition(
  _partition_moments,
  sharding_rule='b n c -> k c',
  reduction_factors=('b',),
  need_replication_factors=('n', 'c', 'k'),
)


@functools.partial(custom_partitioning, static_argnums=(5,))
def _gradient_sums(
  x: Array, dy: Array, mean: Array, factor: Array, shift: Array, relu: bool
) -> Array:
  """Sums of dz and dz (x - mean) [2, C]; dz: dy behind the ReLU, if any."""
  return _call('UnetNormGradientSums', x, dy, mean, factor, shift, relu=relu)


def _partition_gradient_sums(relu, mesh, args, result):
  axes = _batch_axes(args[0])

  def lower(*operands):
    sums = _call('UnetNormGradientSums', *operands, relu=relu)
    return sums if axes is None else jax.lax.psum(sums, axes)

  whole, batch = NamedSharding(mesh, P()), NamedSharding(mesh, P(axes))
  return mesh, lower, whole, (batch, batch, whole, whole, whole)


_gradient_sums.def_partition(
  _partition_gradient_sums,
  sharding_rule='b n c, b n c, c, c, c -> k c',
  reduction_factors=('b',),
  need_replication_factors=('n', 'c', 'k'),
)
