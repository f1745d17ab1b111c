"""Tables as aligned text."""

from collections.abc import Sequence


def aligned(
  rows: Sequence[Sequence[str]], left: int = 1, width: int = 0
) -> list[str]:
  """Returns a line for each row, with two spaces between columns.

  Args:
    rows: cells, as many in each.
    left: so many columns are aligned to the left, the others to the right.
    width: at least so wide are the columns on the right.
  """
  widths = [max(map(len, column)) for column in zip(*rows)]
  widths[left:] = [max(w, width) for w in widths[left:]]
  lines = []
  for row in rows:
    cells = [cell.ljust(w) for cell, w in zip(row[:left], widths)]
    cells += [cell.rjust(w) for cell, w in zip(row[left:], widths[left:])]
    lines.append('  '.join(cells).rstrip())
  return lines
