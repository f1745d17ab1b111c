"""Convolutions of convolution.cc as functions of JAX, with their gradients."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unet_jax.kernels import calls

Array = jax.Array

# Beyond this many channels the matrix products of XLA are the faster ones.
_MAX_CHANNELS = 512


def supports(x: Array, kernel: Array) -> bool:
  """Whether the kernels are to be used: float32, small, few enough channels."""
  return (
    x.ndim == 4
    and kernel.shape[0] == kernel.shape[1] <= 3
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

  Raises:
    ValueError: a pad of K or more, or an image smaller than the kernel.
  """
  size = kernel.shape[0]
  if not 0 <= pad < size <= min(x.shape[1:3]) + 2 * pad:
    raise ValueError(
      f'no convolution of {x.shape} by {kernel.shape} with a pad of {pad}: it '
      'takes 0 to K - 1, and an image no smaller than the kernel'
    )
  return _convolve(x, kernel, bias, _Form(pad=pad, relu=relu))


def convolve_2x(x: Array, kernel: Array, bias: Array | None) -> Array:
  """Convolution of stride 2: [B, 2H, 2W, C], [2, 2, C, F] to [B, H, W, F]."""
  return _convolve(x, kernel, bias, _Form(stride=2))


def convolve_transpose_2x(x: Array, kernel: Array, bias: Array | None) -> Array:
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
  bias = jnp.zeros((0,), x.dtype) if bias is None else bias
  return _forward(form)(x, kernel, bias)


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
  size, stride, no_bias = kernel.shape[0], form.stride, jnp.zeros((0,), x.dtype)
  pad = size - 1 - form.pad if stride == 1 else 0
  turned = _Form(stride, pad, True, spread=stride > 1 and not form.spread)
  dx = _forward(turned)(dy, kernel, no_bias)
  if form.spread:
    dkernel = _kernel_gradient(size, stride, 0)(dy, x)
    dkernel = dkernel[::-1, ::-1].swapaxes(2, 3)
  else:
    dkernel = _kernel_gradient(size, stride, form.pad)(x, dy)
  return dx, dkernel, jnp.sum(dy, (0, 1, 2)) if has_bias else None


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


@functools.cache
def _forward(form: _Form) -> Callable[..., Array]:
  """Returns (x, kernel, bias) -> y; a bias of no numbers: none."""

  def call(x: Array, kernel: Array, bias: Array) -> Array:
    size, f = kernel.shape[0], kernel.shape[2 if form.flip else 3]
    height, width = (
      n * form.stride
      if form.spread
      else (n + 2 * form.pad - size) // form.stride + 1
      for n in x.shape[1:3]
    )
    shape = jax.ShapeDtypeStruct((x.shape[0], height, width, f), x.dtype)
    target = jax.ffi.ffi_call('UnetConvolution', shape)
    return target(x, kernel, bias, **form._asdict(), winograd=True)

  return calls.over_batch(call, 'b h w c, k l i o, g -> b y x f')


@functools.cache
def _kernel_gradient(size: int, stride: int, pad: int) -> Callable[..., Array]:
  """Returns (x, dy) -> the gradient [size, size, C, F] of the kernel."""

  def call(x: Array, dy: Array) -> Array:
    shape = (size, size, x.shape[-1], dy.shape[-1])
    target = jax.ffi.ffi_call(
      'UnetConvolutionKernelGradient', jax.ShapeDtypeStruct(shape, x.dtype)
    )
    return target(x, dy, stride=stride, pad=pad, winograd=True)

  rule = 'b h w c, b y x f -> k l i o'
  return calls.over_batch(call, rule, calls.total)
