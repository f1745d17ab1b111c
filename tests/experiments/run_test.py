"""Whole sweeps, with programs that only pretend."""

import concurrent.futures
import contextlib
import io
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from experiments import begin, collect, files, points, pool, sweeps
from experiments import children as children_lib
from unet_jax import locks

# config_flags reads a config with it.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

_ROOT = pathlib.Path(__file__).resolve().parents[2]

_SWEEP = """
  'Is deeper better?'

  OVERRIDES = {'train.num_steps': 100, 'optimizer.warmup_steps': 10}
  TUNE = {'optimizer.learning_rate': (1e-3, 4e-3, 8e-3), 'steps': 30}

  def sweep():
    for depth in (1, 2):
      for seed in (0, 1):
        yield {'model.depth': depth, 'seed': seed}
"""


def _load(tmp_path, text=_SWEEP, **kwargs):
  path = tmp_path / 'sweep.py'
  path.write_text(textwrap.dedent(text))
  return sweeps.load(str(path), **kwargs)


class _Pretended(children_lib.Children):
  """Writes what the programs would; `broken` says which fail, and how."""

  def __init__(self, jobs=1):
    super().__init__(jobs)
    self.calls, self.broken = [], {}

  def run(self, stage, arguments, log):
    if self.signal is not None:
      raise children_lib.Stopped
    fields = dict(
      argument.removeprefix('--').split('=', 1)
      for argument in arguments
      if '=' in argument
    )
    # checkerboard has no flag.
    fields.setdefault('workdir', arguments[-1])
    folder = pathlib.Path(fields['workdir'])
    self.calls.append((stage, folder.name, fields))
    for (of, part), error in self.broken.items():
      if of == stage and part in str(folder):
        raise error
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in getattr(self, f'_{stage}')(fields).items():
      # Whole, as the programs do: other threads read the tables' sources.
      temporary = folder / f'{name}.tmp'
      temporary.write_text(json.dumps(value) + '\n')
      temporary.replace(folder / name)

  def stages(self):
    return [(stage, name) for stage, name, _ in self.calls]

  def _summary(self, fields):
    # Each of the base's three downsamplings halves the work here.
    depth = int(fields.get('config.model.depth', 3))
    step = {'flops': 8000.0 / 2**depth, 'total_bytes': 7}
    if fields['config.summary.compile'] == 'false':
      step = None
    summary = {'parameters': 10 * depth, 'receptive_field': 5}
    return {'summary.json': {**summary, 'train_step': step}}

  def _costs(self, fields):
    names = ('inference_flops', 'inference_bytes', 'compile_seconds')
    rate = {'inference_images_per_second': 3.0}
    figures = {**dict.fromkeys(names, 2.0), **rate}
    return {'costs.json': {**figures, 'device': 'cpu'}}

  def _tuning(self, fields):
    # The best rate is 0.004, not the last.
    rate = float(fields['config.optimizer.learning_rate'])
    figures = {'eval/dataset_miou': 0.5 - abs(rate - 4e-3), 'eval/loss': 1.0}
    step = int(fields['config.train.num_steps'])
    return {'eval.json': {'step': step, **figures}}

  def _train(self, fields):
    line = {'step': 1, 'train/images_per_second': 9.0}
    return {'metrics.jsonl': line}

  def _evaluate(self, fields):
    # A score that is not defined.
    figures = {'eval/dataset_miou': 0.7, 'eval/dataset_iou/bar': None}
    return {
      'eval.json': {'num_examples': 4, 'seconds': 1.5, 'split': 't', **figures}
    }

  def _checkerboard(self, fields):
    return {'checkerboard.json': {'period_2': 1e-3, 'period_8': None}}


@pytest.fixture
def children():
  return _Pretended()


def _run(sweep, directory, children, jobs=1):
  """Runs what is left, as main does; returns the counts."""
  directory.mkdir(exist_ok=True)
  left = [
    point
    for point in sweep.points
    if points.record_of(directory, point).get('status') != 'done'
  ]
  pool.run(sweep, left, directory, children, jobs)
  return collect.write(sweep, directory)


def test_each_variant_is_tuned_once_and_alike(tmp_path, children):
  sweep = _load(tmp_path)
  counts = _run(sweep, tmp_path / 'out', children)
  assert counts == {'done': 4, 'failed': 0, 'missing': 0}
  expected = []
  for depth in (1, 2):
    expected += [('summary', f'depth={depth}'), ('costs', f'depth={depth}')]
    rates = ('0.001', '0.004', '0.008')
    expected += [('tuning', f'learning_rate={rate}') for rate in rates]
    for seed in (0, 1):
      name = f'depth={depth},seed={seed}'
      stages = ('train', 'evaluate', 'checkerboard')
      expected += [(stage, name) for stage in stages]
  assert children.stages() == expected
  for stage, _, fields in children.calls:
    if stage == 'tuning':
      assert fields['config.seed'] == '1000'
      # A part of the training split.
      assert fields['config.data.eval_split'] == 'auto'
      assert fields['config.data.num_folds'] == '5'
      assert fields['config.train.num_steps'] == '30'
      assert fields['config.optimizer.warmup_steps'] == '3'
    if stage == 'train':
      assert fields['config.optimizer.learning_rate'] == '0.004'
      assert fields['config.train.num_steps'] == '100'
      assert 'config.data.num_folds' not in fields


def test_tables(tmp_path, children):
  _run(_load(tmp_path), tmp_path / 'out', children)
  rows = collect.read_csv(tmp_path / 'out/results.csv')
  assert [row['point'] for row in rows] == [
    f'depth={depth},seed={seed}' for depth in (1, 2) for seed in (0, 1)
  ]
  row = rows[3]
  assert float(row.pop('train_seconds')) > 0
  assert float(row.pop('evaluate_seconds')) > 0
  assert list(row.items()) == [
    ('point', 'depth=2,seed=1'),
    ('variant', 'depth=2'),
    ('seed', '1'),
    ('model.depth', '2'),
    ('optimizer.learning_rate', '0.004'),
    ('train.num_steps', '100'),
    ('parameters', '20'),
    ('receptive_field', '5'),
    ('train_flops', '2000.0'),
    ('train_bytes', '7'),
    ('inference_flops', '2.0'),
    ('inference_bytes', '2.0'),
    ('checkerboard/period_2', '0.001'),
    ('checkerboard/period_8', ''),
    ('num_examples', '4'),
    ('eval/dataset_miou', '0.7'),
    ('eval/dataset_iou/bar', ''),
    ('device', 'cpu'),
    ('cores', str(len(os.sched_getaffinity(0)))),
    ('jobs', '1'),
    ('compile_seconds', '2.0'),
    ('train_images_per_second', '9.0'),
    ('inference_images_per_second', '3.0'),
  ]
  tried = collect.read_csv(tmp_path / 'out/tuning.csv')
  assert [(t['variant'], t['chosen']) for t in tried] == [
    (f'depth={depth}', chosen)
    for depth in (1, 2)
    for chosen in ('False', 'True', 'False')
  ]
  assert tried[0]['optimizer.learning_rate'] == '0.001'
  assert tried[0]['eval/dataset_miou'] == '0.497'


def test_a_step_is_compiled_for_the_tables(tmp_path, children):
  sweep = _load(tmp_path, arguments=('--config.summary.compile=false',))
  assert _run(sweep, tmp_path / 'out', children)['done'] == 4
  (row, *_) = collect.read_csv(tmp_path / 'out/results.csv')
  assert row['train_flops'] == '4000.0'


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_has_a_bar(monkeypatch):
  terminal = _Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  board = pool._Board(total=4, done=1, jobs=1)
  board.ended('depth=1', 2.0, '')
  board.ended('depth=2', 3.0, 'failed: train: loss nan')
  board.close()
  lines = re.split('[\r\n]+', terminal.getvalue())
  # What is done is in the bar alone.
  assert lines.count('depth=2: failed: train: loss nan') == 1
  assert 'depth=1' not in terminal.getvalue()
  (last,) = [line for line in lines if 'failed=1' in line][-1:]
  assert '75%' in last and '3/4' in last


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path, children):
  sweep, out = _load(tmp_path), tmp_path / 'out'
  name = 'depth=1,seed=1'
  children.broken['train', name] = children_lib.Failed(
    'train', 1, 'first line\nerror: step 7: loss nan\n'
  )
  assert _run(sweep, out, children) == {'done': 3, 'failed': 1, 'missing': 0}
  assert ('evaluate', name) not in children.stages()
  (failure,) = collect.read_csv(out / 'failures.csv')
  assert failure == {
    'point': name,
    'stage': 'train',
    'exit_code': '1',
    'reason': 'step 7: loss nan',
    'log': 'first line\nerror: step 7: loss nan',
  }
  assert len(collect.read_csv(out / 'results.csv')) == 3
  # The next call tries that one again, and nothing else.
  children.broken.clear()
  children.calls.clear()
  assert _run(sweep, out, children) == {'done': 4, 'failed': 0, 'missing': 0}
  assert children.stages() == [
    (stage, name) for stage in ('train', 'evaluate', 'checkerboard')
  ]
  assert not collect.read_csv(out / 'failures.csv')


def test_a_stopped_sweep_goes_on(tmp_path, children):
  sweep, out = _load(tmp_path), tmp_path / 'out'
  children.broken['evaluate', 'depth=1,seed=1'] = children_lib.Stopped()
  children.broken['summary', 'depth=2'] = children_lib.Stopped()
  assert _run(sweep, out, children) == {'done': 1, 'failed': 0, 'missing': 3}
  record = points.record_of(out, sweep.points[1])
  assert record['status'] == 'stopped' and record['seconds']['train'] > 0
  children.broken.clear()
  children.calls.clear()
  assert _run(sweep, out, children) == {'done': 4, 'failed': 0, 'missing': 0}
  # Training restores its last step.
  assert children.stages()[0] == ('train', 'depth=1,seed=1')
  # What was interrupted counts too.
  again = points.record_of(out, sweep.points[1])
  assert again['seconds']['train'] > record['seconds']['train']


def test_rates_that_diverge_lose(tmp_path, children):
  sweep, out = _load(tmp_path), tmp_path / 'out'
  diverged = children_lib.Failed('tuning', 1, 'error: loss nan: not finite.')
  children.broken['tuning', 'learning_rate=0.004'] = diverged
  _run(sweep, out, children)
  rows = collect.read_csv(out / 'results.csv')
  # Nearer to 0.004 than 0.008.
  assert {row['optimizer.learning_rate'] for row in rows} == {'0.001'}
  tried = collect.read_csv(out / 'tuning.csv')
  assert [t['diverged'] for t in tried] == ['False', 'True', 'False'] * 2
  # The result stands: nothing is tried again.
  assert children.stages().count(('tuning', 'learning_rate=0.004')) == 2


def test_no_rate_trains(tmp_path, children):
  diverged = children_lib.Failed('tuning', 1, 'error: loss nan: not finite.')
  children.broken['tuning', 'depth=1'] = diverged
  out = tmp_path / 'out'
  counts = _run(_load(tmp_path), out, children)
  assert counts == {'done': 2, 'failed': 2, 'missing': 0}
  failures = collect.read_csv(out / 'failures.csv')
  assert failures[0]['reason'] == (
    'depth=1: no optimizer.learning_rate of (0.001, 0.004, 0.008) trains; '
    'change TUNE'
  )


def test_a_budget_without_flops(tmp_path, children, monkeypatch):
  summary = {'parameters': 1, 'train_step': {'flops': None}}
  monkeypatch.setattr(
    children, '_summary', lambda fields: {'summary.json': summary}
  )
  _run(_load(tmp_path, budget='flops'), tmp_path / 'out', children)
  failure, *_ = collect.read_csv(tmp_path / 'out/failures.csv')
  assert (failure['stage'], failure['exit_code']) == ('budget', '1')
  assert failure['reason'] == (
    'the compiler of this backend tells no FLOP; take --budget=steps'
  )


def test_a_tuning_run_that_is_killed_is_no_verdict(tmp_path, children):
  sweep, out = _load(tmp_path), tmp_path / 'out'
  killed = children_lib.Failed('tuning', -9, '')
  children.broken['tuning', 'depth=1/learning_rate=0.004'] = killed
  assert _run(sweep, out, children)['failed'] == 2
  children.broken.clear()
  assert _run(sweep, out, children)['done'] == 4
  rows = collect.read_csv(out / 'results.csv')
  assert {row['optimizer.learning_rate'] for row in rows} == {'0.004'}


def test_without_tuning_the_base_s_rate_is_taken(tmp_path, children):
  sweep = _load(tmp_path, no_tune=True)
  _run(sweep, tmp_path / 'out', children)
  assert 'tuning' not in {stage for stage, _ in children.stages()}
  rows = collect.read_csv(tmp_path / 'out/results.csv')
  assert rows[0]['optimizer.learning_rate'] == '0.004'  # configs/shapes.py
  assert not (tmp_path / 'out/tuning.csv').exists()


def test_a_budget_of_flops_scales_the_steps(tmp_path, children):
  sweep = _load(tmp_path, budget='flops')
  _run(sweep, tmp_path / 'out', children)
  # Of the base, depth 3: 100 steps of 1000 FLOP.
  rows = collect.read_csv(tmp_path / 'out/results.csv')
  spent = [
    (row['model.depth'], row['train.num_steps'], row['train_flops'])
    for row in rows[::2]
  ]
  assert spent == [('1', '25', '4000.0'), ('2', '50', '2000.0')]
  # Its tuning too, 30 of the base's, and the warm-up, 10 of 100 steps.
  lengths = {
    (
      stage,
      fields['config.train.num_steps'],
      fields['config.optimizer.warmup_steps'],
    )
    for stage, _, fields in children.calls
    if stage in ('train', 'tuning')
  }
  assert lengths == {
    ('tuning', '8', '1'),
    ('tuning', '15', '2'),
    ('train', '25', '3'),
    ('train', '50', '5'),
  }


def test_points_at_the_same_time_share_the_tuning(tmp_path):
  children = _Pretended(jobs=4)
  counts = _run(_load(tmp_path), tmp_path / 'out', children, jobs=4)
  assert counts == {'done': 4, 'failed': 0, 'missing': 0}
  calls = [(stage, fields['workdir']) for stage, _, fields in children.calls]
  assert len(calls) == len(set(calls)) == 22


@pytest.mark.parametrize(
  'held',
  [
    'points/depth=1,seed=0/.point',
    'variants/depth=1/.lock',
    'variants/depth=1/learning_rate=0.001/.tuning',
    # Of main.py, which a killed runner has left behind.
    'variants/depth=1/learning_rate=0.001/.lock',
    'points/depth=1,seed=0/.lock',
  ],
)
def test_a_signal_ends_the_wait_for_another_machine(
  tmp_path, children, held, monkeypatch
):
  monkeypatch.setattr(children_lib, '_PAUSE', 0.01)
  sweep, out = _load(tmp_path), tmp_path / 'out'
  (out / held).parent.mkdir(parents=True)
  release = threading.Event()

  def hold():
    with locks.lock(out / held, 'a point of another machine'):
      signalled.start()
      release.wait(5)  # Without an end of the wait, the test's own.

  main = threading.main_thread().ident
  signalled = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGTERM))
  with concurrent.futures.ThreadPoolExecutor(1) as pool_of_one, children:
    holding = pool_of_one.submit(hold)
    while not signalled.is_alive():
      time.sleep(0.01)
    counts = _run(sweep, out, children)
    signalled.join()  # Not after the handlers.
    assert not holding.done()
    release.set()
  assert children.signal == signal.SIGTERM
  assert counts == {'done': 0, 'failed': 0, 'missing': 4}


def test_a_training_that_was_left_behind_is_awaited(
  tmp_path, children, monkeypatch
):
  monkeypatch.setattr(children_lib, '_PAUSE', 0.01)
  sweep, out = _load(tmp_path), tmp_path / 'out'
  folder = points.point_folder(out, sweep.points[0])
  folder.mkdir(parents=True)
  with contextlib.ExitStack() as stack:
    stack.enter_context(locks.lock(folder / '.lock', 'training'))
    before = []

    def let_go():
      before.extend(children.stages())
      stack.close()

    ending = threading.Timer(0.2, let_go)
    ending.start()
    counts = _run(sweep, out, children)
    ending.join()
  assert before and ('train', folder.name) not in before
  assert counts == {'done': 4, 'failed': 0, 'missing': 0}


def test_what_was_not_begun_stays_recorded(tmp_path, children):
  sweep, out = _load(tmp_path), tmp_path / 'out'
  failure = children_lib.Failed('train', 1, 'error: no memory')
  children.broken['train', 'depth=1,seed=0'] = failure
  children.broken['train', 'depth=1,seed=1'] = children_lib.Stopped()
  children.machine = {'cores': 4, 'jobs': 1}
  _run(sweep, out, children)
  before = [points.record_of(out, point) for point in sweep.points]
  assert [r['status'] for r in before] == ['failed', 'stopped', 'done', 'done']
  # A signal comes before anything is begun, or in the tuning.
  for broken in (False, True):
    again = _Pretended()
    again.machine = {'cores': 2, 'jobs': 2}
    if broken:
      again.broken['tuning', 'depth=1'] = children_lib.Stopped()
      shutil.rmtree(out / 'variants/depth=1/learning_rate=0.004')
    else:
      again.signal = signal.SIGTERM
    counts = _run(sweep, out, again)
    assert counts == {'done': 2, 'failed': 1, 'missing': 1}
    assert [points.record_of(out, point) for point in sweep.points] == before


def test_a_killed_point_has_its_machine(tmp_path, children):
  """What is recorded while it trains is all that a SIGKILL leaves."""
  sweep, out, seen = _load(tmp_path), tmp_path / 'out', []
  children._train = lambda fields: (
    seen.append(points.record_of(out, sweep.points[len(seen)])) or {}
  )
  _run(sweep, out, children)
  for record in seen:
    assert record['status'] == 'stopped'
    assert record['machine'] == {**children.machine, 'device': 'cpu'}


def test_other_cores_are_told(tmp_path, children, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)
  sweep, out = _load(tmp_path), tmp_path / 'out'
  children.broken['train', 'depth=2'] = children_lib.Stopped()
  children.machine = {'cores': 4, 'jobs': 1}
  _run(sweep, out, children)
  assert points.record_of(out, sweep.points[0])['machine'] == {
    'cores': 4,
    'jobs': 1,
    'device': 'cpu',
  }
  # An earlier version recorded none.
  path = points.point_folder(out, sweep.points[1]) / 'point.json'
  record = files.read_json(path)
  del record['machine']
  files.write_json(path, record)
  _run(sweep, out, children)
  assert not caplog.messages
  children.machine = {'cores': 2, 'jobs': 2}
  children.broken.clear()
  _run(sweep, out, children)
  assert caplog.messages == [
    'points of earlier calls had 4 cores each, now 2: their figures and those '
    'to come are not bit-equal to those of one machine and one --jobs'
  ]
  rows = collect.read_csv(out / 'results.csv')
  machines = [(row['device'], row['cores'], row['jobs']) for row in rows]
  assert machines == [('cpu', '4', '1'), ('', '', ''), *[('cpu', '2', '2')] * 2]


_JOB = """
import pathlib, sys
from experiments import begin, collect, files, sweeps

name, out = sys.argv[1], pathlib.Path(sys.argv[2])
sweep = sweeps.load(name)
print('ready', flush=True)
sys.stdin.read()
for i in range(50):
  begin.begin(sweep, out)
  files.write_json(out / 'same.json', [i])
  collect.write_csv(out / 'same.csv', ['i'], [{'i': i}])
"""


def test_jobs_that_start_together_write_the_same_files(tmp_path, children):
  sweep, out = _load(tmp_path), tmp_path / 'out'
  out.mkdir()
  with contextlib.ExitStack() as stack:
    jobs = []
    for _ in range(4):
      job = subprocess.Popen(
        [sys.executable, '-c', _JOB, sweep.path, out],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      jobs.append(stack.enter_context(job))
    for job in jobs:
      assert job.stdout.readline() == 'ready\n'
    for job in jobs:
      job.stdin.close()
    errors = [job.stderr.read() for job in jobs]
  assert [job.returncode for job in jobs] == [0] * 4, errors
  # What is the same is not written again.
  before = (out / 'sweep.json').stat()
  begin.begin(sweep, out)
  assert (out / 'sweep.json').stat().st_ino == before.st_ino
  names = {'.begin', 'sweep.json', 'same.json', 'same.csv'}
  assert {path.name for path in out.iterdir()} == names
