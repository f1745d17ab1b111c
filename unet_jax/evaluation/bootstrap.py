"""How far scores of a split would vary with other images: the bootstrap.

The images are drawn again with replacement, as many as there are, and the
scores computed of each draw (Efron and Tibshirani 1993, ch. 13: percentile
intervals). The intervals do not cover how a score varies between trainings.
"""

from collections.abc import Iterator

import numpy as np

from unet_jax.evaluation import confusion as confusion_lib

_LEVEL = 95
# Weights (resamples times images) that are in memory at once.
_WEIGHTS = 10**6


def bootstrap(
  confusion: np.ndarray,
  names: tuple[str, ...],
  foreground: tuple[str, ...],
  resamples: int,
  seed: int,
) -> dict[str, tuple[float, float]]:
  """Returns 95 % intervals of the scores that reports begin with.

  Args:
    confusion: integers [N, C, C], one matrix per image, N at least 1.
    foreground: names of classes that are also scored as one, see
      `confusion.scores`.
    resamples: how often the images are drawn; 0 gives no intervals.

  Returns:
    (low, high) of `dataset_miou`, `dataset_mdice`, `image_miou`,
    `pixel_accuracy` and `dataset_iou/NAME`, for the foreground too; NaN where
    no draw has a score.
  """
  if not resamples:
    return {}
  confusion = np.asarray(confusion, np.int64)
  count = len(confusion)
  miou = confusion_lib.nanmean(confusion_lib.iou_and_dice(confusion)[0], 1)
  has_score = np.isfinite(miou)
  # Of an image its counts, its mean IoU or 0, and whether it has one.
  of_images = np.column_stack(
    [confusion.reshape(count, -1), np.where(has_score, miou, 0), has_score]
  )
  rng = np.random.default_rng(seed)
  sums = np.concatenate(list(resample(of_images, resamples, rng)))
  totals = sums[:, :-2].reshape(-1, *confusion.shape[1:])
  scored, iou, dice = confusion_lib.class_scores(totals, names, foreground)
  values = {
    'dataset_miou': confusion_lib.nanmean(iou[:, : len(names)], 1),
    'dataset_mdice': confusion_lib.nanmean(dice[:, : len(names)], 1),
    'image_miou': confusion_lib.ratio(sums[:, -2], sums[:, -1]),
    'pixel_accuracy': confusion_lib.ratio(
      np.trace(totals, axis1=1, axis2=2), totals.sum((1, 2))
    ),
    **{f'dataset_iou/{name}': iou[:, c] for c, name in enumerate(scored)},
  }
  return {name: _percentiles(v) for name, v in values.items()}


def resample(
  of_images: np.ndarray, resamples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
  """Draws images again with replacement, as many as there are.

  Args:
    of_images: numbers [N, F] of N images.
    resamples: how often, R.

  Yields:
    Sums over the images of each draw, float64 [r, F], a part of the R draws at
    a time; whole numbers are exact up to 2**53.
  """
  count = len(of_images)
  of_images = np.asarray(of_images, float)
  step = max(_WEIGHTS // count, 1)
  for start in range(0, resamples, step):
    rows = min(step, resamples - start)
    drawn = rng.integers(0, count, (rows, count))
    # How often each image is in each draw: one product sums them all.
    drawn += count * np.arange(rows)[:, None]
    weights = np.bincount(drawn.ravel(), minlength=rows * count)
    yield weights.reshape(rows, count).astype(float) @ of_images


def _percentiles(values: np.ndarray) -> tuple[float, float]:
  values = values[np.isfinite(values)]
  if not values.size:
    return float('nan'), float('nan')
  tail = (100 - _LEVEL) / 2
  low, high = np.percentile(values, [tail, 100 - tail])
  return float(low), float(high)
