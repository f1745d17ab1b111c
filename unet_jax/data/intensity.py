"""Stored values of images to 0..255, in one way for everything that reads them.

data.intensity says which stored values become 0 and 255: the ends of the stored
type, one range for the whole set, or each image's own. Pixels that hold one of
data.nodata are no data: they take no part in that, and become data.mean.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import cv2
import ml_collections
import numpy as np

from unet_jax.runtime import errors

# Values of an image that are looked at where all would take too long.
_SAMPLE = 2**12
# Shares of an image's pixels whose values stand for all of them; finest at the
# ends, which are what a range is made of.
_SHARES = np.array(
  [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5]
  + [0.6, 0.7, 0.8, 0.9, 0.97, 0.99, 0.997, 0.999, 1]
)
# Share of a set's pixels that may lie below its range, and above it.
TAIL = 0.001
# Values that stand for no data in many files, and how many times the range of
# all others any other value must lie off them to be taken as one.
_CUSTOMARY = (-9999, -99999, -999, -32768, -32767)
_FAR = 10
# Parts of messages, which an inspection replaces by what it measured.
LOW_HIGH, MEASURE = 'LOW,HIGH', '; --mode=inspect measures it'
_RANGE = '--config.data.intensity=range --config.data.intensity_range='
_RANGE_ADVICE = f'{_RANGE}{LOW_HIGH}{MEASURE}'
# An image that has fewer levels than this has lost some that it had.
_FEW = 64


@dataclasses.dataclass(frozen=True)
class Levels:
  """What an image stores, and what is left of it; of a sample of its pixels.

  Attributes:
    kind: of the stored type, such as `uint16`.
    num_pixels: that have data.
    values: [19], those at fixed shares of the pixels, ascending.
    mean, std: float64 [C], of the stored values.
    stored, left: number of different values, as stored and in 0..255.
    unlisted: the value that the file names as no data, where pixels have it and
      data.nodata has not; or None.
    stray: a value so far off all others that it must be no data, or None.
  """

  kind: str
  num_pixels: int
  values: np.ndarray
  mean: np.ndarray
  std: np.ndarray
  stored: int
  left: int
  unlisted: float | None = None
  stray: float | None = None

  @property
  def are_few(self) -> bool:
    """Whether levels that are needed were lost."""
    return self.left < min(self.stored, _FEW)


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
  stray, hint = _stray(values), 'Give one'
  if stray is not None:
    hint = (
      f'If {text_of(stray)} stands for no data, set --config.data.nodata='
      f'{listed}{text_of(stray)}; otherwise give one'
    )
  text += f'. {hint} range for the whole set, {_RANGE_ADVICE}'
  return errors.UserError(text)


def _stray(values: np.ndarray, factor: float = 1) -> float | None:
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


def measure(
  pixels: np.ndarray,
  data: ml_collections.ConfigDict,
  bits: int = 0,
  ignored: np.ndarray | None = None,
  tag: float | None = None,
) -> Levels:
  """Measures what an image stores; its arguments are those of `to_uint8`."""
  rows = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
  # Odd, so that columns of even widths take turns.
  step = max(len(rows) // _SAMPLE, 1) | 1
  sample = rows[::step]
  if ignored is not None:
    sample = sample[~ignored.ravel()[::step]]
  if pixels.dtype.kind == 'f':
    sample = sample[np.isfinite(sample).all(-1)]
  is_unlisted = tag is not None and tag not in no_data(data)
  unlisted = tag if is_unlisted and np.any(pixels == tag) else None
  # Radix sort for short types, four times as fast.
  is_short = sample.dtype.itemsize <= 2
  values, left = np.sort(sample, axis=None, stable=is_short), 0
  if not len(values):
    none = np.zeros(0)
    return Levels(str(pixels.dtype), 0, none, none, none, 0, 0, unlisted)
  stored = values[np.append(True, values[1:] != values[:-1])]
  try:
    scaled = to_uint8(stored[None], data, '', bits)[0]
    left = int(np.count_nonzero(np.bincount(scaled)))
  except errors.UserError:
    pass  # Whoever needs the image is told.
  mean, std = cv2.meanStdDev(sample[None].astype(np.float64))
  return Levels(
    kind=str(pixels.dtype),
    num_pixels=len(sample) * step,
    values=values[np.rint(_SHARES * (len(values) - 1)).astype(int)],
    mean=mean.ravel(),
    std=std.ravel(),
    stored=len(stored),
    left=left,
    unlisted=unlisted,
    stray=_stray(values, _FAR),
  )


def range_of_set(images: Sequence[Levels]) -> tuple[float, float] | None:
  """Returns the range that all but TAIL of the pixels at each end are in.

  Values that are `unlisted` or `stray` have no part in it. Whole numbers of
  integers; None where no pixel has data.
  """
  images = [image for image in images if image.num_pixels]
  # Each value stands for the pixels half way to its neighbours.
  masses = np.diff([0, *(_SHARES[1:] + _SHARES[:-1]) / 2, 1])
  found = [
    (float(value), mass * image.num_pixels)
    for image in images
    for value, mass in zip(image.values, masses)
    if value not in (image.unlisted, image.stray)
  ]
  if not found:
    return None
  values, shares = np.array(found).T
  order = np.argsort(values, kind='stable')
  values, below = values[order], np.cumsum(shares[order])
  low = values[np.searchsorted(below, TAIL * below[-1], 'right')]
  high = values[np.searchsorted(below, (1 - TAIL) * below[-1], 'left')]
  if all(image.kind.startswith(('int', 'uint')) for image in images):
    return int(low), int(max(high, low + 1))
  low, high = (float(f'{v:.4g}') for v in (low, high))
  return low, high if high > low else low + 1


def range_text(images: Sequence[Levels]) -> str:
  """Returns the range of a set as on the command line, such as 0,4095."""
  limits = range_of_set(images)
  return ','.join(map(text_of, limits)) if limits else LOW_HIGH


def lines_on_set(
  images: Sequence[Levels | None],
  data: ml_collections.ConfigDict,
  total: int | None = None,
) -> list[str]:
  """Returns a line for each thing to warn of in a set.

  Args:
    images: of the set, or None for those whose levels are all kept.
    data: the section of a config.
    total: images of the set, where those without a tag of no data are sampled.
  """
  known = [image for image in images if image is not None]
  lines, total = [], total or len(images)
  sampled = '' if total == len(images) else ' that were measured'
  for kind in sorted({image.kind for image in known}):
    group = [image for image in known if image.kind == kind]
    few = [image for image in group if image.are_few]
    # Single images may be dark by nature.
    if 2 * len(few) <= len(group):
      continue
    stored, left = np.median([(x.stored, x.left) for x in few], 0)
    advice = f'{_RANGE}{range_text(few)} keeps more'
    if len(group) < len(images):
      advice = f'others hold no {kind}: store all in one type and unit'
    lines.append(
      f'{len(few)} of {len(images)} images{sampled} keep few of their levels '
      f'with data.intensity={data.intensity}, {left:.0f} of {stored:.0f} on '
      f'the median; {advice}'
    )
  unlisted = [x.unlisted for x in known if x.unlisted is not None]
  if unlisted:
    value = text_of(unlisted[0])
    listed = ''.join(f'{text_of(v)},' for v in no_data(data))
    lines.append(
      f'{len(unlisted)} of {total} images name {value} as their '
      'value of no data and have such pixels, which are taken as data; '
      f'--config.data.nodata={listed}{value} ignores them'
    )
  return lines
