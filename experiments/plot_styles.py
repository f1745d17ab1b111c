"""Which variant of a sweep is drawn in which colour."""

import dataclasses

import numpy as np
from matplotlib.lines import Line2D

from experiments import contrasts
from experiments import results as results_lib
from unet_jax import colors

# Of Okabe and Ito's those that are seen on white, the most different first.
_ORDER = (5, 6, 3, 1, 7, 2, 0)


@dataclasses.dataclass(frozen=True)
class Style:
  """Which factor has the colours.

  Attributes:
    results: the sweep.
    factor: its place among the sweep's factors; None where there is none, or
      none of few enough values.
    values: of it.
  """

  results: results_lib.Results
  factor: int | None
  values: list[str]

  def color(self, value: str | None) -> np.ndarray:
    """Returns RGB in 0..1 of a value of the factor, None without one.

    Numbers have an order, and so have their colours.
    """
    place = 0 if value is None else self.values.index(value)
    if len(self.values) > 1 and all(map(contrasts.is_number, self.values)):
      # The end of the scale is too pale for lines on white.
      return colors.color_scale(0.9 * place / (len(self.values) - 1)) / 255
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

  def name(self) -> str:
    return self.results.short[self.results.factors[self.factor]]


def of_factor(results: results_lib.Results, factor: int | None = None) -> Style:
  """Colours a factor: the first that is no number, if none is named."""
  levels = list(contrasts.levels(results.factors, results.variants).values())
  fitting = [i for i, v in enumerate(levels) if len(v) <= len(_ORDER)]
  if factor is None:
    words = [i for i in fitting if not all(map(contrasts.is_number, levels[i]))]
    factor = next(iter((*words, *fitting)), None)
  if factor not in fitting:
    return Style(results, None, [])
  return Style(results, factor, levels[factor])


def legend(style: Style) -> dict:
  """Returns what `Axes.legend` and `Figure.legend` take to name the colours."""
  handles = [
    Line2D([], [], color=style.color(v), marker='o', lw=1.5)
    for v in style.values
  ]
  return {
    'handles': handles,
    'labels': style.values,
    'title': style.name(),
    'frameon': False,
  }


def name_colors(figure, style: Style, place='outside right upper') -> None:
  """Adds a legend beside the axes, where it hides nothing."""
  if style.factor is not None:
    columns = len(style.values) if 'center' in place else 1
    figure.legend(
      **legend(style), loc=place, ncols=columns, fontsize=9, title_fontsize=9
    )


def ink(color: np.ndarray) -> str:
  """Black or white, whichever is read on a colour (ITU-R BT.601 luma)."""
  return 'white' if color @ (0.299, 0.587, 0.114) < 0.6 else 'black'
