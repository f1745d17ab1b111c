"""Which variant of a sweep is drawn in which colour."""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.sweep.report import contrasts
from experiments.sweep.report.results import Results
from unet_jax.reports import colors

# Those of Okabe and Ito that are visible on white, the most different first.
_ORDER = (5, 6, 3, 1, 7, 2, 0)


@dataclasses.dataclass(frozen=True)
class Style:
  """Which factor has the colours, and what is left to write.

  Attributes:
    name: of the factor; '' where there is none, or none of few enough values.
    values: of the factor.
    of: its value of each variant, None without a factor.
    rest_names: the other factors.
    rest: their values of each variant.
  """

  name: str
  values: list[str]
  of: list[str | None]
  rest_names: list[str]
  rest: list[tuple[str, ...]]

  def color(self, value: str | None) -> np.ndarray:
    """Returns RGB in 0..1 of a value of the factor, None without one.

    Colours of numbers are in their order.
    """
    place = 0 if value is None else self.values.index(value)
    if len(self.values) > 1 and all(map(contrasts.is_number, self.values)):
      # The end of the scale is too pale for lines on white.
      share = np.array(0.9 * place / (len(self.values) - 1))
      return colors.color_scale(share) / 255
    return colors.class_colors(8)[_ORDER[place]] / 255

  def legend(self, font: int) -> dict[str, Any]:
    """Returns arguments of a legend, `Axes.legend` or `Figure.legend`."""
    handles = [
      Line2D([], [], color=tuple(self.color(v)), marker='o', lw=1.5)
      for v in self.values
    ]
    return {
      'handles': handles,
      'labels': self.values,
      'title': self.name,
      'frameon': False,
      'fontsize': font,
      'title_fontsize': font,
    }

  def name_colors(
    self, figure: Figure, place: str = 'outside right upper'
  ) -> None:
    """Adds a legend beside the axes, where it hides nothing."""
    if self.name:
      columns = len(self.values) if 'center' in place else 1
      figure.legend(**{**self.legend(9), 'loc': place, 'ncols': columns})


def of_factor(results: Results, factor: int | None = None) -> Style:
  """Colours a factor, by default the first that is not numeric."""
  levels = list(contrasts.levels(results.factors, results.variants).values())
  names = [results.short[f] for f in results.factors]
  fitting = [i for i, v in enumerate(levels) if len(v) <= len(_ORDER)]
  if factor is None:
    words = [i for i in fitting if not all(map(contrasts.is_number, levels[i]))]
    factor = next(iter((*words, *fitting)), None)
  if factor is None or factor not in fitting:
    nothing: list[str | None] = [None] * len(results.variants)
    return Style('', [], nothing, names, results.variants)
  others = [i for i in range(len(names)) if i != factor]
  return Style(
    names[factor],
    levels[factor],
    [variant[factor] for variant in results.variants],
    [names[i] for i in others],
    [tuple(variant[i] for i in others) for variant in results.variants],
  )


def ink(color: np.ndarray) -> str:
  """Black or white, whichever is legible on a colour (ITU-R BT.601 luma)."""
  return 'white' if color @ (0.299, 0.587, 0.114) < 0.6 else 'black'
