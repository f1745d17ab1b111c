"""Charts of an HTML page as inline SVG and tables, in the colours of the page.

Arguments are plain text, which is escaped here.
"""

import html
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from unet_jax.reports import html as html_lib

# A matrix of more classes has no counts in sight, and its names on edge.
_ROOMY_CLASSES = 10
# Tint, in percent, from which a cell is so strong that its text is inverted.
_DEEP = 55
# Width, and height of the square and of the histogram, of a reliability
# diagram, in its own units.
_SIDE, _LOW = 300, 60


def histogram(
  title: str,
  values: np.ndarray,
  counts: np.ndarray,
  unit: str = ' px',
  limits: tuple[float, float] | None = None,
  digits: int = 0,
) -> str:
  """Returns bars of how many images have which value.

  Args:
    title: what the values are.
    values: [N], in `unit`.
    counts: images with each, [N].
    unit: with a space before it; empty for a share.
    limits: of the axis; those of the values by default.
    digits: decimals of what is printed.
  """
  heights, edges = np.histogram(values, bins=24, range=limits, weights=counts)
  show = lambda value: f'{value:.{digits}f}'
  bars = []
  for i, (n, (low, high)) in enumerate(zip(heights, itertools.pairwise(edges))):
    tall = 60 * n / heights.max()
    bars.append(
      f'<rect x="{14 * i}" y="{78 - tall:.1f}" width="13" height="{tall:.1f}">'
      f'<title>{show(low)} to {show(high)}{unit}: '
      f'{html_lib.plural(int(n), "image")}</title></rect>'
    )
  first, last = show(edges[0]), show(edges[-1])
  drawn = '\n'.join(bars)
  comma = ',' if unit else ''
  return (
    '<svg class="histogram" viewBox="0 0 336 94" role="img" '
    f'aria-label="histogram of {title}, {first} to {last}{unit}">\n{drawn}\n'
    f'<text y="12">{title}{comma}{unit}; the highest bar is '
    f'{html_lib.plural(int(heights.max()), "image")}</text>\n'
    f'<text y="91">{first}</text>\n'
    f'<text x="336" y="91" text-anchor="end">{last}</text>\n</svg>\n'
  )


def confusion(counts: np.ndarray, names: Sequence[str]) -> str:
  """Returns the table of a confusion matrix as a heat map.

  Args:
    counts: integers [C, C], rows are the classes of the mask, columns those of
      the prediction. A cell shows its share of the row.
    names: of the C classes.
  """
  counts = np.asarray(counts, np.int64)
  dense = len(names) > _ROOMY_CLASSES
  titles = [
    f'<span title="{html.escape(name)}">{html.escape(name)}</span>'
    for name in names
  ]
  head = ''.join(f'<th scope="col">{title}</th>' for title in titles)
  body = ''
  for i, (row, title) in enumerate(zip(counts, titles)):
    total = int(row.sum())
    cells = ''.join(
      _cell(int(n), total, i == j, f'{names[i]} as {names[j]}', dense)
      for j, n in enumerate(row)
    )
    body += f'<tr><th scope="row">{title}</th>{cells}</tr>\n'
  kind = 'heat dense' if dense else 'heat'
  return (
    f'<div class="scroll"><table class="{kind}">\n'
    f'<thead><tr><th>mask ↓ prediction →</th>{head}</tr></thead>\n'
    f'<tbody>\n{body}</tbody>\n</table></div>\n'
  )


def _cell(n: int, total: int, right: bool, what: str, dense: bool) -> str:
  share = n / total if total else 0.0
  style = 'right' if right else 'wrong'
  # Few errors could not be seen, were their tint in proportion.
  tint = 100 * (share if right else share**0.5)
  if tint >= _DEEP:
    style += ' deep'
  if not total:
    shown = '–'
  elif not dense:
    shown = f'{html_lib.percent(share)}<small>{n:,}</small>'
  else:
    shown = whole_percent(n, total)
  return (
    f'<td class="{style}" style="--tint:{tint:.1f}" '
    f'title="{html.escape(what)}: {html_lib.plural(n, "pixel")}">'
    f'{shown}</td>'
  )


def whole_percent(n: int, total: int) -> str:
  """Returns 0 and 100 for none and for all alone, else 1 to 99."""
  share = round(100 * n / total)
  return str(min(max(share, 1), 99) if 0 < n < total else share)


def reliability(bins: Mapping[str, np.ndarray]) -> str:
  """Returns a reliability diagram above the histogram of confidences.

  Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599.

  Args:
    bins: of equal width in 0..1: `count`, `confidence` (mean) and `accuracy`,
      each [N]. A bar is a bin's accuracy, a dot lies at its mean confidence.
  """
  count = np.asarray(bins['count'], float)
  shares = count / max(count.sum(), 1)
  top, width = shares.max(), _SIDE / len(count)
  bars = []
  for i in np.flatnonzero(count):
    confidence, accuracy = (
      float(bins[key][i]) for key in ('confidence', 'accuracy')
    )
    tall, low = _SIDE * accuracy, _LOW * shares[i] / top
    place = f'x="{i * width + 0.5:.1f}" width="{width - 1:.1f}"'
    title = (
      f'<title>confidence {confidence:.3f}, accuracy {accuracy:.3f}, '
      f'{html_lib.plural(int(count[i]), "pixel")}</title>'
    )
    bars.append(
      f'<rect {place} y="{_SIDE - tall:.1f}" height="{tall:.1f}">{title}</rect>'
      f'<rect {place} y="{_SIDE + 30 + _LOW - low:.1f}" height="{low:.1f}">'
      f'{title}</rect>'
      f'<circle cx="{_SIDE * confidence:.1f}" cy="{_SIDE - tall:.1f}" r="3"/>'
    )
  drawn = '\n'.join(bars)
  below = _SIDE + 30 + _LOW
  return (
    f'<svg class="reliability" viewBox="-32 -8 {_SIDE + 40} {below + 44}" '
    'role="img" aria-label="accuracy of the pixels of each confidence">\n'
    f'<rect class="frame" width="{_SIDE}" height="{_SIDE}"/>\n{drawn}\n'
    f'<path class="ideal" d="M0 {_SIDE}L{_SIDE} 0"/>\n'
    f'<text x="-6" y="10" text-anchor="end">1</text>\n'
    f'<text x="-6" y="{_SIDE}" text-anchor="end">0</text>\n'
    f'<text transform="translate(-12 {_SIDE / 2:.0f}) rotate(-90)" '
    'text-anchor="middle">accuracy</text>\n'
    f'<text x="0" y="{_SIDE + 22}">pixels; the highest bar is '
    f'{100 * top:.0f} %</text>\n'
    f'<text x="0" y="{below + 15}">0</text>\n'
    f'<text x="{_SIDE}" y="{below + 15}" text-anchor="end">1</text>\n'
    f'<text x="{_SIDE / 2:.0f}" y="{below + 15}" text-anchor="middle">'
    'confidence</text>\n</svg>\n'
  )
