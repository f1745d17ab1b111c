"""Large images in parts, so that temporary arrays stay small."""

from collections.abc import Iterator

# Pixels of a part: a few megabytes of float32 for some tens of classes, which
# is also what a processor's cache takes.
_PIXELS = 2**16


def row_bands(shape: tuple[int, ...]) -> Iterator[slice]:
  """Yields slices of rows that together cover an array [H, W, ...] once."""
  height, width = shape[:2]
  rows = max(_PIXELS // width, 1)
  for start in range(0, height, rows):
    yield slice(start, min(start + rows, height))
