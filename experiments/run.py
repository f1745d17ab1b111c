"""Runs a sweep: each point is trained, evaluated and measured by itself.

  python -m experiments.run SWEEP.py[:SIZE] --workdir=DIR [--jobs=N]
    [--config.section.field=value ...]

sweeps.py says what a sweep file is, collect.py what DIR/results.csv holds. The
same command again continues: points that are done are skipped, others go on
from their checkpoints, failed ones are tried again. Exit code 1: a point
failed, DIR/failures.csv says why; 128 + N: stopped by signal N, all is saved.

On a cluster, which queues, retries and preempts, one job is one point:
--slurm, --kubernetes and --xpk write what is submitted (see clusters.py), each
job runs --point=I, and --gather makes the tables from the shared folder.
"""

import concurrent.futures
import logging
import os
import pathlib
import sys
import threading
import time

import tqdm
from absl import app, flags

from experiments import clusters, collect, points, sweeps
from experiments.children import Children, Stopped
from unet_jax import errors, locks, logs

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the sweep.')
_JOBS = flags.DEFINE_integer(
  'jobs', 1, 'Points at once, each on its share of the cores.', lower_bound=1
)
_NO_TUNE = flags.DEFINE_boolean('no_tune', False, 'Leave the tuning out.')
_BUDGET = flags.DEFINE_enum(
  'budget', '', ['', 'steps', 'flops'], 'What is the same for all points.'
)
_POINT = flags.DEFINE_integer('point', None, 'Run this one only.')
_GATHER = flags.DEFINE_boolean('gather', False, 'Only write the tables.')
_WRITES = {
  engine: flags.DEFINE_string(engine, None, f'Write a {what}, run nothing.')
  for engine, what in (
    ('slurm', 'script for sbatch'),
    ('kubernetes', 'manifest for kubectl'),
    ('xpk', 'script of xpk commands'),
  )
}
_IMAGE = flags.DEFINE_string(
  'image', '', 'Container with this code, for --kubernetes.'
)
_QUEUE = flags.DEFINE_string('queue', 'default', 'Local queue of Kueue.')
_CLAIM = flags.DEFINE_string(
  'claim', '', 'PersistentVolumeClaim that has --workdir, for --kubernetes.'
)
_GPUS = flags.DEFINE_integer(
  'gpus', 1, 'Of each job, for --slurm and --kubernetes.', lower_bound=0
)

_log = logging.getLogger('unet_jax.experiments')


def _is_of_config(argument: str) -> bool:
  return argument.lstrip('-').startswith('config.')


def _parse_flags(argv: list[str]) -> list[str]:
  """Returns the sweep file and the --config.* flags, after the program."""
  try:
    rest = flags.FLAGS([a for a in argv if not _is_of_config(a)])
    if len(rest) != 2:
      raise errors.UserError(
        'name one sweep file, such as experiments/upsampling_depth/sweep.py'
      )
    if not _WORKDIR.value:
      raise errors.UserError(
        '--workdir=DIR is missing, the folder of the sweep'
      )
    return [*rest, *filter(_is_of_config, argv)]
  except (flags.Error, ValueError) as e:
    errors.leave(f'error: {errors.line_of_flags(e)}', 2)


class _Board:
  """Tells how many points are done, and how long the rest will take."""

  def __init__(self, total: int, done: int, jobs: int):
    self._total, self._done, self._jobs = total, done, jobs
    self._failed, self._seconds = 0, []
    self._lock = threading.Lock()
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=total, initial=done, unit='point', dynamic_ncols=True
      )

  def ended(self, name: str, seconds: float, failure: str) -> None:
    """Counts a point, whose `failure` is '' if it is done, from its thread."""
    with self._lock:
      self._done += 1
      self._failed += bool(failure)
      self._seconds.append(seconds)
      line = f'{name}: {failure or "done"}'
      if self._bar is None:
        print(
          f'{self._done}/{self._total} {line}, {seconds:.0f} s, '
          f'{self._left()} left',
          file=sys.stderr,
        )
        return
      self._bar.update()
      self._bar.set_postfix(failed=self._failed)
      if failure:
        self._bar.write(line, file=sys.stderr)

  def _left(self) -> str:
    mean = sum(self._seconds) / len(self._seconds)
    left = int(mean * (self._total - self._done) / self._jobs)
    return f'{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}'

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def run_points(
  sweep: sweeps.Sweep,
  chosen: list[sweeps.Point],
  directory: pathlib.Path,
  children: Children,
  jobs: int,
  gathers: bool = True,
) -> None:
  """Runs points, `jobs` at once, and returns when all have ended.

  Args:
    sweep: that they belong to.
    chosen: points that are not done.
    directory: of the sweep.
    children: runs the programs.
    jobs: how many at once.
    gathers: write the tables after each point.
  """
  done = len(sweep.points) - len(chosen) if gathers else 0
  board = _Board(done + len(chosen), done, jobs)
  writing = threading.Lock()

  def run(point):
    start = time.perf_counter()
    try:
      record = points.run(sweep, point, directory, children)
    except Stopped:
      return
    failure = ''
    if record['status'] == 'failed':
      failure = f'failed: {record["stage"]}: {record["reason"]}'
    board.ended(point.name, time.perf_counter() - start, failure)
    if gathers:
      with writing:
        collect.write(sweep, directory)

  # Threads, also for one job: a signal interrupts the main thread only.
  with concurrent.futures.ThreadPoolExecutor(
    jobs, initializer=children.start_thread
  ) as pool:
    futures = [pool.submit(run, point) for point in chosen]
    for future in futures:
      future.result()
  board.close()


def _summary(counts: dict[str, int], directory: pathlib.Path) -> str:
  line = ', '.join(f'{n} {status}' for status, n in counts.items() if n)
  if counts['failed']:
    line += f', see {directory / "failures.csv"}'
  return f'{line}; wrote {directory / "results.csv"}'


def _run_point(sweep, directory: pathlib.Path) -> int:
  """Runs --point; returns the exit code."""
  if not 0 <= _POINT.value < len(sweep.points):
    raise errors.UserError(
      f'--point={_POINT.value}: the sweep has the points 0 to '
      f'{len(sweep.points) - 1}'
    )
  point = sweep.points[_POINT.value]
  with Children() as children:
    run_points(sweep, [point], directory, children, 1, gathers=False)
  if children.signal is not None:
    return 128 + children.signal
  return int(points.record_of(directory, point)['status'] != 'done')


def _run_all(sweep, directory: pathlib.Path) -> int:
  """Runs what is left of the sweep; returns the exit code."""
  with locks.lock(directory / '.lock', f'the sweep of {directory}', wait=False):
    left = [
      point
      for point in sweep.points
      if points.record_of(directory, point).get('status') != 'done'
    ]
    with Children(_JOBS.value) as children:
      run_points(sweep, left, directory, children, _JOBS.value)
    counts = collect.write(sweep, directory)
  print(_summary(counts, directory))
  if children.signal is not None:
    print(
      f'stopped by signal {children.signal}; run the same command again to '
      'continue',
      file=sys.stderr,
    )
    return 128 + children.signal
  return int(counts['failed'] > 0)


def _write_jobs(sweep, arguments: list[str]) -> bool:
  """Writes what --slurm, --kubernetes and --xpk ask for; whether any did."""
  job = clusters.Job(
    arguments=tuple(arguments),
    count=len(sweep.points),
    jobs=_JOBS.value,
    gpus=_GPUS.value,
    image=_IMAGE.value,
    queue=_QUEUE.value,
    claim=_CLAIM.value,
    directory=os.path.abspath(_WORKDIR.value),
  )
  asked = {k: v.value for k, v in _WRITES.items() if v.value}
  for engine, path in asked.items():
    pathlib.Path(path).write_text(clusters.ENGINES[engine](job))
    print(f'wrote {path}')
  return bool(asked)


def main(argv: list[str]) -> None:
  logs.set_up()
  _, name, *changes = argv
  directory = pathlib.Path(os.path.abspath(_WORKDIR.value))
  try:
    sweep = sweeps.load(name, tuple(changes), _NO_TUNE.value, _BUDGET.value)
    # What each job is started with, besides its --point.
    arguments = [name, f'--workdir={directory}', *changes]
    arguments += ['--no_tune'] * _NO_TUNE.value
    arguments += [f'--budget={_BUDGET.value}'] * bool(_BUDGET.value)
    if _write_jobs(sweep, arguments):
      return
    directory.mkdir(parents=True, exist_ok=True)
    sweeps.begin(sweep, directory)
    if _GATHER.value:
      counts = collect.write(sweep, directory)
      print(_summary(counts, directory))
      code = int(counts['failed'] > 0)
    elif _POINT.value is not None:
      code = _run_point(sweep, directory)
    else:
      code = _run_all(sweep, directory)
  except (errors.UserError, OSError) as e:
    sys.exit(f'error: {errors.one_line(e, str(directory))}')
  sys.exit(code)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
