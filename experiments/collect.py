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
  ..._seconds, ..._per_second  what depends on the clock, and nothing else:
                             all other columns repeat bit for bit on the CPU of
                             one machine with the same --jobs

A figure that is not defined is an empty cell. tuning.csv has a line for each
value that was tried for a variant, failures.csv one for each point that failed.
"""

import csv
import math
import pathlib
import statistics
from typing import Any

from experiments import files, points, tuning
from experiments.sweeps import Point, Sweep

# Of eval.json, besides its figures.
_EVALUATED = ('num_examples',)
# Of point.json, what it ran on.
MACHINE = ('device', 'cores', 'jobs')


def _cell(value: Any) -> Any:
  """Floats so that they are read back exactly; NaN and None are empty."""
  if isinstance(value, float):
    return repr(value) if math.isfinite(value) else ''
  return '' if value is None else value


def write_csv(path: pathlib.Path, columns, rows) -> None:
  """Writes a table whole or not at all; what a row lacks is empty."""
  with files.replacing(path) as f:
    writer = csv.writer(f)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(c)) for c in columns] for row in rows)


def read_csv(path: pathlib.Path) -> list[dict[str, str]]:
  """Returns the lines of a table, {column: text}."""
  with open(path, encoding='utf-8', newline='') as f:
    return list(csv.DictReader(f))


def _place(name: str) -> int:
  """Columns of the clock come last, those of the machine before them."""
  if name.endswith(('_seconds', '_per_second')):
    return 2
  return int(name in MACHINE)


def _images_per_second(folder: pathlib.Path) -> float | None:
  """The median over the intervals of a training run."""
  # It imports jax, which asks for no device by itself.
  from unet_jax import metric_writer

  rates = [
    line['train/images_per_second']
    for line in metric_writer.read_metrics(str(folder))
    if 'train/images_per_second' in line
  ]
  return statistics.median(rates) if rates else None


def row_of(
  sweep: Sweep, point: Point, directory: pathlib.Path
) -> dict[str, Any]:
  """Returns the line of a point that is done, {column: value}."""
  folder = points.point_folder(directory, point)
  variant = tuning.variant_folder(directory, point.variant)
  summary = files.read_json(variant / 'summary.json')
  costs = files.read_json(variant / 'costs.json')
  evaluated = files.read_json(folder / 'eval.json')
  record = points.record_of(directory, point)
  flat = sweep.flat(record['fields'])
  # The base's values where this point does not name a field.
  fields = {f: flat[f] for f in (*sweep.fields, *record['fields'])}
  row = {
    'point': point.name,
    'variant': point.variant,
    'seed': flat['seed'],
    **fields,
    'parameters': summary['parameters'],
    'receptive_field': summary['receptive_field'],
    'train_flops': summary['train_step']['flops'],
    'train_bytes': summary['train_step']['total_bytes'],
    'inference_flops': costs['inference_flops'],
    'inference_bytes': costs['inference_bytes'],
  }
  checkerboard = files.read_json(folder / 'checkerboard.json')
  row.update({f'checkerboard/{k}': v for k, v in checkerboard.items()})
  row.update({k: evaluated[k] for k in _EVALUATED})
  row.update(
    {
      k: v
      for k, v in evaluated.items()
      if k.startswith('eval/') and k != 'eval/seconds'
    }
  )
  machine, seconds = record.get('machine', {}), record['seconds']
  row.update({k: machine.get(k) for k in MACHINE})
  row.update(
    {
      'train_seconds': seconds['train'],
      'evaluate_seconds': seconds['evaluate'],
      'compile_seconds': costs['compile_seconds'],
      'train_images_per_second': _images_per_second(folder),
      'inference_images_per_second': costs['inference_images_per_second'],
    }
  )
  return row


def _columns(rows: list[dict[str, Any]]) -> list[str]:
  """All names, in the order in which rows have them, but for `_place`."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  return sorted(names, key=_place)


def tuning_rows(sweep: Sweep, directory: pathlib.Path) -> list[dict[str, Any]]:
  """Returns a line for each value that was tried, {column: value}."""
  rows = []
  for variant in dict.fromkeys(point.variant for point in sweep.points):
    tried = []
    for value in sweep.tune.values:
      folder = tuning.tuning_folder(directory, sweep, variant, value)
      found = files.read_json(folder / 'eval.json')
      diverged = (folder / 'diverged.json').exists()
      if not found and not diverged:
        continue
      tried.append(
        {
          'variant': variant,
          sweep.tune.field: value,
          'seed': sweep.tune.seed,
          'train.num_steps': found.get('step'),
          'eval/dataset_miou': found.get('eval/dataset_miou'),
          'eval/loss': found.get('eval/loss'),
          'diverged': diverged,
        }
      )
    scores = [row['eval/dataset_miou'] for row in tried]
    known = [s for s in scores if s is not None]
    best = scores.index(max(known)) if known else None
    is_whole = len(tried) == len(sweep.tune.values)
    for i, row in enumerate(tried):
      row['chosen'] = is_whole and i == best
    rows += tried
  return rows


def write(sweep: Sweep, directory: pathlib.Path) -> dict[str, int]:
  """Writes results.csv, tuning.csv and failures.csv.

  Returns:
    {'done', 'failed', 'missing': number of points}.
  """
  records = [points.record_of(directory, point) for point in sweep.points]
  rows, failures = [], []
  for point, record in zip(sweep.points, records):
    if record.get('status') == 'done':
      rows.append(row_of(sweep, point, directory))
    elif record.get('status') == 'failed':
      told = {k: record[k] for k in ('stage', 'exit_code', 'reason')}
      log = '\n'.join(record['log'])
      failures.append({'point': point.name, **told, 'log': log})
  write_csv(directory / 'results.csv', _columns(rows), rows)
  columns = ('point', 'stage', 'exit_code', 'reason', 'log')
  write_csv(directory / 'failures.csv', columns, failures)
  if sweep.tune:
    tried = tuning_rows(sweep, directory)
    write_csv(directory / 'tuning.csv', _columns(tried), tried)
  return {
    'done': len(rows),
    'failed': len(failures),
    'missing': len(records) - len(rows) - len(failures),
  }
