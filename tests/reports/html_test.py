"""The parts of pages: text from users must stay text."""

import jinja2
import pytest

from tests import html_page
from unet_jax.reports import charts, html, pictures

_HOSTILE = html_page.HOSTILE
_PANEL = pictures.Panel(_HOSTILE, (1, 1), [pictures.Layer('data:,')])
_FIGURE = pictures.Figure([_PANEL], _HOSTILE, _HOSTILE)


@pytest.mark.parametrize(
  'part, arguments, count',
  [
    ('facts', ({_HOSTILE: _HOSTILE},), 2),
    ('value_with', (_HOSTILE, _HOSTILE), 2),
    ('code', (_HOSTILE,), 1),
    ('marked', (_HOSTILE, 'good', _HOSTILE), 2),
    ('strong', (_HOSTILE,), 1),
    ('table', ([(_HOSTILE, '')], [[_HOSTILE]] * 20), 20 + 2),
    ('swatch', (_HOSTILE,), 1),
    ('legend', ([_HOSTILE] * 3,), 3),
    ('legend', ([_HOSTILE] * 300,), 300),
    ('sheet', ([_FIGURE], 'singles'), 2),
  ],
)
def test_parts_escape_their_arguments(part, arguments, count):
  page = html_page.Page(getattr(html.parts, part)(*arguments))
  assert page.text.count(_HOSTILE) == count
  assert not page.of('script')


def test_attributes_are_escaped():
  page = html_page.Page(html.parts.sheet([_FIGURE], 'singles'))
  assert page.of('svg', **{'aria-label': _HOSTILE})
  chart = charts.histogram(_HOSTILE, [1, 2])
  page = html_page.Page(html.parts.histogram(chart))
  assert page.of('svg', **{'aria-label': f'histogram of {_HOSTILE}, 1 to 2 px'})


def test_pages_of_another_folder(tmp_path):
  (tmp_path / 'own.html').write_text(
    '{% extends "page.html" %}{% import "parts.html" as parts %}'
    '{% set sections = {"A": parts.code(name), "Empty": " "} %}'
    '{% set has_outlines = false %}'
  )
  text = html.render('own.html', str(tmp_path), title=_HOSTILE, name=_HOSTILE)
  page = html_page.Page(text)
  html_page.assert_self_contained(page, text)
  assert page.texts.count(_HOSTILE) == 2
  assert [s['id'] for s in page.of('section')] == ['a']
  with pytest.raises(jinja2.UndefinedError, match='name'):
    html.render('own.html', str(tmp_path), title='')


def test_percent():
  shown = {0: '0.0 %', 5e-5: '< 0.01 %', 0.005: '0.50 %', 0.5: '50.0 %'}
  shown[1] = '100.0 %'
  assert {share: html.percent(share) for share in shown} == shown
