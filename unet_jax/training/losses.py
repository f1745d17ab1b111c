"""Losses on logits and integer masks, all in float32.

A loss is a total over a batch and the count to divide it by. The count depends
on the masks alone, so that totals of parts of a batch, or of a whole split, add
up to exactly the loss of the whole.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from unet_jax.config import fields

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Loss:
  """`total(logits, mask, spec, weight_map)`, `count(mask, spec, weight_map)`.

  Both are scalars. `weight_map` is floats [B, H, W], at least 0, or None where
  all pixels count alike; only the cross-entropy uses it. Shapes are those of
  images; masks of volumes are [B, D, H, W].
  """

  total: Callable[..., Array]
  count: Callable[..., Array]


class LossSpec(NamedTuple):
  """Settings of all losses, see unet_jax/config/default.py, section loss.

  Attributes:
    weights: ((name in LOSSES, weight), ...).
    class_weights: a factor per class; () for equal ones.
    label_smoothing: 0 to below 1.
  """

  weights: tuple[tuple[str, float], ...] = (('cross_entropy', 1.0),)
  class_weights: tuple[float, ...] = ()
  label_smoothing: float = 0.0


def _pixel_weights(
  mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """Each pixel's weight times its class's, 0 where the mask is ignored."""
  valid = (mask != fields.IGNORE_LABEL).astype(jnp.float32)
  if weight_map is not None:
    valid = valid * weight_map.astype(jnp.float32)
  if not spec.class_weights:
    return valid
  table = jnp.asarray(spec.class_weights, jnp.float32)
  return valid * table[jnp.where(mask == fields.IGNORE_LABEL, 0, mask)]


def _cross_entropy_total(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """Sum over pixels of the weighted cross-entropy in nats.

  Args:
    logits: float32 [B, H, W, C]; C = 1 is one sigmoid channel.
    mask: integers [B, H, W] in 0..C-1 (0..1 for C = 1), 255 is ignored.
    spec: class weights and label smoothing (Szegedy et al. 2016, arXiv
      1512.00567, section 7).
    weight_map: floats [B, H, W] or None; a weighted mean, since the count adds
      up the same weights.
  """
  target = jnp.where(mask == fields.IGNORE_LABEL, 0, mask)
  smoothing = spec.label_smoothing
  if logits.shape[-1] == 1:
    target = target.astype(jnp.float32) * (1 - smoothing) + smoothing / 2
    values = optax.sigmoid_binary_cross_entropy(logits[..., 0], target)
  else:
    log_p = jax.nn.log_softmax(logits)
    # A comparison with the class numbers fuses; a gather does not.
    hot = target[..., None] == jnp.arange(logits.shape[-1], dtype=target.dtype)
    values = -jnp.sum(jnp.where(hot, log_p, 0.0), axis=-1)
    if smoothing:
      values = (1 - smoothing) * values - smoothing * jnp.mean(log_p, axis=-1)
  return jnp.sum(values * _pixel_weights(mask, spec, weight_map))


def _cross_entropy_count(
  mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  return jnp.sum(_pixel_weights(mask, spec, weight_map))


def _dice_total(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """Sum over images of 1 - soft Dice, averaged over classes.

  Milletari et al. 2016 (arXiv 1606.04797), with p + m instead of squares and 1
  added above and below, so that a class that is absent and not predicted
  scores 1.

  Args:
    logits: float32 [B, H, W, C]; C = 1 is one sigmoid channel, its foreground
      alone is scored.
    mask: integers [B, H, W], 255 is ignored.
    spec: its class weights average the classes.
    weight_map: not used; Dice balances by itself.
  """
  del weight_map
  valid = (mask != fields.IGNORE_LABEL)[..., None]
  if logits.shape[-1] == 1:
    probability = jax.nn.sigmoid(logits)
    hot = mask[..., None] == 1
    class_weights = jnp.ones(1)
  else:
    probability = jax.nn.softmax(logits)
    classes = jnp.arange(logits.shape[-1], dtype=mask.dtype)
    hot = mask[..., None] == classes
    class_weights = jnp.asarray(spec.class_weights or jnp.ones(classes.shape))
  probability = probability * valid
  pixels = _pixel_axes(mask)
  both = jnp.sum(probability * hot, axis=pixels)
  sizes = jnp.sum(probability, axis=pixels) + jnp.sum(
    hot, axis=pixels, dtype=jnp.float32
  )
  dice = (2 * both + 1) / (sizes + 1)
  per_image = 1 - jnp.average(dice, axis=-1, weights=class_weights)
  return jnp.sum(per_image * _has_valid(mask))


def _pixel_axes(mask: Array) -> tuple[int, ...]:
  """All axes of [B, H, W] but the first."""
  return tuple(range(1, mask.ndim))


def _has_valid(mask: Array) -> Array:
  """1.0 for each image with a pixel that is not ignored: [B]."""
  valid = jnp.any(mask != fields.IGNORE_LABEL, axis=_pixel_axes(mask))
  return valid.astype(jnp.float32)


def _dice_count(mask: Array, spec: LossSpec, weight_map: Array | None) -> Array:
  del spec, weight_map
  return jnp.sum(_has_valid(mask))


LOSSES = {
  'cross_entropy': Loss(_cross_entropy_total, _cross_entropy_count),
  'dice': Loss(_dice_total, _dice_count),
}


def make_spec(config: ml_collections.ConfigDict) -> LossSpec:
  """Returns the settings of a config, without terms of weight 0."""
  weights = sorted(config.loss.weights.items())
  return LossSpec(
    weights=tuple((name, w) for name, w in weights if w),
    class_weights=tuple(config.loss.class_weights),
    label_smoothing=config.loss.label_smoothing,
  )


def counts(
  mask: Array, spec: LossSpec, weight_map: Array | None = None
) -> dict[str, Array]:
  """Returns each term's count over a batch: {name: scalar}."""
  return {
    name: LOSSES[name].count(mask, spec, weight_map) for name, _ in spec.weights
  }


def totals(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None = None
) -> dict[str, Array]:
  """Returns each term's total over a batch: {name: scalar}."""
  return {
    name: LOSSES[name].total(logits, mask, spec, weight_map)
    for name, _ in spec.weights
  }


def weighted_sum(total: Any, count: Any, spec: LossSpec) -> Any:
  """Returns the loss of totals and counts; a term that counts nothing is 0."""
  return sum(
    weight * total[name] / jnp.maximum(count[name], 1e-12)
    for name, weight in spec.weights
  )
