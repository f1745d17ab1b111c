"""Files that are written whole or not at all, and the folder they are in.

The first process of a run writes; in the others, calls do nothing, unless they
say `by_all`.
"""

import contextlib
import csv
import fcntl
import json
import math
import os
import pathlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np

from unet_jax.runtime import errors, processes

Path = str | os.PathLike


def make_workdir(workdir: str) -> None:
  """Makes a folder that can be written to; raises UserError if it cannot."""
  try:
    os.makedirs(workdir, exist_ok=True)
    if not os.access(workdir, os.W_OK):
      raise PermissionError(None, 'Permission denied')
  except OSError as e:
    raise errors.UserError(
      f'--workdir={workdir}: cannot be written ({e.strerror}); change '
      'that, or choose another'
    ) from e


@contextlib.contextmanager
def replacing(path: Path, **options: Any) -> Iterator[TextIO]:
  """Opens a text file that takes the place of `path` once it is written.

  Its name is unique: several processes may write the same file, also in
  containers, which share process ids.
  """
  temporary = pathlib.Path(f'{os.fspath(path)}.{uuid.uuid4().hex}.tmp')
  try:
    with open(temporary, 'w', **options) as f:
      with contextlib.suppress(OSError):  # Not all file systems have locks.
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
      yield f
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def remove_parts(workdir: str) -> None:
  """Removes the files of writers that were killed."""
  for path in pathlib.Path(workdir).glob('*.tmp'):
    if not re.search(r'\.[0-9a-f]{32}\.tmp$', path.name):
      continue
    # One that a writer has is locked, or gone by now.
    with contextlib.suppress(OSError), open(path) as f:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
      path.unlink()


def write_json(path: Path, value: Any, by_all: bool = False) -> None:
  """Writes a value as JSON, which has no NaN: it becomes null."""
  if not (by_all or processes.is_first()):
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


def write_csv(
  path: Path,
  rows: Iterable[Mapping[str, Any]],
  columns: Sequence[str] = (),
  by_all: bool = False,
) -> None:
  """Writes a table as CSV (RFC 4180).

  Args:
    path: of the file, UTF-8; bytes of a name that are none become \\udcXX.
    rows: a line each. NaN, None and keys that a row lacks are empty. Floats are
      read back exactly.
    columns: without them, all keys in the order in which rows first name them.
  """
  if not (by_all or processes.is_first()):
    return
  rows = list(rows)
  columns = columns or list(dict.fromkeys(key for row in rows for key in row))
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
