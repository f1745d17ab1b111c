"""The page of --mode=evaluate, as a browser would parse it."""

import numpy as np
import pytest
from PIL import Image

from tests import html_page
from unet_jax.evaluation import glossary, page

_NAN = float('nan')
_PLOTS = {}  # {name: PNG file}
_NO_PLOTS = {'confusion': np.zeros((0, 0), int), 'reliability': None}
_METRICS = {
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


@pytest.fixture(scope='module', autouse=True)
def _draw_plots(tmp_path_factory):
  folder = tmp_path_factory.mktemp('figures')
  for width, name in enumerate(('confusion', 'reliability'), 300):
    _PLOTS[name] = str(folder / f'{name}.png')
    Image.new('RGB', (width, 200), 'red').save(_PLOTS[name])


def _report(**changed):
  command = 'python main.py --mode=evaluate --config.eval.split=<test>'
  about = {'step': 12300, 'split': 'test', 'seconds': 1.23456}
  return {
    'title': 'cells at step 300',
    'about': {**about, 'command': command},
    'names': ('ground', 'cell', 'rim'),
    'metrics': _METRICS,
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
    'plots': _PLOTS,
    'notes': ['3 images have no mask & are left out.'],
    **changed,
  }


def _row(image='a.png', miou=0.5):
  row = {'image': image, 'miou': miou, 'pixel_accuracy': 0.75}
  return {**row, 'iou/ground': miou, 'iou/cell': _NAN}


def _prediction(name='a.png', size=(40, 60)):
  image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  mask, prediction = np.zeros((2, *size), np.uint8)
  mask[10:30, 20:45] = prediction[10:30, 20:45] = 1
  mask[:2], prediction[10:12, 20:45] = 255, 2
  shown = {'image': image, 'mask': mask, 'prediction': prediction}
  return {'name': name, 'score': 0.5, **shown}


def _write(tmp_path, report, rows=(), predictions=None) -> html_page.Page:
  path = tmp_path / 'eval.html'
  page.write(str(path), report, rows, predictions or {})
  return html_page.read(path)


def test_everything_is_there(tmp_path):
  rows = [_row('a.png', 0.5), _row('b.png', 0.25), _row('c.png', _NAN)]
  pictures = {'worst': [_prediction()], 'best': [_prediction('b.png')]}
  written = _write(tmp_path, _report(), rows, pictures)
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
    'mask ↓ prediction → ground cell rim ground 960 30 10 cell 1 99,999 0 rim',
    'bin mean confidence accuracy pixels 0.50 to 0.75 0.600 0.500 100 0.75 to '
    '1.00 0.900 0.800 300 Images',
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
    assert text in written.text, text
  assert 'c.png' not in written.texts
  links = [a['href'].removeprefix('#') for a in written.of('a')]
  assert links == [s['id'] for s in written.of('section')] and len(links) == 7
  assert not written.of('input')  # There are no outlines to hide.


def test_no_metric_is_lost(tmp_path):
  """Each value is on the page, whatever its name."""
  measures = glossary.OVERLAPS | glossary.BORDERS
  names = [f'{of}_{m}/cell' for m in measures for of in ('dataset', 'image')]
  names += [glossary.mean_of(n.partition('/')[0]) for n in names]
  names += [*glossary.WHOLES, 'dataset_fwiou', 'm', '/', 'dataset_', 'x/y/cell']
  metrics = {name: (100 + i) / 10000 for i, name in enumerate(names)}
  metrics |= {n: 100.0 + i for i, n in enumerate(names) if 'infinite' in n}
  metrics |= {n: 1 + i / 100 for i, n in enumerate(names) if 'hd95' in n}
  written = _write(tmp_path, _report(metrics=metrics, intervals={}))
  for name, value in metrics.items():
    shown = {f'{value:.4f}', f'{value:.2f}', f'{value:.0f}', f'{value:.2f} px'}
    assert shown & set(written.texts), name


def test_names_are_text(tmp_path):
  hostile = html_page.HOSTILE
  metrics = {f'dataset_iou/{hostile}': 0.5, hostile: 0.6, f'x/{hostile}': 0.7}
  report = _report(metrics=metrics, intervals={}, title=hostile)
  report['about'] = {hostile: hostile, 'command': hostile}
  report |= {'names': (hostile, 'cell', 'rim'), 'notes': [hostile]}
  row = {**_row(hostile), f'iou/{hostile}': 0.5}
  rows = [row, _row(html_page.NO_UNICODE)]
  written = _write(tmp_path, report, rows, {hostile: [_prediction(hostile)]})
  assert r'caf\udce9.png' in written.texts
  # Title twice; about twice and the command; note; two metrics; class in the
  # table, in rows and columns of the confusion and in the legend; image in the
  # list, in its heading and below its picture.
  assert written.texts.count(hostile) == 6 + 2 + 4 + 2 - 1
  assert f'x/{hostile}' in written.texts
  assert f'IoU {hostile}' in written.texts
  assert written.of('svg', **{'aria-label': f'image {hostile}'})


def test_missing_parts(tmp_path):
  report = _report(metrics={}, intervals={}, notes=[], about={}, **_NO_PLOTS)
  written = _write(tmp_path, report, [_row(miou=_NAN)], {'worst': []})
  assert not written.of('section') and not written.of('footer')
  report['metrics'] = {'loss': None}
  written = _write(tmp_path, report)
  assert [s['id'] for s in written.of('section')] == ['metrics']
  assert 'loss –' in written.text


def test_metrics_without_a_score_have_no_interval(tmp_path):
  intervals = {'dataset_miou': (0.1, 0.2)}
  metrics = {'dataset_miou': _NAN}
  written = _write(tmp_path, _report(metrics=metrics, intervals=intervals))
  assert 'mean IoU, dataset –' in written.text and '0.1000' not in written.text
  assert not any('interval' in p.get('class', '') for p in written.of('path'))


def test_one_channel_has_two_classes(tmp_path):
  report = _report(names=('ground', 'cell'), intervals={})
  report['metrics'] = {'dataset_iou/cell': 0.5}
  report['confusion'] = np.array([[3, 1], [2, 2]])
  written = _write(tmp_path, report)
  assert 'prediction → ground cell ground 3 1 cell 2 2' in written.text
  assert 'IoU dataset cell 0.5000' in written.text


def test_counts_of_many_classes_are_all_there(tmp_path):
  names = [f'class {i}' for i in range(30)]
  counts = np.arange(900).reshape(30, 30) + 1000
  written = _write(tmp_path, _report(names=names, confusion=counts))
  row = ' '.join(f'{n:,}' for n in counts[29])
  assert f'class 29 {row} Calibration' in written.text


def test_plots_are_shown_as_they_are(tmp_path):
  written = _write(tmp_path, _report())
  alts = ('confusion matrix', 'accuracy of the pixels of each confidence')
  for alt, (name, path) in zip(alts, _PLOTS.items()):
    (layer,) = written.panel(alt)
    with Image.open(path) as drawn:
      assert layer == drawn, name
      (svg,) = written.of('svg', **{'aria-label': alt})
      # No larger than it was drawn.
      assert svg['style'] == f'max-width:{drawn.width}px'


def test_reliability_without_pixels(tmp_path):
  empty = {'count': np.zeros(3, int), 'confidence': [_NAN] * 3}
  empty['accuracy'] = empty['confidence']
  written = _write(tmp_path, _report(reliability=empty))
  assert 'accuracy pixels What the measures mean' in written.text


def test_worst_of_hundreds_of_images(tmp_path):
  values = np.random.default_rng(0).permutation(300) / 300
  rows = [_row(f'{i:03}.png', v) for i, v in enumerate(values)]
  rows += [_row('none.png', None), {'image': 'bare.png'}]
  written = _write(tmp_path, _report(**_NO_PLOTS), rows)
  shown = [t for t in written.texts if t.endswith('.png')]
  assert shown == [f'{i:03}.png' for i in np.argsort(values)[:20]]
  assert not written.of('details')
  assert 'images 302 without a score 2 median mIoU 0.4983' in written.text
  # 24 bars of 0..1, each with its share of the 300.
  labels = [svg.get('aria-label') for svg in written.of('svg')]
  assert 'histogram of mIoU of an image, 0.0 to 1.0' in labels
  counts = [
    int(t.split()[-2])
    for t in written.texts
    if t.startswith(('0.', '1.')) and t.endswith((' image', ' images'))
  ]
  assert sum(counts) == 300 and len(counts) == 24 and max(counts) <= 13


def test_worst_of_many_classes_has_no_column_of_each(tmp_path):
  row = {**_row(), **{f'iou/class {i}': 0.5 for i in range(9)}}
  written = _write(tmp_path, _report(), [row])
  assert not any(t.startswith('IoU class') for t in written.texts)


def test_large_pictures_are_scaled_down(tmp_path):
  """Hundreds of kilobytes each as they are, of noise."""
  examples = [_prediction(f'{i}.png', size=(700, 960)) for i in range(6)]
  pictures = {'worst': examples, 'best': examples}
  written = _write(tmp_path, _report(**_NO_PLOTS), predictions=pictures)
  sizes = {(i['width'], i['height']) for i in written.of('image')}
  assert sizes == {('240', '175')}
  assert (tmp_path / 'eval.html').stat().st_size < 1_000_000
  order = [t for t in written.texts if t in ('Worst', 'Best') or '.png' in t]
  assert order[:2] == ['Worst', '0.png'] and order[7:9] == ['Best', '0.png']


def test_nothing_is_left_of_a_page_that_fails(tmp_path):
  path = tmp_path / 'eval.html'
  path.write_text('the one before')
  with pytest.raises(KeyError):
    page.write(str(path), _report(), [{'miou': 0.5}], {})
  assert [p.name for p in tmp_path.iterdir()] == ['eval.html']
  assert path.read_text() == 'the one before'
