"""Operations on images whose batch and rows are split over devices.

XLA's partitioner gives wrong gradients of convolutions whose rows it splits
(jax 0.8 to 0.12). So each operation that joins rows runs by `apply`, on each
device's own rows and those that it needs of its neighbours, and the sums of
batch norm by `reduce`. The partitioner is left with what is done pixel by
pixel, and with the sums of losses and metrics.

The rows of volumes are their planes. Shapes in docstrings are those of images.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

Array = jax.Array
_BATCH, _AXIS = ('data', 'fsdp'), 'spatial'


def split(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function, for `jax.jit`, in which batch and rows are split."""
  if mesh.size == 1:
    return function

  @functools.wraps(function)
  def with_mesh(*args: Any, **kwargs: Any) -> Any:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args, **kwargs)

  return with_mesh


def parts() -> int:
  """Returns over how many devices rows are split, where it is called."""
  return dict(jax.sharding.get_abstract_mesh().shape).get(_AXIS, 1)


def apply(
  function: Callable[..., Any],
  x: Array,
  *weights: Array | None,
  multiple: int = 1,
  halo: tuple[int, int] = (0, 0),
  border: str = 'constant',
) -> Any:
  """Returns `function(x with halo, *weights)`, of each device's rows.

  Where rows do not split evenly, or a device has less than the halo, each
  computes them all.

  Args:
    function: row i of its result depends on rows i to i + sum(halo) of the
      array that it gets, or it halves or doubles the rows.
    x: [B, H, W, C].
    multiple: rows that belong together.
    halo: how many rows to add before and after.
    border: what they are at the image's borders: `constant`, zeros, or `edge`,
      the last row again.
  """
  count, height = parts(), x.shape[1]
  is_whole = height % (count * multiple) or height // count < max(halo)
  axes = _BATCH if is_whole else (*_BATCH, _AXIS)
  spec = P(_BATCH, *axes[2:])

  def of_device(x: Array, *weights: Array | None) -> Any:
    if is_whole:
      x = jnp.pad(x, ((0, 0), halo, *[(0, 0)] * (x.ndim - 2)), mode=border)
    else:
      x = _exchange(x, halo, border == 'edge', count)
    # Each device has a gradient of its own; their sum is that of the weights.
    own = functools.partial(jax.lax.pcast, axis_name=axes, to='varying')
    return function(x, *jax.tree.map(own, weights))

  specs = (spec, *[P()] * len(weights))
  return jax.shard_map(of_device, in_specs=specs, out_specs=spec)(x, *weights)


def reduce(
  function: Callable[..., Array],
  combine: Callable[[Array, Any], Array],
  images: tuple[Array, ...],
  others: tuple[Array, ...] = (),
) -> Array:
  """Returns what all devices' `function(*images, *others)` come to.

  It has no gradient.

  Args:
    function: of equal parts of the images.
    combine: makes the whole's result of a part's and the axes of the mesh.
    images: [B, H, W, C], of one size.
    others: the same for all parts.
  """
  if not jax.sharding.get_abstract_mesh().shape:
    return function(*images, *others)
  is_whole = images[0].shape[1] % parts()
  axes = _BATCH if is_whole else (*_BATCH, _AXIS)

  def of_device(*arrays: Array) -> Array:
    return combine(function(*arrays), axes)

  specs = (P(_BATCH, *axes[2:]),) * len(images) + (P(),) * len(others)
  of_all = jax.shard_map(
    of_device, in_specs=specs, out_specs=P(), check_vma=False
  )
  return of_all(*images, *others)


def _exchange(
  x: Array, halo: tuple[int, int], repeats: bool, count: int
) -> Array:
  """Adds the neighbours' rows to those of this device."""
  before, after = halo
  place, joined = jax.lax.axis_index(_AXIS), [x]
  if before:
    # Who gets nothing has zeros.
    down = [(i, i + 1) for i in range(count - 1)]
    rows = jax.lax.ppermute(x[:, -before:], _AXIS, down)
    joined.insert(0, jnp.where(place == 0, x[:, :1], rows) if repeats else rows)
  if after:
    up = [(i + 1, i) for i in range(count - 1)]
    rows = jax.lax.ppermute(x[:, :after], _AXIS, up)
    last = place == count - 1
    joined.append(jnp.where(last, x[:, -1:], rows) if repeats else rows)
  return jnp.concatenate(joined, 1)
