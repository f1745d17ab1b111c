"""All measures of a full evaluation: of one image, of a split, and a table.

`measure_image` returns counts, sums and values of fixed shapes, so that images
are measured once, anywhere and in any order; `summarize` divides and averages
them. The two reductions and the rule for NaN are those of confusion.py.
"""

import dataclasses
from typing import Any

import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.evaluation import (
  bootstrap,
  boundaries,
  calibration,
  glossary,
  objects,
)
from unet_jax.evaluation import confusion as confusion_lib

# Of one image: {name: array}, see `measure_image`.
Measured = dict[str, np.ndarray]

# Metrics of partitions, at thresholds of the probability (objects.py).
_PARTITIONS = ('v_rand', 'v_info', 'v_rand_thin', 'v_info_thin')


@dataclasses.dataclass(frozen=True)
class Spec:
  """Settings of measures: those of the section `eval` in config/default.py.

  Logits of one channel (sigmoid) have two names of classes.
  """

  names: tuple[str, ...]
  foreground: tuple[str, ...]
  boundary_ratio: float
  band: float
  tolerance: float
  instances: str
  bins: int
  resamples: int
  seed: int


def make_spec(config: ml_collections.ConfigDict) -> Spec:
  """Returns the spec of a config."""
  e = config.eval
  return Spec(
    names=fields.class_names(config),
    foreground=tuple(e.foreground),
    boundary_ratio=e.boundary_ratio,
    band=e.band,
    tolerance=e.tolerance,
    instances=e.instances,
    bins=e.calibration_bins,
    resamples=e.bootstrap,
    seed=config.seed,
  )


def measure_image(
  logits: np.ndarray,
  prediction: np.ndarray,
  mask: np.ndarray,
  spec: Spec,
  instances: np.ndarray | None = None,
) -> Measured:
  """Measures one image.

  Args:
    logits: float32 [H, W, K], K = 1 or one channel per class.
    prediction: uint8 [H, W], their classes, see `probabilities.predict`.
    mask: uint8 [H, W]; 255 is ignored.
    instances: integers [H, W] that number the objects of the truth, 0 is none;
      None takes the connected parts of the class.

  Returns:
    `confusion` and `band_confusion` (in the band along outlines), int64 [C, C];
    and the measures of boundaries.py, calibration.py and, where
    `spec.instances` names a class, objects.py.
  """
  num_classes = len(spec.names)
  # The mask outside of the band is ignored.
  near = boundaries.band(mask, num_classes, spec.band)
  in_band = np.where(near, mask, np.uint8(fields.IGNORE_LABEL))
  result = {
    'confusion': confusion_lib.confusion_of_image(
      mask, prediction, num_classes
    ),
    'band_confusion': confusion_lib.confusion_of_image(
      in_band, prediction, num_classes
    ),
    **boundaries.measure(
      mask, prediction, num_classes, spec.boundary_ratio, spec.tolerance
    ),
    **calibration.measure(logits, prediction, mask, spec.bins),
  }
  if spec.instances:
    index = spec.names.index(spec.instances)
    result.update(
      objects.measure(
        mask,
        prediction,
        calibration.probability(logits, index),
        index,
        num_classes,
        instances,
      )
    )
  return result


def summarize(
  measured: list[Measured], spec: Spec
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
  """Returns the metrics of a split of at least one image, and 95 % intervals.

  Returns:
    The metrics, NaN where nothing counts:
      those of `confusion.scores` and `confusion.further_scores`;
      `dataset_boundary_iou/NAME`, `image_boundary_iou/NAME`, and the means over
        classes `dataset_boundary_miou`, `image_boundary_miou`;
      `dataset_band_iou/NAME`, `dataset_band_miou`;
      `image_hd95/NAME`, `image_mhd95` in pixels: means over the images that
        have the class in mask and prediction; `hd95_infinite/NAME`: the number
        of images that have it in one of the two only, where HD95 is infinite;
      `image_nsd/NAME`, `image_mnsd`: 0 for those images;
      `ece`, `mce`, `nll`, `brier`, see calibration.py;
      where the spec names instances: `ap50`, `ap75` and `ap` (the mean over IoU
        thresholds of 0.5 to 0.95), of matches summed over the split; `v_rand`,
        `v_info`, `v_rand_thin`, `v_info_thin`: means over images at a
        probability of 0.5, and with `_best` at the threshold that is best for
        the split, which `_best_threshold` is.
    The intervals {name: (low, high)}, see bootstrap.py.
  """
  stacked = _stack(measured)
  confusion = stacked['confusion']
  metrics = {
    **confusion_lib.scores(confusion, spec.names, spec.foreground),
    **confusion_lib.further_scores(confusion, spec.names),
    **_outline_metrics(stacked, spec.names),
    **calibration.metrics(_calibration_sums(stacked)),
  }
  if spec.instances:
    metrics.update(_object_metrics(stacked))
  return metrics, bootstrap.bootstrap(
    confusion, spec.names, spec.foreground, spec.resamples, spec.seed
  )


def image_rows(
  measured: list[Measured], names_of_images: list[str], spec: Spec
) -> list[dict[str, Any]]:
  """Returns a row per image, for a table; names are in the images' order.

  Returns:
    {'image': its name, and the metrics `pixel_accuracy`, `miou`, `iou/NAME`,
    `dice/NAME`, `boundary_iou/NAME`, `hd95/NAME`, `nsd/NAME`, `pixels/NAME` and
    `predicted_pixels/NAME` (of each class in the mask and in the prediction,
    without those that the mask ignores), `ece`, `nll`, `brier`, and of objects
    `ap50`, `ap` and V_rand and V_info at 0.5}: the same for each image; NaN
    where nothing counts, infinite for HD95 of a class that only mask or
    prediction have.
  """
  return [
    {'image': name, **_row(m, spec)}
    for name, m in zip(names_of_images, measured, strict=True)
  ]


def confusion(measured: list[Measured]) -> np.ndarray:
  """Returns the counts of a split: int64 [C, C], the mask's classes in rows."""
  return np.sum([m['confusion'] for m in measured], 0)


def reliability(measured: list[Measured]) -> dict[str, np.ndarray]:
  """Returns a split's reliability diagram, see `calibration.reliability`."""
  return calibration.reliability(_calibration_sums(_stack(measured)))


def _stack(measured: list[Measured]) -> Measured:
  return {name: np.stack([m[name] for m in measured]) for name in measured[0]}


def _calibration_sums(stacked: Measured) -> Measured:
  return {
    name: values.sum(0)
    for name, values in stacked.items()
    if name.startswith('calibration_') or name in ('nll', 'brier')
  }


def _outline_metrics(
  stacked: Measured, names: tuple[str, ...]
) -> dict[str, float]:
  metrics: dict[str, Any] = {}

  def add(score: str, values: np.ndarray) -> None:
    """Averages values [N, C] over images, and their means over classes."""
    of_classes = confusion_lib.nanmean(values, 0)
    metrics.update({f'{score}/{n}': v for n, v in zip(names, of_classes)})
    mean = confusion_lib.nanmean(confusion_lib.nanmean(values, 1))
    metrics[glossary.mean_of(score)] = mean

  boundary, hd95 = stacked['boundary'], stacked['hd95']
  infinite = np.isinf(hd95)
  band, _ = confusion_lib.iou_and_dice(
    stacked['band_confusion'].sum(0, keepdims=True)
  )
  share = lambda counts: confusion_lib.ratio(counts[..., 0], counts[..., 1])
  add('dataset_boundary_iou', share(boundary.sum(0, keepdims=True)))
  add('image_boundary_iou', share(boundary))
  add('dataset_band_iou', band)
  add('image_hd95', np.where(infinite, np.nan, hd95))
  for name, count in zip(names, infinite.sum(0)):
    metrics[f'hd95_infinite/{name}'] = count
  add('image_nsd', share(stacked['nsd']))
  return {name: float(value) for name, value in metrics.items()}


def _object_metrics(stacked: Measured) -> dict[str, float]:
  precision = objects.average_precision(stacked['objects'].sum(0))
  metrics = {'ap50': precision[0], 'ap75': precision[5], 'ap': precision.mean()}
  for name in _PARTITIONS:
    means = confusion_lib.nanmean(stacked[name], 0)
    # With no object at all, every mean is NaN and the first stands for them.
    best = np.argmax(means)
    metrics[name] = means[objects.HALF]
    metrics[f'{name}_best'] = means[best]
    metrics[f'{name}_best_threshold'] = objects.THRESHOLDS[best]
  return {name: float(value) for name, value in metrics.items()}


def _row(m: Measured, spec: Spec) -> dict[str, float]:
  """Returns the metrics of one image."""
  counts = m['confusion']
  names, iou, dice = confusion_lib.class_scores(
    counts, spec.names, spec.foreground
  )
  row: dict[str, Any] = {
    'pixel_accuracy': confusion_lib.ratio(np.trace(counts), counts.sum()),
    'miou': confusion_lib.nanmean(iou[: len(spec.names)]),
  }
  columns = {
    'iou': (names, iou),
    'dice': (names, dice),
    'boundary_iou': (spec.names, confusion_lib.ratio(*m['boundary'].T)),
    'hd95': (spec.names, m['hd95']),
    'nsd': (spec.names, confusion_lib.ratio(*m['nsd'].T)),
    # With the IoU these give the counts of a class's dataset IoU.
    'pixels': (spec.names, counts.sum(1)),
    'predicted_pixels': (spec.names, counts.sum(0)),
  }
  for score, (of, values) in columns.items():
    row.update({f'{score}/{name}': v for name, v in zip(of, values)})
  calibrated = calibration.metrics(m)
  row.update({name: calibrated[name] for name in ('ece', 'nll', 'brier')})
  if spec.instances:
    precision = objects.average_precision(m['objects'])
    row.update({'ap50': precision[0], 'ap': precision.mean()})
    row.update({name: m[name][objects.HALF] for name in _PARTITIONS})
  return {name: float(value) for name, value in row.items()}
