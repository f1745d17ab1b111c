"""One image of a TIFF file, by rows, as its samples are stored.

tifffile and imagecodecs decode; nothing is applied that is meant for display:
no inverted grey, no palette, no orientation, no scale. What they would read
other than exactly is refused by name.
"""

import dataclasses
import logging
import math
import os
import struct
from collections.abc import Callable, Iterable, Sequence

import imagecodecs
import numpy as np
import tifffile
from PIL import Image as pillow

from unet_jax.data import tiff_tags
from unet_jax.runtime import errors

# Their warnings do not name the file; our messages do.
for _name in ('tifffile', 'imagecodecs'):
  logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

# Raised by tifffile and imagecodecs for damaged files; imagecodecs' own errors
# are RuntimeErrors.
DAMAGE = (
  ArithmeticError,
  MemoryError,
  OSError,
  ValueError,
  TypeError,
  RuntimeError,
  IndexError,
  KeyError,
  AttributeError,
  AssertionError,
  struct.error,
  tifffile.TiffFileError,
)


# By the tag Compression: none, deflate by two numbers, PackBits and Zstandard.
_PLAIN = (1, 8, 32946, 32773, 50000)
# Strips of fewer bytes are decoded one after the other, not in threads.
_SMALL = 2**13


@dataclasses.dataclass(frozen=True)
class Plane:
  """A page, or rows of a file that only a description tells of.

  Attributes:
    page: its tags.
    offset: of its pixels in the file, where these are not the page's own.
  """

  page: tifffile.TiffPage
  offset: int | None = None


class Image:
  """One image of an opened file; reads from one thread at a time.

  Attributes:
    size: height and width in pixels, as stored.
    channels: samples of a pixel that are no alpha.
    dtype: of the samples, in the machine's byte order; bits are uint8.
    bits: of a sample as stored, such as 1, 4 or 12.
    kind, palette, white_is_zero, orientation, nodata: as of `stored.Stored`.
    has_alpha: whether `read` returns it.
    is_lossy: whether the file was compressed by JPEG.
    step: rows that are decoded together.
    is_mapped: whether the file's pixels are mapped into memory as they are.
    by_rows: whether some rows can be read without most of the others.
  """

  def __init__(self, planes: Sequence[Plane], mask: Plane | None, name: str):
    """Looks at the tags; decodes nothing.

    Raises:
      DecodeError: the image is of a kind that is not read exactly.
      Any of DAMAGE: the file is damaged.
    """
    page = planes[0].page
    for other in {plane.page.offset: plane.page for plane in planes}.values():
      tiff_tags.check_tags(other)
      if (other.shaped, other.dtype) != (page.shaped, page.dtype):
        raise ValueError('its channels are of several sizes or types')
    self.name = name
    self._planes, self._mask = planes, mask
    self.size = (page.imagelength, page.imagewidth)
    if 0 in self.size:
      raise ValueError('it has no pixels')
    refuse = tiff_tags.unreadable(page, len(planes))
    if refuse:
      raise refused(name, refuse)
    assert page.dtype is not None
    self.bits = page.bitspersample
    self.dtype = page.dtype.newbyteorder('=')
    if self.dtype == bool:
      self.dtype = np.dtype(np.uint8)
    self._alpha = tiff_tags.alpha_index(page)
    self.has_alpha = self._alpha is not None or mask is not None
    samples = page.samplesperpixel * len(planes)
    self.channels = samples - (self._alpha is not None)
    self.kind, self.palette = tiff_tags.meaning(page, self.channels)
    self._is_cmyk = tiff_tags.is_cmyk(page)
    if self._is_cmyk:
      self.channels = 3
    self.white_is_zero = tiff_tags.is_white_zero(page)
    value = page.tags.valueof(274)
    self.orientation = value if value in range(1, 9) else 1
    self.nodata = tiff_tags.nodata(page)
    self.is_lossy = page.compression == tiff_tags.JPEG
    self.step = page.tilelength
    if not page.is_tiled:
      height = max(min(page.rowsperstrip, self.size[0]), 1)
      self.step = height * max(64 // height, 1)
    file = page.parent.filehandle
    self._mapped: list[np.ndarray] | None = None
    if all(p.offset is not None or page.is_final for p in planes):
      complete = all(_end(p) <= file.size for p in planes)
      if complete and file.is_file:
        self._mapped = [_map(p) for p in planes]
    else:
      complete = all(_is_complete(p.page) for p in planes)
    if not complete:
      raise ValueError('image file is truncated')
    whole = page.rowsperstrip >= self.size[0] and not page.is_tiled
    self.is_mapped = self._mapped is not None
    self.by_rows = self.is_mapped or not whole

  def read(
    self, start: int, stop: int, parallel: Callable[..., Iterable] = map
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns rows start..stop-1 as they are stored.

    Args:
      start, stop: rows.
      parallel: calls a function with each of several arguments, as `map`.

    Returns:
      The pixels, [h, W] or [h, W, C], and alpha, [h, W], or None.

    Raises:
      DecodeError: these rows are damaged.
    """
    try:
      parts = [
        self._read_plane(i, start, stop, parallel)
        for i in range(len(self._planes))
      ]
      mask = None
      if self._mask is not None:
        mask = _decode(self._mask.page, start, stop, parallel, None)[..., 0]
    except DAMAGE as e:
      raise broken(self.name, e) from e
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
    alpha = None
    if self._alpha is not None:
      alpha = rows[..., self._alpha]
      rows = np.delete(rows, self._alpha, -1)
    if mask is not None:
      alpha = np.where(mask > 0, np.uint8(255), np.uint8(0))
    if self._is_cmyk:
      rows = np.asarray(
        pillow.fromarray(np.ascontiguousarray(rows), 'CMYK').convert('RGB')
      )
    return rows[..., 0] if rows.shape[2] == 1 else rows, alpha

  def _read_plane(
    self, number: int, start: int, stop: int, parallel: Callable[..., Iterable]
  ) -> np.ndarray:
    """Returns [h, W, S] of one plane, of `dtype`."""
    plane = self._planes[number]
    if self._mapped is not None:
      rows = np.array(self._mapped[number][:, start:stop])
    elif plane.offset is not None:
      rows = _read_bytes(plane)[:, start:stop]
    else:
      is_whole = (start, stop) == (0, self.size[0])
      decoded = _decode_lzw(plane.page) if is_whole else None
      if decoded is None:
        decoded = _decode_small_strips(plane.page, start, stop)
      if decoded is None:
        decoded = _decode(plane.page, start, stop, parallel, self.nodata)
      return np.ascontiguousarray(decoded, self.dtype)
    # Stored as [planes, H, W, samples], of which one is 1.
    rows = np.moveaxis(rows, 0, -1)[..., 0, :] if len(rows) > 1 else rows[0]
    return np.ascontiguousarray(rows, self.dtype)


def broken(name: str, reason: object) -> errors.DecodeError:
  """Returns the error for a damaged file."""
  if isinstance(reason, BaseException):
    reason = ' '.join(str(reason).split()) or type(reason).__name__
  return errors.DecodeError(
    f'{name} cannot be decoded ({reason}); replace it, or skip such files with '
    '--config.data.on_error=skip'
  )


def refused(name: str, what: str) -> errors.DecodeError:
  """Returns the error for a sound file of a kind that is not read exactly."""
  return errors.DecodeError(
    f'{name} is {what}, which is not read; store it as PNG, or as TIFF of '
    'grey, RGB or bands, or skip such files with --config.data.on_error=skip'
  )


def _segments_across(page: tifffile.TiffPage) -> int:
  return -(-page.imagewidth // page.tilewidth)


def _is_complete(page: tifffile.TiffPage) -> bool:
  """Whether the file's bytes hold all tiles or strips."""
  if not page.dataoffsets or 0 in page.shaped:
    return False
  ends = np.add(page.dataoffsets, page.databytecounts, dtype=np.int64)
  return (
    len(page.dataoffsets) == math.prod(page.chunked)
    and int(ends.max()) <= page.parent.filehandle.size
  )


def _decode_lzw(page: tifffile.TiffPage) -> np.ndarray | None:
  """Decodes a page of LZW in memory by libtiff: [H, W, S] as stored.

  In 0.6 of the time of `_decode`, and as strictly (of deflate and PackBits it
  lets damage pass). Returns None where `_decode` must: it can read more, and
  says what is damaged.
  """
  file, shape = page.parent.filehandle, (*page.shaped[2:4], page.shaped[4])
  if (
    page.compression != tiff_tags.LZW
    or (page.planarconfig == 2 and page.samplesperpixel > 1)
    or file.is_file
    or not isinstance(page.index, int)  # It is in a SubIFD.
  ):
    return None
  file.seek(0)
  try:
    array = imagecodecs.tiff_decode(file.read(), page.index)
  except DAMAGE:
    return None
  same = array.dtype == page.dtype and array.size == math.prod(shape)
  return array.reshape(shape) if same else None


def _decode_small_strips(
  page: tifffile.TiffPage, start: int, stop: int
) -> np.ndarray | None:
  """Decodes rows of small strips of plain bytes: [h, W, S] as stored.

  As strictly as `_decode`, which looks at the tags again for each strip, in 0.2
  to 0.8 of its time. Returns None where `_decode` must: it can read more, and
  says what is damaged.
  """
  dtype = _stored_type(page)
  height = max(min(page.rowsperstrip, page.imagelength), 1)
  row = page.imagewidth * page.samplesperpixel * dtype.itemsize
  if (
    page.compression not in _PLAIN
    or page.is_tiled
    or height * row > _SMALL
    or page.bitspersample != 8 * dtype.itemsize
    or (page.predictor, page.fillorder) != (1, 1)
    or (page.planarconfig == 2 and page.samplesperpixel > 1)
  ):
    return None
  first, last = start // height, -(-stop // height)
  counts = page.databytecounts[first:last]
  begins = np.subtract(page.dataoffsets[first:last], page.dataoffsets[first])
  length = int((begins + counts).max())
  if begins.min() < 0 or 0 in counts or length > 2 * sum(counts) + _SMALL:
    return None  # They lie apart, in another order, or some are omitted.
  page.parent.filehandle.seek(page.dataoffsets[first])
  content = page.parent.filehandle.read(length)
  sizes = [row * height] * (last - first)
  if last * height > page.imagelength:
    sizes[-1] = row * (page.imagelength - (last - 1) * height)
  parts = []
  try:
    decode = tifffile.TIFF.DECOMPRESSORS[page.compression]
    for begin, count, size in zip(begins.tolist(), counts, sizes, strict=True):
      parts.append(decode(content[begin : begin + count], out=size))
      if len(parts[-1]) != size:
        return None
  except DAMAGE:
    return None
  rows = np.frombuffer(bytearray().join(parts), dtype)
  rows = rows.reshape(-1, page.imagewidth, page.samplesperpixel)
  return rows[start - first * height :][: stop - start]


def _decode(
  page: tifffile.TiffPage,
  start: int,
  stop: int,
  parallel: Callable[..., Iterable],
  nodata: float | None,
) -> np.ndarray:
  """Decodes the tiles or strips of some rows: [h, W, S] as stored."""
  height = page.tilelength if page.is_tiled else page.rowsperstrip
  across = _segments_across(page) if page.is_tiled else 1
  total = -(-page.imagelength // height) * across
  chosen = range(start // height * across, -(-stop // height) * across)
  planes = page.samplesperpixel if page.planarconfig == 2 else 1
  shape = stop - start, page.imagewidth, page.samplesperpixel
  assert page.dtype is not None
  dtype = page.dtype.newbyteorder('=')
  rows = np.zeros(shape, dtype)

  def place(segment_and_index: tuple[bytes | None, int]) -> None:
    segment, index = segment_and_index
    if segment is None:  # Files may omit empty tiles.
      decoded = None
      (sample, _, top, left, _), size = page.decode(None, index)[1:]
    else:
      decoded, (sample, _, top, left, _), size = page.decode(
        segment, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader
      )
      assert decoded is not None
      # Codecs of fax machines give bits as uint8.
      if decoded.dtype.kind != dtype.kind and dtype.kind != 'b':
        raise ValueError(f'values are of type {decoded.dtype}, not {dtype}')
    first, last = max(top, start), min(top + size[1], stop)
    width = min(size[2], page.imagewidth - left)
    at = rows[first - start : last - start, left : left + width]
    if planes > 1:
      at = at[..., sample : sample + 1]
    if decoded is None:
      at[:] = 0 if nodata is None else nodata
    else:
      at[:] = decoded[0, first - top : last - top, :width]

  for plane in range(planes):
    these = slice(plane * total + chosen.start, plane * total + chosen.stop)
    segments = page.parent.filehandle.read_segments(
      page.dataoffsets[these],
      page.databytecounts[these],
      range(len(page.dataoffsets))[these],
    )
    list(parallel(place, segments))
  return rows


def _stored_shape(page: tifffile.TiffPage) -> tuple[int, ...]:
  """[planes, H, W, samples] of pixels that lie in one piece."""
  planes, _, height, width, samples = page.shaped
  return planes, height, width, samples


def _stored_type(page: tifffile.TiffPage) -> np.dtype:
  assert page.dtype is not None
  return page.dtype.newbyteorder(page.parent.byteorder)


def _start(plane: Plane) -> int:
  return plane.page.dataoffsets[0] if plane.offset is None else plane.offset


def _end(plane: Plane) -> int:
  return _start(plane) + plane.page.nbytes


def _map(plane: Plane) -> np.ndarray:
  """Maps the pixels of a file on disk into memory."""
  page = plane.page
  path = os.path.join(page.parent.filehandle.dirname, page.parent.filename)
  return np.memmap(
    path, _stored_type(page), 'r', _start(plane), _stored_shape(page)
  )


def _read_bytes(plane: Plane) -> np.ndarray:
  """As `_map`, for a file in memory."""
  file = plane.page.parent.filehandle
  file.seek(_start(plane))
  content = file.read(plane.page.nbytes)
  return np.frombuffer(content, _stored_type(plane.page)).reshape(
    _stored_shape(plane.page)
  )
