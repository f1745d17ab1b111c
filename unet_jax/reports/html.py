"""Parts of an HTML page that is one file: frame, style, tables and legends.

There are no scripts and no files beside it; charts, see report_charts.py, are
inline SVG. Arguments are plain text, which is escaped here, unless they are
said to be HTML.
"""

import html
import os
from collections.abc import Mapping, Sequence

import numpy as np

from unet_jax.reports import colors

# Rows of a table that are shown at once; the others are below a click.
_SHOWN_ROWS = 16
_WHITE = (255, 255, 255)

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff;
  --text: #1b1f24; --soft: #59636e; --line: #d8dde3; --bar: #3b76c4;
  --error: #c0262d; --warning: #8a5a00; --note: #3a6ea5; --good: #1a7f4b;
  --flag: #fff3d6; --on-bar: #fff; }
@media (prefers-color-scheme: dark) { :root { --page: #101418; --card: #191f25;
  --text: #e4e8ec; --soft: #9aa5b1; --line: #323b45; --bar: #6ea3e6;
  --error: #ff7b78; --warning: #e8b04b; --note: #85b8f0; --good: #5fce93;
  --flag: #3a3118; --on-bar: #101418; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
  overflow-wrap: anywhere; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { margin: 0; font-size: 26px; line-height: 1.25; }
h2 { margin: 0 0 10px; font-size: 19px; }
h3 { margin: 18px 0 6px; font-size: 15px; }
p { margin: 6px 0 8px; max-width: 56em; }
.soft, figcaption, caption, th, dt { color: var(--soft); }
code, pre { font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; }
code { unicode-bidi: isolate; }
pre { overflow-x: auto; padding: 12px; border: 1px solid var(--line);
  border-radius: 6px; overflow-wrap: normal; }
section { margin: 18px 0; padding: 18px 20px; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; scroll-margin-top: 50px; }
nav { position: sticky; top: 0; z-index: 2; background: var(--page);
  border-bottom: 1px solid var(--line); }
nav div { display: flex; flex-wrap: wrap; gap: 2px 16px; max-width: 1180px;
  margin: 12px auto 0; padding: 8px 20px; font-size: 14px; }
nav label { margin-left: auto; }
a { color: var(--note); text-decoration: none; }
a:hover { text-decoration: underline; }
.verdict { margin: 14px 0 0; padding: 12px 16px; max-width: none;
  border-left: 6px solid; border-radius: 6px; background: var(--card);
  font-size: 20px; font-weight: 600; }
.error { color: var(--error); }
.warning { color: var(--warning); }
.note { color: var(--note); }
.good { color: var(--good); }
dl { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 12px 0; }
dt { font-size: 13px; }
dd { margin: 0; font-size: 17px; font-variant-numeric: tabular-nums; }
.large dd { font-size: 26px; font-weight: 600; line-height: 1.2; }
.large small { font-weight: normal; }
.findings { list-style: none; margin: 0; padding: 0; }
.findings > li { padding: 12px 0; border-top: 1px solid var(--line); }
.findings > li:first-child { border-top: 0; padding-top: 0; }
.level { display: inline-block; min-width: 6.5em; font-weight: 600; }
.names { margin: 4px 0; padding-left: 22px; }
.long { max-height: 320px; overflow-y: auto; }
summary { cursor: pointer; color: var(--note); }
.split { display: grid; gap: 0 34px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { padding: 4px 10px 4px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); font-weight: normal; }
caption { text-align: left; font-size: 13px; }
.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.counts { table-layout: fixed; }
.counts .label { width: 48%; }
.counts .bars { width: 30%; }
.fields { overflow-wrap: normal; }
.wide { overflow-wrap: normal; font-size: 13px; }
.wide th { white-space: normal; vertical-align: bottom; }
.flag td { background: var(--flag); }
.label { min-width: 7em; }
.bars { width: 34%; min-width: 60px; }
.bar { display: block; width: 100%; height: 10px; margin-top: 6px; }
.bar rect, .histogram rect { fill: var(--bar); }
.bar .interval { stroke: var(--text); stroke-width: 2;
  vector-effect: non-scaling-stroke; }
.histogram, .reliability { display: block; width: 100%; max-width: 420px; }
.histogram text, .reliability text { font-size: 11px; fill: var(--soft); }
.reliability rect { fill: var(--bar); opacity: 0.75; }
.reliability .frame { fill: none; stroke: var(--line); }
.reliability .ideal { stroke: var(--text); stroke-dasharray: 4 3; }
.reliability circle { fill: var(--text); }
.heat { width: auto; font-size: 13px; }
.heat td, .heat th { padding: 4px 8px; max-width: 13em; }
.heat thead th { vertical-align: bottom; text-align: center; }
.heat td { text-align: center; min-width: 7em; border: 1px solid var(--line);
  white-space: nowrap; overflow-wrap: normal;
  font-variant-numeric: tabular-nums;
  background: color-mix(in srgb, var(--hue) calc(1% * var(--tint)),
    var(--card)); }
.heat .right { --hue: var(--bar); }
.heat .wrong { --hue: var(--error); }
.heat .deep { color: var(--on-bar); }
.heat.dense { font-size: 11px; }
.heat.dense td, .heat.dense th { padding: 2px 3px; }
.heat.dense td { min-width: 2.6em; }
.heat.dense th span { display: block; overflow: hidden; max-width: 13em;
  text-overflow: ellipsis; white-space: nowrap; }
.heat.dense thead th span { writing-mode: vertical-rl; margin: 0 auto;
  transform: rotate(180deg); max-height: 13em; }
small { display: block; font-size: 11px; line-height: 1.3;
  color: var(--soft); }
.heat .deep small { color: inherit; }
footer { max-width: 1180px; margin: 0 auto; padding: 0 20px 28px; }
.swatch { display: inline-block; width: 12px; height: 12px; margin-right: 6px;
  border: 1px solid #8888; border-radius: 3px; vertical-align: -1px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 8px 0;
  font-size: 14px; }
.scale { width: 160px; height: 12px; vertical-align: -1px; }
.sheet { display: grid; gap: 16px; margin-top: 10px; }
.triples {
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
.pairs {
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figcaption { font-size: 13px; line-height: 1.35; }
figcaption code { display: block; color: var(--text); }
.panels { display: grid; gap: 4px; margin-bottom: 4px;
  grid-template-columns: repeat(3, 1fr); align-items: start; }
.pairs .panels { grid-template-columns: repeat(2, 1fr); }
.quads {
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 540px), 1fr)); }
.quads .panels { grid-template-columns: repeat(4, 1fr); }
.charts {
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); }
.charts .panels, .singles .panels { grid-template-columns: 1fr; }
.singles .panel { max-width: 1000px; }
.panel { display: block; width: 100%; }
.overlay .drawing { opacity: 0.5; }
.pixels { image-rendering: pixelated; }
.outline { image-rendering: auto; }
body:has(#outlines:not(:checked)) .outline { visibility: hidden; }
@media (max-width: 600px) { header, main { padding: 0 10px; }
  nav div { padding: 8px 10px; } section { padding: 14px 12px; } }
@media print { :root { color-scheme: light; --page: #fff; --card: #fff;
  --text: #000; --soft: #444; --line: #bbb; --bar: #3b76c4; --error: #a00;
  --warning: #7a5000; --note: #245; --good: #161; --flag: #fff3d6;
  --on-bar: #fff; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  nav { display: none; } section { border: 0; padding: 0; }
  h2, h3 { break-after: avoid; } .long { max-height: none; }
  .triples, .quads { grid-template-columns: 1fr 1fr; }
  .pairs { grid-template-columns: 1fr 1fr 1fr; } }
"""


def page(
  title: str,
  header: str,
  sections: Mapping[str, str],
  footer: str = '',
  has_outlines: bool = True,
) -> str:
  """Returns the page.

  Args:
    title: of the window.
    header: HTML above the links to the sections.
    sections: {word for the link: HTML}; an empty one is left out.
    footer: HTML below the sections.
    has_outlines: there are outlines that a box can hide.
  """
  sections = {word: body for word, body in sections.items() if body}
  links = '\n'.join(f'<a href="#{w.lower()}">{w}</a>' for w in sections)
  bodies = '\n'.join(
    f'<section id="{word.lower()}">\n{body}\n</section>'
    for word, body in sections.items()
  )
  if has_outlines:
    links += (
      '\n<label><input type="checkbox" id="outlines" checked> outlines</label>'
    )
  if footer:
    footer = f'<footer>\n{footer}\n</footer>\n'
  # The policy keeps a browser from loading anything, whatever names hold.
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
{header}
</header>
<nav><div>
{links}
</div></nav>
<main>
{bodies}
</main>
{footer}</body>
</html>
"""


def write(path: str, page: str) -> None:
  """Writes a page, whole or not at all.

  A file's name need not be valid Unicode; such bytes are written as \\udcXX.
  """
  with open(
    path + '.tmp', 'w', encoding='utf-8', errors='backslashreplace'
  ) as f:
    f.write(page)
  os.replace(path + '.tmp', path)


def plural(n: int, word: str) -> str:
  return f'{n:,} {word}{"" if n == 1 else "s"}'


def percent(share: float) -> str:
  if 0 < share < 1e-4:
    return '&lt; 0.01 %'
  return f'{100 * share:.{2 if 0 < share < 0.01 else 1}f} %'


def facts(values: Mapping[str, str], kind: str = '') -> str:
  """Returns words with a value below each; the values are HTML.

  Args:
    values: {word: value}.
    kind: '' or 'large'.
  """
  if not values:
    return ''
  items = '\n'.join(
    f'<div><dt>{html.escape(word)}</dt><dd>{value}</dd></div>'
    for word, value in values.items()
  )
  return f'<dl class="{kind}">\n{items}\n</dl>\n'


def fold(summary: str, body: str) -> str:
  """Returns HTML that a click on the summary shows."""
  return f'<details><summary>{html.escape(summary)}</summary>{body}</details>\n'


def table(
  columns: Sequence[tuple[str, str]],
  rows: Sequence[Sequence[str]],
  kind: str = '',
  last: Sequence[str] = (),
  shown: int = _SHOWN_ROWS,
) -> str:
  """Returns a table; of a long one the rest is below a click.

  Args:
    columns: (title, CSS class of its cells: '', 'label', 'bars', 'number').
    rows: cells as HTML; one more than the columns is the row's CSS class.
    kind: CSS class of the table.
    last: a row that is always shown.
    shown: rows that are in sight.
  """
  head = ''.join(
    f'<th scope="col" class="{style}">{title}</th>' for title, style in columns
  )

  def draw(rows) -> str:
    body = '\n'.join(
      f'<tr class="{"".join(row[len(columns) :])}">'
      + ''.join(
        f'<td class="{style}">{cell}</td>'
        for cell, (_, style) in zip(row, columns)
      )
      + '</tr>'
      for row in rows
    )
    return (
      f'<div class="scroll"><table class="{kind}">\n'
      f'<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
      '</table></div>\n'
    )

  text = draw([*rows[:shown], *([last] if last else [])])
  if len(rows) > shown:
    text += fold(f'{len(rows) - shown} more', draw(rows[shown:]))
  return text


def counts(title: str, by_key: Mapping[str, int]) -> str:
  """Returns a table of counts with bars, empty if there are none."""
  total = sum(by_key.values())
  rows = [
    (html.escape(key), bar(n / total), f'{n:,}') for key, n in by_key.items()
  ]
  columns = ((title, 'label'), ('', 'bars'), ('', 'number'))
  return table(columns, rows, 'counts') if rows else ''


def bar(share: float, interval: tuple[float, float] | None = None) -> str:
  """Returns a bar for a share in 0..1; the number stands beside it.

  Args:
    share: length of the bar.
    interval: in which the share may lie, drawn as a line.
  """
  drawn = f'<rect width="{100 * share:.2f}" height="10"/>'
  if interval:
    low, high = [f'{100 * x:.2f}' for x in interval]
    drawn += (
      f'<path class="interval" d="M{low} 1V9M{low} 5H{high}M{high} 1V9"/>'
    )
  return (
    '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" '
    f'aria-hidden="true">{drawn}</svg>'
  )


def swatch(color: Sequence[int] = _WHITE) -> str:
  """Returns a square of a colour, 0..255; white is what is ignored."""
  shown = bytes(map(int, color)).hex()
  return f'<i class="swatch" style="background:#{shown}"></i>'


def legend(names: Sequence[str]) -> str:
  """Returns the classes in their colours; below a click if they are many."""
  items = [
    f'<span>{swatch(color)}{html.escape(name)}</span>'
    for name, color in zip(names, colors.class_colors(len(names)))
  ]
  items.append(f'<span>{swatch()}ignored</span>')
  shown = '<div class="legend">\n{}\n</div>\n'.format('\n'.join(items))
  if len(names) > _SHOWN_ROWS:
    return fold(f'Colours of the {len(names)} classes', shown)
  return shown


def scale(top: float) -> str:
  """Returns the colours of numbers from 0 to `top`."""
  steps = colors.color_scale(np.linspace(0, 1, 32))
  bars = ''.join(
    f'<rect x="{i}" width="1.1" height="1" fill="#{bytes(step).hex()}"/>'
    for i, step in enumerate(steps)
  )
  return (
    '0 <svg class="scale" viewBox="0 0 32 1" preserveAspectRatio="none" '
    f'aria-hidden="true">{bars}</svg> {top:.3g}'
  )


def figure(panels: Sequence[str], caption: str) -> str:
  """Returns panels side by side above their caption; both are HTML."""
  drawn = '\n'.join(panels)
  return (
    f'<figure><div class="panels">\n{drawn}\n</div>'
    f'<figcaption>{caption}</figcaption></figure>'
  )


def sheet(figures: Sequence[str], panels: str) -> str:
  """Returns figures in rows.

  Args:
    figures: HTML, see `figure`.
    panels: how many a figure has and how wide they are: 'pairs', 'triples',
      'quads', or one: 'charts' (two figures in a row) and 'singles'.
  """
  drawn = '\n'.join(figures)
  return f'<div class="sheet {panels}">\n{drawn}\n</div>\n'
