"""Charts of HTML pages that templates/parts.html draws as inline SVG."""

import dataclasses
import itertools

import numpy as np

from unet_jax.reports import html

_BARS = 24


@dataclasses.dataclass(frozen=True)
class Histogram:
  """Bars of how many images have which value.

  Attributes:
    title: names the values.
    unit: with a space before it; empty for a share.
    low, high: ends of the axis in print.
    bars: (images, label) of each.
    highest: images of the highest bar.
  """

  title: str
  unit: str
  low: str
  high: str
  bars: list[tuple[float, str]]
  highest: int


def histogram(
  title: str,
  values: np.ndarray,
  counts: np.ndarray | None = None,
  unit: str = ' px',
  limits: tuple[float, float] | None = None,
  digits: int = 0,
) -> Histogram:
  """Counts the images of each range of values.

  Args:
    title: names the values.
    values: [N], in `unit`.
    counts: images with each value, [N]; one by default.
    unit: with a space before it; empty for a share.
    limits: of the axis; those of the values by default.
    digits: printed decimals.
  """
  heights, edges = np.histogram(values, _BARS, limits, weights=counts)
  printed = [f'{edge:.{digits}f}' for edge in edges]
  bars = [
    (float(n), f'{low} to {high}{unit}: {html.plural(int(n), "image")}')
    for n, (low, high) in zip(heights, itertools.pairwise(printed))
  ]
  highest = int(heights.max())
  return Histogram(title, unit, printed[0], printed[-1], bars, highest)
