"""The report of a sweep: REPORT.md with figures/, and report.html.

  python -m experiments.report DIR [--predict]

DIR is the --workdir of experiments.run, which calls this with --predict: the
example predictions are made first, from the checkpoints of the points, or left
out where checkpoints or data are not there. The HTML page is one file, nothing
beside it.
"""

import argparse
import dataclasses
import html
import os
import sys

import numpy as np

from experiments import conclusions, examples, plots
from experiments import results as results_lib
from unet_jax import errors, report_pictures
from unet_jax import report_parts as parts

_NOTHING = '–'
# Measures in the table of variants, as far as there are any, besides the
# dataset IoU of classes.
_MEASURES = (
  'image_miou',
  'dataset_miou',
  'image_boundary_miou',
  'dataset_boundary_miou',
)
# Pixels; a wider figure has a row of the page for itself.
_NARROW = 800
# Characters of a cell that is one line.
_UNBROKEN = 40
# Columns of results.csv, their title, what a unit of it is, and the format.
_COSTS = (
  ('parameters', 'parameters', 1, ',.0f'),
  ('train_flops', 'GFLOP of a train step', 1e9, 'short'),
  ('inference_flops', 'GFLOP of inference, an image', 1e9, 'short'),
  ('train_bytes', 'memory of a train step, MiB', 2**20, ',.0f'),
  ('inference_bytes', 'memory of inference, MiB', 2**20, ',.0f'),
  ('compile_seconds', 'compiling, s', 1, '.1f'),
  ('train_images_per_second', 'images/s, training', 1, 'short'),
  ('inference_images_per_second', 'images/s, inference', 1, 'short'),
  ('receptive_field', 'receptive field, px', 1, '.0f'),
)
_HOW = (
  'Images are drawn again with replacement, the same for all networks; each '
  'draw varies the trainings by their pooled standard deviation, or the '
  "variant's own where that is larger, by Student's t, and those of averages "
  'by what varies among their values with the seed. All intervals of a measure '
  'hold at once with 95 % confidence (Bonferroni), p-values are corrected as '
  'Holm 1979 does. Conclusions are drawn from the first measure alone. See '
  'experiments/statistics.py.'
)


@dataclasses.dataclass(frozen=True)
class _Table:
  """Cells are plain text; `strong` says of each row whether it stands out."""

  title: str
  columns: list[str]
  rows: list[list[str]]
  strong: list[bool]
  # Columns before the numbers.
  num_labels: int


@dataclasses.dataclass(frozen=True)
class _Section:
  """Of both reports: lines of text, tables, {file of a figure: caption}."""

  word: str
  lines: list[str]
  tables: list[_Table]
  figures: dict[str, str]


def write(
  directory: str, question: str = '', resamples: int = conclusions.RESAMPLES
) -> list[str]:
  """Writes REPORT.md, figures/ and report.html of a sweep.

  Args:
    directory: of the sweep, see `results.read`.
    question: heads the report; '' takes the first line of the sweep file's
      docstring, from sweep.json.
    resamples: of the bootstrap.

  Returns:
    The sentences of the conclusion.

  Raises:
    UserError: there are no results.
  """
  directory = os.fspath(directory)
  results = results_lib.read(directory)
  analyses = conclusions.analyse(results, resamples)
  question = question or results.about.get('question') or 'Sweep'
  question = question.strip().splitlines()[0]
  conclusion = conclusions.conclude(results, analyses[0])
  figures = os.path.join(directory, 'figures')
  drawn = plots.draw_all(
    results,
    analyses[0].draws.scores,
    conclusions.title(analyses[0].measure),
    figures,
  )
  sections = [
    _setting(results),
    _variants(results),
    _differences(results, analyses),
    _Section('Figures', _missing(drawn), [], drawn),
  ]
  pictures = examples.draw(directory, results, figures)
  if pictures:
    sections.append(_Section('Predictions', [examples.RULE], [], pictures))
  _write_markdown(directory, question, conclusion, sections)
  _write_page(directory, question, conclusion, sections)
  return conclusion


def _setting(results: results_lib.Results) -> _Section:
  """What was held equal, and what is left out."""
  lines = conclusions.held_equal(results)
  tables = []
  if results.left_out:
    rows = [[name, why] for name, why in results.left_out.items()]
    tables.append(
      _Table('Left out', ['point', 'why'], rows, [False] * len(rows), 2)
    )
  return _Section('Setting', lines, tables, {})


def _variants(results: results_lib.Results) -> _Section:
  labels = [*(results.short[f] for f in results.factors), 'seeds']
  heads = [
    [*variant, f'{len(points)}']
    for variant, points in zip(results.variants, results.points)
  ]
  tables = []
  for title, columns in (
    ('Quality', _quality_columns(results)),
    ('Cost', _cost_columns(results)),
  ):
    if not columns:
      continue
    cells = [column for _, column in columns]
    rows = [[*head, *row] for head, *row in zip(heads, *cells)]
    names = [*labels, *(name for name, _ in columns)]
    tables.append(
      _Table(title, names, rows, [False] * len(rows), len(labels) - 1)
    )
  lines = ['Mean and standard deviation over seeds.']
  if len({tuple(sorted(p.seed for p in ps)) for ps in results.points}) > 1:
    lines.append(
      'Variants have different seeds, of which these are the means as they '
      'are; differences, and the plots of quality against cost, make up for '
      'what a missing seed does to the others.'
    )
  return _Section('Variants', lines, tables, {})


def _quality_columns(results) -> list[tuple[str, list[str]]]:
  """Returns (title, cell of each variant) of what there are figures for."""
  names = [(f'eval/{m}', conclusions.title(m)) for m in _MEASURES]
  classes = results.class_names()
  if len(classes) <= results_lib.FEW_CLASSES:
    names += [(f'eval/dataset_iou/{c}', f'dataset IoU, {c}') for c in classes]
  columns = [(title, results.figures(name), '.4f', 1) for name, title in names]
  return _cells(columns)


def _cost_columns(results) -> list[tuple[str, list[str]]]:
  columns = [
    (title, results.figures(name), form, unit)
    for name, title, unit, form in _COSTS
  ]
  checkerboards = [
    name for name in results.points[0][0].row if name.startswith('checkerboard')
  ]
  columns += [
    (
      name.replace('/', ', ').replace('_', ' '),
      results.figures(name),
      'short',
      1,
    )
    for name in checkerboards
  ]
  field = results_lib.tuned_field(results.about)
  title = field.rpartition('.')[2].replace('_', ' ')
  return _cells([*columns, (title, results.figures(field), '.3g', 1)])


def _cells(columns) -> list[tuple[str, list[str]]]:
  found = []
  for title, figures, form, unit in columns:
    means, deviations = plots.means_and_deviations(figures)
    if np.isfinite(means).any():
      cells = [
        _with_deviation(m / unit, d / unit, form)
        for m, d in zip(means, deviations)
      ]
      found.append((title, cells))
  return found


def _with_deviation(mean: float, deviation: float, form: str) -> str:
  """What does not vary over seeds has no deviation."""
  if not np.isfinite(mean):
    return _NOTHING
  show = _short if form == 'short' else lambda value: format(value, form)
  if not np.isfinite(deviation) or deviation <= 1e-9 * abs(mean):
    return show(mean)
  return f'{show(mean)} ± {show(deviation)}'


def _short(value: float) -> str:
  """Three digits that say something."""
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:#.3g}'


def _differences(results, analyses) -> _Section:
  """A table for each factor; rows of which the first measure is certain."""
  first, short = analyses[0], results.short
  titles = [conclusions.title(a.measure) for a in analyses]
  tables = []
  for factor, places in conclusions.by_factor(first.comparisons).items():
    name = ', '.join(short[f] for f in factor.split(', '))
    rows = [_difference_row(analyses, i, short) for i in places]
    columns = [name, 'at', titles[0], 'p', *titles[1:]]
    strong = [first.comparisons[i].is_certain for i in places]
    tables.append(_Table(f'Effect of {name}', columns, rows, strong, 2))
  lines = []
  if tables:
    lines += [
      f'{parts.plural(first.num_tests, "comparison")} of each measure, by '
      f'{len(first.draws.draws):,} draws. Certain differences in {titles[0]} '
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
      f'Standard deviation over seeds of {titles[0]}, pooled'
      f'{of if first.draws.has_blocks else ""}: '
      f'{first.draws.deviation:.4f} '
      f'({parts.plural(first.draws.freedom, "degree")} of freedom).'
    )
  return _Section('Differences', lines, tables, {})


def _difference_row(analyses, i: int, short) -> list[str]:
  contrast = analyses[0].comparisons[i].contrast
  held = ', '.join(f'{short[f]} {v}' for f, v in contrast.others)
  row = [
    ' against '.join(contrast.values),
    held or ('all, averaged' if contrast.is_average else _NOTHING),
  ]
  for k, analysis in enumerate(analyses):
    c = analysis.comparisons[i]
    mark = ' †' if k and c.is_certain else ''
    row.append(f'{c.difference:+.4f} ({c.low:+.4f} to {c.high:+.4f}){mark}')
    if k == 0:
      row.append(conclusions.show_p(c.p))
  return row


def _missing(drawn: dict[str, str]) -> list[str]:
  """Says which plots are not there, and what they need."""
  return [
    f'Left out, for want of figures: {name.removesuffix(".png")} ({needs}).'
    for name, needs in plots.NEEDS.items()
    if name not in drawn
  ]


# Markdown.


def _escape(text: str) -> str:
  """Names come from files and configs, and are neither HTML nor tables."""
  return html.escape(text, quote=False).replace('|', '\\|')


def _write_markdown(directory, question, conclusion, sections) -> None:
  lines = [f'# {_escape(question)}', *map(_escape, conclusion)]
  for section in sections:
    lines += [f'## {section.word}', *map(_escape, section.lines)]
    for table in section.tables:
      lines += [f'### {_escape(table.title)}', _markdown_table(table)]
    for file, caption in section.figures.items():
      lines += [f'![{_escape(caption)}](figures/{file})', _escape(caption)]
  path = os.path.join(directory, 'REPORT.md')
  parts.write(path, '\n\n'.join(lines) + '\n')


def _markdown_table(table: _Table) -> str:
  rule = [
    '---' if i < table.num_labels else '---:' for i in range(len(table.columns))
  ]
  rows = [[*map(_escape, table.columns)], rule]
  for row, strong in zip(table.rows, table.strong):
    cells = [_escape(cell) for cell in row]
    rows.append([f'**{cell}**' for cell in cells] if strong else cells)
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


# HTML.


def _write_page(directory, question, conclusion, sections) -> None:
  header = (
    '<p class="soft">Sweep</p>\n'
    f'<h1>{html.escape(question)}</h1>\n'
    f'<p class="verdict">{html.escape(" ".join(conclusion))}</p>'
  )
  bodies = {s.word: _section_html(directory, s) for s in sections}
  page = parts.page(question, header, bodies, has_outlines=False)
  parts.write(os.path.join(directory, 'report.html'), page)


def _section_html(directory: str, section: _Section) -> str:
  text = f'<h2>{section.word}</h2>\n'
  text += ''.join(f'<p>{html.escape(line)}</p>\n' for line in section.lines)
  for table in section.tables:
    columns = [
      (html.escape(c), '' if i < table.num_labels else 'number')
      for i, c in enumerate(table.columns)
    ]
    rows = [
      [
        *map(_cell_html, row),
        *(['flag'] if strong else []),
      ]
      for row, strong in zip(table.rows, table.strong)
    ]
    text += f'<h3>{html.escape(table.title)}</h3>\n'
    text += parts.table(columns, rows, 'wide', shown=len(rows))
  kinds = {'charts': [], 'singles': []}
  for file, caption in section.figures.items():
    path = os.path.join(directory, 'figures', file)
    panel, width = report_pictures.file_panel(path, caption)
    kind = 'charts' if width <= _NARROW else 'singles'
    kinds[kind].append(parts.figure([panel], html.escape(caption)))
  for kind, figures in kinds.items():
    text += parts.sheet(figures, kind) if figures else ''
  return text


def _cell_html(cell: str) -> str:
  """Short cells are not broken."""
  text = html.escape(cell)
  return text.replace(' ', '&nbsp;') if len(cell) <= _UNBROKEN else text


def _predict(directory: str) -> None:
  results = results_lib.read(directory)
  try:
    examples.save(directory, results)
  except errors.UserError as e:
    line = errors.one_line(e, directory)
    print(f'no example predictions: {line}', file=sys.stderr)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('directory', help='of the sweep')
  parser.add_argument(
    '--predict', action='store_true', help='make the example predictions'
  )
  arguments = parser.parse_args()
  try:
    if arguments.predict:
      _predict(arguments.directory)
    conclusion = write(arguments.directory)
  except (errors.UserError, OSError) as e:
    errors.leave(f'error: {errors.one_line(e, arguments.directory)}', 1)
  print(' '.join(conclusion))
  print(f'wrote {os.path.join(arguments.directory, "report.html")}')


if __name__ == '__main__':
  main()
