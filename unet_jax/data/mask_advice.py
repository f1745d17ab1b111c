"""What to do about masks whose values are not in data.mask_values."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from unet_jax.config import mask_table
from unet_jax.config.mask_table import Entries, Value
from unet_jax.data import mask_colors, smoothed
from unet_jax.runtime import errors

# With more unknown values than this, a mask may number objects, or be blurred;
# with more colours, it is none.
_MANY, _NO_MASK = 8, 256
# Colours in a table that is an example.
_SHOWN = 6
# Colours of areas fill more than this share of a mask, and there are no more.
_AREAS, _MOST_AREAS = 0.85, 32
# Values in a larger share of the pixels are no stray ones.
STRAY = 0.03
# The entry that gives all other values the class of the nearest one.
NEAREST_ENTRY = (mask_table.OTHERS, mask_table.NEAREST)
_NEAREST = f"('{mask_table.OTHERS}','{mask_table.NEAREST}')"
# Values above this are seldom numbers of classes: 128 is a grey to look at.
_MANY_CLASSES = 64


def unknown_value_error(
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
    value = mask_colors.of_number(value)
  which = _which(num_classes)
  count = len(found) - np.count_nonzero(known)
  smoothing, is_sure = '', False
  # Of a few values that are not in the table most are classes.
  is_likely = not entries and count > 1
  if not is_color:
    smoothing, is_sure = _of_smoothing(values, classes, entries, num_classes)
  hint = f'add ({value}, CLASS) to data.mask_values, {which}'
  if not is_color and not entries:
    hint = _list_values(numbers, classes, num_classes)
  if num_classes <= 2 and not is_color and set(numbers) <= {0, 255}:
    hint = (
      "a mask of 0 and 255 needs --config.data.mask_values='((0,0),(255,1))', "
      "or '((0,0),(1,1),(255,255))' where 255 is to be ignored"
    )
  elif is_lossy:
    hint = _of_loss()
  elif smoothing and is_sure:
    hint = smoothing
  elif count > _MANY and not is_color:
    hint = f'it has {count} such values; {_of_objects()}'
  elif count > _MANY:
    hint = (
      f'it has {count} such colours; if JPEG or smoothing made them, get the '
      f'masks as they were drawn, or add {_NEAREST} to data.mask_values, the '
      f"class of the nearest colour; otherwise add ('others', CLASS), {which}"
    )
  elif smoothing and is_likely:
    hint = f'{smoothing}; if they are classes, {hint}'
  elif smoothing:
    hint = f'{hint}; otherwise {smoothing}'
  elif not is_color and not entries and numbers[0] >= 0:
    hint += f'; {_of_objects()}'
  return errors.UserError(
    f'{name}: value {value} in {counts[worst]} of {values.size} pixels is not '
    f'in data.mask_values; {hint}'
  )


def _list_values(
  numbers: Sequence[int], classes: dict[int, int], num_classes: int
) -> str:
  """Returns the table to fill in, for the values of a mask."""
  table = ''.join(f'({v},{classes.get(v, "CLASS")}),' for v in numbers)
  hint = (
    f"give each its class with --config.data.mask_values='({table})', "
    f'{_which(num_classes)}'
  )
  if 0 <= numbers[0] and numbers[-1] < _MANY_CLASSES:
    hint += f', or set --config.data.num_classes={numbers[-1] + 1}'
  return hint


def area_error(
  value: Value, count: int, size: int, num_classes: int, name: str
) -> errors.UserError:
  """Returns the error for a value that is too frequent to be a stray one."""
  return errors.UserError(
    f'{name}: value {value} in {count} of {size} pixels is in areas, and '
    f'data.mask_values has only the nearest of others for it; add ({value}, '
    f'CLASS) to data.mask_values, {_which(num_classes)}'
  )


def _which(num_classes: int) -> str:
  return f'CLASS in 0..{max(num_classes, 2) - 1} or 255 to ignore'


def _of_objects() -> str:
  return (
    'if the values number objects, all but 0 are one class with '
    '--config.data.mask_values="((0,0),(\'others\',1))"'
  )


def _of_loss() -> str:
  return (
    'its kind of file changes values (JPEG and the like): get the masks as '
    f'they were drawn, or list the values of the classes and {_NEAREST} in '
    'data.mask_values, which gives each the class of the nearest'
  )


def _of_smoothing(
  values: np.ndarray,
  classes: dict[int, int],
  entries: Entries,
  num_classes: int,
) -> tuple[str, bool]:
  """Returns what to do where smoothing left the unknown values, or ''.

  Args:
    values: integers [H, W].
    classes, entries, num_classes: as for `unknown_value_error`.

  Returns:
    The line, and whether there is no doubt of it.
  """
  found = smoothed.find(values)
  numbers, counts = np.unique(values, return_counts=True)
  is_white = {0, 255} == set(numbers[np.argsort(-counts)[:2]].tolist())
  if found:
    drawn = found.drawn
  elif is_white and len(numbers) > _MANY:
    drawn = (0, 255)
  else:
    drawn = smoothed.drawn_values(values)
  is_left = ~np.isin(numbers, drawn)
  if entries:
    is_left &= ~np.isin(numbers, list(classes))
    missing = [v for v in drawn if v not in classes]
    if missing:  # A class that is not in the table: it comes first.
      hint = f'add ({missing[0]}, CLASS) to data.mask_values, '
      return (hint + _which(num_classes) if found else ''), True
  left = numbers[is_left].tolist()
  share = counts[is_left].sum() / values.size
  is_sure = found is not None or len(left) > _MANY
  if not entries and drawn and drawn[-1] < num_classes:
    drawn = tuple(range(num_classes))  # Others may have areas elsewhere.
  advice = nearest_table(drawn, entries, num_classes)
  is_few = share < STRAY and len(drawn) < _MANY
  if not (left and advice and (found or is_few or drawn == (0, 255))):
    return '', False
  return (
    f'{share:.2%} of the pixels have values of no area '
    f'({errors.some(list(map(str, left)))}), {"" if is_sure else "perhaps "}as '
    'smooth resizing or JPEG leaves them along borders: get the masks as they '
    f'were drawn, and resize them by nearest; where there are none, {advice} '
    'gives each the class of the nearest value, with borders off by up to a '
    'pixel'
  ), is_sure


def nearest_table(
  drawn: Sequence[int], entries: Entries, num_classes: int
) -> str:
  """Returns flags that map all values to the nearest of a class, or ''.

  Args:
    drawn: the values of areas, ascending.
    entries, num_classes: as for `map_mask`.
  """
  if not entries:
    entries, num_needed = number(drawn)
  else:
    entries = tuple(e for e in entries if e[0] != mask_table.OTHERS)
    num_needed = num_classes
  if len(entries) < 2:
    return ''
  table = mask_table.text_of((*entries, NEAREST_ENTRY))
  flags = f'--config.data.mask_values={table}'
  if num_needed > max(num_classes, 2) or num_needed < num_classes:
    flags += f' --config.data.num_classes={num_needed}'
  return flags


def of_the_set(
  message: str, drawn: Sequence[int], of_all: Sequence[int], num_classes: int
) -> str:
  """Puts the values of all masks in a message on one that has some of them."""
  table = nearest_table(drawn, (), num_classes)
  if not table:
    return message
  return message.replace(table, nearest_table(of_all, (), num_classes))


def number(values: Sequence[int]) -> tuple[Entries, int]:
  """Returns a table of values, ascending, and the number of its classes.

  255 beside small numbers marks unlabelled pixels in many sets.
  """
  ignored = len(values) > 2 and values[-1] == 255 and values[-2] < _MANY_CLASSES
  kept = values[:-1] if ignored else values
  table = [(v, i) for i, v in enumerate(kept)]
  return (*table, *[(255, 255)] * ignored), max(len(kept), 2)


def line_on_loss(names: Sequence[str], total: int) -> str:
  """Returns what to warn of where `names` of `total` masks are lossy."""
  return (
    f'{len(names)} of {total} masks, such as {names[0]}, are JPEGs or other '
    'files that change the values of a mask along its borders, where classes '
    'of near values are mixed up; make them anew as PNG'
  )


def color_mask_error(
  values: np.ndarray, entries: Entries, name: str, is_lossy: bool
) -> errors.UserError:
  """Prints a table for an RGB mask."""
  # As numbers: rows take a hundred times as long to sort.
  in_mask = mask_colors.to_numbers(values)
  numbers, counts = np.unique(in_mask, return_counts=True)
  is_color = numbers >= 0  # One below is what is transparent.
  kept = tuple(e for e in entries if e[0] == mask_table.TRANSPARENT)
  count = np.count_nonzero(is_color)
  start = f'{name}: the mask is an RGB image of {count} colours, '
  if is_lossy:
    return errors.UserError(f'{start}not a map of classes; {_of_loss()}')
  areas = mask_colors.of_areas(in_mask)
  share = counts[np.isin(numbers, areas)].sum() / counts.sum()
  is_most = _AREAS < share < 1
  if is_most and len(numbers) > _MANY and 1 < len(areas) <= _MOST_AREAS:
    colors = [mask_colors.of_number(n) for n in areas if n >= 0]
    table = numbered_table(colors, kept, NEAREST_ENTRY)
    return errors.UserError(
      f'{start}most of them in few pixels, as smoothing leaves them along '
      'borders; get the masks as they were drawn, or take the class of the '
      f'nearest colour: --config.data.mask_values={table}'
    )
  if len(numbers) > _NO_MASK:
    where = 'transparent pixels' if kept else 'black'
    nothing = kept or ((0, 0),)
    table = mask_table.text_of((*nothing, (mask_table.OTHERS, 1)))
    return errors.UserError(
      f'{start}more than there are classes; replace it if it is a photograph '
      f'or was blurred by JPEG, or, if each colour is an object on {where}, '
      f'set --config.data.mask_values={table}'
    )
  every = map(mask_colors.of_number, numbers[is_color].tolist())
  table = color_table(dict(zip(every, counts[is_color].tolist())), kept)
  return errors.UserError(
    f'{start}not a map of classes; give each colour its class, such as '
    f'--config.data.mask_values={table}'
  )


def color_table(counts: Mapping[Value, int], kept: Entries = ()) -> str:
  """Returns a table of colours to be pasted, one for all masks that have them.

  Args:
    counts: pixels of each value; of many colours, the most frequent are taken.
    kept: entries for transparent pixels.
  """
  colors = [color for color in counts if isinstance(color, tuple)]
  colors.sort(key=lambda color: (-counts[color], color))
  more = ' and so on' if len(colors) > _SHOWN else ''
  return f'{numbered_table(sorted(colors[:_SHOWN]), kept)}{more}'


def of_objects(message: str) -> str:
  """Leaves of the ways out in a message that of masks that number objects."""
  advice = _of_objects()
  start, mark, _ = message.partition('data.mask_values; ')
  return start + mark + advice if advice in message else message


def numbered_table(
  colors: Iterable[tuple[int, ...]], kept: Entries = (), *more: Any
) -> str:
  """Returns data.mask_values, to be pasted, with a class for each colour.

  Args:
    colors: of classes 0, 1, ..., or 1, 2, ... if what is kept is class 0.
    kept: entries for transparent pixels.
    more: entries at the end.
  """
  first = int(any(c == 0 for _, c in kept))
  numbered = ((color, i) for i, color in enumerate(colors, first))
  return mask_table.text_of((*kept, *numbered, *more))


def line_on_smoothing(
  names: Sequence[str],
  found: Sequence[smoothed.Smoothed],
  total: int,
  drawn: Sequence[int],
  data: ml_collections.ConfigDict,
) -> str:
  """Returns what to warn of where masks look smoothed, and are on the table.

  Args:
    names, found: of such masks, and what smoothing left in each.
    total: masks that were looked at.
    drawn: the values of areas in all masks, ascending; () if not known.
    data: the section of a config.
  """
  values = {v for mask in found for v in mask.values}
  share = float(np.mean([mask.share for mask in found]))
  shown = errors.some([str(v) for v in found[0].values])
  text = (
    f'{len(found)} of {total} masks, such as {names[0]}, have values ({shown}) '
    f'here and there between two others along their border, in {share:.2%} of '
    'the pixels, as smooth resizing leaves them: there a class is learnt that '
    'was not drawn (lines thinner than a pixel that were resized look the '
    'same). Get the masks as they were drawn, and resize them by nearest'
  )
  if values & set(drawn):
    return f'{text}; no table undoes it, since these values are classes, too'
  table = nearest_table(drawn, (), data.num_classes) if drawn else ''
  if data.mask_values or not table:
    return text
  return f'{text}; where there are none, {table} gives each the nearest class'


def learns_smoothed(
  found: smoothed.Smoothed | None, data: ml_collections.ConfigDict
) -> bool:
  """Whether values that smoothing left have classes of their own."""
  known = mask_table.of(data).classes
  return found is not None and any(v in known for v in found.values)


def lines_on_sample(
  looked_at: Sequence[tuple[str, smoothed.Smoothed | None]],
  data: ml_collections.ConfigDict,
) -> list[str]:
  """Returns a line to warn of where half of some masks look smoothed."""
  bad = [
    (name, found)
    for name, found in looked_at
    if found and learns_smoothed(found, data)
  ]
  if 2 * len(bad) < max(len(looked_at), 1):
    return []
  names, found = zip(*bad)
  line = line_on_smoothing(names, found, len(looked_at), (), data)
  return [f'{line}; --mode=inspect looks at all']
