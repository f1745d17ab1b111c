"""Results of a sweep as the runner leaves them, made up, for tests."""

import csv
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from unet_jax.evaluation import confusion as confusion_lib
from unet_jax.evaluation import measures
from unet_jax.runtime import whole_files

NAMES = ('pet', 'background', 'border')
GRID = {'model.upsample': ('nearest', 'transpose'), 'model.depth': (2, 10)}
# Of the bootstrap: enough for a test.
DRAWS = 1000
_SPEC = measures.Spec(
  NAMES, ('pet', 'border'), 0.02, 3, 2, '', bins=5, resamples=0, seed=0
)
_SIDE = 64


def depth_matters(upsample: str, depth: int) -> float:
  return 0.06 if depth == 10 else 0.0


def rewrite(path: pathlib.Path, change) -> None:
  """Changes the rows of a table; rows that become None are removed."""
  with open(path, newline='') as f:
    rows = [change(row) for row in csv.DictReader(f)]
  whole_files.write_csv(str(path), [row for row in rows if row is not None])


def write(
  directory: pathlib.Path,
  grid: dict[str, tuple],
  seeds: int = 3,
  images: int = 40,
  effect=lambda **values: 0.0,
  failed: tuple[str, ...] = (),
) -> None:
  """Writes results.csv, failures.csv, sweep.json and points/.

  Args:
    directory: of the sweep.
    grid: {field: its values}.
    seeds: of each combination.
    images: of the test split.
    effect: of the last parts of the fields, on the share of right pixels, which
      deviates by 0.004 over seeds.
    failed: names of points that failed.
  """
  rng, rows, points = np.random.default_rng(0), [], []
  # Alike for all networks: how hard each image is, how large its object.
  hard = rng.normal(0, 0.05, images)
  sizes = np.exp(rng.uniform(np.log(0.01), np.log(0.6), images))
  for values in itertools.product(*grid.values(), range(seeds)):
    fields = dict(zip((*grid, 'seed'), values))
    short = {k.rpartition('.')[2]: v for k, v in fields.items()}
    name = ','.join(f'{k}={v}' for k, v in short.items())
    points.append(name)
    if name in failed:
      continue
    right = effect(**{k: v for k, v in short.items() if k != 'seed'})
    right += 0.85 + rng.normal(0, 0.004) - hard
    folder = directory / 'points' / name
    folder.mkdir(parents=True)
    measured = _write_point(folder, right, sizes, short, rng)
    rows.append({'point': name, **fields, **measured})
  whole_files.write_csv(str(directory / 'results.csv'), rows)
  failures = [{'point': n, 'reason': 'out of memory, 8 GiB'} for n in failed]
  whole_files.write_csv(str(directory / 'failures.csv'), failures)
  tune = {'field': 'optimizer.learning_rate', 'values': [0.001, 0.002]}
  about = {
    'question': 'Which upsampling, and how deep?',
    'fields': [*grid, 'seed'],
    'points': points,
    'begun': {'BUDGET': 'steps', 'TUNE': {**tune, 'steps': 60}},
  }
  (directory / 'sweep.json').write_text(json.dumps(about))


def _write_point(folder, right, sizes, short, rng) -> dict[str, Any]:
  """Writes a point's folder; returns its metrics."""
  confusion = [
    _confusion(np.clip(r, 0.3, 0.99), s, rng) for r, s in zip(right, sizes)
  ]
  table = [_row(i, c, rng) for i, c in enumerate(confusion)]
  whole_files.write_csv(str(folder / 'eval.csv'), table)
  scores = confusion_lib.scores(np.array(confusion), NAMES, ())
  measured = {f'eval/{k}': v for k, v in scores.items()}
  boundary = [[row[f'boundary_iou/{n}'] for row in table] for n in NAMES]
  for reduction in ('image', 'dataset'):
    mean = float(np.nanmean(boundary, 1).mean())
    measured[f'eval/{reduction}_boundary_miou'] = mean
  evaluation = {'step': 600, 'split': 'test', **measured}
  (folder / 'eval.json').write_text(json.dumps(evaluation))
  with open(folder / 'metrics.jsonl', 'w') as f:
    for step in range(100, 601, 100):
      shown = scores['dataset_miou'] * (1 - 0.5 * np.exp(-step / 150))
      shown += rng.normal(0, 0.005)
      f.write(json.dumps({'step': step, 'eval/dataset_miou': shown}) + '\n')
  depth = int(short.get('depth', 3))
  extra = 1.3 if short.get('upsample') == 'transpose' else 1.0
  flops = 4e9 * (1 + 0.3 * depth) * extra
  speed = 4000 / (1 + 0.2 * depth) / extra * rng.uniform(0.97, 1.03)
  return {
    **measured,
    'parameters': int(30000 * 4**depth * extra),
    'train_flops': 3 * 16 * flops,
    'inference_flops': flops,
    'train_bytes': int(2e8 * (1 + 0.4 * depth)),
    'device': 'cpu',
    'cores': depth,  # As of a sweep that went on elsewhere.
    'jobs': 1,
    'compile_seconds': 5 + 2 * depth,
    'train_images_per_second': speed / 4,
    'inference_images_per_second': speed,
    'receptive_field': 8 * 2**depth,
    'checkerboard/period_2': 2 * extra,
    'train.num_steps': 600,
    'optimizer.learning_rate': 0.002 if depth > 2 else 0.001,
  }


def _confusion(right: float, size: float, rng) -> np.ndarray:
  """Counts [3, 3] of an image whose object takes a share of it."""
  pixels = _SIDE**2
  in_mask = np.array([size, 1 - size, 0]) * pixels
  in_mask[2] = 4 * np.sqrt(in_mask[0])
  in_mask[1] -= in_mask[2]
  # Small objects and borders are harder.
  share = right - np.array([0.1 * (0.6 - size), -0.005, 0.3])
  share = np.clip(share + rng.normal(0, 0.02, 3), 0.05, 0.999)
  counts = np.zeros((3, 3), np.int64)
  for i, (n, s) in enumerate(zip(in_mask.round().astype(int), share)):
    n = max(n, 0)
    counts[i, i] = round(n * s)
    rest = n - counts[i, i]
    counts[i, (i + 1) % 3] = rest // 2
    counts[i, (i + 2) % 3] = rest - rest // 2
  return counts


def _row(index: int, confusion: np.ndarray, rng) -> dict[str, Any]:
  """A row of eval.csv, by the program itself but for what is at borders."""
  near = rng.uniform(0.3, 0.5, (3, 1)) * [[100, 0]] + [[0, 100]]
  measured = {
    'confusion': confusion,
    'boundary': near.astype(int),
    'hd95': rng.uniform(1, 9, 3),
    'nsd': near.astype(int),
    'calibration_count': np.array([0, 0, 0, 0, 4]),
    'calibration_confidence': np.array([0, 0, 0, 0, 3.6]),
    'calibration_correct': np.array([0, 0, 0, 0, 3]),
    'nll': np.float64(1),
    'brier': np.float64(0.5),
  }
  name = f'image_{index:03}.jpg'
  return measures.image_rows([measured], [name], _SPEC)[0]
