"""What evaluations print and write."""

import json
import logging
import os
import shlex
import sys
from typing import Any

import jax
import ml_collections
import numpy as np

from unet_jax.config import fields, saved
from unet_jax.evaluation import confusion as confusion_lib
from unet_jax.training import metric_writer

_log = logging.getLogger(__name__)


def figure_names(config) -> list[str]:
  """Returns the names of the figures of evaluations while training."""
  names = fields.class_names(config)
  nothing = np.zeros((1, len(names), len(names)), np.int64)
  scores = confusion_lib.scores(nothing, names, config.eval.foreground)
  return [f'eval/{name}' for name in (*scores, 'loss')]


def settings(config) -> dict[str, Any]:
  """Returns what figures depend on besides the parameters, as in JSON."""
  whole = json.loads(saved.to_json(config))
  return {name: whole[name] for name in ('eval', 'inference')}


def scored_names(figures, names: tuple[str, ...]) -> list[str]:
  """Returns the classes, and the foreground where the figures have it."""
  prefix = 'eval/dataset_iou/'
  scored = [k.removeprefix(prefix) for k in figures if k.startswith(prefix)]
  return [*names, *(name for name in scored if name not in names)]


def format_table(
  figures: dict[str, float],
  names: tuple[str, ...],
  intervals: dict[str, tuple[float, float]] | None = None,
) -> str:
  """Returns the scores of each class, and their means, as aligned text.

  Args:
    figures: `eval/...`, see `metrics.scores`.
    names: of the classes.
    intervals: of confidence, without `eval/`, where they are known.
  """
  reductions = ('dataset_iou', 'image_iou', 'dataset_dice', 'image_dice')
  names = scored_names(figures, names)
  width = max(len(n) for n in (*names, 'mean'))
  lines = [' ' * width + ''.join(f'{r:>14}' for r in reductions)]

  def row(name, keys):
    cells = [figures.get(k) for k in keys]
    shown = ['-' if v is None or v != v else f'{v:.4f}' for v in cells]
    lines.append(f'{name:<{width}}' + ''.join(f'{s:>14}' for s in shown))

  for name in names:
    row(name, [f'eval/{r}/{name}' for r in reductions])
  means = [r.replace('_', '_m') for r in reductions]
  row('mean', [f'eval/{m}' for m in means])
  last = f'pixel accuracy {figures["eval/pixel_accuracy"]:.4f}'
  if 'eval/loss' in figures:
    last += f', loss {figures["eval/loss"]:.4f}'
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
  figures: dict[str, float],
  confusion: np.ndarray,
  examples: list[dict[str, np.ndarray]],
  **about: Any,
) -> None:
  """Writes eval.json and the figure of predictions."""
  if jax.process_index():
    return
  metric_writer.write_json(
    os.path.join(workdir, 'eval.json'),
    {**about, **figures, 'confusion': confusion.tolist()},
  )
  _draw_examples(workdir, config, examples)


def _draw_examples(workdir: str, config, examples) -> None:
  """Draws figures/predictions.png, if there are any."""
  if not examples:
    return
  from unet_jax.reports import plots  # matplotlib is slow to import.

  plots.draw_predictions(
    os.path.join(workdir, 'figures', 'predictions.png'),
    examples,
    fields.class_names(config),
  )


def _note(config) -> str:
  """Says what predictions were compared with."""
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


def write_full(workdir: str, config, about, figures, result) -> None:
  """Writes eval.json, eval.csv, eval.html and figures/ of --mode=evaluate.

  Args:
    workdir: of the run.
    config: of the run.
    about: what was evaluated, for eval.json and the page.
    figures: `eval/...`.
    result: of evaluate.py; with `rows` where images were measured one by one.
  """
  metric_writer.write_json(
    os.path.join(workdir, 'eval.json'),
    {
      **about,
      **figures,
      'intervals': {f'eval/{k}': v for k, v in result['intervals'].items()},
      'confusion': result['confusion'].tolist(),
    },
  )
  names = fields.class_names(config)
  _draw_examples(workdir, config, result['shown'])
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
  plots.draw_confusion(drawn['confusion'], result['confusion'], names)
  plots.draw_reliability(
    drawn['reliability'], result['reliability'], result['figures']['ece']
  )
  report = {
    'title': workdir,
    'about': {
      **{k: v for k, v in about.items() if k != 'settings'},
      'workdir': workdir,
      'command': shlex.join(sys.argv),
    },
    'names': names,
    'metrics': result['figures'],
    'intervals': result['intervals'],
    'confusion': result['confusion'],
    'reliability': result['reliability'],
    'plots': drawn,
    'notes': [_note(config)],
  }
  metric_writer.write_csv(path('eval.csv'), result['rows'])
  pictures = result['pictures']
  page.write(path('eval.html'), report, result['rows'], pictures)
  for kind, examples in pictures.items():
    if examples:
      plots.draw_predictions(path('figures', f'{kind}.png'), examples, names)
  _log.info('wrote %s', path('eval.html'))
