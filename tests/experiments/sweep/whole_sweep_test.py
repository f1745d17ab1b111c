"""The program itself: its flags and exit codes, and sweeps that are real."""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from experiments.sweep import __main__ as command
from experiments.sweep import folder as folders
from experiments.sweep import sweep_file, tables
from experiments.sweep.report import plots

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_FAST = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
_SKIPS = f'{_ROOT}/experiments/skips/sweep.py'


@pytest.fixture
def main(capsys):
  """A function that runs the command here; returns stdout and stderr."""

  def main(*arguments, code=0):
    try:
      actual = command.main(list(map(str, arguments)))
    except SystemExit as e:
      actual = e.code
    printed, errors = capsys.readouterr()
    assert actual == code, errors
    return printed, errors

  return main


@contextlib.contextmanager
def _start(*arguments, platform='cpu'):
  """Starts the program; kills it if the test has not waited for its end."""
  with subprocess.Popen(
    [sys.executable, '-m', 'experiments.sweep', *map(str, arguments)],
    cwd=_ROOT,
    env={**os.environ, 'JAX_PLATFORMS': platform, **_FAST},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      yield process
    finally:
      process.kill()


def _program(*arguments, code=0, **kwargs):
  """Runs the program; returns what it prints, and what on stderr."""
  with _start(*arguments, **kwargs) as process:
    # A machine that trains beside it is several times slower.
    out, err = process.communicate(timeout=480)
  assert process.returncode == code, err
  return out, err


def _stop(process, log, text=''):
  """Sends SIGTERM once a log has a text; returns as `_program` does."""
  end = time.monotonic() + 240
  while not (log.exists() and text in log.read_text()):
    assert process.poll() is None and time.monotonic() < end
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=240)
  assert process.returncode == 128 + signal.SIGTERM, err
  return out, err


# Of the command, and of a sweep: {flags: message}. DIR is a folder.
_WRONG_FLAGS = {
  '--workdir=DIR': (
    'name one sweep file, such as experiments/upsampling_depth/sweep.py'
  ),
  'sweep.py': '--workdir=DIR is missing, the folder of the sweep',
  'sweep.py --workdir=DIR --nolock': (
    '--nolock: there is no such flag; see --help'
  ),
  'sweep.py --workdir=DIR --jobs=0': 'argument --jobs: 0 is below 1',
  'sweep.py --jobs=x': "argument --jobs: invalid whole number value: 'x'",
}
_WRONG_VALUES = {
  '--point=12': 'the sweep has the points 0 to 11',
  '--variant=4': 'the sweep has the variants 0 to 3',
  '--slurm=no/such/a': 'cannot be written (No such file or directory)',
}


def test_mistakes_on_the_command_line(main, tmp_path):
  for flags, message in _WRONG_FLAGS.items():
    arguments = flags.replace('=DIR', f'={tmp_path}').split()
    assert main(*arguments, code=2) == ('', f'error: {message}\n')
  for flag, message in _WRONG_VALUES.items():
    printed = main(_SKIPS, f'--workdir={tmp_path}', flag, code=1)
    assert printed == ('', f'error: {flag}: {message}\n')


@pytest.mark.parametrize(
  'flags, unit, last', [((), 'point', 11), (('--nolocks',), 'variant', 3)]
)
def test_without_locks_a_job_is_a_variant(main, flags, unit, last, tmp_path):
  """Four variants of three seeds, which no two jobs share."""
  script = tmp_path / unit
  main(_SKIPS, f'--workdir={tmp_path}/out', f'--slurm={script}', *flags)
  text = script.read_text()
  assert f'\n#SBATCH --array=0-{last}\n' in text
  assert f' --{unit}="$SLURM_ARRAY_TASK_ID"\n' in text


def test_the_points_of_a_variant_are_run(main, tmp_path):
  for seed in (0, 1, 2):
    folder = tmp_path / f'points/skip=add,seed={seed}'
    folders.write_json(folder / 'point.json', {'status': 'done'})
  _, err = main(_SKIPS, f'--workdir={tmp_path}', '--variant=1')
  assert [line.split(',')[1] for line in err.splitlines()] == [
    f'seed={seed}: done' for seed in (0, 1, 2)
  ]


_TINY = """
'Does it repeat?'

OVERRIDES = {
  'data.image_size': (16, 16), 'data.num_train': 20, 'data.num_eval': 24,
  'data.batch_size': 4, 'model.depth': 0, 'model.norm': 'none',
  'model.base_features': 2, 'train.num_steps': 6, 'eval.every': 3,
  'eval.bootstrap': 0, 'eval.num_examples': 1, 'log.every': 1,
  'log.num_examples': 0, 'log.tensorboard': False, 'cpu.kernels': 'xla',
  # A step is compiled for the tables nevertheless.
  'summary.compile': False,
}
TUNE = {'optimizer.learning_rate': (4e-3,), 'steps': 1}

def sweep():
  yield {'seed': 0}
"""


@pytest.fixture
def tiny(tmp_path):
  """A sweep file, and a flag that keeps its data out of the home folder."""
  path = tmp_path / 'sweep.py'
  path.write_text(_TINY)
  return str(path), f'--config.data.cache_dir={tmp_path}'


def test_jobs_have_the_flags_of_the_sweep(main, tiny, tmp_path):
  script, out = tmp_path / 'sweep.sbatch', tmp_path / 'out'
  changes = ('--budget=flops', '--no_tune', '--config.model.base_features=4')
  arguments = [*tiny, f'--workdir={out}', *changes]
  printed, _ = main(*arguments, f'--slurm={script}', '--jobs=2')
  assert printed == f'wrote {script}\n'
  (line,) = [x for x in script.read_text().splitlines() if x.startswith('srun')]
  words = shlex.split(line)
  assert words[2:6] == ['python', '-m', 'experiments.sweep', arguments[0]]
  assert words[-1] == '--point=$SLURM_ARRAY_TASK_ID'
  assert sorted(words[6:-1]) == sorted(arguments[1:])
  assert '#SBATCH --array=0-0%2' in script.read_text()
  assert not out.exists()


@pytest.mark.whole_runs
def test_an_engine_learns_that_a_point_failed(main, tiny, tmp_path):
  flags = (*tiny, f'--workdir={tmp_path}/out')
  _, err = _program(*flags, '--point=0', code=1, platform='none')
  assert err.startswith('1/1 seed=0: failed: summary: ')
  printed, _ = main(*flags, '--gather', code=1)
  assert printed == (
    f'1 failed, see {tmp_path}/out/failures.csv; '
    f'wrote {tmp_path}/out/results.csv\n'
  )


# Titles in the report for columns of results.csv, as they follow one another.
_TITLES = (
  '| image mean IoU | dataset mean IoU | image mean boundary IoU '
  '| dataset mean boundary IoU |',
  '| parameters | GFLOP of a train step | GFLOP of inference, an image '
  '| memory of a train step, MiB | memory of inference, MiB | compiling, s '
  '| images/s, training | images/s, inference | receptive field, px '
  '| checkerboard, period 2 |',
  '| learning rate |',
)


def _check_report(out):
  """Nothing is skipped: the tables have the columns that it looks for."""
  words = (out / 'REPORT.md').read_text()
  assert words.startswith('# Does it repeat?\n')
  assert 'Skipped' not in words
  for titles in _TITLES:
    assert titles in words, titles
  drawn = {path.name for path in (out / 'figures').iterdir()}
  assert drawn > {*plots.NEEDS, 'predictions_0.png'}
  page = (out / 'report.html').read_text()
  assert page.count('data:image/png') == len(drawn)


def _check_row(row):
  assert float(row['train_flops']) > float(row['inference_flops']) > 0
  speeds = [f'{what}_images_per_second' for what in ('train', 'inference')]
  for name in ('train_bytes', 'compile_seconds', *speeds):
    assert float(row[name]) > 0
  assert 0 < float(row['eval/dataset_miou']) < 1
  assert row['checkerboard/period_2'] and row['receptive_field'] == '5'
  assert row['device'] == 'cpu'


@pytest.mark.slow
@pytest.mark.whole_runs
def test_a_sweep_repeats_bit_for_bit_also_after_stops(tiny, tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  printed, err = _program(*tiny, f'--workdir={one}')
  assert printed == f'1 done; wrote {one}/results.csv, {one}/report.html\n'
  assert '1/1 seed=0: done' in err and '0:00:00 left' in err
  with open(one / 'points/seed=0/eval.csv') as f:
    assert len(f.readlines()) == 1 + 24
  _check_report(one)
  (row,) = folders.read_csv(one / 'results.csv')
  _check_row(row)

  # A job of a cluster that is stopped before its point is begun.
  flags = (*tiny, f'--workdir={two}')
  with _start(*flags, '--point=0') as process:
    _stop(process, two / 'variants/base/log.txt')
  assert not (two / 'points/seed=0/point.json').exists()
  # The whole sweep, stopped in training.
  log = two / 'points/seed=0/log.txt'
  with _start(*flags) as process:
    printed, err = _stop(process, log, 'first step done')
  assert printed == f'1 missing; wrote {two}/results.csv\n'
  assert err.splitlines()[-1] == (
    'stopped by signal 15; run the same command again to continue'
  )
  # By the flag of a job; the table is as that of --gather.
  _program(*flags, '--point=0')
  tables.write(sweep_file.load(tiny[0], tiny[1:]), two)
  for name in ('results.csv', 'tuning.csv'):
    (old,), (new,) = (folders.read_csv(out / name) for out in (one, two))
    assert list(old) == list(new)
    for column in old:
      is_of_clock = column.endswith(('_seconds', '_per_second'))
      assert is_of_clock or old[column] == new[column], column
