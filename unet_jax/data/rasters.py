"""Images of any size, read by rows.

TIFF files in tiles or strips are decoded row by row on demand, all other files
at once. Either way the values are those of `decode.decode_image`.
"""

import concurrent.futures
import logging
import math
import os
import pathlib
import struct
import threading
from typing import Protocol, Self

import ml_collections
import numpy as np
import tifffile

from unet_jax.data import decode
from unet_jax.runtime import errors

# Its warnings do not name the file; our messages do.
logging.getLogger('tifffile').setLevel(logging.CRITICAL)

# Compressions (by their TIFF tag) that imagecodecs and Pillow decode to the
# same values: none, LZW, JPEG, two names of deflate, PackBits, LZMA, Zstandard.
_COMPRESSIONS = (1, 5, 7, 8, 32946, 32773, 34925, 50000)

# Bytes of decoded rows kept for the next call.
_KEPT = 256 * 2**20

# Raised by tifffile and imagecodecs for damaged files; imagecodecs' own errors
# are RuntimeErrors.
DAMAGE = (
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
  streams: bool  # Whether rows are decoded on demand.

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns rows start..stop-1: uint8 [stop - start, W, num_channels]."""

  def close(self) -> None:
    return

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


class ArrayRaster(Raster):
  """An array as a raster."""

  streams = False

  def __init__(
    self,
    array: np.ndarray,
    data: ml_collections.ConfigDict,
    name: str = 'the array',
  ):
    """Converts the array as a file's pixels would be.

    It is grey [H, W] or [H, W, 1], or RGB [H, W, 3]; other types than uint8 are
    scaled by data.intensity.

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


class TiffRaster(Raster):
  """The first page of a TIFF file that `_is_by_rows` accepts."""

  streams = True

  def __init__(
    self,
    tiff: tifffile.TiffFile,
    path: pathlib.Path,
    data: ml_collections.ConfigDict,
  ):
    """Reads the whole image once where its range of values must be known.

    The opened file is closed by `close`, and here on an error.
    """
    page = tiff.pages.first
    self.size = (page.imagelength, page.imagewidth)
    self.num_channels = data.num_channels
    self._tiff, self._page = tiff, page
    self._name, self._intensity = str(path), data.intensity
    self._pool = concurrent.futures.ThreadPoolExecutor(
      data.num_workers or len(os.sched_getaffinity(0))
    )
    # Decoded together: a row of tiles, or strips of some 64 rows.
    if page.is_tiled:
      self._count, self._step = page.chunked[1], page.tilelength
    else:
      height = min(page.rowsperstrip, self.size[0])
      self._count = max(64 // height, 1)
      self._step = height * self._count
    # These bands of rows, converted, by number: those of the last two calls,
    # since windows overlap and predicted rows are read once more for overlays.
    self._bands: dict[int, np.ndarray] = {}
    self._last = range(0)
    self._lock = threading.Lock()
    self._mapped: np.ndarray | None = None
    self._limits: tuple[float, float] | None = None
    try:
      if page.is_memmappable:
        self._mapped = page.asarray(out='memmap')
      if data.intensity == 'image' or page.dtype == np.float32:
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
      self._bands = {i: b for i, b in self._bands.items() if i in kept}
      self._last = wanted
      for i in wanted:
        if i not in self._bands:
          self._bands[i] = self._convert(self._decode(i))
          self._drop_bands()
        top = i * self._step
        part = self._bands[i][max(start - top, 0) : stop - top]
        at = max(top - start, 0)
        rows[at : at + len(part)] = part
    return rows

  def _drop_bands(self) -> None:
    """Drops the first bands where a call reads more than is to be kept."""
    excess = sum(band.nbytes for band in self._bands.values()) - _KEPT
    for i in sorted(self._bands)[:-1]:
      if excess <= 0:
        break
      excess -= self._bands.pop(i).nbytes

  def close(self) -> None:
    self._pool.shutdown()
    self._bands, self._mapped = {}, None
    self._tiff.close()

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
    page, first = self._page, number * self._step
    height = min(self._step, page.imagelength - first)
    rows = np.zeros((height, page.imagewidth, page.samplesperpixel), page.dtype)
    chosen = slice(number * self._count, (number + 1) * self._count)

    def place(segment_and_index: tuple[bytes | None, int]) -> None:
      segment, index = segment_and_index
      if segment is None:  # Files may omit empty tiles: they are 0.
        return
      decoded, (_, _, top, left, _), _ = page.decode(
        segment, index, jpegtables=page.jpegtables
      )
      assert decoded is not None
      _, h, w, _ = decoded.shape
      target = rows[top - first :][:h, left : left + w]
      # Tiles at the edges reach beyond them.
      target[:] = decoded[0, : target.shape[0], : target.shape[1]]

    try:
      segments = self._tiff.filehandle.read_segments(
        page.dataoffsets[chosen],
        page.databytecounts[chosen],
        range(len(page.dataoffsets))[chosen],
      )
      list(self._pool.map(place, segments))
    except DAMAGE as e:
      reason = ' '.join(str(e).split()) or type(e).__name__
      raise decode.broken(self._name, reason) from e
    return rows

  def _find_limits(self) -> tuple[float, float]:
    """Returns the lowest and the highest value of the image, without alpha."""
    limits: list[float] = []
    for top in range(0, self.size[0], self._step):
      if self._mapped is not None:
        rows = self._mapped[top : top + self._step]
      else:
        rows = self._decode(top // self._step)
      rows = rows[..., :3] if rows.ndim == 3 else rows
      limits += [float(rows.min()), float(rows.max())]
    # Unlike min and max, NumPy's keep NaN.
    return float(np.min(limits)), float(np.max(limits))


def _is_by_rows(page: tifffile.TiffPage) -> bool:
  """Whether rows can be read alone, with the values of `decode_image`.

  Pillow reads other kinds of TIFF: palettes, bits, planes, inverted grey,
  turned images, premultiplied alpha, uncommon types.
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


def open_image(
  path: str | os.PathLike, data: ml_collections.ConfigDict
) -> Raster:
  """Opens an image file; only TIFF in tiles or strips is not read whole.

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
      f'{path} cannot be read ({e.strerror}); fix it or remove it'
    ) from e
  if tiff is not None:
    return TiffRaster(tiff, path, data)
  pixels = decode.decode_image(
    content, str(path), data.num_channels, data.intensity
  )
  return ArrayRaster(pixels, data)


def _open_tiff(path: pathlib.Path) -> tifffile.TiffFile | None:
  """Returns a file that can be read by rows, else None."""
  tiff = None
  try:
    tiff = tifffile.TiffFile(path)
    page = tiff.pages.first
    if _is_by_rows(page) and _is_complete(page, tiff.filehandle.size):
      return tiff
  except DAMAGE:
    pass  # Pillow's message says why.
  if tiff is not None:
    tiff.close()
  return None


def _is_complete(page: tifffile.TiffPage, size: int) -> bool:
  """Whether the file's `size` bytes hold all tiles or strips."""
  ends = np.add(page.dataoffsets, page.databytecounts, dtype=np.int64)
  return (
    len(page.dataoffsets) == math.prod(page.chunked) and int(ends.max()) <= size
  )
