"""Cross-validation: a training for each fold, and the scores of all.

Each fold has its own workdir, WORKDIR/fold_0, WORKDIR/fold_1, ..., that of a
training run with data.fold set, which any other mode takes as well.
"""

import contextlib
import dataclasses
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
from unet_jax.data import identity, sources
from unet_jax.evaluation import confusion, files
from unet_jax.reports import text_table
from unet_jax.runtime import errors, program, whole_files
from unet_jax.training import checkpoint

_log = logging.getLogger(__name__)

# Further metrics that are printed, where an evaluation has them.
_FURTHER = (
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
  """Trains the folds that are not done, and writes and prints their scores.

  Args:
    config: a valid config with data.num_folds; data.fold is set for each run.
    workdir: absolute path; gets config.json, the folders of the folds, and
      cross_validation.json.

  Raises:
    UserError: something that the user can fix, in the fold that is named.
    SystemExit: as `train.run`; the same command continues from there.
  """
  program.initialize(fields.cache_dir(config))
  folds = [_of_fold(config, i) for i in range(config.data.num_folds)]
  workdirs = [os.path.join(workdir, f'fold_{i}') for i in range(len(folds))]
  for fold_config, fold_workdir in zip(folds, workdirs):
    _check_resumable(fold_config, fold_workdir)
  whole_files.make_workdir(workdir)
  whole_files.write_json(os.path.join(workdir, 'config.json'), config.to_dict())
  for i, (fold_config, fold_workdir) in enumerate(zip(folds, workdirs)):
    if _is_evaluated(fold_config, fold_workdir):
      _log.info('fold %d of %d is done: %s', i, len(folds), fold_workdir)
      continue
    if jax.process_index() == 0:
      print(f'fold {i} of {len(folds)}, {fold_workdir}', flush=True)
    try:
      train.run(fold_config, fold_workdir, _cut(workdirs, i))
      evaluate.run(fold_config, fold_workdir)
    except errors.UserError as e:
      raise errors.UserError(f'fold {i}: {e}') from e
    # Reference cycles hold the state of a finished run; free its device memory
    # before the next run.
    gc.collect()
  if jax.process_index() == 0:
    _report(config, workdir, [_read_evaluation(w) for w in workdirs])


def _of_fold(
  config: ml_collections.ConfigDict, fold: int
) -> ml_collections.ConfigDict:
  """Returns the config of a fold's run, whose last state is evaluated."""
  config = config.copy_and_resolve_references()
  config.data.fold = fold
  config.eval.split = ''
  config.inference.ensemble = ()
  config.checkpoint.update(which='latest', step=-1)
  return config


def _cut(workdirs: list[str], fold: int) -> identity.Record | None:
  """Returns how the folds that were trained cut the images, for another."""
  for workdir in workdirs:
    record = identity.read(workdir, continues=True)
    # Without a checkpoint, nothing depends on it.
    if record and any(pathlib.Path(workdir, 'checkpoints').glob('[0-9]*')):
      # What that fold trained on is another part.
      return dataclasses.replace(
        record, held_out=f'fold_{fold}', pixels=frozenset()
      )
  return None


def _check_resumable(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Refuses another config before any fold is trained."""
  if not os.path.isdir(os.path.join(workdir, 'checkpoints')):
    return
  with contextlib.closing(
    checkpoint.Checkpoints(workdir, config, read_only=True)
  ) as checkpoints:
    if checkpoints.steps:
      saved = checkpoints.saved_config(*checkpoints.select('latest', -1))
      if identity.read(workdir) is not None:
        identity.continued(workdir, config, saved)
      saved_lib.check_resumable(saved, config, workdir)


def _read_evaluation(workdir: str) -> dict[str, Any]:
  path = pathlib.Path(workdir, 'eval.json')
  return json.loads(path.read_text()) if path.exists() else {}


def _is_evaluated(config: ml_collections.ConfigDict, workdir: str) -> bool:
  """Whether eval.json is the full evaluation of the training on its fold."""
  found = _read_evaluation(workdir)
  has_ema = config.optimizer.ema_decay > 0
  expected = {
    'step': config.train.num_steps,
    'split': f'fold_{config.data.fold}',
    'params': config.eval.params if has_ema else 'raw',
    'settings': files.settings(config),
  }
  # Not a comparison of sets: settings are dicts themselves.
  done = all(found.get(name) == value for name, value in expected.items())
  done = done and not _has_changed(config, workdir)
  # As process 0 sees it, which writes the file; all go the same way.
  return bool(multihost_utils.broadcast_one_to_all(np.int32(done)))


def _has_changed(config: ml_collections.ConfigDict, workdir: str) -> bool:
  """Whether images or masks are others than when a fold was evaluated."""
  record = identity.read(workdir)
  if record is None:  # Of an older version.
    return False
  source = sources.make_source(config, 'auto')
  assert isinstance(source, sources.Subset)
  placed = record.place(identity.images_of(source.whole, record))
  return placed is None or bool(placed.changed or placed.remasked)


def summarize(
  evaluations: list[dict[str, Any]], config: ml_collections.ConfigDict
) -> dict[str, dict[str, Any]]:
  """Joins the evaluations of all folds.

  Args:
    evaluations: what eval.json of each fold has; a score that is not defined is
      None.

  Returns:
    {metric: {'mean', 'std', 'folds'[, 'pooled']}} of each `eval/...` that all
    folds have: mean and standard deviation (divided by K - 1) over the K folds
    where it is defined, the values of all folds and, for metrics of counts, the
    one of all examples together, each counted once, where it was held out.
  """
  counts = np.array([e['confusion'] for e in evaluations], np.int64).sum(0)
  names = fields.class_names(config)
  pooled = {
    **confusion.scores(counts[None], names, config.eval.foreground),
    **confusion.further_scores(counts[None], names),
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
    # Pooled counts do not give means over images.
    if short in pooled and not short.startswith('image_'):
      result[name]['pooled'] = pooled[short]
  return result


# Title, metric of a class, that of the mean, and whether it is pooled.
_COLUMNS = (
  ('dataset_iou', 'eval/dataset_iou/{}', 'eval/dataset_miou', False),
  ('image_iou', 'eval/image_iou/{}', 'eval/image_miou', False),
  ('dataset_dice', 'eval/dataset_dice/{}', 'eval/dataset_mdice', False),
  ('image_dice', 'eval/image_dice/{}', 'eval/image_mdice', False),
  ('pooled_iou', 'eval/dataset_iou/{}', 'eval/dataset_miou', True),
  ('pooled_dice', 'eval/dataset_dice/{}', 'eval/dataset_mdice', True),
)


def format_table(
  metrics: dict[str, dict[str, Any]], names: tuple[str, ...]
) -> str:
  """Returns mean +- standard deviation and pooled scores, as aligned text."""

  def cell(key: str, is_pooled: bool) -> str:
    metric = metrics[key]
    return files.shown(metric['pooled']) if is_pooled else _spread(metric)

  rows = [['', *(title for title, *_ in _COLUMNS)]]
  for name in files.scored_names(metrics, names):
    cells = (cell(key.format(name), pooled) for _, key, _, pooled in _COLUMNS)
    rows.append([name, *cells])
  rows.append(['mean', *(cell(key, pooled) for *_, key, pooled in _COLUMNS)])
  lines = text_table.aligned(rows, width=12)
  accuracy = metrics['eval/pixel_accuracy']
  pooled = files.shown(accuracy['pooled'])
  lines.append(f'pixel accuracy {_spread(accuracy)}, pooled {pooled}')
  lines += [
    f'{name} {_spread(metrics[f"eval/{name}"])}'
    for name in _FURTHER
    if f'eval/{name}' in metrics
  ]
  return '\n'.join(lines)


def _spread(metric: dict[str, Any]) -> str:
  return f'{files.shown(metric["mean"])} +- {files.shown(metric["std"])}'


def _report(
  config: ml_collections.ConfigDict,
  workdir: str,
  evaluations: list[dict[str, Any]],
) -> None:
  """Writes cross_validation.json and prints the table."""
  metrics = summarize(evaluations, config)
  counts = [e['num_examples'] for e in evaluations]
  path = os.path.join(workdir, 'cross_validation.json')
  whole_files.write_json(
    path,
    {
      'num_folds': len(evaluations),
      'split': config.data.train_split,
      'step': config.train.num_steps,
      'num_examples': counts,
      'figures': metrics,
    },
  )
  print(
    f'{len(evaluations)} folds of {config.data.train_split}, {sum(counts)} '
    'images, each evaluated by the network that was not trained on it; mean '
    '+- standard deviation over the folds, and pooled over the images'
  )
  print(format_table(metrics, fields.class_names(config)))
  _log.info('wrote %s', path)
