"""JPEG files: quick decoding of the common ones, and damage in any."""

import imagecodecs
import numpy as np
from PIL import ImageFile

_SCAN, _TABLES, _END = b'\xff\xda', b'\xff\xc4', b'\xff\xd9'
_PROGRESSIVE = b'\xff\xc2'
# So many zeros in a row are no pixels, unless flat ones are coded so.
_HOLE = bytes(64)


def decode(image: ImageFile.ImageFile, data: bytes) -> np.ndarray | None:
  """Decodes a common file quickly; None where Pillow should load it.

  Both use the same library and get the same pixels, [H, W] of grey or
  [H, W, 3] of RGB. But Pillow takes 1.2 times as long: it keeps four bytes for
  a pixel of RGB and copies them twice. Pillow also judges files that the other
  refuses.

  Pillow has opened the image, of the mode RGB or L, and not loaded it: its
  headers are sound.
  """
  if not _is_one_sound_scan(data):
    return None
  space = 'RGB' if image.mode == 'RGB' else 'GRAYSCALE'
  # OpenCV is as quick, but prints what it finds wrong inside a scan.
  try:
    return imagecodecs.jpeg8_decode(data, outcolorspace=space)
  except imagecodecs.Jpeg8Error:
    return None


def check_whole(data: bytes, array: np.ndarray) -> None:
  """Raises ValueError for grey or RGB of which pixels are lost.

  Downloads that were interrupted and damaged disks leave such files. libjpeg
  makes noise or grey of it and only warns, which no decoder here passes on.
  What is lost in other ways is not found.
  """
  start, has_flat_zeros = _headers(data)
  end = data.find(_END, start)
  hole = data.find(_HOLE, start, end if end >= 0 else len(data))
  lost = hole >= 0 and not has_flat_zeros
  if not lost and (array[-8:, -8:] == 128).all():
    # The way to JPEG XL is strict, but takes ten times as long as decoding.
    try:
      imagecodecs.jpegxl_encode_jpeg(data)
    except imagecodecs.JpegxlError:
      lost = True
  if lost:
    raise ValueError('pixels are lost: the file is cut or has a hole of zeros')


def _headers(data: bytes) -> tuple[int, bool]:
  """Looks at what comes before the pixels.

  Returns:
    Where the pixels begin, and whether flat ones may be zeros there: in files
    of many scans, or where the shortest code of luminance ends a block.
  """
  position, code, has_flat_zeros = 2, b'', False
  while data[position : position + 1] == b'\xff' and code != _SCAN:
    code = data[position : position + 2]
    length = int.from_bytes(data[position + 2 : position + 4], 'big')
    tables = data[position + 4 : position + 2 + length]
    has_flat_zeros |= code == _PROGRESSIVE
    while code == _TABLES and len(tables) > 17:
      # A table's class and number, how many codes it has of 1 to 16 bits, and
      # their symbols; 0 ends a block.
      has_flat_zeros |= (tables[0], tables[17]) == (0x10, 0)
      tables = tables[17 + sum(tables[1:17]) :]
    position += 2 + length
  return position, has_flat_zeros


def _is_one_sound_scan(data: bytes) -> bool:
  """Whether a JPEG file has one scan without wrong markers, and an end.

  libjpeg stops at the last row; Pillow reads on, and refuses other files.
  """
  scan = np.frombuffer(data, np.uint8)[_headers(data)[0] :]
  if not data.endswith(_END) or len(scan) < 2:
    return False
  codes = scan[np.flatnonzero(scan[:-2] == 0xFF) + 1]
  # 0 stands for the value 255 itself, 0xD0..0xD7 are restarts.
  return bool(np.all((codes == 0) | (codes & 0xF8 == 0xD0)))
