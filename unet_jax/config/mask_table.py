"""data.mask_values both ways: from values to classes, and back.

Training, inspection, evaluation and prediction all read it here.
"""

import dataclasses
import functools
from typing import Any

import ml_collections
import numpy as np

from unet_jax.config import fields

# A grey value or (r, g, b).
Value = Any
# As in the config: ((value, class), ...); a value may be `others`.
Entries = tuple[tuple[Any, Any], ...]

# Stands for every value that is not in the table; as its class, NEAREST is that
# of the nearest value in the table.
OTHERS, NEAREST = 'others', 'nearest'
# Stands for the transparent pixels of a mask, and the value (of each channel)
# that they are read as.
TRANSPARENT, TRANSPARENT_VALUE = 'transparent', -1
_TRANSPARENT_COLOR = (TRANSPARENT_VALUE,) * 3


@dataclasses.dataclass(frozen=True)
class MaskTable:
  """What the values of masks mean, and those that a prediction writes.

  Attributes:
    has_colors: whether there are colours among the values. A grey value v is
      (v, v, v) then.
    classes: {value: class}.
    others: class of all other values, or None.
    is_nearest: whether all other values have the class of the nearest one.
    has_transparent: whether transparent pixels have a class.
    written: {class: value}: the first value of each class. The classes of
      `others` and of transparent pixels get one that is in no entry. Classes
      without a value are not in it.
  """

  has_colors: bool
  classes: dict[Value, int]
  others: int | None
  is_nearest: bool
  has_transparent: bool
  written: dict[int, Value]

  def grey_classes(self) -> dict[int, int]:
    """Returns {value: class} of a mask that has grey values alone."""
    if not self.has_colors:
      return self.classes
    return {v[0]: c for v, c in self.classes.items() if len(set(v)) == 1}

  def color_classes(self) -> dict[tuple[int, int, int], int]:
    """Returns {colour: class} of a mask that has colours."""
    if self.has_colors:
      return self.classes
    return {(v,) * 3: c for v, c in self.classes.items()}

  def class_of(self, value: Value) -> int | None:
    """Returns the class of a value; None where the table has none."""
    is_color = isinstance(value, tuple)
    known = self.color_classes() if is_color else self.grey_classes()
    if value in known or not self.is_nearest:
      return known.get(value, self.others)
    return int(self.nearest(np.array([_as_color(value)]))[0])

  def nearest(self, values: np.ndarray) -> np.ndarray:
    """Returns the class of the nearest value, where `is_nearest`.

    Args:
      values: integers [N, 1], or colours [N, 3].

    Returns:
      uint8 [N]; of two values that are as near, that of the lower one.
    """
    values, known = values.astype(np.int64), self.color_classes()
    classes = np.zeros(len(values), np.uint8)
    least = np.full(len(values), np.iinfo(np.int64).max)
    for color in sorted(known.keys() - {_TRANSPARENT_COLOR}):
      distance = ((values - color) ** 2).sum(-1)
      classes[distance < least] = known[color]
      least = np.minimum(distance, least)
    if _TRANSPARENT_COLOR in known:  # It is near to nothing else.
      is_transparent = values[:, 0] == TRANSPARENT_VALUE
      classes[is_transparent] = known[_TRANSPARENT_COLOR]
    return classes


def of(data: ml_collections.ConfigDict) -> MaskTable:
  """Returns the table of a config's section `data`."""
  return make(data.mask_values, data.num_classes)


@functools.cache  # Each mask needs it.
def make(entries: Entries, num_classes: int) -> MaskTable:
  """Makes the table of data.mask_values; of (), whose values are classes."""
  count = max(num_classes, 2)
  if not entries:
    names = {i: i for i in range(count)}
    ignored = {fields.IGNORE_LABEL: fields.IGNORE_LABEL}
    return MaskTable(False, names | ignored, None, False, False, names)
  words = {value: c for value, c in entries if isinstance(value, str)}
  listed = [(value, c) for value, c in entries if value not in words]
  has_colors = any(isinstance(value, tuple) for value, _ in listed)
  key = lambda value: _as_color(value) if has_colors else value
  classes = {key(value): c for value, c in listed}
  written = {c: key(value) for value, c in reversed(listed)}
  for c in words.values():
    if c == NEAREST or c in written:
      continue
    # Its own number, if that is free; black and white of colours.
    first = (0, 255) if has_colors else (c,)
    highest = 255 if has_colors else 65535
    free = (key(v) for v in (*first, *range(highest + 1)))
    taken = {*classes, *written.values()}
    value = next((v for v in free if v not in taken), None)
    written |= {} if value is None else {c: value}
  if TRANSPARENT in words:
    classes[key(TRANSPARENT_VALUE)] = words[TRANSPARENT]
  others = words.get(OTHERS)
  is_nearest = others == NEAREST
  return MaskTable(
    has_colors,
    classes,
    None if is_nearest else others,
    is_nearest,
    TRANSPARENT in words,
    written,
  )


def _as_color(value: Value) -> tuple[int, int, int]:
  return value if isinstance(value, tuple) else (value, value, value)


def text_of(entries: Entries) -> str:
  """Returns entries as they are typed, in quotes that a shell takes."""
  text = repr(tuple(entries)).replace(' ', '')
  return f'"{text}"' if "'" in text else f"'{text}'"


def contradiction(entries: Entries) -> str:
  """Returns what two entries say of one value; '' where all agree."""
  known: dict[Value | str, tuple[Any, int]] = {}
  has_colors = any(isinstance(value, tuple) for value, _ in entries)
  for value, c in entries:
    key = TRANSPARENT_VALUE if value == TRANSPARENT else value
    if has_colors and not isinstance(key, str):
      key = _as_color(key)
    first = known.setdefault(key, (value, c))
    if first[1] != c:
      return f'{first!r} and {(value, c)!r} give one value two classes'
  return ''
