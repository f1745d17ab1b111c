"""The chunks of PNG files, and colours of 16 bits."""

import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np

_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# Those without which pixels cannot be decoded.
_PIXEL_CHUNKS = (b'IHDR', b'PLTE', b'IDAT', b'IEND')


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
  """Yields the code, start and length of content of each chunk of a PNG."""
  start = len(_SIGNATURE)
  while start + 12 <= len(data):
    length = int.from_bytes(data[start : start + 4], 'big')
    yield data[start + 4 : start + 8], start, length
    start += length + 12


def is_sound(data: bytes) -> bool:
  """Whether all checksums are right up to an end; else OpenCV prints."""
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


def bare(data: bytes) -> bytes:
  """Returns a file without the chunks that say how pixels are shown.

  Of those libpng prints what it finds wrong.
  """
  return _SIGNATURE + b''.join(
    data[start : start + length + 12]
    for code, start, length in chunks(data)
    if code in _PIXEL_CHUNKS
  )


def decode_deep(data: bytes) -> np.ndarray:
  """Returns uint16 [H, W] or [H, W, C], which Pillow would reduce to 8 bit.

  OpenCV sees no colour profile, transparent colour or animation.

  Raises:
    ValueError: the file is damaged.
  """
  if not is_sound(data):
    raise ValueError('a checksum is wrong, or the end is missing')
  plain = np.frombuffer(bare(data), np.uint8)
  array = cv2.imdecode(plain, cv2.IMREAD_UNCHANGED)
  if array is None or array.dtype != np.uint16:
    raise ValueError('unknown kind of 16-bit image')
  if array.ndim == 3:
    return array[..., [2, 1, 0, 3][: array.shape[2]]]
  return array
