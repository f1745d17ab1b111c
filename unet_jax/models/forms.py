"""The form of each operation that halves or doubles, by platform.

`FORMS` is the table: one row an operation, one column a kind of chip. The forms
of a row compute the same function and gradient of images [B, H, W, C] and of
volumes [B, D, H, W, C]; they differ in what a compiler makes of them. Shapes in
docstrings are those of images.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from unet_jax.models import products, rows

Array = jax.Array


@jax.custom_jvp
def _first_max(a: Array, b: Array) -> Array:
  """The maximum; where both are equal, the first gets all of the gradient."""
  return jnp.maximum(a, b)


@_first_max.defjvp
def _first_max_jvp(
  primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
  a, b = primals
  return _first_max(a, b), jnp.where(a >= b, *tangents)


def _max_by_pairs(x: Array) -> Array:
  return _pool_by_pairs(_first_max, x)


def _mean_by_pairs(x: Array) -> Array:
  return _pool_by_pairs(jnp.add, x) * 0.5 ** (x.ndim - 2)


def _pool_by_pairs(combine: Callable[..., Array], x: Array) -> Array:
  """Combines the values of 2x2 windows two at a time, in row-major order."""
  *outer, last = (n // 2 for n in x.shape[1:-1])
  b, c = x.shape[0], x.shape[-1]
  pairs = [n for size in outer for n in (size, 2)]
  x = even(x).reshape(b, *pairs, last, 2 * c)
  x = combine(x[..., :c], x[..., c:])
  for axis in range(2 * len(outer), 0, -2):
    before = (slice(None),) * axis
    x = combine(x[*before, 0], x[*before, 1])
  return x


def even(x: Array) -> Array:
  """Drops the last row, column or plane of each axis of odd size."""
  return x[(slice(None), *(slice(n // 2 * 2) for n in x.shape[1:-1]))]


def _max_by_windows(x: Array) -> Array:
  two = (2,) * (x.ndim - 2)
  return nn.max_pool(x, two, two)


def _mean_by_windows(x: Array) -> Array:
  two = (2,) * (x.ndim - 2)
  return nn.avg_pool(x, two, two)


def space_to_depth(x: Array) -> Array:
  """[B, 2H, 2W, C] to [B, H, W, 4C]; the inverse of `_shuffle`."""
  b, *size, c = x.shape
  n = len(size)
  size = [s // 2 for s in size]
  x = even(x).reshape(b, *(m for s in size for m in (s, 2)), c)
  axes = [*range(1, 1 + 2 * n, 2), *range(2, 2 + 2 * n, 2)]
  return x.transpose(0, *axes, 1 + 2 * n).reshape(b, *size, 2**n * c)


def _shuffle(x: Array) -> Array:
  """[B, H, W, 4C] to [B, 2H, 2W, C], by a transposition."""
  b, *size, channels = x.shape
  n = len(size)
  c = channels // 2**n
  x = x.reshape(b, *size, *(2,) * n, c)
  axes = [axis for i in range(n) for axis in (1 + i, 1 + n + i)]
  return x.transpose(0, *axes, 1 + 2 * n).reshape(b, *(2 * s for s in size), c)


def _shuffle_by_convolution(x: Array) -> Array:
  """The same as a transposed convolution of ones and zeros."""
  n, channels = x.ndim - 2, x.shape[-1]
  kernel = jnp.eye(channels, dtype=x.dtype).reshape(
    channels, *(2,) * n, channels // 2**n
  )
  kernel = jnp.flip(jnp.moveaxis(kernel, 0, n), range(n))
  # Products with ones are to be exact.
  with jax.default_matmul_precision('highest'):
    return products.convolve_transpose_2x(x, kernel)


def _strided_product(x: Array, kernel: Array) -> Array:
  """Windows do not overlap: space to depth, and one product."""
  kernel = kernel.reshape(-1, kernel.shape[-1])
  return products.matmul(space_to_depth(x), kernel)


def _strided(x: Array, kernel: Array) -> Array:
  return products.convolve(x, kernel, 2, ((0, 0),) * (x.ndim - 2))


def _transposed_product(x: Array, kernel: Array) -> Array:
  """Windows do not overlap: one product to 4 F channels, depth to space."""
  n = x.ndim - 2
  # [2, 2, C, F] to [C, 2, 2, F]; lax's kernel runs against the output's axes.
  kernel = kernel[(slice(None, None, -1),) * n]
  kernel = kernel.transpose(n, *range(n), n + 1)
  return _shuffle(products.matmul(x, kernel.reshape(x.shape[-1], -1)))


def _bilinear_along(axis: int, x: Array, align_corners: bool) -> Array:
  """Doubles an axis by two shifted sums, `resample.bilinear_2x`."""
  n = x.shape[axis]
  before_weight: Any = 0.25
  after_weight: Any = 0.25
  if align_corners:
    along = [n if i == axis else 1 for i in range(x.ndim)]
    ramp = jnp.arange(n).reshape(along) / (2 * n - 1)
    before_weight = ramp.astype(x.dtype)
    after_weight = jnp.flip(before_weight, axis)
  part = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
  first, last = part(0, 1), part(n - 1, n)
  before = jnp.concatenate([first, part(0, n - 1)], axis)
  after = jnp.concatenate([part(1, n), last], axis)
  if axis == 1 and rows.parts() > 1:
    shift = lambda x: (x[:, :-2], x[:, 2:])
    before, after = rows.apply(shift, x, halo=(1, 1), border='edge')
  pair = [
    (1 - before_weight) * x + before_weight * before,
    (1 - after_weight) * x + after_weight * after,
  ]
  shape = x.shape[:axis] + (2 * n,) + x.shape[axis + 1 :]
  return jnp.stack(pair, axis + 1).reshape(shape)


def _bilinear_by_sums(x: Array, align_corners: bool = False) -> Array:
  for axis in range(1, x.ndim - 1):
    x = _bilinear_along(axis, x, align_corners)
  return x


def _bilinear_by_products(x: Array, align_corners: bool = False) -> Array:
  if rows.parts() > 1:
    return _bilinear_by_sums(x, align_corners)
  along = functools.partial(_bilinear_along, 0, align_corners=align_corners)
  return _by_products(along, x)


def _nearest_by_broadcast(x: Array) -> Array:
  b, *size, c = x.shape
  pairs = [n for s in size for n in (s, 2)]
  after_each = [slice(None), *(slice(None), None) * len(size)]
  x = jnp.broadcast_to(x[*after_each], (b, *pairs, c))
  return x.reshape(b, *(2 * s for s in size), c)


def _nearest_by_products(x: Array) -> Array:
  return _by_products(lambda x: jnp.repeat(x, 2, axis=0), x)


def _by_products(along: Callable[[Array], Array], x: Array) -> Array:
  """Multiplies each axis by the matrix that a doubling of the first one is."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  matrices = [
    along(jnp.eye(n, dtype=dtype)).astype(x.dtype) for n in x.shape[1:-1]
  ]
  axes = 'dhw'[-len(matrices) :]
  terms = ','.join(['b' + axes + 'c', *(a.upper() + a for a in axes)])
  # A TPU's default precision would round float32 values to bfloat16.
  return jnp.einsum(
    f'{terms}->b{axes.upper()}c', x, *matrices, precision='highest'
  )


class _Row(NamedTuple):
  cpu: Callable[..., Array]
  gpu: Callable[..., Array]
  tpu: Callable[..., Array]


# Each line ends with what put its entries there, of value and gradient on 8
# images, 64 channels, 128 px on the larger side (`experiments/speed/forms.py`;
# jax 0.10.2, 2026-11-30). cpu: processor ms, float32, two busy cores of a
# shared server. tpu: millions of cycles that libtpu 0.0.42.1 estimates for a
# v5e, bfloat16. No GPU has been at hand: the stock layer, which XLA and cuDNN
# know, where nothing speaks against it, else the form that is limited by memory
# alone.
FORMS = {
  # cpu: 62, windows 211. tpu: 1.07, windows 0.20 and, by counting the
  # instructions of what has no estimate, 0.35.
  'max_pool': _Row(_max_by_pairs, _max_by_windows, _max_by_windows),
  # cpu: 51, windows 53. tpu: 0.88, windows 0.35 and what has no estimate.
  'average_pool': _Row(_mean_by_pairs, _mean_by_windows, _mean_by_windows),
  # cpu: 112, stock 213. tpu: 2.35, stock 0.55.
  'strided_conv': _Row(_strided_product, _strided, _strided),
  # cpu: the stock weight gradient is many times slower, and, in jax issue
  # 31662, 25 times that of PyTorch on a GPU (RTX 5060 Ti, 3-D). tpu: 2.36,
  # stock 0.43.
  'transposed_conv': _Row(
    _transposed_product,
    _transposed_product,
    products.convolve_transpose_2x,
  ),
  # gpu: the products cost as many multiplications a pixel as the image is wide.
  # tpu: 2.55, products 0.50.
  'bilinear': _Row(_bilinear_by_sums, _bilinear_by_sums, _bilinear_by_products),
  # tpu: 1.09, products 0.50.
  'nearest': _Row(
    _nearest_by_broadcast, _nearest_by_broadcast, _nearest_by_products
  ),
  # tpu: 2.10, convolution 0.64.
  'depth_to_space': _Row(_shuffle, _shuffle, _shuffle_by_convolution),
}

_HALVING = ('max_pool', 'average_pool', 'strided_conv')


def apply(operation: str, *args: Array, **settings: Any) -> Array:
  """Returns the operation of `args`, in the form of the platform.

  A program is lowered for one platform and has that form alone; one that is
  exported for several has them all.
  """
  row = FORMS[operation]
  cpu, gpu, tpu = (functools.partial(form, **settings) for form in row)
  choose = functools.partial(
    jax.lax.platform_dependent, cpu=cpu, tpu=tpu, default=gpu
  )
  if rows.parts() == 1 or operation == 'bilinear':
    return choose(*args)
  return rows.apply(choose, *args, multiple=2 if operation in _HALVING else 1)
