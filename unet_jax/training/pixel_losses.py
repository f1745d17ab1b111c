"""Losses that are sums over pixels, each with a weight of its own.

All take float32 logits [B, H, W, C], where C = 1 is one sigmoid channel,
integer masks [B, H, W] in 0..C-1 (0..1 for C = 1), in which 255 is ignored, a
`LossSpec`, and a weight map [B, H, W] or None. They return the total over the
batch.
"""

import jax
import jax.numpy as jnp
import optax

from unet_jax.training import loss_terms
from unet_jax.training.loss_terms import LossSpec

Array = jax.Array


def count(mask: Array, spec: LossSpec, weight_map: Array | None) -> Array:
  """Adds up the same weights as the totals do: a weighted mean."""
  return jnp.sum(loss_terms.pixel_weights(mask, spec, weight_map))


def cross_entropy(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """Sum over pixels of the weighted cross-entropy in nats.

  With label smoothing as in Szegedy et al. 2016 (arXiv 1512.00567, section 7).
  """
  values = _cross_entropy(logits, mask, spec.label_smoothing)
  return jnp.sum(values * loss_terms.pixel_weights(mask, spec, weight_map))


def focal(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """Sum over pixels of the weighted focal loss in nats.

  Lin et al. 2017 (arXiv 1708.02002, equation 5): (1 - p)^gamma times the
  cross-entropy, p the probability of the right class. Its alpha is the class
  weights, whose sum over pixels divides here as in the cross-entropy; labels
  are not smoothed.
  """
  entropy = _cross_entropy(logits, mask)
  # 1 - p. The power has no gradient at 0 for a gamma between 0 and 1.
  wrong = jnp.maximum(-jnp.expm1(-entropy), 1e-12)
  values = wrong**spec.focal_gamma * entropy
  return jnp.sum(values * loss_terms.pixel_weights(mask, spec, weight_map))


def hard_pixels(
  logits: Array, mask: Array, spec: LossSpec, weight_map: Array | None
) -> Array:
  """Sum of the cross-entropy over each image's hardest pixels, in nats.

  Wu et al. 2016 (arXiv 1605.06885, section 3), with a part of the pixels that
  are not ignored, `spec.hard_fraction`, in place of a number. Pixels with equal
  values at its end share what is left. Weights multiply the values before they
  are compared, and do not divide.
  """
  weights = loss_terms.pixel_weights(mask, spec, weight_map)
  values = _cross_entropy(logits, mask, spec.label_smoothing) * weights
  valid = loss_terms.is_valid(mask).reshape(len(mask), -1)
  values, number = values.reshape(valid.shape), _hard(mask, spec)
  # No pixel that is ignored comes before one that is not.
  known = jax.lax.stop_gradient(jnp.where(valid, values, -1))
  ranked = jnp.sort(known, -1, descending=True)
  last = jnp.maximum(number - 1, 0)[:, None]
  least = jnp.take_along_axis(ranked, last, -1)
  above, equal = values > least, (values == least) & valid
  left = number - jnp.sum(above, -1)
  share = left / jnp.maximum(jnp.sum(equal, -1), 1)
  return jnp.sum(values * (above + equal * share[:, None]))


def hard_count(mask: Array, spec: LossSpec, weight_map: Array | None) -> Array:
  """The number of the pixels of `hard_pixels`."""
  del weight_map
  return jnp.sum(_hard(mask, spec)).astype(jnp.float32)


def _hard(mask: Array, spec: LossSpec) -> Array:
  """How many pixels of each image are its hardest: [B]."""
  valid = loss_terms.is_valid(mask)
  number = jnp.sum(valid, axis=loss_terms.pixel_axes(mask))
  # Of 20 pixels, 0.35 are 7, which float32 has slightly above.
  return jnp.ceil(number * spec.hard_fraction - 1e-3).astype(jnp.int32)


def _cross_entropy(logits: Array, mask: Array, smoothing: float = 0.0) -> Array:
  """Of each pixel: [B, H, W]; of class 0 where the mask is ignored."""
  target = jnp.where(loss_terms.is_valid(mask), mask, 0)
  if logits.shape[-1] == 1:
    target = target.astype(jnp.float32) * (1 - smoothing) + smoothing / 2
    return optax.sigmoid_binary_cross_entropy(logits[..., 0], target)
  log_p = jax.nn.log_softmax(logits)
  # A comparison with the class numbers fuses; a gather does not.
  hot = target[..., None] == jnp.arange(logits.shape[-1], dtype=target.dtype)
  values = -jnp.sum(jnp.where(hot, log_p, 0.0), axis=-1)
  if smoothing:
    values = (1 - smoothing) * values - smoothing * jnp.mean(log_p, axis=-1)
  return values
