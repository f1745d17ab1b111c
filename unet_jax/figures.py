"""Pictures in a workdir: predictions and curves (matplotlib, as PNG)."""

import os
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from unet_jax import config as config_lib

# Okabe and Ito's colours, which colour-blind readers can tell apart; white is
# what is ignored.
_COLORS = np.array(
  [
    [0, 0, 0],
    [230, 159, 0],
    [86, 180, 233],
    [0, 158, 115],
    [240, 228, 66],
    [0, 114, 178],
    [213, 94, 0],
    [204, 121, 167],
  ],
  np.uint8,
)


def class_colors(num_classes: int) -> np.ndarray:
  """Returns uint8 [num_classes, 3]; beyond eight, from a colour wheel."""
  if num_classes <= len(_COLORS):
    return _COLORS[:num_classes]
  wheel = plt.get_cmap('hsv')(np.arange(num_classes) / num_classes)[:, :3]
  return np.rint(255 * wheel).astype(np.uint8)


def color_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns uint8 RGB [H, W, 3] of classes [H, W]; ignored pixels are white."""
  table = np.full((256, 3), 255, np.uint8)
  table[:num_classes] = class_colors(num_classes)
  return table[mask]


def _center(array: np.ndarray, shape) -> np.ndarray:
  top, left = [(a - b) // 2 for a, b in zip(array.shape, shape)]
  return array[top : top + shape[0], left : left + shape[1]]


def draw_predictions(
  path: str, examples: list[dict[str, np.ndarray]], names: tuple[str, ...]
) -> None:
  """Draws input, mask, prediction and errors side by side, an example a row.

  Args:
    path: of the PNG.
    examples: `image` uint8 [H, W, C], `mask` uint8 [H, W], `prediction` uint8
      [H', W'] (of a `valid` network: the centre).
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
    ignored = mask == config_lib.IGNORE_LABEL
    wrong = (mask != prediction) & ~ignored
    panels = (
      image if image.shape[-1] == 3 else image[..., 0],
      color_mask(mask, len(names)),
      color_mask(prediction, len(names)),
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
  colors = class_colors(len(names)) / 255
  handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in colors]
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
