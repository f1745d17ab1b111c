"""Averages of predictions: of views of an image, and of several networks.

A view is the image mirrored, turned or scaled; its prediction is put back in
place. What is averaged are the probabilities of the classes, each view of each
network counting alike.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PyTree = Any


class View(NamedTuple):
  """Height and width swapped first, then each turned round."""

  transpose: bool = False
  flip_rows: bool = False
  flip_columns: bool = False

  def apply(self, image):
    """Returns the view of [..., H, W, C]."""
    if self.transpose:
      image = image.swapaxes(-3, -2)
    if self.flip_rows:
      image = image[..., ::-1, :, :]
    return image[..., ::-1, :] if self.flip_columns else image


_VIEWS = [View(*(i >> k & 1 == 1 for k in range(3))) for i in range(8)]


@dataclasses.dataclass(frozen=True)
class Averaging:
  """What is averaged; hashable, so that a step can be compiled for it.

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


NONE = Averaging()


def make_averaging(config, members: int) -> Averaging:
  """Returns what the section `inference` of a config asks for.

  Args:
    config: of the run.
    members: how many networks there are.
  """
  inference = config.inference
  square = np.arange(4).reshape(1, 2, 2, 1)
  turned = [square]
  if inference.rotate_90:
    turned = [np.rot90(square, k, (1, 2)) for k in range(4)]
  if 'horizontal' in inference.flips:
    turned += [image[:, :, ::-1] for image in turned]
  if 'vertical' in inference.flips:
    turned += [image[:, ::-1] for image in turned]
  # A half turn is both flips, and so on: each view once.
  views = tuple(
    view
    for view in _VIEWS
    if any(np.array_equal(view.apply(square), image) for image in turned)
  )
  return Averaging(members, views, tuple(map(float, inference.scales)))


def averaged_logits(
  apply: Callable[[PyTree, Array], Array],
  variables: PyTree,
  image: Array,
  averaging: Averaging,
) -> Array:
  """Returns logits whose probabilities are the averages.

  The network is compiled once for each scale, however many views and members
  there are.

  Args:
    apply: takes a network's variables and float images [B, H, W, C]; returns
      float32 logits [B, H', W', K], of K = 1 for a sigmoid.
    variables: of the network, or of all, stacked.
    image: [B, H, W, C].
    averaging: what is averaged.

  Returns:
    float32 [B, H', W', K].
  """
  if averaging == NONE:
    return apply(variables, image)
  if averaging.members == 1:
    variables = jax.tree.map(lambda x: x[None], variables)
  flags = jnp.array(averaging.views)
  has_transposed = any(view.transpose for view in averaging.views)
  size = image.shape[1:-1]

  def view_of(x, flag):
    if has_transposed:
      x = jnp.where(flag[0], x.swapaxes(-3, -2), x)
    x = jnp.where(flag[1], x[..., ::-1, :, :], x)
    return jnp.where(flag[2], x[..., ::-1, :], x)

  def undone(x, flag):
    x = jnp.where(flag[2], x[..., ::-1, :], x)
    x = jnp.where(flag[1], x[..., ::-1, :, :], x)
    return jnp.where(flag[0], x.swapaxes(-3, -2), x) if has_transposed else x

  total = 0.0
  for scale in averaging.scales:
    scaled = image if scale == 1 else _resize(image, scaled_size(size, scale))

    def of_view(total, flag, variables, scaled=scaled, scale=scale):
      logits = undone(apply(variables, view_of(scaled, flag)), flag)
      if scale != 1:
        logits = _resize(logits, size)
      return total + _probabilities(logits), None

    def of_member(total, variables, of_view=of_view):
      step = lambda total, flag: of_view(total, flag, variables)
      return jax.lax.scan(step, total, flags)[0], None

    shape = jax.eval_shape(
      lambda v, x: of_view(0.0, flags[0], jax.tree.map(lambda a: a[0], v))[0],
      variables,
      image,
    )
    zeros = jnp.zeros(shape.shape, shape.dtype)
    total += jax.lax.scan(of_member, zeros, variables)[0]
  return _logits(total / averaging.count)


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
