"""Figures of a run to metrics.jsonl and TensorBoard, tables to CSV.

Process 0 writes; in the others every call does nothing.
"""

import csv
import json
import math
import os
import re
from typing import Any

import jax
import numpy as np


def _finite_or_none(value: float) -> float | None:
  """JSON has no NaN: an undefined score is null."""
  return value if math.isfinite(value) else None


def _clean(value: Any) -> Any:
  """Floats that are not finite as None, at any depth."""
  if isinstance(value, dict):
    return {k: _clean(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_clean(v) for v in value]
  return _finite_or_none(value) if isinstance(value, float) else value


def write_json(path: str, value: Any) -> None:
  """Writes a file whole or not at all; NaN becomes null."""
  if jax.process_index():
    return
  with open(path + '.tmp', 'w') as f:
    json.dump(_clean(value), f, indent=2)
    f.write('\n')
  os.replace(path + '.tmp', path)


def write_csv(path: str, rows: list[dict[str, Any]]) -> None:
  """Writes a table as CSV (RFC 4180), whole or not at all.

  Args:
    path: of the file, UTF-8; bytes of a name that are none become \\udcXX.
    rows: a line each. The columns are in the order in which the rows first name
      them; NaN, None and what a row lacks are empty. Floats are read back
      exactly.
  """
  if jax.process_index():
    return
  columns = list(dict.fromkeys(key for row in rows for key in row))
  with open(
    path + '.tmp', 'w', encoding='utf-8', errors='backslashreplace', newline=''
  ) as f:
    writer = csv.writer(f)
    if columns:
      writer.writerow(columns)
    writer.writerows([_csv_cell(row.get(c)) for c in columns] for row in rows)
  os.replace(path + '.tmp', path)


def _csv_cell(value: Any) -> str:
  if isinstance(value, float | np.floating):
    # Of a NumPy float the repr would name the type.
    return '' if math.isnan(value) else repr(float(value))
  return '' if value is None else str(value)


def read_metrics(workdir: str) -> list[dict[str, Any]]:
  """Returns the lines of metrics.jsonl, without one that a kill cut off."""
  path = os.path.join(workdir, 'metrics.jsonl')
  if not os.path.exists(path):
    return []
  lines = []
  with open(path) as f:
    for line in f:
      try:
        lines.append(json.loads(line))
      except ValueError:
        continue
  return lines


class MetricWriter:
  """Appends figures, step by step.

  Args:
    workdir: has metrics.jsonl and tensorboard/.
    step: the step that the run goes on from; lines of later steps, of a run
      that was killed after its last checkpoint, are dropped.
    tensorboard: also write event files.
  """

  def __init__(self, workdir: str, step: int, tensorboard: bool):
    self._events = self._file = None
    if jax.process_index():
      return
    path = os.path.join(workdir, 'metrics.jsonl')
    kept = [m for m in read_metrics(workdir) if m['step'] <= step]
    with open(path + '.tmp', 'w') as f:
      f.writelines(json.dumps(m) + '\n' for m in kept)
    os.replace(path + '.tmp', path)
    self._file = open(path, 'a', buffering=1)
    self._tensorboard = os.path.join(workdir, 'tensorboard')
    self._purge_step = step + 1 if tensorboard else None

  def write(self, step: int, figures: dict[str, float]) -> None:
    """Writes one line; names are slash-separated."""
    if self._file is None:
      return
    clean = {k: _finite_or_none(float(v)) for k, v in figures.items()}
    self._file.write(json.dumps({'step': step, **clean}) + '\n')
    if self._purge_step is None:
      return
    if self._events is None:
      # Imported at the first line, which comes after the first steps: it takes
      # more than a second.
      import tensorboardX

      self._events = tensorboardX.SummaryWriter(
        self._tensorboard, purge_step=self._purge_step
      )
    for name, value in clean.items():
      if value is not None:
        # TensorBoard allows fewer characters than class names may have.
        tag = re.sub(r'[^\w/.-]', '_', name)
        self._events.add_scalar(tag, value, step)

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
    if self._events is not None:
      self._events.close()
