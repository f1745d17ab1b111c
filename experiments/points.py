"""One point of a sweep: trained, evaluated, measured, and recorded."""

import logging
import pathlib
import time
from typing import Any

from experiments import files, sweeps, tuning
from experiments.children import Children, Failed, Stopped
from experiments.sweeps import Point, Sweep
from unet_jax import config as config_lib
from unet_jax import locks

_log = logging.getLogger('unet_jax.experiments')


def point_folder(directory: pathlib.Path, point: Point) -> pathlib.Path:
  """The workdir of a point."""
  return directory / 'points' / point.name


def record_of(directory: pathlib.Path, point: Point) -> dict[str, Any]:
  """Returns what point.json holds; of a point that never ended, {}.

  `status` is `done`, `failed` (with what children.Failed tells) or `stopped`,
  `seconds` what each stage took, `machine` what it ran on last: `cores` and
  `jobs` as in children.Children, `device` as in costs.json.
  """
  return files.read_json(point_folder(directory, point) / 'point.json')


def warn_of_cores(
  sweep: Sweep, directory: pathlib.Path, children: Children
) -> None:
  """Tells where earlier calls had another number of cores for a point.

  XLA shares sums out over them, so that figures differ by rounding; those of
  accelerators are taken not to.
  """
  machines = [
    record['machine']
    for record in (record_of(directory, point) for point in sweep.points)
    if 'machine' in record
  ]
  now = children.machine['cores']
  before = {m['cores'] for m in machines if m['device'] == 'cpu'} - {now}
  if before:
    _log.warning(
      'points of earlier calls had %s cores each, now %d: their figures and '
      'those to come are not bit-equal to those of one machine and one --jobs',
      ' or '.join(map(str, sorted(before))),
      now,
    )


def run(
  sweep: Sweep, point: Point, directory: pathlib.Path, children: Children
) -> dict[str, Any]:
  """Runs what is missing of a point; its end is recorded in point.json.

  Args:
    sweep: that it belongs to.
    point: which is trained, evaluated in full and measured.
    directory: of the sweep.
    children: run the programs.

  Returns:
    See `record_of`.

  Raises:
    Stopped: a signal came; another call goes on.
  """
  if children.signal is not None:
    raise Stopped
  folder = point_folder(directory, point)
  folder.mkdir(parents=True, exist_ok=True)
  with locks.lock(folder / '.point', point.name, pause=children.pause):
    record = record_of(directory, point)
    if record.get('status') == 'done':
      return record
    # Over all calls; a stage that was interrupted adds up.
    begun = {'seconds': dict(record.get('seconds', {}))}
    try:
      overrides = _plan(sweep, point, directory, children)
      begun['machine'] = {
        **children.machine,
        'device': tuning.device(directory, point.variant),
      }
      # Now, since a process that is killed records nothing more.
      _record(folder, {'status': 'stopped', **begun})
      _measure(sweep, overrides, folder, children, begun['seconds'])
      record = {'status': 'done', 'fields': _fields(sweep, overrides)}
    except Failed as e:
      record = {'status': 'failed', **e.about}
    except Stopped:
      # Before its programs were begun, what is recorded stays.
      if 'machine' in begun:
        _record(folder, {'status': 'stopped', **begun})
      raise
    record.update(begun)
    _record(folder, record)
  return record


def _record(folder: pathlib.Path, record: dict[str, Any]) -> None:
  files.write_json(folder / 'point.json', record)


def _plan(sweep, point, directory, children) -> dict[str, Any]:
  """Returns a point's overrides, with its tuned value and number of steps."""
  share = tuning.budget_share(sweep, point, directory, children)
  tuned = tuning.tune(sweep, point, share, directory, children)
  overrides = {**point.overrides, **tuned}
  num_steps = round(sweep.flat(overrides)['train.num_steps'] * share)
  overrides.update(tuning.schedule(sweep, overrides, max(num_steps, 1)))
  return overrides


def _measure(sweep, overrides, folder, children, seconds) -> None:
  """Runs the programs of a point, and adds up what each takes."""
  workdir, log = f'--workdir={folder}', folder / 'log.txt'
  # Those that are done already take seconds: training restores its last step.
  stages = {
    'train': [tuning.MAIN, workdir, *sweep.main_arguments(overrides)],
    'evaluate': [tuning.MAIN, workdir, '--mode=evaluate'],
    'checkerboard': ['-m', 'experiments.checkerboard', str(folder)],
  }
  tuning.await_workdir(folder, children)
  for stage, arguments in stages.items():
    start = time.perf_counter()
    try:
      children.run(stage, arguments, log)
    finally:
      taken = time.perf_counter() - start
      seconds[stage] = seconds.get(stage, 0.0) + taken


def _fields(sweep, overrides) -> dict[str, Any]:
  """Returns what is told of a point."""
  flat = config_lib.flatten(sweep.config)
  changed = {k: v for k, v in overrides.items() if k in sweep.fields}
  tuned = [sweep.tune.field] if sweep.tune else []
  changed.update({k: overrides.get(k, flat[k]) for k in (*tuned, *sweeps.TOLD)})
  return changed
