"""Reads the tables and the points' folders of a sweep.

These are results.csv, failures.csv, sweep.json, and of each point eval.csv,
eval.json and metrics.jsonl in points/NAME. A point that failed, or that was
evaluated on other images, is skipped and named; a missing metric is NaN.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.sweep import folder as folders
from experiments.sweep import points as points_lib
from experiments.sweep.report import contrasts, statistics
from unet_jax.evaluation import confusion
from unet_jax.runtime import errors
from unet_jax.training import metric_writer

# With more classes, there are no metrics of each.
FEW_CLASSES = 4


@dataclasses.dataclass(frozen=True)
class Point:
  """One trained network."""

  name: str
  # Of results.csv, {column: text}.
  row: dict[str, str]
  # Names of the N images of eval.csv, and {column: float64 [N]}.
  images: list[str]
  columns: dict[str, np.ndarray]
  # eval.json, or {}.
  evaluation: dict[str, Any]
  # Lines of metrics.jsonl.
  curve: list[dict[str, Any]]

  @property
  def seed(self) -> str:
    return self.row.get('seed', '')


@dataclasses.dataclass(frozen=True)
class Results:
  """A sweep."""

  # Fields that differ between variants, and the values of each of the V.
  factors: tuple[str, ...]
  variants: list[tuple[str, ...]]
  # Of each variant, at least one.
  points: list[list[Point]]
  # {name of a point: reason}.
  skipped: dict[str, str]
  # sweep.json, or {}.
  about: dict[str, Any]

  @property
  def short(self) -> dict[str, str]:
    """The factors as they are written in the names of points."""
    return points_lib.short_names(
      [*self.about.get('fields', ()), *self.factors]
    )

  @property
  def networks(self) -> list[Point]:
    """The points of all variants, in order."""
    return [point for points in self.points for point in points]

  @property
  def images(self) -> list[str]:
    """The names of the N images."""
    return self.networks[0].images

  @property
  def tune(self) -> dict[str, Any]:
    """How a field was tuned, as in `points.Tune`; {} if none was."""
    return self.about.get('begun', {}).get('TUNE') or {}

  @property
  def tuned_field(self) -> str:
    return self.tune.get('field', points_lib.LEARNING_RATE)

  def metric(self, name: str) -> list[np.ndarray]:
    """Returns a column of results.csv, for each variant its networks'."""
    return [
      np.array([folders.number(point.row.get(name)) for point in points])
      for points in self.points
    ]

  def class_names(self) -> list[str]:
    """Returns the classes whose pixels were counted."""
    columns = self.networks[0].columns
    return [c.partition('/')[2] for c in columns if c.startswith('pixels/')]

  def stack(self, columns: Sequence[str]) -> np.ndarray:
    """Returns metrics of images, [P, N, len(columns)], NaN where missing."""
    missing = np.full(len(self.images), np.nan)
    of_point = lambda p: [p.columns.get(c, missing) for c in columns]
    return np.array([np.stack(of_point(p), -1) for p in self.networks])

  def variant_indices(self) -> list[int]:
    """Returns the variant of each network."""
    return [i for i, points in enumerate(self.points) for _ in points]

  def object_sizes(self) -> np.ndarray:
    """Returns the share of each image that is foreground, [N].

    Foreground are the classes that the evaluation also scored as one
    (`iou/a+b`), else all but the one called background, else all but the first.
    NaN for an image without a foreground, and for all if pixels were not
    counted.
    """
    names = self.class_names()
    if not names:
      return np.full(len(self.images), np.nan)
    background = 'background' if 'background' in names else names[0]
    foreground = [name for name in names if name != background]
    for column in self.networks[0].columns:
      kind, _, name = column.partition('/')
      if kind == 'iou' and name not in names:
        foreground = name.split('+')
        break
    pixels = self.stack([f'pixels/{n}' for n in names])[0]
    inside = pixels[:, [n in foreground for n in names]].sum(1)
    return np.where(inside > 0, confusion.ratio(inside, pixels.sum(1)), np.nan)

  def measures(self) -> dict[str, np.ndarray]:
    """Returns the input of `statistics.bootstrap` for each measure there is.

    Conclusions are drawn from the first: a mean over images, which needs their
    scores alone. Measures of single classes come last, if classes are few.
    """
    classes = self.class_names()
    of_classes = lambda score: self.stack([f'{score}/{c}' for c in classes])
    found = {
      'image_miou': statistics.means_of_images(self.stack(['miou'])[..., 0])
    }
    if classes:
      iou = of_classes('iou')
      found['dataset_miou'] = statistics.counts_of_images(
        iou, of_classes('pixels'), of_classes('predicted_pixels')
      )
      boundary = confusion.nanmean(of_classes('boundary_iou'), -1)
      found['image_boundary_miou'] = statistics.means_of_images(boundary)
      for i, name in enumerate(classes if len(classes) <= FEW_CLASSES else ()):
        of_class = statistics.means_of_images(iou[..., i])
        found[f'image_iou/{name}'] = of_class
    return {
      name: sums
      for name, sums in found.items()
      if np.isfinite(statistics.score(sums.sum(1))).all()
    }


def means_and_deviations(
  of_variants: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns each variant's mean over seeds, and standard deviation, [V].

  NaN where there is no metric, or, for a deviation, only one.
  """
  found = [values[np.isfinite(values)] for values in of_variants]
  return (
    np.array([v.mean() if len(v) else np.nan for v in found]),
    np.array([v.std(ddof=1) if len(v) > 1 else np.nan for v in found]),
  )


class _Unusable(Exception):
  """Why a point is skipped."""


def read(directory: pathlib.Path) -> Results:
  """Reads a sweep.

  Raises:
    UserError: there is no results.csv, or no point of it is finished.
  """
  path = directory / 'results.csv'
  if not path.exists():
    raise errors.UserError(
      f'{path} is not there; name the folder of a sweep, the --workdir of '
      'experiments.sweep'
    )
  rows = folders.read_csv(path)
  about = folders.read_json(directory / 'sweep.json')
  skipped, points = _without_row(directory, rows, about), list[Point]()
  for row in rows:
    name = row.get('point', '')
    try:
      points.append(_read_point(directory / 'points' / name, row))
      if points[-1].images != points[0].images:
        points.pop()
        raise _Unusable('evaluated on other images than the points before it')
    except _Unusable as e:
      skipped[name] = str(e)
  if not points:
    reasons = '; '.join(f'{k}: {v}' for k, v in skipped.items())
    raise errors.UserError(
      f'{path}: no point is finished ({reasons or "it has no rows"}); run the '
      'sweep again, it goes on where it stopped'
    )
  factors = _factors(rows, about)
  by_variant: dict[tuple[str, ...], list[Point]] = {}
  for point in points:
    key = tuple(point.row.get(f, '') for f in factors)
    by_variant.setdefault(key, []).append(point)
  order = list(by_variant)
  if contrasts.is_grid(factors, order):
    levels = list(contrasts.levels(factors, order).values())
    order.sort(key=lambda v: [x.index(y) for x, y in zip(levels, v)])
  return Results(factors, order, [by_variant[v] for v in order], skipped, about)


def _factors(
  rows: list[dict[str, str]], about: dict[str, Any]
) -> tuple[str, ...]:
  """Returns the sweep's fields with more than one value, besides the seed.

  Without sweep.json, these are the columns that look like fields.
  """
  fields = [f for f in about.get('fields', ()) if f != 'seed'] or [
    column
    for column in (rows[0] if rows else ())
    if '.' in column
    and '/' not in column
    and column not in points_lib.ALWAYS_REPORTED
  ]
  return tuple(f for f in fields if len({row.get(f) for row in rows}) > 1)


def _without_row(
  directory: pathlib.Path, rows: list[dict[str, str]], about: dict[str, Any]
) -> dict[str, str]:
  """Returns the points that have no row in results.csv, with the reason."""
  path = directory / 'failures.csv'
  failures = folders.read_csv(path) if path.exists() else []
  failed = {line['point']: f'failed: {line["reason"]}' for line in failures}
  done = {row.get('point') for row in rows}
  names = [*about.get('points', ()), *failed]
  return {n: failed.get(n, 'not finished') for n in names if n not in done}


def _read_point(folder: pathlib.Path, row: dict[str, str]) -> Point:
  path = folder / 'eval.csv'
  if not path.exists():
    raise _Unusable('it has no eval.csv')
  table = folders.read_csv(path)
  columns = {
    column: np.array([folders.number(line[column]) for line in table])
    for column in (table[0] if table else ())
    if column != 'image'
  }
  if not np.isfinite(columns.get('miou', np.nan)).any():
    raise _Unusable('no image has a score in its eval.csv')
  return Point(
    folder.name,
    row,
    [line['image'] for line in table],
    columns,
    folders.read_json(folder / 'eval.json'),
    metric_writer.read_metrics(str(folder)),
  )
