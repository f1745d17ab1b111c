"""Parts of an HTML page that is one file: frame, style, tables and charts.

There are no scripts and no files beside it; charts are inline SVG. Arguments
are plain text, which is escaped here, unless they are said to be HTML.
"""

import html
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from unet_jax import colors

# Rows of a table that are shown at once; the others are below a click.
_SHOWN_ROWS = 16
_WHITE = (255, 255, 255)

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff;
  --text: #1b1f24; --soft: #59636e; --line: #d8dde3; --bar: #3b76c4;
  --error: #c0262d; --warning: #8a5a00; --note: #3a6ea5; --good: #1a7f4b;
  --flag: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --page: #101418; --card: #191f25;
  --text: #e4e8ec; --soft: #9aa5b1; --line: #323b45; --bar: #6ea3e6;
  --error: #ff7b78; --warning: #e8b04b; --note: #85b8f0; --good: #5fce93;
  --flag: #3a3118; } }
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
.flag td { background: var(--flag); }
.label { min-width: 7em; }
.bars { width: 34%; min-width: 60px; }
.bar { display: block; width: 100%; height: 10px; margin-top: 6px; }
.bar rect, .histogram rect { fill: var(--bar); }
.histogram { width: 100%; max-width: 420px; }
.histogram text { font-size: 11px; fill: var(--soft); }
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
.panel { display: block; width: 100%; }
.overlay .drawing { opacity: 0.5; }
.pixels { image-rendering: pixelated; }
.outline { image-rendering: auto; }
body:has(#outlines:not(:checked)) .outline { visibility: hidden; }
@media (max-width: 600px) { header, main { padding: 0 10px; }
  nav div { padding: 8px 10px; } section { padding: 14px 12px; } }
@media print { :root { color-scheme: light; --page: #fff; --card: #fff;
  --text: #000; --soft: #444; --line: #bbb; --bar: #3b76c4; --error: #a00;
  --warning: #7a5000; --note: #245; --good: #161; --flag: #fff3d6; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  nav { display: none; } section { border: 0; padding: 0; }
  h2, h3 { break-after: avoid; } .long { max-height: none; }
  .triples { grid-template-columns: 1fr 1fr; }
  .pairs { grid-template-columns: 1fr 1fr 1fr; } }
"""


def page(title: str, header: str, sections: Mapping[str, str]) -> str:
  """Returns the page.

  Args:
    title: of the window.
    header: HTML above the links to the sections.
    sections: {word for the link: HTML}; an empty one is left out.
  """
  sections = {word: body for word, body in sections.items() if body}
  links = '\n'.join(f'<a href="#{w.lower()}">{w}</a>' for w in sections)
  bodies = '\n'.join(
    f'<section id="{word.lower()}">\n{body}\n</section>'
    for word, body in sections.items()
  )
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
<label><input type="checkbox" id="outlines" checked> outlines</label>
</div></nav>
<main>
{bodies}
</main>
</body>
</html>
"""


def plural(n: int, word: str) -> str:
  return f'{n:,} {word}{"" if n == 1 else "s"}'


def percent(share: float) -> str:
  if 0 < share < 1e-4:
    return '&lt; 0.01 %'
  return f'{100 * share:.{2 if 0 < share < 0.01 else 1}f} %'


def facts(values: Mapping[str, str]) -> str:
  """Returns words with a value below each; the values are HTML."""
  items = '\n'.join(
    f'<div><dt>{html.escape(word)}</dt><dd>{value}</dd></div>'
    for word, value in values.items()
  )
  return f'<dl>\n{items}\n</dl>\n'


def fold(summary: str, body: str) -> str:
  """Returns HTML that a click on the summary shows."""
  return f'<details><summary>{html.escape(summary)}</summary>{body}</details>\n'


def table(
  columns: Sequence[tuple[str, str]],
  rows: Sequence[Sequence[str]],
  kind: str = '',
  last: Sequence[str] = (),
) -> str:
  """Returns a table; of a long one the rest is below a click.

  Args:
    columns: (title, CSS class of its cells: '', 'label', 'bars', 'number').
    rows: cells as HTML; one more than the columns is the row's CSS class.
    kind: CSS class of the table.
    last: a row that is always shown.
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

  text = draw([*rows[:_SHOWN_ROWS], *([last] if last else [])])
  if len(rows) > _SHOWN_ROWS:
    text += fold(f'{len(rows) - _SHOWN_ROWS} more', draw(rows[_SHOWN_ROWS:]))
  return text


def counts(title: str, by_key: Mapping[str, int]) -> str:
  """Returns a table of counts with bars, empty if there are none."""
  total = sum(by_key.values())
  rows = [
    (html.escape(key), bar(n / total), f'{n:,}') for key, n in by_key.items()
  ]
  columns = ((title, 'label'), ('', 'bars'), ('', 'number'))
  return table(columns, rows, 'counts') if rows else ''


def bar(share: float) -> str:
  """Returns a bar for a share in 0..1; the number stands beside it."""
  return (
    '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" '
    f'aria-hidden="true"><rect width="{100 * share:.2f}" height="10"/></svg>'
  )


def histogram(title: str, edges: np.ndarray, counts: np.ndarray) -> str:
  """Returns bars of how many images have an edge of how many pixels.

  Args:
    title: which edge.
    edges: in pixels, [N].
    counts: images with each, [N].
  """
  heights, limits = np.histogram(edges, bins=24, weights=counts)
  bars = []
  for i, (n, (low, high)) in enumerate(
    zip(heights, itertools.pairwise(limits))
  ):
    tall = 60 * n / heights.max()
    bars.append(
      f'<rect x="{14 * i}" y="{78 - tall:.1f}" width="13" height="{tall:.1f}">'
      f'<title>{low:.0f} to {high:.0f} px: {plural(int(n), "image")}</title>'
      '</rect>'
    )
  first, last = f'{limits[0]:.0f}', f'{limits[-1]:.0f}'
  drawn = '\n'.join(bars)
  return (
    '<svg class="histogram" viewBox="0 0 336 94" role="img" '
    f'aria-label="histogram of {title}, {first} to {last} px">\n{drawn}\n'
    f'<text y="12">{title}, px; the highest bar is '
    f'{plural(int(heights.max()), "image")}</text>\n'
    f'<text y="91">{first}</text>\n'
    f'<text x="336" y="91" text-anchor="end">{last}</text>\n</svg>\n'
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
  """Returns figures in rows; `panels` is 'pairs' or 'triples'."""
  drawn = '\n'.join(figures)
  return f'<div class="sheet {panels}">\n{drawn}\n</div>\n'
