"""Mask values to classes."""

import functools

import cv2
import numpy as np

from unet_jax.config import fields
from unet_jax.runtime import errors

# Makes one number of a colour.
_COLOR_WEIGHTS = np.array([1 << 16, 1 << 8, 1])


def map_mask(
  values: np.ndarray, table, num_classes: int, name: str
) -> np.ndarray:
  """Returns the classes of a mask's values.

  Args:
    values: integers [H, W], or of RGB [H, W, 3].
    table: ((value or (r, g, b), class), ...), or () where values are classes.
      A value v in a table of colours is the colour (v, v, v).
    num_classes: 1 (then classes are 0 and 1) or more.
    name: of the file, for messages.

  Returns:
    uint8 [H, W] of 0..num_classes-1 or 255 (ignored).

  Raises:
    UserError: a value is not in the table; names it, its number of pixels, and
      the line that would fix it.
  """
  num_names = max(num_classes, 2)
  is_color = values.ndim == 3
  if is_color:
    if not any(isinstance(key, tuple) for key, _ in table):
      raise _color_mask_error(values, name)
    values = values.astype(np.int64) @ _COLOR_WEIGHTS
    table = _color_table(table)
  elif table:
    table = _grey_table(table)
  else:
    table = {i: i for i in (*range(num_names), fields.IGNORE_LABEL)}
    # Most likely 255 is the foreground: it must be said, not guessed.
    if num_names == 2 and values.max() == 255 and np.all(values % 255 == 0):
      del table[fields.IGNORE_LABEL]
  if values.dtype == np.uint8:
    # The quick way for what most masks are: OpenCV's tables are four times as
    # fast as an index.
    lookup, unknown = np.zeros(256, np.uint8), np.ones(256, np.uint8)
    for value, c in table.items():
      if 0 <= value < 256:
        lookup[value], unknown[value] = c, 0
    mapped = cv2.LUT(values, lookup)
    any_unknown = cv2.countNonZero(cv2.LUT(values, unknown))
  else:
    mapped = np.zeros(values.shape, np.uint8)
    known = np.zeros(values.shape, bool)
    for value, c in table.items():
      at = values == value
      mapped[at] = c
      known |= at
    any_unknown = not known.all()
  if any_unknown:
    raise _unknown_value_error(values, table, num_names, is_color, name)
  return mapped


def unknown_values(found: dict, data) -> dict:
  """Returns those of a mask's values that `map_mask` would not take.

  Args:
    found: {value or (r, g, b): pixels} of one mask.
    data: the section `data` of the config.
  """
  num_names = max(data.num_classes, 2)
  if any(isinstance(value, tuple) for value in found):
    known = _color_table(data.mask_values)
    key = lambda value: int(np.array(value) @ _COLOR_WEIGHTS)
    return {v: n for v, n in found.items() if key(v) not in known}
  if data.mask_values:
    known = _grey_table(data.mask_values)
  else:
    known = {*range(num_names), fields.IGNORE_LABEL}
    if num_names == 2 and set(found) <= {0, 255}:
      known = {0}
  return {v: n for v, n in found.items() if v not in known}


# Kept, since they are asked for with each mask.
@functools.cache
def _color_table(table) -> dict[int, int]:
  """{the number that stands for a colour: class}"""
  colors = [np.broadcast_to(np.array(key, np.int64), 3) for key, _ in table]
  return {int(k @ _COLOR_WEIGHTS): c for k, (_, c) in zip(colors, table)}


@functools.cache
def _grey_table(table) -> dict[int, int]:
  """{value: class}; a file whose channels are equal comes as one of them."""
  keys = [key if isinstance(key, tuple) else (key,) for key, _ in table]
  return {k[0]: c for k, (_, c) in zip(keys, table) if len(set(k)) == 1}


def _unknown_value_error(values, table, num_names, is_color, name):
  """The error for the most frequent value that is not in the table."""
  found, counts = np.unique(values, return_counts=True)
  unknown = ~np.isin(found, list(table))
  value = int(found[unknown][np.argmax(counts[unknown])])
  count = int(counts[found == value][0])
  if is_color:
    value = (value >> 16, value >> 8 & 255, value & 255)
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


def _color_mask_error(values, name):
  """The error for an RGB mask without a table of colours."""
  found, counts = np.unique(values.reshape(-1, 3), axis=0, return_counts=True)
  order = np.argsort(-counts, kind='stable')[:6]
  lines = ''.join(
    f'(({",".join(map(str, found[k].tolist()))}),{i}),'
    for i, k in enumerate(order)
  )
  more = ' and so on' if len(found) > len(order) else ''
  return errors.UserError(
    f'{name}: the mask is an RGB image of {len(found)} colours, not a map of '
    'classes; give each colour its class, such as '
    f"--config.data.mask_values='({lines})'{more}"
  )


def histogram(mask: np.ndarray) -> np.ndarray:
  """Returns how often each value occurs in uint8 [H, W]: int64 [256]."""
  # OpenCV's is the fastest, and counts in float32: exact up to 2**24.
  rows = max(2**24 // max(mask.shape[1], 1), 1)
  parts = [
    cv2.calcHist([mask[i : i + rows]], [0], None, [256], [0, 256]).ravel()
    for i in range(0, len(mask), rows)
  ]
  return np.sum(parts, axis=0, dtype=np.int64)
