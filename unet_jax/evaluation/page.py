"""The page of --mode=evaluate for people: one HTML file, nothing beside it.

It opens from disk and can be sent around; pictures are data URIs. Whatever
comes from the data, names of files above all, is escaped.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unet_jax.evaluation import glossary
from unet_jax.reports import charts, colors
from unet_jax.reports import html as html_lib
from unet_jax.reports import pictures as pictures_lib

_WORST = 20
# Of more classes the list of the worst images has no columns.
_LISTED_CLASSES = 8
# Decimals of figures in a unit.
_DIGITS = {'px': 2, 'images': 0}
# Figures at the top, as far as there are any.
_HEADLINE = ('dataset_miou', 'image_miou', 'dataset_mdice', 'pixel_accuracy')


def write(
  path: str,
  report: dict[str, Any],
  rows: list[dict[str, Any]],
  pictures: dict[str, list[dict[str, Any]]],
) -> None:
  """Writes the page, whole or not at all.

  Args:
    path: of the HTML file.
    report: `title`; `about`, {word: value}, of which `command` stands at the
      foot; `names` of the C classes; `figures`, {name without eval/: number,
      NaN or None where there is no score}; `intervals`, {name: (low, high)}, of
      95 %, of some of them; `confusion`, integers [C, C], rows are the mask;
      `reliability`, None or see `report_charts.reliability`; `notes`, lines.
    rows: of each image its name as `image`, and `miou`, `pixel_accuracy` and
      `iou/NAME` of each class, in 0..1 or NaN.
    pictures: {heading: predictions} in their order on the page, each with
      `name`, `score` and what `report_pictures.predicted_part` takes.
  """
  figures, about = report['figures'], dict(report['about'])
  command = about.pop('command', '')
  page = html_lib.page(
    f'Evaluation of {report["title"]}',
    _headline(report, about),
    {
      'Figures': _figures(report),
      'Classes': _classes(report),
      'Confusion': _confusion(report),
      'Calibration': _calibration(report),
      'Images': _images(rows),
      'Predictions': _predictions(pictures, report['names']),
      'Measures': _measures(figures),
    },
    footer=_command(command),
    has_outlines=False,
  )
  html_lib.write(path, page)


def _has_score(value: float | None) -> bool:
  return value is not None and math.isfinite(value)


def _show(value: float | None, unit: str = '') -> str:
  """A share has four digits; what is counted in pixels or images, fewer."""
  if value is None or math.isnan(value):
    return '–'
  return f'{value:,.{_DIGITS.get(unit, 4)}f}'


def _interval(report, name: str) -> tuple[float, float] | None:
  interval = report['intervals'].get(name)
  # Without a score there is nothing to have an interval.
  if not _has_score(report['figures'][name]):
    return None
  return interval if interval and all(map(_has_score, interval)) else None


def _with_interval(report, name: str, unit: str = '') -> str:
  """Returns a figure with its confidence interval below, as HTML."""
  between = _between(report, name, unit)
  below = f'<small>{between}</small>' if between else ''
  return _show(report['figures'][name], unit) + below


def _between(report, name: str, unit: str) -> str:
  return ' – '.join(_show(x, unit) for x in _interval(report, name) or ())


# The sections, each a string of HTML, empty where there is nothing to show.


def _headline(report, about) -> str:
  facts = {
    _title(name): _with_interval(report, name)
    for name in _HEADLINE
    if name in report['figures']
  }
  return (
    '<p class="soft">Evaluation</p>\n'
    f'<h1>{html.escape(report["title"])}</h1>\n'
    f'{html_lib.facts(facts, "large")}'
    f'{html_lib.facts({w: html.escape(_plain(v)) for w, v in about.items()})}'
  )


def _title(figure: str) -> str:
  entry, reduction = glossary.find(figure)
  return f'{entry.title}, {reduction}' if reduction else entry.title


def _plain(value: Any) -> str:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return str(value)
  return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'


def _figures(report) -> str:
  """Figures of all classes at once, and those that nobody described."""
  known, other = [], []
  for name, value in report['figures'].items():
    found = glossary.find(name)
    if found is None:
      other.append((f'<code>{html.escape(name)}</code>', _show(value)))
    elif '/' not in name:
      known.append(_figure_row(report, name, *found))
  text = '<h2>Figures</h2>\n'
  if report['intervals']:
    text += (
      '<p class="soft">The intervals are of 95 % confidence, for other images '
      'like these; they say nothing of how a training varies.</p>\n'
    )
  notes = ''.join(f'<li>{html.escape(note)}</li>' for note in report['notes'])
  if notes:
    text += f'<ul>{notes}</ul>\n'
  if known:
    columns = (
      ('figure', 'label'),
      ('reduction', ''),
      ('value', 'number'),
      ('95 % interval', 'number'),
      ('0 to 1', 'bars'),
    )
    text += html_lib.table(columns, known, 'fields', shown=len(known))
  if other:
    columns = ('figure', ''), ('value', 'number')
    text += f'<h3>Other figures</h3>\n{html_lib.table(columns, other)}'
  return text if known or other or notes else ''


def _figure_row(report, name, entry: glossary.Entry, reduction) -> list[str]:
  value = report['figures'][name]
  has_bar = _has_score(value) and not entry.unit
  unit = f' {entry.unit}' if entry.unit == 'px' else ''
  return [
    html.escape(entry.title),
    reduction,
    _show(value, entry.unit) + unit,
    _between(report, name, entry.unit),
    html_lib.bar(value, _interval(report, name)) if has_bar else '',
  ]


def _classes(report) -> str:
  text = ''
  for title, measures in (
    ('Overlap', glossary.OVERLAPS),
    ('Borders', glossary.BORDERS),
  ):
    table = _class_table(report, measures)
    text += f'<h3>{title}</h3>\n{table}' if table else ''
  return f'<h2>Classes</h2>\n{text}' if text else ''


def _class_table(report, measures: Mapping[str, glossary.Entry]) -> str:
  """Measures of each class as columns, with each reduction that there is."""
  figures, names = report['figures'], list(report['names'])
  of_classes = [name.partition('/') for name in figures if '/' in name]
  prefixes = {prefix for prefix, _, _ in of_classes}
  columns = [
    (prefix, reduction, measure, entry)
    for measure, entry in measures.items()
    for reduction in (*glossary.REDUCTIONS, '')
    if (prefix := f'{reduction}_{measure}'.lstrip('_')) in prefixes
  ]
  if not columns:
    return ''
  # Classes that were scored as one come after the classes.
  joined = [n for _, _, n in of_classes if n not in names]
  shown = [*names, *dict.fromkeys(joined)]
  tints = {
    name: html_lib.swatch(color)
    for name, color in zip(names, colors.class_colors(len(names)))
  }

  def row(title: str, keys: Sequence[str]) -> list[str]:
    """Empty where nothing of the kind was measured."""
    return [
      title,
      *(
        _with_interval(report, key, entry.unit) if key in figures else ''
        for key, (*_, entry) in zip(keys, columns)
      ),
    ]

  rows = []
  for name in shown:
    keys = [f'{prefix}/{name}' for prefix, *_ in columns]
    if any(key in figures for key in keys):
      rows.append(row(tints.get(name, '') + html.escape(name), keys))
  means = [f'{r}_{glossary.mean_of(measure)}' for _, r, measure, _ in columns]
  last = row('<b>mean</b>', means) if any(m in figures for m in means) else ()
  head = [
    (
      f'{entry.title}{f", {entry.unit}" if entry.unit else ""}'
      f'<small>{reduction}</small>',
      'number',
    )
    for _, reduction, _, entry in columns
  ]
  return html_lib.table([('class', 'label'), *head], rows, last=last)


def _confusion(report) -> str:
  counts = np.asarray(report['confusion'], np.int64)
  if not counts.size:
    return ''
  return (
    '<h2>Confusion</h2>\n<p>Each row is a class of the mask, and says as what '
    'its pixels were predicted, in percent; on the diagonal they are right. '
    f'{html_lib.plural(int(counts.sum()), "pixel")} in all.</p>\n'
    f'{charts.confusion(counts, report["names"])}'
  )


def _calibration(report) -> str:
  if report['reliability'] is None:
    return ''
  figures = report['figures']
  facts = {
    glossary.WHOLES[key].title: _with_interval(report, key)
    for key in ('ece', 'mce', 'nll', 'brier')
    if key in figures
  }
  return (
    '<h2>Calibration</h2>\n<p>Bars are the accuracy of the pixels of each '
    'confidence, dots lie at their mean confidence. On the dashed line a '
    'network is as often right as it claims; below it, it claims too much.'
    f'</p>\n{html_lib.facts(facts)}'
    f'{charts.reliability(report["reliability"])}'
  )


def _images(rows: Sequence[Mapping[str, Any]]) -> str:
  """Histogram of the images' mIoU, and the worst images."""
  scored = [row for row in rows if _has_score(row.get('miou'))]
  if not scored:
    return ''
  scored.sort(key=lambda row: row['miou'])
  values = np.array([row['miou'] for row in scored])
  low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
  facts = {
    'images': f'{len(rows):,}',
    'without a score': f'{len(rows) - len(scored):,}',
    'median mIoU': _show(middle),
    'a tenth is below': _show(low),
    'a tenth is above': _show(high),
  }
  drawn = charts.histogram(
    'mIoU of an image', values, np.ones(len(values)), '', (0, 1), 1
  )
  text = f'<h2>Images</h2>\n{html_lib.facts(facts)}{drawn}'
  return f'{text}<h3>Worst images</h3>\n{_worst(scored[:_WORST])}'


def _worst(rows: Sequence[Mapping[str, Any]]) -> str:
  # Those that were scored as one too.
  classes = [key for key in rows[0] if key.startswith('iou/')]
  if len(classes) > _LISTED_CLASSES:
    classes = []
  columns = (
    ('image', 'label'),
    ('mIoU', 'number'),
    ('', 'bars'),
    ('accuracy', 'number'),
    *(
      (f'IoU {html.escape(key.removeprefix("iou/"))}', 'number')
      for key in classes
    ),
  )
  cells = [
    (
      f'<code>{html.escape(row["image"])}</code>',
      _show(row['miou']),
      html_lib.bar(row['miou']),
      _show(row.get('pixel_accuracy')),
      *(_show(row.get(key)) for key in classes),
    )
    for row in rows
  ]
  return html_lib.table(columns, cells, shown=_WORST)


def _predictions(pictures, names) -> str:
  text = ''
  for heading, examples in pictures.items():
    drawn = [
      html_lib.figure(
        pictures_lib.prediction_panels(example, len(names)),
        f'<code>{html.escape(example["name"])}</code>'
        f'mIoU {_show(example["score"])}',
      )
      for example in examples
    ]
    if drawn:
      title = html.escape(heading.capitalize())
      text += f'<h3>{title}</h3>\n{html_lib.sheet(drawn, "quads")}'
  if not text:
    return ''
  return (
    '<h2>Predictions</h2>\n<p>Image, mask, prediction, and the wrong pixels in '
    f'red.</p>\n{html_lib.legend(names)}{text}'
  )


def _measures(figures) -> str:
  """A line on each measure that is on the page, and on the reductions."""
  found = [glossary.find(name) for name in figures]
  entries = {entry.title: entry for entry, _ in filter(None, found)}
  if not entries:
    return ''
  columns = (
    ('measure', ''),
    ('meaning', ''),
    ('unit', ''),
    ('better', ''),
    ('source', ''),
  )
  rows = [
    (
      html.escape(entry.title),
      html.escape(entry.meaning),
      html.escape(entry.unit or '0 to 1'),
      'lower' if entry.lower_is_better else 'higher',
      html.escape(entry.source),
    )
    for entry in entries.values()
  ]
  used = {reduction for _, reduction in filter(None, found) if reduction}
  reductions = ''.join(
    f'<li><b>{name}</b>: {meaning}</li>'
    for name, meaning in glossary.REDUCTIONS.items()
    if name in used
  )
  return (
    '<h2>What the measures mean</h2>\n'
    f'{html_lib.table(columns, rows, "fields", shown=len(rows))}'
    f'<p>Reductions:</p>\n<ul>{reductions}</ul>\n'
    '<p>– is no score: the class is in no mask and no prediction.</p>'
  )


def _command(command: str) -> str:
  if not command:
    return ''
  return f'<p class="soft">Made by</p>\n<pre>{html.escape(command)}</pre>'
