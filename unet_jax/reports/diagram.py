"""A drawing of a network, like figure 1 of arXiv 1505.04597.

A box is a tensor: its height follows the pixels, its width the channels. The
numbers above are channels, those below sizes (572² is 572 x 572). It shows
what models/graph.py reads from the module, as SVG with real text and as PNG.
"""

import math
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle

from unet_jax.models import graph
from unet_jax.reports import diagram_layout
from unet_jax.reports.diagram_parts import Arrow, Box, Layout, Mark

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLORS = {
  'conv': '#0072B2',
  'down': '#D55E00',
  'up': '#009E73',
  'skip': '#767676',
  'gate': '#A0468C',
  'residual': '#C58A00',
  'head': '#222222',
  'stem': '#8A5A2B',
}
# Fill and edge.
_BOXES = {
  'features': ('#CFE1EF', '#33607F'),
  'copied': ('#FFFFFF', '#767676'),
  'image': ('#DDDDDD', '#555555'),
  'logits': ('#F3DDB8', '#8A6420'),
}
_RGB = ('#EDB9B4', '#BFE0BC', '#B9CBEA')


def draw(network: graph.Network, *paths: str) -> None:
  """Draws a network into files; the suffix is the format: .svg, .png."""
  plot = _render(diagram_layout.make_layout(network))
  settings: Any = {'svg.fonttype': 'none', 'svg.hashsalt': 'unet_jax'}
  with matplotlib.rc_context(settings):
    for path in paths:
      # No date, so that the same network gives the same file.
      metadata = {'Date': None} if path.endswith('.svg') else None
      plot.savefig(path, dpi=200, metadata=metadata)
  plt.close(plot)


def _render(layout: Layout) -> Figure:
  plot = plt.figure(figsize=(layout.width / 72, layout.height / 72))
  axes = plot.add_axes((0, 0, 1, 1))
  axes.set_xlim(0, layout.width)
  axes.set_ylim(layout.height, 0)
  axes.axis('off')
  for box in layout.boxes:
    _render_box(axes, box)
  dashed: Any = dict(fill=False, ec='#555555', lw=0.6, ls=(0, (2, 1.5)))
  for o in layout.outlines:
    axes.add_patch(Rectangle((o.x, o.y), o.width, o.height, **dashed))
  for arrow in layout.arrows:
    _render_arrow(axes, arrow)
  for mark in layout.marks:
    _render_mark(axes, mark)
  for t in layout.texts:
    axes.text(
      t.x,
      t.y,
      t.text,
      fontsize=t.size,
      color=t.color,
      ha=t.align,
      va='center_baseline' if not t.rotation else 'center',
      rotation=t.rotation,
      # Of this font's widths; the other where an SVG's reader lacks it.
      family=['DejaVu Sans', 'sans-serif'],
    )
  return plot


def _render_box(axes: Axes, box: Box) -> None:
  fill, edge = _BOXES[box.kind]
  if box.kind == 'image' and box.shape[-1] == 3:
    for i, color in enumerate(_RGB):
      third = box.width / 3
      axes.add_patch(
        Rectangle((box.x + i * third, box.y), third, box.height, fc=color)
      )
    fill = 'none'
  axes.add_patch(
    Rectangle((box.x, box.y), box.width, box.height, fc=fill, ec=edge, lw=0.7)
  )


def _render_arrow(axes: Axes, arrow: Arrow) -> None:
  color = COLORS[arrow.kind]
  *_, (x0, y0), (x1, y1) = arrow.points
  length = math.hypot(x1 - x0, y1 - y0)
  size = min(4.5, length)
  dx, dy = (x1 - x0) / length * size, (y1 - y0) / length * size
  base = (x1 - dx, y1 - dy)
  points = [*arrow.points[:-1], (x1 - 0.8 * dx, y1 - 0.8 * dy)]
  axes.plot(
    *zip(*points),
    color=color,
    lw=1.3,
    solid_joinstyle='round',
    solid_capstyle='butt',
  )
  wing = 0.42
  corners = [
    (x1, y1),
    (base[0] - wing * dy, base[1] + wing * dx),
    (base[0] + wing * dy, base[1] - wing * dx),
  ]
  axes.add_patch(Polygon(corners, closed=True, fc=color, lw=0))


def _render_mark(axes: Axes, mark: Mark) -> None:
  if mark.kind == 'squeeze':
    r = 2.2
    corners = [(0, -r), (r, 0), (0, r), (-r, 0)]
    points = [(mark.x + a, mark.y + b) for a, b in corners]
    axes.add_patch(Polygon(points, closed=True, fc='#222222', lw=0, zorder=4))
    return
  color = COLORS[mark.kind]
  axes.add_patch(
    Circle((mark.x, mark.y), 3.2, fc='white', ec=color, lw=0.9, zorder=4)
  )
  r = 1.7
  ends = [(-r, 0, r, 0), (0, -r, 0, r)]
  if mark.kind == 'gate':
    r *= math.sqrt(0.5)
    ends = [(-r, -r, r, r), (-r, r, r, -r)]
  for a, b, c, d in ends:
    axes.plot(
      (mark.x + a, mark.x + c),
      (mark.y + b, mark.y + d),
      color=color,
      lw=0.9,
      zorder=5,
    )
