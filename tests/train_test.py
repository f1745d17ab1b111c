"""Runs of main.py: stopped and continued, on many devices, and going wrong."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

pytestmark = pytest.mark.whole_runs

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_STEPS = 40
_TINY = (
  '--config.data.num_train=1500',
  '--config.data.num_eval=13',
  '--config.data.image_size=16,16',
  '--config.data.batch_size=8',
  '--config.model.depth=1',
  '--config.model.base_features=4',
  '--config.model.dropout=0.1',
  f'--config.train.num_steps={_STEPS}',
  '--config.optimizer.warmup_steps=4',
  '--config.eval.every=20',
  '--config.checkpoint.every=8',
  '--config.checkpoint.keep_latest=2',
  '--config.log.every=1',
  '--config.log.num_examples=0',
  '--config.log.tensorboard=False',
)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """Compiled programs and prepared arrays, shared by the runs of this file."""
  return tmp_path_factory.mktemp('cache')


def _start(workdir, cache, *flags, **env):
  return subprocess.Popen(
    [
      sys.executable,
      'main.py',
      f'--workdir={workdir}',
      f'--config.data.cache_dir={cache}',
      *_TINY,
      *flags,
    ],
    cwd=_ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **env},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _finish(process, code=0):
  out, err = process.communicate(timeout=240)
  assert process.returncode == code, err
  return out, err


def _run(workdir, cache, *flags, code=0, **env):
  return _finish(_start(workdir, cache, *flags, **env), code)


def _metrics(workdir):
  """{step: figures} without what is a matter of time."""
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  result = {}
  for line in lines:
    try:
      figures = json.loads(line)
    except ValueError:
      continue  # Being written.
    step = figures.pop('step')
    timed = ('train/images_per_second', 'eval/seconds')
    kept = {k: v for k, v in figures.items() if k not in timed}
    result.setdefault(step, {}).update(kept)
  return result


def _state(workdir, step=_STEPS):
  """All arrays of a checkpoint, by name."""
  path = workdir / 'checkpoints' / f'{step:08d}' / 'state'
  tree = ocp.StandardCheckpointer().restore(path)
  flat = {}

  def add(prefix, value):
    if isinstance(value, dict):
      for key, v in value.items():
        add(f'{prefix}/{key}', v)
    elif isinstance(value, list | tuple):
      for i, v in enumerate(value):
        add(f'{prefix}/{i}', v)
    elif value is not None:
      flat[prefix] = np.asarray(value)

  add('', tree)
  return flat


def _assert_same_run(a, b):
  """Bitwise: parameters, optimiser state, averages, every logged figure."""
  first, second = _state(a), _state(b)
  assert first.keys() == second.keys() and len(first) > 20
  for name in first:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)
  assert list(_metrics(a)) == list(range(1, _STEPS + 1))
  assert _metrics(a) == _metrics(b)
  read = lambda d: json.loads((d / 'eval.json').read_text())
  same = lambda d: {k: v for k, v in read(d).items() if k != 'eval/seconds'}
  assert same(a) == same(b)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, cache):
  workdir = tmp_path_factory.mktemp('uninterrupted')
  _run(workdir, cache)
  return workdir


def _wait_until(condition, process, what):
  for _ in range(60_000):
    if condition():
      return
    if process.poll() is not None:
      pytest.fail(f'ended before {what}: {process.communicate()[1]}')
    time.sleep(0.002)
  pytest.fail(f'never: {what}')


def test_killed_run_continues_bit_for_bit(tmp_path, cache, uninterrupted):
  process = _start(tmp_path, cache)
  moment = random.randint(9, 30)
  saved = lambda: [
    p for p in (tmp_path / 'checkpoints').glob('0*') if p.name.isdigit()
  ]
  _wait_until(
    lambda: moment in _metrics(tmp_path) and saved(), process, f'step {moment}'
  )
  process.kill()
  process.communicate()
  _, err = _run(tmp_path, cache)
  assert 'restored step' in err, f'killed at step {moment}'
  _assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_first(number, tmp_path, cache, uninterrupted):
  process = _start(tmp_path, cache)
  _wait_until(lambda: 11 in _metrics(tmp_path), process, 'step 11')
  process.send_signal(number)
  _, err = _finish(process, 128 + number)
  assert 'Run the same command again to continue' in err
  newest = max(int(p.name) for p in (tmp_path / 'checkpoints').glob('0*'))
  assert newest == max(_metrics(tmp_path)) >= 11
  _, err = _run(tmp_path, cache)
  assert f'restored step {newest}' in err
  _assert_same_run(tmp_path, uninterrupted)


def test_kill_while_a_checkpoint_is_written(tmp_path, cache, uninterrupted):
  process = _start(tmp_path, cache)
  checkpoints = tmp_path / 'checkpoints'
  _wait_until(
    lambda: any(checkpoints.glob('00000016*tmp*')), process, 'step 16 is saved'
  )
  process.kill()
  process.communicate()
  _, err = _run(tmp_path, cache)
  assert 'restored step' in err
  assert not list(checkpoints.glob('*tmp*'))
  _assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_stop_in_an_evaluation_loses_nothing(
  number, tmp_path, cache, uninterrupted
):
  """The state is saved before; the continued run makes the evaluation."""
  process = _start(tmp_path, cache)
  whole = tmp_path / 'checkpoints' / '00000020'
  _wait_until(whole.exists, process, 'step 20 is saved')
  process.send_signal(number)
  process.communicate()
  _run(tmp_path, cache)
  _assert_same_run(tmp_path, uninterrupted)


def test_kill_while_the_cache_is_built(tmp_path, cache, uninterrupted):
  """The compiled programs are taken along, the prepared arrays are not."""
  own = tmp_path / 'cache'
  own.mkdir()
  (own / 'xla').symlink_to(cache / 'xla')
  process = _start(tmp_path, own)
  _wait_until(
    lambda: any((own / 'prepared').glob('*.tmp-*')), process, 'it is built'
  )
  process.kill()
  process.communicate()
  assert list((own / 'prepared').glob('*.tmp-*'))
  _run(tmp_path, own)
  assert not list((own / 'prepared').glob('*.tmp-*'))
  _assert_same_run(tmp_path, uninterrupted)


def _assert_same_numbers(a, b):
  """Losses and evaluation agree up to rounding."""
  assert list(_metrics(a)) == list(_metrics(b))
  for step, figures in _metrics(a).items():
    for name, value in figures.items():
      # Rounding grows from step to step, as it does between two machines.
      np.testing.assert_allclose(
        _metrics(b)[step][name],
        value,
        rtol=2e-2,
        atol=2e-3,
        err_msg=f'{name} at step {step}',
      )
  first = {n: v for n, v in _metrics(a)[1].items() if n.startswith('train/')}
  for name, value in first.items():
    np.testing.assert_allclose(_metrics(b)[1][name], value, rtol=1e-5)


# Few steps and no dropout: what is compared is the arithmetic.
_SHARDED = (
  '--config.train.num_steps=12',
  '--config.eval.every=6',
  '--config.checkpoint.every=12',
)


@pytest.fixture(scope='module')
def one_device(tmp_path_factory, cache):
  workdir = tmp_path_factory.mktemp('one_device')
  _run(workdir, cache, *_SHARDED)
  return workdir


@pytest.mark.parametrize('mesh', ['data=8', 'fsdp=4', 'spatial=2'])
def test_eight_devices_give_the_numbers_of_one(
  mesh, tmp_path, cache, one_device
):
  _, err = _run(
    tmp_path,
    cache,
    *_SHARDED,
    f'--config.mesh.{mesh}',
    XLA_FLAGS='--xla_force_host_platform_device_count=8',
  )
  assert '8 cpu device(s) in 1 process(es)' in err
  _assert_same_numbers(one_device, tmp_path)


def _two_processes(workdir, cache, *flags):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  return [
    _start(
      workdir,
      cache,
      *flags,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(i),
      XLA_FLAGS='--xla_force_host_platform_device_count=2',
    )
    for i in range(2)
  ]


def test_two_processes_give_the_numbers_of_one(tmp_path, cache, one_device):
  results = [_finish(p) for p in _two_processes(tmp_path, cache, *_SHARDED)]
  assert '4 cpu device(s) in 2 process(es)' in results[0][1]
  assert 'dataset_iou' in results[0][0] and 'dataset_iou' not in results[1][0]
  _assert_same_numbers(one_device, tmp_path)
  # One process goes on where two stopped, and the other way round.
  more = (*_SHARDED[1:], '--config.train.num_steps=16')
  _, err = _run(tmp_path, cache, *more)
  assert 'restored step 12' in err


def test_sigterm_to_one_of_two_processes_saves_in_both(tmp_path, cache):
  processes = _two_processes(
    tmp_path, cache, '--config.train.num_steps=100000', '--config.eval.every=0'
  )
  _wait_until(lambda: 5 in _metrics(tmp_path), processes[0], 'step 5')
  processes[1].send_signal(signal.SIGTERM)
  for process in processes:
    _finish(process, 128 + signal.SIGTERM)
  newest = max(int(p.name) for p in (tmp_path / 'checkpoints').glob('0*'))
  assert newest == max(_metrics(tmp_path))


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
  tmp_path, cache
):
  flags = (
    '--config.optimizer.learning_rate=1e30',
    '--config.optimizer.clip_norm=0',
    '--config.model.norm=none',
    '--config.checkpoint.every=1',
  )
  _, err = _run(tmp_path, cache, *flags, code=1)
  line = err.splitlines()[-1]
  assert line.startswith('error: step ') and 'not finite' in line
  stopped = int(line.split()[2].rstrip(':'))
  kept = max(int(p.name) for p in (tmp_path / 'checkpoints').glob('0*'))
  assert kept == stopped - 1
  assert f'The last checkpoint, step {kept}, is kept' in line
  for name, value in _state(tmp_path, kept).items():
    if name.startswith('/params'):
      assert np.all(np.isfinite(value)), name


def test_full_disk_is_one_line_and_earlier_checkpoints_stay(
  tmp_path, cache, uninterrupted
):
  """A limit on the size of files stands in for a full disk."""
  process = subprocess.Popen(
    [
      sys.executable,
      '-c',
      # The first checkpoint fits; from then on no file may be written.
      'import errno, os, runpy, shutil, sys\n'
      'sys.argv = sys.argv[1:]\n'
      'usage = shutil.disk_usage\n'
      'def full(path):\n'
      '  real = usage(path)\n'
      '  has = any(n.startswith("0") for n in os.listdir(path))\n'
      '  return real._replace(free=0) if has else real\n'
      'shutil.disk_usage = full\n'
      'runpy.run_path("main.py", run_name="__main__")\n',
      'main.py',
      f'--workdir={tmp_path}',
      f'--config.data.cache_dir={cache}',
      *_TINY,
    ],
    cwd=_ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(_ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  _, err = _finish(process, 1)
  line = err.splitlines()[-1]
  assert line.startswith(f'error: {tmp_path}/checkpoints: the checkpoint could')
  assert line.endswith('Whole checkpoints: 8')
  _run(tmp_path, cache)
  _assert_same_run(tmp_path, uninterrupted)
