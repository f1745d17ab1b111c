"""The page of --mode=inspect, as a browser would parse it."""

import numpy as np
import pytest

from tests import html_page
from unet_jax.inspection import page
from unet_jax.reports import colors

_NAMES = ('ground', 'cell', 'rim')
_HOSTILE = html_page.HOSTILE


def _example(name='a.png', caption='score 0.4', size=(40, 60)):
  rng = np.random.default_rng(len(name))
  image, mask = rng.integers(0, 256, (*size, 3), np.uint8), np.zeros(size, 'u1')
  mask[10:30, 20:45] = 1
  return {
    'name': name,
    'caption': caption,
    'note': '',
    'image': image,
    'mask': mask,
    'num_classes': 3,
  }


def _finding(level='error', names=(), kind='unpaired'):
  message = f'{names[0] if names else "it"} has no mask; add one'
  finding = {'level': level, 'kind': kind, 'split': 'train'}
  return {**finding, 'message': message, 'names': list(names)}


def _classes(names):
  keys = ('name', 'pixels', 'pixel_share', 'images', 'instances')
  rows = ((n, 10**i, 0.1 * i, 300 + i, 5000 + i) for i, n in enumerate(names))
  return [dict(zip(keys, row)) for row in rows]


def _report(**changed):
  split = {
    'num_examples': 1234,
    'sizes': [[40, 60, 1200], [60, 40, 34]],
    'image_kinds': {'RGB 8 bit JPEG': 1230, 'grey 8 bit PNG': 4},
    'mask_kinds': {'grey 8 bit PNG': 1234},
    'mean': [0.5, 0.25, 0.125],
    'std': [0.2, 0.2, 0.2],
    'intensity': 'dtype',
    'classes': _classes(_NAMES),
    'ignored_share': 0.0345,
    'mask_values': {'0': 7654, '128': 21},
  }
  place = {'split': 'train', 'index': 3, 'name': 'a.png', 'score': 0.41}
  best = {'best': 'flipped', 'best_score': 0.87, 'suspicion': 2.5}
  data = {'source': 'folder', 'dir': '/data/cells', 'name': ''}
  return {
    'data': {**data, 'class_names': list(_NAMES)},
    'seconds': {'scan': 1.0, 'total': 2.5},
    'counts': {'error': 0, 'warning': 0, 'note': 0},
    'findings': [],
    'splits': {'train': split},
    'fit': {
      'explained': 'Edges are compared with borders.',
      'examples': [{**place, **best}],
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
  page.write(str(path), report, {'examples': examples, 'batch': batch})
  return html_page.read(path)


def test_everything_is_there(tmp_path):
  example = _example()
  batch = [{'image': example['image'], 'mask': example['mask']}]
  written = _write(tmp_path, _report(), [example], batch)
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
    assert text in written.text, text
  # Each link leads to a section.
  links = [a['href'].removeprefix('#') for a in written.of('a')]
  assert links == [s['id'] for s in written.of('section')] and len(links) == 7


def test_nothing_comes_from_elsewhere_and_names_are_text(tmp_path):
  names = [_HOSTILE, *(f'{i}{_HOSTILE}' for i in range(9))]
  odd = [html_page.NO_UNICODE]
  report = _report(
    findings=[_finding('error', names + odd, kind=_HOSTILE)],
    counts={'error': 1, 'warning': 0, 'note': 0},
    splits={_HOSTILE: _report()['splits']['train']},
  )
  report['data'] |= {'dir': _HOSTILE, 'class_names': [_HOSTILE] * 3}
  report['splits'][_HOSTILE]['classes'][0]['name'] = _HOSTILE
  report['splits'][_HOSTILE]['mask_kinds'] = {_HOSTILE: 2}
  report['fit']['explained'] = _HOSTILE
  report['fit']['examples'][0] |= {'name': _HOSTILE, 'best': _HOSTILE}
  report['suggestion'] = {'text': _HOSTILE, 'fields': [[_HOSTILE] * 4]}
  examples = [_example(_HOSTILE, c) for c in ('score 0.1', _HOSTILE)]
  written = _write(tmp_path, report, examples)
  for name in (*names, r'caf\udce9.png'):
    assert name in written.texts
  assert written.of('svg', **{'aria-label': f'image {_HOSTILE}'})


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
  written = _write(tmp_path, _report(counts=counts, findings=findings))
  assert verdict in written.texts
  # The level is a word, not a colour alone.
  for level in levels:
    assert any(t.endswith(f' {level}') for t in written.texts)


def test_title(tmp_path):
  titles = {'folder': '/data/cells', 'tfds': 'pets', 'shapes': 'shapes'}
  for source, title in titles.items():
    report = _report()
    report['data'] |= {'source': source, 'name': 'pets'}
    written = _write(tmp_path, report)
    assert f'Inspection of {title}' in written.texts and title in written.texts


def test_names_beyond_the_first_are_folded(tmp_path):
  names = [f'images/{i:04}.png' for i in range(2500)]
  written = _write(tmp_path, _report(findings=[_finding(names=names)]))
  assert [t for t in written.texts if t in set(names)] == names[:2000]
  assert '2,497 more' in written.texts
  assert '500 more are in inspect.json' in written.texts
  assert written.texts.index(names[2]) < written.texts.index('2,497 more')
  assert written.texts.index(names[3]) > written.texts.index('2,497 more')


def test_pictures_are_where_they_belong(tmp_path):
  captions = ('score 0.3; flipped: 0.8', 'duplicates', 'train')
  names = ('fit.png', 'twin.png', 'first.png')
  examples = [_example(*x) for x in zip(names, captions)]
  findings = [_finding('note', kind='duplicates')] * 2
  written = _write(tmp_path, _report(findings=findings), examples)
  order = [
    attributes.get('id') or attributes['aria-label']
    for tag, attributes in written.tags
    if tag == 'section' or tag == 'svg' and 'aria-label' in attributes
  ]
  order = [x for x in order if not x.endswith(('outlined', 'overlay'))]
  assert ', '.join(order[:7]) == (
    'findings, image twin.png, fit, image fit.png, examples, image first.png, '
    'classes'
  )


def test_classes_that_are_only_suggested_are_in_the_legend(tmp_path):
  report = _report()
  report['data']['class_names'] = ['class_0', 'class_1']
  report['splits']['train']['classes'] = []
  assert (
    'class_1 class_2 ignored' in _write(tmp_path, report, [_example()]).text
  )
  report['suggestion']['fields'][0][2] = 2
  assert 'class_2' not in _write(tmp_path, report, [_example()]).text


def test_batch_of_a_valid_network(tmp_path):
  example = _example()
  weights = np.linspace(0, 8, 20 * 40).reshape(20, 40)
  shown = {'image': example['image'], 'mask': example['mask'][10:30, 10:50]}
  batch = [{**shown, 'weight_map': w} for w in (weights, 0 * weights + 2)]
  written = _write(tmp_path, _report(), batch=batch)
  # All maps have one scale.
  for i, expected in enumerate((weights / 8, 0 * weights + 0.25)):
    assert written.panel(f'image {i} of the batch, mask outlined')
    assert written.panel(f'image {i} of the batch, mask')
    (drawn,) = written.panel(f'image {i} of the batch, weight map')
    expected = colors.color_scale(expected)
    np.testing.assert_array_equal(np.asarray(drawn), expected)
  assert {'0: weights 0 to 8', '1: weights 2 to 2'} <= set(written.texts)
  assert '40 x 20 px (width x height) in the middle' in written.text


def test_missing_parts(tmp_path):
  split = _report()['splits']['train']
  empty = {key: type(value)() for key, value in split.items()}
  report = _report(fit=None, network=None)
  report['splits'] = {'empty': {**empty, 'ignored_share': None}}
  report['suggestion'] = {'text': '', 'fields': []}
  written = _write(tmp_path, report)
  shown = [s['id'] for s in written.of('section')]
  assert shown == ['findings', 'files', 'config']

  report = _report(network={'error': 'image_size is <too> small'})
  written = _write(tmp_path, report, [{**_example(), 'mask': None}])
  assert '✖ error: image_size is <too> small' in written.texts
  assert len(written.of('image')) == 1
  assert 'score 0.4; its mask cannot be drawn' in written.texts


def test_network_whose_output_is_not_the_mask(tmp_path):
  report = _report()
  report['network'] |= {'mask': [38, 58], 'loss': float('nan')}
  written = _write(tmp_path, report)
  assert '38 x 58 ✖ differs' in written.text and 'nan' in written.texts


def test_many_classes_and_sizes(tmp_path):
  report = _report()
  names = [f'class {i}' for i in range(200)]
  report['data']['class_names'] = names
  split = report['splits']['train']
  split['classes'] = [{**split['classes'][0], 'name': n} for n in names]
  split['sizes'] = [[100 + i, 200 + 2 * i, 3] for i in range(50)]
  example = _example()
  example['mask'] = np.arange(2400).reshape(40, 60).astype(np.uint8) % 200
  example['num_classes'] = 200
  written = _write(tmp_path, report, [example])
  assert all(written.texts.count(n) == 2 for n in names)  # Legend and table.
  assert {'Colours of the 200 classes', '184 more'} <= set(written.texts)
  labels = [svg.get('aria-label') for svg in written.of('svg')]
  assert 'histogram of width, 200 to 298 px' in labels
  assert 'histogram of height, 100 to 149 px' in labels
  _, overlay = written.panel('a.png, mask as overlay')
  assert len(np.unique(np.asarray(overlay).reshape(-1, 3), axis=0)) == 200


def test_page_is_small(tmp_path):
  """Also of noise, which no picture format can shrink."""
  examples = [_example(f'{i}.png', size=(240, 240)) for i in range(24)]
  batch = [{k: e[k] for k in ('image', 'mask')} for e in examples[:16]]
  _write(tmp_path, _report(), examples, batch)
  assert (tmp_path / 'inspect.html').stat().st_size < 3_000_000
