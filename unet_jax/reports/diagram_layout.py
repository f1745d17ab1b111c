"""Places the parts of a network's drawing."""

import math
import re
from typing import NamedTuple

from unet_jax.models import graph
from unet_jax.reports import diagram_parts as parts

_GRAY = '#555555'
# In points: of the largest box, and of the smallest.
_HEIGHT, _WIDTH = 92.0, 26.0
_MIN_HEIGHT, _MIN_WIDTH = 6.0, 3.0
_GAP = 15.0
_LABEL = 9.0
_MARGIN = 6.0


def make_layout(network: graph.Network) -> parts.Layout:
  """Returns where everything is drawn."""
  return _Drawing(network).layout()


class _Stage(NamedTuple):
  """A drawn stage; `inputs` are the boxes of its input, the last is `came`.

  `labelled` are the boxes that have their size written below.
  """

  inputs: list[parts.Box]
  boxes: list[parts.Box]
  labelled: set[str]


class _Drawing:
  """Collects a layout, stage by stage."""

  def __init__(self, network: graph.Network):
    self._network = network
    self._input = 'image' if len(network.image) == 3 else 'volume'
    self._boxes: list[parts.Box] = []
    self._arrows: list[parts.Arrow] = []
    self._marks: list[parts.Mark] = []
    self._outlines: list[parts.Outline] = []
    self._texts: list[parts.Text] = []
    self._stages: dict[str, _Stage] = {}
    shapes = [s.input for s in network.stages] + [network.image]
    self._most_pixels = max(math.prod(s[:-1]) for s in shapes)
    self._most_channels = max(
      shape[-1]
      for s in network.stages
      for shape in (s.came, *dict(s.convs).values())
    )
    self._bottom = max(s.level for s in network.stages)
    self._rows = self._row_positions()

  def layout(self) -> parts.Layout:
    for stage in self._network.stages:
      self._draw_stage(stage)
    for head in self._network.heads:
      self._draw_head(head)
    left, right, top, bottom = self._bounds()
    right, bottom = self._draw_legend(left, right, bottom)
    move = lambda x, y: (x - left + _MARGIN, y - top + _MARGIN)
    moved = lambda items: tuple(
      i._replace(**dict(zip('xy', move(i.x, i.y)))) for i in items
    )
    return parts.Layout(
      right - left + 2 * _MARGIN,
      bottom - top + 2 * _MARGIN,
      moved(self._boxes),
      tuple(
        a._replace(points=tuple(move(*p) for p in a.points))
        for a in self._arrows
      ),
      moved(self._marks),
      moved(self._outlines),
      moved(self._texts),
    )

  def _box_height(self, shape: graph.Shape) -> float:
    """Of the square root of the side, so that small ones can be seen."""
    pixels = math.prod(shape[:-1])
    side = (pixels / self._most_pixels) ** (1 / (len(shape) - 1))
    return max(_MIN_HEIGHT, _HEIGHT * side**0.6)

  def _box_width(self, shape: graph.Shape) -> float:
    return max(_MIN_WIDTH, _WIDTH * (shape[-1] / self._most_channels) ** 0.5)

  def _row_positions(self) -> list[float]:
    """The middle of each level."""
    heights = {0: self._box_height(self._network.image)}
    for stage in self._network.stages:
      for shape in (stage.input, *dict(stage.convs).values()):
        height = max(heights.get(stage.level, 0), self._box_height(shape))
        heights[stage.level] = height
    over = 8.0 if any(s.is_residual for s in self._network.stages) else 0.0
    rows, y = [], 0.0
    for level in range(self._bottom + 1):
      y += over + _LABEL + heights[level] / 2
      rows.append(y)
      y += heights[level] / 2 + _LABEL + 19
    return rows

  def _add_box(
    self,
    name: str,
    kind: str,
    shape: graph.Shape,
    row: float,
    *,
    x: float = 0.0,
    center: float | None = None,
  ) -> parts.Box:
    """Adds a box from `x` on, or around `center`."""
    width, height = self._box_width(shape), self._box_height(shape)
    if kind == 'image':
      width = max(width, 7.0)
    x = x if center is None else center - width / 2
    box = parts.Box(name, kind, x, row - height / 2, width, height, shape)
    self._boxes.append(box)
    return box

  def _label(
    self, boxes: list[parts.Box], shape: graph.Shape, with_size: bool = True
  ) -> float:
    """Writes channels above a tensor and, where it is new, the size below.

    Returns where the room of the tensor and its labels ends.
    """
    x, width = boxes[0].x, boxes[-1].right - boxes[0].x
    center = x + width / 2
    self._texts.append(parts.Text(center, boxes[0].y - 4.5, str(shape[-1])))
    if with_size:
      y = boxes[0].bottom + 4.8
      self._texts.append(
        parts.Text(center, y, parts.size_label(shape), parts.SMALL, _GRAY)
      )
    return center + parts.half_room(width, shape, with_size)

  def _arrow(self, kind: str, *points: tuple[float, float]) -> None:
    self._arrows.append(parts.Arrow(kind, points))

  def _draw_stage(self, stage: graph.Stage) -> None:
    row = self._rows[stage.level]
    if stage.entry == 'image':
      inputs = self._draw_image(stage, row)
    elif stage.entry == 'down':
      center = self._stages[stage.source].boxes[-1].center
      name = f'input {stage.name}'
      inputs = [
        self._add_box(name, 'features', stage.input, row, center=center)
      ]
    else:
      inputs = self._draw_joined(stage, row)
    drawn = _Stage(inputs, [inputs[-1]], {b.name for b in inputs})
    self._stages[stage.name] = drawn
    self._draw_convs(stage, drawn, row)
    last = drawn.boxes[-1]
    if stage.is_residual:
      self._draw_residual(drawn, row)
    if stage.has_squeeze_excite:
      self._marks.append(parts.Mark('squeeze', last.center, row))
    if stage.entry == 'down':
      self._connect_down(stage, drawn)
    elif stage.entry == 'up':
      self._connect_up(stage, drawn)
    if stage.dropout:
      x, align = last.center, 'center'
      if stage.level < self._bottom:
        # Beside the arrow down.
        x, align = x + 4, 'left'
      y = last.bottom + (12 if last.name in drawn.labelled else 5)
      text = f'dropout {stage.dropout:g}'
      self._texts.append(parts.Text(x, y, text, parts.SMALL, _GRAY, align))

  def _draw_convs(self, stage: graph.Stage, drawn: _Stage, row: float) -> None:
    before, gap = drawn.boxes[-1], self._gap(stage)
    edge = self._label(drawn.inputs, stage.input)
    for path, shape in stage.convs:
      resized = shape[:-1] != before.shape[:-1]
      width = self._box_width(shape)
      half = parts.half_room(width, shape, resized)
      x = max(before.right + gap, edge + 3 + half - width / 2)
      box = self._add_box(path, 'features', shape, row, x=x)
      edge = self._label([box], shape, resized)
      if resized:
        drawn.labelled.add(path)
      self._arrow('conv', (before.right, row), (box.x, row))
      drawn.boxes.append(box)
      before = box

  def _gap(self, stage: graph.Stage) -> float:
    """Between boxes; the bottom stage makes room for skips above it."""
    gap = _GAP
    if stage.is_residual:
      gap += 4 if len(stage.convs) > 1 else 12
    if stage.level == self._bottom > 0:
      shapes = (stage.input, *dict(stage.convs).values())
      widths = [self._box_width(s) for s in shapes]
      span = sum(widths) - (widths[0] + widths[-1]) / 2
      wanted = _WIDTH + self._skip_room(self._bottom - 1) + 18
      gap = max(gap, (wanted - span) / len(stage.convs))
    return gap

  def _skip_room(self, level: int) -> float:
    """Room of a level between its encoder and its upsampled features."""
    stages = self._network.stages
    up = next(s for s in stages if s.level == level and s.entry == 'up')
    room = self._box_width(up.came) / 2
    if up.skip is not None:
      room += 14 + self._box_width(up.skip.shape)
      room += 16 if up.skip.gate else 0
    return room

  def _draw_image(self, stage: graph.Stage, row: float) -> list[parts.Box]:
    image = self._add_box('image', 'image', self._network.image, row)
    self._texts.append(parts.Text(image.x - 5, row, self._input, rotation=90))
    if stage.input == self._network.image:
      return [image]
    edge = self._label([image], image.shape)
    width = self._box_width(stage.input)
    center = max(
      edge + parts.half_room(width, stage.input, True) + 4,
      image.right + _GAP + width / 2,
    )
    name = f'input {stage.name}'
    box = self._add_box(name, 'features', stage.input, row, center=center)
    self._arrow('stem', (image.right, row), (box.x, row))
    return [box]

  def _draw_joined(self, stage: graph.Stage, row: float) -> list[parts.Box]:
    """The upsampled features, and in front of them those of the encoder."""
    center = self._stages[stage.source].boxes[-1].center
    name, skip = f'upsampled {stage.name}', stage.skip
    up = self._add_box(name, 'features', stage.came, row, center=center)
    if skip is None:
      return [up]
    boxes, target = [up], up.x
    if skip.join == 'concat':
      target = up.x - self._box_width(skip.shape)
      name = f'copied {stage.name}'
      boxes.insert(0, self._add_box(name, 'copied', skip.shape, row, x=target))
    source = self._stages[skip.source].boxes[-1]
    self._arrow('skip', (source.right, row), (target, row))
    if skip.is_cropped:
      share = math.prod(skip.shape[:-1]) / math.prod(source.shape[:-1])
      height = source.height * share ** (1 / (len(skip.shape) - 1))
      top = row - height / 2
      self._outlines.append(parts.Outline(source.x, top, source.width, height))
    if skip.join == 'add':
      self._marks.append(parts.Mark('skip', target - 7, row))
    if skip.gate:
      self._draw_gate(skip, target - 13, row)
    return boxes

  def _draw_gate(self, skip: graph.Skip, x: float, row: float) -> None:
    boxes = self._stages[skip.gating].boxes
    # Leaves beside the upsampling, which comes from the same box, and passes
    # over the shortcut that is added to it.
    start = (boxes[-1].center - 2, boxes[-1].y - _LABEL)
    corner = min(b.y for b in boxes) - _LABEL - 6
    self._arrow('gate', start, (start[0], corner), (x, corner), (x, row + 4))
    self._marks.append(parts.Mark('gate', x, row))

  def _draw_residual(self, drawn: _Stage, row: float) -> None:
    """From behind the input, over the boxes between, into the last arrow."""
    first, last = drawn.boxes[0], drawn.boxes[-1]
    over = min(b.y for b in drawn.boxes) - _LABEL - 2.5
    start = first.right + (4 if len(drawn.boxes) == 2 else 3.5)
    end = last.x - 7.5
    self._arrow(
      'residual', (start, row), (start, over), (end, over), (end, row - 3)
    )
    self._marks.append(parts.Mark('residual', end, row))

  def _connect_down(self, stage: graph.Stage, drawn: _Stage) -> None:
    source = self._stages[stage.source]
    box, to = source.boxes[-1], drawn.inputs[0]
    start = box.bottom + (_LABEL if box.name in source.labelled else 1)
    self._arrow('down', (box.center, start), (box.center, to.y - _LABEL))

  def _connect_up(self, stage: graph.Stage, drawn: _Stage) -> None:
    box, to = self._stages[stage.source].boxes[-1], drawn.inputs[-1]
    shift = 2 if stage.skip is not None and stage.skip.gate else 0
    x = box.center + shift
    self._arrow('up', (x, box.y - _LABEL), (x, to.bottom + _LABEL))

  def _draw_head(self, head: graph.Head) -> None:
    before = self._stages[head.source].boxes[-1]
    row = before.y + before.height / 2
    edge = before.right + 4
    shapes = [(head.path, head.features, 'head')]
    if head.rearranged:
      shapes.append((f'{head.path} output', head.output, 'stem'))
    for name, shape, kind in shapes:
      # The size of logits is always written: the loss takes them.
      width = self._box_width(shape)
      half = parts.half_room(width, shape, True)
      width = max(width, _MIN_WIDTH + 1)
      x = max(before.right + _GAP + 4, edge + half - width / 2 + 3)
      fill = 'logits' if shape == head.output else 'features'
      box = self._add_box(name, fill, shape, row, x=x)
      edge = self._label([box], shape)
      self._arrow(kind, (before.right, row), (box.x, row))
      before = box
    self._texts.append(parts.Text(before.right + 5, row, 'logits', rotation=90))

  def _bounds(self) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of the drawing without the legend."""
    boxes, texts = self._boxes, self._texts
    points = [point for a in self._arrows for point in a.points]
    return (
      min([b.x for b in boxes] + [t.x - t.half for t in texts]),
      max([b.right for b in boxes] + [t.x + t.half for t in texts]),
      min([t.y - 4 for t in texts] + [y - 1 for _, y in points]),
      max([b.bottom for b in boxes] + [t.y + 4 for t in texts]),
    )

  def _draw_legend(
    self, left: float, right: float, bottom: float
  ) -> tuple[float, float]:
    """Draws the legend; returns the new right and bottom of the drawing."""
    entries, line = parts.legend(self._network, self._input), 11.0
    width = max(
      (34 if k else 0) + parts.text_width(t, parts.FONT) for k, t in entries
    )
    height = line * len(entries)
    x, top = self._free_corner(width, height, left, right, bottom)
    for i, (kind, text) in enumerate(entries):
      y = top + (i + 0.5) * line
      if kind == 'squeeze':
        self._marks.append(parts.Mark('squeeze', x + 12, y))
      elif kind:
        self._arrow(kind, (x, y), (x + 24, y))
      if kind == 'gate':
        self._marks.append(parts.Mark('gate', x + 12, y))
      text = re.sub(r'(?<=\d)x(?=\d)', '×', text)
      self._texts.append(
        parts.Text(x + 32 if kind else x, y, text, align='left')
      )
    return max(right, x + width), max(bottom, top + height)

  def _free_corner(
    self, width: float, height: float, left: float, right: float, bottom: float
  ) -> tuple[float, float]:
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
