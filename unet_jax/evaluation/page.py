"""The page of --mode=evaluate for people: one HTML file, nothing beside it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unet_jax.evaluation import glossary
from unet_jax.reports import charts, colors, html, pictures
from unet_jax.reports.html import parts

_WORST = 20
# Above this many classes the list of the worst images has no columns of them.
_LISTED_CLASSES = 8
# Decimals of metrics in a unit.
_DIGITS = {'px': 2, 'images': 0}
# Metrics at the top, as far as there are any, and beside the calibration.
_HEADLINE = ('dataset_miou', 'image_miou', 'dataset_mdice', 'pixel_accuracy')
_CALIBRATION = ('ece', 'mce', 'nll', 'brier')

_Rows = Sequence[Mapping[str, Any]]


def write(
  path: str,
  report: dict[str, Any],
  rows: _Rows,
  predictions: Mapping[str, _Rows],
) -> None:
  """Writes the page, whole or not at all.

  Args:
    report: `title`; `about`, {word: value}, of which `command` stands at the
      foot; `names` of the C classes; `metrics`, {name without eval/: number,
      NaN or None where there is no score}; `intervals`, {name: (low, high)}, of
      95 %, of some of them; `confusion`, integers [C, C], rows are the mask;
      `reliability`, None or the bins, see `plots.draw_reliability`; `plots`,
      {'confusion' and 'reliability': PNG file}, where there are these numbers;
      `notes`, lines.
    rows: of each image its name as `image`, and `miou`, `pixel_accuracy` and
      `iou/NAME` of each class, in 0..1 or NaN.
    predictions: {heading: examples} in their order on the page, each with
      `name`, `score` and the arrays of `pictures.predicted_part`.
  """
  metrics = _Metrics(report['metrics'], report['intervals'])
  names, about = report['names'], dict(report['about'])
  page = html.render(
    'evaluation.html',
    title=f'Evaluation of {report["title"]}',
    report=report,
    command=about.pop('command', ''),
    about={word: _plain(value) for word, value in about.items()},
    headline=metrics.facts(_HEADLINE),
    known=_known_rows(metrics),
    other=[
      [parts.code(name), _show(metrics[name])]
      for name, found in metrics.entries.items()
      if not found
    ],
    class_tables={
      'Overlap': _class_table(metrics, names, glossary.OVERLAPS),
      'Borders': _class_table(metrics, names, glossary.BORDERS),
    },
    confusion=_confusion(report),
    calibration=_calibration(report),
    calibration_facts=metrics.facts(_CALIBRATION),
    images=_images(rows),
    predictions={
      heading.capitalize(): _figures(examples, names)
      for heading, examples in predictions.items()
      if examples
    },
    measures=_measure_rows(metrics),
    reductions=metrics.reductions(),
  )
  html.write(path, page)


def _show(value: float | None, unit: str = '') -> str:
  """A share has four digits; numbers of pixels or images have fewer."""
  if value is None or math.isnan(value):
    return '–'
  return f'{value:,.{_DIGITS.get(unit, 4)}f}'


def _has_score(value: float | None) -> bool:
  return value is not None and math.isfinite(value)


def _plain(value: Any) -> str:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return str(value)
  return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'


class _Metrics(dict[str, float | None]):
  """The metrics, and how each is printed."""

  def __init__(
    self,
    metrics: Mapping[str, float | None],
    intervals: Mapping[str, tuple[float, float]],
  ):
    super().__init__(metrics)
    self.entries = {name: glossary.find(name) for name in metrics}
    self._intervals = intervals

  def interval(self, name: str) -> tuple[float, float] | None:
    """Returns an interval; a metric without a score has none."""
    interval = self._intervals.get(name)
    if interval and all(map(_has_score, (self[name], *interval))):
      return interval
    return None

  def show_interval(self, name: str, unit: str) -> str:
    return ' – '.join(_show(x, unit) for x in self.interval(name) or ())

  def cell(self, name: str, unit: str = '') -> str:
    """Returns a metric with its interval below; '' if it was not measured."""
    if name not in self:
      return ''
    shown = _show(self[name], unit)
    return parts.value_with(shown, self.show_interval(name, unit))

  def facts(self, names: Sequence[str]) -> dict[str, str]:
    """Returns {title: cell} of those of the metrics that were measured."""
    facts = {}
    for name in names:
      found = self.entries.get(name)
      if found:
        entry, reduction = found
        title = f'{entry.title}, {reduction}' if reduction else entry.title
        facts[title] = self.cell(name)
    return facts

  def reductions(self) -> dict[str, str]:
    """Returns {name: meaning} of the reductions of the metrics."""
    used = {found[1] for found in self.entries.values() if found}
    return {k: v for k, v in glossary.REDUCTIONS.items() if k in used}


def _known_rows(metrics: _Metrics) -> list[list[str]]:
  """Metrics of all classes at once: title, reduction, value, interval, bar."""
  rows = []
  for name, found in metrics.entries.items():
    if found and '/' not in name:
      entry, reduction = found
      value, interval = metrics[name], metrics.interval(name)
      has_bar = _has_score(value) and not entry.unit
      rows.append(
        [
          entry.title,
          reduction,
          _show(value, entry.unit) + (' px' if entry.unit == 'px' else ''),
          metrics.show_interval(name, entry.unit),
          parts.bar(value, interval) if has_bar else '',
        ]
      )
  return rows


def _class_table(
  metrics: _Metrics,
  names: Sequence[str],
  measures: Mapping[str, glossary.Entry],
) -> dict[str, list] | None:
  """Measures of each class as columns, with each reduction that there is."""
  of_classes = [name.partition('/') for name in metrics if '/' in name]
  prefixes = {prefix for prefix, _, _ in of_classes}
  # (prefix of the metrics, name of their mean, reduction, entry)
  measured = [
    (prefix, f'{reduction}_{glossary.mean_of(measure)}', reduction, entry)
    for measure, entry in measures.items()
    for reduction in (*glossary.REDUCTIONS, '')
    if (prefix := f'{reduction}_{measure}'.lstrip('_')) in prefixes
  ]
  if not measured:
    return None
  titles = {
    name: parts.swatch(name, color)
    for name, color in zip(names, colors.class_colors(len(names)))
  }
  # Classes that were scored as one come after the classes.
  titles |= {name: name for *_, name in of_classes if name not in titles}
  rows = [
    [title, *(metrics.cell(f'{p}/{name}', e.unit) for p, *_, e in measured)]
    for name, title in titles.items()
  ]
  means = [metrics.cell(mean, entry.unit) for _, mean, _, entry in measured]
  heads = [
    parts.value_with(', '.join(filter(None, (e.title, e.unit))), reduction)
    for *_, reduction, e in measured
  ]
  return {
    'columns': [('class', 'label'), *((head, 'number') for head in heads)],
    'rows': [row for row in rows if any(row[1:])],
    'last': [parts.strong('mean'), *means] if any(means) else [],
  }


def _confusion(report: Mapping[str, Any]) -> dict[str, Any] | None:
  counts = np.asarray(report['confusion'], np.int64)
  if not counts.size:
    return None
  return {
    'pixels': int(counts.sum()),
    'figures': [_plot(report['plots']['confusion'], 'confusion matrix')],
    'rows': [
      [name, *(f'{n:,}' for n in row)]
      for name, row in zip(report['names'], counts.tolist())
    ],
  }


def _calibration(report: Mapping[str, Any]) -> dict[str, Any] | None:
  bins = report['reliability']
  if bins is None:
    return None
  edges = np.linspace(0, 1, len(bins['count']) + 1)
  alt = 'accuracy of the pixels of each confidence'
  return {
    'figures': [_plot(report['plots']['reliability'], alt)],
    'rows': [
      [
        f'{edges[i]:.2f} to {edges[i + 1]:.2f}',
        f'{bins["confidence"][i]:.3f}',
        f'{bins["accuracy"][i]:.3f}',
        f'{bins["count"][i]:,}',
      ]
      for i in np.flatnonzero(bins['count'])
    ],
  }


def _plot(path: str, alt: str) -> pictures.Figure:
  return pictures.Figure([pictures.file_panel(path, alt)])


def _images(rows: _Rows) -> dict[str, Any] | None:
  """Distribution of the images' mIoU, and the worst images."""
  scored = [row for row in rows if _has_score(row.get('miou'))]
  if not scored:
    return None
  scored.sort(key=lambda row: row['miou'])
  values = np.array([row['miou'] for row in scored])
  low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
  # Including the classes that were scored as one.
  classes = [key for key in scored[0] if key.startswith('iou/')]
  if len(classes) > _LISTED_CLASSES:
    classes = []
  return {
    'facts': {
      'images': f'{len(rows):,}',
      'without a score': f'{len(rows) - len(scored):,}',
      'median mIoU': _show(middle),
      'a tenth is below': _show(low),
      'a tenth is above': _show(high),
    },
    'histogram': charts.histogram(
      'mIoU of an image', values, unit='', limits=(0, 1), digits=1
    ),
    'classes': [key.removeprefix('iou/') for key in classes],
    'worst': [
      [
        parts.code(row['image']),
        _show(row['miou']),
        parts.bar(row['miou']),
        *(_show(row.get(key)) for key in ('pixel_accuracy', *classes)),
      ]
      for row in scored[:_WORST]
    ],
  }


def _figures(examples: _Rows, names: Sequence[str]) -> list[pictures.Figure]:
  return [
    pictures.Figure(
      pictures.prediction_panels(example, len(names)),
      '; '.join(
        filter(
          None,
          [
            f'mIoU {_show(example["score"])}',
            pictures.stretch(pictures.predicted_part(example)[0])[1],
          ],
        )
      ),
      example['name'],
    )
    for example in examples
  ]


def _measure_rows(metrics: _Metrics) -> list[list[str]]:
  """A line on each measure that is on the page."""
  entries = [found[0] for found in metrics.entries.values() if found]
  return [
    [
      entry.title,
      entry.meaning,
      entry.unit or '0 to 1',
      'lower' if entry.lower_is_better else 'higher',
      entry.source,
    ]
    for entry in {entry.title: entry for entry in entries}.values()
  ]
