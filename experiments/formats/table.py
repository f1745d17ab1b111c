"""What readers make of image files: writes the table of docs/formats.md.

  python -m experiments.formats.table

Each file holds an array that is known (files.py). A cell says how what a reader
returns differs from the array that was written; `=` is no difference.
"""

import io
import pathlib
import warnings
from collections.abc import Callable

import cv2
import numpy as np
import PIL
import tifffile
from PIL import Image

from experiments.formats import files
from unet_jax.data import stored
from unet_jax.runtime import errors

PAGE = pathlib.Path(__file__).parents[2] / 'docs/formats.md'
MARKS = '<!-- table: begin -->', '<!-- table: end -->'
# Of the columns, those that depend on no version.
OURS = 4


def _pillow(data: bytes) -> np.ndarray:
  with Image.open(io.BytesIO(data)) as image:
    return np.asarray(image)


def _opencv(data: bytes) -> np.ndarray:
  array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if array is None:
    raise ValueError
  if array.ndim == 3 and array.shape[2] in (3, 4):
    array = array[..., [2, 1, 0, 3][: array.shape[2]]]
  return array


def _tifffile(data: bytes) -> np.ndarray | None:
  if data[:2] not in (b'II', b'MM'):
    return None
  return tifffile.imread(io.BytesIO(data))


_OTHERS: dict[str, Callable[[bytes], np.ndarray | None]] = {
  f'Pillow {PIL.__version__}': _pillow,
  f'OpenCV {cv2.__version__}': _opencv,
  f'tifffile {tifffile.__version__}': _tifffile,
}


def _ours(file: files.File) -> str:
  """What `stored.read` gives, in words."""
  try:
    found = stored.read(file.data, 'x')
  except errors.UserError as e:
    return f'refused: {e}'
  words = found.describe()
  if not np.array_equal(found.pixels, file.array):
    words += ', OTHER VALUES'
  more = {
    f'{found.pages} images': found.pages > 1,
    'white is zero': found.white_is_zero,
    f'orientation {found.orientation}': found.orientation != 1,
    f'no data: {found.nodata}': found.nodata is not None,
  }
  return ', '.join([words, *(text for text, holds in more.items() if holds)])


def _other(read: Callable[[bytes], np.ndarray | None], file: files.File) -> str:
  """How what another reader gives differs."""
  with warnings.catch_warnings(action='ignore'):
    try:
      found = read(file.data)
    except Exception:  # Each library has its own.
      return 'error'
  if found is None:
    return ''
  return _difference(found, file)


def _difference(found: np.ndarray, file: files.File) -> str:
  array = file.array
  if array.dtype == bool:
    array = array.astype(np.uint8)
  if found.dtype == bool:
    found = found.astype(np.uint8)
  if found.shape == array.shape and np.array_equal(found, array):
    return '=' if file.pages == 1 else f'first of {file.pages}'
  if file.pages > 1 and found.ndim > array.ndim:
    if np.array_equal(found[0], array):
      return f'all of {found.shape[0]}'
  if file.shown is not None and np.array_equal(found, file.shown):
    return 'colours' if file.shown.ndim > array.ndim else 'as shown'
  if found.shape[:2] == array.shape[1::-1]:
    return 'turned'
  if found.shape[:2] == array.shape[:2]:
    return _same_size(found, array)
  if found.ndim == 3 and found.shape[1:] == array.shape[:2]:
    same = array.ndim == 3 and np.array_equal(np.moveaxis(found, 0, -1), array)
    return f'[C, H, W]{"" if same else ", other values"}'
  return f'shape {found.shape}'


def _same_size(found: np.ndarray, array: np.ndarray) -> str:
  wide = array.astype(np.float64)
  if found.shape == array.shape:
    if array.dtype == np.uint16 and np.array_equal(found, array >> 8):
      return 'high byte alone'
    if array.ndim == 3 and np.array_equal(found, array[..., ::-1]):
      return 'channels in reverse'
    for factor in (16, 17, 85, 255, 257):
      if np.array_equal(found, wide * factor):
        return f'times {factor}'
    for highest in (1, 255, 65535):
      if np.array_equal(found, highest - wide):
        return 'inverted'
    if np.array_equal(found.astype(np.int64) % 2**32, wide % 2**32):
      return f'{found.dtype}: wrapped'
    return f'other values, {found.dtype}'
  channels = found.shape[2] if found.ndim == 3 else 1
  had = array.shape[2] if array.ndim == 3 else 1
  grid = found.reshape(*found.shape[:2], channels)
  want = array.reshape(*array.shape[:2], had)
  if channels == had + 1 and np.array_equal(grid[..., :had], want):
    return '=, with alpha'
  if channels < had and np.array_equal(grid, want[..., :channels]):
    return f'{channels} of {had} channels'
  return f'other values, {channels} channels of {found.dtype}'


def rows() -> list[list[str]]:
  """The cells of the table, the head first."""
  head = ['written by', 'format', 'kind', 'unet_jax', *_OTHERS]
  return [head] + [
    [f.writer, f.format, f.kind, _ours(f)]
    + [_other(read, f) for read in _OTHERS.values()]
    for f in files.files()
  ]


def table(cells: list[list[str]]) -> str:
  head, *body = cells
  lines = [head, ['---'] * len(head), *body]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def main() -> None:
  before, after = (PAGE.read_text().partition(mark) for mark in MARKS)
  PAGE.write_text(f'{before[0]}{MARKS[0]}\n{table(rows())}{MARKS[1]}{after[2]}')


if __name__ == '__main__':
  main()
