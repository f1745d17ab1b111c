"""Cross-validation: a training for each fold, and the scores of all.

Each fold has a workdir of its own, WORKDIR/fold_0, WORKDIR/fold_1, ..., which
is that of a training run with data.fold set: to be continued, evaluated or
looked at as any other.
"""

import contextlib
import gc
import json
import logging
import os
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from unet_jax import evaluate, train
from unet_jax.config import fields
from unet_jax.config import saved as saved_lib
from unet_jax.evaluation import confusion as confusion_lib
from unet_jax.evaluation import files
from unet_jax.runtime import errors, program
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import checkpoint, metric_writer

_log = logging.getLogger(__name__)

# Further figures that are printed, where an evaluation has them.
_TOLD = (
  'loss',
  'dataset_boundary_miou',
  'image_mhd95',
  'image_mnsd',
  'ece',
  'v_rand',
  'v_info',
  'v_rand_thin_best',
  'v_info_thin_best',
  'ap50',
  'ap',
)


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Trains what is not yet trained, and prints and writes the scores of all.

  Args:
    config: a valid config with data.num_folds; data.fold is set for each run.
    workdir: absolute path; gets config.json, the folders of the folds, and
      cross_validation.json.

  Raises:
    UserError: something that the user can mend, in the fold that is named.
    SystemExit: as `train.run`; the same command goes on from there.
  """
  program.initialize(fields.cache_dir(config))
  mesh_lib.check_processes(config, 'cross_validate')
  folds = [_of_fold(config, i) for i in range(config.data.num_folds)]
  workdirs = [os.path.join(workdir, f'fold_{i}') for i in range(len(folds))]
  for fold_config, fold_workdir in zip(folds, workdirs):
    _check_resumable(fold_config, fold_workdir)
  program.make_workdir(workdir)
  metric_writer.write_json(
    os.path.join(workdir, 'config.json'), config.to_dict()
  )
  for i, (fold_config, fold_workdir) in enumerate(zip(folds, workdirs)):
    if _is_evaluated(fold_config, fold_workdir):
      _log.info('fold %d of %d is done: %s', i, len(folds), fold_workdir)
      continue
    if jax.process_index() == 0:
      print(f'fold {i} of {len(folds)}, {fold_workdir}', flush=True)
    try:
      train.run(fold_config, fold_workdir)
      evaluate.run(fold_config, fold_workdir)
    except errors.UserError as e:
      raise errors.UserError(f'fold {i}: {e}') from e
    # The state of a finished run is held by reference cycles; it must not lie
    # on the devices beside that of the next.
    gc.collect()
  if jax.process_index() == 0:
    _report(config, workdir, [_read_evaluation(w) for w in workdirs])


def _of_fold(config, fold: int) -> ml_collections.ConfigDict:
  """The config of a fold's run, whose last state is what is evaluated."""
  config = config.copy_and_resolve_references()
  config.data.fold = fold
  config.eval.split = ''
  config.inference.ensemble = ()
  config.checkpoint.update(which='latest', step=-1)
  return config


def _check_resumable(config, workdir: str) -> None:
  """Refuses another config before any fold is trained."""
  if not os.path.isdir(os.path.join(workdir, 'checkpoints')):
    return
  with contextlib.closing(
    checkpoint.Checkpoints(workdir, config, read_only=True)
  ) as checkpoints:
    if checkpoints.steps:
      saved = checkpoints.saved_config(checkpoints.steps[-1])
      saved_lib.check_resumable(saved, config, workdir)


def _read_evaluation(workdir: str) -> dict[str, Any]:
  path = pathlib.Path(workdir, 'eval.json')
  return json.loads(path.read_text()) if path.exists() else {}


def _is_evaluated(config, workdir: str) -> bool:
  """Whether eval.json is the full evaluation of the training on its fold."""
  found = _read_evaluation(workdir)
  has_average = config.optimizer.ema_decay > 0
  expected = {
    'step': config.train.num_steps,
    'split': f'fold_{config.data.fold}',
    'params': config.eval.params if has_average else 'raw',
    'settings': files.settings(config),
  }
  # Not a comparison of sets: settings are dicts themselves.
  done = all(found.get(name) == value for name, value in expected.items())
  # As process 0 sees it, which writes the file; all go the same way.
  return bool(multihost_utils.broadcast_one_to_all(np.int32(done)))


def summarize(
  evaluations: list[dict[str, Any]], config: ml_collections.ConfigDict
) -> dict[str, dict[str, Any]]:
  """Joins the evaluations of all folds.

  Args:
    evaluations: what eval.json of each fold has; a score that is not defined is
      None.
    config: of the cross-validation.

  Returns:
    {figure: {'mean', 'std', 'folds'[, 'pooled']}} of each figure `eval/...`
    that all folds have: mean and standard deviation (divided by K - 1) over
    those K folds where it is defined, the values of all folds, and, of what
    follows from counts, the one of all examples together, each counted once,
    where it was held out.
  """
  confusion = np.sum([e['confusion'] for e in evaluations], 0, np.int64)
  names = fields.class_names(config)
  pooled = {
    **confusion_lib.scores(confusion[None], names, config.eval.foreground),
    **confusion_lib.further_scores(confusion[None], names),
  }
  result = {}
  for name in evaluations[0]:
    known_to_all = all(name in e for e in evaluations)
    if (
      not name.startswith('eval/') or name == 'eval/seconds' or not known_to_all
    ):
      continue
    values = [e[name] for e in evaluations]
    known = np.array([v for v in values if v is not None])
    result[name] = {
      'mean': float(known.mean()) if len(known) else None,
      'std': float(known.std(ddof=1)) if len(known) > 1 else None,
      'folds': values,
    }
    short = name.removeprefix('eval/')
    # The counts of all images together say nothing of means over images.
    if short in pooled and not short.startswith('image_'):
      result[name]['pooled'] = pooled[short]
  return result


def format_table(
  figures: dict[str, dict[str, Any]], names: tuple[str, ...]
) -> str:
  """Returns mean +- standard deviation and pooled scores, as aligned text.

  Args:
    figures: see `summarize`.
    names: of the classes.
  """
  columns = [
    (reduction, pooled)
    for pooled in (False, True)
    for reduction in ('dataset_iou', 'image_iou', 'dataset_dice', 'image_dice')
    if not (pooled and reduction.startswith('image_'))
  ]
  names = files.scored_names(figures, names)
  width = max(len(n) for n in (*names, 'mean'))
  headers = [
    f'{reduction.replace("dataset", "pooled"):>14}'
    if pooled
    else f'{reduction:>18}'
    for reduction, pooled in columns
  ]
  lines = [' ' * width + ''.join(headers)]
  rows = {name: f'{{}}/{name}' for name in names}
  for name, key in {**rows, 'mean': '{}'}.items():
    cells = []
    for reduction, pooled in columns:
      score = reduction if name in rows else reduction.replace('_', '_m')
      figure = figures['eval/' + key.format(score)]
      cells.append(
        f'{_shown(figure["pooled"]):>14}'
        if pooled
        else f'{_spread(figure):>18}'
      )
    lines.append(f'{name:<{width}}' + ''.join(cells))
  accuracy = figures['eval/pixel_accuracy']
  lines.append(
    f'pixel accuracy {_spread(accuracy)}, pooled {_shown(accuracy["pooled"])}'
  )
  lines += [
    f'{name} {_spread(figures[f"eval/{name}"])}'
    for name in _TOLD
    if f'eval/{name}' in figures
  ]
  return '\n'.join(lines)


def _shown(value: float | None) -> str:
  return '-' if value is None or value != value else f'{value:.4f}'


def _spread(figure: dict[str, Any]) -> str:
  return f'{_shown(figure["mean"])} +- {_shown(figure["std"])}'


def _report(config, workdir: str, evaluations) -> None:
  """Writes cross_validation.json and prints the table."""
  figures = summarize(evaluations, config)
  counts = [e['num_examples'] for e in evaluations]
  path = os.path.join(workdir, 'cross_validation.json')
  metric_writer.write_json(
    path,
    {
      'num_folds': len(evaluations),
      'split': config.data.train_split,
      'step': config.train.num_steps,
      'num_examples': counts,
      'figures': figures,
    },
  )
  print(
    f'{len(evaluations)} folds of {config.data.train_split}, {sum(counts)} '
    'images, each evaluated by the network that was not trained on it; mean '
    '+- standard deviation over the folds, and pooled over the images'
  )
  print(format_table(figures, fields.class_names(config)))
  _log.info('wrote %s', path)
