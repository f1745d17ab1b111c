"""data.mask_values both ways: from values to classes, and back.

Training, inspection, evaluation and prediction all read it here.
"""

import dataclasses
import functools
from typing import Any

import ml_collections

from unet_jax.config import fields

# A grey value or (r, g, b).
Value = Any
# As in the config: ((value, class), ...); a value may be `others`.
Entries = tuple[tuple[Any, int], ...]

# Stands for every value that is not in the table.
OTHERS = 'others'


@dataclasses.dataclass(frozen=True)
class MaskTable:
  """What the values of masks mean, and those that a prediction writes.

  Attributes:
    has_colors: whether there are colours among the values. A grey value v is
      (v, v, v) then.
    classes: {value: class}.
    others: class of all other values; None where there may be none.
    written: {class: value}: the first value of each class. The class of
      `others` gets one that is in no entry. Classes without a value are not
      in it.
  """

  has_colors: bool
  classes: dict[Value, int]
  others: int | None
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
    return known.get(value, self.others)


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
    return MaskTable(False, names | ignored, None, names)
  others = next((c for value, c in entries if value == OTHERS), None)
  listed = [(value, c) for value, c in entries if value != OTHERS]
  has_colors = any(isinstance(value, tuple) for value, _ in listed)
  key = lambda value: _as_color(value) if has_colors else value
  classes = {key(value): c for value, c in listed}
  written = {c: key(value) for value, c in reversed(listed)}
  if others is not None and others not in written:
    # Its own number, if that is free; black and white of colours.
    first = (0, 255) if has_colors else (others,)
    highest = 255 if has_colors else 65535
    free = (key(v) for v in (*first, *range(highest + 1)))
    value = next((v for v in free if v not in classes), None)
    written |= {} if value is None else {others: value}
  return MaskTable(has_colors, classes, others, written)


def _as_color(value: Value) -> tuple[int, int, int]:
  return value if isinstance(value, tuple) else (value, value, value)


def contradiction(entries: Entries) -> str:
  """Returns what two entries say of one value; '' where all agree."""
  known: dict[Value | str, tuple[Any, int]] = {}
  has_colors = any(isinstance(value, tuple) for value, _ in entries)
  for value, c in entries:
    is_color = has_colors and value != OTHERS
    key = _as_color(value) if is_color else value
    first = known.setdefault(key, (value, c))
    if first[1] != c:
      return f'{first!r} and {(value, c)!r} give one value two classes'
  return ''
