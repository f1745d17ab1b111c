"""The parts of a network's drawing: boxes, arrows, texts, its legend.

All places are in points from the top left; y runs down.
"""

from typing import NamedTuple

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from unet_jax.models import graph

FONT = 6.5
SMALL = 5.5
# Texts of the legend.
_RESIDUAL = 'stage input, added before the activation'
_SQUEEZE = 'squeeze and excitation'
_JOINS = {
  ('concat', False): 'concatenate',
  ('concat', True): 'crop and concatenate',
  ('add', False): 'add',
  ('add', True): 'crop and add',
}


class Box(NamedTuple):
  """A tensor; `name` is the layer that made it, or `image`, `ROLE STAGE`."""

  name: str
  kind: str
  x: float
  y: float
  width: float
  height: float
  shape: graph.Shape

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
  size: float = FONT
  color: str = '#222222'
  align: str = 'center'
  rotation: int = 0

  @property
  def half(self) -> float:
    """Half of its width in the drawing."""
    return 4 if self.rotation else text_width(self.text, self.size) / 2


class Mark(NamedTuple):
  """A small disk with a sign in it: + or, of a gate, × (a product)."""

  kind: str
  x: float
  y: float


class Outline(NamedTuple):
  """A dashed rectangle: the part of a box that is kept by a crop."""

  x: float
  y: float
  width: float
  height: float


class Layout(NamedTuple):
  """The whole drawing."""

  width: float
  height: float
  boxes: tuple[Box, ...]
  arrows: tuple[Arrow, ...]
  marks: tuple[Mark, ...]
  outlines: tuple[Outline, ...]
  texts: tuple[Text, ...]


def size_label(shape: graph.Shape) -> str:
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


def text_width(text: str, size: float) -> float:
  path = TextPath((0, 0), text, size=size, prop=FontProperties('DejaVu Sans'))
  return path.get_extents().width


def half_room(width: float, shape: graph.Shape, with_size: bool) -> float:
  """Half of the room that a tensor of a width and its labels need."""
  widths = [width, text_width(str(shape[-1]), FONT)]
  if with_size:
    widths.append(text_width(size_label(shape), SMALL))
  return max(widths) / 2


def legend(network: graph.Network, image: str) -> list[tuple[str, str]]:
  """Kind of arrow and text of each entry, each once."""
  stages = network.stages
  skips = [s.skip for s in stages if s.skip is not None]
  has_stem = stages[0].input != network.image
  by_entry = lambda entry: [s.entry_kind for s in stages if s.entry == entry]
  texts = [
    ('stem', by_entry('image') if has_stem else []),
    ('conv', [s.conv_kind for s in stages]),
    ('residual', [_RESIDUAL for s in stages if s.is_residual]),
    ('squeeze', [_SQUEEZE for s in stages if s.has_squeeze_excite]),
    ('down', by_entry('down')),
    ('up', by_entry('up')),
    ('skip', [_JOINS[s.join, s.is_cropped] for s in skips]),
    ('gate', ['attention gate' for s in skips if s.gate]),
  ]
  for head in network.heads:
    texts.append(('head', [head.kind]))
    texts.append(('stem', [head.rearranged] if head.rearranged else []))
  costs = f'{quantity(network.parameters)} parameters'
  costs += f', {quantity(network.flops)}FLOP per {image}'
  texts.append(('', [costs]))
  return list(dict.fromkeys((kind, t) for kind, some in texts for t in some))
