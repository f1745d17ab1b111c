"""Tests of unet_jax/data/masks.py."""

import ast
import re

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from tests.data import helpers
from tests.refusals import message_of
from unet_jax.data import masks

_DTYPES = (np.uint8, np.uint16, np.dtype('>u2'), np.int32, np.int64)
_COLORS = (((0, 0, 0), 0), ((255, 0, 0), 2), ((0, 0, 255), 1), (7, 255))


def _data(table, num_classes=3):
  config = helpers.make_config(mask_values=table, num_classes=num_classes)
  return config.data


def _assert_classes(values, table, num_classes, expected):
  got = masks.map_mask(np.asarray(values), table, num_classes, 'm')
  assert got.dtype == np.uint8
  assert_array_equal(got, expected)


def _error(values, table=(), num_classes=3, name='m.png'):
  return message_of(
    masks.map_mask, np.asarray(values), table, num_classes, name
  )


def _lossy_error(values, table=(), num_classes=3):
  return message_of(
    masks.map_mask, np.asarray(values), table, num_classes, 'm', is_lossy=True
  )


def _add(value, count, total, name='m.png'):
  return (
    f'{name}: value {value} in {count} of {total} pixels is not in '
    f'data.mask_values; add ({value}, CLASS) to data.mask_values, CLASS in '
    '0..2 or 255 to ignore'
  )


@pytest.mark.parametrize('dtype', _DTYPES)
def test_values_of_any_type(dtype):
  values = np.array([[0, 1, 2], [255, 1, 0]], dtype)
  _assert_classes(values, (), 3, values)
  values = np.array([[7, 0, 30], [255, 7, 7]], dtype)
  table = ((0, 255), (30, 0), (7, 2), (255, 1), (99, 0))
  _assert_classes(values, table, 3, [[2, 255, 0], [1, 2, 2]])


def test_large_values():
  values = np.array([[0, 40000]], np.uint16)
  _assert_classes(values, ((0, 0), (40000, 1), (256, 2)), 3, [[0, 1]])


@pytest.mark.parametrize('num_classes', [1, 2])
def test_two_classes(num_classes):
  values = np.array([[0, 1, 255]], np.uint8)
  _assert_classes(values, (), num_classes, values)
  _assert_classes(values[:, ::2], ((0, 0), (255, 1)), num_classes, [[0, 1]])


def test_others():
  """All values that are in no other entry, wherever it stands in the table."""
  for table in (((0, 0), ('others', 1)), (('others', 1), (0, 0))):
    for dtype in _DTYPES:
      _assert_classes(np.array([[0, 7, 255]], dtype), table, 2, [[0, 1, 1]])
    values = np.array([[0, 361, 40000]], np.uint16)
    _assert_classes(values, table, 1, [[0, 1, 1]])
    # Colours that number objects, too.
    colors = np.array([[[0, 0, 0], [1, 2, 3], [255, 0, 0]]], np.uint8)
    _assert_classes(colors, table, 2, [[0, 1, 1]])
  rest_ignored = (((255, 0, 0), 1), ('others', 255), (0, 0))
  _assert_classes(colors, rest_ignored, 2, [[0, 255, 1]])
  assert masks.unknown_values({5: 1, (1, 2, 3): 4}, _data(rest_ignored)) == {}


def test_unknown_values_are_those_that_are_refused():
  found = {0: 1, 4: 2, 255: 3, (1, 2, 3): 4}
  assert masks.unknown_values(found, _data(())) == {4: 2, (1, 2, 3): 4}
  assert masks.unknown_values(found, _data(((4, 1),))) == {
    0: 1,
    255: 3,
    (1, 2, 3): 4,
  }
  assert masks.unknown_values({0: 1, 255: 2}, _data((), 2)) == {255: 2}


def test_colors():
  values = [[[0, 0, 0], [0, 0, 255]], [[255, 0, 0], [7, 7, 7]]]
  _assert_classes(np.array(values, np.uint8), _COLORS, 3, [[0, 1], [2, 255]])


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_grey_with_a_table_of_colors(dtype):
  """A file with nothing but grey in it is decoded to one channel."""
  _assert_classes(np.array([[0, 7]], dtype), _COLORS, 3, [[0, 255]])
  # 255 is no code of (0, 0, 255).
  assert _error(np.array([[0, 255]], dtype), _COLORS) == _add(255, 1, 2)
  no_grey = (((255, 0, 0), 1),)
  assert _error(np.array([[0]], dtype), no_grey) == _add(0, 1, 1)


@pytest.mark.parametrize('dtype', _DTYPES)
def test_unknown_value(dtype):
  """The most frequent one is named; the entry that it prints fixes it."""
  values = np.array([[0, 9, 4, 4], [0, 4, 9, 0]], dtype)
  table = ((0, 0), (1, 1))
  assert _error(values, table, name='a/m.png') == _add(4, 3, 8, 'a/m.png')
  assert _error(values, (*table, (4, 2))) == _add(9, 2, 8)
  expected = [[0, 255, 2, 2], [0, 2, 255, 0]]
  _assert_classes(values, (*table, (4, 2), (9, 255)), 3, expected)


def test_unknown_color():
  values = np.zeros((2, 2, 3), np.uint8)
  values[0, 1] = (1, 2, 3)
  assert _error(values, _COLORS) == _add((1, 2, 3), 1, 4)
  # Black and blue are no 0 and 255.
  values[0, 1] = (0, 0, 255)
  table = (((0, 0, 0), 0), ((255, 0, 0), 1))
  assert 'a mask of 0 and 255' not in _error(values, table, 2)


def test_values_of_a_table_that_is_not_there():
  """What it prints fixes them, once CLASS is a number."""
  values = np.array([[0, 4, 4, 255]])
  message = _error(values)
  assert message == (
    'm.png: value 4 in 2 of 4 pixels is not in data.mask_values; give each its '
    "class with --config.data.mask_values='((0,0),(4,CLASS),(255,255),)', CLASS"
    ' in 0..2 or 255 to ignore; if the values number objects, all but 0 are one'
    ' class with --config.data.mask_values="((0,0),(\'others\',1))"'
  )
  table = ast.literal_eval(
    re.search("'(.*?)'", message).group(1).replace('CLASS', '2')
  )
  _assert_classes(values, table, 3, [[0, 2, 2, 255]])
  message = _error(np.array([[0, 1, 5]]))
  assert 'or set --config.data.num_classes=6;' in message
  _assert_classes([[0, 1, 5]], (), 6, [[0, 1, 5]])


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_ids_of_objects(dtype):
  """Not an entry for each; the table that is printed takes all of them."""
  values = np.arange(60, dtype=dtype).reshape(6, 10)
  message = _error(values)
  assert 'it has 57 such values; if the values number objects' in message
  table = ast.literal_eval(re.search('"(.*)"', message).group(1))
  _assert_classes(values, table, 3, values > 0)


def _table_in(message):
  """The table that a message prints, and the number of classes, if it does."""
  table = re.search(r"mask_values=(\"[^\"]*\"|'[^']*')", message).group(1)
  number = re.search(r'num_classes=(\d+)', message)
  return ast.literal_eval(table[1:-1]), number and int(number.group(1))


def test_blurred_masks():
  """No class for each grey of a border; the table that is printed helps."""
  values = np.repeat(np.uint8([0, 255]), 200).reshape(4, 100)
  values[0, 50:70] = np.arange(20) * 12 + 9
  for table in ((), ((0, 0), (255, 1))):
    message = _error(values, table, 2)
    assert 'as smooth resizing or JPEG leaves them along borders' in message
    found, _ = _table_in(message)
    assert found == ((0, 0), (255, 1), ('others', 'nearest'))
    _assert_classes(values, found, 2, values > 127)


def _shapes(*values):
  """A square, a circle and a bar, of values on the first."""
  mask = np.full((96, 96), values[0], np.uint8)
  mask[8:40, 8:36] = values[1]
  cv2.circle(mask, (64, 58), 24, int(values[-1]), -1)
  return mask


def _halved(mask, kind=Image.Resampling.BILINEAR):
  return np.asarray(Image.fromarray(mask).resize((48, 48), kind))


@pytest.mark.parametrize(
  'values, num_classes',
  [
    ((0, 255), 2),
    ((0, 255), 4),
    ((0, 2), 2),
    ((0, 5, 15), 4),
    ((1, 3, 9), 2),
  ],
)
def test_smoothed_masks(values, num_classes):
  """Following what is printed gives the classes that were drawn, nearly."""
  mask = _shapes(*values)
  small = _halved(mask)
  message = _error(small, (), num_classes)
  table, number = _table_in(message)
  number = number or num_classes
  assert table == (
    *((v, i) for i, v in enumerate(values)),
    ('others', 'nearest'),
  )
  helpers.make_config(mask_values=table, num_classes=number)
  got = masks.map_mask(small, table, number, 'm')
  right = np.searchsorted(values, _halved(mask, Image.Resampling.NEAREST))
  # Between three values, the middle one may come where it is not.
  assert np.mean(got == right) > 0.97


def test_what_smoothing_leaves_is_no_reason_to_lose_a_class():
  small = _halved(_shapes(0, 128, 255))
  # A class that is not listed comes first.
  message = _error(small, ((0, 0), (255, 1)), 3)
  assert 'value 128' in message and 'add (128, CLASS)' in message
  # Nor does the table of one mask take others' classes for smoothing.
  table = ((0, 0), (255, 1), ('others', 'nearest'))
  message = _error(small, table, 3)
  assert 'value 128' in message and 'add (128, CLASS)' in message
  _assert_classes([[0, 120, 255, 130]], table, 3, [[0, 0, 1, 1]])


def test_smoothed_colors():
  colors = np.uint8([(0, 0, 0), (0, 0, 255), (255, 0, 0)])
  mask = _shapes(0, 1, 2)
  small = np.asarray(Image.fromarray(colors[mask]).resize((48, 48)))
  table, _ = _table_in(_error(small))
  assert table[-1] == ('others', 'nearest') and len(table) == 4
  got = masks.map_mask(small, table, 3, 'm')
  right = _halved(mask, Image.Resampling.NEAREST)
  assert np.mean(got == right) > 0.97


def test_areas_of_a_colour_that_is_not_listed_are_refused():
  colors = np.uint8([(0, 0, 0), (0, 250, 0), (255, 0, 0)])
  mask = _shapes(0, 1, 2)
  red, nearest = ((255, 0, 0), 1), ('others', 'nearest')
  table = (((0, 0, 0), 0), red, nearest)
  message = _error(colors[mask], table, 3)
  assert 'value (0, 250, 0)' in message and 'is in areas' in message
  assert 'add ((0, 250, 0), CLASS)' in message
  # Black is not what is transparent.
  seen = (('transparent', 0), red, ((0, 250, 0), 2), nearest)
  assert 'value (0, 0, 0)' in _error(colors[mask], seen, 3)
  # Not those of a listed colour that JPEG changed.
  table = (((0, 0, 0), 0), ((0, 255, 3), 2), red, nearest)
  _assert_classes(colors[mask], table, 3, np.uint8([0, 2, 1])[mask])


def test_nearest():
  table = (
    ((0, 0, 0), 0),
    ((200, 0, 0), 2),
    ((0, 0, 99), 1),
    ('others', 'nearest'),
  )
  colors = np.uint8([[(9, 9, 9), (199, 0, 30), (100, 0, 0), (0, 0, 60)]])
  _assert_classes(colors, table, 3, [[0, 2, 0, 1]])
  # Grey pixels alone come as one channel.
  _assert_classes(np.uint8([[9, 200]]), table, 3, [[0, 2]])
  grey = ((2, 1), (0, 0), ('others', 'nearest'))
  for dtype in _DTYPES:
    _assert_classes(np.array([[0, 1, 2, 200]], dtype), grey, 2, [[0, 0, 1, 1]])
  assert masks.unknown_values({0: 1, 7: 2}, _data(grey)) == {}


def test_values_that_a_file_changed():
  """Neither classes nor objects, however many there are."""
  colors = np.zeros((1, 3, 3), np.uint8)
  colors[0, 1:] = (250, 3, 1), (255, 0, 0)
  for values in ([[0, 1, 3]], [range(128)], colors):
    for table in ((), _COLORS):
      message = _lossy_error(values, table)
      assert message.endswith(
        '; its kind of file changes values (JPEG and the like): get the masks '
        "as they were drawn, or list the values of the classes and ('others',"
        "'nearest') in data.mask_values, which gives each the class of the "
        'nearest'
      )
  # Which is exactly what was written.
  assert "((0,0),(255,1))'" in _lossy_error([[0, 255]], (), 2)


def test_a_few_stray_values_of_classes():
  """As JPEG leaves them: no number of classes that is made of them alone."""
  values = _shapes(0, 1, 2)
  values[[20, 22, 40], [8, 36, 60]] = 3, 4, 3
  message = _error(values)
  assert 'perhaps as smooth resizing or JPEG leaves them' in message
  assert message.endswith('or set --config.data.num_classes=5')
  assert _table_in(message)[0] == (
    *((0, 0), (1, 1), (2, 2)),
    ('others', 'nearest'),
  )


def test_greys_to_look_at_are_no_numbers_of_classes():
  assert 'num_classes' not in _error([[0, 128]], (), 2)
  # What is below 0 stands for no label; it is no object either.
  assert _error([[-1, 0, 1, 1]], (), 3).endswith(
    "='((-1,CLASS),(0,0),(1,1),)', CLASS in 0..2 or 255 to ignore"
  )
  assert 'or set --config.data.num_classes=34;' in _error([[0, 33]], (), 2)


@pytest.mark.parametrize('num_classes', [1, 2])
@pytest.mark.parametrize('table', [(), ((0, 0), (1, 1))])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_0_and_255(num_classes, table, dtype):
  """Refused also where 255 could be `ignore`; both printed tables work."""
  values = np.array([[0, 255, 255], [0, 0, 0]], dtype)
  message = _error(values, table, num_classes)
  assert message == (
    'm.png: value 255 in 2 of 6 pixels is not in data.mask_values; a mask of 0 '
    "and 255 needs --config.data.mask_values='((0,0),(255,1))', or "
    "'((0,0),(1,1),(255,255))' where 255 is to be ignored"
  )
  foreground, ignored = map(ast.literal_eval, re.findall("'(.*?)'", message))
  _assert_classes(values, foreground, num_classes, values // 255)
  _assert_classes(values, ignored, num_classes, values)


def test_all_of_255():
  values = np.full((2, 2), 255, np.uint8)
  assert 'a mask of 0 and 255' in _error(values, (), 2)
  # With more classes nobody takes 255 for the foreground.
  _assert_classes(values, (), 3, values)


@pytest.mark.parametrize('count', [1, 2, 5])
def test_colors_without_a_table(count):
  """The printed table can be pasted, and works."""
  rng = np.random.default_rng(0)
  colors = rng.integers(0, 256, (count, 3), np.uint8)
  index = np.repeat(np.arange(count), 4 * np.arange(count, 0, -1))
  values = colors[index][None]
  message = _error(values, ((0, 0), (1, 1)), 5)
  start = (
    f'm.png: the mask is an RGB image of {count} colours, not a map of '
    'classes; give each colour its class, such as --config.data.mask_values='
  )
  assert message.startswith(start)
  shown = re.fullmatch("'(.*)'", message.removeprefix(start)).group(1)
  config = helpers.make_config(mask_values=ast.literal_eval(shown))
  # One table for all masks of these colours, however many pixels have them.
  assert message == _error(values[:, ::-1].repeat(2, 0), ((0, 0), (1, 1)), 5)
  more = np.concatenate([values, np.repeat(values[:, -1:], 99, 1)], 1)
  assert message == _error(more, ((0, 0), (1, 1)), 5)
  order = np.unique(colors, axis=0, return_inverse=True)[1].ravel()
  _assert_classes(values, config.data.mask_values, 5, order[index][None])


def test_many_colors():
  message = _error(np.arange(30, dtype=np.uint8).reshape(1, 10, 3))
  assert 'an RGB image of 10 colours' in message
  assert message.endswith("((15,16,17),5))' and so on")


def test_photographs_as_masks():
  colors = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
  assert 'more than there are classes; replace it' in _error(colors)
  message = _error(colors, _COLORS)
  assert "add ('others','nearest') to data.mask_values" in message
  assert "otherwise add ('others', CLASS)" in message


_PALETTE = np.uint8([(0, 0, 0), (255, 0, 0), (0, 255, 0)])


def test_palettes_that_agree():
  palettes = masks.Palettes(_data(()))
  palettes.add_values([0, 1], _PALETTE, 'a')
  # Colours of indices that no pixel has do not matter; nor do grey files.
  palettes.add_values([0, 1], _PALETTE[[0, 1, 1]], 'b')
  palettes.add_values([2, 9], _PALETTE, 'c')
  palettes.add({'mask': np.uint8([[1, 9]])})
  assert palettes.found[2] == ((0, 255, 0), 'c')


def test_palettes_that_differ():
  palettes = masks.Palettes(_data(()))
  palettes.add_values([0, 1], _PALETTE[:2], 'a.png')
  other = [1, 0], _PALETTE[[0, 2]], 'b.png'
  message = message_of(palettes.add_values, *other)
  assert message == (
    'b.png: index 1 of its palette is (0, 255, 0), that of a.png is (255, 0, 0)'
    ', so that an index is no class; give each colour of the set its class, '
    "such as --config.data.mask_values='(((0,0,0),0),((0,255,0),1),"
    "((255,0,0),2))'"
  )
  table = ast.literal_eval(re.search("'(.*)'", message).group(1))
  _assert_classes(_PALETTE[:2][None], table, 3, [[0, 2]])
  # Of objects, only the background has to be the same.
  palettes = masks.Palettes(_data(((0, 0), ('others', 1))))
  palettes.add_values([0, 1], _PALETTE[:2], 'a.png')
  palettes.add_values(*other)
  moved = [0], _PALETTE[[1]], 'c.png'
  assert 'c.png: index 0' in message_of(palettes.add_values, *moved)


@pytest.mark.parametrize('num_names', [2, 8, 9, 20])
def test_pixels_of_classes(num_names):
  mask = np.uint8([*range(num_names), 1, 1, 255]).reshape(1, -1)
  expected = [1, 3, *[1] * (num_names - 2), 1]
  assert masks.class_pixels(mask, num_names).tolist() == expected


def test_histogram_of_a_large_mask():
  """More pixels than float32 counts one by one."""
  mask = np.full((2**13, 2**12 + 1), 7, np.uint8)
  mask[5] = 255
  counts = masks.histogram(mask)
  assert counts.dtype == np.int64
  assert counts[[7, 255]].tolist() == [mask.size - 2**12 - 1, 2**12 + 1]
  assert counts.sum() == mask.size
