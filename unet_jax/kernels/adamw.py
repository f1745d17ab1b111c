"""AdamW on all parameters in one call of adamw.cc: XLA compiles nothing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PyTree = Any


class Moments(NamedTuple):
  """Trees of float32 arrays as the parameters; `average` may be None."""

  params: PyTree
  first: PyTree
  second: PyTree
  average: PyTree


def update(
  gradients: PyTree,
  state: Moments,
  rates: tuple[Array, ...],
  decay: PyTree,
  *,
  b1: float,
  b2: float,
  eps: float,
  max_norm: float,
) -> tuple[Moments, Array]:
  """One step (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).

  Args:
    gradients: as the parameters.
    state: what changes.
    rates: float32 scalars: of learning; what the first and the second moment
      are divided by, 1 - b**t; of the average, which moves that share of its
      way to the new parameters.
    decay: of each parameter, a float; times the rate of learning, it is what a
      step takes from it.
    b1, b2: what the moments keep of themselves.
    eps: added to the root of the second moment.
    max_norm: gradients of a larger norm are scaled to it; 0: none are.

  Returns:
    What has changed, and the norm of the gradients: float32 scalar.
  """
  groups = [tree for tree in state if tree is not None]
  leaves = [x for tree in groups for x in jax.tree.leaves(tree)]
  first = 1 + len(jax.tree.leaves(gradients))
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  norm, *changed = jax.ffi.ffi_call(
    'UnetAdamW',
    [scalar, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)],
    input_output_aliases={first + i: 1 + i for i in range(len(leaves))},
  )(
    jnp.stack([jnp.asarray(rate, jnp.float32) for rate in rates]),
    *jax.tree.leaves(gradients),
    *leaves,
    decay=np.array(jax.tree.leaves(decay), np.float32),
    b1=np.float64(b1),
    b2=np.float64(b2),
    epsilon=np.float32(eps),
    max_norm=np.float32(max_norm),
  )
  structure, count = jax.tree.structure(state.params), first - 1
  trees = [
    jax.tree.unflatten(structure, changed[i : i + count])
    for i in range(0, len(changed), count)
  ]
  return Moments(*trees, *[None] * (len(state) - len(trees))), norm
