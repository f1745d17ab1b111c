"""JPEG files: quick decoding, and damage that decoders only warn of."""

from collections.abc import Iterator

import imagecodecs
import numpy as np
from PIL import ImageFile

_SCAN, _TABLES, _END = b'\xff\xda', b'\xff\xc4', b'\xff\xd9'
_PROGRESSIVE, _FRAMES = b'\xff\xc2', (b'\xff\xc0', b'\xff\xc1')
# So many zeros in a row are no pixels, unless flat ones are coded so.
_HOLE = bytes(64)


def decode(image: ImageFile.ImageFile, data: bytes) -> np.ndarray:
  """Decodes a file that Pillow has opened, as RGB or L, and not loaded.

  Returns:
    uint8 [H, W] of grey or [H, W, 3] of RGB.

  Raises:
    ValueError, OSError and others of Pillow's: the file is damaged.
  """
  *_, (_, start) = _segments(data)
  array = None
  if _is_one_sound_scan(data, start):
    # The same library and pixels as Pillow's, which takes 1.2 times as long: it
    # keeps four bytes for a pixel of RGB and copies them twice. OpenCV is as
    # quick, but prints what it finds wrong inside a scan.
    space = 'RGB' if image.mode == 'RGB' else 'GRAYSCALE'
    try:
      array = imagecodecs.jpeg8_decode(data, outcolorspace=space)
    except imagecodecs.Jpeg8Error:
      pass
  if array is None:  # Pillow judges what is wrong.
    array = np.asarray(image)
  _check_whole(data, array, start)
  return array


def _check_whole(data: bytes, array: np.ndarray, start: int) -> None:
  """Raises ValueError for a file of which pixels are lost.

  Downloads that were interrupted and damaged disks leave such files. libjpeg
  makes noise or grey of it and only warns, which no decoder here passes on.
  What is lost in other ways is not found.
  """
  hole, lost = data.find(_HOLE, start), False
  if hole >= 0:
    end = data.find(_END, start)
    lost = (end < 0 or hole < end) and not _has_flat_zeros(data)
  if not lost and array.flat[-1] == 128 and (array[-8:, -8:] == 128).all():
    # The way to JPEG XL is strict, but takes ten times as long as decoding.
    try:
      imagecodecs.jpegxl_encode_jpeg(data)
    except imagecodecs.JpegxlError:
      lost = True
  if lost:
    raise ValueError('pixels are lost: the file is cut or has a hole of zeros')


def _segments(data: bytes) -> Iterator[tuple[bytes, int]]:
  """Yields what comes before the pixels: the code and the end of each."""
  position, code = 2, b''
  while data[position : position + 1] == b'\xff' and code != _SCAN:
    code = data[position : position + 2]
    position += 2 + int.from_bytes(data[position + 2 : position + 4], 'big')
    yield code, position


def _has_flat_zeros(data: bytes) -> bool:
  """Whether flat pixels may be zeros in the file.

  They may in files of many scans, or where luminance has the shortest code for
  the end of a block.
  """
  start = components = 2
  for code, stop in _segments(data):
    tables, start = data[start + 4 : stop], stop
    if code == _PROGRESSIVE:
      return True
    if code in _FRAMES:
      components = tables[5]
    if code == _SCAN and tables[0] < components:
      return True
    while code == _TABLES and len(tables) > 17:
      # A table's class and number, how many codes it has of 1 to 16 bits, and
      # their symbols; 0 ends a block.
      if (tables[0], tables[17]) == (0x10, 0):
        return True
      tables = tables[17 + sum(tables[1:17]) :]
  return False


def _is_one_sound_scan(data: bytes, start: int) -> bool:
  """Whether a JPEG file has one scan without wrong markers, and an end.

  libjpeg stops at the last row; Pillow reads on, and refuses other files.
  """
  scan = np.frombuffer(data, np.uint8)[start:]
  if not data.endswith(_END) or len(scan) < 2:
    return False
  codes = scan[np.flatnonzero(scan[:-2] == 0xFF) + 1]
  # 0 stands for the value 255 itself, 0xD0..0xD7 are restarts.
  return bool(np.all((codes == 0) | (codes & 0xF8 == 0xD0)))
