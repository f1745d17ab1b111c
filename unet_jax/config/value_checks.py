"""Checks of the fields that say what images and masks mean.

Tables as in checks.py, which runs them.
"""

import re
from typing import Any

import ml_collections

from unet_jax.config import fields, mask_table, values

Table = dict[str, Any]


def _is_table_entry(entry: Any) -> bool:
  """Whether it is (value, class); the value may be (r, g, b) or a word."""
  if not isinstance(entry, tuple) or len(entry) != 2:
    return False
  value, label = entry
  if value == mask_table.OTHERS and label == mask_table.NEAREST:
    return True
  if value in (mask_table.OTHERS, mask_table.TRANSPARENT):
    return isinstance(label, int)
  numbers = value if isinstance(value, tuple) and len(value) == 3 else (value,)
  return all(
    isinstance(n, int) and values.is_number(n) for n in (*numbers, label)
  )


def _mask_values(config: ml_collections.ConfigDict, mode: str) -> Table:
  data, count = config.data, max(config.data.num_classes, 2)
  entries = data.mask_values
  table: Table = {
    f'data.num_classes: at most {fields.IGNORE_LABEL}, masks are 8 bit': (
      data.num_classes > fields.IGNORE_LABEL
    ),
  }
  start = '--config.data.mask_values:'
  for entry in entries:
    is_entry = _is_table_entry(entry)
    label = entry[1] if is_entry else None
    write = "'((0,0),(255,1))'"
    if mask_table.OTHERS in str(entry):
      write = '"((0,0),(\'others\',1))"'
    elif mask_table.TRANSPARENT in str(entry):
      write = '"((\'transparent\',0),(255,1))"'
    table |= {
      f'{start} {entry!r} is not a pair (value, class); write {write}': (
        not is_entry
      ),
      f'{start} {entry!r} maps to class {label}; with data.num_classes='
      f'{data.num_classes} the classes are 0 to {count - 1}, or '
      f'{fields.IGNORE_LABEL} to ignore': (
        is_entry
        and label
        not in (*range(count), fields.IGNORE_LABEL, mask_table.NEAREST)
      ),
    }
  if all(map(_is_table_entry, entries)):
    contradiction = mask_table.contradiction(entries)
    table[f'{start} {contradiction}; leave out one of them'] = contradiction
    has_values = any(not isinstance(value, str) for value, _ in entries)
    table[f"{start} has no value for 'nearest'; add the values of classes"] = (
      mask_table.OTHERS,
      mask_table.NEAREST,
    ) in entries and not has_values
  return table


def _written_masks(config: ml_collections.ConfigDict, mode: str) -> Table:
  """Predicted masks have the values of the table."""
  if mode != 'predict' or not config.data.mask_values:
    return {}
  table = mask_table.of(config.data)
  classes = range(max(config.data.num_classes, 2))
  missing = [c for c in classes if c not in table.written]
  first = missing[0] if missing else ''
  highest = 255 if table.has_colors else 65535
  parts = [v if isinstance(v, tuple) else (v,) for v in table.written.values()]
  return {
    f'data.mask_values has no value for class {first}, so its pixels cannot be '
    f'written; add (VALUE, {first})': missing,
    f'data.mask_values: masks are written with values of 0 to {highest}; '
    'choose others': any(not 0 <= n <= highest for part in parts for n in part),
  }


def _intensity(config: ml_collections.ConfigDict, mode: str) -> Table:
  """Values of images."""
  data = config.data
  limits, is_range = data.intensity_range, data.intensity == 'range'
  is_pair = len(limits) == 2 and limits[0] < limits[1]
  return {
    'data.intensity needs the stored values that become 0 and 255, such as '
    '--config.data.intensity_range=0,4095; --mode=inspect with another '
    'data.intensity measures them': is_range and not limits,
    'data.intensity_range: takes two numbers, the lower one first, such as '
    '0,4095': limits and not is_pair,
    'data.intensity_range is for --config.data.intensity=range': (
      limits and not is_range
    ),
  }


_SIDES = {'left': 'right', 'right': 'left', 'l': 'r', 'r': 'l'}
_SIDE = re.compile(rf'(?<![a-z])({"|".join(_SIDES)})(?![a-z])')


def _mirrors(config: ml_collections.ConfigDict, mode: str) -> Table:
  """Classes that a mirror turns into each other."""
  names = {name.casefold(): name for name in fields.class_names(config)}
  pairs = [
    f'{name} and {names[other]}'
    for key, name in names.items()
    if (other := _SIDE.sub(lambda m: _SIDES[m[0]], key)) != key
    and other in names
  ]
  flat, trains = fields.flatten(config), mode in ('train', 'cross_validate')
  return {
    f'{field}: a mirror makes each of {"".join(pairs[:1])} look like the other '
    f'(data.class_names); set --config.{field}=0': (
      trains and pairs and flat[field] > 0
    )
    for field in ('augment.flip_horizontal', 'augment.flip_vertical')
  }


def _holdout(config: ml_collections.ConfigDict, mode: str) -> Table:
  data = config.data
  return {
    f'data.holdout: the {data.source} source has no folders; take random or '
    'last': data.holdout == 'folder' and data.source != 'folder',
  }


TABLES = (_mask_values, _written_masks, _intensity, _mirrors, _holdout)
