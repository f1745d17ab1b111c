"""Plots of a sweep, as PNG (matplotlib).

Colours are those of one factor of the sweep (plot_styles.py); what else a
variant has is written beside it, inside its mark or above its panel.
"""

import os
from collections.abc import Callable, Sequence

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from experiments import contrasts, plot_styles
from experiments import results as results_lib
from unet_jax import metrics

# Inches of a plot.
_WIDE, _HIGH = 6.6, 3.8
# Bins of as many images each, of the sizes of objects.
_BINS = 8


def draw_all(
  results: results_lib.Results, scores: np.ndarray, what: str, directory: str
) -> dict[str, str]:
  """Draws what there are figures for.

  Args:
    results: the sweep.
    scores: the quality of the variants, [V].
    what: it is called.
    directory: of the PNGs.

  Returns:
    {name of the file: caption}, in the order of a report.
  """
  drawn = {}
  os.makedirs(directory, exist_ok=True)
  for name, (draw, caption) in {
    'quality_by_variant.png': (_draw_quality, _QUALITY),
    **{
      f'quality_against_{cost}.png': (_against(column, label, better), _PARETO)
      for cost, column, label, better in _COSTS
    },
    'learning_curves.png': (_draw_curves, _CURVES),
    'error_against_size.png': (_draw_sizes, _SIZES),
    'boundary_error.png': (_draw_boundary, _BOUNDARY),
  }.items():
    # A value is no formula, though it may hold dollars.
    with plt.rc_context({'text.parse_math': False}):
      figure = draw(results, scores, what)
      if figure is not None:
        figure.savefig(os.path.join(directory, name), dpi=120)
        plt.close(figure)
        drawn[name] = caption
  return drawn


_QUALITY = 'Quality of each variant: mean and standard deviation over seeds.'
_PARETO = (
  'Quality against cost, mean over seeds, with the standard deviation as a '
  'bar. On the grey line lie the variants that no other beats in both.'
)
_CURVES = (
  'Evaluations during training: mean over seeds, and their standard deviation '
  'as a band.'
)
_SIZES = (
  'Error against the size of the object in the mask, as a share of the image: '
  'means over bins of as many images each.'
)
_BOUNDARY = (
  'Error near borders, 1 - boundary IoU: mean and standard deviation over '
  'seeds.'
)
# Plots that may be left out, and what they need.
NEEDS = {
  'quality_against_parameters.png': 'parameters in results.csv',
  'quality_against_flops.png': 'inference_flops in results.csv',
  'quality_against_images_per_second.png': (
    'inference_images_per_second in results.csv'
  ),
  'learning_curves.png': 'two evaluations of a training, in metrics.jsonl',
  'error_against_size.png': (
    f'pixels/NAME in eval.csv, and {2 * _BINS} images with a foreground'
  ),
  'boundary_error.png': 'eval/dataset_boundary_miou in results.csv',
}
# Name, column, label, and whether more of it is better.
_COSTS = (
  ('parameters', 'parameters', 'parameters', False),
  ('flops', 'inference_flops', 'FLOP of inference', False),
  (
    'images_per_second',
    'inference_images_per_second',
    'images/s of inference',
    True,
  ),
)


def means_and_deviations(
  of_variants: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns each variant's mean over seeds, and standard deviation, [V].

  NaN where there is no figure, or one alone for a deviation.
  """
  found = [values[np.isfinite(values)] for values in of_variants]
  return (
    np.array([v.mean() if len(v) else np.nan for v in found]),
    np.array([v.std(ddof=1) if len(v) > 1 else np.nan for v in found]),
  )


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


def _scale_costs(axis, cost: np.ndarray) -> None:
  """A logarithmic axis where figures span a decade; ticks such as 20M."""
  found = cost[np.isfinite(cost)]
  if found.min() > 0 and found.max() >= 10 * found.min():
    axis.set_xscale('log')
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(ticker.NullLocator())
  axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))


def _against(column: str, label: str, more_is_better: bool) -> Callable:
  def draw(results, scores, what):
    cost, _ = means_and_deviations(results.figures(column))
    if not np.isfinite(cost).any():
      return None
    return _draw_pareto(results, scores, what, cost, label, more_is_better)

  return draw


def _draw_pareto(results, scores, what, cost, label, more_is_better):
  style = plot_styles.of_factor(results)
  figure, axis = plt.subplots(figsize=(_WIDE, _HIGH), layout='constrained')
  front = pareto_front(-cost if more_is_better else cost, scores)
  axis.plot(cost[front], scores[front], color='0.6', lw=3, zorder=1)
  _, spread = means_and_deviations(_qualities(results))
  for i, (x, y) in enumerate(zip(cost, scores)):
    color = style.color(style.of(i))
    axis.errorbar(x, y, np.nan_to_num(spread[i]), color=color, lw=1, zorder=2)
    axis.scatter(x, y, 130, color=color, edgecolor='white', zorder=3)
    text = ' '.join(style.rest(i))
    # What is short stands inside of the mark.
    inside = len(text) <= 2
    axis.annotate(
      text,
      (x, y),
      (0, 0) if inside else (8, 4),
      textcoords='offset points',
      ha='center' if inside else 'left',
      va='center_baseline' if inside else 'bottom',
      color=plot_styles.ink(color) if inside else '0.2',
      fontsize=8,
      fontweight='bold' if inside else None,
      zorder=4,
    )
  _scale_costs(axis, cost)
  axis.set_xlabel(f'{label} ({"more" if more_is_better else "less"} is better)')
  axis.set_ylabel(what)
  axis.grid(alpha=0.3)
  if style.rest_names() and style.factor is not None:
    axis.set_title(f'in the mark: {", ".join(style.rest_names())}', fontsize=9)
  plot_styles.name_colors(figure, style)
  return figure


def _qualities(results) -> list[np.ndarray]:
  return [
    np.array([metrics.nanmean(p.columns['miou']) for p in points])
    for points in results.points
  ]


def _draw_quality(results, scores, what):
  del scores  # Of each seed, here.
  return _draw_by_variant(results, _qualities(results), what)


def _draw_boundary(results, scores, what):
  del scores, what
  for reduction in ('dataset', 'image'):
    figures = results.figures(f'eval/{reduction}_boundary_miou')
    if np.isfinite(np.concatenate(figures)).any():
      error = [1 - values for values in figures]
      label = f'1 - mean boundary IoU, {reduction}'
      return _draw_by_variant(results, error, label)
  return None


def _draw_by_variant(results, of_variants, label: str):
  """Lines over a factor of numbers, or a row for each variant."""
  style = plot_styles.of_factor(results)
  mean, spread = means_and_deviations(of_variants)
  rest = [style.rest(i) for i in range(len(mean))]
  if not (
    style.factor is not None
    and len(results.factors) == 2
    and all(contrasts.is_number(r[0]) for r in rest)
  ):
    return _draw_rows(results, style, mean, spread, label)
  figure, axis = plt.subplots(figsize=(_WIDE, _HIGH), layout='constrained')
  ticks = sorted({float(r[0]) for r in rest})
  for k, value in enumerate(style.values):
    chosen = [i for i in range(len(mean)) if style.of(i) == value]
    # Beside one another, so that bars do not hide one another.
    shift = 0.07 * (k - (len(style.values) - 1) / 2)
    places = [ticks.index(float(rest[i][0])) + shift for i in chosen]
    axis.errorbar(
      places,
      mean[chosen],
      np.nan_to_num(spread[chosen]),
      color=style.color(value),
      marker='o',
      ms=5,
      lw=1.2,
      capsize=2,
    )
  axis.set_xticks(range(len(ticks)), [f'{t:g}' for t in ticks])
  axis.set_xlabel(style.rest_names()[0])
  axis.set_ylabel(label)
  axis.grid(alpha=0.3)
  plot_styles.name_colors(figure, style)
  return figure


def _draw_rows(results, style, mean, spread, label):
  names = [' '.join(v) or 'all' for v in results.variants]
  high = 0.28 * len(names) + 1
  figure, axis = plt.subplots(figsize=(_WIDE, high), layout='constrained')
  for i, (value, error) in enumerate(zip(mean, spread)):
    color = style.color(style.of(i))
    axis.errorbar(
      value, i, xerr=np.nan_to_num(error), color=color, marker='o', capsize=2
    )
  axis.set_yticks(range(len(names)), names, fontsize=9)
  # Whole marks at both ends.
  axis.set_ylim(len(names) - 0.5, -0.5)
  axis.set_xlabel(label)
  axis.grid(alpha=0.3)
  return figure


def _draw_curves(results, scores, what):
  """A panel for each combination of the factors without colour."""
  del scores, what
  style, name = plot_styles.of_factor(results), 'eval/dataset_miou'
  curves = [_curve(points, name) for points in results.points]
  if all(steps.size < 2 for steps, _, _ in curves):
    return None
  rest = [style.rest(i) for i in range(len(curves))]
  panels = list(dict.fromkeys(rest))
  columns = min(len(panels), 3)
  rows = -(-len(panels) // columns)
  figure, axes = plt.subplots(
    rows,
    columns,
    figsize=(max(3 * columns, _WIDE), 2.5 * rows + 0.5),
    sharex=True,
    sharey=True,
    squeeze=False,
    layout='constrained',
  )
  for i, (steps, mean, spread) in enumerate(curves):
    axis, color = axes.flat[panels.index(rest[i])], style.color(style.of(i))
    axis.plot(steps, mean, color=color, lw=1.3)
    axis.fill_between(
      steps, mean - spread, mean + spread, color=color, alpha=0.18, lw=0
    )
  for axis, panel in zip(axes.flat, panels):
    named = zip(style.rest_names(), panel)
    title = ', '.join(f'{n} {v}' for n, v in named)
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)
  for axis in axes.flat[len(panels) :]:
    axis.set_visible(False)
  for j, axis in enumerate(axes.flat[: len(panels)]):
    if j + columns >= len(panels):
      axis.tick_params(labelbottom=True)
  figure.supxlabel('step', fontsize=10)
  figure.supylabel('dataset mean IoU', fontsize=10)
  plot_styles.name_colors(figure, style, 'outside upper center')
  return figure


def _curve(points, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns steps, and mean and standard deviation over seeds at each."""
  of_steps = {}
  for point in points:
    # Of a step that was done twice, after a restart, the last counts.
    of_point = {
      line['step']: line[name]
      for line in point.curve
      if line.get(name) is not None
    }
    for step, value in of_point.items():
      of_steps.setdefault(step, []).append(value)
  steps = sorted(of_steps)
  values = [np.array(of_steps[step]) for step in steps]
  mean, spread = means_and_deviations(values)
  return np.array(steps), mean, np.nan_to_num(spread)


def _draw_sizes(results, scores, what):
  """A panel for each factor of few values, averaged over the others."""
  del scores
  sizes = object_sizes(results)
  there = np.flatnonzero(np.isfinite(sizes))
  if len(there) < 2 * _BINS:
    return None
  error = 1 - results.stack(['miou'])[..., 0]
  variant = np.array(results.variant_indices())
  styles = [
    plot_styles.of_factor(results, i) for i in range(len(results.factors))
  ]
  styles = [s for s in styles if s.factor is not None] or [
    plot_styles.of_factor(results)
  ]
  figure, axes = plt.subplots(
    1,
    len(styles),
    figsize=(max(4.2 * len(styles), _WIDE), 3.6),
    sharey=True,
    squeeze=False,
    layout='constrained',
  )
  bins = np.array_split(there[np.argsort(sizes[there])], _BINS)
  places = [100 * np.median(sizes[b]) for b in bins]
  for axis, style in zip(axes[0], styles):
    for value in style.values or [None]:
      chosen = [i for i in np.unique(variant) if style.of(i) == value]
      of_value = error[np.isin(variant, chosen)]
      means = [metrics.nanmean(of_value[:, b]) for b in bins]
      axis.plot(places, means, color=style.color(value), marker='o', ms=4)
    axis.set_xscale('log')
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda x, _: f'{x:g}')
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axis.set_xlabel('object, % of the image (log scale)')
    axis.grid(alpha=0.3)
    if style.factor is not None:
      axis.legend(**plot_styles.legend(style), fontsize=8, title_fontsize=8)
  axes[0, 0].set_ylabel(f'1 - {what}')
  return figure


def object_sizes(results: results_lib.Results) -> np.ndarray:
  """Returns the share of each image that is foreground, [N].

  Foreground are the classes that the evaluation also scored as one (`iou/a+b`),
  else all but the one called background, else all but the first. NaN of an
  image without a foreground, and of all if pixels were not counted.
  """
  names = results.class_names()
  if not names:
    return np.full(len(results.images), np.nan)
  columns = results.points[0][0].columns
  merged = next(
    (
      c.removeprefix('iou/')
      for c in columns
      if c.startswith('iou/') and c.removeprefix('iou/') not in names
    ),
    None,
  )
  background = 'background' if 'background' in names else names[0]
  foreground = (
    merged.split('+') if merged else [n for n in names if n != background]
  )
  pixels = results.stack([f'pixels/{n}' for n in names])[0]
  chosen = [i for i, n in enumerate(names) if n in foreground]
  inside = pixels[:, chosen].sum(1)
  return np.where(inside > 0, metrics.ratio(inside, pixels.sum(1)), np.nan)
