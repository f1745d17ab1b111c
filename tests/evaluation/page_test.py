"""The page of --mode=evaluate, as a browser would parse it."""

import math

import numpy as np
import pytest

from tests import html_page
from unet_jax.evaluation import glossary
from unet_jax.evaluation import page as page_lib
from unet_jax.reports import colors

_NAMES = ('ground', 'cell', 'rim')
_NAN = float('nan')


def _figures():
  return {
    'dataset_iou/ground': 0.91234,
    'dataset_iou/cell': 0.81,
    'dataset_iou/rim': _NAN,
    'dataset_iou/cell+rim': 0.79,
    'image_iou/ground': 0.9,
    'image_iou/cell': 0.8,
    'image_iou/rim': None,
    'dataset_miou': 0.8612,
    'image_miou': 0.85,
    'dataset_precision/cell': 0.7123,
    'image_hd95/cell': 3.14159,
    'hd95_infinite/cell': 1234.0,
    'image_mhd95': 2.5,
    'pixel_accuracy': 0.9321,
    'ece': 0.0312,
    'nll': 0.5,
    'loss': 0.4242,
    'brand_new/cell': 7.5,
  }


def _report(**changed):
  return {
    'title': 'cells at step 300',
    'about': {
      'step': 12300,
      'split': 'test',
      'seconds': 1.23456,
      'command': 'python main.py --mode=evaluate --config.eval.split=<test>',
    },
    'names': _NAMES,
    'figures': _figures(),
    'intervals': {
      'dataset_miou': (0.84, 0.87),
      'dataset_iou/cell': (0.8, 0.82),
      'image_miou': (_NAN, _NAN),
    },
    'confusion': np.array([[960, 30, 10], [1, 99999, 0], [0, 0, 0]]),
    'reliability': {
      'count': np.array([0, 0, 100, 300]),
      'confidence': np.array([_NAN, _NAN, 0.6, 0.9]),
      'accuracy': np.array([_NAN, _NAN, 0.5, 0.8]),
    },
    'notes': ['3 images have no mask & are left out.'],
    **changed,
  }


def _row(image='a.png', miou=0.5):
  return {
    'image': image,
    'miou': miou,
    'pixel_accuracy': 0.75,
    'iou/ground': miou,
    'iou/cell': _NAN,
  }


def _prediction(name='a.png', score=0.5, size=(40, 60), channels=3):
  rng = np.random.default_rng(0)
  mask = np.zeros(size, np.uint8)
  mask[10:30, 20:45] = 1
  mask[:2] = 255
  prediction = mask.copy()
  prediction[:2] = 0
  prediction[10:12, 20:45] = 2
  return {
    'name': name,
    'score': score,
    'image': rng.integers(0, 256, (*size, channels), np.uint8),
    'mask': mask,
    'prediction': prediction,
  }


def _write(tmp_path, report, rows=(), pictures=None) -> html_page.Page:
  path = tmp_path / 'eval.html'
  page_lib.write(str(path), report, list(rows), pictures or {})
  assert [p.name for p in tmp_path.iterdir()] == ['eval.html']
  page = html_page.Page(path.read_text(encoding='utf-8'))
  html_page.assert_self_contained(page, path.read_text(encoding='utf-8'))
  html_page.assert_pictures_are_named(page)
  return page


def test_everything_is_told(tmp_path):
  rows = [_row('a.png', 0.5), _row('b.png', 0.25), _row('c.png', _NAN)]
  pictures = {'worst': [_prediction()], 'best': [_prediction('b.png')]}
  page = _write(tmp_path, _report(), rows, pictures)
  for text in (
    'cells at step 300',
    'mean IoU, dataset 0.8612 0.8400 – 0.8700 mean IoU, image 0.8500 pixel',
    'step 12,300 split test seconds 1.235',
    '3 images have no mask & are left out.',
    'mean IoU dataset 0.8612 0.8400 – 0.8700 mean IoU image 0.8500 mean HD95 '
    'image 2.50 px pixel accuracy 0.9321 ECE 0.0312',
    'loss 0.4242 brand_new/cell 7.5000',
    # IoU twice and precision; an empty cell was not measured.
    'class IoU dataset IoU image precision dataset ground 0.9123 0.9000 '
    'cell 0.8100 0.8000 – 0.8200 0.8000 0.7123 rim – – cell+rim 0.7900 mean '
    '0.8612 0.8400 – 0.8700 0.8500',
    'HD95, px image no HD95, images cell 3.14 1,234 mean 2.50',
    'ground 96.0 % 960 3.0 % 30 1.0 % 10 cell < 0.01 % 1 100.0 % 99,999 0.0 %',
    'rim – – –',
    '101,000 pixels',
    'ECE 0.0312 NLL 0.5000',
    'images 3 without a score 1 median mIoU 0.3750',
    'b.png 0.2500 0.7500 0.2500 – a.png 0.5000 0.7500 0.5000 –',
    'a.png mIoU 0.5000',
    'IoU pixels in mask and prediction / pixels in either 0 to 1 higher Jac',
    'ECE gap',
    'dataset : counted over the whole split, then divided once',
    'Made by python main.py --mode=evaluate --config.eval.split=<test>',
  ):
    assert text in page.text, text
  assert 'c.png' not in page.texts
  links = [a['href'].removeprefix('#') for a in page.of('a')]
  assert links == [s['id'] for s in page.of('section')] and len(links) == 7
  assert not page.of('input')  # There are no outlines to hide.


def test_no_figure_is_lost(tmp_path):
  """Whatever the figures are called, each value is on the page."""
  names = [
    f'{reduction}_{measure}/cell'
    for measure in glossary.OVERLAPS | glossary.BORDERS
    for reduction in ('dataset', 'image')
  ]
  names += [glossary.mean_of(n.partition('/')[0]) for n in names]
  names += [*glossary.WHOLES, 'dataset_fwiou', 'm', '/', 'dataset_', 'x/y/cell']
  figures = {name: (100 + i) / 10000 for i, name in enumerate(names)}
  figures |= {n: 100.0 + i for i, n in enumerate(names) if 'infinite' in n}
  figures |= {n: 1 + i / 100 for i, n in enumerate(names) if 'hd95' in n}
  page = _write(tmp_path, _report(figures=figures, intervals={}))
  for name, value in figures.items():
    shown = {f'{value:.4f}', f'{value:.2f}', f'{value:.0f}', f'{value:.2f} px'}
    assert shown & set(page.texts), name


def test_names_are_text(tmp_path):
  hostile = html_page.HOSTILE
  report = _report(
    title=hostile,
    about={hostile: hostile, 'command': hostile},
    names=(hostile, 'cell', 'rim'),
    figures={f'dataset_iou/{hostile}': 0.5, hostile: 0.6, f'x/{hostile}': 0.7},
    intervals={},
    notes=[hostile],
  )
  row = {**_row(hostile), f'iou/{hostile}': 0.5}
  page = _write(tmp_path, report, [row], {hostile: [_prediction(hostile)]})
  # Title twice; about twice and the command; note; two figures; class in the
  # table, in rows and columns of the confusion and in the legend; image in the
  # list, in its heading and below its picture.
  assert page.texts.count(hostile) == 6 + 2 + 4 + 2 - 1
  assert f'x/{hostile}' in page.texts
  assert f'IoU {hostile}' in page.texts
  assert page.of('svg', **{'aria-label': f'image {hostile}'})
  assert page.of('td', title=f'{hostile} as cell: 30 pixels')


def test_name_that_is_no_unicode(tmp_path):
  name = b'caf\xe9.png'.decode('utf-8', 'surrogateescape')
  page = _write(tmp_path, _report(), [_row(name)])
  assert r'caf\udce9.png' in page.texts


def test_missing_parts(tmp_path):
  report = _report(
    figures={},
    intervals={},
    confusion=np.zeros((0, 0), int),
    reliability=None,
    notes=[],
    about={},
  )
  page = _write(tmp_path, report, [_row(miou=_NAN)], {'worst': []})
  assert not page.of('section') and not page.of('footer')
  report['figures'] = {'loss': None}
  page = _write(tmp_path, report)
  assert [s['id'] for s in page.of('section')] == ['figures']
  assert 'loss –' in page.text


def test_figures_without_a_score_have_no_interval(tmp_path):
  intervals = {'dataset_miou': (0.1, 0.2)}
  figures = {'dataset_miou': _NAN}
  page = _write(tmp_path, _report(figures=figures, intervals=intervals))
  assert 'mean IoU, dataset –' in page.text and '0.1000' not in page.text
  assert not any('interval' in p.get('class', '') for p in page.of('path'))


def test_one_channel_has_two_classes(tmp_path):
  report = _report(
    names=('ground', 'cell'),
    figures={'dataset_iou/cell': 0.5},
    intervals={},
    confusion=np.array([[3, 1], [2, 2]]),
  )
  page = _write(tmp_path, report)
  assert 'ground 75.0 % 3 25.0 % 1 cell 50.0 % 2 50.0 % 2' in page.text
  assert 'IoU dataset cell 0.5000' in page.text


@pytest.mark.parametrize('num_classes', [10, 11, 30])
def test_confusion_of_many_classes(num_classes, tmp_path):
  names = [f'class {i}' for i in range(num_classes)]
  counts = np.eye(num_classes, dtype=int) * 10**6
  counts[1, :3] = 3, 10**6, 5000
  page = _write(tmp_path, _report(names=names, confusion=counts))
  cells = page.of('td', title='class 1 as class 0: 3 pixels')
  assert [cell['class'] for cell in cells] == ['wrong']
  (deep,) = page.of('td', title='class 2 as class 2: 1,000,000 pixels')
  assert deep == {**deep, 'class': 'right deep', 'style': '--tint:100.0'}
  # The tint of an error is the root of its share, so that it can be seen.
  (tint,) = page.of('td', title='class 1 as class 2: 5,000 pixels')
  assert tint['style'] == f'--tint:{100 * math.sqrt(5000 / 1005003):.1f}'
  # Of many classes the counts are not in sight.
  dense, roomy = [
    text in page.text
    for text in (
      'class 1 1 99 1 0 0',
      'class 1 < 0.01 % 3 99.5 % 1,000,000 0.50 % 5,000',
    )
  ]
  assert (dense, roomy) == (num_classes > 10, num_classes <= 10)


def test_reliability_diagram(tmp_path):
  page = _write(tmp_path, _report())
  (label,) = [
    svg['aria-label'] for svg in page.of('svg', **{'class': 'reliability'})
  ]
  assert label == 'accuracy of the pixels of each confidence'
  # Of four bins two are empty. 300 units are 1; y points down.
  places = [(c['cx'], c['cy']) for c in page.of('circle')]
  assert places == [('180.0', '150.0'), ('270.0', '60.0')]
  bars = [
    [rect[key] for key in ('x', 'width', 'y', 'height')]
    for rect in page.of('rect')
    if 'x' in rect and rect['width'] == '74.0'
  ]
  assert bars == [
    ['150.5', '74.0', '150.0', '150.0'],
    ['150.5', '74.0', '370.0', '20.0'],
    ['225.5', '74.0', '60.0', '240.0'],
    ['225.5', '74.0', '330.0', '60.0'],
  ]
  assert 'confidence 0.600, accuracy 0.500, 100 pixels' in page.texts
  assert 'the highest bar is 75 %' in page.text


def test_reliability_without_pixels(tmp_path):
  empty = {'count': np.zeros(3, int), 'confidence': [_NAN] * 3}
  empty['accuracy'] = empty['confidence']
  page = _write(tmp_path, _report(reliability=empty))
  assert not page.of('circle') and 'the highest bar is 0 %' in page.text


def test_worst_of_hundreds_of_images(tmp_path):
  values = np.random.default_rng(0).permutation(300) / 300
  rows = [_row(f'{i:03}.png', v) for i, v in enumerate(values)]
  rows += [_row('none.png', None), {'image': 'bare.png'}]
  page = _write(tmp_path, _report(), rows)
  shown = [t for t in page.texts if t.endswith('.png')]
  assert shown == [f'{i:03}.png' for i in np.argsort(values)[:20]]
  assert not page.of('details')
  assert 'images 302 without a score 2 median mIoU 0.4983' in page.text
  # 24 bars of 0..1, each with its share of the 300.
  labels = [svg.get('aria-label') for svg in page.of('svg')]
  assert 'histogram of mIoU of an image, 0.0 to 1.0' in labels
  counts = [
    int(t.split()[-2])
    for t in page.texts
    if t.startswith(('0.', '1.')) and t.endswith((' image', ' images'))
  ]
  assert sum(counts) == 300 and len(counts) == 24 and max(counts) <= 13


def test_worst_of_many_classes_has_no_column_of_each(tmp_path):
  row = {**_row(), **{f'iou/class {i}': 0.5 for i in range(9)}}
  page = _write(tmp_path, _report(), [row])
  assert not any(t.startswith('IoU class') for t in page.texts)


@pytest.mark.parametrize('channels', [1, 3])
def test_prediction_side_by_side(channels, tmp_path):
  example = _prediction(channels=channels)
  page = _write(tmp_path, _report(), pictures={'worst': [example]})
  (photo,) = page.panel('image a.png')
  np.testing.assert_array_equal(np.asarray(photo), example['image'].squeeze())
  for what in ('mask', 'prediction'):
    (drawn,) = page.panel(f'a.png, {what}')
    np.testing.assert_array_equal(
      np.asarray(drawn), colors.color_mask(example[what], 3)
    )
  below, errors = page.panel('a.png, errors')
  assert below == photo
  expected = np.full((40, 60, 4), (255, 255, 255, 190), np.uint8)
  expected[:2] = 255
  expected[10:12, 20:45] = 220, 40, 40, 255
  np.testing.assert_array_equal(np.asarray(errors), expected)
  # The photo lies in the page once.
  assert len(page.of('image')) == 4 and len(page.of('use')) == 1


def test_prediction_of_a_valid_network(tmp_path):
  example = _prediction()
  example['prediction'] = example['mask'][10:30, 10:50].copy()
  example['prediction'][0, 0] = 1
  page = _write(tmp_path, _report(), pictures={'worst': [example]})
  (photo,) = page.panel('image a.png')
  np.testing.assert_array_equal(
    np.asarray(photo), example['image'][10:30, 10:50]
  )
  _, errors = page.panel('a.png, errors')
  wrong = (np.asarray(errors) == (220, 40, 40, 255)).all(-1)
  assert wrong.sum() == 1 and wrong[0, 0]


def test_large_pictures_are_scaled_down(tmp_path):
  """Hundreds of kilobytes each as they are, of noise."""
  examples = [_prediction(f'{i}.png', size=(700, 960)) for i in range(6)]
  pictures = {'worst': examples, 'best': examples}
  page = _write(tmp_path, _report(), pictures=pictures)
  assert {(i['width'], i['height']) for i in page.of('image')} == {
    ('240', '175')
  }
  assert (tmp_path / 'eval.html').stat().st_size < 1_000_000
  order = [t for t in page.texts if t in ('Worst', 'Best') or '.png' in t]
  assert order[:2] == ['Worst', '0.png'] and order[7:9] == ['Best', '0.png']


def test_nothing_is_left_of_a_page_that_fails(tmp_path):
  path = tmp_path / 'eval.html'
  path.write_text('the one before')
  with pytest.raises(KeyError):
    page_lib.write(str(path), _report(), [{'miou': 0.5}], {})
  assert [p.name for p in tmp_path.iterdir()] == ['eval.html']
  assert path.read_text() == 'the one before'


@pytest.mark.parametrize(
  'figure,title,reduction',
  [
    ('dataset_iou/a/b', 'IoU', 'dataset'),
    ('image_hd95/cell', 'HD95', 'image'),
    ('dataset_band_miou', 'mean band IoU', 'dataset'),
    ('image_mnsd', 'mean NSD', 'image'),
    ('dataset_fwiou', 'frequency weighted IoU', 'dataset'),
    ('mce', 'MCE', ''),
    ('v_rand_thin_best', 'V_rand, with borders thinned, best', ''),
  ],
)
def test_glossary(figure, title, reduction):
  entry, found = glossary.find(figure)
  assert (entry.title, found) == (title, reduction)


@pytest.mark.parametrize(
  'figure',
  ['ece/cell', 'iou', 'dataset_', 'miou/cell', 'v_rand_threshold'],
)
def test_glossary_lacks(figure):
  assert glossary.find(figure) is None
