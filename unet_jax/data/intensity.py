"""Stored values of images to 0..255, in one way for everything that reads them.

data.intensity says which stored values become 0 and 255: the ends of the stored
type, one range for the whole set, or each image's own. Pixels that hold one of
data.nodata are no data: they take no part in that, and become data.mean.
"""

import functools
import math

import cv2
import ml_collections
import numpy as np

from unet_jax.runtime import errors

# Values that stand for no data in many files, and how many times the range of
# all others any other value must lie off them to be taken as one.
_CUSTOMARY = (-9999, -99999, -999, -32768, -32767)
FAR = 10
# Parts of messages, which an inspection replaces by what it measured.
LOW_HIGH, MEASURE = 'LOW,HIGH', '; --mode=inspect measures it'
RANGE = '--config.data.intensity=range --config.data.intensity_range='
_RANGE_ADVICE = f'{RANGE}{LOW_HIGH}{MEASURE}'


def no_data(data: ml_collections.ConfigDict) -> tuple[float, ...]:
  """Returns the numbers of data.nodata, whose `nan` and `inf` are words."""
  return _numbers(data.nodata)


@functools.cache  # Each image needs it.
def _numbers(entries: tuple) -> tuple[float, ...]:
  return tuple(map(float, entries))


def find_no_data(
  pixels: np.ndarray, data: ml_collections.ConfigDict
) -> np.ndarray | None:
  """Returns which pixels are no data: bool [H, W]; None where none is.

  All channels of such a pixel have the value. Where it is NaN, one of them is
  enough, since no other number could stand for it.

  Args:
    pixels: as stored, [H, W] or [H, W, C].
  """
  found = None
  is_float = pixels.dtype.kind == 'f'
  for value in no_data(data):
    if is_float:
      same = np.isnan(pixels) if math.isnan(value) else pixels == value
    elif math.isfinite(value) and value == int(value):
      same = pixels == int(value)
    else:
      continue
    if same.ndim == 3:
      same = same.any(-1) if math.isnan(value) else same.all(-1)
    found = same if found is None else found | same
  return found if found is not None and found.any() else None


def to_uint8(
  pixels: np.ndarray,
  data: ml_collections.ConfigDict,
  name: str,
  bits: int = 0,
  ignored: np.ndarray | None = None,
  limits: tuple[float, float] | None = None,
  tag: float | None = None,
) -> np.ndarray:
  """Scales stored values to 0..255.

  Args:
    pixels: as stored, [H, W] or [H, W, C], of an image or some of its rows.
    name: for messages.
    bits: of a sample in the file; 0: of the type.
    ignored: bool [H, W], which pixels are no data, see `find_no_data`; their
      result is any.
    limits: lowest and highest value of the whole image, see `find_limits`,
      where `pixels` are only some of its rows.
    tag: the value that the file names as no data, for messages.

  Returns:
    uint8, of the same shape; values outside of a range are 0 or 255.

  Raises:
    UserError: the type has no range of its own, or values are not finite, or
      floats that are to be 0..1 are not.
  """
  bits = bits or 8 * pixels.dtype.itemsize
  low, high = 0.0, float(2**bits - 1)
  if data.intensity == 'range':
    low, high = data.intensity_range
  elif data.intensity == 'image' and pixels.dtype != np.uint8:
    low, high = limits or find_limits(pixels, ignored)
    low, high = (0.0, 1.0) if low > high else (low, high)
  elif pixels.dtype.kind == 'f':
    low, high = 0.0, 1.0
  elif pixels.dtype.kind != 'u' or bits > 16:
    raise _refusal(pixels, data, name, ignored, limits, tag)
  if pixels.dtype.kind == 'f':
    lowest, highest = limits or find_limits(pixels, ignored)
    is_finite = np.isfinite([lowest, highest]).all()
    is_out = data.intensity == 'dtype' and not 0 <= lowest <= highest <= 1
    if lowest > highest:  # There is no data.
      return np.zeros(pixels.shape, np.uint8)
    if is_out or not is_finite:
      raise _refusal(pixels, data, name, ignored, limits, tag)
  if pixels.dtype == np.uint8 and (low, high) == (0, 255):
    return pixels
  if pixels.dtype == np.uint16 and (low, high) == (0, 2**16 - 1):
    # Exact, since no value lies half way; a fourth of the time of a table.
    scaled = cv2.convertScaleAbs(pixels.reshape(-1, 1), alpha=255 / high)
    return scaled.reshape(pixels.shape)
  is_short = pixels.dtype.kind in 'iu' and pixels.dtype.itemsize <= 2
  # A table of one image's own range must be worth its making.
  if is_short and (data.intensity != 'image' or pixels.size > 2**16):
    table = _table(pixels.dtype, float(low), float(high))
    return table.take(pixels.view(f'u{pixels.dtype.itemsize}'))
  if ignored is not None:
    pixels = np.where(ignored[(..., *[None] * (pixels.ndim - 2))], low, pixels)
  return _scale(pixels, low, high)


def _scale(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
  # In place: new memory for each step takes longer than the step.
  scaled = np.subtract(pixels, low, dtype=np.float64)
  scaled *= 255 / max(high - low, 1e-12)
  np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled)
  return scaled.astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _table(dtype: np.dtype, low: float, high: float) -> np.ndarray:
  """The results of all values of a type of 8 or 16 bits, by their bytes."""
  count = 2 ** (8 * dtype.itemsize)
  values = np.arange(count, dtype=f'u{dtype.itemsize}').view(dtype)
  return _scale(values, low, high)


def find_limits(
  pixels: np.ndarray, ignored: np.ndarray | None = None
) -> tuple[float, float]:
  """Returns the lowest and highest value that is data; NaN where one is.

  Of no value these are infinity and minus infinity.
  """
  if ignored is not None:
    pixels = pixels[~ignored]
  if not pixels.size:
    return math.inf, -math.inf
  return float(pixels.min()), float(pixels.max())


def fill(
  image: np.ndarray,
  ignored: np.ndarray | None,
  data: ml_collections.ConfigDict,
) -> np.ndarray:
  """Returns uint8 [H, W, C] with data.mean in the pixels that are no data.

  That is what the network sees as 0.
  """
  if ignored is None:
    return image
  mean = np.rint(255 * np.array(data.mean)).clip(0, 255).astype(np.uint8)
  return np.where(ignored[..., None], mean, image)


def _refusal(
  pixels: np.ndarray,
  data: ml_collections.ConfigDict,
  name: str,
  ignored: np.ndarray | None,
  limits: tuple[float, float] | None,
  tag: float | None,
) -> errors.UserError:
  """Says why values cannot be scaled, and what to set; see `to_uint8`."""
  values = pixels if ignored is None else pixels[~ignored]
  low, high = limits or find_limits(values)
  if not np.isfinite([low, high]).all():
    return errors.UserError(
      f'{name} holds values that are not finite (NaN or infinity); if they are '
      'no data, --config.data.nodata=nan,inf,-inf ignores these pixels'
    )
  listed = ''.join(f'{text_of(value)},' for value in no_data(data))
  text = (
    f'{name} holds {pixels.dtype} values from {_shown(low)} to '
    f'{_shown(high)}; data.intensity=dtype takes uint8, uint16 and floats of '
    '0..1'
  )
  if tag is not None and np.any(values == tag):
    return errors.UserError(
      f'{text}. The file names {text_of(tag)} as its value of no data: set '
      f'--config.data.nodata={listed}{text_of(tag)}'
    )
  stray, hint = stray_value(values), 'Give one'
  if stray is not None:
    hint = (
      f'If {text_of(stray)} stands for no data, set --config.data.nodata='
      f'{listed}{text_of(stray)}; otherwise give one'
    )
  text += f'. {hint} range for the whole set, {_RANGE_ADVICE}'
  return errors.UserError(text)


def stray_value(values: np.ndarray, factor: float = 1) -> float | None:
  """Returns a value of some pixels that lies far off all others, if any.

  Args:
    values: finite ones.
    factor: times the range of the others that it lies off at least.
  """
  for value in find_limits(values):
    rest = values[values != value]
    if not rest.size or values.size - rest.size < 2:
      continue
    lowest, highest = find_limits(rest)
    distance = max(lowest - value, value - highest)
    far = (highest - lowest) * (1 if value in _CUSTOMARY else factor)
    if distance > far > 0:
      return value
  return None


def _shown(value: float) -> str:
  return text_of(value) if value == int(value) else f'{value:.4g}'


def text_of(value: float) -> str:
  """Writes a number so that it reads back the same, whole ones without dot."""
  if math.isfinite(value) and value == int(value) and abs(value) < 2**53:
    return str(int(value))
  return repr(float(value))
