"""What a sweep left behind, as arrays: its tables and its points' folders.

Read are results.csv, failures.csv, sweep.json, and of each point eval.csv,
eval.json and metrics.jsonl in points/NAME. A point that failed, or whose
evaluation is of other images, is left out and named; a figure that is not there
is NaN.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments import collect, contrasts, files, statistics, sweeps
from experiments import names as names_lib
from unet_jax import errors, metric_writer, metrics

# Of more classes there are no figures of each.
FEW_CLASSES = 4


@dataclasses.dataclass(frozen=True)
class Point:
  """One trained network.

  Attributes:
    name: of the point.
    seed: as in results.csv.
    row: its row of results.csv, {column: text}.
    columns: figures of N images from eval.csv, {column: float64 [N]}.
    evaluation: eval.json, or {}.
    curve: lines of metrics.jsonl.
  """

  name: str
  seed: str
  row: dict[str, str]
  columns: dict[str, np.ndarray]
  evaluation: dict[str, Any]
  curve: list[dict[str, Any]]

  def figure(self, name: str) -> float:
    """Returns a figure of results.csv, NaN if it has none."""
    return _number(self.row.get(name))


@dataclasses.dataclass(frozen=True)
class Results:
  """A sweep.

  Attributes:
    factors: fields that differ between variants.
    variants: their values, V tuples of as many texts, in order.
    points: of each variant, at least one.
    images: names of the N images.
    left_out: {name of a point: why it is left out}.
    about: sweep.json, or {}: what the sweep file said.
  """

  factors: tuple[str, ...]
  variants: list[tuple[str, ...]]
  points: list[list[Point]]
  images: list[str]
  left_out: dict[str, str]
  about: dict[str, Any]

  @property
  def short(self) -> dict[str, str]:
    """The factors as the names of the points have them."""
    fields = [*self.about.get('fields', ()), *self.factors]
    return names_lib.short_names(list(dict.fromkeys(fields)))

  def figures(self, name: str) -> list[np.ndarray]:
    """Returns a figure of results.csv of each variant's networks."""
    return [np.array([p.figure(name) for p in ps]) for ps in self.points]

  def class_names(self) -> list[str]:
    """Returns the classes whose pixels were counted."""
    columns = self.points[0][0].columns
    return [
      name.partition('/')[2] for name in columns if name.startswith('pixels/')
    ]

  def stack(self, columns: list[str]) -> np.ndarray:
    """Returns figures of images, [P, N, len(columns)], NaN where none is."""
    missing = np.full(len(self.images), np.nan)
    return np.array(
      [
        np.stack([point.columns.get(c, missing) for c in columns], -1)
        for points in self.points
        for point in points
      ]
    )

  def seeds(self) -> list[str]:
    """Returns the seed of each network, in the order of `stack`."""
    return [point.seed for points in self.points for point in points]

  def variant_indices(self) -> list[int]:
    """Returns the variant of each network, in the order of `stack`."""
    return [i for i, points in enumerate(self.points) for _ in points]

  def measures(self) -> dict[str, np.ndarray]:
    """Returns what `statistics.bootstrap` takes of each measure there is.

    The first is the one that is concluded from: it is a mean over images, and
    needs nothing but their scores. Those of classes come last, of few classes.
    """
    classes = self.class_names()
    of_classes = lambda score: self.stack([f'{score}/{c}' for c in classes])
    found = {
      'image_miou': statistics.means_of_images(self.stack(['miou'])[..., 0])
    }
    if classes:
      found['dataset_miou'] = statistics.counts_of_images(
        *map(of_classes, ('iou', 'pixels', 'predicted_pixels'))
      )
      boundary = metrics.nanmean(of_classes('boundary_iou'), -1)
      found['image_boundary_miou'] = statistics.means_of_images(boundary)
      if len(classes) <= FEW_CLASSES:
        for name, iou in zip(classes, np.moveaxis(of_classes('iou'), -1, 0)):
          found[f'image_iou/{name}'] = statistics.means_of_images(iou)
    return {
      name: sums
      for name, sums in found.items()
      if np.isfinite(statistics.score(sums.sum(1))).all()
    }


def read(directory: str) -> Results:
  """Reads a sweep.

  Args:
    directory: with results.csv, and points/NAME/ of each point.

  Raises:
    UserError: there is no results.csv, or no point of it is finished.
  """
  folder = pathlib.Path(directory)
  path = folder / 'results.csv'
  if not path.exists():
    raise errors.UserError(
      f'{path} is not there; name the folder of a sweep, the --workdir of '
      'experiments.run'
    )
  rows, points, images = collect.read_csv(path), [], None
  about = files.read_json(folder / 'sweep.json')
  left_out = _without_row(folder, rows, about)
  factors = _factors(rows, about)
  for row in rows:
    point, names, reason = _read_point(folder, row)
    if not reason and images is not None and names != images:
      reason = 'evaluated on other images than the points before it'
    if reason:
      left_out[row.get('point', '')] = reason
      continue
    images = names
    points.append(point)
  if not points:
    reasons = '; '.join(f'{k}: {v}' for k, v in left_out.items())
    raise errors.UserError(
      f'{path}: no point is finished ({reasons or "it has no rows"}); run the '
      'sweep again, it goes on where it stopped'
    )
  by_variant = {}
  for point in points:
    key = tuple(point.row.get(f, '') for f in factors)
    by_variant.setdefault(key, []).append(point)
  order = list(by_variant)
  if contrasts.is_grid(factors, order):
    places = [v.index for v in contrasts.levels(factors, order).values()]
    order.sort(key=lambda v: [place(x) for place, x in zip(places, v)])
  of_variants = [by_variant[v] for v in order]
  return Results(factors, order, of_variants, images, left_out, about)


def tuned_field(about: dict[str, Any]) -> str:
  """Returns the field that is tuned for each variant, see sweep.json."""
  tune = about.get('begun', {}).get('TUNE') or {}
  return tune.get('field', sweeps.LEARNING_RATE)


def _factors(rows, about) -> tuple[str, ...]:
  """Fields of the sweep file with more than one value, besides the seed.

  Without sweep.json, those columns that look like fields.
  """
  columns = list(rows[0]) if rows else []
  fields = [f for f in about.get('fields', ()) if f != 'seed'] or [
    c for c in columns if '.' in c and '/' not in c and c not in sweeps.TOLD
  ]
  return tuple(f for f in fields if len({row.get(f) for row in rows}) > 1)


def _without_row(directory: pathlib.Path, rows, about) -> dict[str, str]:
  """Returns the points that have no row of results.csv, and why."""
  path, failed = directory / 'failures.csv', {}
  if path.exists():
    lines = collect.read_csv(path)
    failed = {line['point']: f'failed: {line["reason"]}' for line in lines}
  done = {row.get('point') for row in rows}
  names = [*about.get('points', ()), *failed]
  return {n: failed.get(n, 'not finished') for n in names if n not in done}


def _read_point(
  directory: pathlib.Path, row
) -> tuple[Point | None, list[str], str]:
  """Returns a point, the names of its images, and why it cannot be used."""
  name = row.get('point', '')
  folder = directory / 'points' / name
  path = folder / 'eval.csv'
  if not path.exists():
    return None, [], 'it has no eval.csv'
  table = collect.read_csv(path)
  columns = {
    column: np.array([_number(line[column]) for line in table])
    for column in (table[0] if table else ())
    if column != 'image'
  }
  if not np.isfinite(columns.get('miou', np.nan)).any():
    return None, [], 'no image has a score in its eval.csv'
  point = Point(
    name,
    row.get('seed', ''),
    row,
    columns,
    files.read_json(folder / 'eval.json'),
    metric_writer.read_metrics(str(folder)),
  )
  return point, [line['image'] for line in table], ''


def _number(text: str | None) -> float:
  try:
    return float(text)
  except (TypeError, ValueError):
    return float('nan')
