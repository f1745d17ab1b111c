"""Image and mask files to arrays.

Pillow decodes, since it refuses damaged files; OpenCV decodes files that Pillow
does not know (float TIFF of several channels) or reduces to 8 bit (16-bit RGB),
and sound JPEG and PNG files: to the same pixels, in less time. EXIF rotation is
applied to neither images nor masks, so that a pair stays as it was stored.
"""

import io
import struct

import cv2
import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from unet_jax.runtime import errors

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.gif', '.webp')

# First bytes of TIFF files: classic, and BigTIFF.
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')

# Pillow refuses images of more than 179 megapixels as an attack; scans of
# tissue and of the earth are larger. Now it warns at 1 gigapixel.
Image.MAX_IMAGE_PIXELS = 2**30

# OpenCV prints what it cannot read; our messages name the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _open(data: bytes, name: str) -> Image.Image | np.ndarray:
  """A loaded Pillow image, or OpenCV's array [H, W] or RGB [H, W, 3]."""
  array = None
  try:
    image = Image.open(io.BytesIO(data))
    deep = has_deep_colors(image)
    if not deep:
      array = _decode_plain(image, data)
      if array is not None:
        return array
    # Of deep colours too, since Pillow is the stricter about damage.
    image.load()
    if not deep:
      return image
    array, reason = _open_with_opencv(data), 'unknown kind of 16-bit image'
  except UnidentifiedImageError:
    reason = 'cannot identify image file'
    if data[:4] in TIFF:
      array = _open_with_opencv(data)
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    reason = str(e) or type(e).__name__
  if array is None:
    raise broken(name, reason)
  return array


def broken(name: str, reason: str) -> errors.DecodeError:
  """Returns the error for a file that no decoder can read."""
  return errors.DecodeError(
    f'{name} cannot be decoded ({reason}); replace it, or skip such pairs with '
    '--config.data.on_error=skip'
  )


def _decode_plain(image: ImageFile.ImageFile, data: bytes) -> np.ndarray | None:
  """Decodes a common file quickly; None where Pillow should load it.

  Both use the same libraries and get the same pixels, [H, W] of grey or
  [H, W, 3] of RGB. But Pillow takes 1.2 times as long: it keeps four bytes for
  a pixel of RGB and copies them twice, and its PNG filters are slower. Pillow
  also judges files that OpenCV refuses.

  Pillow has opened the image and not loaded it: its headers are sound.
  """
  if image.mode not in ('L', 'RGB'):
    return None
  if image.format == 'JPEG':
    plain = _is_one_sound_scan(data)
  else:
    plain = (
      image.format == 'PNG'
      and not getattr(image, 'is_animated', False)
      # OpenCV would warn of every file with some old profiles.
      and not image.info.keys() & {'transparency', 'icc_profile'}
    )
  if not plain:
    return None
  color = cv2.IMREAD_COLOR_RGB if image.mode == 'RGB' else cv2.IMREAD_GRAYSCALE
  try:
    return cv2.imdecode(
      np.frombuffer(data, np.uint8), color | cv2.IMREAD_IGNORE_ORIENTATION
    )
  except cv2.error:
    return None


def _is_one_sound_scan(data: bytes) -> bool:
  """Whether a JPEG file has one scan without wrong markers, and an end.

  OpenCV stops at the last row; Pillow reads on, and refuses other files.
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


def has_deep_colors(image: ImageFile.ImageFile) -> bool:
  """Whether Pillow would reduce the channels of an opened image to 8 bit."""
  if image.mode[0] in 'IF':
    return False
  if isinstance(image, TiffImagePlugin.TiffImageFile):
    return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
  return image.format == 'PNG' and ';16' in str(image.tile)


def _open_with_opencv(data: bytes) -> np.ndarray | None:
  """Returns [H, W] or RGB [H, W, 3] of the stored type, None if it cannot."""
  try:
    if data[:4] in TIFF and _is_planar(data):
      return None  # OpenCV would mix up the channels.
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  except (cv2.error, struct.error):
    return None
  if array is None or array.ndim == 2:
    return array
  return array[..., [2, 1, 0]]


def _is_planar(data: bytes) -> bool:
  """Whether a TIFF file holds one channel after the other."""
  header = data[:16] if data[:4] in TIFF[2:] else data[:8]
  tags = TiffImagePlugin.ImageFileDirectory_v2(header)
  file = io.BytesIO(data)
  file.seek(tags.next)
  tags.load(file)
  return tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2


def _scale_to_uint8(
  array: np.ndarray,
  intensity: str,
  name: str,
  limits: tuple[float, float] | None,
) -> np.ndarray:
  """Scales integers or floats to 0..255, see `convert_array`."""
  lowest, highest = limits or (float(array.min()), float(array.max()))
  if not np.isfinite([lowest, highest]).all():
    raise errors.UserError(
      f'{name} holds values that are not finite (NaN or infinity); replace them'
    )
  low, high = 0.0, 1.0
  if intensity == 'image':
    low, high = lowest, highest
  elif array.dtype.kind != 'f':
    # Pillow widens 16 bit to 32 when it opens some formats.
    high = 65535.0 if highest < 2**16 else 2.0**32 - 1
  if lowest < low or highest > high:
    raise errors.UserError(
      f'{name} holds values from {lowest:g} to {highest:g}, expected '
      f'{low:g}..{high:g}; scale each image by its own range with '
      '--config.data.intensity=image'
    )
  scaled = (array.astype(np.float64) - low) * (255 / max(high - low, 1e-12))
  return np.rint(scaled).astype(np.uint8)


def decode_image(
  data: bytes, name: str, num_channels: int, intensity: str
) -> np.ndarray:
  """Returns an image file as uint8 [H, W, num_channels].

  Palettes are looked up, alpha is dropped, grey and RGB become one another;
  other depths than 8 bit are scaled by `intensity`. One channel is grey (ITU-R
  601), three are RGB.

  Raises:
    DecodeError: no decoder can read it.
    UserError: values out of the range that is scaled to 0..255.
  """
  image = _open(data, name)
  if not isinstance(image, np.ndarray) and image.mode[0] in 'IF':
    image = np.asarray(image)
  if isinstance(image, np.ndarray):
    return convert_array(image, name, num_channels, intensity)
  return _convert(image, num_channels)


def convert_array(
  array: np.ndarray,
  name: str,
  num_channels: int,
  intensity: str,
  limits: tuple[float, float] | None = None,
) -> np.ndarray:
  """Converts the pixels of an image as `decode_image` does.

  Args:
    array: integers or floats, grey [H, W] or [H, W, 1], or RGB [H, W, 3], of an
      image or some of its rows.
    name, num_channels, intensity: as for `decode_image`.
    limits: lowest and highest value of the whole image, where `array` is only
      rows of it.

  Returns:
    uint8 [H, W, num_channels].

  Raises:
    UserError: values out of the range that is scaled to 0..255.
  """
  if array.dtype != np.uint8:
    array = _scale_to_uint8(array, intensity, name, limits)
  if array.shape[2:] == (1,):
    array = array[..., 0]
  if num_channels == (1 if array.ndim == 2 else 3):
    return array.reshape(*array.shape[:2], num_channels)
  return _convert(Image.fromarray(array), num_channels)


def _convert(image: Image.Image, num_channels: int) -> np.ndarray:
  """Returns uint8 [H, W, num_channels] of an image of 8 bit."""
  # A palette's would cause a warning; alpha is dropped anyway.
  image.info.pop('transparency', None)
  mode = 'L' if num_channels == 1 else 'RGB'
  if image.mode != mode:  # Otherwise it would be copied.
    image = image.convert(mode)
  return np.asarray(image).reshape(image.height, image.width, num_channels)


def decode_mask(data: bytes, name: str) -> np.ndarray:
  """Returns a mask file's values: integers [H, W], or of RGB [H, W, 3].

  Palette files give their indices, since these are the classes; an RGB file
  whose channels are equal gives one of them.

  Raises:
    DecodeError: no decoder can read it.
    UserError: values are not integers.
  """
  image = _open(data, name)
  if not isinstance(image, np.ndarray):
    if image.mode == 'PA':
      image = image.getchannel(0)
    elif image.mode not in ('1', 'L', 'P', 'F') and image.mode[0] != 'I':
      image = image.convert('RGB')
  array = np.asarray(image)
  if array.dtype == bool:
    return array.astype(np.uint8)
  if array.dtype.kind == 'f':
    if not np.all(np.isfinite(array) & (array == np.rint(array))):
      raise errors.UserError(
        f'{name}: the mask holds floats that are no integers; store classes '
        'as integers'
      )
    array = array.astype(np.int64)
  if array.ndim == 2:
    return array
  if np.all(array == array[..., :1]):
    return array[..., 0]
  if array.dtype == np.uint16:
    array = (array >> 8).astype(np.uint8)  # Tables of colours are 8 bit.
  return array
