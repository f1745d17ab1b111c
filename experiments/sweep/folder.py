"""The folder of a sweep: its places, and files that processes share.

points/NAME is the workdir of a point; points that differ in the seed alone
share variants/NAME; sweep.json has the base, tuning and budget of the sweep.
"""

import csv
import dataclasses
import json
import pathlib
from typing import Any

from experiments.sweep import points
from experiments.sweep.points import Point, Sweep
from unet_jax.config import fields
from unet_jax.runtime import errors, locks, whole_files

# Fields that may differ between calls: only the clock depends on them.
_FREE = ('data.cache', 'data.cache_dir', 'data.num_workers', 'log')


def of_point(directory: pathlib.Path, point: Point) -> pathlib.Path:
  return directory / 'points' / point.name


def of_variant(directory: pathlib.Path, variant: str) -> pathlib.Path:
  return directory / 'variants' / variant


def of_trial(
  directory: pathlib.Path, variant: str, field: str, value: Any
) -> pathlib.Path:
  """Returns the workdir of the tuning run that tries a value."""
  name = points.point_name({field: value}, points.short_names([field]))
  return of_variant(directory, variant) / name


def record_of(directory: pathlib.Path, point: Point) -> dict[str, Any]:
  """Returns point.json, or {} for a point that has not been started.

  `status` is `done`, `failed` (with the entries of `children.Failed.about`) or
  `stopped`; `seconds` of each stage; `machine` that it ran on last: `cores` and
  `jobs` as in `children.Children`, `device` as in costs.json; `fields` of a
  point that is done.
  """
  return read_json(of_point(directory, point) / 'point.json')


def is_done(directory: pathlib.Path, point: Point) -> bool:
  return record_of(directory, point).get('status') == 'done'


def begin(sweep: Sweep, directory: pathlib.Path) -> None:
  """Writes sweep.json, or checks it against an earlier call's.

  Raises:
    UserError: the folder's sweep has another base, tuning or budget. Points may
      be added.
  """
  directory.mkdir(parents=True, exist_ok=True)
  path, begun = directory / 'sweep.json', _begun(sweep)
  # Jobs of a cluster begin at the same time.
  with locks.lock(directory / '.begin', f'beginning the sweep of {directory}'):
    before = read_json(path)
    was = before.get('begun', begun)
    differences = [
      f'{name} was {was.get(name)!r}, now {begun.get(name)!r}'
      for name in sorted({*was, *begun})
      if was.get(name) != begun.get(name)
    ]
    if differences:
      raise errors.UserError(
        f'{directory} holds a sweep with another base: '
        f'{"; ".join(differences)}. Choose another --workdir, or undo the '
        'change'
      )
    about = {
      'question': sweep.question,
      'file': sweep.path,
      'size': sweep.size,
      'fields': sweep.fields,
      'points': [point.name for point in sweep.points],
      'begun': begun,
    }
    if about != before:
      write_json(path, about)


def _begun(sweep: Sweep) -> dict[str, Any]:
  """Returns the settings that every call must share, as JSON has them."""
  flat = {
    field: value
    for field, value in fields.flatten(sweep.config).items()
    if not any(field == f or field.startswith(f'{f}.') for f in _FREE)
  }
  tune = sweep.tune and dataclasses.asdict(sweep.tune)
  return json.loads(json.dumps({'BUDGET': sweep.budget, 'TUNE': tune, **flat}))


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a file whole or not at all, and makes its folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  whole_files.write_json(path, value, by_all=True)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns a file's content, {} if there is no such file."""
  return json.loads(path.read_text()) if path.exists() else {}


def read_csv(path: pathlib.Path) -> list[dict[str, str]]:
  """Returns the rows of a table, {column: text}."""
  with open(path, encoding='utf-8', newline='') as f:
    return list(csv.DictReader(f))


def number(text: str | None) -> float:
  """Returns the number in a cell, NaN if it has none."""
  try:
    return float(text or 'nan')
  except ValueError:
    return float('nan')
