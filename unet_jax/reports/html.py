"""HTML pages, each one file: their templates, and how numbers are shown.

A page has no scripts and no files beside it, so that it can be sent around.
`templates/page.html` is the frame of all pages, `templates/parts.html` has what
they are made of. Jinja2 escapes every value but `Markup`, which only the
templates make: names of files above all.
"""

import os
from typing import Any

import jinja2

from unet_jax.reports import colors
from unet_jax.runtime import whole_files

_HERE = os.path.dirname(__file__)


def plural(n: int, word: str) -> str:
  return f'{n:,} {word}{"" if n == 1 else "s"}'


def percent(share: float) -> str:
  if 0 < share < 1e-4:
    return '< 0.01 %'
  return f'{100 * share:.{2 if 0 < share < 0.01 else 1}f} %'


def _make_environment(*folders: str) -> jinja2.Environment:
  """Returns Jinja2 with the templates of the folders, then those here."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(
      [*folders, os.path.join(_HERE, 'templates'), _HERE]
    ),
    autoescape=True,
    extensions=['jinja2.ext.do'],
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(
    plural=plural,
    percent=percent,
    hex=lambda color: f'#{bytes(map(int, color)).hex()}',
  )
  environment.globals.update(
    class_colors=colors.class_colors, color_scale=colors.color_scale
  )
  return environment


_ENVIRONMENT = _make_environment()
# The macros of parts.html as functions that return `Markup`: for cells of
# tables, which are made in Python.
parts: Any = _ENVIRONMENT.get_template('parts.html').module


def render(template: str, folder: str = '', **values: Any) -> str:
  """Returns a page.

  Args:
    template: file that extends page.html.
    folder: that has the template; '' is the folder templates/ here.
  """
  environment = _make_environment(folder) if folder else _ENVIRONMENT
  return environment.get_template(template).render(values)


def write(path: str, page: str) -> None:
  """Writes a page, whole or not at all.

  A file's name need not be valid Unicode; such bytes are written as \\udcXX.
  """
  with whole_files.replacing(
    path, encoding='utf-8', errors='backslashreplace'
  ) as f:
    f.write(page)
