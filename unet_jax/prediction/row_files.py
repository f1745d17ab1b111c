"""Files of images of any size, written from rows as they come.

Each is written under another name in the same folder, and gets its own once it
is whole.
"""

import contextlib
import io
import os
import pathlib
import struct
import zipfile
import zlib

import cv2
import imagecodecs
import numpy as np

# Of deflate: with 4, class maps are a fifth smaller and take twice as long.
_LEVEL = 3

# Bytes from which on a TIFF file is a BigTIFF, with places of 64 bit.
_BIG = 2**32

# Side of a tile in pixels; TIFF wants a multiple of 16.
_TILE = 256

# TIFF: number and format (of struct) of a type.
_ASCII, _SHORT, _LONG, _LONG8 = (2, 's'), (3, 'H'), (4, 'I'), (16, 'Q')


class _WholeFile:
  """A file that is there once `close` has returned, or not at all."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._part = path.with_name(f'.{path.name}.part')
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = open(self._part, 'wb')

  def write(self, rows: np.ndarray) -> None:
    """Adds the next rows [h, W] or [h, W, C]."""
    raise NotImplementedError

  def _finish(self) -> None:
    """Writes what is left."""

  def close(self) -> None:
    """Writes what is left and gives the file its name."""
    self._finish()
    self._file.close()
    os.replace(self._part, self._path)

  def abort(self) -> None:
    """Removes what was written; nothing happens after `close`."""
    # Of a full disk, what was being done has told.
    with contextlib.suppress(OSError):
      self._file.close()
    self._part.unlink(missing_ok=True)


class TextFile(_WholeFile):
  """UTF-8 text."""

  def write(self, text: str) -> None:
    self._file.write(text.encode())


class JpegFile(_WholeFile):
  """One RGB image [H, W, 3], given at once."""

  def write(self, rows: np.ndarray) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, 90]
    self._file.write(cv2.imencode('.jpg', rows[..., ::-1], options)[1])


class PngFile(_WholeFile):
  """Grey of 8 or 16 bit, or RGB of 8 (PNG specification, W3C 2003)."""

  def __init__(self, path: pathlib.Path, shape, dtype):
    """Begins the file.

    Args:
      path: of the file.
      shape: (H, W), or (H, W, 3) for RGB.
      dtype: uint8 or uint16.
    """
    super().__init__(path)
    dtype = np.dtype(dtype)
    self._dtype = dtype.newbyteorder('>')
    self._above = np.zeros(int(np.prod(shape[1:])) * dtype.itemsize, np.uint8)
    self._deflate = zlib.compressobj(_LEVEL)
    self._file.write(b'\x89PNG\r\n\x1a\n')
    kind = 2 if len(shape) == 3 else 0
    header = (shape[1], shape[0], 8 * dtype.itemsize, kind, 0, 0, 0)
    self._chunk(b'IHDR', struct.pack('>IIBBBBB', *header))

  def write(self, rows: np.ndarray) -> None:
    stored = np.ascontiguousarray(rows, self._dtype).view(np.uint8)
    stored = stored.reshape(len(rows), -1)
    # Filter 2, `Up`: the difference to the row above, mostly 0 in class maps.
    filtered = np.full((len(rows), stored.shape[1] + 1), 2, np.uint8)
    filtered[0, 1:] = stored[0] - self._above
    filtered[1:, 1:] = stored[1:] - stored[:-1]
    self._above = stored[-1].copy()
    self._chunk(b'IDAT', self._deflate.compress(filtered))

  def _finish(self) -> None:
    self._chunk(b'IDAT', self._deflate.flush())
    self._chunk(b'IEND', b'')

  def _chunk(self, name: bytes, data: bytes) -> None:
    # Readers take any number of IDAT; most rows fill none.
    if data or name == b'IEND':
      self._file.write(struct.pack('>I', len(data)) + name + data)
      self._file.write(struct.pack('>I', zlib.crc32(name + data)))


class TiffFile(_WholeFile):
  """Tiles of deflate (TIFF 6.0, Adobe 1992); BigTIFF where 4 GiB may be full.

  Channels other than one or RGB are stored as what TIFF calls extra samples of
  a grey image.
  """

  def __init__(self, path: pathlib.Path, shape, dtype, description: str = ''):
    """Begins the file.

    Args:
      path: of the file.
      shape: (H, W) or (H, W, C).
      dtype: uint8 (3 channels are RGB then), uint16 or float16.
      description: ASCII text for the tag ImageDescription.
    """
    super().__init__(path)
    self._height, self._width, self._channels = (*shape, 1)[:3]
    self._dtype = np.dtype(dtype).newbyteorder('<')
    self._description = description
    # Floats do not shrink by a longer search.
    self._level = 1 if self._dtype.kind == 'f' else _LEVEL
    # A row of tiles, the rows that it holds, and the tiles that are written.
    across = -(-self._width // _TILE)
    full = (_TILE, across * _TILE, self._channels)
    self._tiles, self._filled = np.zeros(full, self._dtype), 0
    self._offsets, self._counts = [], []
    # Tiles that deflate cannot shrink grow by less than a thousandth.
    stored = self._height * full[1] * self._channels * self._dtype.itemsize
    self._is_big = stored * 1.001 + 2**24 > _BIG
    # The place of the tags is not known yet, see `_finish`.
    self._file.write(b'\0' * (16 if self._is_big else 8))

  def write(self, rows: np.ndarray) -> None:
    rows = rows.reshape(len(rows), self._width, self._channels)
    while len(rows):
      part, rows = np.split(rows, [min(_TILE - self._filled, len(rows))])
      stop = self._filled + len(part)
      self._tiles[self._filled : stop, : self._width] = part
      self._filled = stop % _TILE
      if stop == _TILE:
        self._write_tiles()

  def _write_tiles(self) -> None:
    for left in range(0, self._tiles.shape[1], _TILE):
      tile = np.ascontiguousarray(self._tiles[:, left : left + _TILE])
      # libdeflate is three times as fast as zlib.
      data = imagecodecs.deflate_encode(tile, self._level)
      self._offsets.append(self._file.tell())
      self._counts.append(len(data))
      self._file.write(data)

  def _finish(self) -> None:
    if self._filled:
      self._tiles[self._filled :] = 0  # Of the rows before.
      self._write_tiles()
    self._file.write(b'\0' * (-self._file.tell() % 8))
    start = self._file.tell()
    self._file.write(self._tags(start))
    self._file.seek(0)
    if self._is_big:
      self._file.write(b'II' + struct.pack('<HHHQ', 43, 8, 0, start))
    else:
      self._file.write(b'II' + struct.pack('<HI', 42, start))

  def _tags(self, start: int) -> bytes:
    """Returns the directory that begins at byte `start`, and its values."""
    n, is_rgb = self._channels, self._channels == 3 and self._dtype == np.uint8
    text = self._description.encode('ascii') + b'\0'
    sample_format = 3 if self._dtype.kind == 'f' else 1
    tags = [
      (256, _LONG, [self._width]),
      (257, _LONG, [self._height]),
      (258, _SHORT, [8 * self._dtype.itemsize] * n),
      (259, _SHORT, [8]),  # Compression: deflate.
      (262, _SHORT, [2 if is_rgb else 1]),  # RGB, or grey with black as 0.
      (270, _ASCII, [text]),
      (277, _SHORT, [n]),
      (284, _SHORT, [1]),  # Channels of a pixel lie together.
      (322, _LONG, [_TILE]),
      (323, _LONG, [_TILE]),
      (324, _LONG8 if self._is_big else _LONG, self._offsets),
      (325, _LONG, self._counts),
      (338, _SHORT, [0] * (0 if is_rgb else n - 1)),
      (339, _SHORT, [sample_format] * n),
    ]
    tags = [tag for tag in tags if tag[2] and tag[2] != [b'\0']]
    # An entry: tag, type, count, and the values or, where longer, their place.
    word, number = ('Q', 'Q') if self._is_big else ('I', 'H')
    head, room = struct.pack('<' + number, len(tags)), struct.calcsize(word)
    size = len(head) + len(tags) * (4 + 2 * room) + room
    entries, values = io.BytesIO(), io.BytesIO()
    for tag, (kind, code), content in tags:
      count = len(content[0]) if code == 's' else len(content)
      packed = struct.pack(f'<{count}{code}', *content)
      if len(packed) > room:
        place = start + size + values.tell()
        values.write(packed + b'\0' * (-len(packed) % 8))
        packed = struct.pack('<' + word, place)
      entries.write(struct.pack('<HH' + word, tag, kind, count))
      entries.write(packed.ljust(room, b'\0'))
    # Then where the next image is: nowhere.
    return head + entries.getvalue() + b'\0' * room + values.getvalue()


class NpzFile(_WholeFile):
  """One large array, and small ones, for np.load."""

  def __init__(self, path: pathlib.Path, name: str, shape, dtype, **arrays):
    """Begins the file.

    Args:
      path: of the file.
      name: of the large array.
      shape: of it; `write` takes it in parts along the first axis.
      dtype: of it.
      **arrays: the others.
    """
    super().__init__(path)
    self._dtype = np.dtype(dtype)
    # Not compressed, as by np.savez: floats hardly shrink, and take long.
    self._zip = zipfile.ZipFile(self._file, 'w')
    for key, array in arrays.items():
      with self._zip.open(f'{key}.npy', 'w') as f:
        np.lib.format.write_array(f, np.asarray(array))
    self._array = self._zip.open(f'{name}.npy', 'w', force_zip64=True)
    header = {
      'descr': np.lib.format.dtype_to_descr(self._dtype),
      'fortran_order': False,
      'shape': tuple(shape),
    }
    np.lib.format.write_array_header_1_0(self._array, header)

  def write(self, rows: np.ndarray) -> None:
    self._array.write(np.ascontiguousarray(rows, self._dtype).data)

  def _finish(self) -> None:
    self._array.close()
    self._zip.close()

  def abort(self) -> None:
    # A ZipFile that is left open complains when it is collected.
    with contextlib.suppress(OSError):
      self._array.close()
      self._zip.close()
    super().abort()
