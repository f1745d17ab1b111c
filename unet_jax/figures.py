"""Pictures in a workdir: predictions and curves (matplotlib, as PNG)."""

import os
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from unet_jax import colors
from unet_jax import config as config_lib


def _center(array: np.ndarray, shape) -> np.ndarray:
  starts = [(a - b) // 2 for a, b in zip(array.shape, shape)]
  return array[tuple(slice(a, a + n) for a, n in zip(starts, shape))]


def draw_predictions(
  path: str, examples: list[dict[str, np.ndarray]], names: tuple[str, ...]
) -> None:
  """Draws input, mask, prediction and errors side by side, an example a row.

  Args:
    path: of the PNG.
    examples: `image` uint8 [H, W, C], `mask` uint8 [H, W], `prediction` uint8
      [H', W'] (of a `valid` network: the centre); of volumes, with an axis D
      before H, the middle slice is drawn.
    names: of the classes, for the legend.
  """
  rows, titles = len(examples), ('image', 'mask', 'prediction', 'errors')
  figure, axes = plt.subplots(
    rows, 4, figsize=(9, 2.3 * rows + 0.5), squeeze=False
  )
  for i, (row, example) in enumerate(zip(axes, examples)):
    prediction = example['prediction']
    image = _center(example['image'], prediction.shape)
    mask = _center(example['mask'], prediction.shape)
    if prediction.ndim == 3:
      middle = len(prediction) // 2
      image, mask, prediction = (
        array[middle] for array in (image, mask, prediction)
      )
    ignored = mask == config_lib.IGNORE_LABEL
    wrong = (mask != prediction) & ~ignored
    panels = (
      image if image.shape[-1] == 3 else image[..., 0],
      colors.color_mask(mask, len(names)),
      colors.color_mask(prediction, len(names)),
      np.where(
        wrong[..., None],
        np.uint8([220, 40, 40]),
        np.where(ignored, 255, 225)[..., None].astype(np.uint8),
      ),
    )
    for axis, panel, title in zip(row, panels, titles):
      axis.imshow(panel, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
      axis.set_xticks([])
      axis.set_yticks([])
      if i == 0:
        axis.set_title(title, fontsize=10)
  handles = [
    plt.Rectangle((0, 0), 1, 1, color=c)
    for c in colors.class_colors(len(names)) / 255
  ]
  labels = list(names)
  if any((e['mask'] == config_lib.IGNORE_LABEL).any() for e in examples):
    handles.append(plt.Rectangle((0, 0), 1, 1, fc='white', ec='gray'))
    labels.append('ignored')
  figure.legend(
    handles,
    labels,
    loc='lower center',
    ncols=min(len(labels), 8),
    fontsize=9,
    frameon=False,
  )
  figure.tight_layout(rect=(0, 0.35 / (2.3 * rows + 0.5), 1, 1))
  _save(figure, path)


def draw_curves(
  path: str, lines: list[dict[str, Any]], best_metric: str
) -> None:
  """Draws loss and evaluation against the step, from metrics.jsonl.

  Args:
    path: of the PNG.
    lines: see `metric_writer.read_metrics`.
    best_metric: the figure of the right-hand panel, beside dataset mIoU.
  """
  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
  for axis, names in (
    (left, ('train/loss', 'eval/loss')),
    (right, dict.fromkeys(('eval/dataset_miou', best_metric.lstrip('-')))),
  ):
    for name in names:
      points = [(m['step'], m[name]) for m in lines if m.get(name) is not None]
      if points:
        marker = 'o' if name.startswith('eval/') else None
        axis.plot(*zip(*points), marker=marker, ms=4, label=name)
    axis.set_xlabel('step')
    axis.grid(alpha=0.3)
    if axis.lines:
      axis.legend(fontsize=9)
  figure.tight_layout()
  _save(figure, path)


def _save(figure, path: str) -> None:
  os.makedirs(os.path.dirname(path), exist_ok=True)
  figure.savefig(path, dpi=110)
  plt.close(figure)
