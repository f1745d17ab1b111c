"""Weights of pixels in the cross-entropy: class balance and borders.

Ronneberger et al. 2015 (arXiv 1505.04597), eq. 2:

  w(x) = w_c(x) + w0 * exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

w_c balances the classes; d1 and d2 are the distances from x to the nearest and
to the second nearest instance, so that the narrow gaps between instances count
most. The border term is added outside of instances, where the network has to
learn to separate them; images of fewer than two instances have none.
"""

import dataclasses
import math

import cv2
import ml_collections
import numpy as np

from unet_jax.config import fields

# Raise it when the same settings would give other weights.
VERSION = 1
# Border terms below this are dropped; float16, in which weights are stored, is
# coarser from 0.25 on.
_NEGLIGIBLE = 1e-4


@dataclasses.dataclass(frozen=True)
class WeightMap:
  """Makes the weights of one image.

  Attributes:
    border_weight: w0; 0 for no border term.
    border_sigma: sigma, in pixels.
    balance: whether w_c balances the classes of the image, or is 1.
  """

  border_weight: float
  border_sigma: float
  balance: bool

  def __call__(
    self, mask: np.ndarray, instances: np.ndarray | None = None
  ) -> np.ndarray:
    """Returns the weight of each pixel.

    Args:
      mask: uint8 [H, W]; 255 is ignored.
      instances: integers [H, W], 0 is none; None takes the connected parts of
        the mask's classes, see `connected_instances`.

    Returns:
      float16 [H, W], at least 0; 0 where the mask is ignored.
    """
    weights = np.ones(mask.shape, np.float32)
    if self.balance:
      weights = class_balance(mask)
    if self.border_weight:
      if instances is None:
        instances = connected_instances(mask)
      weights += border_term(instances, self.border_weight, self.border_sigma)
    weights[mask == fields.IGNORE_LABEL] = 0
    # A class of a few pixels in a large image: an infinite loss otherwise.
    weights = np.minimum(weights, np.finfo(np.float16).max)
    return weights.astype(np.float16)


def is_used(config: ml_collections.ConfigDict) -> bool:
  """Whether a config weighs pixels."""
  return config.loss.weight_map != 'none' or config.loss.balance != 'none'


def make_weight_map(config: ml_collections.ConfigDict) -> WeightMap | None:
  """Returns the weight map of a config; None where pixels are not weighed."""
  if not is_used(config):
    return None
  loss = config.loss
  return WeightMap(
    border_weight=loss.border_weight if loss.weight_map == 'border' else 0.0,
    border_sigma=loss.border_sigma,
    balance=loss.balance == 'image',
  )


def class_balance(mask: np.ndarray) -> np.ndarray:
  """Returns w_c: the inverse frequency of each pixel's class in the mask.

  The mask is uint8 [H, W], 255 is ignored. The result is float32 [H, W], with
  mean 1 over the other pixels and the same sum for each class that occurs.
  """
  counts = np.bincount(mask.ravel(), minlength=256)
  counts[fields.IGNORE_LABEL] = 0
  present = counts > 0
  table = np.zeros(256, np.float32)
  table[present] = counts.sum() / (present.sum() * counts[present])
  return table[mask]


def connected_instances(mask: np.ndarray) -> np.ndarray:
  """Numbers the connected parts of each class but 0, the background.

  Pixels are connected to their four neighbours: diagonal neighbours alone are
  two instances with a border between them. So are touching classes.

  Returns:
    integers [H, W] from 1; 0 for none and where the mask is ignored (255).
  """
  from skimage import measure  # Slow to import, and rarely needed.

  classes = np.where(mask == fields.IGNORE_LABEL, 0, mask)
  return measure.label(classes, connectivity=1)


def border_term(
  instances: np.ndarray, weight: float, sigma: float
) -> np.ndarray:
  """Returns weight * exp(-(d1 + d2)^2 / (2 sigma^2)) outside of instances.

  Distances matter only as far as the term is not negligible: the exact
  transform runs on each instance's bounding box grown by that much. OpenCV's
  gives SciPy's distances (rounded to float32) in half of the time, and threads
  can run it side by side.

  Args:
    instances: integers [H, W], 0 is none; each other value is one instance,
      connected or not.
    weight: w0, above 0.
    sigma: in pixels.

  Returns:
    float32 [H, W], within 1e-4 of the formula; 0 inside of instances.
  """
  from scipy import ndimage

  term = np.zeros(instances.shape, np.float32)
  inside = instances != 0
  values = np.unique(instances[inside])
  if len(values) < 2:
    return term
  # From 1 without gaps, as find_objects needs.
  labels = np.where(inside, np.searchsorted(values, instances) + 1, 0)
  reach = sigma * math.sqrt(2 * math.log(max(weight / _NEGLIGIBLE, 1)))
  margin = math.ceil(reach)
  nearest = np.full(instances.shape, np.inf, np.float32)
  second = nearest.copy()
  for label, box in enumerate(ndimage.find_objects(labels), 1):
    # Slices that end beyond the image end at its border.
    box = tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in box)
    others = (labels[box] != label).astype(np.uint8)
    distance = cv2.distanceTransform(others, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    d1, d2 = nearest[box], second[box]
    np.minimum(d2, np.maximum(d1, distance), out=d2)
    np.minimum(d1, distance, out=d1)
  near = (nearest + second <= reach) & ~inside
  total = nearest[near] + second[near]
  term[near] = weight * np.exp(-(total**2) / (2 * sigma**2))
  return term
