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
  """Which factor has the colours.

  Attributes:
    results: the sweep.
    factor: its place among the sweep's factors; None where there is none, or
      none of few enough values.
    values: of the factor.
  """

  results: Results
  factor: int | None
  values: list[str]

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

  def of(self, variant: int) -> str | None:
    """Returns the factor's value of a variant."""
    if self.factor is None:
      return None
    return self.results.variants[variant][self.factor]

  def rest(self, variant: int) -> tuple[str, ...]:
    """Returns the values of the other factors."""
    values = self.results.variants[variant]
    return tuple(v for i, v in enumerate(values) if i != self.factor)

  def rest_names(self) -> list[str]:
    names = [self.results.short[f] for f in self.results.factors]
    return [n for i, n in enumerate(names) if i != self.factor]

  def legend(self) -> dict[str, Any]:
    """Returns arguments of a legend that names the colours.

    They are those of `Axes.legend` and `Figure.legend`.
    """
    handles = [
      Line2D([], [], color=tuple(self.color(v)), marker='o', lw=1.5)
      for v in self.values
    ]
    title = '' if self.factor is None else self.results.factors[self.factor]
    return {
      'handles': handles,
      'labels': self.values,
      'title': self.results.short.get(title, ''),
      'frameon': False,
    }

  def name_colors(
    self, figure: Figure, place: str = 'outside right upper'
  ) -> None:
    """Adds a legend beside the axes, where it hides nothing."""
    if self.factor is not None:
      columns = len(self.values) if 'center' in place else 1
      font = {'fontsize': 9, 'title_fontsize': 9}
      figure.legend(**{**self.legend(), **font, 'loc': place, 'ncols': columns})


def of_factor(results: Results, factor: int | None = None) -> Style:
  """Colours a factor, by default the first that is not numeric."""
  levels = list(contrasts.levels(results.factors, results.variants).values())
  fitting = [i for i, v in enumerate(levels) if len(v) <= len(_ORDER)]
  if factor is None:
    words = [i for i in fitting if not all(map(contrasts.is_number, levels[i]))]
    factor = next(iter((*words, *fitting)), None)
  if factor not in fitting:
    return Style(results, None, [])
  return Style(results, factor, levels[factor])


def ink(color: np.ndarray) -> str:
  """Black or white, whichever is legible on a colour (ITU-R BT.601 luma)."""
  return 'white' if color @ (0.299, 0.587, 0.114) < 0.6 else 'black'
