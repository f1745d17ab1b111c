"""Plots of a workdir as PNG files: curves, confusion, calibration.

Pages show the same files.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

# Above this many classes a confusion matrix has no counts.
_ROOMY_CLASSES = 10
# Longest printed name of a class, in characters.
_LABEL = 24


def draw_curves(
  path: str, lines: list[dict[str, Any]], best_metric: str
) -> None:
  """Draws losses, and dataset mIoU beside the best metric, by the step."""
  figure, (left, right) = plt.subplots(1, 2, sharex=True, figsize=(9, 3.2))
  for axis, names in (
    (left, ('train/loss', 'eval/loss')),
    (right, dict.fromkeys(('eval/dataset_miou', best_metric.lstrip('-')))),
  ):
    for name in names:
      points = [(m['step'], m[name]) for m in lines if m.get(name) is not None]
      if points:
        # A line of one point cannot be seen.
        few = len(points) == 1 or name.startswith('eval/')
        marker = 'o' if few else None
        axis.plot(*zip(*points), marker=marker, ms=4, label=name)
    axis.set_xlabel('step')
    axis.locator_params(axis='x', integer=True, nbins=6)
    axis.grid(alpha=0.3)
    if axis.lines:
      axis.legend(fontsize=9)
  figure.tight_layout()
  _save(figure, path)


def draw_confusion(
  path: str, confusion: np.ndarray, names: Sequence[str]
) -> None:
  """Draws a confusion matrix as a heat map of the shares of its rows.

  It has integers [C, C]: rows are the mask's classes, columns the prediction's.
  """
  confusion = np.asarray(confusion, np.int64)
  totals = confusion.sum(1, keepdims=True)
  shares = np.divide(
    confusion, totals, out=np.zeros(confusion.shape), where=totals > 0
  )
  cells = len(names)
  # Counts need room; of many classes the percent alone can be read.
  has_counts = cells <= _ROOMY_CLASSES
  side = cells * (0.9 if has_counts else 0.34) + 2.2
  figure, axis = plt.subplots(figsize=(side + 0.6, side), layout='compressed')
  drawn = axis.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  for i, j in np.ndindex(confusion.shape):
    n, total = int(confusion[i, j]), int(totals[i, 0])
    if not total:
      text = '–'
    elif has_counts:
      text = f'{100 * shares[i, j]:.1f} %\n{n:,}'
    else:
      text = _whole_percent(n, total)
    color = 'white' if shares[i, j] > 0.5 else 'black'
    size = 8 if has_counts else 6.5
    axis.text(j, i, text, ha='center', va='center', color=color, fontsize=size)
  # A name is no formula, though it may hold dollars.
  labels = [n if len(n) <= _LABEL else f'{n[: _LABEL - 1]}…' for n in names]
  style: dict[str, Any] = {
    'fontsize': 9 if has_counts else 7,
    'parse_math': False,
  }
  axis.set_xticks(range(cells), labels, rotation=45, ha='right', **style)
  axis.set_yticks(range(cells), labels, **style)
  axis.set_xlabel('prediction')
  axis.set_ylabel('mask')
  bar = figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.03)
  bar.set_label('share of the row' + ('' if has_counts else '; cells in %'))
  _save(figure, path)


def _whole_percent(n: int, total: int) -> str:
  """Returns 0 and 100 for none and for all alone, else 1 to 99."""
  share = round(100 * n / total)
  return str(min(max(share, 1), 99) if 0 < n < total else share)


def draw_reliability(
  path: str, reliability: Mapping[str, np.ndarray], ece: float
) -> None:
  """Draws accuracy against confidence, above the histogram of confidences.

  Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599.

  Args:
    reliability: of bins of equal width in 0..1: `count`, `confidence` (mean)
      and `accuracy`, each [N]. A bar is a bin's accuracy, a dot lies at its
      mean confidence; an empty bin has neither.
    ece: expected calibration error, for the title.
  """
  count = np.asarray(reliability['count'], float)
  filled = count > 0
  confidence, accuracy = (
    np.asarray(reliability[key], float)[filled]
    for key in ('confidence', 'accuracy')
  )
  width = 1 / len(count)
  centers = (np.arange(len(count)) + 0.5)[filled] * width
  figure, (upper, lower) = plt.subplots(
    2, 1, figsize=(4.2, 5.2), sharex=True, height_ratios=(3, 1)
  )
  upper.bar(centers, accuracy, 0.94 * width, alpha=0.7)
  upper.plot((0, 1), (0, 1), '--', color='gray', lw=1, label='calibrated')
  upper.plot(confidence, accuracy, 'ko', ms=3, label='mean of a bin')
  upper.set_ylim(0, 1)
  upper.set_ylabel('accuracy')
  upper.set_title(f'ECE {ece:.4f}', fontsize=10)
  upper.legend(fontsize=9, loc='upper left')
  lower.bar(centers, count[filled] / max(count.sum(), 1), 0.94 * width)
  lower.set_xlim(0, 1)
  lower.set_xlabel('confidence')
  lower.set_ylabel('share of pixels')
  for axis in (upper, lower):
    axis.grid(alpha=0.3)
  figure.tight_layout()
  _save(figure, path)


def _save(figure: Figure, path: str) -> None:
  os.makedirs(os.path.dirname(path), exist_ok=True)
  figure.savefig(path, dpi=110)
  plt.close(figure)
