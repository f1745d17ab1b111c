"""What a variant is trained with: its number of steps, and its tuned value.

Both belong to a variant, not to a seed. They are kept in variants/NAME/, where
points that run at the same time, perhaps on several machines, share the work:
each takes what no other has begun.
"""

import contextlib
import logging
import math
import pathlib
from typing import Any

from experiments import files, names, sweeps
from experiments.children import Children, Failed
from experiments.sweeps import Point, Sweep
from unet_jax import errors, locks

_log = logging.getLogger('unet_jax.experiments')

MAIN = str(sweeps.ROOT / 'main.py')


def variant_folder(directory: pathlib.Path, variant: str) -> pathlib.Path:
  return directory / 'variants' / variant


def describe(
  sweep: Sweep,
  variant: str,
  overrides: dict[str, Any],
  directory: pathlib.Path,
  children: Children,
) -> dict[str, Any]:
  """Returns summary.json of a variant, and makes it and costs.json if need be.

  Args:
    sweep: that it belongs to.
    variant: its name.
    overrides: of its points, without the seed.
    directory: of the sweep.
    children: runs it.

  Raises:
    Failed, Stopped: see children.py.
  """
  folder = variant_folder(directory, variant)
  folder.mkdir(parents=True, exist_ok=True)
  arguments = [f'--workdir={folder}', *sweep.main_arguments(overrides)]
  log = folder / 'log.txt'
  what = f'what {variant} costs'
  with locks.lock(folder / '.lock', what, pause=children.pause):
    if not (folder / 'summary.json').exists():
      # The last of a flag counts: what a step costs is in the tables.
      compiled = [*arguments, '--config.summary.compile=true']
      children.run('summary', [MAIN, '--mode=summary', *compiled], log)
    if not (folder / 'costs.json').exists():
      children.run('costs', ['-m', 'experiments.costs', *arguments], log)
  return files.read_json(folder / 'summary.json')


def device(directory: pathlib.Path, variant: str) -> str | None:
  """Returns what its figures of costs.json were measured on, if they were."""
  folder = variant_folder(directory, variant)
  return files.read_json(folder / 'costs.json').get('device')


def await_workdir(folder: pathlib.Path, children: Children) -> None:
  """Waits until no training has a workdir.

  A runner that was killed may have left one behind, which saves its state or,
  where nothing told it of that end, goes on.

  Raises:
    Stopped: see children.py.
  """
  # What main.py holds while it trains.
  path, what = folder / '.lock', f'training in {folder}'
  with locks.lock(path, what, pause=children.pause):
    pass


def schedule(
  sweep: Sweep, overrides: dict[str, Any], num_steps: int
) -> dict[str, Any]:
  """Returns the fields of a run of other length: its warm-up changes alike."""
  flat = sweep.flat(overrides)
  share = num_steps / flat['train.num_steps']
  warmup = flat['optimizer.warmup_steps']
  return {
    'train.num_steps': num_steps,
    'optimizer.warmup_steps': math.ceil(warmup * share),
  }


def budget_share(
  sweep: Sweep, point: Point, directory: pathlib.Path, children: Children
) -> float:
  """Returns the factor of the base's steps that spends as much.

  Raises:
    Failed, Stopped: see children.py.
  """
  own = describe(sweep, point.variant, point.without_seed, directory, children)
  if sweep.budget == 'steps':
    return 1.0
  base = describe(sweep, 'base', {}, directory, children)
  base_flops, own_flops = (s['train_step']['flops'] for s in (base, own))
  if not own_flops or not base_flops:
    raise Failed(
      'budget',
      1,
      'error: the compiler of this backend tells no FLOP; take --budget=steps',
    )
  return base_flops / own_flops


def tuning_folder(
  directory: pathlib.Path, sweep: Sweep, variant: str, value: Any
) -> pathlib.Path:
  """The workdir of the run that tries a value."""
  field = sweep.tune.field
  name = names.point_name({field: value}, names.short_names([field]))
  return variant_folder(directory, variant) / name


def score(folder: pathlib.Path, num_steps: int) -> float | None:
  """Returns the dataset mIoU that a tuning run has reached.

  -inf where its loss was not finite; None where it has not ended.
  """
  if (folder / 'diverged.json').exists():
    return -math.inf
  found = files.read_json(folder / 'eval.json')
  if found.get('step') != num_steps:
    return None
  value = found['eval/dataset_miou']
  return -math.inf if value is None else value


def tune(
  sweep: Sweep,
  point: Point,
  share: float,
  directory: pathlib.Path,
  children: Children,
) -> dict[str, Any]:
  """Returns {field: the best value} for a point's variant.

  Args:
    sweep: with `tune`, or without: then {} is returned.
    point: one of the variant's.
    share: see `budget_share`.
    directory: of the sweep.
    children: runs what no other point has run or is running.

  Raises:
    Failed: a run failed for another reason than a loss that is not finite, or
      no value is any good.
    Stopped: see children.py.
  """
  if sweep.tune is None:
    return {}
  values = sweep.tune.values
  num_steps = tuning_steps(sweep, share)
  folders = [
    tuning_folder(directory, sweep, point.variant, value) for value in values
  ]
  # First what nobody runs, then, one after the other, what others run.
  for wait in (False, True):
    for value, folder in zip(values, folders):
      _try(sweep, point, value, num_steps, folder, children, wait)
  scores = [score(folder, num_steps) for folder in folders]
  best = max(scores)
  if best == -math.inf:
    raise Failed(
      'tuning',
      1,
      f'error: {point.variant}: no {sweep.tune.field} of {values} trains; '
      'change TUNE',
    )
  return {sweep.tune.field: values[scores.index(best)]}


def tuning_steps(sweep: Sweep, share: float) -> int:
  return max(round(sweep.tune.steps * share), 1)


def _try(sweep, point, value, num_steps, folder, children, wait: bool) -> None:
  """Makes one tuning run, unless it is made or, without `wait`, begun."""
  folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    what = f'{sweep.tune.field}={value} of {point.variant}'
    try:
      # Not the .lock of the workdir, which main.py takes itself.
      stack.enter_context(
        locks.lock(folder / '.tuning', what, wait, children.pause)
      )
    except errors.UserError:
      return  # Another point runs it.
    if score(folder, num_steps) is not None:
      return
    overrides = {
      **point.overrides,
      **schedule(sweep, point.overrides, num_steps),
      'seed': sweep.tune.seed,
      'data.num_folds': sweep.tune.num_folds,
      'data.fold': 0,
      # `auto` is the fold that is held out: test images have no say here.
      'data.eval_split': 'auto',
      'data.check': False,
      'eval.every': 0,
      'checkpoint.keep_best': 0,
      'log.num_examples': 0,
      'log.tensorboard': False,
      sweep.tune.field: value,
    }
    arguments = [
      MAIN,
      f'--workdir={folder}',
      *sweep.main_arguments(overrides),
    ]
    await_workdir(folder, children)
    try:
      children.run('tuning', arguments, folder / 'log.txt')
    except Failed as e:
      if 'not finite' not in e.about['reason']:
        raise
      files.write_json(folder / 'diverged.json', e.about)
      _log.info('%s: %s', what, e.about['reason'])
