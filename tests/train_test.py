"""Runs of main.py: stopped and continued, on many devices, and going wrong."""

import json
import logging
import random
import re
import shutil
import signal
import socket

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import folders, program
from unet_jax import train

pytestmark = pytest.mark.whole_runs

_STEPS = 80
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


def _make_cache(path, native_cache):
  """Makes a cache folder in which the native kernels are."""
  shutil.copytree(f'{native_cache}/kernels', path / 'kernels')
  return path


@pytest.fixture(scope='module')
def cache(tmp_path_factory, native_cache):
  """Compiled programs and prepared arrays, shared by the runs of this file."""
  return _make_cache(tmp_path_factory.mktemp('cache'), native_cache)


def _start(workdir, cache, *flags, **how):
  return program.start(
    f'--workdir={workdir}',
    f'--config.data.cache_dir={cache}',
    *_TINY,
    *flags,
    **{'kernels': 'auto'} | how,
  )


def _run(workdir, cache, *flags, code=0, **how):
  return program.finish(_start(workdir, cache, *flags, **how), code)


def _metrics(workdir):
  """{step: metrics} without what is a matter of time."""
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  result = {}
  for line in lines:
    try:
      metrics = json.loads(line)
    except ValueError:
      continue  # Being written.
    step = metrics.pop('step')
    timed = ('train/images_per_second', 'eval/seconds')
    kept = {k: v for k, v in metrics.items() if k not in timed}
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


def _checkpoints(workdir):
  """The steps of the whole ones."""
  names = [p.name for p in (workdir / 'checkpoints').glob('0*')]
  return sorted(int(name) for name in names if name.isdigit())


def _log_compilation():
  jax.config.update('jax_log_compiles', True)


def test_the_step_that_is_compiled_beforehand_is_the_one_that_runs(
  tmp_path, cache
):
  """Of a new state, and of one that is restored."""
  for steps in (2, 3):
    _, err = _run(
      tmp_path,
      cache,
      f'--config.train.num_steps={steps}',
      before=_log_compilation,
    )
    names = re.findall(r'Finished XLA compilation of (\S+)', err)
    assert names.count('jit(train_step)') == 1, err
  meta = json.loads(
    (tmp_path / 'checkpoints/00000003/meta/metadata').read_text()
  )
  # Of the images, for predictions.
  assert meta['edges'] == [16, 16, 16]
  assert meta['origins'] == ['']
  # Nothing is left to do: nothing is compiled.
  _, err = _run(
    tmp_path, cache, '--config.train.num_steps=3', before=_log_compilation
  )
  assert 'XLA compilation' in err and 'jit(train_step)' not in err


def _fill_disk():
  """Stands in for a full disk."""
  usage = shutil.disk_usage
  shutil.disk_usage = lambda path: usage(path)._replace(free=0)


class _Interrupted:
  """A run that is started, stopped and started again."""

  def __init__(self, workdir, cache, expected):
    self.workdir, self._cache = workdir, cache
    self._expected = _metrics(expected)

  def step(self):
    """The last one that is logged."""
    return max(_metrics(self.workdir), default=0)

  def stop(self, number, condition, what):
    """Goes on until a condition holds, then sends a signal; returns stderr.

    The metrics until then have to be those of the run without interruption.
    """
    process = _start(self.workdir, self._cache)
    program.wait_until(condition, process, what)
    process.send_signal(number)
    kills = number == signal.SIGKILL
    _, err = program.finish(process, -number if kills else 128 + number)
    for step, metrics in _metrics(self.workdir).items():
      assert metrics.items() <= self._expected[step].items(), (what, step)
    return err


def test_a_run_that_is_stopped_in_every_way_continues_bit_for_bit(
  tmp_path, native_cache, uninterrupted
):
  """Each stop is where the one before has left the run."""
  checkpoints = tmp_path / 'checkpoints'
  # The compiled programs are taken along, the prepared arrays are not.
  own = _make_cache(tmp_path / 'cache', native_cache)
  run = _Interrupted(tmp_path, own, uninterrupted)

  # While the cache is built.
  unfinished = lambda: list((own / 'prepared').glob('*.tmp-*'))
  run.stop(signal.SIGKILL, unfinished, 'the cache is built')
  assert unfinished() and not _metrics(tmp_path)

  # By signals that let it save first.
  newest = 0
  for number in (signal.SIGTERM, signal.SIGINT):
    moment = newest + 3
    err = run.stop(number, lambda: run.step() >= moment, f'step {moment}')
    assert 'Run the same command again to continue' in err
    assert not unfinished()
    assert ('restored step' in err) == (newest > 0)
    assert f'restored step {newest}' in err or not newest
    newest = _checkpoints(tmp_path)[-1]
    assert newest == run.step() >= moment

  # While a checkpoint is written.
  written = lambda: any(checkpoints.glob('*tmp*'))
  err = run.stop(signal.SIGKILL, written, 'a checkpoint is written')
  assert f'restored step {newest}' in err

  # In an evaluation: the state is saved before, the continued run makes it.
  for number in (signal.SIGTERM, signal.SIGKILL):
    step = (run.step() // 20 + 1) * 20
    whole = checkpoints / f'{step:08d}'
    err = run.stop(number, whole.exists, f'step {step} is saved')
    assert 'restored step' in err
    # After SIGKILL there may be that of the next step.
    assert number == signal.SIGKILL or not list(checkpoints.glob('*tmp*'))

  # At any moment.
  moment = run.step() + random.randint(1, 6)
  err = run.stop(signal.SIGKILL, lambda: run.step() >= moment, f'step {moment}')
  assert 'restored step' in err

  # By a full disk: one line, and the earlier checkpoints stay.
  newest = _checkpoints(tmp_path)[-1]
  _, err = _run(tmp_path, own, code=1, before=_fill_disk)
  kept = _checkpoints(tmp_path)
  assert kept[-1] == newest
  line = err.splitlines()[-1]
  assert line.startswith(f'error: {checkpoints}: the checkpoint could')
  assert line.endswith(f'Whole checkpoints: {", ".join(map(str, kept))}')

  _, err = _run(tmp_path, own)
  assert 'whose bits differ' not in err
  assert f'restored step {newest}' in err, f'killed at step {moment}'
  assert not list(checkpoints.glob('*tmp*'))
  _assert_same_run(tmp_path, uninterrupted)


def _assert_same_numbers(a, b):
  """Losses and evaluation agree up to rounding."""
  assert list(_metrics(a)) == list(_metrics(b))
  for step, metrics in _metrics(a).items():
    for name, value in metrics.items():
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


def test_eight_devices_give_the_numbers_of_one(tmp_path, cache, one_device):
  """Along all axes of the mesh; mesh_test.py has a step along each."""
  _, err = _run(
    tmp_path,
    cache,
    *_SHARDED,
    '--config.mesh.fsdp=2',
    '--config.mesh.spatial=2',
    **program.devices(8),
  )
  assert '8 cpu device(s) in 1 process(es)' in err
  assert ' convolutions\n' in err
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
      **program.devices(2),
    )
    for i in range(2)
  ]


def test_two_processes_give_the_numbers_of_one(tmp_path, cache, one_device):
  """They split rows in the first half; one process goes on from there."""
  half = ('--config.train.num_steps=6', '--config.optimizer.decay_steps=12')
  results = [
    program.finish(p)
    for p in _two_processes(
      tmp_path, cache, *_SHARDED, *half, '--config.mesh.spatial=4'
    )
  ]
  assert '4 cpu device(s) in 2 process(es)' in results[0][1]
  assert 'dataset_iou' in results[0][0] and 'dataset_iou' not in results[1][0]
  _, err = _run(tmp_path, cache, *_SHARDED)
  assert 'restored step 6' in err
  _assert_same_numbers(one_device, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('c++'), reason='needs a C++ compiler')
def test_two_processes_with_native_kernels(tmp_path, cache, one_device):
  """Each convolves its images; the numbers are those of XLA on one device."""
  flags = ('--config.cpu.kernels=native', '--config.mesh.fsdp=2')
  for process in _two_processes(tmp_path, cache, *_SHARDED, *flags):
    program.finish(process)
  _assert_same_numbers(one_device, tmp_path)


def test_sigterm_to_one_of_two_processes_saves_in_both(tmp_path, cache):
  processes = _two_processes(
    tmp_path, cache, '--config.train.num_steps=100000', '--config.eval.every=0'
  )
  program.wait_until(lambda: 5 in _metrics(tmp_path), processes[0], 'step 5')
  processes[1].send_signal(signal.SIGTERM)
  for process in processes:
    program.finish(process, 128 + signal.SIGTERM)
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


def test_a_run_that_goes_on_with_other_data_and_steps(
  tmp_path, cache, caplog, monkeypatch
):
  """The line of each: images, learning rate, and data that lie elsewhere."""
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)
  root, workdir = tmp_path / 'data', str(tmp_path / 'run')
  folders.write_pairs(root, folders.make_pairs(10))
  config = folders.make_config(root, cache_dir=str(cache), batch_size=4)
  config.data.image_size = (16, 16)
  config.model.update(depth=0, base_features=2, norm='none')
  config.optimizer.warmup_steps = 0
  config.log.update(num_examples=0, tensorboard=False)
  config.train.num_steps = 4
  config.data.check = False
  train.run(config, workdir)
  parts = json.loads((tmp_path / 'run/split.json').read_text())['parts']
  assert [len(parts[part]) for part in ('train', 'val')] == [8, 2]

  root = root.rename(tmp_path / 'moved')
  config.data.dir = str(root)
  for gone in (parts['train'][0][0], parts['val'][0][0]):
    (root / gone).unlink()
    (root / gone.replace('images', 'masks')).unlink()
  folders.write_pairs(root, {'00a': folders.make_pair(99)})
  config.train.num_steps = 8
  caplog.clear()
  train.run(config, workdir)
  said = [m for m in caplog.messages if m.startswith('warning: ')]
  assert len(said) == 2
  assert 'learning rate of step 4 was' in said[0]
  assert '1 image is new (images/00a.png), 2 images are gone (' in said[1]
  found = json.loads((tmp_path / 'run/eval.json').read_text())
  assert found['num_examples'] == 1
  now = json.loads((tmp_path / 'run/split.json').read_text())['parts']
  assert now['val'] == [parts['val'][1], parts['val'][0]]
  assert [
    image[0] for image in now['train'] if image not in parts['train']
  ] == ['images/00a.png']
