"""Masks whose borders were smoothed: values between those that were drawn.

Bilinear, bicubic and Lanczos resizing, drawing with antialiasing and blurring
put values between two others along their border. Of 0 and 255 these are values
of no class; of the classes 0, 1 and 2 they are another class, without a word.
"""

import dataclasses
from typing import Any

import cv2
import numpy as np

# Of masks larger than this a window in the middle is looked at.
_EDGE = 1024
_WINDOW = np.ones((3, 3), np.uint8)
# Fewer pixels between others than this say nothing.
_FEW = 16
# Pixels between others of those that are in no 3 x 3 pixels of one value, at
# least; of all pixels, at most.
_SEVERAL_SHARE, _ONE_SHARE, _MOST = 0.45, 0.6, 0.4
# Contacts that skip a value which elsewhere lies between, of these and the
# pixels between: bounds. A class between two others is there everywhere, or in
# longer pieces (in pixels) than the rounding of one value leaves.
_SEVERAL_SKIPPED, _ONE_SKIPPED, _SKIPPED = 0.4, 0.2, 0.9
_PIECE = 16
# In a mask that was enlarged two times: share of steps that lie at even places,
# or at odd ones, and the fewest different places that say so.
_AT_ONE, _PLACES = 0.7, 10
# Share of a value's pixels that are in the middle of 3 x 3, if it was drawn.
_DRAWN = 0.3


@dataclasses.dataclass(frozen=True)
class Smoothed:
  """What smoothing left in a mask.

  Attributes:
    pixels: number of those between others, and their share of all.
    values: that they have, ascending.
    drawn: the values of areas, ascending.
  """

  pixels: int
  share: float
  values: tuple[int, ...]
  drawn: tuple[int, ...]


def find(mask: np.ndarray) -> Smoothed | None:
  """Returns what smoothing left in a mask's values: integers [H, W].

  None where there is no sign of it. A right mask may have thin classes between
  two others, but these are drawn as lines: they separate the two wherever they
  are, while smoothing leaves now one, now another value, and here and there
  none. Masks that were enlarged two times from few neighbouring values, such as
  0 to 2, have such lines too, but at every second place; those of other factors
  above that are not found.
  """
  mask, values = _window(mask)
  if mask is None:
    return None
  low, high = cv2.erode(mask, _WINDOW), cv2.dilate(mask, _WINDOW)
  is_middle = low == high
  is_thin = cv2.dilate(is_middle.view(np.uint8), _WINDOW) == 0
  is_between = is_thin & (low < mask) & (mask < high)
  count, thin = int(is_between.sum()), int(is_thin.sum())
  if count < _FEW or count > _MOST * mask.size or count < _ONE_SHARE / 2 * thin:
    return None
  found = np.bincount(mask[is_between], minlength=256)
  if not _is_doubled(mask):
    skipped = _count_skipped(mask, found > 0)
    share = skipped / (skipped + count)
    least_share, least_skipped = _SEVERAL_SHARE, _SEVERAL_SKIPPED
    if np.count_nonzero(found) == 1:
      least_share, least_skipped = _ONE_SHARE, _ONE_SKIPPED
      pieces = cv2.connectedComponents(is_between.view(np.uint8))[0] - 1
      if count > _PIECE * pieces:
        return None
    if count < least_share * thin or not least_skipped <= share <= _SKIPPED:
      return None
  return Smoothed(
    count,
    count / mask.size,
    tuple(values[np.flatnonzero(found)].tolist()),
    _drawn(mask, is_middle, values),
  )


def _is_doubled(mask: np.ndarray) -> bool:
  """Whether a mask uint8 [H, W] was enlarged two times, linearly.

  Each pixel becomes two in a row. Beside one another, 0 becomes 0 and 1, and 2
  becomes 2 and 2: all steps up have the value between at odd places, say, and
  all steps down at even ones. Of a mask that was drawn, half are at either.
  """
  for now in (mask.astype(np.int16), mask.T.astype(np.int16)):
    before, at, after = now[:, 1:-3], now[:, 2:-2], now[:, 3:-1]
    is_line = (now[:, :-4] == before) & (after == now[:, 4:])
    where = []
    for way in (1, -1):
      is_step = is_line & (at - before == way) & (after - at == way)
      places = np.nonzero(is_step)[1]
      odd = places % 2 == 1
      share = odd.mean() if len(places) else 0.5
      if len(np.unique(places)) < _PLACES or 1 - _AT_ONE < share < _AT_ONE:
        return False
      where.append(share > 0.5)
    if where[0] == where[1]:
      return False
  return True


def drawn_values(mask: np.ndarray) -> tuple[int, ...]:
  """Returns the values of areas in a mask: integers [H, W]; ascending."""
  mask, values = _window(mask)
  if mask is None:
    return ()
  is_middle = cv2.erode(mask, _WINDOW) == cv2.dilate(mask, _WINDOW)
  return _drawn(mask, is_middle, values)


def _window(mask: np.ndarray) -> tuple[np.ndarray | Any, np.ndarray]:
  """Returns the middle of a mask as uint8 numbers of values, in their order.

  None in place of it where there are more values.
  """
  top, left = (max(n - _EDGE, 0) // 2 for n in mask.shape)
  mask = mask[top : top + _EDGE, left : left + _EDGE]
  if mask.dtype == np.uint8:
    return np.ascontiguousarray(mask), np.arange(256)
  values, numbers = np.unique(mask, return_inverse=True)
  if len(values) > 256:
    return None, values
  return numbers.reshape(mask.shape).astype(np.uint8), values


def _drawn(
  mask: np.ndarray, is_middle: np.ndarray, values: np.ndarray
) -> tuple[int, ...]:
  middles = np.bincount(mask[is_middle], minlength=256)
  pixels = np.bincount(mask.ravel(), minlength=256)
  drawn = np.flatnonzero((middles > 0) & (middles >= _DRAWN * pixels))
  return tuple(values[drawn].tolist())


def _count_skipped(mask: np.ndarray, is_between: np.ndarray) -> int:
  """Counts neighbours between which a value is that others have between them.

  Args:
    mask: uint8 [H, W].
    is_between: bool [256], by value.
  """
  below, count = np.cumsum(is_between), 0
  for a, b in ((mask[:, :-1], mask[:, 1:]), (mask[:-1], mask[1:])):
    differ = a != b
    a, b = a[differ], b[differ]
    low, high = np.minimum(a, b), np.maximum(a, b)
    count += int((below[high - 1] > below[low]).sum())
  return count
