"""Processes of a sweep: failures, signals, cores."""

import concurrent.futures
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments import children as children_lib
from experiments import sweeps


def _script(text):
  return ['-c', text]


def _failure(children, tmp_path, text):
  with pytest.raises(children_lib.Failed) as e:
    children.run('train', _script(text), tmp_path / 'log.txt')
  return e.value.about


def test_a_failure_has_the_line_that_says_why(tmp_path):
  children = children_lib.Children()
  children.run('train', _script('print("before")'), tmp_path / 'log.txt')
  about = _failure(
    children,
    tmp_path,
    'import sys; print("so far"); sys.exit("error: no file; give another")',
  )
  assert about == {
    'stage': 'train',
    'exit_code': 1,
    'reason': 'no file; give another',
    'log': ['so far', 'error: no file; give another'],
  }
  # The log keeps all.
  assert (tmp_path / 'log.txt').read_text().startswith('before\nso far\n')


def test_a_failure_of_ours_ends_in_its_exception(tmp_path):
  children = children_lib.Children()
  about = _failure(children, tmp_path, 'raise KeyError("x")')
  assert about['reason'] == "KeyError: 'x'" and len(about['log']) > 1
  about = _failure(children, tmp_path, 'import os; os._exit(3)')
  assert about['reason'] == 'exit code 3'
  about = _failure(children, tmp_path, 'import os; os.kill(os.getpid(), 9)')
  assert about['exit_code'] == -9
  assert about['reason'] == 'ended by SIGKILL (out of memory?)'


# What a runner takes.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def defaults():
  """The signals' handlers, whatever these tests were started by."""
  previous = {n: signal.signal(n, signal.SIG_DFL) for n in _SIGNALS}
  yield
  for number, handler in previous.items():
    signal.signal(number, handler)


@pytest.mark.parametrize('number', _SIGNALS)
def test_a_signal_stops_what_runs_and_what_would(tmp_path, number, defaults):
  # Handed on as SIGTERM, which the program takes its time to answer.
  text = (
    'import pathlib, signal, sys, time\n'
    'def leave(*_):\n'
    '  time.sleep(0.2)\n'
    f'  pathlib.Path({str(tmp_path)!r}, "saved").touch()\n'
    '  sys.exit(143)\n'
    'signal.signal(signal.SIGTERM, leave)\n'
    f'pathlib.Path({str(tmp_path)!r}, "ready").touch()\n'
    'time.sleep(60)\n'
  )
  raised = []

  def run():
    for _ in range(2):
      try:
        children.run('train', _script(text), tmp_path / 'log.txt')
      except children_lib.Stopped:
        raised.append((tmp_path / 'saved').exists())

  with children_lib.Children() as children:
    thread = threading.Thread(target=run)
    thread.start()
    while not (tmp_path / 'ready').exists():
      time.sleep(0.01)
    signal.raise_signal(number)
    if number == signal.SIGHUP:  # A closing terminal's comes twice.
      signal.raise_signal(number)
    thread.join(20)
  assert raised == [True, True] and children.signal == number
  assert {signal.getsignal(n) for n in _SIGNALS} == {signal.SIG_DFL}


def test_a_terminal_may_close_under_nohup(defaults):
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  with children_lib.Children() as children:
    signal.raise_signal(signal.SIGHUP)
  assert children.signal is None
  assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_terminal_that_is_gone_is_not_written_to():
  runner = (
    'import signal, sys, time\n'
    'from experiments import children\n'
    # These tests may have been started by nohup.
    'signal.signal(signal.SIGHUP, signal.SIG_DFL)\n'
    'with children.Children() as c:\n'
    '  print("ready", flush=True)\n'
    '  while c.signal is None:\n'
    '    time.sleep(0.01)\n'
    '  print("saved", flush=True)\n'
    '  print("saved", file=sys.stderr)\n'
    'sys.exit(128 + c.signal)\n'
  )
  ours, its = pty.openpty()
  process = subprocess.Popen(
    [sys.executable, '-c', runner], cwd=sweeps.ROOT, stdout=its, stderr=its
  )
  os.close(its)
  with open(ours, 'rb') as terminal:
    assert terminal.readline() == b'ready\r\n'
  process.send_signal(signal.SIGHUP)
  assert process.wait(20) == 128 + signal.SIGHUP


def test_what_a_killed_runner_has_started_saves_and_ends(tmp_path):
  if not children_lib._bound():
    pytest.skip('setpriv of util-linux is not on this machine')
  child = (
    'import pathlib, signal, sys, time\n'
    'def leave(*_):\n'
    f'  pathlib.Path({str(tmp_path)!r}, "saved").touch()\n'
    '  sys.exit(143)\n'
    'signal.signal(signal.SIGTERM, leave)\n'
    'print("ready", flush=True)\n'
    'time.sleep(60)\n'
  )
  # From a thread of a pool, as points are.
  runner = (
    'import concurrent.futures, pathlib\n'
    'from experiments import children\n'
    'with children.Children() as c:\n'
    '  with concurrent.futures.ThreadPoolExecutor(1) as pool:\n'
    f'    log = pathlib.Path({str(tmp_path)!r}, "log.txt")\n'
    f'    pool.submit(c.run, "train", ["-c", {child!r}], log).result()\n'
  )
  process = subprocess.Popen([sys.executable, '-c', runner], cwd=sweeps.ROOT)
  log = tmp_path / 'log.txt'
  _await(lambda: log.exists() and log.read_text() == 'ready\n')
  process.kill()
  process.wait()
  _await((tmp_path / 'saved').exists)


def _await(is_so):
  end = time.monotonic() + 20
  while not is_so():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_a_second_signal_kills(tmp_path):
  text = (
    'import pathlib, signal, time\n'
    'signal.signal(signal.SIGTERM, lambda *_: None)\n'
    f'pathlib.Path({str(tmp_path)!r}, "ready").touch()\n'
    'while True: time.sleep(60)\n'
  )
  with children_lib.Children() as children:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      future = pool.submit(
        children.run, 'train', _script(text), tmp_path / 'log.txt'
      )
      while not (tmp_path / 'ready').exists():
        time.sleep(0.01)
      signal.raise_signal(signal.SIGTERM)
      signal.raise_signal(signal.SIGINT)
      with pytest.raises(children_lib.Stopped):
        future.result(20)
  # By which the exit code tells an engine that it was stopped.
  assert children.signal == signal.SIGTERM


def test_a_signal_while_a_process_starts_reaches_it(tmp_path, monkeypatch):
  class _Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      signal.raise_signal(signal.SIGTERM)

  children_lib._bound()  # Which starts one too, once.
  with children_lib.Children() as children:
    monkeypatch.setattr(subprocess, 'Popen', _Popen)
    start = time.monotonic()
    with pytest.raises(children_lib.Stopped):
      children.run(
        'report', _script('import time; time.sleep(60)'), tmp_path / 'l'
      )
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
  'cores, jobs, shares',
  [
    ([3, 5, 6, 7], 1, [[3, 5, 6, 7]]),
    ([3, 5, 6, 7], 3, [[3], [5], [6]]),
    ([0, 1, 2, 3, 4, 5, 6, 7], 3, [[0, 1], [2, 3], [4, 5]]),
    ([0, 1], 3, [[0], [1], [0]]),
  ],
)
def test_each_job_has_as_many_cores(cores, jobs, shares, monkeypatch):
  given = []
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(cores))
  monkeypatch.setattr(
    os, 'sched_setaffinity', lambda pid, mask: given.append(list(mask))
  )
  children = children_lib.Children(jobs)
  for _ in range(jobs):
    children.start_thread()
  assert (given or [cores]) == shares
  assert children.machine == {'cores': len(shares[0]), 'jobs': jobs}


def test_jobs_share_cores_and_devices(tmp_path, monkeypatch):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,6')
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  text = (
    'import os; print(sorted(os.sched_getaffinity(0)), '
    'os.environ["CUDA_VISIBLE_DEVICES"], '
    'os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION"))'
  )
  cores = sorted(os.sched_getaffinity(0))

  def told(jobs):
    children = children_lib.Children(jobs)

    def run(i):
      children.start_thread()
      log = tmp_path / f'{jobs}-{i}.txt'
      children.run('train', _script(text), log)
      return log.read_text().strip()

    lines = []
    for i in range(jobs):  # Threads of their own, one after the other.
      with concurrent.futures.ThreadPoolExecutor(1) as pool:
        lines.append(pool.submit(run, i).result())
    return lines

  assert told(1) == [f'{cores} 4,5,6 None']
  share = max(len(cores) // 2, 1)
  two = [cores[:share], cores[share : 2 * share] or cores]
  assert told(2) == [f'{two[0]} 4,6 None', f'{two[1]} 5 None']
  # Fewer GPUs than jobs: each has a share of the memory.
  assert [line.rpartition(']')[2] for line in told(4)] == [' 4,5,6 0.225'] * 4
  assert sorted(os.sched_getaffinity(0)) == cores
