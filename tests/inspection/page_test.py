"""The page of --mode=inspect, as a browser would parse it."""

import numpy as np
import pytest

from tests import html_page
from unet_jax.inspection import page as page_lib
from unet_jax.reports import colors, pictures

_NAMES = ('ground', 'cell', 'rim')
_HOSTILE = html_page.HOSTILE


def _example(name='a.png', caption='score 0.4', size=(40, 60), channels=3):
  rng = np.random.default_rng(len(name))
  mask = np.zeros(size, np.uint8)
  mask[10:30, 20:45] = 1
  return {
    'name': name,
    'caption': caption,
    'image': rng.integers(0, 256, (*size, channels), np.uint8),
    'mask': mask,
  }


def _finding(level='error', names=(), kind='unpaired'):
  return {
    'level': level,
    'kind': kind,
    'split': 'train',
    'message': f'{names[0] if names else "it"} has no mask; add one',
    'names': list(names),
  }


def _report(**changed):
  split = {
    'num_examples': 1234,
    'sizes': [[40, 60, 1200], [60, 40, 34]],
    'image_kinds': {'RGB 8 bit JPEG': 1230, 'grey 8 bit PNG': 4},
    'mask_kinds': {'grey 8 bit PNG': 1234},
    'mean': [0.5, 0.25, 0.125],
    'std': [0.2, 0.2, 0.2],
    'classes': [
      {
        'name': name,
        'pixels': 10**i,
        'pixel_share': 0.1 * i,
        'images': 300 + i,
        'instances': 5000 + i,
      }
      for i, name in enumerate(_NAMES)
    ],
    'ignored_share': 0.0345,
    'mask_values': {'0': 7654, '128': 21},
  }
  return {
    'data': {
      'source': 'folder',
      'dir': '/data/cells',
      'name': '',
      'class_names': list(_NAMES),
    },
    'seconds': {'scan': 1.0, 'total': 2.5},
    'counts': {'error': 0, 'warning': 0, 'note': 0},
    'findings': [],
    'splits': {'train': split},
    'fit': {
      'explained': 'Edges are compared with borders.',
      'examples': [
        {
          'split': 'train',
          'index': 3,
          'name': 'a.png',
          'score': 0.41,
          'best': 'flipped',
          'best_score': 0.87,
          'suspicion': 2.5,
        }
      ],
    },
    'network': {
      'input': [40, 60, 3],
      'output': [40, 60],
      'mask': [40, 60],
      'parameters': 1234567,
      'loss': 1.0712,
      'expected_loss': 1.0986,
      'terms': {'loss/dice': 0.625},
      'grad_norm': 0.7345,
      'input_mean': [0.01, 0.02, 0.03],
      'input_std': [0.9, 1.0, 1.1],
      'error': None,
    },
    'suggestion': {
      'text': 'config.data.num_classes = 3',
      'fields': [
        ['data.num_classes', 2, 3, 'the values are 0, 1 & 2'],
        ['model.depth', 4, 4, 'fits'],
      ],
    },
    **changed,
  }


def _write(tmp_path, report, examples=(), batch=()) -> html_page.Page:
  path = tmp_path / 'inspect.html'
  page_lib.write(
    str(path), report, {'examples': list(examples), 'batch': list(batch)}
  )
  assert [p.name for p in tmp_path.iterdir()] == ['inspect.html']
  return html_page.Page(path.read_text(encoding='utf-8'))


def test_everything_is_told(tmp_path):
  example = _example()
  batch = [{'image': example['image'], 'mask': example['mask']}]
  page = _write(tmp_path, _report(), [example], batch)
  for text in (
    'Nothing wrong found',
    '/data/cells',
    '1,234 examples',
    'Edges are compared with borders.',
    'flipped',
    'rim 20.0 % 302 5,002',
    'ignored 3.5 %',
    '60 x 40 px',
    'RGB 8 bit JPEG 1,230',
    '128 21',
    '0.500, 0.250, 0.125',
    '40 x 60 ✔ same',
    '1,234,567',
    '1.0712',
    '1.0986',
    '0.6250',
    '0.7345',
    'data.num_classes 2 3 the values are 0, 1 & 2',
    'model.depth 4 the same fits',
    'config.data.num_classes = 3',
  ):
    assert text in page.text, text
  # Each link leads to a section.
  links = [a['href'].removeprefix('#') for a in page.of('a')]
  assert links == [s['id'] for s in page.of('section')] and len(links) == 7


def test_nothing_comes_from_elsewhere_and_names_are_text(tmp_path):
  names = [_HOSTILE, *(f'{i}{_HOSTILE}' for i in range(9))]
  report = _report(
    findings=[_finding('error', names, kind=_HOSTILE)],
    counts={'error': 1, 'warning': 0, 'note': 0},
    splits={_HOSTILE: _report()['splits']['train']},
  )
  report['data'] |= {
    'dir': _HOSTILE,
    'class_names': [_HOSTILE] * 3,
  }
  report['splits'][_HOSTILE]['classes'][0]['name'] = _HOSTILE
  report['splits'][_HOSTILE]['mask_kinds'] = {_HOSTILE: 2}
  report['fit']['explained'] = _HOSTILE
  report['fit']['examples'][0] |= {
    'name': _HOSTILE,
    'best': _HOSTILE,
  }
  report['suggestion'] = {
    'text': _HOSTILE,
    'fields': [[_HOSTILE] * 4],
  }
  examples = [_example(_HOSTILE, c) for c in ('score 0.1', _HOSTILE)]
  page = _write(tmp_path, report, examples)
  text = (tmp_path / 'inspect.html').read_text(encoding='utf-8')
  html_page.assert_self_contained(page, text)
  for name in names:
    assert name in page.texts
  assert page.of('svg', **{'aria-label': f'image {_HOSTILE}'})


@pytest.mark.parametrize(
  'error,warning,note,verdict',
  [
    (2, 1, 0, '✖ 2 errors and 1 warning'),
    (0, 3, 1, '▲ 3 warnings, 1 note'),
    (0, 0, 2, '✔ Nothing wrong found, 2 notes'),
  ],
)
def test_verdict(error, warning, note, verdict, tmp_path):
  counts = {'error': error, 'warning': warning, 'note': note}
  levels = [level for level, n in counts.items() for _ in range(n)]
  findings = [_finding(level, [f'{level}.png']) for level in levels]
  page = _write(tmp_path, _report(counts=counts, findings=findings))
  assert verdict in page.texts
  # The level is a word, not a colour alone.
  for level in levels:
    assert any(t.endswith(f' {level}') for t in page.texts)


@pytest.mark.parametrize(
  'source,title',
  [('folder', '/data/cells'), ('tfds', 'pets'), ('shapes', 'shapes')],
)
def test_title(source, title, tmp_path):
  report = _report()
  report['data'] |= {'source': source, 'name': 'pets'}
  page = _write(tmp_path, report)
  assert f'Inspection of {title}' in page.texts and title in page.texts


def test_names_beyond_the_first_are_folded(tmp_path):
  names = [f'images/{i:04}.png' for i in range(2500)]
  page = _write(tmp_path, _report(findings=[_finding(names=names)]))
  assert [t for t in page.texts if t in set(names)] == names[:2000]
  assert '2,497 more' in page.texts
  assert '500 more are in inspect.json' in page.texts
  assert page.texts.index(names[2]) < page.texts.index('2,497 more')
  assert page.texts.index(names[3]) > page.texts.index('2,497 more')


def test_pictures_are_where_they_belong(tmp_path):
  examples = [
    _example('fit.png', 'score 0.3; flipped: 0.8'),
    _example('twin.png', 'duplicates'),
    _example('first.png', 'train'),
  ]
  findings = [_finding('note', kind='duplicates')] * 2
  page = _write(tmp_path, _report(findings=findings), examples)
  order = [
    attributes.get('id') or attributes['aria-label']
    for tag, attributes in page.tags
    if tag == 'section' or tag == 'svg' and 'aria-label' in attributes
  ]
  assert [x for x in order if not x.endswith(('outlined', 'overlay'))][:7] == [
    'findings',
    'image twin.png',
    'fit',
    'image fit.png',
    'examples',
    'image first.png',
    'classes',
  ]


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'size,shown,lines',
  [
    ((40, 60), (40, 60), (160, 240)),
    ((128, 100), (128, 100), (128, 100)),
    ((300, 480), (150, 240), (150, 240)),
    ((30, 4000), (2, 240), (2, 240)),
  ],
)
def test_size_of_pictures(size, shown, lines, channels, tmp_path):
  example = _example(size=size, channels=channels)
  page = _write(tmp_path, _report(), [example])
  (plain,) = page.panel('image a.png')
  photo, outline = page.panel('a.png, mask outlined')
  _, overlay = page.panel('a.png, mask as overlay')
  assert photo == plain
  # The photo lies in the page once, and so do the two layers on it.
  assert len(page.of('image')) == 3 and len(page.of('use')) == 2
  assert plain.size == overlay.size == shown[::-1]
  assert outline.size == lines[::-1]
  assert plain.mode == ('L' if channels == 1 else 'RGB')
  if max(size) <= 64:
    expected = example['image'].squeeze()
    np.testing.assert_array_equal(np.asarray(plain), expected)
    np.testing.assert_array_equal(
      np.asarray(overlay), colors.color_mask(example['mask'], 3)
    )
  # All layers fill the same box.
  boxes = {(i['width'], i['height']) for i in page.of('image')}
  assert boxes == {(str(shown[1]), str(shown[0]))}


def test_masks_are_shrunk_to_the_centres_of_pixels(tmp_path):
  """As the image is, so that the two do not shift against each other."""
  example = _example(size=(720, 360))
  example['mask'][:] = 0
  example['mask'][1::3, 1::3] = 1
  page = _write(tmp_path, _report(), [example])
  _, overlay = page.panel('a.png, mask as overlay')
  assert overlay.size == (120, 240)
  assert (np.asarray(overlay) == (230, 159, 0)).all()


def test_outline_lies_on_the_border(tmp_path):
  page = _write(tmp_path, _report(), [_example()])
  _, outline = page.panel('a.png, mask outlined')
  layer = np.asarray(outline)
  # The rectangle [10:30, 20:45], at four times the size.
  inside = np.zeros((160, 240), bool)
  inside[40:120, 80:180] = True
  inner = inside.copy()
  inner[41:119, 81:179] = False
  outer = np.zeros((160, 240), bool)
  outer[39:121, 79:181] = True
  outer &= ~inside
  outer[[39, 39, 120, 120], [79, 180, 79, 180]] = False  # Not beside it.
  np.testing.assert_array_equal(
    layer[inner], [[230, 159, 0, 255]] * inner.sum()
  )
  np.testing.assert_array_equal(layer[outer], [[0, 0, 0, 255]] * outer.sum())
  assert not layer[~inner & ~outer, 3].any()


def test_outline_beside_what_is_ignored():
  mask = np.array([[0, 0, 255, 255, 2, 2, 1, -1]], np.int16)
  line = pictures.outline(np.repeat(mask, 2, 0), 3)
  black, white, blue, none = [0] * 3, [255] * 3, [86, 180, 233], [0] * 3
  expected = [none, black, white, black, blue, blue, black, none]
  np.testing.assert_array_equal(line[0, :, :3], expected)
  np.testing.assert_array_equal(
    line[1, :, 3], [0, 255, 255, 255, 255, 255, 255, 0]
  )


def test_batch_of_a_valid_network(tmp_path):
  example = _example()
  weights = np.linspace(0, 8, 20 * 40).reshape(20, 40)
  shown = {
    'image': example['image'],
    'mask': example['mask'][10:30, 10:50],
    'weight_map': weights,
  }
  flat = {**shown, 'weight_map': np.full((20, 40), 2.0)}
  page = _write(tmp_path, _report(), batch=[shown, flat])
  photo, outline = page.panel('image 0 of the batch, mask outlined')
  np.testing.assert_array_equal(np.asarray(photo), example['image'])
  alpha = np.asarray(outline)[..., 3]
  context = np.ones((160, 240), bool)
  context[40:120, 40:200] = False
  assert (alpha[context] == 140).all() and (alpha[~context] != 140).all()
  # The rectangle reaches the mask's edge, which is no border.
  assert not alpha[40, 100] and alpha[60, 80] == 255
  (mask,) = page.panel('image 0 of the batch, mask')
  np.testing.assert_array_equal(
    np.asarray(mask), colors.color_mask(shown['mask'], 3)
  )
  for i, expected in enumerate((weights / 8, np.full((20, 40), 0.25))):
    (drawn,) = page.panel(f'image {i} of the batch, weight map')
    np.testing.assert_array_equal(
      np.asarray(drawn), colors.color_scale(expected)
    )
  assert '0: weights 0 to 8' in page.texts and '1: weights 2 to 2' in page.texts
  assert '40 x 20 px (width x height) in the middle' in page.text


def test_pictures_are_named(tmp_path):
  batch = [{k: _example()[k] for k in ('image', 'mask')}]
  page = _write(tmp_path, _report(), [_example()], batch)
  html_page.assert_pictures_are_named(page)


def test_missing_parts(tmp_path):
  report = _report(fit=None, network=None)
  report['splits'] = {
    'empty': {
      'num_examples': 0,
      'sizes': [],
      'image_kinds': {},
      'mask_kinds': {},
      'mean': (),
      'std': (),
      'classes': [],
      'ignored_share': None,
      'mask_values': {},
    }
  }
  report['suggestion'] = {'text': '', 'fields': []}
  page = _write(tmp_path, report)
  shown = [s['id'] for s in page.of('section')]
  assert shown == ['findings', 'files', 'config']

  report = _report(network={'error': 'image_size is <too> small'})
  page = _write(tmp_path, report, [{**_example(), 'mask': None}])
  assert '✖ error: image_size is <too> small' in page.texts
  assert len(page.of('image')) == 1
  assert 'score 0.4; its mask cannot be drawn' in page.texts


def test_network_whose_output_is_not_the_mask(tmp_path):
  report = _report()
  report['network'] |= {'mask': [38, 58], 'loss': float('nan')}
  page = _write(tmp_path, report)
  assert '38 x 58 ✖ differs' in page.text and 'nan' in page.texts


def test_many_classes_and_sizes(tmp_path):
  report = _report()
  names = [f'class {i}' for i in range(200)]
  report['data']['class_names'] = names
  split = report['splits']['train']
  split['classes'] = [{**split['classes'][0], 'name': n} for n in names]
  split['sizes'] = [[100 + i, 200 + 2 * i, 3] for i in range(50)]
  example = _example()
  example['mask'] = np.arange(2400).reshape(40, 60).astype(np.uint8) % 200
  page = _write(tmp_path, report, [example])
  assert all(page.texts.count(n) == 2 for n in names)  # Legend and table.
  assert 'Colours of the 200 classes' in page.texts and '184 more' in page.texts
  labels = [svg.get('aria-label') for svg in page.of('svg')]
  assert 'histogram of width, 200 to 298 px' in labels
  assert 'histogram of height, 100 to 149 px' in labels
  _, overlay = page.panel('a.png, mask as overlay')
  assert len(np.unique(np.asarray(overlay).reshape(-1, 3), axis=0)) == 200


def test_name_that_is_no_unicode(tmp_path):
  name = b'caf\xe9.png'.decode('utf-8', 'surrogateescape')
  page = _write(tmp_path, _report(findings=[_finding(names=[name])]))
  assert r'caf\udce9.png' in page.texts


def test_page_is_small(tmp_path):
  """Also of noise, which no picture format can shrink."""
  examples = [_example(f'{i}.png', size=(240, 240)) for i in range(24)]
  batch = [{k: e[k] for k in ('image', 'mask')} for e in examples[:16]]
  _write(tmp_path, _report(), examples, batch)
  assert (tmp_path / 'inspect.html').stat().st_size < 3_000_000
