"""Points of a sweep: trained, evaluated and recorded, several at once."""

import concurrent.futures
import datetime
import logging
import pathlib
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import tqdm

from experiments.sweep import folder as folders
from experiments.sweep import points, tables, tuning
from experiments.sweep.children import Children, Failed, Stopped
from experiments.sweep.points import Point, Sweep

_log = logging.getLogger('unet_jax.experiments')

# Seconds until a signal is handled, at most.
_PAUSE = 0.5


class Progress:
  """Reports how many points are done, and how long the rest will take."""

  def __init__(self, total: int, done: int, jobs: int):
    self._total, self._done, self._jobs = total, done, jobs
    self._failed, self._seconds = 0, list[float]()
    self._lock = threading.Lock()
    # disable=None: without a terminal.
    self._bar = tqdm.tqdm(
      total=total, initial=done, unit='point', dynamic_ncols=True, disable=None
    )

  def ended(self, name: str, seconds: float, failure: str) -> None:
    """Counts a point, from its thread; `failure` is '' if it is done."""
    with self._lock:
      self._done += 1
      self._failed += bool(failure)
      self._seconds.append(seconds)
      line = f'{name}: {failure or "done"}'
      if not self._bar.disable:
        self._bar.update()
        self._bar.set_postfix(failed=self._failed)
        if failure:
          self._bar.write(line, file=sys.stderr)
        return
      mean = sum(self._seconds) / len(self._seconds)
      left = int(mean * (self._total - self._done) / self._jobs)
      print(
        f'{self._done}/{self._total} {line}, {seconds:.0f} s, '
        f'{datetime.timedelta(seconds=left)} left',
        file=sys.stderr,
      )

  def close(self) -> None:
    self._bar.close()


class Runner:
  """Runs points of a sweep, whose programs `children` runs."""

  def __init__(self, sweep: Sweep, directory: pathlib.Path, children: Children):
    self._sweep, self._directory, self._children = sweep, directory, children
    self._planner = tuning.Planner(sweep, directory, children)

  def run(
    self, chosen: Sequence[Point], jobs: int, gathers: bool = True
  ) -> None:
    """Runs points, `jobs` of them at once, and returns when all have ended.

    With `gathers` it writes the tables after each.
    """
    done = len(self._sweep.points) - len(chosen) if gathers else 0
    progress = Progress(done + len(chosen), done, jobs)
    writing = threading.Lock()

    def run_one(point: Point) -> None:
      start = time.perf_counter()
      try:
        record = self.run_point(point)
      except Stopped:
        return
      failure = ''
      if record['status'] == 'failed':
        failure = f'failed: {record["stage"]}: {record["reason"]}'
      progress.ended(point.name, time.perf_counter() - start, failure)
      if gathers:
        with writing:
          tables.write(self._sweep, self._directory)

    if chosen:
      self._warn_of_cores()
    # Threads, also for one job: a signal interrupts the main thread only.
    with concurrent.futures.ThreadPoolExecutor(
      jobs, initializer=self._children.start_thread
    ) as executor:
      left = {executor.submit(run_one, point) for point in chosen}
      while left:
        # In short waits: a signal that comes just before one does not end it.
        ended, left = concurrent.futures.wait(left, timeout=_PAUSE)
        for future in ended:
          future.result()
    progress.close()

  def _warn_of_cores(self) -> None:
    """Warns where earlier calls had another number of cores for a point.

    XLA splits sums over them, so that results differ by rounding; those of
    accelerators are taken not to.
    """
    now, before = self._children.machine['cores'], set()
    for point in self._sweep.points:
      machine = folders.record_of(self._directory, point).get('machine', {})
      if machine.get('device') == 'cpu':
        before.add(machine['cores'])
    if before := before - {now}:
      _log.warning(
        'points of earlier calls had %s cores each, now %d: their metrics and '
        'those to come are not bit-equal to those of one machine and one '
        '--jobs',
        ' or '.join(map(str, sorted(before))),
        now,
      )

  def run_point(self, point: Point) -> dict[str, Any]:
    """Trains, evaluates and measures a point, as far as it is not done.

    Returns what is recorded, see `folder.record_of`; may raise Stopped.
    """
    self._children.check()
    folder = folders.of_point(self._directory, point)
    folder.mkdir(parents=True, exist_ok=True)
    write = lambda record: folders.write_json(folder / 'point.json', record)
    with self._children.lock(folder / '.point', point.name):
      record = folders.record_of(self._directory, point)
      if record.get('status') == 'done':
        return record
      # Over all calls; a stage that was interrupted adds up.
      begun = {'seconds': dict(record.get('seconds', {}))}
      try:
        overrides = self._planner.plan(point)
        device = self._planner.device(point)
        begun['machine'] = {**self._children.machine, 'device': device}
        # Now, since a process that is killed records nothing more.
        write({'status': 'stopped', **begun})
        self._run_stages(overrides, folder, begun['seconds'])
        record = {'status': 'done', 'fields': self._fields(overrides)}
      except Failed as e:
        record = {'status': 'failed', **e.about}
      except Stopped:
        # Before its programs were begun, the earlier record stays.
        if 'machine' in begun:
          write({'status': 'stopped', **begun})
        raise
      record.update(begun)
      write(record)
    return record

  def _run_stages(
    self,
    overrides: dict[str, Any],
    folder: pathlib.Path,
    seconds: dict[str, float],
  ) -> None:
    """Runs the programs of a point; adds what each takes to `seconds`."""
    config = self._sweep.main_arguments(overrides)
    # A training that is done takes seconds: it restores its last step.
    stages = {
      'train': [tuning.MAIN, f'--workdir={folder}', *config],
      'evaluate': [*tuning.MEASURE, 'run', str(folder)],
    }
    tuning.await_run(folder, self._children)
    for stage, arguments in stages.items():
      start = time.perf_counter()
      try:
        self._children.run(stage, arguments, folder / 'log.txt')
      finally:
        taken = time.perf_counter() - start
        seconds[stage] = seconds.get(stage, 0.0) + taken

  def _fields(self, overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a point that results.csv has."""
    sweep, flat = self._sweep, self._sweep.flat(overrides)
    tuned = [sweep.tune.field] if sweep.tune else []
    own = [field for field in overrides if field in sweep.fields]
    return {f: flat[f] for f in (*own, *tuned, *points.ALWAYS_REPORTED)}
