"""The processes of a sweep: started, logged, and stopped together with it."""

import contextlib
import functools
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

from experiments.sweep import points
from unet_jax.runtime import locks

# Lines at the end of a log that are kept of a failure.
_TAIL = 20
# Seconds between two looks at what another process does.
_PAUSE = 0.5
# Linux.
_HAS_AFFINITY = hasattr(os, 'sched_setaffinity')


class Stopped(Exception):
  """The sweep was asked to stop."""


class Failed(Exception):
  """A process that ended with an error.

  `about` is for the record of a point: `stage`, `exit_code`, `reason` (one
  line) and `log`, the last lines that it printed.
  """

  def __init__(self, stage: str, code: int, printed: str):
    lines = [line for line in printed.splitlines() if line.strip()]
    self.about = {
      'stage': stage,
      'exit_code': code,
      'reason': _reason(code, lines),
      'log': lines[-_TAIL:],
    }
    super().__init__(f'{stage}: {self.about["reason"]}')


def _reason(code: int, lines: list[str]) -> str:
  """Returns main.py's line of a user's mistake, or the last line."""
  if code < 0:
    return f'ended by {signal.Signals(-code).name} (out of memory?)'
  mistakes = [line for line in lines if line.startswith('error: ')]
  last = (mistakes or lines or [f'exit code {code}'])[-1]
  return last.removeprefix('error: ')


@functools.cache
def _bound() -> list[str]:
  """Command prefix: Linux sends SIGTERM to the child when its parent dies.

  To Linux the parent is the thread that started it, here one that waits for its
  end. util-linux's program does it after the fork, where Python's own code is
  not safe beside other threads; without it (BusyBox, macOS) it is empty.
  """
  command = ['setpriv', '--pdeathsig', 'TERM']
  try:
    subprocess.run([*command, 'true'], capture_output=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return []
  return command


class Children:
  """Runs programs, several at once; as a context it takes signals to stop.

  These are SIGTERM, Ctrl-C and the SIGHUP of a terminal that closes. The first
  is passed to the programs as SIGTERM, at which training runs save their state
  and end; a second one kills. Where this process itself is killed, Linux sends
  SIGTERM to the programs.

  Args:
    jobs: how many run at once, each on its share of the cores.

  Attributes:
    signal: that came first, or None.
    machine: {'cores': that each job may use, 'jobs'}; results depend on both.
  """

  def __init__(self, jobs: int = 1):
    self.signal: int | None = None
    self._jobs, self._slots = jobs, itertools.cycle(range(jobs))
    if _HAS_AFFINITY:
      self._cores = sorted(os.sched_getaffinity(0))
      share = max(len(self._cores) // jobs, 1)
    else:
      self._cores = list(range(os.cpu_count() or 1))
      share = len(self._cores)
    self.machine = {'cores': share, 'jobs': jobs}
    # Reentrant: a second signal may come while the first is passed on.
    self._lock = threading.RLock()
    self._live: set[subprocess.Popen] = set()
    self._local = threading.local()
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> 'Children':
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      # nohup ignores SIGHUP.
      if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):
        previous = signal.signal(number, self._receive)
        self._stack.callback(signal.signal, number, previous)
    self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
    return self

  def __exit__(self, *unused) -> None:
    self._stack.close()

  def _receive(self, number: int, frame: FrameType | None) -> None:
    del frame
    is_first = self.signal is None
    if is_first:
      self.signal = number
    if number == signal.SIGHUP:
      # Writing to a terminal that is gone is an error, and it has no reader.
      nowhere = os.open(os.devnull, os.O_WRONLY)
      for fd in self._terminals:
        os.dup2(nowhere, fd)
      if not is_first:  # The shell sends one, the system another.
        return
    with self._lock:
      for process in self._live:
        process.send_signal(signal.SIGTERM if is_first else signal.SIGKILL)

  def _pause(self) -> None:
    time.sleep(_PAUSE)
    self.check()

  def check(self) -> None:
    """Raises Stopped if a signal came."""
    if self.signal is not None:
      raise Stopped

  def lock(
    self, path: pathlib.Path, what: str, wait: bool = True
  ) -> contextlib.AbstractContextManager[None]:
    """Returns `locks.lock`; a signal while it waits raises Stopped."""
    return locks.lock(path, what, wait, self._pause)

  def start_thread(self) -> None:
    """To be called first in each thread that runs programs.

    Gives it cores of its own, which processes inherit: XLA and the pipeline
    start as many threads as they may use cores. All jobs have equally many,
    since rounding depends on their number; the remainder is idle. The cores
    of a job are neighbours, which share caches and memory on most machines. It
    also gets its share of a GPU's memory, or its own of several GPUs in
    CUDA_VISIBLE_DEVICES.
    """
    slot = next(self._slots)
    if self._jobs == 1:
      return
    if _HAS_AFFINITY:  # Of this thread alone.
      share = self.machine['cores']
      first = slot * share % len(self._cores)
      os.sched_setaffinity(0, self._cores[first : first + share])
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
    if len(visible) >= self._jobs:
      own = ','.join(visible[slot :: self._jobs])
      self._local.env = {'CUDA_VISIBLE_DEVICES': own}
    elif 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in os.environ:
      fraction = f'{0.9 / self._jobs:.3f}'
      self._local.env = {'XLA_PYTHON_CLIENT_MEM_FRACTION': fraction}

  def run(self, stage: str, arguments: list[str], log: pathlib.Path) -> None:
    """Runs `python ARGUMENTS`, and returns when it has ended.

    Its output is appended to the log.

    Raises:
      Failed: its exit code is not 0.
      Stopped: a signal came; it has ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    path = [str(points.ROOT), os.environ.get('PYTHONPATH')]
    env = {
      **os.environ,
      **getattr(self._local, 'env', {}),
      'PYTHONPATH': os.pathsep.join(filter(None, path)),
    }
    with open(log, 'a+', errors='replace') as f:
      f.seek(0, os.SEEK_END)
      before = f.tell()
      with self._lock:
        self.check()
        process = subprocess.Popen(
          [*_bound(), sys.executable, *arguments],
          stdin=subprocess.DEVNULL,
          stdout=f,
          stderr=subprocess.STDOUT,
          env=env,
          # A terminal's Ctrl-C reaches it through us only.
          start_new_session=True,
        )
        self._live.add(process)
        # A signal may have come in this thread while the process started.
        if self.signal is not None:
          process.send_signal(signal.SIGTERM)
      code = process.wait()
      with self._lock:
        self._live.discard(process)
      if code:
        self.check()
        f.seek(before)
        raise Failed(stage, code, f.read())
