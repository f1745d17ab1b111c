"""Plots of a sweep, as PNG (matplotlib).

Colours are those of one factor of the sweep (styles.py); the other values of a
variant are written beside it, inside its mark or above its panel.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.sweep.report import contrasts, styles
from experiments.sweep.report.results import (
  means_and_deviations,
  Point,
  Results,
)
from unet_jax.evaluation import confusion

# Inches of a plot.
_WIDE, _HIGH = 6.6, 3.8
_STYLE: Any = {
  # A value is no formula, though it may hold dollars.
  'text.parse_math': False,
  'axes.grid': True,
  'grid.alpha': 0.3,
  'axes.titlesize': 9,
}
# Bins of the sizes of objects, with as many images each.
_BINS = 8


class Plot(NamedTuple):
  """A file of figures/, skipped without the metrics in `needs`.

  `draw` then returns None. It takes the sweep, the quality of the variants [V],
  and its name.
  """

  draw: Callable[[Results, np.ndarray, str], Figure | None]
  caption: str
  needs: str = ''


def draw_all(
  results: Results, scores: np.ndarray, what: str, directory: pathlib.Path
) -> dict[str, str]:
  """Draws the plots that there are metrics for, see `Plot`, into a directory.

  Returns:
    {name of the file: caption}, in the order of a report.
  """
  directory.mkdir(parents=True, exist_ok=True)
  drawn = {}
  with plt.rc_context(_STYLE):
    for name, plot in _PLOTS.items():
      figure = plot.draw(results, scores, what)
      if figure is not None:
        figure.savefig(directory / name, dpi=120)
        plt.close(figure)
        drawn[name] = plot.caption
  return drawn


def pareto_front(cost: np.ndarray, quality: np.ndarray) -> list[int]:
  """Returns the variants that no other beats, by rising cost.

  Another beats one if it is better in one of the two, and not worse in the
  other. NaN is beaten by all.
  """
  front, best = [], -np.inf
  for i in np.lexsort((-quality, cost)):
    if np.isfinite(cost[i]) and quality[i] > best:
      front.append(int(i))
      best = quality[i]
  return front


def _panels(
  rows: int = 1,
  columns: int = 1,
  wide: float = _WIDE,
  high: float = _HIGH,
  **shared: Any,
) -> tuple[Figure, np.ndarray]:
  """Returns a figure and its axes, [rows, columns]; sides are in inches."""
  return plt.subplots(
    rows,
    columns,
    figsize=(max(wide, _WIDE), high),
    squeeze=False,
    layout='constrained',
    **shared,
  )


def _qualities(results: Results) -> list[np.ndarray]:
  return [
    np.array([confusion.nanmean(p.columns['miou']) for p in points])
    for points in results.points
  ]


def _mean_and_bar(
  of_variants: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns means over seeds, and their deviations, 0 where unknown."""
  mean, spread = means_and_deviations(of_variants)
  return mean, np.nan_to_num(spread)


def _draw_pareto(
  results: Results,
  scores: np.ndarray,
  what: str,
  column: str,
  label: str,
  more_is_better: bool = False,
) -> Figure | None:
  """Draws quality against a cost, a column of results.csv."""
  cost, _ = _mean_and_bar(results.metric(column))
  if not np.isfinite(cost).any():
    return None
  style = styles.of_factor(results)
  figure, ((axis,),) = _panels()
  front = pareto_front(-cost if more_is_better else cost, scores)
  axis.plot(cost[front], scores[front], color='0.6', lw=3, zorder=1)
  _, bars = _mean_and_bar(_qualities(results))
  for x, y, bar, value, rest in zip(cost, scores, bars, style.of, style.rest):
    color = style.color(value)
    axis.errorbar(x, y, bar, color=color, lw=1, zorder=2)
    axis.scatter(x, y, 130, color=color, edgecolor='white', zorder=3)
    _annotate(axis, ' '.join(rest), (x, y), color)
  _scale_costs(axis, cost)
  axis.set_xlabel(f'{label} ({"more" if more_is_better else "less"} is better)')
  axis.set_ylabel(what)
  if style.rest_names and style.name:
    axis.set_title(f'in the mark: {", ".join(style.rest_names)}')
  style.name_colors(figure)
  return figure


def _annotate(
  axis: Axes, text: str, place: tuple[float, float], color: np.ndarray
) -> None:
  """Writes a short text inside of the mark at a place, a long one beside it."""
  inside = len(text) <= 2
  axis.annotate(
    text,
    place,
    (0, 0) if inside else (8, 4),
    textcoords='offset points',
    ha='center' if inside else 'left',
    va='center_baseline' if inside else 'bottom',
    color=styles.ink(color) if inside else '0.2',
    fontsize=8,
    fontweight='bold' if inside else None,
    zorder=4,
  )


def _log_scale(axis: Axes) -> None:
  axis.set_xscale('log')
  axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))


def _scale_costs(axis: Axes, cost: np.ndarray) -> None:
  """Sets a logarithmic axis if costs span a decade; ticks such as 20M."""
  found = cost[np.isfinite(cost)]
  if found.min() > 0 and found.max() >= 10 * found.min():
    _log_scale(axis)
    axis.xaxis.set_minor_locator(ticker.NullLocator())
  axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))


def _draw_quality(results: Results, _: np.ndarray, what: str) -> Figure:
  return _draw_by_variant(results, _qualities(results), what)


def _draw_boundary(results: Results, *_: Any) -> Figure | None:
  for reduction in ('dataset', 'image'):
    error = [1 - x for x in results.metric(f'eval/{reduction}_boundary_miou')]
    if np.isfinite(np.concatenate(error)).any():
      label = f'1 - mean boundary IoU, {reduction}'
      return _draw_by_variant(results, error, label)
  return None


def _draw_by_variant(
  results: Results, of_variants: Sequence[np.ndarray], label: str
) -> Figure:
  """Draws lines over a numeric factor, or a row for each variant."""
  style = styles.of_factor(results)
  mean, bars = _mean_and_bar(of_variants)
  if not (
    style.name
    and len(results.factors) == 2
    and all(contrasts.is_number(r[0]) for r in style.rest)
  ):
    return _draw_rows(results, style, mean, bars, label)
  figure, ((axis,),) = _panels()
  ticks = sorted({float(r[0]) for r in style.rest})
  for k, value in enumerate(style.values):
    chosen = [i for i, v in enumerate(style.of) if v == value]
    # Beside one another, so that bars do not hide one another.
    shift = 0.07 * (k - (len(style.values) - 1) / 2)
    axis.errorbar(
      [ticks.index(float(style.rest[i][0])) + shift for i in chosen],
      mean[chosen],
      bars[chosen],
      color=style.color(value),
      marker='o',
      ms=5,
      lw=1.2,
      capsize=2,
    )
  axis.set_xticks(range(len(ticks)), [f'{t:g}' for t in ticks])
  axis.set_xlabel(style.rest_names[0])
  axis.set_ylabel(label)
  style.name_colors(figure)
  return figure


def _draw_rows(
  results: Results,
  style: styles.Style,
  mean: np.ndarray,
  bars: np.ndarray,
  label: str,
) -> Figure:
  names = [' '.join(v) or 'all' for v in results.variants]
  figure, ((axis,),) = _panels(high=0.28 * len(names) + 1)
  for i, value in enumerate(style.of):
    color = style.color(value)
    axis.errorbar(mean[i], i, xerr=bars[i], color=color, marker='o', capsize=2)
  axis.set_yticks(range(len(names)), names, fontsize=9)
  # Whole marks at both ends.
  axis.set_ylim(len(names) - 0.5, -0.5)
  axis.set_xlabel(label)
  return figure


def _draw_curves(results: Results, *_: Any) -> Figure | None:
  """Draws a panel for each combination of the factors without colour."""
  style = styles.of_factor(results)
  curves = [_curve(points, 'eval/dataset_miou') for points in results.points]
  if all(steps.size < 2 for steps, _, _ in curves):
    return None
  panels = list(dict.fromkeys(style.rest))
  columns = min(len(panels), 3)
  rows = -(-len(panels) // columns)
  figure, axes = _panels(
    rows, columns, 3 * columns, 2.5 * rows + 0.5, sharex=True, sharey=True
  )
  for rest, value, (steps, mean, bars) in zip(style.rest, style.of, curves):
    axis, color = axes.flat[panels.index(rest)], style.color(value)
    axis.plot(steps, mean, color=color, lw=1.3)
    axis.fill_between(
      steps, mean - bars, mean + bars, color=color, alpha=0.18, lw=0
    )
  for axis in axes.flat[len(panels) :]:
    axis.set_visible(False)
  for j, (axis, panel) in enumerate(zip(axes.flat, panels)):
    named = zip(style.rest_names, panel)
    axis.set_title(', '.join(f'{name} {value}' for name, value in named))
    if j + columns >= len(panels):
      axis.tick_params(labelbottom=True)
  figure.supxlabel('step', fontsize=10)
  figure.supylabel('dataset mean IoU', fontsize=10)
  style.name_colors(figure, 'outside upper center')
  return figure


def _curve(
  points: Sequence[Point], name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns steps, and mean and standard deviation over seeds at each."""
  at_step: dict[int, list[float]] = {}
  for point in points:
    # Of a step that was done twice, after a restart, the last counts.
    of_point = {
      line['step']: line[name]
      for line in point.curve
      if line.get(name) is not None
    }
    for step, value in of_point.items():
      at_step.setdefault(step, []).append(value)
  steps = sorted(at_step)
  return np.array(steps), *_mean_and_bar([np.array(at_step[s]) for s in steps])


def _draw_sizes(
  results: Results, scores: np.ndarray, what: str
) -> Figure | None:
  """Draws a panel for each factor of few values, averaged over the others."""
  del scores
  sizes = results.object_sizes()
  known = np.flatnonzero(np.isfinite(sizes))
  if len(known) < 2 * _BINS:
    return None
  error = 1 - results.stack(['miou'])[..., 0]
  variant = np.array(results.variant_indices())
  of_factors = [
    styles.of_factor(results, i) for i in range(len(results.factors))
  ]
  colored = [s for s in of_factors if s.name] or [styles.of_factor(results)]
  figure, axes = _panels(1, len(colored), 4.2 * len(colored), 3.6, sharey=True)
  bins = np.array_split(known[np.argsort(sizes[known])], _BINS)
  places = [100 * np.median(sizes[b]) for b in bins]
  for axis, style in zip(axes[0], colored):
    for value in dict.fromkeys((*style.values, *style.of)):
      chosen = [i for i, v in enumerate(style.of) if v == value]
      of_value = error[np.isin(variant, chosen)]
      means = [confusion.nanmean(of_value[:, b]) for b in bins]
      axis.plot(places, means, color=style.color(value), marker='o', ms=4)
    _log_scale(axis)
    axis.xaxis.set_major_formatter(lambda x, _: f'{x:g}')
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axis.set_xlabel('object, % of the image (log scale)')
    if style.name:
      axis.legend(**style.legend(8))
  axes[0, 0].set_ylabel(f'1 - {what}')
  return figure


def _against(column: str, label: str, **kwargs) -> Plot:
  return Plot(
    functools.partial(_draw_pareto, column=column, label=label, **kwargs),
    'Quality against cost, mean over seeds, with the standard deviation as a '
    'bar. On the grey line lie the variants that no other beats in both.',
    f'{column} in results.csv',
  )


_PLOTS = {
  'quality_by_variant.png': Plot(
    _draw_quality,
    'Quality of each variant: mean and standard deviation over seeds.',
  ),
  'quality_against_parameters.png': _against('parameters', 'parameters'),
  'quality_against_flops.png': _against('inference_flops', 'FLOP of inference'),
  'quality_against_images_per_second.png': _against(
    'inference_images_per_second', 'images/s of inference', more_is_better=True
  ),
  'learning_curves.png': Plot(
    _draw_curves,
    'Evaluations during training: mean over seeds, and their standard '
    'deviation as a band.',
    'two evaluations of a training, in metrics.jsonl',
  ),
  'error_against_size.png': Plot(
    _draw_sizes,
    'Error against the size of the object in the mask, as a share of the '
    'image: means over bins of as many images each.',
    f'pixels/NAME in eval.csv, and {2 * _BINS} images with a foreground',
  ),
  'boundary_error.png': Plot(
    _draw_boundary,
    'Error near borders, 1 - boundary IoU: mean and standard deviation over '
    'seeds.',
    'eval/dataset_boundary_miou in results.csv',
  ),
}
# Plots that may be skipped, and what they need.
NEEDS = {name: plot.needs for name, plot in _PLOTS.items() if plot.needs}
