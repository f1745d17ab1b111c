"""Mask values to classes."""

import functools
import threading
from collections.abc import Iterable
from typing import Any

import cv2
import ml_collections
import numpy as np

from unet_jax.config import mask_table
from unet_jax.config.mask_table import Entries, Value
from unet_jax.data import mask_advice, mask_colors, smoothed
from unet_jax.runtime import errors

# Colours that differ by so much in each channel may be one.
_SHADES = 16
# {index: (colour, name of the first mask that has it)}.
Palette = dict[int, tuple[tuple[int, ...], str]]


def map_mask(
  values: np.ndarray,
  entries: Entries,
  num_classes: int,
  name: str,
  is_lossy: bool = False,
) -> np.ndarray:
  """Returns the classes of a mask's values.

  Args:
    values: integers [H, W], or RGB [H, W, 3].
    entries: data.mask_values, see `mask_table.MaskTable`.
    num_classes: 1 (then classes are 0 and 1) or more.
    name: of the file, for messages.
    is_lossy: whether the file changed the values that were written.

  Returns:
    uint8 [H, W] of 0..num_classes-1 or 255 (ignored).

  Raises:
    UserError: a value is not in the table; the message holds its number of
      pixels and the entry to add.
  """
  table = mask_table.make(entries, num_classes)
  if values.ndim == 3:
    if not (table.has_colors or table.is_nearest) and table.others is None:
      raise mask_advice.color_mask_error(values, entries, name, is_lossy)
    numbers = mask_colors.to_numbers(values)
    classes = _numbered(entries, num_classes)
  else:
    numbers, classes = values, table.grey_classes()
    # Most likely 255 is the foreground here: users must say so.
    if (num_classes <= 2 and not entries) and (
      values.max() == 255 and np.all(values % 255 == 0)
    ):
      classes = {0: 0}
  is_color = values.ndim == 3
  if table.is_nearest:
    _check_areas(numbers, classes, is_color, num_classes, name)
    return _nearest(values, numbers, table)
  mapped, any_unknown = _look_up(numbers, classes, table.others)
  if any_unknown:
    raise mask_advice.unknown_value_error(
      numbers, classes, is_color, entries, num_classes, name, is_lossy
    )
  return mapped


@functools.cache  # Each mask needs it.
def _numbered(entries: Entries, num_classes: int) -> dict[int, int]:
  """{number of a colour: class}"""
  colors = mask_table.make(entries, num_classes).color_classes()
  return {
    int(mask_colors.to_numbers(np.array(v))): c for v, c in colors.items()
  }


def _look_up(
  values: np.ndarray, classes: dict[int, int], others: int | None
) -> tuple[np.ndarray, bool]:
  """Returns the classes, uint8 [H, W], and whether a value has none."""
  if values.dtype == np.uint8:
    # The common case: OpenCV's lookup is four times as fast as indexing.
    lookup = np.full(256, others or 0, np.uint8)
    unknown = np.full(256, others is None, np.uint8)
    for value, c in classes.items():
      if 0 <= value < 256:
        lookup[value], unknown[value] = c, 0
    any_unknown = cv2.countNonZero(cv2.LUT(values, unknown)) > 0
    return cv2.LUT(values, lookup), any_unknown
  mapped = np.full(values.shape, others or 0, np.uint8)
  known = np.full(values.shape, others is not None, bool)
  for value, c in classes.items():
    at = values == value
    mapped[at] = c
    known |= at
  return mapped, not known.all()


def _nearest(
  values: np.ndarray, numbers: np.ndarray, table: mask_table.MaskTable
) -> np.ndarray:
  """Returns the classes by a table that has one for each value.

  Args:
    values: integers [H, W], or colours [H, W, 3].
    numbers: of them, [H, W].
  """
  if numbers.dtype == np.uint8:
    return cv2.LUT(numbers, table.nearest(np.arange(256)[:, None]))
  _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
  different = values.reshape(numbers.size, -1)[first]
  return table.nearest(different)[inverse].reshape(numbers.shape)


def _check_areas(
  numbers: np.ndarray,
  classes: dict[int, int],
  is_color: bool,
  num_classes: int,
  name: str,
) -> None:
  """Refuses areas of a value that only the nearest one has a class for."""
  areas = (mask_colors.of_areas if is_color else smoothed.drawn_values)(numbers)
  listed = [mask_colors.of_number(n) for n in classes if n >= 0]
  for number in areas:
    value: Value = number
    if is_color:
      value = mask_colors.of_number(number)
      # JPEG changes the colours of areas, too, a little.
      if any(np.abs(np.subtract(v, value)).max() <= _SHADES for v in listed):
        continue
    count = int((numbers == number).sum())
    if number not in classes and count > mask_advice.STRAY * numbers.size:
      raise mask_advice.area_error(
        value, count, numbers.size, num_classes, name
      )


def unknown_values(
  found: dict[Value, int], data: ml_collections.ConfigDict
) -> dict[Value, int]:
  """Returns those {value: pixels} of a mask that `map_mask` would refuse."""
  table = mask_table.of(data)
  if not data.mask_values and data.num_classes <= 2 and set(found) <= {0, 255}:
    return {v: n for v, n in found.items() if v == 255}
  return {v: n for v, n in found.items() if table.class_of(v) is None}


class Palettes:
  """The colours of the indices of a set's palette masks, from many threads.

  Indices are classes only where each means one colour in the whole set. Colours
  themselves are read where data.mask_values has colours.

  Attributes:
    found: the colours until now.
  """

  def __init__(self, data: ml_collections.ConfigDict):
    table = mask_table.of(data)
    # Other indices mean the same, whatever their colours.
    self._listed = None if table.others is None else set(table.classes)
    self._lock = threading.Lock()
    self.found: Palette = {}

  def add(self, example: dict[str, Any]) -> None:
    """Adds the mask of an example, if it was a file with a palette.

    Raises:
      UserError: an index has another colour than in a mask before.
    """
    file = example.get('mask_file')
    if file is not None and file.palette is not None:
      used = np.flatnonzero(histogram(file.array)).tolist()
      self.add_values(used, file.palette, example['mask_name'])

  def add_values(
    self, values: Iterable[int], palette: np.ndarray, name: str
  ) -> None:
    """Adds the indices that a mask has, of a palette uint8 [N, 3]."""
    known = [v for v in values if v < len(palette)]
    self.update({v: (tuple(palette[v].tolist()), name) for v in known})

  def update(self, found: Palette) -> None:
    """Adds what another one found; raises as `add` does."""
    with self._lock:
      for v, (color, name) in found.items():
        first = self.found.setdefault(v, (color, name))
        matters = self._listed is None or v in self._listed
        if matters and color != first[0]:
          raise self._error(v, (color, name), found)

  def _error(
    self, index: int, entry: tuple[tuple[int, ...], str], found: Palette
  ) -> errors.UserError:
    first, (color, name) = self.found[index], entry
    known = {c for c, _ in (*self.found.values(), *found.values())}
    # Black is most often the background.
    return errors.UserError(
      f'{name}: index {index} of its palette is {color}, that of {first[1]} is '
      f'{first[0]}, so that an index is no class; give each colour of the set '
      'its class, such as --config.data.mask_values='
      f'{mask_advice.numbered_table(sorted(known))}'
    )


def histogram(mask: np.ndarray) -> np.ndarray:
  """Returns how often each value occurs in uint8 [H, W]: int64 [256]."""
  # OpenCV's is the fastest, and counts in float32: exact up to 2**24.
  rows = max(2**24 // max(mask.shape[1], 1), 1)
  parts = [
    cv2.calcHist([mask[i : i + rows]], [0], None, [256], [0, 256]).ravel()
    for i in range(0, len(mask), rows)
  ]
  return np.stack(parts).sum(0, dtype=np.int64)


def class_pixels(mask: np.ndarray, num_names: int) -> np.ndarray:
  """Counts pixels of classes 0..num_names-1, and last of all others.

  Returns:
    int64 [num_names + 1].
  """
  if num_names > 8:
    counts = histogram(mask)[:num_names]
  else:  # Four times as fast as a histogram for two or three classes.
    counts = np.array([np.count_nonzero(mask == c) for c in range(num_names)])
  return np.append(counts, mask.size - counts.sum())
