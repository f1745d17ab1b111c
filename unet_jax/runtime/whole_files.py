"""Files that are written whole or not at all.

Process 0 writes; in the others every call does nothing.
"""

import contextlib
import csv
import json
import math
import os
from collections.abc import Iterator
from typing import Any, TextIO

import jax
import numpy as np


@contextlib.contextmanager
def replacing(path: str, **options: Any) -> Iterator[TextIO]:
  """Opens a text file that takes the place of `path` once it is written."""
  with open(path + '.tmp', 'w', **options) as f:
    yield f
  os.replace(path + '.tmp', path)


def write_json(path: str, value: Any) -> None:
  """Writes a value as JSON, which has no NaN: it becomes null."""
  if jax.process_index():
    return
  with replacing(path) as f:
    json.dump(finite_or_none(value), f, indent=2)
    f.write('\n')


def finite_or_none(value: Any) -> Any:
  """Replaces floats that are not finite by None, at any depth."""
  if isinstance(value, dict):
    return {k: finite_or_none(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [finite_or_none(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_csv(path: str, rows: list[dict[str, Any]]) -> None:
  """Writes a table as CSV (RFC 4180).

  Args:
    path: of the file, UTF-8; bytes of a name that are none become \\udcXX.
    rows: a line each. The columns are in the order in which the rows first name
      them; NaN, None and keys that a row lacks are empty. Floats are read back
      exactly.
  """
  if jax.process_index():
    return
  columns = list(dict.fromkeys(key for row in rows for key in row))
  with replacing(
    path, encoding='utf-8', errors='backslashreplace', newline=''
  ) as f:
    writer = csv.writer(f)
    if columns:
      writer.writerow(columns)
    writer.writerows([_csv_cell(row.get(c)) for c in columns] for row in rows)


def _csv_cell(value: Any) -> str:
  if isinstance(value, float | np.floating):
    # Of a NumPy float the repr would name the type.
    return '' if math.isnan(value) else repr(float(value))
  return '' if value is None else str(value)
