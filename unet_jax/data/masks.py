"""Mask values to classes."""

import functools
from collections.abc import Collection

import cv2
import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.runtime import errors

# A grey value or (r, g, b); a table holds (value, class) pairs.
Value = int | tuple[int, int, int]
Table = tuple[tuple[Value, int], ...]

# Turns a colour into one number.
_COLOR_WEIGHTS = np.array([1 << 16, 1 << 8, 1])


def map_mask(
  values: np.ndarray, table: Table, num_classes: int, name: str
) -> np.ndarray:
  """Returns the classes of a mask's values.

  Args:
    values: integers [H, W], or RGB [H, W, 3].
    table: data.mask_values; () where values are classes. A grey value v in a
      table of colours stands for the colour (v, v, v).
    num_classes: 1 (then classes are 0 and 1) or more.
    name: of the file, for messages.

  Returns:
    uint8 [H, W] of 0..num_classes-1 or 255 (ignored).

  Raises:
    UserError: a value is not in the table; the message holds its number of
      pixels and the entry to add.
  """
  num_names = max(num_classes, 2)
  is_color = values.ndim == 3
  if is_color:
    if not any(isinstance(key, tuple) for key, _ in table):
      raise _color_mask_error(values, name)
    values = values.astype(np.int64) @ _COLOR_WEIGHTS
    classes = _color_classes(table)
  else:
    classes = _grey_classes(table, num_names)
    # Most likely 255 is the foreground here: users must say so.
    if (num_names == 2 and not table) and (
      values.max() == 255 and np.all(values % 255 == 0)
    ):
      classes = {0: 0}
  mapped, any_unknown = _look_up(values, classes)
  if any_unknown:
    raise _unknown_value_error(values, classes, num_names, is_color, name)
  return mapped


def _look_up(
  values: np.ndarray, classes: dict[int, int]
) -> tuple[np.ndarray, bool]:
  """Returns the classes, uint8 [H, W], and whether a value has none."""
  if values.dtype == np.uint8:
    # The common case: OpenCV's lookup is four times as fast as indexing.
    lookup, unknown = np.zeros(256, np.uint8), np.ones(256, np.uint8)
    for value, c in classes.items():
      if 0 <= value < 256:
        lookup[value], unknown[value] = c, 0
    any_unknown = cv2.countNonZero(cv2.LUT(values, unknown)) > 0
    return cv2.LUT(values, lookup), any_unknown
  mapped = np.zeros(values.shape, np.uint8)
  known = np.zeros(values.shape, bool)
  for value, c in classes.items():
    at = values == value
    mapped[at] = c
    known |= at
  return mapped, not known.all()


def unknown_values(
  found: dict[Value, int], data: ml_collections.ConfigDict
) -> dict[Value, int]:
  """Returns those {value: pixels} of a mask that `map_mask` would refuse."""
  if any(isinstance(value, tuple) for value in found):
    known = _color_classes(data.mask_values)
    number = lambda value: int(np.array(value) @ _COLOR_WEIGHTS)
    return {v: n for v, n in found.items() if number(v) not in known}
  num_names = max(data.num_classes, 2)
  known = _grey_classes(data.mask_values, num_names)
  if num_names == 2 and not data.mask_values and set(found) <= {0, 255}:
    known = {0: 0}
  return {v: n for v, n in found.items() if v not in known}


# Cached, since each mask needs them.
@functools.cache
def _color_classes(table: Table) -> dict[int, int]:
  """{number of a colour: class}"""
  colors = [np.broadcast_to(np.array(key, np.int64), 3) for key, _ in table]
  return {int(k @ _COLOR_WEIGHTS): c for k, (_, c) in zip(colors, table)}


@functools.cache
def _grey_classes(table: Table, num_names: int) -> dict[int, int]:
  """{grey value: class}; a file whose channels are equal is decoded to one."""
  if not table:
    return {i: i for i in (*range(num_names), fields.IGNORE_LABEL)}
  keys = [key if isinstance(key, tuple) else (key,) for key, _ in table]
  return {k[0]: c for k, (_, c) in zip(keys, table) if len(set(k)) == 1}


def _unknown_value_error(
  values: np.ndarray,
  known: Collection[int],
  num_names: int,
  is_color: bool,
  name: str,
) -> errors.UserError:
  """Names the most frequent value that is not in the table."""
  found, counts = np.unique(values, return_counts=True)
  counts = np.where(np.isin(found, list(known)), 0, counts)
  number, count = int(found[counts.argmax()]), counts.max()
  value: Value = number
  if is_color:
    value = (number >> 16, number >> 8 & 255, number & 255)
  hint = (
    f'add ({value}, CLASS) to data.mask_values, CLASS in '
    f'0..{num_names - 1} or {fields.IGNORE_LABEL} to ignore'
  )
  if not is_color and set(found.tolist()) <= {0, 255} and num_names == 2:
    hint = (
      "a mask of 0 and 255 needs --config.data.mask_values='((0,0),(255,1))', "
      "or '((0,0),(1,1),(255,255))' where 255 is to be ignored"
    )
  return errors.UserError(
    f'{name}: value {value} in {count} of {values.size} pixels is not in '
    f'data.mask_values; {hint}'
  )


def _color_mask_error(values: np.ndarray, name: str) -> errors.UserError:
  """Prints a table for an RGB mask, the most frequent colours first."""
  found, counts = np.unique(values.reshape(-1, 3), axis=0, return_counts=True)
  order = np.argsort(-counts, kind='stable')[:6]
  table = ''.join(
    f'(({",".join(map(str, found[k].tolist()))}),{i}),'
    for i, k in enumerate(order)
  )
  more = ' and so on' if len(found) > len(order) else ''
  return errors.UserError(
    f'{name}: the mask is an RGB image of {len(found)} colours, not a map of '
    'classes; give each colour its class, such as '
    f"--config.data.mask_values='({table})'{more}"
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
