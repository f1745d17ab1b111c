"""Calls of the FFI's targets on batches that are split over devices."""

import re
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

Array = jax.Array


def over_batch(
  call: Callable[..., Array],
  rule: str,
  combine: Callable[[Array, Any], Array] | None = None,
) -> Callable[..., Array]:
  """Makes each device call for its own part of the batch.

  All axes but that of the batch are gathered. `vmap` loops over the calls.

  Args:
    call: of arrays, to one array.
    rule: of custom_partitioning, the axes of operands and result; those of
      operands that have a batch begin with `b`, the first of all does.
    combine: makes the result of a device's own and of the mesh's axes; None:
      the result is split along its batch.

  Returns:
    A function as `call`; it has no derivative.
  """
  split = custom_partitioning(call)
  has_batch = [
    s.strip().startswith('b') for s in rule.split('->')[0].split(',')
  ]

  def partition(mesh, operands, result):
    spec = operands[0].sharding.spec
    axes = spec[0] if spec else None
    batch, whole = NamedSharding(mesh, P(axes)), NamedSharding(mesh, P())

    def lower(*arrays):
      y = call(*arrays)
      return y if combine is None or axes is None else combine(y, axes)

    shardings = tuple(batch if b else whole for b in has_batch)
    return mesh, lower, whole if combine else batch, shardings

  # In the order of their appearance, as custom_partitioning wants them.
  others = [
    name for name in dict.fromkeys(re.findall(r'\w', rule)) if name != 'b'
  ]
  split.def_partition(
    partition,
    sharding_rule=rule,
    reduction_factors=('b',) if combine else (),
    need_replication_factors=tuple(others),
  )

  def refuse(primals, tangents):
    raise NotImplementedError(
      'native kernels have no second derivatives; take those of XLA '
      '(--config.cpu.kernels=xla)'
    )

  opaque = jax.custom_jvp(jax.custom_batching.sequential_vmap(split))
  opaque.defjvp(refuse)

  def of_device(*arrays: Array) -> Array:
    y = opaque(*arrays)
    # Within `shard_map` a result differs between devices where an operand does.
    types = (jax.typeof(x).manual_axis_type for x in arrays)
    axes = set().union(*(x.varying for x in types))
    return jax.lax.pcast(y, tuple(axes), to='varying') if axes else y

  return of_device


def total(part: Array, axes: Any) -> Array:
  """Sums the results of all devices; for `combine`."""
  return jax.lax.psum(part, axes)
