"""Convolutions of convolution.cc as functions of JAX, with their gradients."""

import functools
from typing import Any, NamedTuple

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
    and kernel.shape[0] == kernel.shape[1]
    and kernel.shape[0] <= 3
    and x.dtype == kernel.dtype == jnp.float32
    and max(kernel.shape[2:]) <= _MAX_CHANNELS
  )


def convolve(
  x: Array,
  kernel: Array,
  pad: int,
  bias: Array | None = None,
  relu: bool = False,
) -> Array:
  """Convolution of stride 1, as `jax.lax.conv_general_dilated` without a flip.

  Args:
    x: float32 [B, H, W, C].
    kernel: float32 [K, K, C, F].
    pad: zeros on each side of each axis.
    bias: float32 [F]; is added.
    relu: apply a ReLU to the result.

  Returns:
    float32 [B, H + 2 pad - K + 1, W + 2 pad - K + 1, F].
  """
  return _convolve(x, kernel, bias, _Form(pad=pad, relu=relu))


def convolve_2x(x: Array, kernel: Array, bias: Array | None) -> Array:
  """Convolution of stride 2: [B, 2H, 2W, C], [2, 2, C, F] to [B, H, W, F]."""
  return _convolve(x, kernel, bias, _Form(stride=2))


def convolve_transpose_2x(
  x: Array, kernel: Array, bias: Array | None
) -> Array:
  """`jax.lax.conv_transpose`: [B, H, W, C], [2, 2, C, F] to [B, 2H, 2W, F]."""
  return _convolve(x, kernel, bias, _Form(stride=2, spread=True))


class _Form(NamedTuple):
  """Attributes of a call, see convolution.cc.

  With `flip` the kernel is [K, K, F, C], and its taps are in reverse order:
  that makes of a convolution the gradient of its input.
  """

  stride: int = 1
  pad: int = 0
  flip: bool = False
  spread: bool = False
  relu: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _convolve(
  x: Array, kernel: Array, bias: Array | None, form: _Form
) -> Array:
  no_bias = jnp.zeros((0,), x.dtype)
  return _forward(x, kernel, no_bias if bias is None else bias, form)


def _convolve_fwd(
  x: Array, kernel: Array, bias: Array | None, form: _Form
) -> tuple[Array, tuple[Any, ...]]:
  y = _convolve(x, kernel, bias, form)
  return y, (x, kernel, bias is not None, y if form.relu else None)


def _convolve_bwd(
  form: _Form, saved: tuple[Any, ...], dy: Array
) -> tuple[Array, Array, Array | None]:
  x, kernel, has_bias, y = saved
  if form.relu:
    dy = jnp.where(y > 0, dy, 0)
  size = kernel.shape[0]
  pad = size - 1 - form.pad if form.stride == 1 else 0
  turned = _Form(form.stride, pad, True, form.stride > 1 and not form.spread)
  dx = _convolve(dy, kernel, None, turned)
  if form.spread:
    dkernel = _kernel_gradient(dy, x, size, _Form(form.stride))
    dkernel = dkernel[::-1, ::-1].swapaxes(2, 3)
  else:
    dkernel = _kernel_gradient(x, dy, size, form)
  return dx, dkernel, jnp.sum(dy, (0, 1, 2)) if has_bias else None


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _call_forward(x: Array, kernel: Array, bias: Array, form: _Form) -> Array:
  size, f = kernel.shape[0], kernel.shape[2 if form.flip else 3]
  height, width = (
    n * form.stride
    if form.spread
    else (n + 2 * form.pad - size) // form.stride + 1
    for n in x.shape[1:3]
  )
  shape = jax.ShapeDtypeStruct((x.shape[0], height, width, f), x.dtype)
  call = jax.ffi.ffi_call('UnetConvolution', shape)
  return call(x, kernel, bias, **form._asdict(), winograd=True)


def _call_kernel_gradient(
  x: Array, dy: Array, size: int, form: _Form
) -> Array:
  """The gradient [size, size, C, F] of the kernel."""
  shape = (size, size, x.shape[-1], dy.shape[-1])
  call = jax.ffi.ffi_call(
    'UnetConvolutionKernelGradient', jax.ShapeDtypeStruct(shape, x.dtype)
  )
  return call(x, dy, stride=form.stride, pad=form.pad, winograd=True)


def _batch_axes(info: Any) -> Any:
  """The mesh's axes over which the first axis of an operand is split."""
  spec = info.sharding.spec
  return spec[0] if spec else None


# Split along the batch; rows and channels are gathered.
@functools.partial(custom_partitioning, static_argnums=(3,))
def _forward(x: Array, kernel: Array, bias: Array, form: _Form) -> Array:
  return _call_forward(x, kernel, bias, form)


def _partition_forward(form, mesh, args, result):
  whole, batch = NamedSharding(mesh, P()), NamedSharding(mesh, P(_batch_axes(args[0])))
  lower = lambda *operands: _call_forward(*operands, form)
  return mesh, lower, batch, (batch, whole, whole)


_forward.def_partition(
  _partition_forward,
  sharding_rule='b h w c, k l i o, g -> b y x f',
  need_replication_factors=tuple('hwcklio' 'gyxf'),
)


@functools.partial(custom_partitioning, static_argnums=(2, 3))
def _kernel_gradient(x: Array, dy: Array, size: int, form: _Form) -> Array:
  return _call_kernel_gradient(x, dy, size, form)


def _partition_kernel_gradient(size, form, mesh, args, result):
  axes = _batch_axes(args[0])
  batch = NamedSharding(mesh, P(axes))

  def lower(x, dy):
    gradient = _call_kernel_gradient(x, dy, size, form)
    return gradient if axes is None else jax.lax.psum(gradient, axes)

  return mesh, lower, NamedSharding(mesh, P()), (batch, batch)


_kernel_gradient.def_partition(
  _partition_kernel_gradient,
  sharding_rule='b h w c, b y x f -> k l i o',
  reduction_factors=('b',),
  need_replication_factors=tuple('hwcyxfklio'),
)
