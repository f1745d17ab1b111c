"""Whole sweeps, with programs that only pretend."""

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
import threading

import pytest

from experiments.sweep import children as children_lib
from experiments.sweep import folder as folders
from experiments.sweep import runner, sweep_file, tables
from unet_jax.runtime import locks

_ROOT = pathlib.Path(__file__).resolve().parents[3]

_SWEEP = """
'Is deeper better?'

OVERRIDES = {'train.num_steps': 100, 'optimizer.warmup_steps': 10}
TUNE = {'optimizer.learning_rate': (1e-3, 4e-3, 8e-3), 'steps': 30}

def sweep():
  for depth in (1, 2):
    for seed in (0, 1):
      yield {'model.depth': depth, 'seed': seed}
"""
_STAGES = ('train', 'evaluate')
_NAMES = [f'depth={depth},seed={seed}' for depth in (1, 2) for seed in (0, 1)]
_RATE = 'optimizer.learning_rate'


def _load(tmp_path, **kwargs):
  path = tmp_path / 'sweep.py'
  path.write_text(_SWEEP)
  return sweep_file.load(str(path), **kwargs)


@pytest.fixture
def sweep(tmp_path):
  return _load(tmp_path)


class _Pretended(children_lib.Children):
  """Writes what the programs would; `broken` says which fail, and how."""

  def __init__(self, jobs=1, cores=None):
    super().__init__(jobs)
    self.calls, self.broken = [], {}
    self.train_flops = 8000.0
    self.at_pause = lambda: None
    if cores:
      self.machine = {'cores': cores, 'jobs': jobs}

  def _pause(self):
    self.at_pause()
    self.check()

  def run(self, stage, arguments, log):
    self.check()
    fields = dict(a.split('=', 1) for a in arguments if '=' in a[:60])
    folder = log.parent
    fields['folder'] = str(folder)
    self.calls.append((stage, folder.name, fields))
    for (of, part), error in self.broken.items():
      if of == stage and part in str(folder):
        raise error
    for name, value in getattr(self, f'_{stage}')(fields).items():
      # Whole, as the programs do: other threads read the tables' sources.
      temporary = folder / f'{name}.tmp'
      temporary.write_text(json.dumps(value) + '\n')
      temporary.replace(folder / name)

  def stages(self):
    return [(stage, name) for stage, name, _ in self.calls]

  def _summary(self, fields):
    # Each of the base's three downsamplings halves the work here.
    depth = int(fields.get('--config.model.depth', 3))
    flops = self.train_flops and self.train_flops / 2**depth
    names = ('inference_flops', 'inference_bytes', 'compile_seconds')
    costs = {**dict.fromkeys(names, 2.0), 'inference_images_per_second': 3.0}
    step = {'flops': flops, 'total_bytes': 7}
    about = {'parameters': 10 * depth, 'receptive_field': 5, 'train_step': step}
    return {'summary.json': about, 'costs.json': {**costs, 'device': 'cpu'}}

  def _tuning(self, fields):
    # The best rate is 0.004, not the last.
    rate = float(fields['--config.optimizer.learning_rate'])
    metrics = {'eval/dataset_miou': 0.5 - abs(rate - 4e-3), 'eval/loss': 1.0}
    step = int(fields['--config.train.num_steps'])
    return {'eval.json': {'step': step, **metrics}}

  def _train(self, fields):
    return {'metrics.jsonl': {'step': 1, 'train/images_per_second': 9.0}}

  def _evaluate(self, fields):
    # A score that is not defined.
    metrics = {'eval/dataset_miou': 0.7, 'eval/dataset_iou/bar': None}
    about = {'num_examples': 4, 'seconds': 1.5, 'split': 't'}
    return {
      'eval.json': {**about, **metrics},
      'checkerboard.json': {'period_2': 1e-3, 'period_8': None},
    }


@pytest.fixture
def children():
  return _Pretended()


@pytest.fixture
def out(tmp_path):
  path = tmp_path / 'out'
  path.mkdir()
  return path


def _run(sweep, directory, children, jobs=1):
  """Runs what is left, as main does; returns (done, failed, missing)."""
  left = [p for p in sweep.points if not folders.is_done(directory, p)]
  runner.Runner(sweep, directory, children).run(left, jobs)
  counts = tables.write(sweep, directory)
  assert list(counts) == ['done', 'failed', 'missing']
  return tuple(counts.values())


def _column(out, name, table='results.csv'):
  return [row[name] for row in folders.read_csv(out / table)]


def _records(out, sweep):
  return [folders.record_of(out, point) for point in sweep.points]


def test_each_variant_is_tuned_once_and_alike(sweep, out, children):
  assert _run(sweep, out, children) == (4, 0, 0)
  expected = []
  for depth in (1, 2):
    expected.append(('summary', f'depth={depth}'))
    rates = ('0.001', '0.004', '0.008')
    expected += [('tuning', f'learning_rate={rate}') for rate in rates]
    names = [name for name in _NAMES if name.startswith(f'depth={depth}')]
    expected += [(stage, name) for name in names for stage in _STAGES]
  assert children.stages() == expected
  of_stages = {
    # On a part of the training split.
    'tuning': {
      'seed': '1000',
      'data.eval_split': 'auto',
      'data.num_folds': '5',
      'train.num_steps': '30',
      'optimizer.warmup_steps': '3',
    },
    'train': {_RATE: '0.004', 'train.num_steps': '100', 'data.num_folds': None},
  }
  for stage, _, fields in children.calls:
    for field, value in of_stages.get(stage, {}).items():
      assert fields.get(f'--config.{field}') == value


def test_tables(sweep, out, children):
  _run(sweep, out, children)
  assert _column(out, 'point') == _NAMES
  row = folders.read_csv(out / 'results.csv')[3]
  assert float(row.pop('train_seconds')) > 0
  assert float(row.pop('evaluate_seconds')) > 0
  cores = len(os.sched_getaffinity(0))
  expected = f"""
    point: depth=2,seed=1; variant: depth=2; seed: 1; model.depth: 2;
    optimizer.learning_rate: 0.004; train.num_steps: 100; parameters: 20;
    receptive_field: 5; train_flops: 2000.0; train_bytes: 7;
    inference_flops: 2.0; inference_bytes: 2.0; checkerboard/period_2: 0.001;
    checkerboard/period_8: ; num_examples: 4; eval/dataset_miou: 0.7;
    eval/dataset_iou/bar: ; device: cpu; cores: {cores}; jobs: 1;
    compile_seconds: 2.0; train_images_per_second: 9.0;
    inference_images_per_second: 3.0"""
  found = '; '.join(f'{name}: {value}' for name, value in row.items())
  assert found.split() == expected.split()
  tried = folders.read_csv(out / 'tuning.csv')
  assert [t['variant'] for t in tried] == ['depth=1'] * 3 + ['depth=2'] * 3
  assert [t['chosen'] for t in tried] == ['False', 'True', 'False'] * 2
  assert (tried[0][_RATE], tried[0]['eval/dataset_miou']) == ('0.001', '0.497')


def test_a_terminal_has_a_bar(monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, 'stderr', terminal)
  progress = runner.Progress(total=4, done=1, jobs=1)
  progress.ended('depth=1', 2.0, '')
  progress.ended('depth=2', 3.0, 'failed: train: loss nan')
  progress.close()
  lines = re.split('[\r\n]+', terminal.getvalue())
  # Points that are done are in the bar alone.
  assert lines.count('depth=2: failed: train: loss nan') == 1
  assert 'depth=1' not in terminal.getvalue()
  (last,) = [line for line in lines if 'failed=1' in line][-1:]
  assert '75%' in last and '3/4' in last


def test_a_failure_is_recorded_and_the_rest_goes_on(sweep, out, children):
  name = 'depth=1,seed=1'
  children.broken['train', name] = children_lib.Failed(
    'train', 1, 'first line\nerror: step 7: loss nan\n'
  )
  assert _run(sweep, out, children) == (3, 1, 0)
  assert ('evaluate', name) not in children.stages()
  (failure,) = folders.read_csv(out / 'failures.csv')
  assert failure == {
    'point': name,
    'stage': 'train',
    'exit_code': '1',
    'reason': 'step 7: loss nan',
    'log': 'first line\nerror: step 7: loss nan',
  }
  assert len(_column(out, 'point')) == 3
  # The next call tries that one again, and nothing else.
  again = _Pretended()
  assert _run(sweep, out, again) == (4, 0, 0)
  assert again.stages() == [(stage, name) for stage in _STAGES]
  assert not folders.read_csv(out / 'failures.csv')


def test_a_stopped_sweep_goes_on(sweep, out, children):
  children.broken['evaluate', 'depth=1,seed=1'] = children_lib.Stopped()
  children.broken['summary', 'depth=2'] = children_lib.Stopped()
  assert _run(sweep, out, children) == (1, 0, 3)
  record = folders.record_of(out, sweep.points[1])
  assert record['status'] == 'stopped' and record['seconds']['train'] > 0
  again = _Pretended()
  assert _run(sweep, out, again) == (4, 0, 0)
  # Training restores its last step.
  assert again.stages()[0] == ('train', 'depth=1,seed=1')
  # What was interrupted counts too.
  last = folders.record_of(out, sweep.points[1])
  assert last['seconds']['train'] > record['seconds']['train']


_DIVERGED = children_lib.Failed('tuning', 1, 'error: loss nan: not finite.')


def test_rates_that_diverge_lose(sweep, out, children):
  children.broken['tuning', 'learning_rate=0.004'] = _DIVERGED
  _run(sweep, out, children)
  # Nearer to 0.004 than 0.008.
  assert set(_column(out, _RATE)) == {'0.001'}
  expected = ['False', 'True', 'False'] * 2
  assert _column(out, 'diverged', 'tuning.csv') == expected
  # The result stands: nothing is tried again.
  assert children.stages().count(('tuning', 'learning_rate=0.004')) == 2


def test_a_variant_of_which_no_rate_trains_fails(sweep, out, children):
  children.broken['tuning', 'depth=1'] = _DIVERGED
  assert _run(sweep, out, children) == (2, 2, 0)
  assert _column(out, 'reason', 'failures.csv')[0] == (
    'depth=1: no optimizer.learning_rate of (0.001, 0.004, 0.008) trains; '
    'change TUNE'
  )


def test_a_budget_of_unknown_flops_fails(tmp_path, out, children):
  children.train_flops = None
  assert _run(_load(tmp_path, budget='flops'), out, children) == (0, 4, 0)
  failure, *_ = folders.read_csv(out / 'failures.csv')
  assert (failure['stage'], failure['exit_code']) == ('budget', '1')
  assert failure['reason'] == (
    'the compiler of this backend reports no FLOP; take --budget=steps'
  )


def test_a_tuning_run_that_is_killed_is_no_verdict(sweep, out, children):
  killed = children_lib.Failed('tuning', -9, '')
  children.broken['tuning', 'depth=1/learning_rate=0.004'] = killed
  assert _run(sweep, out, children) == (2, 2, 0)
  assert _run(sweep, out, _Pretended()) == (4, 0, 0)
  assert set(_column(out, _RATE)) == {'0.004'}


def test_without_tuning_the_base_s_rate_is_taken(tmp_path, out, children):
  _run(_load(tmp_path, no_tune=True), out, children)
  assert 'tuning' not in {stage for stage, _ in children.stages()}
  assert _column(out, _RATE)[0] == '0.004'  # configs/shapes.py
  assert not (out / 'tuning.csv').exists()


def test_a_budget_of_flops_scales_the_steps(tmp_path, out, children):
  _run(_load(tmp_path, budget='flops'), out, children)
  # Of the base, depth 3: 100 steps of 1000 FLOP.
  columns = ('model.depth', 'train.num_steps', 'train_flops')
  spent = list(zip(*(_column(out, name)[::2] for name in columns)))
  assert spent == [('1', '25', '4000.0'), ('2', '50', '2000.0')]
  # Its tuning too, 30 of the base's, and the warm-up, 10 of 100 steps.
  names = ('--config.train.num_steps', '--config.optimizer.warmup_steps')
  lengths = {'train': set(), 'tuning': set()}
  for stage, _, fields in children.calls:
    if stage in lengths:
      lengths[stage].add(tuple(fields[name] for name in names))
  assert lengths['tuning'] == {('8', '1'), ('15', '2')}
  assert lengths['train'] == {('25', '3'), ('50', '5')}


def test_points_at_the_same_time_share_the_tuning(sweep, out):
  children = _Pretended(jobs=4)
  children.at_pause = lambda: threading.Event().wait(0.01)
  assert _run(sweep, out, children, jobs=4) == (4, 0, 0)
  calls = [(stage, fields['folder']) for stage, _, fields in children.calls]
  # For each variant a summary and three trials, for each point two stages.
  assert len(calls) == len(set(calls)) == 2 * (1 + 3) + 4 * 2


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
def test_a_signal_ends_the_wait_for_another_machine(sweep, out, children, held):
  (out / held).parent.mkdir(parents=True)
  main = threading.main_thread().ident
  signalled = threading.Event()

  def at_pause():
    if not signalled.is_set():
      signalled.set()
      signal.pthread_kill(main, signal.SIGTERM)
    threading.Event().wait(0.01)

  children.at_pause = at_pause
  with locks.lock(out / held, 'a point of another machine'), children:
    counts = _run(sweep, out, children)
  assert signalled.is_set() and children.signal == signal.SIGTERM
  assert counts == (0, 0, 4)


def test_a_training_that_was_left_behind_is_awaited(sweep, out, children):
  before = []
  folder = folders.of_point(out, sweep.points[0])
  folder.mkdir(parents=True)
  with contextlib.ExitStack() as stack:
    stack.enter_context(locks.lock(folder / '.lock', 'training'))

    def at_pause():
      before.extend(children.stages())
      stack.close()

    children.at_pause = at_pause
    assert _run(sweep, out, children) == (4, 0, 0)
  assert before and ('train', folder.name) not in before


def test_what_was_not_begun_stays_recorded(sweep, out):
  children = _Pretended(cores=4)
  failure = children_lib.Failed('train', 1, 'error: no memory')
  children.broken['train', 'depth=1,seed=0'] = failure
  children.broken['train', 'depth=1,seed=1'] = children_lib.Stopped()
  _run(sweep, out, children)
  before = _records(out, sweep)
  assert [r['status'] for r in before] == ['failed', 'stopped', 'done', 'done']
  # A signal comes before anything is begun, or in the tuning.
  for broken in (False, True):
    again = _Pretended(jobs=2, cores=2)
    if broken:
      again.broken['tuning', 'depth=1'] = children_lib.Stopped()
      shutil.rmtree(out / 'variants/depth=1/learning_rate=0.004')
    else:
      again.signal = signal.SIGTERM
    assert _run(sweep, out, again) == (2, 1, 1)
    assert _records(out, sweep) == before


def test_a_killed_point_has_its_machine(sweep, out, children):
  """What is recorded while it trains is all that a SIGKILL leaves."""
  seen = []
  children._train = lambda fields: (
    seen.append(folders.record_of(out, sweep.points[len(seen)])) or {}
  )
  _run(sweep, out, children)
  for record in seen:
    assert record['status'] == 'stopped'
    assert record['machine'] == {**children.machine, 'device': 'cpu'}


def test_other_cores_are_reported(sweep, out, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)
  children = _Pretended(cores=4)
  children.broken['train', 'depth=2'] = children_lib.Stopped()
  _run(sweep, out, children)
  first, second = _records(out, sweep)[:2]
  assert first['machine'] == {'cores': 4, 'jobs': 1, 'device': 'cpu'}
  # An earlier version recorded none.
  del second['machine']
  path = folders.of_point(out, sweep.points[1]) / 'point.json'
  folders.write_json(path, second)
  _run(sweep, out, children)
  assert not caplog.messages
  _run(sweep, out, _Pretended(jobs=2, cores=2))
  assert caplog.messages == [
    'points of earlier calls had 4 cores each, now 2: their metrics and those '
    'to come are not bit-equal to those of one machine and one --jobs'
  ]
  machines = list(zip(*(_column(out, c) for c in ('device', 'cores', 'jobs'))))
  assert machines == [('cpu', '4', '1'), ('', '', ''), *[('cpu', '2', '2')] * 2]


_BARE = """
from unet_jax.config import default
from experiments.sweep import folder, points

base = points.Point({}, 'base', 'base')
sweep = points.Sweep(
  'sweep.py', '', '?', (), default.get_config(), None, 'steps', (base,)
)
"""
_JOB = f"""
import pathlib, sys
from unet_jax.runtime import whole_files
{_BARE}
out = pathlib.Path(sys.argv[1])
print('ready', flush=True)
sys.stdin.read()
for i in range(50):
  folder.begin(sweep, out)
  folder.write_json(out / 'same.json', [i])
  whole_files.write_csv(out / 'same.csv', [{{'i': i}}], by_all=True)
"""


def test_jobs_that_start_together_write_the_same_files(out):
  with contextlib.ExitStack() as stack:
    command, pipes = [sys.executable, '-c', _JOB, out], ('in', 'out', 'err')
    piped = {f'std{name}': subprocess.PIPE for name in pipes}
    jobs = [
      stack.enter_context(
        subprocess.Popen(command, cwd=_ROOT, text=True, **piped)
      )
      for _ in range(4)
    ]
    for job in jobs:
      assert job.stdout.readline() == 'ready\n'
    for job in jobs:
      job.stdin.close()
    errors = [job.stderr.read() for job in jobs]
  assert [job.returncode for job in jobs] == [0] * 4, errors
  # What is the same is not written again.
  before = (out / 'sweep.json').stat()
  exec(_BARE, names := {})
  folders.begin(names['sweep'], out)
  assert (out / 'sweep.json').stat().st_ino == before.st_ino
  written = {'.begin', 'sweep.json', 'same.json', 'same.csv'}
  assert {path.name for path in out.iterdir()} == written
