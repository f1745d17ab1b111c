"""Aligned text."""

from unet_jax.reports import text_table


def test_columns_are_aligned():
  rows = [('', 'iou', 'n'), ('background', '0.25', '1'), ('cell', '1', '')]
  assert text_table.aligned(rows, left=2, width=3) == [
    '            iou     n',
    'background  0.25    1',
    'cell        1',
  ]
  assert text_table.aligned(rows, width=3) == [
    '             iou    n',
    'background  0.25    1',
    'cell           1',
  ]
