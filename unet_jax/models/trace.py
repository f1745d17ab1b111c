"""A network's calls and its program, traced without a computation.

The calls of its layers give paths and shapes. The program (a jaxpr), in which
each operation is labelled with its layer, gives the products and the wiring.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Shape = tuple[int, ...]
Path = tuple[str, ...]


class Call(NamedTuple):
  """A layer that was called; `output` is without the batch axis."""

  module: nn.Module
  output: jax.ShapeDtypeStruct


class Edge(NamedTuple):
  """A connection from a layer (`''`: from outside) to its consumer.

  `operations` are those on the way, which belong to no layer.
  """

  source: str
  operations: frozenset[str]


class Trace:
  """The calls and the program of a network in training.

  Args:
    model: called as `model(x, train=True)`.
    image: shape of one image, (H, W, C).

  Attributes:
    calls: of layers, by path, in order.
    parameters: of layers, by path and name.
    outputs: variables of the program.
  """

  def __init__(self, model: nn.Module, image: Shape):
    self.calls: dict[Path, Call] = {}
    self.parameters: dict[Path, dict[str, jax.ShapeDtypeStruct]] = {}
    key, x = jax.random.key(0), jax.ShapeDtypeStruct((1, *image), jnp.float32)
    rngs = {'params': key, 'dropout': key}
    variables = jax.eval_shape(lambda x: model.init(rngs, x, train=False), x)

    def apply(x, variables):
      with nn.intercept_methods(self._record):
        return model.apply(
          variables, x, train=True, rngs=rngs, mutable=['batch_stats']
        )[0]

    jaxpr = jax.make_jaxpr(apply)(x, variables).jaxpr
    for path, leaf in jax.tree.leaves_with_path(variables['params']):
      *layer, name = (k.key for k in path)
      self.parameters.setdefault(tuple(layer), {})[name] = leaf
    self.outputs, self._eqns = jaxpr.outvars, jaxpr.eqns
    self._layers = [_layer(eqn) for eqn in jaxpr.eqns]
    # Variables that depend on the image: index of the operation that made each.
    self._made: dict[Any, int | None] = {jaxpr.invars[0]: None}
    for i, eqn in enumerate(jaxpr.eqns):
      if any(v in self._made for v in _variables(eqn)):
        self._made.update(dict.fromkeys(eqn.outvars, i))

  def _record(self, function, args, kwargs, context):
    output = function(*args, **kwargs)
    if context.method_name == '__call__' and context.module.path:
      self.calls[context.module.path] = Call(
        context.module, jax.ShapeDtypeStruct(output.shape[1:], output.dtype)
      )
    return output

  def inputs(self, layer: Path) -> list[Any]:
    """Variables that a layer takes from outside."""
    return self._crossing(layer, inward=True)

  def results(self, layer: Path) -> list[Any]:
    """Variables of a layer that are used outside."""
    return self._crossing(layer, inward=False)

  def _crossing(self, layer: Path, inward: bool) -> list[Any]:
    found: dict[Any, None] = {}
    for eqn, consumer in zip(self._eqns, self._layers):
      if _is_inside(consumer, layer) == inward:
        for v in _variables(eqn):
          if v in self._made:
            i = self._made[v]
            is_own = i is not None and _is_inside(self._layers[i], layer)
            if is_own != inward:
              found[v] = None
    return list(found)

  def edges(self, sinks: list[Any], scope: Path = ()) -> list[Edge]:
    """Where variables come from, in the order of the operands.

    Args:
      sinks: variables.
      scope: edges are between the layers of this one; (): of the network.
    """
    edges: dict[str, set[str]] = {}

    def follow(variable, operations):
      if variable not in self._made:
        return
      i = self._made[variable]
      layer = () if i is None else self._layers[i]
      if i is None or not _is_inside(layer, scope):
        edges.setdefault('', set()).update(operations)
      elif len(layer) > len(scope):
        edges.setdefault(layer[len(scope)], set()).update(operations)
      else:
        operations = operations | _operations(self._eqns[i])
        for operand in _variables(self._eqns[i]):
          follow(operand, operations)

    for sink in sinks:
      follow(sink, frozenset())
    return [Edge(k, frozenset(v)) for k, v in edges.items()]

  def flops(self) -> dict[Path, int]:
    """Of the convolutions and products of each layer that has any."""
    flops: dict[Path, int] = {}
    for eqn, layer in zip(self._eqns, self._layers):
      if n := _flops(eqn):
        flops[layer] = flops.get(layer, 0) + n
    return flops


def _is_inside(path: Path, layer: Path) -> bool:
  return path[: len(layer)] == layer


def _variables(eqn) -> list[Any]:
  """The operands that are no literals."""
  return [v for v in eqn.invars if not hasattr(v, 'val')]


def _layer(eqn) -> Path:
  """The layer that an operation belongs to."""
  _, *names = str(eqn.source_info.name_stack).split('/')
  # `UNet._join` is a method, not a layer.
  return tuple(name for name in names if '.' not in name)


def _inner(eqn) -> Iterator[Any]:
  """The operations within an operation."""
  for value in eqn.params.values():
    # Of a choice by platform, the branches compute the same.
    value = value[0] if isinstance(value, tuple) and value else value
    if hasattr(value, 'jaxpr'):
      value = value.jaxpr
    yield from getattr(value, 'eqns', ())


def _operations(eqn) -> set[str]:
  """Names of an operation and of those within it."""
  return {eqn.primitive.name}.union(*map(_operations, _inner(eqn)))


def _flops(eqn) -> int:
  """Of the convolutions and products in an operation."""
  if eqn.primitive.name == 'dot_general':
    (contracted, _), _ = eqn.params['dimension_numbers']
    left = eqn.invars[0].aval.shape
    each = math.prod(left[axis] for axis in contracted)
  elif eqn.primitive.name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval.shape
    axis = eqn.params['dimension_numbers'].rhs_spec[0]
    each = math.prod(kernel) // kernel[axis]
  else:
    return sum(map(_flops, _inner(eqn)))
  return 2 * each * math.prod(eqn.outvars[0].aval.shape)
