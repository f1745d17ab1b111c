"""The processes of a sweep: started, logged, and stopped together with it."""

import functools
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from experiments import sweeps

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

  Attributes:
    about: what is recorded: `stage`, `exit_code`, `reason` (one line) and
      `log`, the end of what it printed.
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
  """The line in which main.py names a mistake, or the last one."""
  if code < 0:
    return f'ended by {signal.Signals(-code).name} (out of memory?)'
  told = [line for line in lines if line.startswith('error: ')]
  last = (told or lines or [f'exit code {code}'])[-1]
  return last.removeprefix('error: ')


@functools.cache
def _bound() -> list[str]:
  """Returns what, before a command, ends it by SIGTERM when its parent dies.

  To Linux the parent is the thread that started it, here one that waits for its
  end. util-linux's program does it after the fork, where Python's own code is
  not safe beside other threads; without it (BusyBox, macOS) nothing is done.
  """
  command = ['setpriv', '--pdeathsig', 'TERM']
  try:
    subprocess.run([*command, 'true'], capture_output=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return []
  return command


def _cores() -> list[int]:
  """Numbers of the cores that this thread may use."""
  if _HAS_AFFINITY:
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


class Children:
  """Runs programs, several at once; as a context it takes signals to stop.

  They are SIGTERM, Ctrl-C and the SIGHUP of a terminal that closes. The first
  is handed on as SIGTERM, at which training runs save their state and end; a
  second one kills. Where this process itself is killed, Linux sends SIGTERM to
  what it has started.

  Args:
    jobs: how many run at once, each on its share of the cores.

  Attributes:
    signal: that came first, or None.
    machine: {'cores': that each job may use, 'jobs'}; figures depend on both.
  """

  def __init__(self, jobs: int = 1):
    self.signal: int | None = None
    self._jobs, self._slots = jobs, itertools.cycle(range(jobs))
    self._cores = _cores()
    share = max(len(self._cores) // jobs, 1)
    self.machine = {
      'cores': share if _HAS_AFFINITY else len(self._cores),
      'jobs': jobs,
    }
    # Reentrant: a second signal may come while the first is handed on.
    self._lock, self._live = threading.RLock(), set()
    self._local, self._previous = threading.local(), {}
    self._terminals: list[int] = []

  def __enter__(self) -> 'Children':
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      # nohup ignores it.
      if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):
        self._previous[number] = signal.signal(number, self._receive)
    self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
    return self

  def __exit__(self, *unused) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _receive(self, number, frame) -> None:
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

  def pause(self) -> None:
    """Takes some time, for a thread that waits for another process.

    Raises:
      Stopped: a signal came.
    """
    time.sleep(_PAUSE)
    if self.signal is not None:
      raise Stopped

  def start_thread(self) -> None:
    """To be called first in each thread that runs programs.

    Gives it cores of its own, which processes inherit: XLA and the pipeline
    start as many threads as they may use cores. All jobs have equally many,
    since rounding depends on their number; what is left over is idle. The cores
    of a job are neighbours, which share caches and memory on most machines. And
    it gets its share of a GPU's memory, or of several GPUs in
    CUDA_VISIBLE_DEVICES its own.
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

    Args:
      stage: what it does, for the record of a failure.
      arguments: of Python.
      log: gets what it prints, behind what is there.

    Raises:
      Failed: its exit code is not 0.
      Stopped: a signal came; it has ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(
      filter(None, [str(sweeps.ROOT), os.environ.get('PYTHONPATH')])
    )
    own = getattr(self._local, 'env', {})
    env = {**os.environ, **own, 'PYTHONPATH': path}
    with open(log, 'a+', errors='replace') as f:
      f.seek(0, os.SEEK_END)
      before = f.tell()
      with self._lock:
        if self.signal is not None:
          raise Stopped
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
        # It came in this thread, while the process was being started.
        if self.signal is not None:
          process.send_signal(signal.SIGTERM)
      code = process.wait()
      with self._lock:
        self._live.discard(process)
      if code and self.signal is not None:
        raise Stopped
      if code:
        f.seek(before)
        raise Failed(stage, code, f.read())
