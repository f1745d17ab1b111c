"""Image files of any size, written by rows.

Each is written under another name in the same folder, and renamed once it is
whole.
"""

import contextlib
import itertools
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from unet_jax.prediction import kept_tags, sinks

# Of deflate: with 4, class maps are a fifth smaller and take twice as long.
_LEVEL = 3

# From this many bytes on a TIFF file is a BigTIFF, with 64-bit offsets.
_BIG = 2**32

# Side of a tile in pixels; TIFF wants a multiple of 16.
_TILE = 256


class RowFile(sinks.RowSink):
  """A file that exists whole once `close` has returned, or not at all."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._part = path.with_name(f'.{path.name}.part')
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = open(self._part, 'w+b')

  def _finish(self) -> None:
    """Writes the rest."""

  def close(self) -> None:
    """Writes the rest and gives the file its name."""
    self._finish()
    self._file.close()
    os.replace(self._part, self._path)

  def abort(self) -> None:
    """Removes the unfinished file; does nothing after `close`."""
    # The error that led here has reported a full disk already.
    with contextlib.suppress(OSError):
      self._file.close()
    self._part.unlink(missing_ok=True)


class PngFile(RowFile):
  """Grey of 8 or 16 bit, or RGB of 8 (PNG specification, W3C 2003)."""

  def __init__(self, path: pathlib.Path, shape, dtype, orientation: int = 1):
    """Begins the file.

    Args:
      shape: (H, W), or (H, W, 3) for RGB.
      dtype: uint8 or uint16.
      orientation: how a viewer turns it, EXIF's 1 to 8.
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
    if orientation != 1:
      # A TIFF of one tag (PNG specification, third edition, eXIf).
      exif = (b'MM', 42, 8, 1, 0x112, 3, 1, orientation, 0, 0)
      self._chunk(b'eXIf', struct.pack('>2sHIHHHIHHI', *exif))

  def write(self, rows: np.ndarray) -> None:
    stored = np.ascontiguousarray(rows, self._dtype).view(np.uint8)
    stored = stored.reshape(len(rows), -1)
    # Filter 2, `Up`: the difference to the row above, mostly 0 in class maps.
    filtered = np.full((len(rows), stored.shape[1] + 1), 2, np.uint8)
    filtered[0, 1:] = stored[0] - self._above
    filtered[1:, 1:] = stored[1:] - stored[:-1]
    self._above = stored[-1].copy()
    self._chunk(b'IDAT', self._deflate.compress(filtered.data))

  def _finish(self) -> None:
    self._chunk(b'IDAT', self._deflate.flush())
    self._chunk(b'IEND', b'')

  def _chunk(self, name: bytes, data: bytes) -> None:
    # Readers take any number of IDAT; most rows fill none.
    if data or name == b'IEND':
      self._file.write(struct.pack('>I', len(data)) + name + data)
      self._file.write(struct.pack('>I', zlib.crc32(name + data)))


class TiffFile(RowFile):
  """Tiles of deflate; BigTIFF where the file may exceed 4 GiB.

  tifffile writes the tags first, with empty tiles. Tiles are appended as their
  rows come, and in the end their places and sizes are put in the tags.
  """

  def __init__(
    self,
    path: pathlib.Path,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    description: str | None = None,
    tags: kept_tags.Tags = kept_tags.NONE,
  ):
    """Begins the file.

    Args:
      shape: (H, W) or (H, W, C).
      dtype: uint8 (3 channels are RGB then), uint16 or float16.
      description: ASCII text for the tag ImageDescription.
      tags: further ones.
    """
    super().__init__(path)
    dtype = np.dtype(dtype).newbyteorder('<')
    height, width, channels = (*shape, 1)[:3]
    self._shape = (width, channels)
    # Floats do not shrink by a longer search.
    self._level = 1 if dtype.kind == 'f' else _LEVEL
    # A row of tiles, and how many of its rows are filled.
    across = -(-width // _TILE)
    self._tiles = np.zeros((_TILE, across * _TILE, channels), dtype)
    self._filled = 0
    self._offsets: list[int] = []
    self._counts: list[int] = []
    # Tiles that deflate cannot shrink grow by less than a thousandth.
    stored = -(-height // _TILE) * self._tiles.nbytes
    self._is_big = stored * 1.001 + 2**24 > _BIG
    try:
      self._write_tags((height, width, channels), description, tags)
    except BaseException:
      self.abort()  # Nobody else has the file yet.
      raise

  def _write_tags(
    self,
    shape: tuple[int, int, int],
    description: str | None,
    tags: kept_tags.Tags,
  ) -> None:
    """Writes the tags of an image of empty tiles."""
    is_grey, dtype = shape[2] == 1, self._tiles.dtype
    is_rgb = shape[2] == 3 and dtype == np.uint8
    with tifffile.TiffWriter(
      self._file, bigtiff=self._is_big, byteorder='<'
    ) as tiff:
      tiff.write(
        itertools.repeat(b''),
        shape=shape[:2] if is_grey else shape,
        dtype=dtype,
        tile=(_TILE, _TILE),
        photometric='rgb' if is_rgb else 'minisblack',
        planarconfig=None if is_grey else 'contig',
        compression='adobe_deflate',
        description=description,
        metadata=None,
        software=False,
        **tags.options(),
      )
    self._file.seek(0, os.SEEK_END)

  def write(self, rows: np.ndarray) -> None:
    rows = rows.reshape(len(rows), *self._shape)
    while len(rows):
      part, rows = np.split(rows, [min(_TILE - self._filled, len(rows))])
      stop = self._filled + len(part)
      self._tiles[self._filled : stop, : self._shape[0]] = part
      self._filled = stop % _TILE
      if stop == _TILE:
        self._write_tiles()

  def _write_tiles(self) -> None:
    for left in range(0, self._tiles.shape[1], _TILE):
      tile = self._tiles[:, left : left + _TILE]
      # libdeflate is three times as fast as zlib.
      data = imagecodecs.deflate_encode(tile.tobytes(), self._level)
      self._offsets.append(self._file.tell())
      self._counts.append(len(data))
      self._file.write(data)

  def _finish(self) -> None:
    if self._filled:
      # Clear rows left over from the previous tile row.
      self._tiles[self._filled :] = 0
      self._write_tiles()
    self._file.seek(0)
    with tifffile.TiffFile(self._file) as tiff:
      tags = tiff.pages.first.tags
      kind = 'Q' if self._is_big else 'I'
      tags['TileOffsets'].overwrite(self._offsets, dtype=kind)
      tags['TileByteCounts'].overwrite(self._counts, dtype=kind)


def join_pages(parts: Sequence[pathlib.Path], path: pathlib.Path) -> None:
  """Makes one TIFF of several `TiffFile`s, which are removed."""
  is_big = sum(part.stat().st_size for part in parts) + 2**24 > _BIG
  joined = path.with_name(f'.{path.name}.part')
  try:
    with tifffile.TiffWriter(joined, bigtiff=is_big, byteorder='<') as writer:
      for part in parts:
        _append(part, writer)
    os.replace(joined, path)
  finally:
    joined.unlink(missing_ok=True)
  for part in parts:
    part.unlink()


def _append(part: pathlib.Path, writer: tifffile.TiffWriter) -> None:
  """Adds the page of a `TiffFile`, its tiles as they are."""
  (tags,) = kept_tags.read(part, kept_tags.ALL)
  with tifffile.TiffFile(part) as tiff:
    page = tiff.pages.first

    def tiles() -> Iterator[bytes]:
      for offset, count in zip(page.dataoffsets, page.databytecounts):
        tiff.filehandle.seek(offset)
        yield tiff.filehandle.read(count)

    writer.write(
      tiles(),
      shape=page.shape,
      dtype=page.dtype,
      tile=(_TILE, _TILE),
      photometric=page.photometric,
      planarconfig=None if len(page.shape) == 2 else 'contig',
      compression='adobe_deflate',
      metadata=None,
      software=False,
      **tags.options(),
    )


class NpzFile(RowFile):
  """One large array, and small ones, for np.load."""

  def __init__(self, path: pathlib.Path, name: str, shape, dtype, **arrays):
    """Begins the file; `write` takes parts of `shape` along the first axis."""
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
