"""Convolutions of convolution.cc as functions of JAX, with their gradients."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

Array = jax.Array

# Beyond this many channels the matrix products of XLA are the faster ones.
_MAX_CHANNELS = 512


def supports(x: Array, kernel: Array) -> bool:
  """Whether `convolve` is to be used: float32, 3x3, not too many channels."""
  return (
    x.ndim == 4
    and kernel.shape[0] == kernel.shape[1] == 3
    and x.dtype == kernel.dtype == jnp.float32
    and max(kernel.shape[2:]) <= _MAX_CHANNELS
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Array, kernel: Array, pad: int) -> Array:
  """Convolution of stride 1, as `jax.lax.conv_general_dilated` without a flip.

  Args:
    x: float32 [B, H, W, C].
    kernel: float32 [K, K, C, F].
    pad: zeros on each side of each axis.

  Returns:
    float32 [B, H + 2 pad - K + 1, W + 2 pad - K + 1, F].

  Raises:
    ValueError: a pad of K or more, or an image smaller than the kernel.
  """
  size = kernel.shape[0]
  if not 0 <= pad < size <= min(x.shape[1:3]) + 2 * pad:
    raise ValueError(
      f'no convolution of {x.shape} by {kernel.shape} with a pad of {pad}: it '
      'takes 0 to K - 1, and an image no smaller than the kernel'
    )
  return _forward(x, kernel, pad, False)


def _convolve_fwd(
  x: Array, kernel: Array, pad: int
) -> tuple[Array, tuple[Array, Array]]:
  return convolve(x, kernel, pad), (x, kernel)


def _convolve_bwd(
  pad: int, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  x, kernel = saved
  dx = _forward(dy, kernel, kernel.shape[0] - 1 - pad, True)
  return dx, _kernel_gradient(x, dy, kernel.shape[0], pad)


convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _opaque(call: Callable[..., Array]) -> Callable[..., Array]:
  """`call` of arrays: vmap makes a loop of it, a derivative is refused."""
  call = jax.custom_jvp(jax.custom_batching.sequential_vmap(call))

  def refuse(primals, tangents):
    raise NotImplementedError(
      'native convolutions have no second derivatives; take those of XLA '
      '(--config.cpu.kernels=xla)'
    )

  call.defjvp(refuse)
  return call


def _forward(x: Array, kernel: Array, pad: int, flip: bool) -> Array:
  split = lambda x, kernel: _split_forward(x, kernel, pad, flip)
  return _opaque(split)(x, kernel)


def _kernel_gradient(x: Array, dy: Array, size: int, pad: int) -> Array:
  split = lambda x, dy: _split_kernel_gradient(x, dy, size, pad)
  return _opaque(split)(x, dy)


def _call_forward(x: Array, kernel: Array, pad: int, flip: bool) -> Array:
  """The convolution, or with `flip` that by the kernel turned and transposed.

  The latter, of a gradient [B, H', W', F], is the gradient of the input.
  """
  size, f = kernel.shape[0], kernel.shape[2 if flip else 3]
  height, width = (n + 2 * pad - size + 1 for n in x.shape[1:3])
  shape = jax.ShapeDtypeStruct((x.shape[0], height, width, f), x.dtype)
  call = jax.ffi.ffi_call('UnetConvolution', shape)
  return call(x, kernel, pad=pad, flip=flip, winograd=True)


def _call_kernel_gradient(x: Array, dy: Array, size: int, pad: int) -> Array:
  """The gradient [size, size, C, F] of the kernel."""
  shape = (size, size, x.shape[-1], dy.shape[-1])
  call = jax.ffi.ffi_call(
    'UnetConvolutionKernelGradient', jax.ShapeDtypeStruct(shape, x.dtype)
  )
  return call(x, dy, pad=pad, winograd=True)


def _batch_axes(info: Any) -> Any:
  """The mesh's axes over which the first axis of an operand is split."""
  spec = info.sharding.spec
  return spec[0] if spec else None


# Split along the batch; rows and channels are gathered.
@functools.partial(custom_partitioning, static_argnums=(2, 3))
def _split_forward(x: Array, kernel: Array, pad: int, flip: bool) -> Array:
  return _call_forward(x, kernel, pad, flip)


def _partition_forward(pad, flip, mesh, args, result):
  batch = NamedSharding(mesh, P(_batch_axes(args[0])))
  lower = lambda x, kernel: _call_forward(x, kernel, pad, flip)
  return mesh, lower, batch, (batch, NamedSharding(mesh, P()))


_split_forward.def_partition(
  _partition_forward,
  sharding_rule='b h w c, k l i o -> b y x f',
  need_replication_factors=('h', 'w', 'c', 'k', 'l', 'i', 'o', 'y', 'x', 'f'),
)


@functools.partial(custom_partitioning, static_argnums=(2, 3))
def _split_kernel_gradient(x: Array, dy: Array, size: int, pad: int) -> Array:
  return _call_kernel_gradient(x, dy, size, pad)


def _partition_kernel_gradient(size, pad, mesh, args, result):
  axes = _batch_axes(args[0])
  batch = NamedSharding(mesh, P(axes))

  def lower(x, dy):
    gradient = _call_kernel_gradient(x, dy, size, pad)
    return gradient if axes is None else jax.lax.psum(gradient, axes)

  return mesh, lower, NamedSharding(mesh, P()), (batch, batch)


_split_kernel_gradient.def_partition(
  _partition_kernel_gradient,
  sharding_rule='b h w c, b y x f -> k l i o',
  reduction_factors=('b',),
  need_replication_factors=('h', 'w', 'c', 'y', 'x', 'f', 'k', 'l', 'i', 'o'),
)
