"""Runs a sweep: each point is trained, evaluated and measured by itself.

  python -m experiments.run SWEEP.py[:SIZE] --workdir=DIR [--jobs=N]
    [--config.section.field=value ...]

sweeps.py says what a sweep file is, collect.py what DIR/results.csv holds, from
which report.py makes DIR/REPORT.md and DIR/report.html. The same command again
continues: points that are done are skipped, others go on
from their checkpoints, failed ones are tried again. Exit code 1: a point
failed, DIR/failures.csv says why; 128 + N: stopped by signal N, trainings are
saved.

On a cluster, which queues, retries and preempts, one job is one point:
--slurm, --kubernetes and --xpk write what is submitted (see clusters.py), each
job runs --point=I, and --gather makes tables and report from the shared folder;
with --nolocks, for a folder without locks, each runs --variant=I.
"""

import os
import pathlib
import sys

from absl import app, flags

from experiments import begin, clusters, collect, points, pool, sweeps
from experiments.children import Children, Failed, Stopped
from unet_jax import errors, locks, logs

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the sweep.')
_JOBS = flags.DEFINE_integer(
  'jobs',
  1,
  'Points at once, each on its share of the cores; on a cluster jobs at once, '
  '1 is no limit.',
  lower_bound=1,
)
_NO_TUNE = flags.DEFINE_boolean('no_tune', False, 'Leave the tuning out.')
_BUDGET = flags.DEFINE_enum(
  'budget', '', ['', 'steps', 'flops'], 'What is the same for all points.'
)
_POINT = flags.DEFINE_integer('point', None, 'Run this one only.')
_VARIANT = flags.DEFINE_integer(
  'variant', None, 'Run the points of this one only.'
)
_LOCKS = flags.DEFINE_boolean(
  'locks', True, '--nolocks: a job of a cluster is a variant, not a point.'
)
_GATHER = flags.DEFINE_boolean('gather', False, 'Only write the report.')
_WRITES = {
  engine: flags.DEFINE_string(engine, None, f'Write a {what}, run nothing.')
  for engine, what in (
    ('slurm', 'script for sbatch'),
    ('kubernetes', 'manifest for kubectl'),
    ('xpk', 'script of xpk commands'),
  )
}
_IMAGE = flags.DEFINE_string(
  'image', '', 'Container with this code, for --kubernetes.'
)
_QUEUE = flags.DEFINE_string('queue', 'default', 'Local queue of Kueue.')
_CLAIM = flags.DEFINE_string(
  'claim', '', 'PersistentVolumeClaim that has --workdir, for --kubernetes.'
)
_CPUS = flags.DEFINE_integer(
  'cpus', 8, 'Of each job, for --slurm and --kubernetes.', lower_bound=1
)
_GPUS = flags.DEFINE_integer(
  'gpus', 1, 'Of each job, for --slurm and --kubernetes.', lower_bound=0
)
_TPU = flags.DEFINE_string(
  'tpu', '', 'TYPE:TOPOLOGY in place of GPUs, for --kubernetes.'
)


def _is_of_config(argument: str) -> bool:
  return argument.lstrip('-').startswith('config.')


def _parse_flags(argv: list[str]) -> list[str]:
  """Returns the sweep file and the --config.* flags, after the program."""
  try:
    rest = flags.FLAGS([a for a in argv if not _is_of_config(a)])
    if len(rest) != 2:
      raise errors.UserError(
        'name one sweep file, such as experiments/upsampling_depth/sweep.py'
      )
    if not _WORKDIR.value:
      raise errors.UserError(
        '--workdir=DIR is missing, the folder of the sweep'
      )
    return [*rest, *filter(_is_of_config, argv)]
  except (flags.Error, ValueError) as e:
    errors.leave(f'error: {errors.line_of_flags(e)}', 2)


def _write(sweep, directory: pathlib.Path, children: Children):
  """Writes tables and report, and says so; returns `collect.write`'s counts."""
  counts = collect.write(sweep, directory)
  line = ', '.join(f'{n} {status}' for status, n in counts.items() if n)
  if counts['failed']:
    line += f', see {directory / "failures.csv"}'
  line += f'; wrote {directory / "results.csv"}'
  if counts['done'] and children.signal is None:
    line += f', {_report(directory, children)}'
  print(line)
  return counts


def _report(directory: pathlib.Path, children: Children) -> str:
  """Has the report written, by a process: it predicts, on the device."""
  arguments = ['-m', 'experiments.report', str(directory), '--predict']
  log = directory / 'report.log'
  try:
    children.run('report', arguments, log)
  except Stopped:
    return 'no report'
  except Failed as e:
    raise errors.UserError(f'{e}; see {log}') from e
  return str(directory / 'report.html')


def _units(sweep) -> dict[str, list[list[sweeps.Point]]]:
  """Returns the points of each job of a cluster, for --point and --variant."""
  return {'point': [[p] for p in sweep.points], 'variant': sweep.variants}


def _run_one(sweep, directory: pathlib.Path, unit: str, index: int) -> int:
  """Runs --point or --variant; returns the exit code."""
  of_jobs = _units(sweep)[unit]
  if not 0 <= index < len(of_jobs):
    raise errors.UserError(
      f'--{unit}={index}: the sweep has the {unit}s 0 to {len(of_jobs) - 1}'
    )
  chosen = of_jobs[index]
  with Children() as children:
    pool.run(sweep, chosen, directory, children, 1, gathers=False)
  if children.signal is not None:
    return 128 + children.signal
  records = [points.record_of(directory, point) for point in chosen]
  return int(any(record['status'] != 'done' for record in records))


def _run_all(sweep, directory: pathlib.Path) -> int:
  """Runs what is left of the sweep; returns the exit code."""
  with locks.lock(directory / '.lock', f'the sweep of {directory}', wait=False):
    left = [
      point
      for point in sweep.points
      if points.record_of(directory, point).get('status') != 'done'
    ]
    with Children(_JOBS.value) as children:
      pool.run(sweep, left, directory, children, _JOBS.value)
      counts = _write(sweep, directory, children)
  return _exit_code(children, counts)


def _exit_code(children: Children, counts: dict[str, int]) -> int:
  if children.signal is None:
    return int(counts['failed'] > 0)
  print(
    f'stopped by signal {children.signal}; run the same command again to '
    'continue',
    file=sys.stderr,
  )
  return 128 + children.signal


def _write_jobs(sweep, arguments: list[str]) -> bool:
  """Writes what --slurm, --kubernetes and --xpk ask for; whether any did."""
  unit = 'point' if _LOCKS.value else 'variant'
  job = clusters.Job(
    arguments=tuple(arguments),
    unit=unit,
    points=tuple(tuple(p.name for p in ps) for ps in _units(sweep)[unit]),
    jobs=_JOBS.value,
    cpus=_CPUS.value,
    gpus=_GPUS.value,
    tpu=_TPU.value,
    image=_IMAGE.value,
    queue=_QUEUE.value,
    claim=_CLAIM.value,
    directory=os.path.abspath(_WORKDIR.value),
  )
  asked = {k: v.value for k, v in _WRITES.items() if v.value}
  for engine, path in asked.items():
    try:
      pathlib.Path(path).write_text(clusters.ENGINES[engine](job))
    except OSError as e:
      raise errors.UserError(
        f'--{engine}={path}: cannot be written ({e.strerror})'
      ) from e
    print(f'wrote {path}')
  return bool(asked)


def main(argv: list[str]) -> None:
  logs.set_up()
  _, name, *changes = argv
  directory = pathlib.Path(os.path.abspath(_WORKDIR.value))
  try:
    sweep = sweeps.load(name, tuple(changes), _NO_TUNE.value, _BUDGET.value)
    # What each job is started with, besides its --point.
    arguments = [name, f'--workdir={directory}', *changes]
    arguments += ['--no_tune'] * _NO_TUNE.value
    arguments += [f'--budget={_BUDGET.value}'] * bool(_BUDGET.value)
    if _write_jobs(sweep, arguments):
      return
    begin.begin(sweep, directory)
    if _GATHER.value:
      with Children() as children:
        counts = _write(sweep, directory, children)
      code = _exit_code(children, counts)
    elif _POINT.value is not None:
      code = _run_one(sweep, directory, 'point', _POINT.value)
    elif _VARIANT.value is not None:
      code = _run_one(sweep, directory, 'variant', _VARIANT.value)
    else:
      code = _run_all(sweep, directory)
  except (errors.UserError, OSError) as e:
    sys.exit(f'error: {errors.one_line(e, str(directory))}')
  sys.exit(code)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
