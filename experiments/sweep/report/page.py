"""Writes the report of a sweep: REPORT.md with figures/, and report.html.

The HTML page is one file, with nothing beside it.
"""

import html
import os
from collections.abc import Sequence

from experiments.sweep.report import (
  conclusions,
  examples,
  plots,
  results,
  sections,
)
from experiments.sweep.report.sections import Section, Table
from unet_jax.reports import html as html_lib
from unet_jax.reports import pictures as pictures_lib

pass

# Pixels; a wider picture has a row of the page for itself.
_NARROW = 800
# Characters of a cell that is one line.
_UNBROKEN = 40


def write(
  directory: str | os.PathLike,
  question: str = '',
  resamples: int = conclusions.RESAMPLES,
) -> list[str]:
  """Writes REPORT.md, figures/ and report.html of a sweep.

  Args:
    directory: of the sweep, see `results.read`.
    question: heads the report; '' takes that of sweep.json.
    resamples: of the bootstrap.

  Returns:
    The sentences of the conclusion.

  Raises:
    UserError: there are no results.
  """
  directory = os.fspath(directory)
  sweep = results.read(directory)
  analyses = conclusions.analyse(sweep, resamples)
  question = question or sweep.about.get('question') or 'Sweep'
  question = question.strip().splitlines()[0]
  conclusion = conclusions.conclude(sweep, analyses[0])
  folder = os.path.join(directory, 'figures')
  scores = analyses[0].draws.scores
  drawn = plots.draw_all(sweep, scores, analyses[0].title, folder)
  content = [
    sections.setting_of(sweep),
    sections.variants_of(sweep),
    sections.differences_of(sweep, analyses),
    sections.plots_of(drawn),
  ]
  if pictures := examples.draw(directory, sweep, folder):
    content.append(Section('Predictions', [examples.RULE], [], pictures))
  _write_markdown(directory, question, conclusion, content)
  _write_page(directory, question, conclusion, content)
  return conclusion


# Markdown.


def _escape(text: str) -> str:
  """Names come from files and configs, and are neither HTML nor tables."""
  return html.escape(text, quote=False).replace('|', '\\|')


def _write_markdown(
  directory: str,
  question: str,
  conclusion: Sequence[str],
  content: Sequence[Section],
) -> None:
  lines = [f'# {_escape(question)}', *map(_escape, conclusion)]
  for section in content:
    lines += [f'## {section.title}', *map(_escape, section.lines)]
    for table in section.tables:
      lines += [f'### {_escape(table.title)}', _markdown_table(table)]
    for file, caption in section.pictures.items():
      lines += [f'![{_escape(caption)}](figures/{file})', _escape(caption)]
  path = os.path.join(directory, 'REPORT.md')
  html_lib.write(path, '\n\n'.join(lines) + '\n')


def _markdown_table(table: Table) -> str:
  rule = [
    '---' if i < table.num_labels else '---:' for i in range(len(table.columns))
  ]
  rows = [[*map(_escape, table.columns)], rule]
  for i, row in enumerate(table.rows):
    form = '**{}**' if i in table.strong else '{}'
    rows.append([form.format(_escape(cell)) for cell in row])
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


# HTML.


def _write_page(
  directory: str,
  question: str,
  conclusion: Sequence[str],
  content: Sequence[Section],
) -> None:
  header = (
    '<p class="soft">Sweep</p>\n'
    f'<h1>{html.escape(question)}</h1>\n'
    f'<p class="verdict">{html.escape(" ".join(conclusion))}</p>'
  )
  bodies = {s.title: _section_html(directory, s) for s in content}
  page = html_lib.page(question, header, bodies, has_outlines=False)
  html_lib.write(os.path.join(directory, 'report.html'), page)


def _section_html(directory: str, section: Section) -> str:
  text = f'<h2>{section.title}</h2>\n'
  text += ''.join(f'<p>{html.escape(line)}</p>\n' for line in section.lines)
  for table in section.tables:
    columns = [
      (html.escape(c), '' if i < table.num_labels else 'number')
      for i, c in enumerate(table.columns)
    ]
    rows = [
      [*map(_cell_html, row), *(['flag'] if i in table.strong else [])]
      for i, row in enumerate(table.rows)
    ]
    text += f'<h3>{html.escape(table.title)}</h3>\n'
    text += html_lib.table(columns, rows, 'wide', shown=len(rows))
  kinds: dict[str, list[str]] = {'charts': [], 'singles': []}
  for file, caption in section.pictures.items():
    path = os.path.join(directory, 'figures', file)
    panel, width = pictures_lib.file_panel(path, caption)
    kind = 'charts' if width <= _NARROW else 'singles'
    kinds[kind].append(html_lib.figure([panel], html.escape(caption)))
  for kind, pictures in kinds.items():
    text += html_lib.sheet(pictures, kind) if pictures else ''
  return text


def _cell_html(cell: str) -> str:
  """Short cells are not broken."""
  text = html.escape(cell)
  return text.replace(' ', '&nbsp;') if len(cell) <= _UNBROKEN else text
