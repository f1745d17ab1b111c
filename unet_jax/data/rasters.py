"""Images of any size, read by rows.

TIFF files in tiles or strips are decoded as their rows are asked for; all other
files at once. Either way the values are those of `decode.decode_image`.
"""

import concurrent.futures
import logging
import os
import pathlib
import struct
import threading
from typing import Protocol

import numpy as np
import tifffile

from unet_jax.data import decode
from unet_jax.runtime import errors

# Its warnings do not name the file; messages here do.
logging.getLogger('tifffile').setLevel(logging.CRITICAL)

# Compressions (by their TIFF tag) that imagecodecs and Pillow decode to the
# same values: none, LZW, JPEG, two names of deflate, PackBits, LZMA, Zstandard.
_COMPRESSIONS = (1, 5, 7, 8, 32946, 32773, 34925, 50000)

# Decoded rows that a file keeps for the next call, in bytes.
_KEPT = 256 * 2**20

# What a damaged file makes of tifffile and imagecodecs, whose own errors are
# RuntimeErrors.
_DAMAGE = (
  OSError,
  ValueError,
  TypeError,
  RuntimeError,
  IndexError,
  KeyError,
  struct.error,
  tifffile.TiffFileError,
)


class Raster(Protocol):
  """An image that is read by rows, from any thread; a context manager."""

  size: tuple[int, int]  # Height and width in pixels.
  num_channels: int
  streams: bool  # Whether rows are decoded as they are asked for.

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns rows start..stop-1: uint8 [stop - start, W, num_channels]."""

  def close(self) -> None: ...

  def __enter__(self) -> 'Raster': ...

  def __exit__(self, *error) -> None: ...


class ArrayRaster:
  """An array as a raster."""

  streams = False

  def __init__(self, array: np.ndarray, data, name: str = 'the array'):
    """Converts the array as a file's pixels would be.

    Args:
      array: grey [H, W] or [H, W, 1], or RGB [H, W, 3]; what is not uint8 is
        scaled as data.intensity says.
      data: the section `data` of the config.
      name: for messages.

    Raises:
      UserError: another shape, or values that cannot be scaled.
    """
    array = np.asarray(array)
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
      raise errors.UserError(
        f'{name} has the shape {array.shape}; an image is [H, W], [H, W, 1] or '
        '[H, W, 3]'
      )
    self._rows = decode.convert_array(
      array, name, data.num_channels, data.intensity
    )
    self.size = self._rows.shape[:2]
    self.num_channels = data.num_channels

  def read(self, start: int, stop: int) -> np.ndarray:
    return self._rows[start:stop]

  def close(self) -> None:
    pass

  def __enter__(self):
    return self

  def __exit__(self, *error) -> None:
    pass


class TiffRaster:
  """The first page of a TIFF file, of which `_is_by_rows` is true."""

  streams = True

  def __init__(self, tiff: tifffile.TiffFile, path, data):
    """Reads the whole image once where its range of values must be known.

    Args:
      tiff: opened; closed by `close`, and here on an error.
      path: of the file.
      data: the section `data` of the config.
    """
    page = tiff.pages.first
    self.size = (page.imagelength, page.imagewidth)
    self.num_channels = data.num_channels
    self._tiff, self._page = tiff, page
    self._name, self._intensity = str(path), data.intensity
    self._pool = concurrent.futures.ThreadPoolExecutor(
      data.num_workers or len(os.sched_getaffinity(0))
    )
    # What is decoded together: a row of tiles, or strips of some 64 rows.
    if page.is_tiled:
      self._step = page.tilelength
      self._count = -(-self.size[1] // page.tilewidth)
    else:
      height = min(page.rowsperstrip, self.size[0])
      self._count = max(64 // height, 1)
      self._step = height * self._count
    # Such rows, converted, by their number: those that the last two calls used,
    # since bands overlap and what was predicted is read once more.
    self._tiles, self._last = {}, range(0)
    self._lock = threading.Lock()
    self._mapped = self._limits = None
    try:
      if page.is_memmappable:
        self._mapped = page.asarray(out='memmap')
      if data.intensity == 'image' or page.dtype.kind == 'f':
        self._limits = self._find_limits()
    except BaseException:
      self.close()
      raise

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns uint8 [stop - start, W, num_channels].

    Raises:
      DecodeError: these rows are damaged.
      UserError: see `decode.convert_array`.
    """
    stop = min(stop, self.size[0])
    if self._mapped is not None:
      return self._convert(np.array(self._mapped[start:stop]))
    rows = np.empty((stop - start, self.size[1], self.num_channels), np.uint8)
    with self._lock:
      wanted = range(start // self._step, -(-stop // self._step))
      kept = {*wanted, *self._last}
      self._tiles = {i: t for i, t in self._tiles.items() if i in kept}
      self._last = wanted
      for i in wanted:
        if i not in self._tiles:
          self._tiles[i] = self._convert(self._decode(i))
          self._drop_tiles()
        top = i * self._step
        part = self._tiles[i][max(start - top, 0) : stop - top]
        at = max(top - start, 0)
        rows[at : at + len(part)] = part
    return rows

  def _drop_tiles(self) -> None:
    """Drops the first rows where a call reads more than is to be kept."""
    excess = sum(t.nbytes for t in self._tiles.values()) - _KEPT
    for i in sorted(self._tiles)[:-1]:
      if excess <= 0:
        break
      excess -= self._tiles.pop(i).nbytes

  def close(self) -> None:
    self._pool.shutdown()
    self._tiles, self._mapped = {}, None
    self._tiff.close()

  def __enter__(self):
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def _convert(self, rows: np.ndarray) -> np.ndarray:
    if rows.ndim == 3:
      rows = rows[..., :3]  # Alpha is dropped.
    # To the machine's byte order.
    rows = np.ascontiguousarray(rows, rows.dtype.newbyteorder('='))
    return decode.convert_array(
      rows, self._name, self.num_channels, self._intensity, self._limits
    )

  def _decode(self, number: int) -> np.ndarray:
    """Returns a row of tiles, or some strips, as stored: [h, W, S]."""
    page, file = self._page, self._tiff.filehandle
    first = number * self._step
    height = min(self._step, page.imagelength - first)
    rows = np.zeros((height, page.imagewidth, page.samplesperpixel), page.dtype)
    indices = range(len(page.dataoffsets))
    indices = indices[number * self._count : (number + 1) * self._count]

    def place(index: int, segment: bytes | None) -> None:
      # Files may leave tiles out where nothing was measured: they are 0.
      if segment is None:
        return
      decoded, (_, _, top, left, _), _ = page.decode(
        segment, index, jpegtables=page.jpegtables
      )
      _, h, w, _ = decoded.shape
      target = rows[top - first :][:h, left : left + w]
      # Tiles at the edges go on beyond them.
      target[:] = decoded[0, : target.shape[0], : target.shape[1]]

    try:
      segments = []
      for index in indices:
        count = page.databytecounts[index]
        file.seek(page.dataoffsets[index])
        segments.append(file.read(count) if count else None)
      list(self._pool.map(place, indices, segments))
    except _DAMAGE as e:
      reason = ' '.join(str(e).split()) or type(e).__name__
      raise decode.broken(self._name, reason) from e
    return rows

  def _find_limits(self) -> tuple[float, float]:
    """Returns the lowest and the highest value of the image, alpha apart."""
    if self._mapped is not None:
      bands = (
        self._mapped[top : top + 64] for top in range(0, self.size[0], 64)
      )
    else:
      bands = map(self._decode, range(-(-self.size[0] // self._step)))
    limits = []
    for rows in bands:
      rows = rows[..., :3] if rows.ndim == 3 else rows
      limits += [float(rows.min()), float(rows.max())]
    # Unlike min and max, NumPy's keep NaN.
    return float(np.min(limits)), float(np.max(limits))


def _is_by_rows(page: tifffile.TiffPage) -> bool:
  """Whether rows can be read alone, with the values of `decode_image`.

  Other kinds of TIFF (palettes, bits, planes, inverted grey, turned images,
  premultiplied alpha, uncommon types) are left to Pillow.
  """
  grey = page.samplesperpixel == 1 and page.photometric == 1
  alpha = tuple(page.extrasamples) in ((), (0,), (2,))
  # 6: YCbCr, which JPEG's decoder turns into RGB.
  rgb = page.samplesperpixel - len(page.extrasamples) == 3 and (
    page.photometric == 2 or (page.photometric == 6 and page.compression == 7)
  )
  bits = 8 * page.dtype.itemsize if page.dtype else 0
  whole = page.rowsperstrip >= page.imagelength and not page.is_tiled
  value = lambda tag, default: getattr(page.tags.get(tag), 'value', default)
  return (
    (grey or (rgb and alpha))
    and page.dtype in (np.uint8, np.uint16, np.float32)
    and page.bitspersample == bits
    and page.compression in _COMPRESSIONS
    and page.planarconfig == 1
    and page.imagedepth == 1
    and value('Orientation', 1) == 1
    and value('FillOrder', 1) == 1
    and page.imagewidth * page.imagelength > 0
    and (page.is_memmappable or not whole)
  )


def open_image(path: str | os.PathLike, data) -> Raster:
  """Returns the image of a file.

  TIFF files in tiles or strips take the memory of the rows that are read, all
  others that of the whole image.

  Args:
    path: of the file.
    data: the section `data` of the config.

  Raises:
    DecodeError: it cannot be read.
    UserError: values out of the range that is scaled to 0..255.
  """
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as f:
      head = f.read(4)
    tiff = _open_tiff(path) if head in decode.TIFF else None
    if tiff is None:
      content = path.read_bytes()
  except OSError as e:
    raise errors.DecodeError(
      f'{path} cannot be read ({e.strerror}); mend it or leave it out'
    ) from e
  if tiff is not None:
    return TiffRaster(tiff, path, data)
  pixels = decode.decode_image(
    content, str(path), data.num_channels, data.intensity
  )
  return ArrayRaster(pixels, data)


def _open_tiff(path: pathlib.Path) -> tifffile.TiffFile | None:
  """Returns a file that can be read by rows, or None."""
  tiff = None
  try:
    tiff = tifffile.TiffFile(path)
    page = tiff.pages.first
    if _is_by_rows(page) and _is_complete(page, tiff.filehandle.size):
      return tiff
  except _DAMAGE:
    pass  # Pillow says what is wrong with it.
  if tiff is not None:
    tiff.close()
  return None


def _is_complete(page: tifffile.TiffPage, size: int) -> bool:
  """Whether the file's `size` bytes hold all tiles or strips."""
  ends = np.add(page.dataoffsets, page.databytecounts, dtype=np.int64)
  rows = page.tilelength if page.is_tiled else page.rowsperstrip
  across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
  return (
    len(page.dataoffsets) == across * -(-page.imagelength // rows)
    and int(ends.max()) <= size
  )
