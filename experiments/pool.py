"""The points of a sweep, several at once, and how far they are."""

import concurrent.futures
import pathlib
import sys
import threading
import time

import tqdm

from experiments import collect, points, sweeps
from experiments.children import Children, Stopped


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


def run(
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

  def run_one(point):
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

  if chosen:
    points.warn_of_cores(sweep, directory, children)

  # Threads, also for one job: a signal interrupts the main thread only.
  with concurrent.futures.ThreadPoolExecutor(
    jobs, initializer=children.start_thread
  ) as executor:
    futures = [executor.submit(run_one, point) for point in chosen]
    for future in futures:
      future.result()
  board.close()
