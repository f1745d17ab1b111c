"""A drawing of a network, in the way of figure 1 of arXiv 1505.04597.

A box is a tensor: its height follows the pixels, its width the channels. The
numbers above are channels, those below sizes (572² is 572 x 572). What is drawn
is what models/graph.py read from the module. The layout, in points from the top
left, is made first; matplotlib then draws it, as SVG with real text and as PNG.
"""

import math
import re
from typing import NamedTuple

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, Polygon, Rectangle
from matplotlib.textpath import TextPath

from unet_jax.models import graph

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
_FILLS = {
  'features': ('#CFE1EF', '#33607F'),
  'copied': ('#FFFFFF', '#767676'),
  'image': ('#DDDDDD', '#555555'),
  'logits': ('#F3DDB8', '#8A6420'),
}
_RGB = ('#EDB9B4', '#BFE0BC', '#B9CBEA')
_FONT = 6.5
_SMALL = 5.5
# In points: of the largest box, and of the smallest.
_HEIGHT, _WIDTH = 92.0, 26.0
_MIN_HEIGHT, _MIN_WIDTH = 6.0, 3.0
_GAP = 15.0
_LABEL = 9.0
_MARGIN = 6.0


class Box(NamedTuple):
  """A tensor; `name` is the layer that made it, or `image`, `ROLE STAGE`."""

  name: str
  kind: str
  x: float
  y: float
  width: float
  height: float
  shape: tuple[int, ...]

  @property
  def center(self) -> float:
    return self.x + self.width / 2

  @property
  def right(self) -> float:
    return self.x + self.width

  @property
  def bottom(self) -> float:
    return self.y + self.height


class Arrow(NamedTuple):
  """A line through points, with a head at the last."""

  kind: str
  points: tuple[tuple[float, float], ...]


class Text(NamedTuple):
  x: float
  y: float
  text: str
  size: float = _FONT
  color: str = '#222222'
  align: str = 'center'
  rotation: int = 0


class Mark(NamedTuple):
  """A small disk with a sign in it: + or × (a product)."""

  kind: str
  x: float
  y: float
  sign: str


class Outline(NamedTuple):
  """A dashed rectangle: what is cropped out of a box."""

  x: float
  y: float
  width: float
  height: float


class Layout(NamedTuple):
  """All that is drawn, in points; y runs down."""

  width: float
  height: float
  boxes: tuple[Box, ...]
  arrows: tuple[Arrow, ...]
  marks: tuple[Mark, ...]
  outlines: tuple[Outline, ...]
  texts: tuple[Text, ...]


def size_label(shape: tuple[int, ...]) -> str:
  """(572, 572, 64) to '572²', (96, 128, 3) to '96×128', cubes to '64³'."""
  sides = shape[:-1]
  if len(set(sides)) == 1:
    return f'{sides[0]}{"²³"[len(sides) - 2]}'
  return '×'.join(map(str, sides))


def quantity(n: float) -> str:
  """Three digits and a prefix: 31030658 is '31.0 M'."""
  for prefix, unit in (('T', 1e12), ('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if n >= 0.9995 * unit:
      digits = 3 - len(f'{float(f"{n / unit:.3g}"):.0f}')
      return f'{n / unit:.{digits}f} {prefix}'
  return f'{n:.3g} '


def _text_width(text: str, size: float) -> float:
  path = TextPath((0, 0), text, size=size, prop=FontProperties('DejaVu Sans'))
  return path.get_extents().width


def _channels(shape) -> str:
  return str(shape[-1])


class _Stage(NamedTuple):
  """A drawn stage; `inputs` are the boxes of its input, the last is `came`."""

  inputs: list[Box]
  boxes: list[Box]
  labelled: set[str]


class _Drawing:
  """Collects a layout, stage by stage."""

  def __init__(self, network: graph.Network):
    self._network = network
    self._input = 'image' if len(network.image) == 3 else 'volume'
    self._boxes, self._arrows, self._marks = [], [], []
    self._outlines, self._texts = [], []
    self._stages: dict[str, _Stage] = {}
    shapes = [s.input for s in network.stages] + [network.image]
    self._pixels = max(math.prod(s[:-1]) for s in shapes)
    self._most = max(
      c for s in network.stages for _, (*_, c) in (*s.convs, ('', s.came))
    )
    self._rows = self._row_positions()

  def _box_height(self, shape) -> float:
    """Of the square root of the side, so that small ones can be seen."""
    side = (math.prod(shape[:-1]) / self._pixels) ** (1 / (len(shape) - 1))
    return max(_MIN_HEIGHT, _HEIGHT * side**0.6)

  def _box_width(self, shape) -> float:
    return max(_MIN_WIDTH, _WIDTH * (shape[-1] / self._most) ** 0.5)

  def _row_positions(self) -> list[float]:
    """The middle of each level."""
    heights = {}
    for stage in self._network.stages:
      tallest = max(
        self._box_height(s) for s in (stage.input, *(s for _, s in stage.convs))
      )
      heights[stage.level] = max(heights.get(stage.level, 0), tallest)
    heights[0] = max(heights[0], self._box_height(self._network.image))
    over = 8.0 if any(s.is_residual for s in self._network.stages) else 0.0
    rows, y = [], 0.0
    for level in range(max(heights) + 1):
      y += over + _LABEL + heights[level] / 2
      rows.append(y)
      y += heights[level] / 2 + _LABEL + 19
    return rows

  def _add_box(self, name, kind, shape, x, row, centered=False) -> Box:
    width, height = self._box_width(shape), self._box_height(shape)
    if kind == 'image':
      width = max(width, 7.0)
    x = x - width / 2 if centered else x
    box = Box(name, kind, x, row - height / 2, width, height, shape)
    self._boxes.append(box)
    return box

  def _label(self, boxes: list[Box], channels: str, with_size: bool) -> None:
    """Writes channels above a tensor and, where it is new, the size below."""
    x = (boxes[0].x + boxes[-1].right) / 2
    self._texts.append(Text(x, boxes[0].y - 4.5, channels))
    if with_size:
      y = boxes[0].bottom + 4.8
      label = size_label(boxes[0].shape)
      self._texts.append(Text(x, y, label, _SMALL, '#555555'))

  def _half(self, boxes: list[Box], channels: str, with_size: bool) -> float:
    """Half of the room that a tensor and its labels need."""
    widths = [boxes[-1].right - boxes[0].x, _text_width(channels, _FONT)]
    if with_size:
      widths.append(_text_width(size_label(boxes[0].shape), _SMALL))
    return max(widths) / 2

  def layout(self) -> Layout:
    for stage in self._network.stages:
      self._draw_stage(stage)
    for head in self._network.heads:
      self._draw_head(head)
    return self._finish()

  def _draw_stage(self, stage: graph.Stage) -> None:
    row = self._rows[stage.level]
    if stage.entry == 'image':
      inputs = self._draw_image(stage, row)
    elif stage.entry == 'down':
      above = self._stages[stage.source].boxes[-1]
      box = self._add_box(
        f'input {stage.name}', 'features', stage.input, above.center, row, True
      )
      inputs = [box]
    else:
      inputs = self._draw_joined(stage, row)
    channels = _channels(stage.input)
    self._label(inputs, channels, True)
    drawn = _Stage(inputs, [inputs[-1]], {b.name for b in inputs})
    self._stages[stage.name] = drawn
    edge = (inputs[0].x + inputs[-1].right) / 2 + self._half(
      inputs, channels, True
    )
    before = inputs[-1]
    for i, (path, shape) in enumerate(stage.convs):
      resized = shape[:-1] != before.shape[:-1]
      gap = self._gap(stage, i)
      x = max(before.right + gap, edge + 3)
      half = self._half_of(shape, resized)
      width = self._box_width(shape)
      x = max(x, edge + 3 + half - width / 2)
      box = self._add_box(path, 'features', shape, x, row)
      self._label([box], _channels(shape), resized)
      if resized:
        drawn.labelled.add(path)
      self._arrow('conv', (before.right, row), (box.x, row))
      drawn.boxes.append(box)
      before, edge = box, box.center + half
    if stage.is_residual:
      self._draw_residual(drawn, row)
    if stage.has_squeeze_excite:
      last = drawn.boxes[-1]
      self._marks.append(Mark('squeeze', last.center, row, ''))
    if stage.entry == 'down':
      self._connect('down', self._stages[stage.source], drawn)
    elif stage.entry == 'up':
      self._connect_up(stage, drawn)
    if stage.dropout:
      last = drawn.boxes[-1]
      x, y = (
        last.center,
        last.bottom + (12 if last.name in drawn.labelled else 5),
      )
      text, align = f'dropout {stage.dropout:g}', 'center'
      if stage.level < max(s.level for s in self._network.stages):
        # Beside the arrow down.
        x, align = x + 4, 'left'
      self._texts.append(Text(x, y, text, _SMALL, '#555555', align=align))

  def _half_of(self, shape, with_size: bool) -> float:
    box = Box('', '', 0, 0, self._box_width(shape), 0, shape)
    return self._half([box], _channels(shape), with_size)

  def _gap(self, stage: graph.Stage, index: int) -> float:
    """Between boxes; the bottom stage makes room for skips above it."""
    gap = _GAP
    if stage.is_residual:
      gap += 4 if len(stage.convs) > 1 else 12
    bottom = max(s.level for s in self._network.stages)
    if stage.level == bottom and stage.level > 0:
      widths = [
        self._box_width(s) for s in (stage.input, *dict(stage.convs).values())
      ]
      span = sum(widths) - (widths[0] + widths[-1]) / 2
      wanted = _WIDTH + self._skip_room(bottom - 1) + 18
      gap = max(gap, (wanted - span) / len(stage.convs))
    return gap

  def _skip_room(self, level: int) -> float:
    """What a level needs between its encoder and its upsampled features."""
    up = next(
      s for s in self._network.stages if s.level == level and s.entry == 'up'
    )
    room = self._box_width(up.came) / 2
    if up.skip is not None:
      room += 14 + self._box_width(up.skip.shape)
      room += 16 if up.skip.gate else 0
    return room

  def _draw_image(self, stage: graph.Stage, row: float) -> list[Box]:
    image = self._add_box('image', 'image', self._network.image, 0.0, row)
    self._texts.append(
      Text(image.x - 5, row, self._input, _FONT, '#222222', rotation=90)
    )
    if stage.input == self._network.image:
      return [image]
    self._label([image], _channels(image.shape), True)
    half = self._half_of(stage.input, True)
    x = image.center + max(
      self._half([image], _channels(image.shape), True) + half + 4,
      image.width / 2 + _GAP + self._box_width(stage.input) / 2,
    )
    box = self._add_box(
      f'input {stage.name}', 'features', stage.input, x, row, True
    )
    self._arrow('stem', (image.right, row), (box.x, row))
    return [box]

  def _draw_joined(self, stage: graph.Stage, row: float) -> list[Box]:
    """The upsampled features, and in front of them those of the encoder."""
    below = self._stages[stage.source].boxes[-1]
    up = self._add_box(
      f'upsampled {stage.name}', 'features', stage.came, below.center, row, True
    )
    if stage.skip is None:
      return [up]
    skip, boxes = stage.skip, [up]
    target = up.x
    if skip.join == 'concat':
      width = self._box_width(skip.shape)
      copied = self._add_box(
        f'copied {stage.name}', 'copied', skip.shape, up.x - width, row
      )
      boxes, target = [copied, up], copied.x
    source = self._stages[skip.source].boxes[-1]
    self._arrow('skip', (source.right, row), (target, row))
    if skip.is_cropped:
      height = self._box_height(source.shape) * (
        math.prod(skip.shape[:-1]) / math.prod(source.shape[:-1])
      ) ** (1 / (len(skip.shape) - 1))
      self._outlines.append(
        Outline(source.x, row - height / 2, source.width, height)
      )
    if skip.join == 'add':
      self._marks.append(Mark('skip', target - 7, row, '+'))
    if skip.gate:
      self._draw_gate(skip, target - 13, row)
    return boxes

  def _draw_gate(self, skip: graph.Skip, x: float, row: float) -> None:
    boxes = self._stages[skip.gating].boxes
    gating = boxes[-1]
    # Leaves beside the upsampling, which comes from the same box, and passes
    # over what is added to it.
    start = (gating.center - 2, gating.y - _LABEL)
    corner = min(b.y for b in boxes) - _LABEL - 6
    self._arrow('gate', start, (start[0], corner), (x, corner), (x, row + 4))
    self._marks.append(Mark('gate', x, row, '×'))

  def _draw_residual(self, drawn: _Stage, row: float) -> None:
    """From behind the input, over the boxes between, into the last arrow."""
    first, last = drawn.boxes[0], drawn.boxes[-1]
    before = drawn.boxes[-2]
    over = min(b.y for b in drawn.boxes) - _LABEL - 2.5
    start, end = first.right + 3.5, last.x - 7.5
    if before is first:
      start = first.right + 4
    self._arrow(
      'residual', (start, row), (start, over), (end, over), (end, row - 3)
    )
    self._marks.append(Mark('residual', end, row, '+'))

  def _arrow(self, kind: str, *points: tuple[float, float]) -> None:
    self._arrows.append(Arrow(kind, points))

  def _connect(self, kind: str, source: _Stage, drawn: _Stage) -> None:
    box, to = source.boxes[-1], drawn.inputs[0]
    start = box.bottom + (_LABEL if box.name in source.labelled else 1)
    self._arrow(kind, (box.center, start), (box.center, to.y - _LABEL))

  def _connect_up(self, stage: graph.Stage, drawn: _Stage) -> None:
    box, to = self._stages[stage.source].boxes[-1], drawn.inputs[-1]
    shift = 2 if stage.skip is not None and stage.skip.gate else 0
    x = box.center + shift
    self._arrow('up', (x, box.y - _LABEL), (x, to.bottom + _LABEL))

  def _draw_head(self, head: graph.Head) -> None:
    source = self._stages[head.source].boxes[-1]
    row = source.y + source.height / 2
    edge = source.right + 4
    shapes = [(head.path, head.features, 'head')]
    if head.rearranged:
      shapes.append((f'{head.path} output', head.output, 'stem'))
    before = source
    for name, shape, kind in shapes:
      # The size of logits is always written: they are what the loss sees.
      half = self._half_of(shape, True)
      width = max(self._box_width(shape), _MIN_WIDTH + 1)
      x = max(before.right + _GAP + 4, edge + half - width / 2 + 3)
      fill = 'logits' if shape == head.output else 'features'
      box = self._add_box(name, fill, shape, x, row)
      self._label([box], _channels(shape), True)
      self._arrow(kind, (before.right, row), (box.x, row))
      before, edge = box, box.center + half
    self._texts.append(
      Text(before.right + 5, row, 'logits', _FONT, '#222222', rotation=90)
    )

  def _finish(self) -> Layout:
    """Adds legend and figures, and moves everything into the picture."""
    left = min(
      [b.x for b in self._boxes]
      + [
        t.x - (_text_width(t.text, t.size) / 2 if not t.rotation else 4)
        for t in self._texts
      ]
    )
    right = max(
      [b.right for b in self._boxes]
      + [
        t.x + (_text_width(t.text, t.size) / 2 if not t.rotation else 4)
        for t in self._texts
      ]
    )
    top = min(
      [t.y - 4 for t in self._texts]
      + [y - 1 for a in self._arrows for _, y in a.points]
    )
    bottom = max(t.y + 4 for t in self._texts)
    bottom = max(bottom, *(b.bottom for b in self._boxes))
    entries = self._legend_entries()
    widths = [
      34 + _text_width(text, _FONT) if kind else _text_width(text, _FONT)
      for kind, text in entries
    ]
    width, line = max(widths), 11.0
    height = line * len(entries)
    x, y = self._free_corner(width, height, left, right, bottom)
    right, bottom = max(right, x + width), max(bottom, y + height)
    for i, (kind, text) in enumerate(entries):
      self._legend_entry(kind, text, x, y + (i + 0.5) * line)
    move = lambda x, y: (x - left + _MARGIN, y - top + _MARGIN)
    shift = lambda items: tuple(
      i._replace(**dict(zip('xy', move(i.x, i.y)))) for i in items
    )
    return Layout(
      right - left + 2 * _MARGIN,
      bottom - top + 2 * _MARGIN,
      shift(self._boxes),
      tuple(
        a._replace(points=tuple(move(*p) for p in a.points))
        for a in self._arrows
      ),
      shift(self._marks),
      shift(self._outlines),
      shift(self._texts),
    )

  def _free_corner(self, width, height, left, right, bottom):
    """A place for the legend: beside the bottom of the U, or below it."""
    y = bottom - height
    while y < bottom + 10:
      low = [b for b in self._boxes if b.bottom + 2 * _LABEL > y]
      if max(b.right for b in low) + 26 + width <= right:
        return right - width, y
      if min(b.x for b in low) - 26 - width >= left:
        return left, y
      y += 4
    return left, bottom + 10

  def _legend_entries(self) -> list[tuple[str, str]]:
    """What is drawn, in words; each once."""
    entries: dict[tuple[str, str], None] = {}
    stages = self._network.stages
    for s in stages:
      if s.entry == 'image' and s.input != self._network.image:
        entries['stem', s.entry_kind] = None
    for s in stages:
      entries['conv', s.conv_kind] = None
    for s in stages:
      if s.is_residual:
        entries['residual', 'stage input, added before the activation'] = None
    for s in stages:
      if s.has_squeeze_excite:
        entries['squeeze', 'squeeze and excitation'] = None
    for s in stages:
      if s.entry == 'down':
        entries['down', s.entry_kind] = None
    for s in stages:
      if s.entry == 'up':
        entries['up', s.entry_kind] = None
    for s in stages:
      if s.skip is not None:
        verb = 'concatenate' if s.skip.join == 'concat' else 'add'
        how = f'crop and {verb}' if s.skip.is_cropped else verb
        entries['skip', how] = None
    if any(s.skip is not None and s.skip.gate for s in stages):
      entries['gate', 'attention gate'] = None
    for h in self._network.heads:
      entries['head', h.kind] = None
      if h.rearranged:
        entries['stem', h.rearranged] = None
    parameters = quantity(self._network.parameters)
    flops = quantity(self._network.flops)
    entries['', f'{parameters} parameters, {flops}FLOP per {self._input}'] = (
      None
    )
    return list(entries)

  def _legend_entry(self, kind: str, text: str, x: float, y: float) -> None:
    if kind == 'squeeze':
      self._marks.append(Mark('squeeze', x + 12, y, ''))
    elif kind:
      self._arrow(kind, (x, y), (x + 24, y))
    if kind == 'gate':
      self._marks.append(Mark('gate', x + 12, y, '×'))
    text = re.sub(r'(?<=\d)x(?=\d)', '×', text)
    start = x + 32 if kind else x
    self._texts.append(Text(start, y, text, align='left'))


def make_layout(network: graph.Network) -> Layout:
  """Returns where everything is drawn."""
  return _Drawing(network).layout()


def draw(network: graph.Network, *paths: str) -> None:
  """Draws a network into files; the ending says what: .svg, .png."""
  layout = make_layout(network)
  figure = _render(layout)
  settings = {'svg.fonttype': 'none', 'svg.hashsalt': 'unet_jax'}
  with matplotlib.rc_context(settings):
    for path in paths:
      # No date, so that the same network gives the same file.
      metadata = {'Date': None} if path.endswith('.svg') else None
      figure.savefig(path, dpi=200, metadata=metadata)
  plt.close(figure)


def _render(layout: Layout):
  figure = plt.figure(figsize=(layout.width / 72, layout.height / 72))
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set_xlim(0, layout.width)
  axes.set_ylim(layout.height, 0)
  axes.axis('off')
  for box in layout.boxes:
    _render_box(axes, box)
  for o in layout.outlines:
    axes.add_patch(
      Rectangle(
        (o.x, o.y),
        o.width,
        o.height,
        fill=False,
        ec='#555555',
        lw=0.6,
        ls=(0, (2, 1.5)),
      )
    )
  for arrow in layout.arrows:
    _render_arrow(axes, arrow)
  for m in layout.marks:
    _render_mark(axes, m)
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
  return figure


def _render_box(axes, box: Box) -> None:
  fill, edge = _FILLS[box.kind]
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


def _render_arrow(axes, arrow: Arrow) -> None:
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


def _render_mark(axes, mark: Mark) -> None:
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
  if mark.sign == '×':
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
