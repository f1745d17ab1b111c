"""Segmentation scores from integer confusion counts.

Counts are made on the device, per image, summed over a split in 64-bit integers
on the host and divided once. IoU and Dice come with two reductions:

- `dataset`: counts summed over the split, then divided.
- `image`: divided per image, then averaged over the images in which the class
  is in the mask or in the prediction; `image_miou` averages the classes of each
  image first.

A class that is in no mask and no prediction has no score (NaN) and counts in no
mean.
"""

import math
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from unet_jax.prediction import probabilities

# Pixels whose one-hot products are summed in one float32, which holds integers
# exactly up to 2**24.
_EXACT = 2**24


def confusion_counts(
  mask: jax.Array, prediction: jax.Array, num_classes: int
) -> jax.Array:
  """Counts pixels by class in the mask and in the prediction, per image.

  Args:
    mask: integers [B, H, W], or [B, D, H, W] of volumes; values outside
      0..num_classes-1 (ignored pixels) count nowhere.
    prediction: integers of the same shape.
    num_classes: 2 for a sigmoid channel.

  Returns:
    int32 [B, num_classes, num_classes]: [b, i, j] is the number of pixels of
    image b with class i in the mask and class j in the prediction.
  """
  classes = jnp.arange(num_classes, dtype=mask.dtype)
  pixels = math.prod(mask.shape[1:])
  shape = (mask.shape[0], pixels, 1)
  # A product of one-hot matrices, which every backend does fast; float32 sums
  # of ones are exact up to 2**24, larger images go in parts.
  in_mask = (mask.reshape(shape) == classes).astype(jnp.float32)
  predicted = (prediction.reshape(shape) == classes).astype(jnp.float32)
  counts = [
    jnp.einsum(
      'bpi,bpj->bij',
      in_mask[:, i : i + _EXACT],
      predicted[:, i : i + _EXACT],
      precision=jax.lax.Precision.HIGHEST,
    ).astype(jnp.int32)
    for i in range(0, pixels, _EXACT)
  ]
  return sum(counts[1:], counts[0])


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
  """Returns the quotient, NaN where both are 0."""
  with np.errstate(invalid='ignore', divide='ignore'):
    return numerator / denominator


def iou_and_dice(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns IoU and Dice of each class: [..., C, C] to two [..., C].

  NaN for a class that is neither in the mask nor in the prediction.
  """
  both = np.diagonal(confusion, axis1=-2, axis2=-1)
  sizes = confusion.sum(-1) + confusion.sum(-2)
  return ratio(both, sizes - both), ratio(2 * both, sizes)


def merge_foreground(
  confusion: np.ndarray, foreground: Sequence[int]
) -> np.ndarray:
  """Joins classes by index: [..., C, C] to [..., 2, 2]; 1 is the foreground."""
  groups = np.zeros((2, confusion.shape[-1]), confusion.dtype)
  groups[0] = 1
  groups[:, list(foreground)] = [[0], [1]]
  return groups @ confusion @ groups.T


def class_scores(
  confusion: np.ndarray,
  names: tuple[str, ...],
  foreground: tuple[str, ...] = (),
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
  """Returns IoU and Dice of each class, and of the foreground as one class.

  Args:
    confusion: integers [..., C, C].
    foreground: names of the classes to join, or ().

  Returns:
    `names`, and 'a+b' for a foreground of a and b; IoU and Dice [..., C] or,
    with a foreground, [..., C + 1].
  """
  iou, dice = iou_and_dice(confusion)
  if not foreground:
    return names, iou, dice
  binary = merge_foreground(confusion, [names.index(n) for n in foreground])
  iou, dice = (
    np.concatenate([of_classes, joined[..., 1:]], -1)
    for of_classes, joined in zip((iou, dice), iou_and_dice(binary))
  )
  return (*names, '+'.join(foreground)), iou, dice


def nanmean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
  """Returns the mean of values that are not NaN; NaN where all are."""
  with warnings.catch_warnings():
    # The mean of nothing is NaN by this module's rule, not a fault.
    warnings.simplefilter('ignore', RuntimeWarning)
    return np.nanmean(values, axis=axis)


def scores(
  confusion: np.ndarray,
  names: tuple[str, ...],
  foreground: tuple[str, ...] = (),
) -> dict[str, float]:
  """Returns the scores of a split.

  Args:
    confusion: integers [N, C, C], one matrix per image.
    foreground: names of classes that together are scored as one, against the
      rest, under the name 'a+b'.

  Returns:
    {'dataset_iou/NAME', 'dataset_dice/NAME', 'image_iou/NAME',
    'image_dice/NAME' for each class and for the foreground; 'dataset_miou',
    'dataset_mdice', 'image_miou', 'image_mdice', 'pixel_accuracy'}, all in 0..1
    or NaN where nothing counts.
  """
  confusion = np.asarray(confusion, np.int64)
  total = confusion.sum(0)
  result = {}
  for reduction, counts in (('dataset', total[None]), ('image', confusion)):
    scored, iou, dice = class_scores(counts, names, foreground)
    for score, values in (('iou', iou), ('dice', dice)):
      of_classes = values[:, : len(names)]
      result[f'{reduction}_m{score}'] = nanmean(nanmean(of_classes, 1))
      for name, value in zip(scored, nanmean(values, 0)):
        result[f'{reduction}_{score}/{name}'] = value
  result['pixel_accuracy'] = ratio(np.trace(total), total.sum())
  return {name: float(value) for name, value in result.items()}


def further_scores(
  confusion: np.ndarray, names: tuple[str, ...]
) -> dict[str, float]:
  """Returns scores that are only worth a full evaluation, of counts [N, C, C].

  Returns:
    {'dataset_precision/NAME' (NaN for a class that is never predicted),
    'dataset_recall/NAME' (NaN for one that is in no mask) for each class;
    'mean_accuracy': the mean of the recalls; 'dataset_fwiou': IoU weighted by
    the frequency of the classes in the masks (Long et al. 2015, arXiv
    1411.4038, sec. 5)}, all in 0..1 or NaN where nothing counts.
  """
  total = np.asarray(confusion, np.int64).sum(0)
  both, in_mask = np.diagonal(total), total.sum(1)
  precision, recall = ratio(both, total.sum(0)), ratio(both, in_mask)
  iou, _ = iou_and_dice(total)
  result = {
    'mean_accuracy': nanmean(recall),
    'dataset_fwiou': ratio(np.nansum(iou * in_mask), in_mask.sum()),
  }
  for c, name in enumerate(names):
    result[f'dataset_precision/{name}'] = precision[c]
    result[f'dataset_recall/{name}'] = recall[c]
  return {name: float(value) for name, value in result.items()}


def confusion_of_image(
  mask: np.ndarray, prediction: np.ndarray, num_classes: int
) -> np.ndarray:
  """Counts as `confusion_counts` does, on the host and for one image.

  Mask and prediction are uint8 [H, W], the counts int64 [C, C]; values of the
  mask that are no class count nowhere.
  """
  counts = np.zeros(num_classes**2, np.int64)
  for rows in probabilities.row_bands(mask.shape):
    valid = mask[rows] < num_classes
    pairs = mask[rows][valid] * np.int32(num_classes) + prediction[rows][valid]
    counts += np.bincount(pairs, minlength=counts.size)
  return counts.reshape(num_classes, num_classes)
