"""Files of a sweep, which several processes read and write at the same time."""

import contextlib
import json
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any, TextIO


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[TextIO]:
  """A text file to write to, which then takes the place of `path`.

  Its name is no other's: processes may write the same file, also in containers,
  whose numbers of processes are alike.
  """
  temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex}.tmp')
  try:
    with open(temporary, 'w', encoding='utf-8', newline='') as f:
      yield f
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a file whole or not at all.

  Not metric_writer's, which asks jax for the process and so takes the device
  that the points need.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as f:
    f.write(json.dumps(value, indent=2) + '\n')


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns what a file holds; of one that is not there, {}."""
  return json.loads(path.read_text()) if path.exists() else {}
