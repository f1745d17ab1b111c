"""A max pool whose input is a skip too: one gradient, by max_pool.cc."""

import jax
import jax.numpy as jnp

from unet_jax.kernels import calls

Array = jax.Array


def supports(x: Array) -> bool:
  """Whether `gradient` takes it: float32 images whose channels fill vectors."""
  return x.ndim == 4 and x.dtype == jnp.float32 and x.shape[-1] % 16 == 0


def _gradient(x: Array, dskip: Array, dy: Array) -> Array:
  return jax.ffi.ffi_call(
    'UnetMaxPoolGradient',
    jax.ShapeDtypeStruct(x.shape, x.dtype),
    input_output_aliases={1: 0},
  )(x, dskip, dy)


# (x, dskip [B, H, W, C], dy [B, H // 2, W // 2, C]) -> dx, see max_pool.h.
gradient = calls.over_batch(_gradient, 'b h w c, b h w c, b y x c -> b h w c')
