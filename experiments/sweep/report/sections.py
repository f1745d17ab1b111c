"""The content of a sweep's report, for REPORT.md and report.html alike."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.sweep.report import conclusions, plots, setting
from experiments.sweep.report.conclusions import Analysis
from experiments.sweep.report.results import (
  FEW_CLASSES,
  means_and_deviations,
  Results,
)
from unet_jax.reports import html

_NOTHING = '–'
# Measures in the table of variants, besides the dataset IoU of each class.
_MEASURES = [
  f'{reduction}_{name}'
  for name in ('miou', 'boundary_miou')
  for reduction in ('image', 'dataset')
]
# Column of results.csv, title, unit, and format ('': three digits).
_Column = tuple[str, str, float, str]
_COSTS: tuple[_Column, ...] = (
  ('parameters', 'parameters', 1, ',.0f'),
  ('train_flops', 'GFLOP of a train step', 1e9, ''),
  ('inference_flops', 'GFLOP of inference, an image', 1e9, ''),
  ('train_bytes', 'memory of a train step, MiB', 2**20, ',.0f'),
  ('inference_bytes', 'memory of inference, MiB', 2**20, ',.0f'),
  ('compile_seconds', 'compiling, s', 1, '.1f'),
  ('train_images_per_second', 'images/s, training', 1, ''),
  ('inference_images_per_second', 'images/s, inference', 1, ''),
  ('receptive_field', 'receptive field, px', 1, '.0f'),
)
_HOW = (
  'Images are drawn again with replacement, the same for all networks; each '
  'draw varies the trainings by their pooled standard deviation, or the '
  "variant's own where that is larger, by Student's t, and those of averages "
  'by what varies among their values with the seed. All intervals of a measure '
  'hold at once with 95 % confidence (Bonferroni), p-values are corrected as '
  'Holm 1979 does. Conclusions are drawn from the first measure alone. See '
  'experiments/sweep/report/statistics.py.'
)


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells are plain text."""

  title: str
  columns: list[str]
  rows: list[list[str]]
  # Columns before the numbers.
  num_labels: int
  # Places of the rows that stand out.
  strong: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the report, with a title of one word.

  Pictures are {file in figures/: caption}.
  """

  title: str
  lines: list[str]
  tables: list[Table] = dataclasses.field(default_factory=list)
  pictures: dict[str, str] = dataclasses.field(default_factory=dict)


def setting_of(results: Results) -> Section:
  """Lists what was equal for all variants, and the points that are skipped."""
  skipped = [list(item) for item in results.skipped.items()]
  tables = [Table('Skipped', ['point', 'why'], skipped, 2)] if skipped else []
  return Section('Setting', setting.describe(results), tables)


def variants_of(results: Results) -> Section:
  """Lists quality and cost of each variant."""
  labels = [*(results.short[f] for f in results.factors), 'seeds']
  heads = [
    [*variant, f'{len(points)}']
    for variant, points in zip(results.variants, results.points)
  ]
  tables = []
  for title, listed in (('Quality', _quality), ('Cost', _costs)):
    if columns := _cells(results, listed(results)):
      rows = [[*head, *row] for head, *row in zip(heads, *columns.values())]
      names = [*labels, *columns]
      tables.append(Table(title, names, rows, len(labels) - 1))
  lines = ['Mean and standard deviation over seeds.']
  if len({tuple(sorted(p.seed for p in ps)) for ps in results.points}) > 1:
    lines.append(
      'Variants have different seeds, of which these are the means as they '
      'are; differences, and the plots of quality against cost, make up for '
      'what a missing seed does to the others.'
    )
  return Section('Variants', lines, tables)


def _quality(results: Results) -> list[_Column]:
  names = [(f'eval/{m}', conclusions.title(m)) for m in _MEASURES]
  classes = results.class_names()
  if len(classes) <= FEW_CLASSES:
    names += [(f'eval/dataset_iou/{c}', f'dataset IoU, {c}') for c in classes]
  return [(name, title, 1, '.4f') for name, title in names]


def _costs(results: Results) -> list[_Column]:
  field = results.tuned_field
  return [
    *_COSTS,
    *(
      (name, name.replace('/', ', ').replace('_', ' '), 1, '')
      for name in results.networks[0].row
      if name.startswith('checkerboard')
    ),
    (field, field.rpartition('.')[2].replace('_', ' '), 1, '.3g'),
  ]


def _cells(
  results: Results, columns: Sequence[_Column]
) -> dict[str, list[str]]:
  """Returns {title: cells} of (name, title, unit, format), where not all NaN.

  A deviation is shown where metrics vary over seeds.
  """
  found = {}
  for name, title, unit, form in columns:
    show = lambda value: (
      format(value / unit, form) if form else _short(value / unit)
    )
    means, deviations = means_and_deviations(results.metric(name))
    if np.isfinite(means).any():
      found[title] = [
        _NOTHING
        if not np.isfinite(mean)
        else show(mean)
        + (f' ± {show(deviation)}' if deviation > 1e-9 * abs(mean) else '')
        for mean, deviation in zip(means, deviations)
      ]
  return found


def _short(value: float) -> str:
  """Three significant digits."""
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:#.3g}'


def differences_of(results: Results, analyses: Sequence[Analysis]) -> Section:
  """Makes a table for each factor; certain differences stand out."""
  first, short = analyses[0], results.short
  tables = []
  for factor, places in conclusions.by_factor(first.comparisons).items():
    name = ', '.join(short[f] for f in factor.split(', '))
    rows = [_difference_row(analyses, i, short) for i in places]
    titles = [first.title, 'p', *(a.title for a in analyses[1:])]
    strong = frozenset(
      row for row, i in enumerate(places) if first.comparisons[i].is_certain
    )
    columns = [name, 'at', *titles]
    tables.append(Table(f'Effect of {name}', columns, rows, 2, strong))
  lines = []
  if tables:
    lines += [
      f'{html.plural(first.num_tests, "comparison")} of each measure, by '
      f'{len(first.draws.draws):,} draws. Certain differences in {first.title} '
      'stand out; each has its interval behind it.',
      _HOW,
    ]
    if any(c.is_certain for a in analyses[1:] for c in a.comparisons):
      lines.append(
        '† The interval of another measure excludes 0, corrected for the '
        'comparisons of that measure alone: a hint, of which the conclusion '
        'takes no account.'
      )
  if first.interaction is not None:
    a, b = (short[f] for f in results.factors)
    p = conclusions.show_p(first.interaction)
    lines.append(
      f'Interaction of {a} and {b} (is the effect of one the same at each '
      f'value of the other?): p {p}.'
    )
  if np.isfinite(first.draws.deviation):
    of = ', without what a seed does to all variants alike, which cancels'
    lines.append(
      f'Standard deviation over seeds of {first.title}, pooled'
      f'{of if first.draws.has_blocks else ""}: '
      f'{first.draws.deviation:.4f} '
      f'({html.plural(first.draws.freedom, "degree")} of freedom).'
    )
  return Section('Differences', lines, tables)


def _difference_row(
  analyses: Sequence[Analysis], i: int, short: dict[str, str]
) -> list[str]:
  first, *others = (analysis.comparisons[i] for analysis in analyses)
  contrast = first.contrast
  held = ', '.join(f'{short[f]} {v}' for f, v in contrast.others)
  show = lambda c: f'{c.difference:+.4f} ({c.low:+.4f} to {c.high:+.4f})'
  return [
    ' against '.join(contrast.values),
    held or ('all, averaged' if contrast.is_average else _NOTHING),
    show(first),
    conclusions.show_p(first.p),
    *(show(c) + ' †' * c.is_certain for c in others),
  ]


def plots_of(drawn: dict[str, str]) -> Section:
  """Shows the plots, and names those that are missing with what they need."""
  lines = [
    f'Skipped, for lack of metrics: {name.removesuffix(".png")} ({needs}).'
    for name, needs in plots.NEEDS.items()
    if name not in drawn
  ]
  return Section('Figures', lines, pictures=drawn)
