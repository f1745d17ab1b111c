"""Whether a checkpoint is as it was saved, by digests of its files.

Orbax notices most damage of what describes the arrays, and none of the arrays:
a wrong bit in them is another number.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from unet_jax.data import digests
from unet_jax.runtime import errors, whole_files

_NAME = 'digests.json'
# What checkpoints have that were saved before there were digests.
_ALWAYS = ('config/metadata', 'data/metadata', 'state/manifest.ocdbt')
# What Orbax says of damaged files, of checkpoints without digests.
_DAMAGED = (
  'error while reading array',
  'directory does not exist',
  'was not found in the checkpoint',
  'out_of_range:',
  'data_loss:',
  'not_found:',
  'failed_precondition:',
)
_UNREADABLE = (json.JSONDecodeError, UnicodeDecodeError, FileNotFoundError)
# Few, since the files are many and small, or few and large.
_THREADS = 4


def _of_files(folder: pathlib.Path, names: list[str]) -> dict[str, str]:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(digests.of_file, [folder / name for name in names])
    return dict(zip(names, found))


def check_steps(directory: str, steps: Sequence[int]) -> None:
  """Raises UserError where steps were saved or removed meanwhile."""
  with os.scandir(directory) as entries:
    names = [entry.name for entry in entries if entry.is_dir()]
  there = {name for name in names if name.isdecimal() and len(name) > 7}
  if there != {f'{step:08d}' for step in steps}:
    raise _replaced(directory)


@contextlib.contextmanager
def listing(directory: str) -> Iterator[None]:
  """Raises UserError where steps are removed while they are listed."""
  try:
    yield
  except FileNotFoundError as e:
    raise _replaced(directory) from e


def _replaced(directory: str) -> errors.UserError:
  return errors.UserError(
    f'{directory}: a run that goes on there replaced what was read; run the '
    'same command again'
  )


def write_digests(folder: str | os.PathLike) -> None:
  """Keeps the digests of all files of a checkpoint's items beside them."""
  folder = pathlib.Path(folder)
  # Orbax still writes to the files that are of no item.
  files = (path for path in folder.glob('*/**/*') if path.is_file())
  names = sorted(path.relative_to(folder).as_posix() for path in files)
  whole_files.write_json(folder / _NAME, _of_files(folder, names))


def damage(folder: str | os.PathLike) -> str:
  """Returns what is wrong with a checkpoint, in a few words; '' if nothing.

  All of it is read; of older checkpoints, which have no digests, nothing.
  """
  folder = pathlib.Path(folder)
  found: dict[str, Any]
  try:
    saved = json.loads((folder / _NAME).read_text())
    found = _of_files(folder, list(saved))
  except FileNotFoundError:
    saved = found = dict.fromkeys(_ALWAYS)
  except (OSError, ValueError, AttributeError):
    return f'{_NAME} cannot be read'
  for name in saved:
    if not (folder / name).exists():
      return f'{name} is gone'
    if found[name] == '':
      return f'{name} cannot be read'
    if found[name] != saved[name]:
      return f'{name} is not as it was saved'
  return ''


def is_of_damage(e: Exception) -> bool:
  """Whether an error of Orbax's says that files are damaged or gone."""
  text = ' '.join(str(e).split()).lower()
  return isinstance(e, _UNREADABLE) or any(part in text for part in _DAMAGED)
