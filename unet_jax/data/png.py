"""The chunks of PNG files, and their samples as they are stored."""

import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np

_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# libpng stretches samples of fewer bits to 8.
_STRETCHED = {1: 255, 2: 85, 4: 17}


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
  """Yields the code, start and length of content of each chunk of a PNG."""
  start = len(_SIGNATURE)
  while start + 12 <= len(data):
    length = int.from_bytes(data[start : start + 4], 'big')
    yield data[start + 4 : start + 8], start, length
    start += length + 12


def is_sound(data: bytes) -> bool:
  """Whether all checksums are right up to an end."""
  view = memoryview(data)
  for code, start, length in chunks(data):
    end = start + 8 + length
    if view[end : end + 4] != struct.pack(
      '>I', zlib.crc32(view[start + 4 : end])
    ):
      return False
    if code == b'IEND':
      return True
  return False


def decode(data: bytes) -> np.ndarray:
  """Returns the samples of a file of one frame.

  Pillow and OpenCV leave rows that are missing black.

  Returns:
    uint8, of 16 bits uint16: [H, W], or [H, W, C] of colours and alpha. Samples
    of fewer bits keep their values, pixels of a palette are its indices.

  Raises:
    ValueError: the file is damaged.
  """
  try:
    array = imagecodecs.png_decode(_bare(data))
  except imagecodecs.PngError as e:
    raise ValueError(e) from e
  stretched = _STRETCHED.get(data[24])
  return array // stretched if stretched else array


def _bare(data: bytes) -> bytes:
  """Returns a file without the chunks that say how pixels are shown.

  Indices of a palette become grey.
  """
  header = bytearray(data[16:29])
  header[9] = 0 if header[9] == 3 else header[9]
  kept = [
    data[start : start + length + 12]
    for code, start, length in chunks(data)
    if code == b'IDAT'
  ]
  return b''.join(
    [_SIGNATURE, _chunk(b'IHDR', bytes(header)), *kept, _chunk(b'IEND', b'')]
  )


def _chunk(code: bytes, content: bytes) -> bytes:
  checksum = struct.pack('>I', zlib.crc32(code + content))
  return struct.pack('>I', len(content)) + code + content + checksum
