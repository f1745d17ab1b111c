"""Mask values to classes."""

import functools
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import ml_collections
import numpy as np

from unet_jax.config import mask_table
from unet_jax.config.mask_table import Entries, Value
from unet_jax.runtime import errors

# {index: (colour, name of the first mask that has it)}.
Palette = dict[int, tuple[tuple[int, ...], str]]

# With more unknown values than this, a mask may number objects, or be blurred;
# with more colours, it is none.
_MANY, _NO_MASK = 8, 256
# Values above this are seldom numbers of classes: 128 is a grey to look at.
_MANY_CLASSES = 64


def color_numbers(colors: np.ndarray) -> np.ndarray:
  """Returns a number for each colour: integers [..., 3] to int64 [...]."""
  return colors.astype(np.int64) @ np.array([1 << 32, 1 << 16, 1])


def color_of(number: int) -> tuple[int, int, int]:
  """The inverse of `color_numbers`, of colours of 0..65535."""
  return number >> 32, number >> 16 & 0xFFFF, number & 0xFFFF


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
    if not table.has_colors and table.others is None:
      raise _color_mask_error(values, name, is_lossy)
    numbers = color_numbers(values)
    classes = _numbered(entries, num_classes)
  else:
    numbers, classes = values, table.grey_classes()
    # Most likely 255 is the foreground here: users must say so.
    if (num_classes <= 2 and not entries) and (
      values.max() == 255 and np.all(values % 255 == 0)
    ):
      classes = {0: 0}
  mapped, any_unknown = _look_up(numbers, classes, table.others)
  if any_unknown:
    is_color = values.ndim == 3
    raise _unknown_value_error(
      numbers, classes, is_color, entries, num_classes, name, is_lossy
    )
  return mapped


@functools.cache  # Each mask needs it.
def _numbered(entries: Entries, num_classes: int) -> dict[int, int]:
  """{number of a colour: class}"""
  colors = mask_table.make(entries, num_classes).color_classes()
  return {int(color_numbers(np.array(v))): c for v, c in colors.items()}


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


def unknown_values(
  found: dict[Value, int], data: ml_collections.ConfigDict
) -> dict[Value, int]:
  """Returns those {value: pixels} of a mask that `map_mask` would refuse."""
  table = mask_table.of(data)
  if not data.mask_values and data.num_classes <= 2 and set(found) <= {0, 255}:
    return {v: n for v, n in found.items() if v == 255}
  return {v: n for v, n in found.items() if table.class_of(v) is None}


def _unknown_value_error(
  values: np.ndarray,
  classes: dict[int, int],
  is_color: bool,
  entries: Entries,
  num_classes: int,
  name: str,
  is_lossy: bool,
) -> errors.UserError:
  """Names the most frequent value that is not in the table, and a way out.

  Args:
    values: numbers [H, W], of colours or grey.
    classes: {number: class} of the known ones.
    entries, num_classes, name, is_lossy: as for `map_mask`.
  """
  found, counts = np.unique(values, return_counts=True)
  numbers = found.tolist()
  known = np.isin(found, list(classes))
  worst = int(np.where(known, 0, counts).argmax())
  value: Value = numbers[worst]
  if is_color:
    value = color_of(value)
  which = f'CLASS in 0..{max(num_classes, 2) - 1} or 255 to ignore'
  count = len(found) - np.count_nonzero(known)
  top = {numbers[i] for i in np.argsort(-counts, kind='stable')[:2]}
  if is_color or entries:
    hint = f'add ({value}, CLASS) to data.mask_values, {which}'
  else:
    table = ''.join(f'({v},{classes.get(v, "CLASS")}),' for v in numbers)
    hint = (
      f"give each its class with --config.data.mask_values='({table})', {which}"
    )
    if 0 <= numbers[0] and numbers[-1] < _MANY_CLASSES:
      hint += f', or set --config.data.num_classes={numbers[-1] + 1}'
  if num_classes <= 2 and not is_color and set(numbers) <= {0, 255}:
    hint = (
      "a mask of 0 and 255 needs --config.data.mask_values='((0,0),(255,1))', "
      "or '((0,0),(1,1),(255,255))' where 255 is to be ignored"
    )
  elif is_lossy:
    hint = _of_loss()
  elif count > _MANY and not is_color and top == {0, 255}:
    hint = (
      f'it has {count} such values between 0 and 255, as JPEG and smoothing '
      'leave them; make the masks anew, stored as PNG and resized by nearest'
    )
  elif count > _MANY and not is_color:
    hint = f'it has {count} such values; {_of_objects()}'
  elif count > _MANY:
    hint = (
      f"it has {count} such colours; add ('others', CLASS) to data.mask_values "
      f'for all of them, {which}, or make the masks anew if JPEG or smoothing '
      'made these colours'
    )
  elif not is_color and not entries and numbers[0] >= 0:
    hint += f'; {_of_objects()}'
  return errors.UserError(
    f'{name}: value {value} in {counts[worst]} of {values.size} pixels is not '
    f'in data.mask_values; {hint}'
  )


def _of_objects() -> str:
  return (
    'if the values number objects, all but 0 are one class with '
    '--config.data.mask_values="((0,0),(\'others\',1))"'
  )


def _of_loss() -> str:
  return (
    'its kind of file changes values (JPEG and the like): round them to those '
    'of the classes and store the masks as PNG'
  )


def line_on_loss(names: Sequence[str], total: int) -> str:
  """Returns what to warn of where `names` of `total` masks are lossy."""
  return (
    f'{len(names)} of {total} masks, such as {names[0]}, are JPEGs or other '
    'files that change the values of a mask along its borders, where classes '
    'of near values are mixed up; make them anew as PNG'
  )


def _color_mask_error(
  values: np.ndarray, name: str, is_lossy: bool
) -> errors.UserError:
  """Prints a table for an RGB mask, the most frequent colours first."""
  # As numbers: rows take a hundred times as long to sort.
  numbers, counts = np.unique(color_numbers(values), return_counts=True)
  start = f'{name}: the mask is an RGB image of {len(numbers)} colours, '
  if is_lossy:
    return errors.UserError(f'{start}not a map of classes; {_of_loss()}')
  if len(numbers) > _NO_MASK:
    return errors.UserError(
      f'{start}more than there are classes; replace it if it is a photograph '
      'or was blurred by JPEG, or, if each colour is an object on black, set '
      '--config.data.mask_values="((0,0),(\'others\',1))"'
    )
  order = np.argsort(-counts, kind='stable')[:6]
  colors = [color_of(n) for n in numbers[order].tolist()]
  more = ' and so on' if len(numbers) > len(order) else ''
  return errors.UserError(
    f'{start}not a map of classes; give each colour its class, such as '
    f"--config.data.mask_values='{_numbered_table(colors)}'{more}"
  )


def _numbered_table(colors: Iterable[tuple[int, ...]]) -> str:
  """Returns data.mask_values, to be pasted, with a class for each colour."""
  entries = (
    f'(({",".join(map(str, color))}),{i}),' for i, color in enumerate(colors)
  )
  return f'({"".join(entries)})'


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
      f"its class, such as --config.data.mask_values='"
      f"{_numbered_table(sorted(known))}'"
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
