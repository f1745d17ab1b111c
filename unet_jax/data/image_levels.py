"""What images store, and how many of their levels data.intensity leaves.

A range for a whole set is measured here, for `data.intensity_range`.
"""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import ml_collections
import numpy as np

from unet_jax.data import intensity
from unet_jax.runtime import errors

# Pixels of an image that are looked at where all would take too long.
_SAMPLE = 2**12
# Shares of an image's pixels whose values stand for all of them; finest at the
# ends, which are what a range is made of.
_SHARES = np.array(
  [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5]
  + [0.6, 0.7, 0.8, 0.9, 0.97, 0.99, 0.997, 0.999, 1]
)
# Share of a set's pixels that may lie below its range, and above it.
TAIL = 0.001
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


def measure(
  pixels: np.ndarray,
  data: ml_collections.ConfigDict,
  bits: int = 0,
  ignored: np.ndarray | None = None,
  tag: float | None = None,
) -> Levels:
  """Measures what an image stores; arguments as for `intensity.to_uint8`."""
  rows = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
  # Odd, so that columns of even widths take turns.
  step = max(len(rows) // _SAMPLE, 1) | 1
  sample = rows[::step]
  if ignored is not None:
    sample = sample[~ignored.ravel()[::step]]
  if pixels.dtype.kind == 'f':
    sample = sample[np.isfinite(sample).all(-1)]
  is_unlisted = tag is not None and tag not in intensity.no_data(data)
  unlisted = tag if is_unlisted and np.any(pixels == tag) else None
  # Radix sort for short types, four times as fast.
  is_short = sample.dtype.itemsize <= 2
  values, left = np.sort(sample, axis=None, stable=is_short), 0
  if not len(values):
    none = np.zeros(0)
    return Levels(str(pixels.dtype), 0, none, none, none, 0, 0, unlisted)
  stored = values[np.append(True, values[1:] != values[:-1])]
  try:
    scaled = intensity.to_uint8(stored[None], data, '', bits)[0]
    left = int(np.count_nonzero(np.bincount(scaled)))
  except errors.UserError:
    pass  # What needs the image reports it.
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
    stray=intensity.stray_value(values, intensity.FAR),
  )


def share_outside(
  pixels: np.ndarray,
  data: ml_collections.ConfigDict,
  ignored: np.ndarray | None = None,
) -> float:
  """Returns the share of values that lie outside of data.intensity_range.

  It is that of a grid of some thousand pixels; 0 with another data.intensity.
  """
  if data.intensity != 'range':
    return 0.0
  step = math.isqrt(pixels.shape[0] * pixels.shape[1] // _SAMPLE) + 1
  sample = pixels[::step, ::step]
  if ignored is not None:
    sample = sample[~ignored[::step, ::step]]
  low, high = data.intensity_range
  is_outside = (sample < low) | (sample > high)
  return float(is_outside.mean()) if is_outside.size else 0.0


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
  return (
    ','.join(map(intensity.text_of, limits)) if limits else intensity.LOW_HIGH
  )


def range_flags(images: Sequence[Levels]) -> str:
  """Returns the flags that set the range of a set."""
  return f'{intensity.RANGE}{range_text(images)}'


def lines_on_set(
  images: Sequence[Levels | None],
  data: ml_collections.ConfigDict,
  total: int | None = None,
  of_all: Sequence[Levels] = (),
) -> list[str]:
  """Returns a line for each thing to warn of in a set.

  Args:
    images: of the set, or None for those whose levels are all kept.
    data: the section of a config.
    total: images of the set, where those without a tag of no data are sampled.
    of_all: of this and the other splits, which must have one range.
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
    together = [x for x in of_all if x.kind == kind and x.are_few] or few
    advice = f'{range_flags(together)} keeps more'
    if len(group) < len(images):
      advice = f'others hold no {kind}: store all in one type and unit'
    lines.append(
      f'{len(few)} of {len(images)} images{sampled} keep few of their levels '
      f'with data.intensity={data.intensity}, {left:.0f} of {stored:.0f} on '
      f'the median; {advice}'
    )
  unlisted = [x.unlisted for x in known if x.unlisted is not None]
  if unlisted:
    value = intensity.text_of(unlisted[0])
    listed = ''.join(
      f'{intensity.text_of(v)},' for v in intensity.no_data(data)
    )
    lines.append(
      f'{len(unlisted)} of {total} images name {value} as their '
      'value of no data and have such pixels, which are taken as data; '
      f'--config.data.nodata={listed}{value} ignores them'
    )
  return lines
