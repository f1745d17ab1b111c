"""Runs a sweep: each point is trained, evaluated and measured by itself.

  python -m experiments.sweep SWEEP.py[:SIZE] --workdir=DIR [--jobs=N]
    [--config.section.field=value ...]

sweep_file.py describes sweep files, tables.py the columns of DIR/results.csv,
from which report/ makes DIR/REPORT.md and DIR/report.html. The same command
again continues: points that are done are skipped, others go on from their
checkpoints, failed ones are tried again. Exit code 1: a point failed,
DIR/failures.csv has the reason; 128 + N: stopped by signal N, trainings are
saved.

On a cluster, which queues, retries and preempts, one job is one point:
--slurm, --kubernetes and --xpk write the file to submit (see clusters.py), each
job runs --point=I, and --gather makes tables and report from the shared folder;
with --nolocks, for a folder without locks, each runs --variant=I.
"""

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from experiments.sweep import clusters, folder, runner, sweep_file, tables
from experiments.sweep.children import Children, Failed, Stopped
from experiments.sweep.points import Point, Sweep
from unet_jax.runtime import errors, locks, logs


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    errors.exit_with(f'error: {message}', 2)


def _at_least(lowest: int) -> Callable[[str], int]:
  def parse(text: str) -> int:
    if int(text) < lowest:
      raise argparse.ArgumentTypeError(f'{text} is below {lowest}')
    return int(text)

  parse.__name__ = 'whole number'  # In the message for other texts.
  return parse


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog='python -m experiments.sweep',
    usage='%(prog)s SWEEP.py[:SIZE] --workdir=DIR [--config.section.field=value'
    ' ...] [further options]',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--workdir', help='folder of the sweep')
  add(
    '--jobs',
    type=_at_least(1),
    default=1,
    help='points at once, each on its share of the cores; on a cluster jobs at '
    'once, 1 is no limit',
  )
  add('--no_tune', action='store_true', help='skip the tuning')
  add('--budget', default='', choices=('steps', 'flops'), help='equal for all')
  add('--point', type=int, help='run this one only')
  add('--variant', type=int, help='run the points of this one only')
  add('--gather', action='store_true', help='only write the report')
  cluster = parser.add_argument_group('on a cluster')
  add = cluster.add_argument
  add('--slurm', metavar='FILE', help='write a script for sbatch')
  add('--kubernetes', metavar='FILE', help='write a manifest for kubectl')
  add('--xpk', metavar='FILE', help='write a script of xpk commands')
  add('--nolocks', action='store_true', help='a job is a variant, not a point')
  add('--cpus', type=_at_least(1), default=8, help='of each job')
  add('--gpus', type=_at_least(0), default=1, help='of each job')
  add('--tpu', default='', help='TYPE:TOPOLOGY instead of GPUs (Kubernetes)')
  add('--image', default='', help='container with this code (Kubernetes)')
  add('--queue', default='default', help='local queue of Kueue')
  add('--claim', default='', help='PersistentVolumeClaim that has --workdir')
  return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags, with `sweep`, its file, and `changes`, --config.*."""
  parser = _parser()
  args, rest = parser.parse_known_args(argv)
  files = [a for a in rest if not a.startswith('-')]
  args.changes = [a for a in rest if re.match('-+config[.]', a)]
  for flag in rest:
    if flag not in (*files, *args.changes):
      parser.error(f'{flag}: there is no such flag; see --help')
  if len(files) != 1:
    parser.error(
      'name one sweep file, such as experiments/upsampling_depth/sweep.py'
    )
  if not args.workdir:
    parser.error('--workdir=DIR is missing, the folder of the sweep')
  (args.sweep,) = files
  args.workdir = os.path.abspath(args.workdir)
  return args


def _run(sweep: Sweep, chosen: Sequence[Point], directory: pathlib.Path) -> int:
  """Runs points of a job of a cluster; returns the exit code."""
  with Children() as children:
    runner.Runner(sweep, directory, children).run(chosen, 1, gathers=False)
  if children.signal is not None:
    return 128 + children.signal
  return int(not all(folder.is_done(directory, point) for point in chosen))


def _run_all(sweep: Sweep, directory: pathlib.Path, jobs: int) -> int:
  """Runs the points that are not done, and reports; returns the exit code."""
  with locks.lock(directory / '.lock', f'the sweep of {directory}', wait=False):
    left = [p for p in sweep.points if not folder.is_done(directory, p)]
    with Children(jobs) as children:
      runner.Runner(sweep, directory, children).run(left, jobs)
      return _gather(sweep, directory, children)


def _gather(sweep: Sweep, directory: pathlib.Path, children: Children) -> int:
  """Writes tables and report, and prints it; returns the exit code."""
  counts = tables.write(sweep, directory)
  line = ', '.join(f'{n} {status}' for status, n in counts.items() if n)
  if counts['failed']:
    line += f', see {directory / "failures.csv"}'
  line += f'; wrote {directory / "results.csv"}'
  if counts['done'] and children.signal is None:
    line += f', {_report(directory, children)}'
  print(line)
  if children.signal is None:
    return int(counts['failed'] > 0)
  print(
    f'stopped by signal {children.signal}; run the same command again to '
    'continue',
    file=sys.stderr,
  )
  return 128 + children.signal


def _report(directory: pathlib.Path, children: Children) -> str:
  """Writes the report in a process, since it predicts, on the device."""
  arguments = ['-m', 'experiments.sweep.report', str(directory), '--predict']
  log = directory / 'report.log'
  try:
    children.run('report', arguments, log)
  except Stopped:
    return 'no report'
  except Failed as e:
    raise errors.UserError(f'{e}; see {log}') from e
  return str(directory / 'report.html')


def _write_jobs(
  units: Sequence[Sequence[Point]], unit: str, args: argparse.Namespace
) -> bool:
  """Writes the files of --slurm, --kubernetes and --xpk, if any is given."""
  arguments = [args.sweep, f'--workdir={args.workdir}', *args.changes]
  arguments += ['--no_tune'] * args.no_tune
  arguments += [f'--budget={args.budget}'] * bool(args.budget)
  job = clusters.Job(
    arguments=tuple(arguments),
    unit=unit,
    points=tuple(tuple(point.name for point in points) for points in units),
    directory=args.workdir,
    **{name: getattr(args, name) for name in clusters.FLAGS},
  )
  asked = {k: v for k in clusters.ENGINES if (v := getattr(args, k))}
  for engine, path in asked.items():
    try:
      pathlib.Path(path).write_text(clusters.ENGINES[engine](job))
    except OSError as e:
      raise errors.UserError(
        f'--{engine}={path}: cannot be written ({e.strerror})'
      ) from e
    print(f'wrote {path}')
  return bool(asked)


def _command(args: argparse.Namespace) -> int:
  """Carries out the flags; returns the exit code."""
  directory = pathlib.Path(args.workdir)
  sweep = sweep_file.load(
    args.sweep, tuple(args.changes), args.no_tune, args.budget
  )
  units = {'point': [[p] for p in sweep.points], 'variant': sweep.variants}
  unit = 'variant' if args.nolocks else 'point'
  if _write_jobs(units[unit], unit, args):
    return 0
  folder.begin(sweep, directory)
  if args.gather:
    with Children() as children:
      return _gather(sweep, directory, children)
  for unit, jobs in units.items():
    index = getattr(args, unit)
    if index is None:
      continue
    if not 0 <= index < len(jobs):
      raise errors.UserError(
        f'--{unit}={index}: the sweep has the {unit}s 0 to {len(jobs) - 1}'
      )
    return _run(sweep, jobs[index], directory)
  return _run_all(sweep, directory, args.jobs)


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit code."""
  args = _parse(argv)
  try:
    return _command(args)
  except (errors.UserError, OSError) as e:
    print(f'error: {errors.one_line(e, args.workdir)}', file=sys.stderr)
    return 1


if __name__ == '__main__':
  logs.set_up()
  sys.exit(main(sys.argv[1:]))
