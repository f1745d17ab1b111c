"""What losses share: their settings, weights and probabilities."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from unet_jax.config import fields

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Loss:
  """`total(logits, mask, spec, weight_map)`, `count(mask, spec, weight_map)`.

  Both are scalars. `weight_map` is floats [B, H, W], at least 0, or None where
  all pixels count alike; only losses of single pixels use it. Shapes are those
  of images; masks of volumes are [B, D, H, W].
  """

  total: Callable[..., Array]
  count: Callable[..., Array]


class LossSpec(NamedTuple):
  """Settings of all losses, see unet_jax/config/default.py, section loss.

  Attributes:
    weights: ((name in LOSSES, weight), ...).
    class_weights: a factor per class; () for equal ones.
    label_smoothing: 0 to below 1.
    focal_gamma: at least 0.
    hard_fraction: above 0, to 1.
    tversky: weights of pixels that are wrongly in a class, and not in it.
    skeleton_steps: at least 0.
  """

  weights: tuple[tuple[str, float], ...] = (('cross_entropy', 1.0),)
  class_weights: tuple[float, ...] = ()
  label_smoothing: float = 0.0
  focal_gamma: float = 2.0
  hard_fraction: float = 0.25
  tversky: tuple[float, float] = (0.3, 0.7)
  skeleton_steps: int = 5


def is_valid(mask: Array) -> Array:
  """Whether each pixel counts."""
  return mask != fields.IGNORE_LABEL


def pixel_weights(
  mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """Each pixel's weight times its class's, 0 where the mask is ignored."""
  valid = is_valid(mask).astype(jnp.float32)
  if weight_map is not None:
    valid = valid * weight_map.astype(jnp.float32)
  if not spec.class_weights:
    return valid
  table = jnp.asarray(spec.class_weights, jnp.float32)
  return valid * table[jnp.where(is_valid(mask), mask, 0)]


def pixel_axes(mask: Array) -> tuple[int, ...]:
  """All axes of [B, H, W] but the first."""
  return tuple(range(1, mask.ndim))


def has_valid(mask: Array) -> Array:
  """1.0 for each image with a pixel that is not ignored: [B]."""
  return jnp.any(is_valid(mask), axis=pixel_axes(mask)).astype(jnp.float32)


class Classes(NamedTuple):
  """Probabilities and masks of the classes that a loss of regions compares.

  Attributes:
    probability: float32 [B, H, W, K], 0 where the mask is ignored.
    hot: bool [B, H, W, K], False where the mask is ignored.
    weights: float32 [K].
  """

  probability: Array
  hot: Array
  weights: Array


def classes(logits: Array, mask: Array, spec: LossSpec) -> Classes:
  """Of logits [B, H, W, C]; C = 1 is one sigmoid channel, the foreground's."""
  if logits.shape[-1] == 1:
    probability, hot = jax.nn.sigmoid(logits), mask[..., None] == 1
    weights = jnp.ones(1)
  else:
    probability = jax.nn.softmax(logits)
    labels = jnp.arange(logits.shape[-1], dtype=mask.dtype)
    hot = mask[..., None] == labels
    weights = jnp.asarray(spec.class_weights or jnp.ones(labels.shape))
  return Classes(probability * is_valid(mask)[..., None], hot, weights)


def per_image(value: Array, mask: Array, weights: Array) -> Array:
  """Sums [B, K] over images, averaged over classes by their weights."""
  return jnp.sum(jnp.average(value, axis=-1, weights=weights) * has_valid(mask))


def image_count(mask: Array, spec: LossSpec, weight_map: Array | None) -> Array:
  """The images that have a pixel which counts."""
  del spec, weight_map
  return jnp.sum(has_valid(mask))
