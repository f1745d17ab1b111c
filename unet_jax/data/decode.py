"""Image and mask files to arrays.

Pillow decodes, since it refuses truncated files; OpenCV takes what Pillow does
not know (16-bit and float TIFF of several channels). EXIF rotation is applied
to neither images nor masks, so that a pair stays as it was stored.
"""

import io

import numpy as np
from PIL import Image

from unet_jax import errors

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.gif', '.webp')


def _open(data: bytes, name: str) -> Image.Image | np.ndarray:
  """A loaded Pillow image, or OpenCV's RGB array where Pillow knows it not."""
  try:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    reason = str(e).split('<_io')[0].strip() or type(e).__name__
  if data[:4] in (b'II*\0', b'MM\0*'):
    import cv2  # Slow to import and rarely needed.

    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is not None:
      return array[..., [2, 1, 0]] if array.ndim == 3 else array
  raise errors.DecodeError(
    f'{name} cannot be decoded ({reason}); replace it, or leave such pairs '
    'out with --config.data.on_error=skip'
  )


def _scale_to_uint8(array: np.ndarray, intensity: str, name: str) -> np.ndarray:
  """Scales integers or floats to 0..255, see data.intensity."""
  if intensity == 'image':
    low, high = float(array.min()), float(array.max())
  elif array.dtype.kind == 'f':
    low, high = 0.0, 1.0
    if array.min() < low or array.max() > high:
      raise errors.UserError(
        f'{name} holds floats from {array.min():g} to {array.max():g}, '
        'expected 0..1; scale each image by its own range with '
        '--config.data.intensity=image'
      )
  else:
    # Pillow widens 16 bit to 32 when it opens some formats.
    low, high = 0.0, 65535.0 if array.max() < 2**16 else 2.0**32 - 1
  scaled = (array.astype(np.float64) - low) * (255 / max(high - low, 1e-12))
  return np.rint(scaled).astype(np.uint8)


def decode_image(
  data: bytes, name: str, num_channels: int, intensity: str
) -> np.ndarray:
  """Returns an image file as uint8 [H, W, num_channels].

  Palettes are looked up, alpha is dropped, grey and RGB become one another;
  anything but 8 bit is scaled as `intensity` says.

  Args:
    data: the file's bytes.
    name: for messages.
    num_channels: 1 (grey, ITU-R 601) or 3 (RGB).
    intensity: `dtype` or `image`, see configs/default.py.

  Raises:
    DecodeError: no decoder can read it.
    UserError: float values out of range.
  """
  image = _open(data, name)
  if not isinstance(image, np.ndarray) and image.mode[0] in 'IF':
    image = np.asarray(image)
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8:
      image = _scale_to_uint8(image, intensity, name)
    image = Image.fromarray(image)
  image = np.asarray(image.convert('L' if num_channels == 1 else 'RGB'))
  return image.reshape(*image.shape[:2], num_channels)


def decode_mask(data: bytes, name: str) -> np.ndarray:
  """Returns a mask file's values: integers [H, W], or uint8 RGB [H, W, 3].

  Palette files give their indices, since these are the classes; an RGB file
  whose channels are equal gives one of them.

  Args:
    data: the file's bytes.
    name: for messages.

  Raises:
    DecodeError: no decoder can read it.
    UserError: values are not integers.
  """
  image = _open(data, name)
  if not isinstance(image, np.ndarray):
    if image.mode in ('LA', 'PA'):
      image = image.getchannel(0)
    elif image.mode not in ('1', 'L', 'P', 'F') and image.mode[0] != 'I':
      image = image.convert('RGB')
  array = np.asarray(image)
  if array.dtype == bool:
    return array.astype(np.uint8)
  if array.dtype.kind == 'f':
    if np.any(array != np.rint(array)):
      raise errors.UserError(
        f'{name}: the mask holds floats that are no integers; store classes '
        'as integers'
      )
    return array.astype(np.int64)
  if array.ndim == 3:
    array = array[..., :3]
    if np.all(array == array[..., :1]):
      return array[..., 0]
  return array
