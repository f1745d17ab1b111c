"""Writes the report of a sweep: REPORT.md with figures/, and report.html.

The HTML page is one file, with nothing beside it.
"""

import pathlib
from collections.abc import Sequence
from xml.sax import saxutils

from experiments.sweep.report import (
  conclusions,
  examples,
  plots,
  results,
  sections,
)
from experiments.sweep.report.sections import Section, Table
from unet_jax.reports import html, pictures

# Pixels; a wider picture has a row of the page for itself.
_NARROW = 800
# Characters of a cell that is one line.
_UNBROKEN = 40


def write(
  directory: pathlib.Path,
  question: str = '',
  resamples: int = conclusions.RESAMPLES,
) -> list[str]:
  """Writes REPORT.md, figures/ and report.html of a sweep.

  Args:
    directory: of the sweep, see `results.read`, which may raise UserError.
    question: heads the report; '' takes that of sweep.json.
    resamples: of the bootstrap.

  Returns:
    The sentences of the conclusion.
  """
  sweep = results.read(directory)
  analyses = conclusions.analyse(sweep, resamples)
  question = question or sweep.about.get('question') or 'Sweep'
  question = question.strip().splitlines()[0]
  conclusion = conclusions.conclude(sweep, analyses[0])
  folder = directory / 'figures'
  scores = analyses[0].draws.scores
  drawn = plots.draw_all(sweep, scores, analyses[0].title, folder)
  content = [
    sections.setting_of(sweep),
    sections.variants_of(sweep),
    sections.differences_of(sweep, analyses),
    sections.plots_of(drawn),
  ]
  if predicted := examples.draw(directory, sweep, folder):
    content.append(Section('Predictions', [examples.RULE], [], predicted))
  markdown = _markdown(question, conclusion, content)
  html.write(str(directory / 'REPORT.md'), markdown)
  page = html.render(
    'report.html',
    str(pathlib.Path(__file__).parent),
    title=question,
    conclusion=conclusion,
    content=content,
    sheets=lambda section: _sheets(folder, section),
    cells=_columns_and_rows,
  )
  html.write(str(directory / 'report.html'), page)
  return conclusion


def _escape(text: str) -> str:
  """Names come from files and configs, and are neither HTML nor tables."""
  return saxutils.escape(text, {'|': '\\|'})


def _markdown(
  question: str, conclusion: Sequence[str], content: Sequence[Section]
) -> str:
  lines = [f'# {_escape(question)}', *map(_escape, conclusion)]
  for section in content:
    lines += [f'## {section.title}', *map(_escape, section.lines)]
    for table in section.tables:
      lines += [f'### {_escape(table.title)}', _markdown_table(table)]
    for file, caption in section.pictures.items():
      lines += [f'![{_escape(caption)}](figures/{file})', _escape(caption)]
  return '\n\n'.join(lines) + '\n'


def _markdown_table(table: Table) -> str:
  numbers = len(table.columns) - table.num_labels
  rule = ['---'] * table.num_labels + ['---:'] * numbers
  rows = [[*map(_escape, table.columns)], rule]
  for i, row in enumerate(table.rows):
    form = '**{}**' if i in table.strong else '{}'
    rows.append([form.format(_escape(cell)) for cell in row])
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _columns_and_rows(table: Table) -> tuple[list, list]:
  """Returns the arguments of the macro `table`; short cells are not broken."""
  columns = [
    (column, '' if i < table.num_labels else 'number')
    for i, column in enumerate(table.columns)
  ]
  rows = [
    [
      cell.replace(' ', '\N{NO-BREAK SPACE}')
      if len(cell) <= _UNBROKEN
      else cell
      for cell in row
    ]
    + ['flag'] * (i in table.strong)
    for i, row in enumerate(table.rows)
  ]
  return columns, rows


def _sheets(
  folder: pathlib.Path, section: Section
) -> dict[str, list[pictures.Figure]]:
  """Returns {kind of the sheet: figures}."""
  sheets: dict[str, list[pictures.Figure]] = {'charts': [], 'singles': []}
  for file, caption in section.pictures.items():
    panel = pictures.file_panel(str(folder / file), caption)
    kind = 'charts' if panel.size[1] <= _NARROW else 'singles'
    sheets[kind].append(pictures.Figure([panel], caption))
  return sheets
