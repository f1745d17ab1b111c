"""main.py as its user runs it, for the tests of whole runs.

Importing takes most of the time of a short run. So runs are forked from a
process that has imported everything and has asked for no device; `fresh=True`
starts one as a shell would.
"""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A machine that trains beside it is several times slower.
_TIMEOUT = 600
_FORKS = multiprocessing.get_context('forkserver')
_FORKS.set_forkserver_preload(
  [
    'unet_jax.cross_validate',
    'unet_jax.export_weights',
    'unet_jax.import_weights',
    'unet_jax.inspect_data',
    'unet_jax.plan',
    'unet_jax.predict',
    'unet_jax.summary',
    'matplotlib.pyplot',
    'pytest',
  ]
)


def _call(function, args, folder, cwd, env):
  """What a forked process does."""
  for descriptor, name in (1, 'out'), (2, 'err'):
    file = os.open(f'{folder}/{name}', os.O_WRONLY | os.O_CREAT)
    os.dup2(file, descriptor)
  os.chdir(cwd)
  os.environ.update(env)
  try:
    function(*args)
  finally:
    atexit._run_exitfuncs()


class _Forked:
  """A process, with what the tests use of subprocess.Popen."""

  def __init__(self, function, args, cwd, env):
    self._folder = tempfile.TemporaryDirectory()
    self._process = _FORKS.Process(
      target=_call,
      args=(function, args, self._folder.name, cwd, env),
      # Libraries ask whether they are in a worker of somebody.
      name='MainProcess',
    )
    self._process.start()

  @property
  def pid(self):
    return self._process.pid

  @property
  def returncode(self):
    return self._process.exitcode

  def poll(self):
    return self.returncode

  def send_signal(self, number):
    os.kill(self._process.pid, number)

  def kill(self):
    self._process.kill()

  def communicate(self, timeout=None):
    self._process.join(timeout)
    in_time = self.returncode is not None
    if not in_time:
      self.kill()
      self._process.join()
    paths = [pathlib.Path(self._folder.name, name) for name in ('out', 'err')]
    out, err = (path.read_text() if path.exists() else '' for path in paths)
    self._folder.cleanup()
    assert in_time, f'still running after {timeout} s: {err}'
    return out, err


def fork(function, *args, cwd=ROOT, **env):
  """Calls a function in a process that has not asked for devices yet.

  Args:
    function: of a module.
    *args: its arguments.
    cwd: the folder that it runs in.
    **env: variables beside those of this process.

  Returns:
    What can do as a subprocess.Popen.
  """
  return _Forked(function, args, cwd, env)


def _main(argv, before):
  sys.argv[:] = argv
  # As Python does for a script.
  sys.path.insert(0, str(ROOT))
  if before:
    before()
  runpy.run_path(argv[0], run_name='__main__')


def start(*flags, kernels='xla', cwd=ROOT, fresh=False, before=None, **env):
  """Starts main.py.

  Args:
    *flags: of the command line.
    kernels: `cpu.kernels`; to compile native ones takes seconds.
    cwd: the folder that it runs in.
    fresh: start Python anew.
    before: a function of a module, to be called in the forked process first.
    **env: variables beside those of this process.

  Returns:
    A subprocess.Popen, or what can do the same.
  """
  last = f'--config.cpu.kernels={kernels}'  # --config has to stand before it.
  argv = [str(ROOT / 'main.py'), *map(str, flags), last]
  if not fresh:
    return fork(_main, argv, before, cwd=cwd, **env)
  return subprocess.Popen(
    [sys.executable, *argv],
    cwd=cwd,
    env={**os.environ, **env},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def devices(count):
  """The variable that gives a run virtual devices."""
  flags = os.environ.get('XLA_FLAGS', '')
  flags += f' --xla_force_host_platform_device_count={count}'
  return {'XLA_FLAGS': flags}


def finish(process, code=0):
  """Waits for the end, with `code` unless it is None; returns both outputs."""
  out, err = process.communicate(timeout=_TIMEOUT)
  assert code in (None, process.returncode), err
  return out, err


def run(*flags, code=0, **how):
  """Runs main.py to its end; returns stdout and stderr."""
  return finish(start(*flags, **how), code)


def wait_until(condition, process, what):
  """Waits for something that a run does."""
  end = time.monotonic() + _TIMEOUT
  while not condition():
    if process.poll() is not None or time.monotonic() > end:
      process.kill()
      pytest.fail(f'ended before {what}: {process.communicate()[1]}')
    time.sleep(0.002)
