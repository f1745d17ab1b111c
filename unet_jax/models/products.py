"""Products with a kernel whose gradient is float32, whatever the values are.

JAX's gradient of a bfloat16 kernel is bfloat16: each device rounds its sum, and
what devices add up and send is rounded too. Here the kernel comes in float32,
as it is kept, and takes the values' type; its gradient is the sum that chips
form in float32 anyway, before any rounding.

Shapes in docstrings are those of images; volumes [B, D, H, W, C] have an axis
more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Pads = Sequence[tuple[int, int]]


def matmul(x: Array, kernel: Array) -> Array:
  """[..., C] times [C, F], in the type of x."""

  def gradient(x: Array, dy: Array) -> Array:
    places = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(
      x, dy, ((places, places), ((), ())), preferred_element_type=kernel.dtype
    )

  return _product(jnp.matmul, gradient, x, kernel)


def convolve(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
  """[B, H, W, C] and [K, K, C, F] to [B, H', W', F], in the type of x.

  Args:
    pads: zeros before and after each axis.
  """

  def forward(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
      x, kernel, (stride,) * len(pads), pads, dimension_numbers=_axes(x)
    )

  def gradient(x: Array, dy: Array) -> Array:
    return _kernel_gradient(x, dy, stride, kernel.shape[0], pads, kernel.dtype)

  return _product(forward, gradient, x, kernel)


def convolve_transpose_2x(x: Array, kernel: Array) -> Array:
  """[B, H, W, C] and [2, 2, C, F] to [B, 2H, 2W, F], in the type of x."""
  n = x.ndim - 2

  def forward(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_transpose(
      x, kernel, (2,) * n, 'SAME', dimension_numbers=_axes(x)
    )

  def gradient(x: Array, dy: Array) -> Array:
    # `forward` is what a convolution of stride 2, from the large image to the
    # small one, does to gradients, but with the kernel reversed. So dy is that
    # convolution's input, x its output's gradient.
    found = _kernel_gradient(dy, x, 2, 2, ((0, 0),) * n, kernel.dtype)
    return jnp.flip(found, range(n)).swapaxes(-1, -2)

  return _product(forward, gradient, x, kernel)


def _product(
  forward: Callable[[Array, Array], Array],
  gradient: Callable[[Array, Array], Array],
  x: Array,
  kernel: Array,
) -> Array:
  """Returns `forward` of x and the kernel in the type of x.

  Args:
    forward: linear in both.
    gradient: called with x and the result's gradient; returns the kernel's.
  """
  if x.dtype == kernel.dtype:
    return forward(x, kernel)

  @jax.custom_vjp
  def product(x: Array, kernel: Array) -> Array:
    return forward(x, kernel.astype(x.dtype))

  def keep(x: Array, kernel: Array) -> tuple[Array, Any]:
    return product(x, kernel), (x, kernel)

  def gradients(kept: Any, dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    rounded = kernel.astype(x.dtype)
    transposed = jax.linear_transpose(lambda x: forward(x, rounded), x)
    return *transposed(dy), gradient(x, dy)

  product.defvjp(keep, gradients)
  return product(x, kernel)


def _kernel_gradient(
  x: Array, dy: Array, stride: int, taps: int, pads: Pads, dtype: Any
) -> Array:
  """The gradient [K, K, C, F] of a convolution's kernel."""
  axes = 'DHW'[-len(pads) :]
  sizes = zip(pads, x.shape[1:-1], dy.shape[1:-1])
  # Rows that no window reaches are cut off.
  pads = [
    (before, taps + (m - 1) * stride - n - before)
    for (before, _), n, m in sizes
  ]
  return jax.lax.conv_general_dilated(
    x,
    dy,
    (1,) * len(pads),
    pads,
    rhs_dilation=(stride,) * len(pads),
    # Pixels are summed over the batch and the places of windows.
    dimension_numbers=(f'C{axes}N', f'I{axes}O', f'{axes}NC'),
    preferred_element_type=dtype,
  )


def _axes(x: Array) -> tuple[str, str, str]:
  axes = 'DHW'[-(x.ndim - 2) :]
  return f'N{axes}C', f'{axes}IO', f'N{axes}C'
