"""Arrays of any size in files, mapped when they are asked for."""

import functools
import io
import mmap
import os
import pathlib
import shutil
import tempfile
import zipfile
from typing import Any

import numpy as np

# What reading raises where files are gone, cut off or changed.
DAMAGE = (
  FileNotFoundError,
  EOFError,
  ValueError,
  LookupError,
  zipfile.BadZipFile,
)


def set_aside(path: pathlib.Path) -> None:
  """Makes room where damaged arrays are; removes them if it can."""
  if path.exists():
    aside = tempfile.mkdtemp(prefix=f'{path.name}.tmp-', dir=path.parent)
    path.rename(pathlib.Path(aside, 'damaged'))
    shutil.rmtree(aside, ignore_errors=True)


@functools.lru_cache(maxsize=4096)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], Any, np.dtype]:
  """Returns shape, order and type by the header of an .npy file.

  Kept, since np.load takes ten times as long to parse it as to map the file,
  and images of one size have the same.
  """
  file = io.BytesIO(header)
  np.lib.format.read_magic(file)
  shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
  return shape, 'F' if is_fortran else 'C', dtype


def num_bytes(folder: pathlib.Path) -> int:
  """Returns the bytes of a folder's files and folders.

  Without meta.json, and hidden files, which systems leave (NFS, macOS).
  """
  with os.scandir(folder) as entries:
    return sum(
      num_bytes(pathlib.Path(entry)) if entry.is_dir() else entry.stat().st_size
      for entry in entries
      if entry.name != 'meta.json' and not entry.name.startswith('.')
    )


class Files:
  """Arrays of any size, each in a file that is mapped when it is asked for.

  Mapped anew at each access: a lasting mapping holds a file descriptor, of
  which a process has few.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def _path(self, row: int) -> str:
    return f'{self._folder}/{row:06d}.npy'  # Faster than pathlib's.

  def __setitem__(self, row: int, array: np.ndarray) -> None:
    np.save(self._path(row), array)

  def __getitem__(self, row: int) -> np.ndarray:
    file = os.open(self._path(row), os.O_RDONLY)
    try:
      memory = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    finally:
      os.close(file)
    end = 10 + int.from_bytes(memory[8:10], 'little')
    shape, order, dtype = _parse_header(memory[:end])
    return np.ndarray(shape, dtype, memory, end, order=order)
