"""The table and the files of evaluations."""

import json
import logging
import os
import shlex
import sys
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections
import numpy as np

from unet_jax.config import fields, saved
from unet_jax.reports import sheets, text_table
from unet_jax.runtime import whole_files

_log = logging.getLogger(__name__)


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the sections that change metrics, as in JSON."""
  whole = json.loads(saved.to_json(config))
  return {name: whole[name] for name in ('eval', 'inference')}


def scored_names(metrics: Iterable[str], names: tuple[str, ...]) -> list[str]:
  """Returns the classes, and the foreground where the metrics have it."""
  prefix = 'eval/dataset_iou/'
  scored = [k.removeprefix(prefix) for k in metrics if k.startswith(prefix)]
  return [*names, *(name for name in scored if name not in names)]


def shown(value: float | None) -> str:
  """Returns a score for a table; '-' where there is none."""
  return '-' if value is None or value != value else f'{value:.4f}'


def format_table(
  metrics: dict[str, float],
  names: tuple[str, ...],
  intervals: dict[str, tuple[float, float]] | None = None,
) -> str:
  """Returns the scores of each class, and their means, as aligned text.

  Args:
    metrics: `eval/...`, see `confusion.scores`.
    intervals: of confidence, by names without `eval/`.
  """
  reductions = ('dataset_iou', 'image_iou', 'dataset_dice', 'image_dice')
  cells = lambda keys: [shown(metrics.get(f'eval/{key}')) for key in keys]
  rows = [['', *reductions]]
  for name in scored_names(metrics, names):
    rows.append([name, *cells(f'{r}/{name}' for r in reductions)])
  rows.append(['mean', *cells(r.replace('_', '_m') for r in reductions)])
  lines = text_table.aligned(rows, width=12)
  last = f'pixel accuracy {metrics["eval/pixel_accuracy"]:.4f}'
  if 'eval/loss' in metrics:
    last += f', loss {metrics["eval/loss"]:.4f}'
  lines.append(last)
  if intervals:
    low, high = intervals['dataset_miou']
    lines.append(
      f'dataset mIoU {low:.4f} to {high:.4f} in 95 % of resamples of the images'
    )
  return '\n'.join(lines)


def write(
  workdir: str,
  config: ml_collections.ConfigDict,
  metrics: dict[str, Any],
  confusion: np.ndarray,
  examples: list[dict[str, np.ndarray]],
  **about: Any,
) -> None:
  """Writes eval.json and, if there are examples, the plot of predictions."""
  if jax.process_index():
    return
  whole_files.write_json(
    os.path.join(workdir, 'eval.json'),
    {**about, **metrics, 'confusion': confusion.tolist()},
  )
  if not examples:
    return
  sheets.write_predictions(
    os.path.join(workdir, 'figures', 'predictions.png'),
    examples,
    fields.class_names(config),
  )


def _note(config: ml_collections.ConfigDict) -> str:
  """Returns a line on the masks and pixels of a comparison."""
  if config.eval.resolution == 'original':
    return (
      'Logits were brought to the size of each image and compared with its '
      'mask as it is stored; distances are in its pixels.'
    )
  size = ' x '.join(map(str, config.data.image_size))
  return (
    f'Compared at the resolution of the network, {size} pixels, to which '
    'images and masks were resized; distances are in these pixels.'
  )


def write_full(
  workdir: str,
  config: ml_collections.ConfigDict,
  about: dict[str, Any],
  metrics: dict[str, float],
  result: dict[str, Any],
) -> None:
  """Writes eval.json, eval.csv, eval.html and figures/ of --mode=evaluate.

  Args:
    about: the checkpoint and the split, for eval.json and the page.
    metrics: `eval/...`.
    result: of evaluate.py; with `rows` where images were measured one by one.
  """
  names, confusion = fields.class_names(config), result['confusion']
  intervals = {f'eval/{k}': v for k, v in result['intervals'].items()}
  stored = {**metrics, 'intervals': intervals}
  write(workdir, config, stored, confusion, result['shown'], **about)
  if 'rows' not in result:
    return
  # Matplotlib is slow to import.
  from unet_jax.evaluation import page
  from unet_jax.reports import plots

  path = lambda *parts: os.path.join(workdir, *parts)
  drawn = {
    name: path('figures', f'{name}.png')
    for name in ('confusion', 'reliability')
  }
  plots.draw_confusion(drawn['confusion'], confusion, names)
  plots.draw_reliability(
    drawn['reliability'], result['reliability'], result['metrics']['ece']
  )
  report = {
    'title': workdir,
    'about': {
      **{k: v for k, v in about.items() if k != 'settings'},
      'workdir': workdir,
      'command': shlex.join(sys.argv),
    },
    'names': names,
    **{
      key: result[key]
      for key in ('metrics', 'intervals', 'confusion', 'reliability')
    },
    'plots': drawn,
    'notes': [_note(config)],
  }
  whole_files.write_csv(path('eval.csv'), result['rows'])
  pictures = result['pictures']
  page.write(path('eval.html'), report, result['rows'], pictures)
  for kind, examples in pictures.items():
    if examples:
      sheets.write_predictions(path('figures', f'{kind}.png'), examples, names)
  _log.info('wrote %s', path('eval.html'))
