"""Losses that compare regions: of each class of each image, then averaged.

All take float32 logits [B, H, W, C], where C = 1 is one sigmoid channel, whose
foreground alone is scored, integer masks [B, H, W], in which 255 is ignored,
and a `LossSpec`, whose class weights average the classes. Weight maps are not
used: regions balance by themselves. They return the sum over the images.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unet_jax.training import loss_terms
from unet_jax.training.loss_terms import LossSpec

Array = jax.Array


def dice(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """1 - soft Dice.

  Milletari et al. 2016 (arXiv 1606.04797), with p + m instead of squares and 1
  added above and below, so that a class that is absent and not predicted
  scores 1.
  """
  del weight_map
  return _overlap(logits, mask, spec, 0.5, 0.5)


def tversky(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """1 - Tversky index, which weighs what is too much and what is missing.

  Salehi et al. 2017 (arXiv 1706.05721, equation 3), with 1/2 added above and
  below: weights of 1/2 make it `dice`.
  """
  del weight_map
  return _overlap(logits, mask, spec, *spec.tversky)


def _overlap(
  logits: Array, mask: Array, spec: LossSpec, too_much: float, missing: float
) -> Array:
  probability, hot, weights = loss_terms.classes(logits, mask, spec)
  pixels = loss_terms.pixel_axes(mask)
  both = jnp.sum(probability * hot, axis=pixels)
  false = jnp.sum(probability, axis=pixels) - both
  missed = jnp.sum(hot, axis=pixels, dtype=jnp.float32) - both
  index = (both + 0.5) / (both + too_much * false + missing * missed + 0.5)
  return loss_terms.per_image(1 - index, mask, weights)


def generalized_dice(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """1 - generalised Dice: one ratio of an image, for classes of any size.

  Sudre et al. 2017 (arXiv 1707.03237, equation of section 2.1): classes weigh
  by the inverse square of their pixels; one that is absent as the smallest that
  is there. One sigmoid channel is scored as two classes.
  """
  del weight_map
  if logits.shape[-1] == 1:
    logits = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
  probability, hot, weights = loss_terms.classes(logits, mask, spec)
  pixels = loss_terms.pixel_axes(mask)
  both = jnp.sum(probability * hot, axis=pixels)
  sizes = jnp.sum(hot, axis=pixels, dtype=jnp.float32)
  inverse = 1 / jnp.maximum(sizes, 1) ** 2
  largest = jnp.max(jnp.where(sizes > 0, inverse, 0), -1, keepdims=True)
  balance = weights * jnp.where(sizes > 0, inverse, largest)
  sizes = sizes + jnp.sum(probability, axis=pixels)
  above, below = jnp.sum(balance * both, -1), jnp.sum(balance * sizes, -1)
  value = 1 - 2 * above / jnp.where(below > 0, below, 1)
  return jnp.sum(value * loss_terms.has_valid(mask))


def lovasz(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """1 - intersection over union, extended to probabilities.

  Berman et al. 2018 (arXiv 1705.08790, equations 8, 9, 11): the Lovasz softmax,
  of the classes that an image has. Of one sigmoid channel it takes the
  probability of the foreground, where the paper has a hinge, in all images.
  """
  del weight_map
  probability, hot, weights = loss_terms.classes(logits, mask, spec)
  shape = (len(mask), len(weights), -1)
  by_class = lambda x: jnp.moveaxis(x, -1, 1).reshape(shape)
  valid = loss_terms.is_valid(mask).reshape(len(mask), 1, -1)
  hot = by_class(hot).astype(jnp.float32)
  errors = jnp.abs(hot - by_class(probability))
  # Pixels that are ignored come last: nothing that counts comes after them.
  keys = jnp.where(valid, -errors, 1)
  keys, hot = jax.lax.sort((keys, hot), num_keys=1)
  present = jnp.sum(hot, -1, keepdims=True)
  left = present - jnp.cumsum(hot, -1)
  jaccard = 1 - left / (present + jnp.cumsum(1 - hot, -1))
  steps = jnp.diff(jaccard, axis=-1, prepend=0)
  value = jnp.sum(jnp.where(keys < 0, -keys, 0) * steps, -1)
  weights = weights * ((present[..., 0] > 0) | (logits.shape[-1] == 1))
  total = jnp.sum(weights, -1)
  return jnp.sum(jnp.sum(value * weights, -1) / jnp.where(total > 0, total, 1))


def boundary(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """Mean of the probability times the signed distance to the class's border.

  Kervadec et al. 2019 (arXiv 1812.07032, equation 5), in pixels: 1, 2, ... out
  of the class, 0, -1, ... within. It is below 0 for what is right, and meant to
  be added to a loss of regions. A class that is absent, or everywhere, has no
  border and counts 0. Pixels that are ignored are outside of all classes.
  Distances take H + W operations a pixel and class.
  """
  del weight_map
  probability, hot, weights = loss_terms.classes(logits, mask, spec)
  within, without = (_distance(x) for x in (~hot, hot))
  signed = jnp.where(hot, 1 - within, without)
  pixels = loss_terms.pixel_axes(mask)
  has_border = jnp.any(hot, pixels, keepdims=True) & jnp.any(
    ~hot, pixels, keepdims=True
  )
  total = jnp.sum(probability * jnp.where(has_border, signed, 0), axis=pixels)
  valid = jnp.sum(loss_terms.is_valid(mask), axis=pixels)[:, None]
  return loss_terms.per_image(total / jnp.maximum(valid, 1), mask, weights)


def _distance(goal: Array) -> Array:
  """Euclidean distance in pixels to the nearest True of bool [B, H, W, K].

  One axis after another: the square is the least of a sum over each.
  """
  squares = jnp.where(goal, 0.0, 1e9)
  for axis in range(1, goal.ndim - 1):
    place = jnp.arange(goal.shape[axis], dtype=jnp.float32)
    between = (place[:, None] - place) ** 2
    lines = jnp.moveaxis(squares, axis, -1)[..., None, :]
    squares = jnp.moveaxis(jnp.min(lines + between, -1), -1, axis)
  return jnp.sqrt(squares)


def cl_dice(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """1 - soft centreline Dice, for what is thin: vessels, roads, membranes.

  Shit et al. 2021 (arXiv 2003.07311, algorithms 1 and 2), with 1 added above
  and below: the harmonic mean of the part of the predicted skeleton that lies
  in the mask and of the mask's in the prediction. Of all classes but the first.
  `spec.skeleton_steps` is to be at least half the width of what is thin, in
  pixels.
  """
  del weight_map
  probability, hot, weights = loss_terms.classes(logits, mask, spec)
  if logits.shape[-1] > 1:
    probability, hot, weights = probability[..., 1:], hot[..., 1:], weights[1:]
  truth, pixels = hot.astype(jnp.float32), loss_terms.pixel_axes(mask)

  def part(of: Array, within: Array) -> Array:
    thin = _skeleton(of, spec.skeleton_steps)
    return (jnp.sum(thin * within, pixels) + 1) / (jnp.sum(thin, pixels) + 1)

  precision, sensitivity = part(probability, truth), part(truth, probability)
  value = 2 * precision * sensitivity / (precision + sensitivity)
  return loss_terms.per_image(1 - value, mask, weights)


def _skeleton(x: Array, steps: int) -> Array:
  """Soft skeleton of [B, H, W, K], algorithm 1 of the paper."""
  found: Any = 0.0
  for _ in range(steps + 1):
    eroded = _erode(x)
    ridge = jax.nn.relu(x - _dilate(eroded))
    found = found + jax.nn.relu(ridge - found * ridge)
    x = eroded
  return found


def _erode(x: Array) -> Array:
  """The least of each pixel and of those next to it along the axes."""
  n = x.ndim - 2
  windows = [tuple(1 + 2 * (i == axis) for i in range(n)) for axis in range(n)]
  return -functools.reduce(jnp.maximum, (_max_around(-x, w) for w in windows))


def _dilate(x: Array) -> Array:
  """The greatest of 3x3 pixels."""
  return _max_around(x, (3,) * (x.ndim - 2))


def _max_around(x: Array, window: tuple[int, ...]) -> Array:
  # XLA's own windows: sums of shifted arrays took up to five times as long.
  return nn.max_pool(x, window, padding='SAME')
