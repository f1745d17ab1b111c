"""Native convolutions as functions of JAX, with their gradients."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unet_jax.kernels import calls

Array = jax.Array

# Beyond so many channels the matrix products of XLA are the faster ones; beyond
# the first number where there are few pixels to a kernel.
_MAX_CHANNELS, _MAX_CHANNELS_OF_MANY_PIXELS, _MANY_PIXELS = 512, 1024, 1024


def supports(x: Array, kernel: Array) -> bool:
  """Whether the kernels are to be used: float32, small, few enough channels."""
  many = math.prod(x.shape[:-1]) >= _MANY_PIXELS
  most = _MAX_CHANNELS_OF_MANY_PIXELS if many else _MAX_CHANNELS
  return (
    x.ndim == 4
    and kernel.shape[0] == kernel.shape[1] <= 3
    and x.dtype == kernel.dtype == jnp.float32
    and max(kernel.shape[2:]) <= most
  )


def joins(xs: tuple[Array, ...], kernel: Array) -> bool:
  """Whether `convolve` takes two arrays without joining them first."""
  return (
    len(xs) == 2
    and all(supports(x, kernel) for x in xs)
    and kernel.shape[0] == 3
    and not any(c % 16 for c in (*(x.shape[-1] for x in xs), kernel.shape[-1]))
  )


def convolve(
  x: Array | tuple[Array, ...],
  kernel: Array,
  pad: int,
  bias: Array | None = None,
  relu: bool = False,
) -> Array:
  """Convolution of stride 1, as `jax.lax.conv_general_dilated` without a flip.

  Args:
    x: float32 [B, H, W, C], or two such arrays, for which `joins` is true: the
      channels of both.
    kernel: float32 [K, K, C, F].
    pad: zeros on each side of each axis.
    bias: float32 [F]; is added.
    relu: apply a ReLU to the result.

  Returns:
    float32 [B, H + 2 pad - K + 1, W + 2 pad - K + 1, F].

  Raises:
    ValueError: a pad of K or more, or an image smaller than the kernel.
  """
  x, x2 = x if isinstance(x, tuple) else (x, None)
  size = kernel.shape[0]
  if not 0 <= pad < size <= min(x.shape[1:3]) + 2 * pad:
    raise ValueError(
      f'no convolution of {x.shape} by {kernel.shape} with a pad of {pad}: it '
      'takes 0 to K - 1, and an image no smaller than the kernel'
    )
  return _convolve(x, x2, kernel, bias, _Form(pad=pad, relu=relu))


def convolve_2x(x: Array, kernel: Array, bias: Array | None) -> Array:
  """Convolution of stride 2: [B, 2H, 2W, C], [2, 2, C, F] to [B, H, W, F]."""
  return _convolve(x, None, kernel, bias, _Form(stride=2))


def convolve_transpose_2x(x: Array, kernel: Array, bias: Array | None) -> Array:
  """`jax.lax.conv_transpose`: [B, H, W, C], [2, 2, C, F] to [B, 2H, 2W, F]."""
  return _convolve(x, None, kernel, bias, _Form(stride=2, spread=True))


class _Form(NamedTuple):
  """Attributes of a call, see convolution.h.

  With `flip` the kernel is [K, K, F, C], and its taps are in reverse order:
  that makes of a convolution the gradient of its input.
  """

  stride: int = 1
  pad: int = 0
  flip: bool = False
  spread: bool = False
  relu: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _convolve(
  x: Array, x2: Array | None, kernel: Array, bias: Array | None, form: _Form
) -> Array:
  x2 = jnp.zeros((x.shape[0], 0, 0, 0), x.dtype) if x2 is None else x2
  bias = jnp.zeros((0,), x.dtype) if bias is None else bias
  return _forward(form)(x, x2, kernel, bias)


def _convolve_fwd(
  x: Array, x2: Array | None, kernel: Array, bias: Array | None, form: _Form
) -> tuple[Array, tuple[Any, ...]]:
  y = _convolve(x, x2, kernel, bias, form)
  return y, (x, x2, kernel, bias is not None, y if form.relu else None)


def _convolve_bwd(
  form: _Form, saved: tuple[Any, ...], dy: Array
) -> tuple[Array, Array | None, Array, Array | None]:
  x, x2, kernel, has_bias, y = saved
  if form.relu:
    dy = jnp.where(y > 0, dy, 0)
  size, stride, c = kernel.shape[0], form.stride, x.shape[-1]
  pad = size - 1 - form.pad if stride == 1 else 0
  turned = _Form(stride, pad, True, spread=stride > 1 and not form.spread)
  dx = _convolve(dy, None, kernel, None, turned)
  if form.spread:
    dkernel = _kernel_gradient(size, stride, 0)(dy, x)
    dkernel = dkernel[::-1, ::-1].swapaxes(2, 3)
  else:
    gradient = _kernel_gradient(size, stride, form.pad)
    parts = [gradient(part, dy) for part in (x, x2) if part is not None]
    dkernel = jnp.concatenate(parts, 2)
  dbias = jnp.sum(dy, (0, 1, 2)) if has_bias else None
  return dx[..., :c], None if x2 is None else dx[..., c:], dkernel, dbias


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


@functools.cache
def _forward(form: _Form) -> Callable[..., Array]:
  """Returns (x, x2, kernel, bias) -> y; an x2 or bias of size 0: none."""

  def call(x: Array, x2: Array, kernel: Array, bias: Array) -> Array:
    size, f = kernel.shape[0], kernel.shape[2 if form.flip else 3]
    height, width = (
      n * form.stride
      if form.spread
      else (n + 2 * form.pad - size) // form.stride + 1
      for n in x.shape[1:3]
    )
    shape = jax.ShapeDtypeStruct((x.shape[0], height, width, f), x.dtype)
    target = jax.ffi.ffi_call('UnetConvolution', shape)
    return target(x, x2, kernel, bias, **form._asdict())

  return calls.over_batch(call, 'b h w c, b m n d, k l i o, g -> b y x f')


@functools.cache
def _kernel_gradient(size: int, stride: int, pad: int) -> Callable[..., Array]:
  """Returns (x, dy) -> the gradient [size, size, C, F] of the kernel."""

  def call(x: Array, dy: Array) -> Array:
    shape = (size, size, x.shape[-1], dy.shape[-1])
    target = jax.ffi.ffi_call(
      'UnetConvolutionKernelGradient', jax.ShapeDtypeStruct(shape, x.dtype)
    )
    return target(x, dy, stride=stride, pad=pad)

  rule = 'b h w c, b y x f -> k l i o'
  return calls.over_batch(call, rule, calls.total)
