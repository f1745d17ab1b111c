"""Losses on logits and integer masks, all in float32.

A loss is a total over a batch and the count to divide it by. The count depends
on the masks alone, so that totals of parts of a batch, or of a whole split, add
up to exactly the loss of the whole.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from unet_jax.training import loss_terms, pixel_losses, region_losses
from unet_jax.training.loss_terms import Loss, LossSpec

Array = jax.Array

# Of pixels, then of regions.
LOSSES = {
  'cross_entropy': Loss(pixel_losses.cross_entropy, pixel_losses.count),
  'focal': Loss(pixel_losses.focal, pixel_losses.count),
  'hard_pixels': Loss(pixel_losses.hard_pixels, pixel_losses.hard_count),
  'dice': Loss(region_losses.dice, loss_terms.image_count),
  'generalized_dice': Loss(
    region_losses.generalized_dice, loss_terms.image_count
  ),
  'tversky': Loss(region_losses.tversky, loss_terms.image_count),
  'lovasz': Loss(region_losses.lovasz, loss_terms.image_count),
  'boundary': Loss(region_losses.boundary, loss_terms.image_count),
  'cl_dice': Loss(region_losses.cl_dice, loss_terms.image_count),
}


def make_spec(config: ml_collections.ConfigDict) -> LossSpec:
  """Returns the settings of a config, without terms of weight 0."""
  weights = sorted(config.loss.weights.items())
  return LossSpec(
    weights=tuple((name, w) for name, w in weights if w),
    class_weights=tuple(config.loss.class_weights),
    label_smoothing=config.loss.label_smoothing,
    focal_gamma=config.loss.focal_gamma,
    hard_fraction=config.loss.hard_fraction,
    tversky=tuple(config.loss.tversky),
    skeleton_steps=config.loss.skeleton_steps,
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
