"""The classes of a data set, from the values in its masks."""

import collections
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np

from unet_jax.config import fields, mask_table
from unet_jax.data import decode, mask_advice, masks
from unet_jax.inspection import records, samples
from unet_jax.runtime import errors

# Share of the masks that must look smoothed, for a table of areas.
_SMOOTHED = 0.3
# A table that fits this share of the masks stays. A value in a smaller share of
# the pixels and of the masks than these is most likely a slip of the pen.
_MOST = 0.9
_STRAY_PIXELS, _STRAY_MASKS = 1e-3, 0.05
# Unknown values that are listed one by one; and more are most likely objects.
_LISTED, _MANY = 3, 8


def find_table(
  measurements: records.Measurements,
  sampled: Sequence[np.ndarray],
  config: ml_collections.ConfigDict,
) -> tuple[tuple, int, str]:
  """Returns mask_values, num_classes, and the reason.

  Args:
    measurements: of all splits.
    sampled: some masks as stored, see `samples.read_masks`.
    config: the present one.
  """
  values = collections.Counter[records.Value]()
  in_masks = collections.Counter[records.Value]()
  for m in measurements:
    values.update(m.values or {})
    in_masks.update((m.values or {}).keys())
  num_masks = sum(bool(m.values) for m in measurements)
  has_colors = any(isinstance(v, tuple) for v in values)
  if has_colors:
    # A mask of grey pixels alone comes as one channel.
    values, in_masks = _as_colors(values), _as_colors(in_masks)
  now = config.data
  same = lambda why: (now.mask_values, now.num_classes, why)
  if mask_table.of(now).has_transparent:
    return same('it has a class for transparent pixels')
  why = _why_table_fits(measurements, num_masks, len(values), now)
  if why:
    return same(why)
  if any(
    m.mask_file and decode.is_lossy(m.mask_file.kind) for m in measurements
  ):
    return same('masks that are JPEGs or the like have lost their values')
  if found := _of_areas(measurements, num_masks):
    return found
  if samples.are_objects(values, in_masks, sampled):
    return _one_foreground(values, has_colors, num_masks)
  stray = [
    v
    for v, pixels in values.items()
    if pixels < _STRAY_PIXELS * values.total()
    and in_masks[v] <= max(_STRAY_MASKS * num_masks, 1)
  ]
  if len(values) - len(stray) < 2:
    stray = []  # All that is drawn: small objects in few masks, no slips.
  for v in stray:
    del values[v]
  if len(values) > fields.IGNORE_LABEL or not values:
    return same(
      f'{len(values)} different values in the masks: not a map of classes'
    )
  num_classes, order = _number(values, has_colors)
  listed = ', '.join(map(str, list(order)[:12]))
  why = f'the values in {num_masks} masks: {listed}'
  if stray:
    why += (
      f'; skipped, since they are in few pixels of few masks: '
      f'{", ".join(map(str, sorted(stray)[:12]))}: fix those masks'
    )
  plain = all(v == c for v, c in order.items())
  return (() if plain else tuple(order.items())), num_classes, why


def _of_areas(
  measurements: records.Measurements, num_masks: int
) -> tuple[tuple, int, str] | None:
  """As `find_table`, where many masks were resized smoothly."""
  left = [m for m in measurements if m.smoothed]
  drawn = sorted({v for m in left for v in m.smoothed.drawn})
  entries, number = mask_advice.number(drawn)
  if len(left) <= _SMOOTHED * num_masks or len(entries) < 2:
    return None
  why = (
    f'{len(left)} of {num_masks} masks were resized smoothly: each value gets '
    'the class of the nearest one of areas; better get the masks as they were '
    'drawn'
  )
  return (*entries, mask_advice.NEAREST_ENTRY), number, why


def _one_foreground(
  values: Mapping[records.Value, int], has_colors: bool, num_masks: int
) -> tuple[tuple, int, str]:
  """As `find_table`, of masks that number objects: all are one class."""
  nothing = (0, 0, 0) if has_colors else 0
  number = len(values) - (nothing in values)
  what, rule = 'values', 'some are above 255'
  if has_colors:
    what, rule = 'colours', 'most of the many colours are in few masks'
  elif max(values) <= fields.IGNORE_LABEL:
    rule = (
      'nearly all are one connected part of a mask, and they count from 1 in '
      f'most masks or are in few of them; {samples.OBJECT_ODDS}'
    )
  why = (
    f'{number} {what} but {nothing} in {num_masks} masks number objects '
    f'({rule}): all are one class. Objects that touch become one; copies of '
    'the masks in instances/ keep them apart for loss.weight_map=border. If '
    'the values are classes, list them'
  )
  return ((nothing, 0), (mask_table.OTHERS, 1)), 2, why


def _why_table_fits(
  measurements: records.Measurements,
  num_masks: int,
  num_values: int,
  data: ml_collections.ConfigDict,
) -> str:
  """Returns why the present table of values stays; '' if it does not."""
  mapped = [m.class_pixels for m in measurements if m.class_pixels is not None]
  if not mapped or len(mapped) < _MOST * num_masks:
    return ''
  all_occur = np.sum(mapped, 0)[:-1].all()
  if not all_occur and not (num_values > 1 and data.mask_values):
    return ''
  misfits = num_masks - len(mapped)
  if misfits:
    return f'fits all masks but {misfits}, which need fixing'
  return 'fits the masks as it is'


def _number(
  values: collections.Counter[records.Value], has_colors: bool
) -> tuple[int, dict[records.Value, int]]:
  """Returns the number of classes, and {value: class}."""
  if not has_colors:
    table, number = mask_advice.number(sorted(values))
    return number, dict(table)
  # The most frequent colour is most likely the background.
  order = {v: i for i, (v, _) in enumerate(values.most_common())}
  return max(len(order), 2), order


def _as_color(value: records.Value) -> tuple[int, int, int]:
  return value if isinstance(value, tuple) else (value,) * 3


def _as_colors(
  values: Mapping[records.Value, int],
) -> collections.Counter[records.Value]:
  """{value or (r, g, b): count} with colours alone."""
  colors = collections.Counter[records.Value]()
  for value, count in values.items():
    colors[_as_color(value)] += count
  return colors


def drawn_values(measurements: records.Measurements) -> list[int]:
  """Returns the grey values of areas in masks, ascending."""
  values = {v for m in measurements for v in m.drawn or m.values or ()}
  return sorted(v for v in values if isinstance(v, int))


def describe_unknown(
  bad: records.Measurements,
  split: records.Measurements,
  every: records.Measurements,
  config: ml_collections.ConfigDict,
) -> str:
  """Returns the unknown values of a split, how often they occur, what to do.

  Args:
    bad: whose masks have values outside the table.
    split: all of it.
    every: of all splits, which have one table.
    config: the present one.
  """
  pixels = collections.Counter[records.Value]()
  in_masks = collections.Counter[records.Value]()
  first: dict[records.Value, str] = {}
  for m in bad:
    values = masks.unknown_values(m.values, config.data)
    pixels.update(values)
    in_masks.update(values.keys())
    # An earlier mask stays the first.
    first = dict.fromkeys(values, m.mask_name) | first
  message, data = bad[0].error[1], config.data
  if bad[0].drawn and not data.mask_values:
    # The values of all masks, in place of those of this one.
    message = mask_advice.of_the_set(
      message, bad[0].drawn, drawn_values(split), data.num_classes
    )
  of_all = collections.Counter[records.Value]()
  for m in every:
    of_all.update(m.values or {})
  shown, whole = map(mask_advice.color_table, (bad[0].values, of_all))
  message = message.replace(shown, whole)
  if len(pixels) == 1 and len(bad) == 1:
    return message
  listed = '; '.join(
    f'{value}: {n} pixels of {in_masks[value]} mask(s), first {first[value]}'
    for value, n in pixels.most_common(_LISTED)
  )
  if len(masks.unknown_values(of_all, data)) > _MANY:
    message = mask_advice.of_objects(message)
  if len(pixels) > _LISTED:
    shown = errors.some([str(value) for value, _ in pixels.most_common()])
    listed = f'{len(pixels)} values, {shown}'
  return (
    f'{message} ({len(bad)} of {len(split)} masks hold values outside the '
    f'table: {listed})'
  )
