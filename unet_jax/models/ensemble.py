"""Predictions averaged over views of an image and over several networks.

A view is the image mirrored, turned or scaled; its prediction is put back in
place. The average is one of class probabilities, in which each view of each
network counts alike. It has nothing to do with the EMA of parameters, which is
a single network (training/state.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

Array = jax.Array
PyTree = Any


class View(NamedTuple):
  """Height and width swapped first, then each reversed."""

  transpose: bool = False
  flip_rows: bool = False
  flip_columns: bool = False


_VIEWS = [View(*(i >> k & 1 == 1 for k in range(3))) for i in range(8)]


@dataclasses.dataclass(frozen=True)
class Ensemble:
  """Networks and views to average; hashable, as a static argument of a step.

  Attributes:
    members: networks; the variables of several are stacked along a first axis.
    views: of the image.
    scales: factors of its height and width.
  """

  members: int = 1
  views: tuple[View, ...] = (View(),)
  scales: tuple[float, ...] = (1.0,)

  @property
  def count(self) -> int:
    """How many predictions are averaged."""
    return self.members * len(self.views) * len(self.scales)


# One network, one view: nothing to average.
SINGLE = Ensemble()


def make_ensemble(config: ml_collections.ConfigDict, members: int) -> Ensemble:
  """Returns the ensemble of the section `inference` of a config."""
  inference = config.inference

  def is_included(view: View) -> bool:
    if inference.rotate_90:
      # Turns mirror an even number of times; with a flip, all views are made.
      return bool(inference.flips) or sum(view) % 2 == 0
    allowed = (
      False,
      'vertical' in inference.flips,
      'horizontal' in inference.flips,
    )
    return all(a <= b for a, b in zip(view, allowed))

  views = tuple(filter(is_included, _VIEWS))
  return Ensemble(members, views, tuple(map(float, inference.scales)))


def ensemble_logits(
  apply: Callable[[PyTree, Array], Array],
  variables: PyTree,
  image: Array,
  ensemble: Ensemble,
) -> Array:
  """Returns logits whose probabilities are the averages.

  The network is compiled once for each scale, however many views and members
  there are.

  Args:
    apply: takes a network's variables and float images [B, H, W, C]; returns
      float32 logits [B, H', W', K], of K = 1 for a sigmoid.
    variables: of the network, or of all, stacked.
    image: [B, H, W, C].

  Returns:
    float32 [B, H', W', K].
  """
  if ensemble == SINGLE:
    return apply(variables, image)
  if ensemble.members == 1:
    variables = jax.tree.map(lambda x: x[None], variables)
  views, size = jnp.array(ensemble.views), image.shape[1:-1]
  has_transposed = any(view.transpose for view in ensemble.views)
  total: Any = 0.0
  for scale in ensemble.scales:
    scaled = image if scale == 1 else _resize(image, scaled_size(size, scale))

    def add_view(total, view, variables, scaled=scaled, scale=scale):
      logits = apply(variables, _view(scaled, view, has_transposed))
      logits = _undo_view(logits, view, has_transposed)
      if scale != 1:
        logits = _resize(logits, size)
      return total + _probabilities(logits), None

    def add_member(total, variables, add_view=add_view):
      step = lambda total, view: add_view(total, view, variables)
      return jax.lax.scan(step, total, views)[0], None

    first = lambda tree: jax.tree.map(lambda x: x[0], tree)
    shape = jax.eval_shape(
      lambda v, add_view=add_view: add_view(0.0, views[0], first(v))[0],
      variables,
    )
    zeros = jnp.zeros(shape.shape, shape.dtype)
    total += jax.lax.scan(add_member, zeros, variables)[0]
  return _logits(total / ensemble.count)


def _view(x: Array, view: Any, has_transposed: bool = True) -> Array:
  """Returns a view of [..., H, W, C]; only of squares with `has_transposed`."""
  if has_transposed:
    x = jnp.where(view[0], x.swapaxes(-3, -2), x)
  x = jnp.where(view[1], x[..., ::-1, :, :], x)
  return jnp.where(view[2], x[..., ::-1, :], x)


def _undo_view(x: Array, view: Array, has_transposed: bool) -> Array:
  x = jnp.where(view[2], x[..., ::-1, :], x)
  x = jnp.where(view[1], x[..., ::-1, :, :], x)
  return jnp.where(view[0], x.swapaxes(-3, -2), x) if has_transposed else x


def scaled_size(size: tuple[int, ...], scale: float) -> tuple[int, ...]:
  """Returns the height and width of a scaled view."""
  return tuple(max(round(n * scale), 1) for n in size)


def _resize(x: Array, size: tuple[int, ...]) -> Array:
  shape = (x.shape[0], *size, x.shape[-1])
  return jax.image.resize(x, shape, 'linear')


def _probabilities(logits: Array) -> Array:
  if logits.shape[-1] == 1:
    return jax.nn.sigmoid(logits)
  return jax.nn.softmax(logits)


def _logits(probabilities: Array) -> Array:
  """The inverse of `_probabilities`, finite for 0 and 1 too."""
  tiny = jnp.finfo(jnp.float32).tiny
  log = lambda p: jnp.log(jnp.maximum(p, tiny))
  if probabilities.shape[-1] == 1:
    return log(probabilities) - log(1 - probabilities)
  return log(probabilities)
