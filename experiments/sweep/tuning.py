"""How a variant is trained: its number of steps, and its tuned value.

Both belong to a variant, not to a seed. They are kept in variants/NAME/, where
points that run at the same time, perhaps on several machines, share the work:
each takes what no other has begun.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.sweep import folder as folders
from experiments.sweep.children import Children, Failed
from experiments.sweep.points import Point, ROOT, Sweep, Tune
from unet_jax.config import fields
from unet_jax.runtime import errors

_log = logging.getLogger('unet_jax.experiments')

MAIN = str(ROOT / 'main.py')
MEASURE = ['-m', 'experiments.sweep.measure']


def await_run(folder: pathlib.Path, children: Children) -> None:
  """Waits until no training has a workdir; may raise Stopped.

  A runner that was killed may have left one behind, which saves its state or,
  where it did not learn of that end, goes on.
  """
  # main.py holds this lock while it trains.
  with children.lock(folder / '.lock', f'training in {folder}'):
    pass


def read_trial(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the metrics of a tuning run, {} if there are none yet."""
  found = folders.read_json(folder / 'eval.json')
  diverged = (folder / 'diverged.json').exists()
  if not (found or diverged):
    return {}
  return {
    'train.num_steps': found.get('step'),
    'eval/dataset_miou': found.get('eval/dataset_miou'),
    'eval/loss': found.get('eval/loss'),
    'diverged': diverged,
  }


def best(trials: Sequence[dict[str, Any]]) -> int | None:
  """Returns the place of the best of all trials, None if no value trains."""
  scores = {
    i: trial['eval/dataset_miou']
    for i, trial in enumerate(trials)
    if not trial['diverged'] and trial['eval/dataset_miou'] is not None
  }
  return max(scores, key=lambda i: scores[i], default=None)


@dataclasses.dataclass(frozen=True)
class Planner:
  """Decides how the points of a sweep are trained.

  Methods raise `Failed` and `Stopped`, see children.py.
  """

  sweep: Sweep
  directory: pathlib.Path
  children: Children

  def plan(self, point: Point) -> dict[str, Any]:
    """Returns a point's overrides, with its tuned value and its steps."""
    share = self._budget_share(point)
    overrides = dict(point.overrides)
    if self.sweep.tune:
      overrides.update(self._tuned(self.sweep.tune, point, share))
    num_steps = round(self.sweep.flat(overrides)['train.num_steps'] * share)
    return {**overrides, **self._schedule(overrides, max(num_steps, 1))}

  def device(self, point: Point) -> str | None:
    """Returns the device that the variant's costs were measured on."""
    folder = folders.of_variant(self.directory, point.variant)
    return folders.read_json(folder / 'costs.json').get('device')

  def _schedule(
    self, overrides: dict[str, Any], num_steps: int
  ) -> dict[str, Any]:
    """Returns the fields of a run of another length; warm-up changes alike."""
    flat = self.sweep.flat(overrides)
    share = num_steps / flat['train.num_steps']
    warmup = fields.warmup_steps(
      flat['optimizer.warmup_steps'], flat['train.num_steps']
    )
    warmup = math.ceil(warmup * share)
    return {'train.num_steps': num_steps, 'optimizer.warmup_steps': warmup}

  def _budget_share(self, point: Point) -> float:
    """Returns the factor of the base's steps that spends the same budget."""
    own = self._train_flops(point.variant, point.without_seed)
    if self.sweep.budget == 'steps':
      return 1.0
    base = self._train_flops('base', {})
    if not own or not base:
      what = 'the compiler of this backend reports no FLOP'
      raise Failed('budget', 1, f'error: {what}; take --budget=steps')
    return base / own

  def _train_flops(
    self, variant: str, overrides: dict[str, Any]
  ) -> float | None:
    """Returns the FLOP of a train step; writes summary.json and costs.json."""
    folder = folders.of_variant(self.directory, variant)
    folder.mkdir(parents=True, exist_ok=True)
    config = self.sweep.main_arguments(overrides)
    arguments = [*MEASURE, 'network', str(folder), *config]
    with self.children.lock(folder / '.lock', f'measuring {variant}'):
      if not all((folder / f'{n}.json').exists() for n in ('summary', 'costs')):
        self.children.run('summary', arguments, folder / 'log.txt')
    return folders.read_json(folder / 'summary.json')['train_step']['flops']

  def _tuned(self, tune: Tune, point: Point, share: float) -> dict[str, Any]:
    """Returns {field: the best value} for a point's variant."""
    num_steps = max(round(tune.steps * share), 1)
    # First what nobody runs, then, one after the other, what others run.
    for wait in (False, True):
      for value in tune.values:
        self._try(tune, point, value, num_steps, wait)
    tried = (self._folder(tune, point, value) for value in tune.values)
    chosen = best([read_trial(folder) for folder in tried])
    if chosen is None:
      what = f'{point.variant}: no {tune.field} of {tune.values} trains'
      raise Failed('tuning', 1, f'error: {what}; change TUNE')
    return {tune.field: tune.values[chosen]}

  def _folder(self, tune: Tune, point: Point, value: Any) -> pathlib.Path:
    return folders.of_trial(self.directory, point.variant, tune.field, value)

  def _try(
    self, tune: Tune, point: Point, value: Any, num_steps: int, wait: bool
  ) -> None:
    """Makes a tuning run, unless it is made or, without `wait`, begun."""
    folder = self._folder(tune, point, value)
    folder.mkdir(parents=True, exist_ok=True)
    what = f'{tune.field}={value} of {point.variant}'
    with contextlib.ExitStack() as stack:
      try:
        # Not the .lock of the workdir, which main.py takes itself.
        lock = self.children.lock(folder / '.tuning', what, wait)
        stack.enter_context(lock)
      except errors.UserError:
        return  # Another point runs it.
      trial = read_trial(folder)
      if trial and (trial['diverged'] or trial['train.num_steps'] == num_steps):
        return
      overrides = {
        **point.overrides,
        **self._schedule(point.overrides, num_steps),
        'seed': tune.seed,
        'data.num_folds': tune.num_folds,
        'data.fold': 0,
        # `auto` is the held-out fold: test images have no say here.
        'data.eval_split': 'auto',
        'data.check': False,
        'eval.every': 0,
        'checkpoint.keep_best': 0,
        'log.num_examples': 0,
        'log.tensorboard': False,
        tune.field: value,
      }
      config = self.sweep.main_arguments(overrides)
      arguments = [MAIN, f'--workdir={folder}', *config]
      await_run(folder, self.children)
      try:
        self.children.run('tuning', arguments, folder / 'log.txt')
      except Failed as e:
        if 'not finite' not in str(e):
          raise
        folders.write_json(folder / 'diverged.json', e.about)
        _log.info('%s: %s', what, e.about['reason'])
