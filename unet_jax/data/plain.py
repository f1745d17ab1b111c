"""The most common files, quickly: sound JPEG and PNG of 8 bits."""

import cv2
import imagecodecs
import numpy as np
from PIL import ImageFile

from unet_jax.data import png


def decode(image: ImageFile.ImageFile, data: bytes) -> np.ndarray | None:
  """Decodes a common file quickly; None where Pillow should load it.

  All use the same libraries and get the same pixels, [H, W] of grey or
  [H, W, 3] of RGB. But Pillow takes 1.2 times as long: it keeps four bytes for
  a pixel of RGB and copies them twice, and its PNG filters are slower. Pillow
  also judges files that the others refuse.

  Pillow has opened the image and not loaded it: its headers are sound.
  """
  is_color = image.mode == 'RGB'
  if not is_color and image.mode != 'L':
    return None
  if image.format == 'JPEG' and _is_one_sound_scan(data):
    # OpenCV is as quick, but prints what it finds wrong inside a scan.
    space = 'RGB' if is_color else 'GRAYSCALE'
    try:
      return imagecodecs.jpeg8_decode(data, outcolorspace=space)
    except imagecodecs.Jpeg8Error:
      return None
  if (
    image.format == 'PNG'
    and data[24] == 8
    and 'transparency' not in image.info
    and png.is_sound(data)
  ):
    color = cv2.IMREAD_COLOR_RGB if is_color else cv2.IMREAD_GRAYSCALE
    try:
      return cv2.imdecode(np.frombuffer(png.bare(data), np.uint8), color)
    except cv2.error:
      return None
  return None


def _is_one_sound_scan(data: bytes) -> bool:
  """Whether a JPEG file has one scan without wrong markers, and an end.

  libjpeg stops at the last row; Pillow reads on, and refuses other files.
  """
  position = 2
  while data[position : position + 1] == b'\xff':
    is_scan = data[position + 1 : position + 2] == b'\xda'
    position += 2 + int.from_bytes(data[position + 2 : position + 4], 'big')
    if is_scan:
      break
  scan = np.frombuffer(data, np.uint8)[position:]
  if not data.endswith(b'\xff\xd9') or len(scan) < 2:
    return False
  codes = scan[np.flatnonzero(scan[:-2] == 0xFF) + 1]
  # 0 stands for the value 255 itself, 0xD0..0xD7 are restarts.
  return bool(np.all((codes == 0) | (codes & 0xF8 == 0xD0)))
