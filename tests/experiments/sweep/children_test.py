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

from experiments.sweep import children as children_lib
from experiments.sweep import points


def _script(text):
  # Unbuffered: what is printed before the last line comes before it.
  return ['-u', '-c', text]


def _failure(children, tmp_path, text):
  with pytest.raises(children_lib.Failed) as e:
    children.run('train', _script(text), tmp_path / 'log.txt')
  return e.value.about


def test_a_failure_has_the_line_with_the_reason(tmp_path):
  children = children_lib.Children()
  children.run('train', _script('print("before")'), tmp_path / 'log.txt')
  text = 'import sys; print("so far"); sys.exit("error: no file; give another")'
  about = _failure(children, tmp_path, text)
  assert about == {
    'stage': 'train',
    'exit_code': 1,
    'reason': 'no file; give another',
    'log': ['so far', 'error: no file; give another'],
  }
  # The log keeps all.
  assert (tmp_path / 'log.txt').read_text().startswith('before\nso far\n')


_KILLED = 'ended by SIGKILL (out of memory?)'


@pytest.mark.parametrize(
  'text, code, reason',
  [
    ('raise KeyError("x")', 1, "KeyError: 'x'"),
    ('import os; os._exit(3)', 3, 'exit code 3'),
    ('import os; os.kill(os.getpid(), 9)', -9, _KILLED),
  ],
)
def test_a_failure_of_ours_ends_in_its_exception(tmp_path, text, code, reason):
  about = _failure(children_lib.Children(), tmp_path, text)
  assert (about['exit_code'], about['reason']) == (code, reason)
  assert (len(about['log']) > 1) == ('raise' in text)


# Signals that a runner handles.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def defaults():
  """The signals' default handlers, whatever started these tests."""
  previous = {n: signal.signal(n, signal.SIG_DFL) for n in _SIGNALS}
  yield
  for number, handler in previous.items():
    signal.signal(number, handler)


def _await(condition, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def _saving(folder):
  """A program that saves at SIGTERM, for which it takes its time."""
  return (
    'import pathlib, signal, sys, time\n'
    f'folder = pathlib.Path({str(folder)!r})\n'
    'def leave(*_):\n'
    '  time.sleep(0.2)\n'
    '  (folder / "saved").touch()\n'
    '  sys.exit(143)\n'
    'signal.signal(signal.SIGTERM, leave)\n'
    '(folder / "ready").touch()\n'
    'time.sleep(120)\n'
  )


@pytest.mark.parametrize('number', _SIGNALS)
def test_a_signal_stops_what_runs_and_what_would(tmp_path, number, defaults):
  raised = []

  def run():
    for _ in range(2):
      try:
        children.run('train', _script(_saving(tmp_path)), tmp_path / 'log.txt')
      except children_lib.Stopped:
        raised.append((tmp_path / 'saved').exists())

  with children_lib.Children() as children:
    thread = threading.Thread(target=run)
    thread.start()
    _await((tmp_path / 'ready').exists)
    signal.raise_signal(number)
    if number == signal.SIGHUP:  # A closing terminal's comes twice.
      signal.raise_signal(number)
    thread.join(60)
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
    'from experiments.sweep import children\n'
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
  try:
    ours, its = pty.openpty()
  except OSError as e:
    pytest.skip(f'this machine has no terminals, /dev/pts ({e})')
  process = subprocess.Popen(
    [sys.executable, '-c', runner], cwd=points.ROOT, stdout=its, stderr=its
  )
  os.close(its)
  with open(ours, 'rb') as terminal:
    assert terminal.readline() == b'ready\r\n'
  process.send_signal(signal.SIGHUP)
  assert process.wait(60) == 128 + signal.SIGHUP


def test_programs_of_a_killed_runner_save_and_end(tmp_path):
  if not children_lib._bound():
    pytest.skip('setpriv of util-linux is not on this machine')
  # From a thread of a pool, as points are.
  runner = (
    'import concurrent.futures, pathlib\n'
    'from experiments.sweep import children\n'
    'with children.Children() as c:\n'
    '  with concurrent.futures.ThreadPoolExecutor(1) as pool:\n'
    f'    log = pathlib.Path({str(tmp_path)!r}, "log.txt")\n'
    f'    program = ["-c", {_saving(tmp_path)!r}]\n'
    '    pool.submit(c.run, "train", program, log).result()\n'
  )
  process = subprocess.Popen([sys.executable, '-c', runner], cwd=points.ROOT)
  _await((tmp_path / 'ready').exists)
  process.kill()
  process.wait()
  _await((tmp_path / 'saved').exists)


def test_a_second_signal_kills(tmp_path):
  text = (
    'import pathlib, signal, time\n'
    'signal.signal(signal.SIGTERM, lambda *_: None)\n'
    f'pathlib.Path({str(tmp_path)!r}, "ready").touch()\n'
    'while True: time.sleep(60)\n'
  )
  with children_lib.Children() as children:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      log = tmp_path / 'log.txt'
      future = pool.submit(children.run, 'train', _script(text), log)
      _await((tmp_path / 'ready').exists)
      signal.raise_signal(signal.SIGTERM)
      signal.raise_signal(signal.SIGINT)
      with pytest.raises(children_lib.Stopped):
        future.result(60)
  # The exit code, which tells an engine that it was stopped, is of the first.
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
    program = _script('import time; time.sleep(120)')
    with pytest.raises(children_lib.Stopped):
      children.run('report', program, tmp_path / 'l')
    assert time.monotonic() - start < 60


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

  def printed(jobs):
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

  assert printed(1) == [f'{cores} 4,5,6 None']
  share = max(len(cores) // 2, 1)
  two = [cores[:share], cores[share : 2 * share] or cores]
  assert printed(2) == [f'{two[0]} 4,6 None', f'{two[1]} 5 None']
  # Fewer GPUs than jobs: each has a share of the memory.
  expected = [' 4,5,6 0.225'] * 4
  assert [line.rpartition(']')[2] for line in printed(4)] == expected
  assert sorted(os.sched_getaffinity(0)) == cores
