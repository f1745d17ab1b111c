"""The table of docs/formats.md against what readers return today."""

import functools

import numpy as np

from experiments.formats import files, table


@functools.cache
def _rows():
  return table.rows()


def _committed():
  text = table.PAGE.read_text()
  lines = text.partition(table.MARKS[0])[2].partition(table.MARKS[1])[0]
  rows = [line.strip('| ').split(' | ') for line in lines.strip().splitlines()]
  return [[cell.strip(' |') for cell in row] for row in rows[:1] + rows[2:]]


def test_the_table_is_up_to_date():
  """Ours; other readers' cells change with their versions."""
  committed, now = _committed(), _rows()
  assert len(now) > 60
  assert [row[: table.OURS] for row in committed] == [
    row[: table.OURS] for row in now
  ]
  if committed[0] == now[0]:
    others = [[*row, ''][: len(now[0])] for row in committed]
    assert others == now


def test_ours_differs_nowhere():
  assert not [row for row in _rows() if 'OTHER' in row[3] or ':' in row[3][:9]]


def _difference(found, array, pages=1, shown=None):
  file = files.File('', '', '', b'', np.asarray(array), pages, shown)
  return table._difference(np.asarray(found), file)


def test_differences():
  a = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
  few = (a // 5000 % 4).astype(np.uint8)
  rgb = np.stack([a, a + 1, a + 2], -1)
  for found, array, expected in (
    (a, a, '='),
    (a > 9, (a > 9).astype(np.uint8), '='),
    (a >> 8, a, 'high byte alone'),
    (rgb[..., ::-1], rgb, 'channels in reverse'),
    (few * 85, few, 'times 85'),
    (1 - few % 2, few % 2, 'inverted'),
    (a.T, a, 'turned'),
    (rgb, rgb[..., :2], '=, with alpha'),
    (a, rgb, '1 of 3 channels'),
    (np.moveaxis(rgb, -1, 0), rgb, '[C, H, W]'),
    (a + 7, a, 'other values, uint16'),
    (a[:2], a, 'shape (2, 4)'),
  ):
    assert _difference(found, array) == expected
  assert _difference(a, a, 3) == 'first of 3'
  assert _difference(np.stack([a, a, a]), a, 3) == 'all of 3'
  assert _difference(few * 85, few, 1, few * 85) == 'as shown'
