"""Images of any size, read by rows.

TIFF files in tiles or strips are decoded row by row on demand, all other files
at once. Either way the values are those of `decode.decode_image`.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import threading
from typing import Protocol, Self

import ml_collections
import numpy as np

from unet_jax.data import alpha, decode, intensity, stored, tiff, tiff_image
from unet_jax.runtime import errors

# Bytes of decoded rows kept for the next call.
_KEPT = 256 * 2**20


class Raster(Protocol):
  """An image that is read by rows, from any thread; a context manager."""

  size: tuple[int, int]  # Height and width in pixels.
  num_channels: int
  streams: bool  # Whether rows are decoded on demand.
  # The file's tag of how a viewer turns it, and the one that was applied, see
  # `stored.turn_back`; 1 is none.
  orientation: int = 1
  turned: int = 1
  origin: str = ''  # See `stored.Stored`.
  # Share of the values so far read that `data.intensity_range` cuts off.
  outside: float = 0.0

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns rows start..stop-1: uint8 [stop - start, W, num_channels]."""

  def ignored(self, start: int, stop: int) -> np.ndarray | None:
    """Returns which pixels of these rows hold no data: bool [stop - start, W].

    None where every pixel of the image does.
    """
    return None

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

    It is grey [H, W] or [H, W, 1], RGB [H, W, 3], either with alpha (one more
    channel), or [H, W, C] of which data.bands chooses; other types than uint8
    are scaled by data.intensity.

    Raises:
      UserError: another shape, alpha that is not opaque (see data.alpha), or
        values that cannot be scaled.
    """
    array = np.asarray(array)
    is_known = array.ndim == 2 or (
      array.ndim == 3 and (data.bands or array.shape[2] in (1, 2, 3, 4))
    )
    if not is_known:
      raise errors.UserError(
        f'{name} has the shape {array.shape}; an image is [H, W], [H, W, 1] or '
        '[H, W, 3], with alpha [H, W, 4]; of others, data.bands chooses, and '
        'of a stack, list(stack) is its images'
      )
    alpha = None
    if not data.bands and array.shape[2:] in ((2,), (4,)):
      array, alpha = array[..., :-1], array[..., -1]
    kinds = {(): 'grey', (1,): 'grey', (3,): 'rgb'}
    kind = kinds.get(array.shape[2:], 'bands')
    bits = 8 * array.dtype.itemsize
    found = stored.Stored(array, kind, bits, alpha=alpha)
    self._rows, self._ignored, self.outside = decode.to_network(
      found, name, data
    )
    self.origin = found.origin
    self.size = self._rows.shape[:2]
    self.num_channels = data.num_channels

  def read(self, start: int, stop: int) -> np.ndarray:
    return self._rows[start:stop]

  def ignored(self, start: int, stop: int) -> np.ndarray | None:
    return None if self._ignored is None else self._ignored[start:stop]


class DecodedRaster(ArrayRaster):
  """A file that is read whole."""

  def __init__(self, image: decode.Decoded, data: ml_collections.ConfigDict):
    self._rows, self._ignored = image.array, image.ignored
    self.size = image.array.shape[:2]
    self.num_channels = data.num_channels
    self.orientation = image.orientation
    self.origin, self.outside = image.origin, image.outside
    if data.orientation == 'upright':
      self.turned = image.orientation


class TiffRaster(Raster):
  """An image of a TIFF file, in tiles or strips."""

  streams = True

  def __init__(
    self,
    images: tiff.Images,
    image: tiff_image.Image,
    data: ml_collections.ConfigDict,
  ):
    """Reads the whole image once where its range of values must be known.

    The opened file is closed by `close`, and here on an error.
    """
    self.size, self._step = image.size, image.step
    self.orientation = image.orientation
    self.num_channels = data.num_channels
    self._images, self._image, self._data = images, image, data
    self._pool = concurrent.futures.ThreadPoolExecutor(
      data.num_workers or len(os.sched_getaffinity(0))
    )
    # These bands of rows, converted, and their pixels without data, by number:
    # those of the last two calls, since windows overlap and predicted rows are
    # read once more for overlays.
    self._bands: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    self._last, self._num_read = range(0), 0
    self._lock = threading.Lock()
    self._limits: tuple[float, float] | None = None
    self._may_ignore = bool(data.nodata) or (
      image.has_alpha and data.alpha == 'nodata'
    )
    try:
      self._limits = self._find_limits()
    except BaseException:
      self.close()
      raise

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns uint8 [stop - start, W, num_channels].

    Raises:
      DecodeError: these rows are damaged.
      UserError: see `decode.to_network`.
    """
    return self._read(start, stop)[0]

  def ignored(self, start: int, stop: int) -> np.ndarray | None:
    return self._read(start, stop)[1] if self._may_ignore else None

  def _read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows, and which of their pixels hold no data: bool [h, W]."""
    stop = min(stop, self.size[0])
    found = np.empty((stop - start, self.size[1], self.num_channels), np.uint8)
    ignored = np.zeros(found.shape[:2], bool)
    if self._image.is_mapped:
      found, some = self._convert(self._decode(start, stop))
      return found, ignored if some is None else some
    with self._lock:
      wanted = range(start // self._step, -(-stop // self._step))
      kept = {*wanted, *self._last}
      self._bands = {i: b for i, b in self._bands.items() if i in kept}
      self._last = wanted
      for i in wanted:
        top = i * self._step
        if i not in self._bands:
          rows = self._decode(top, min(top + self._step, self.size[0]))
          self._bands[i] = self._convert(rows)
          self._drop_bands()
        place = slice(max(start - top, 0), stop - top)
        part, some = self._bands[i]
        first = max(top - start, 0)
        at = slice(first, first + len(part[place]))
        found[at] = part[place]
        if some is not None:
          ignored[at] = some[place]
    return found, ignored

  def _drop_bands(self) -> None:
    """Drops the first bands where a call reads more than is to be kept."""
    excess = sum(band.nbytes for band, _ in self._bands.values()) - _KEPT
    for i in sorted(self._bands)[:-1]:
      if excess <= 0:
        break
      excess -= self._bands.pop(i)[0].nbytes

  def close(self) -> None:
    self._pool.shutdown()
    self._bands = {}
    self._images.close()

  def _decode(self, start: int, stop: int) -> stored.Stored:
    return stored.of_tiff(self._image, 1, start, stop, self._pool.map)

  def _convert(
    self, rows: stored.Stored
  ) -> tuple[np.ndarray, np.ndarray | None]:
    rows = self._without_alpha(rows)
    found, ignored, outside = decode.to_network(
      rows, self._image.name, self._data, self._limits
    )
    self._num_read += len(rows.pixels)
    self.outside += (outside - self.outside) * len(rows.pixels) / self._num_read
    self.origin = rows.origin
    return found, ignored

  def _without_alpha(self, rows: stored.Stored) -> stored.Stored:
    """Drops alpha that was checked of the whole image, see `_find_limits`."""
    is_used = self._data.bands or self._data.alpha == 'nodata'
    return rows if is_used else dataclasses.replace(rows, alpha=None)

  def _find_limits(self) -> tuple[float, float] | None:
    """Looks at the whole image, if it must: at its range and its alpha.

    Returns:
      The lowest and the highest value, where these are needed.

    Raises:
      UserError: alpha that is not opaque, see data.alpha.
    """
    data, image = self._data, self._image
    # Other types, and finite values, are checked row by row.
    by_range = data.intensity == 'image' or (
      data.intensity == 'dtype' and image.dtype.kind == 'f'
    )
    by_alpha = image.has_alpha and data.alpha == 'refuse' and not data.bands
    if not (by_range or by_alpha):
      return None
    limits: list[tuple[float, float]] = []
    transparent = 0
    for top in range(0, self.size[0], self._step):
      rows = self._decode(top, min(top + self._step, self.size[0]))
      if by_alpha:
        assert rows.alpha is not None
        transparent += int(np.count_nonzero(alpha.not_opaque(rows.alpha)))
      if by_range:
        chosen = decode.select(self._without_alpha(rows), image.name, data)
        limits.append(intensity.find_limits(*chosen))
    if transparent:
      raise alpha.error(image.name, transparent, image.size, image.channels)
    if not limits:
      return None
    lows, highs = zip(*limits)
    # Unlike min and max, NumPy's keep NaN.
    return float(np.min(lows)), float(np.max(highs))


def open_image(
  path: str | os.PathLike, data: ml_collections.ConfigDict, page: int = 0
) -> Raster:
  """Opens an image file; only TIFF in tiles or strips is not read whole.

  Args:
    path: of the file.
    data: the section of a config.
    page: which of several images in the file, from 0.

  Raises:
    DecodeError: it cannot be read.
    UserError: see `decode.decode_image`.
  """
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as f:
      head = f.read(4)
    raster = None
    if head in tiff.MAGIC:
      raster = _open_tiff(path, data, page)
    if raster is None:
      content = path.read_bytes()
  except OSError as e:
    raise errors.DecodeError(
      f'{path} cannot be read ({e.strerror}); fix it or remove it'
    ) from e
  if raster is not None:
    return raster
  decoded = decode.decode_image(content, str(path), data, page)
  return DecodedRaster(decoded, data)


def _open_tiff(
  path: pathlib.Path, data: ml_collections.ConfigDict, page: int
) -> TiffRaster | None:
  """Returns an image that can be read by rows, else None."""
  images = tiff.Images(path, str(path))
  with contextlib.ExitStack() as stack:
    stack.callback(images.close)
    decode.check_pages(len(images), str(path), data)
    image = images[page]
    is_turned = data.orientation == 'upright' and image.orientation != 1
    if not image.by_rows or is_turned:
      return None
    raster = TiffRaster(images, image, data)
    stack.pop_all()
    return raster
