"""Tables of a sweep, from the folders of its points.

results.csv has a line for each point that is done, in the order of the sweep
file. Its columns:

  point, variant             names of the point, and of it without its seed
  seed, model.depth, ...     fields: those that differ, the tuned one,
                             optimizer.learning_rate, train.num_steps
  parameters, receptive_field (pixels along an axis)
  train_flops, train_bytes   of a train step on one device, by the compiler:
                             FLOP, and memory of arguments, outputs and
                             temporaries
  inference_flops, inference_bytes  FLOP of an image, memory of a batch
  checkerboard/period_2, ... see checkerboard.py
  num_examples, eval/...     of --mode=evaluate
  device, cores, jobs        the kind of device that the variant's costs were
                             measured on, cores that the point's process might
                             use, last, and how many points at once; empty where
                             an older version did not record it
  ..._seconds, ..._per_second  depend on the clock: training, evaluation (with
                             the measure of checkerboards), compiling, images/s;
                             all other columns repeat bit for bit on the CPU of
                             one machine with the same --jobs

Undefined metrics are empty cells. tuning.csv has a line for each value that was
tried for a variant, failures.csv one for each point that failed.
"""

import functools
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from experiments.sweep import folder as folders
from experiments.sweep import tuning
from experiments.sweep.points import Point, Sweep, Tune
from unet_jax.runtime import whole_files

# The machine of a point, in its record.
MACHINE = ('device', 'cores', 'jobs')

Row = dict[str, Any]


def _columns(rows: list[Row]) -> list[str]:
  """Returns all names in order; last those of the machine and the clock."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  is_of_clock = lambda name: name.endswith(('_seconds', '_per_second'))
  return sorted(names, key=lambda name: (is_of_clock(name), name in MACHINE))


def _images_per_second(folder: pathlib.Path) -> float | None:
  """Returns the median over the intervals of a training run."""
  # It imports jax, which asks for no device by itself.
  from unet_jax.training import metric_writer

  rates = [
    line['train/images_per_second']
    for line in metric_writer.read_metrics(str(folder))
    if 'train/images_per_second' in line
  ]
  return statistics.median(rates) if rates else None


def row_of(sweep: Sweep, point: Point, directory: pathlib.Path) -> Row:
  """Returns the line of a point that is done, {column: value}."""
  folder = folders.of_point(directory, point)
  variant = folders.of_variant(directory, point.variant)
  summary, costs, checkerboard, evaluated = [
    folders.read_json(path)
    for path in (
      variant / 'summary.json',
      variant / 'costs.json',
      folder / 'checkerboard.json',
      folder / 'eval.json',
    )
  ]
  record = folders.record_of(directory, point)
  flat, seconds = sweep.flat(record['fields']), record['seconds']
  return {
    'point': point.name,
    'variant': point.variant,
    'seed': flat['seed'],
    # The base's values where this point does not name a field.
    **{field: flat[field] for field in (*sweep.fields, *record['fields'])},
    'parameters': summary['parameters'],
    'receptive_field': summary['receptive_field'],
    'train_flops': summary['train_step']['flops'],
    'train_bytes': summary['train_step']['total_bytes'],
    'inference_flops': costs['inference_flops'],
    'inference_bytes': costs['inference_bytes'],
    **{f'checkerboard/{k}': v for k, v in checkerboard.items()},
    'num_examples': evaluated['num_examples'],
    **{
      k: v
      for k, v in evaluated.items()
      if k.startswith('eval/') and k != 'eval/seconds'
    },
    **{k: record.get('machine', {}).get(k) for k in MACHINE},
    'train_seconds': seconds['train'],
    'evaluate_seconds': seconds['evaluate'],
    'compile_seconds': costs['compile_seconds'],
    'train_images_per_second': _images_per_second(folder),
    'inference_images_per_second': costs['inference_images_per_second'],
  }


def tuning_rows(sweep: Sweep, tune: Tune, directory: pathlib.Path) -> list[Row]:
  """Returns a line for each value that was tried, {column: value}."""
  rows = []
  for point, *_ in sweep.variants:
    of_value = functools.partial(
      folders.of_trial, directory, point.variant, tune.field
    )
    trials = [tuning.read_trial(of_value(value)) for value in tune.values]
    chosen = tuning.best(trials) if all(trials) else None
    for i, (value, trial) in enumerate(zip(tune.values, trials)):
      about = {'variant': point.variant, tune.field: value, 'seed': tune.seed}
      if trial:
        rows.append({**about, **trial, 'chosen': i == chosen})
  return rows


def write(sweep: Sweep, directory: pathlib.Path) -> dict[str, int]:
  """Writes results.csv, tuning.csv and failures.csv.

  Returns:
    {'done', 'failed', 'missing': number of points}.
  """
  rows, failures = [], []
  for point in sweep.points:
    record = folders.record_of(directory, point)
    if record.get('status') == 'done':
      rows.append(row_of(sweep, point, directory))
    elif record.get('status') == 'failed':
      log = '\n'.join(record['log'])
      failures.append({'point': point.name, **record, 'log': log})
  columns = ('point', 'stage', 'exit_code', 'reason', 'log')
  _write(directory / 'results.csv', _columns(rows), rows)
  _write(directory / 'failures.csv', columns, failures)
  if sweep.tune:
    trials = tuning_rows(sweep, sweep.tune, directory)
    _write(directory / 'tuning.csv', _columns(trials), trials)
  missing = len(sweep.points) - len(rows) - len(failures)
  return {'done': len(rows), 'failed': len(failures), 'missing': missing}


def _write(
  path: pathlib.Path, columns: Sequence[str], rows: list[dict[str, Any]]
) -> None:
  """Writes a table; metrics that are not finite are empty cells."""
  rows = whole_files.finite_or_none(rows)
  whole_files.write_csv(path, rows, columns, by_all=True)
