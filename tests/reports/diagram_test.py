"""Drawings: what is in them, where, and that the numbers are the network's."""

import collections
import itertools
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
from PIL import Image

from tests.models import networks
from unet_jax.models import graph
from unet_jax.reports import diagram, diagram_layout, diagram_parts

_SVG = '{http://www.w3.org/2000/svg}'


def _layout(image=(64, 64, 3), **fields):
  return diagram_layout.make_layout(graph.read(networks.small(**fields), image))


def _arrows(layout):
  """Counts by kind, the legend's too: one for each kind that is drawn."""
  return collections.Counter(a.kind for a in layout.arrows)


def _labels(layout):
  return [t.text for t in layout.texts]


def _overlap(a, b):
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text_box(text):
  width = diagram_parts.text_width(text.text, text.size)
  height = 0.75 * text.size
  if text.rotation:
    width, height = height, width
  left = text.x - (0 if text.align == 'left' else width / 2)
  top = text.y - height / 2
  return left, top, left + width, top + height


def _check_room(layout):
  """Nothing lies on something else, or outside."""
  boxes = [(b.x, b.y, b.right, b.bottom) for b in layout.boxes]
  shrunk = [(a + 0.01, b + 0.01, c - 0.01, d - 0.01) for a, b, c, d in boxes]
  texts = [_text_box(t) for t in layout.texts]
  for a, b in itertools.combinations(shrunk + texts, 2):
    assert not _overlap(a, b), (a, b)
  for left, top, right, bottom in boxes + texts:
    assert left > 0 and right < layout.width
    assert top > 0 and bottom < layout.height
  for x, y in (p for a in layout.arrows for p in a.points):
    assert 0 < x < layout.width and 0 < y < layout.height


@pytest.mark.parametrize('depth', (0, 1, 4))
def test_depths(depth):
  layout = _layout(depth=depth, max_features=1024)
  # Three boxes a stage on the way down, four on the way up; the logits.
  assert len(layout.boxes) == 3 * (depth + 1) + 4 * depth + 1
  # And one of each in the legend.
  expected = {'conv': 2 * (2 * depth + 1) + 1, 'head': 1 + 1}
  if depth:
    expected.update(down=depth + 1, up=depth + 1, skip=depth + 1)
  assert _arrows(layout) == expected
  sizes = collections.Counter(s for s in _labels(layout) if s.endswith('²'))
  count = lambda level: 1 + (level < depth) + (level == 0)
  assert sizes == {f'{64 >> i}²': count(i) for i in range(depth + 1)}
  _check_room(layout)


_ODD = (67, 81, 3)


@pytest.mark.parametrize(
  'fields,image,arrows,marks',
  [
    ({'skip': 'none'}, _ODD, {'skip': 0}, {}),
    ({'skip': 'add'}, _ODD, {'skip': 2}, {'skip': 2}),
    ({'skip': 'attention'}, _ODD, {'skip': 2, 'gate': 1}, {'gate': 1}),
    (
      {'block': 'residual', 'squeeze_excite': 2, 'convs': 1},
      _ODD,
      {'residual': 5, 'conv': 5},
      {'residual': 5, 'squeeze': 5},
    ),
    ({'stem': 'space_to_depth'}, (66, 80, 1), {'stem': 2}, {}),
    ({'deep_supervision': (1.0,)}, _ODD, {'head': 2}, {}),
    (
      {'padding': 'valid', 'block': 'residual', 'skip': 'attention'},
      (140, 148, 1),
      {'residual': 5, 'gate': 1, 'skip': 2},
      {'residual': 5, 'gate': 1},
    ),
    # Labels wider than boxes.
    ({'padding': 'valid', 'depth': 4}, (572, 588, 1), {'skip': 4}, {}),
    ({'spatial_dims': 3}, (16, 24, 30, 1), {'conv': 10}, {}),
    ({'dropout': 0.5, 'dropout_stages': 3}, (64, 64, 1), {'down': 2}, {}),
  ],
)
def test_variants(fields, image, arrows, marks):
  layout = _layout(image, **fields)
  drawn = _arrows(layout)
  # The legend has two for a stem: space to depth, and back.
  legend = {'skip': fields.get('skip') != 'none', 'stem': 2}
  assert {k: drawn[k] - legend.get(k, 1) for k in arrows} == arrows
  drawn = collections.Counter(m.kind for m in layout.marks)
  # The legend shows these two signs.
  drawn -= collections.Counter({'gate': 1, 'squeeze': 1})
  assert drawn == marks
  _check_room(layout)


def test_legend_and_labels():
  fields = dict(norm='group', activation='gelu', dropout=0.25)
  fields |= dict(upsample='pixel_shuffle', upsample_kernel=2)
  labels = _labels(_layout((67, 81, 1), **fields))
  # 16 x 20 doubled is 32 x 40, one row less than the skip has; and so on.
  assert labels[-6:-1] == [
    'conv 3×3, group norm, GELU',
    'max pool 2×2',
    'pixel shuffle upsampling, conv 2×2, zero-padded',
    'concatenate',
    'conv 1×1',
  ]
  assert labels[-1].endswith('FLOP per image')
  assert labels.count('67×81') == 3  # Image, joined and logits.
  assert {'dropout 0.25', '33×40', '16×20'} <= set(labels)


def test_dropout_is_written_beside_the_arrow_down():
  layout = _layout(dropout=0.5, dropout_stages=2)
  texts = [_text_box(t) for t in layout.texts if t.text == 'dropout 0.5']
  assert len(texts) == 2
  for arrow in layout.arrows:
    if arrow.kind == 'down':
      (x, top), (_, bottom) = arrow.points
      line = (x - 1, top, x + 1, bottom)
      assert not any(_overlap(line, text) for text in texts)


def test_crops_are_drawn_to_scale():
  layout = _layout((44, 44, 1), padding='valid')
  boxes = {b.name: b for b in layout.boxes}
  inner, outer = layout.outlines
  # 8 of 40 pixels, and 8 of 16.
  shares = ('down_1/conv2', inner, 8 / 16), ('down_0/conv2', outer, 8 / 40)
  for name, outline, share in shares:
    assert outline.x == boxes[name].x
    assert outline.height == pytest.approx(share * boxes[name].height)


def test_boxes_follow_pixels_and_channels():
  boxes = {b.name: b for b in _layout(depth=3).boxes}
  stages = ['down_0', 'down_1', 'down_2', 'bottleneck']
  boxes = [boxes[f'{name}/conv2'] for name in stages]
  for larger, smaller in itertools.pairwise(boxes):
    assert larger.height > smaller.height
    assert larger.width < smaller.width


def test_svg_has_the_sizes_of_a_run(tmp_path):
  model = networks.small(padding='valid', norm='none')
  x = networks.random(1, 44, 48, 1)
  variables = networks.variables(model, x)
  options = dict(train=False, capture_intermediates=True)
  run = lambda v, x: model.apply(v, x, mutable=['intermediates'], **options)
  logits, state = jax.eval_shape(run, variables, x)
  svg, png, again = (tmp_path / n for n in ('a.svg', 'a.png', 'again.svg'))
  network = graph.read(model, x.shape[1:])
  diagram.draw(network, str(svg), str(png))
  texts = ElementTree.fromstring(svg.read_text()).iter(f'{_SVG}text')
  texts = collections.Counter(t.text for t in texts)
  label = lambda a: '{}×{}'.format(*a.shape[1:3])
  expected = collections.Counter([label(x), label(logits)])
  for name, stage in state['intermediates'].items():
    if name.startswith(('down', 'bottleneck', 'up_')):
      for conv in ('conv1', 'conv2'):
        expected[label(stage[conv]['__call__'][0])] += 1
    if name.startswith('upsample_'):
      expected[label(stage['__call__'][0])] += 1
  # Pooled: half of what the stage before has.
  expected.update(['20×22', '8×9'])
  sizes = {t: n for t, n in texts.items() if '×' in t and t[0].isdigit()}
  assert sizes == expected
  # Again the same file; the PNG has the same proportions and is not empty.
  diagram.draw(network, str(again))
  assert again.read_text() == svg.read_text()
  with Image.open(png) as image:
    layout = diagram_layout.make_layout(network)
    shape = layout.width / layout.height
    assert image.width / image.height == pytest.approx(shape, rel=0.01)
    pixels = np.asarray(image.convert('L'))
  assert 0.5 < np.mean(pixels == 255) < 0.99


def test_quantity():
  texts = {0: '0 ', 999: '999 ', 1792: '1.79 k', 12345: '12.3 k'}
  texts |= {999_400: '999 k', 999_600: '1.00 M'}
  texts |= {31_030_658: '31.0 M', 1.5e12: '1.50 T'}
  assert {n: diagram_parts.quantity(n) for n in texts} == texts
