"""The table of mask values, both ways."""

import itertools

import pytest

from unet_jax.config import mask_table

_RED, _GREY = (255, 0, 0), (9, 9, 9)
_TABLES = (
  (),
  ((0, 0), (255, 1)),
  ((4, 1), (0, 0), (7, 1), (7, 1), (3, 2)),
  ((0, 0), ('others', 1)),
  (('others', 0), (0, 1)),
  (('others', 0), *((v, 1) for v in range(256))),
  ((0, 0), ('others', 255), (65535, 1)),
  ((_RED, 1), ('others', 0)),
  (((0, 0, 0), 1), (255, 2), ('others', 0)),
  ((_RED, 0), (9, 1), (_GREY, 1), ('others', 2)),
)


@pytest.mark.parametrize('entries', _TABLES)
def test_what_is_written_is_read_as_the_same_class(entries):
  table = mask_table.make(entries, 3)
  assert set(table.written) - {255} == {c for _, c in entries if c < 255} or (
    not entries and set(table.written) == {0, 1, 2}
  )
  for c, value in table.written.items():
    assert table.class_of(value) == c
    assert isinstance(value, tuple) == table.has_colors


def test_values_and_colors():
  table = mask_table.make(((_RED, 0), (9, 1), ('others', 2)), 3)
  assert [table.class_of(v) for v in (_RED, 9, _GREY, 8, (1, 2, 3))] == [
    *(0, 1, 1, 2, 2)
  ]
  table = mask_table.make(((0, 0), (9, 1)), 2)
  assert [table.class_of(v) for v in (0, _GREY, 8, _RED)] == [0, 1, None, None]
  assert mask_table.make((), 1).class_of(255) == 255


def test_transparent_pixels():
  """What is written for their class is in no other entry."""
  entries = (('transparent', 0), (0, 1), (1, 2))
  assert mask_table.make(entries, 3).written == {0: 2, 1: 0, 2: 1}
  entries = (('transparent', 2), (_RED, 1), ((0, 0, 0), 0))
  table = mask_table.make(entries, 3)
  assert table.written[2] == (255, 255, 255)
  assert [table.class_of(v) for v in (-1, (-1, -1, -1), _RED)] == [2, 2, 1]
  entries = (('transparent', 0), ('others', 1))
  table = mask_table.make(entries, 2)
  # Black that is opaque was drawn.
  assert [table.class_of(v) for v in (-1, 0, 9)] == [0, 1, 1]


def test_nearest():
  table = mask_table.make(
    ((0, 0), (4, 1), (255, 255), ('others', 'nearest')), 2
  )
  values = (0, 1, 2, 3, 4, 100, 200, 255)
  assert [table.class_of(v) for v in values] == [0, 0, 0, 1, 1, 1, 255, 255]
  assert set(table.written) == {0, 1, 255}
  # What is transparent is near to nothing.
  entries = (('transparent', 0), (200, 1), (255, 2), ('others', 'nearest'))
  table = mask_table.make(entries, 3)
  assert [table.class_of(v) for v in (-1, 0, 210)] == [0, 1, 1]


def test_entries_are_typed_as_they_are_printed():
  assert mask_table.text_of(((0, 0), (_RED, 1))) == "'((0,0),((255,0,0),1))'"
  text = mask_table.text_of(((0, 0), ('others', 1)))
  assert text == '"((0,0),(\'others\',1))"'


def test_contradictions():
  """In any order, and only where two entries differ in their class."""
  entries = ((0, 0), (_RED, 1), (9, 2), ('others', 2), ('transparent', 2))
  for second, is_one in {
    (0, 1): True,
    (0, 0): False,
    ((9, 9, 9), 0): True,
    ((9, 9, 9), 2): False,
    ('others', 0): True,
    (8, 0): False,
    # Transparent pixels are read as this one.
    (-1, 0): True,
  }.items():
    for order in itertools.permutations((*entries, second)):
      assert bool(mask_table.contradiction(order)) == is_one
