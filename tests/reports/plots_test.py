"""The plots of a workdir."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from unet_jax.reports import plots

_NAMES = ('ground', 'cell', 'rim')


@pytest.fixture
def drawn(monkeypatch):
  """The saved figures, as matplotlib has them; each must become a PNG."""
  saved, save = [], plots._save

  def keep(figure, path):
    saved.append(figure)
    save(figure, path)
    with Image.open(path) as png:
      assert png.format == 'PNG'
      figure.shorter_side = min(png.size)
      assert len(np.unique(np.asarray(png))) > 50

  monkeypatch.setattr(plots, '_save', keep)
  return saved


def _panel(axis):
  (image,) = axis.images
  return np.asarray(image.get_array())


def _texts(texts):
  return [text.get_text() for text in texts]


@pytest.mark.parametrize('best', ['eval/dataset_miou', '-eval/seconds'])
def test_curves(best, drawn, tmp_path):
  score, seconds = 'eval/dataset_miou', 'eval/seconds'
  lines = [
    {'step': 1, 'train/loss': 3.0},
    {'step': 2, 'train/loss': 2.0},
    {'step': 2, 'eval/loss': 2.5, score: 0.5, seconds: 7},
    # An undefined score is no point.
    {'step': 4, score: None, seconds: 8},
  ]
  plots.draw_curves(str(tmp_path / 'curves.png'), lines, best)
  points = lambda axis: {
    line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
    for line in axis.lines
  }
  left_axis, right_axis = drawn[0].axes
  losses = {'train/loss': ([1, 2], [3.0, 2.0]), 'eval/loss': ([2], [2.5])}
  assert points(left_axis) == losses
  right = {score: ([2], [0.5]), seconds: ([2, 4], [7, 8])}
  if best == score:
    del right[seconds]
  assert points(right_axis) == right
  assert left_axis.get_xlim() == right_axis.get_xlim()


def test_a_single_point_is_seen(drawn, tmp_path):
  lines = [{'step': 20, 'train/loss': 3.0}]
  plots.draw_curves(str(tmp_path / 'a.png'), lines, 'eval/dataset_miou')
  axis = drawn[0].axes[0]
  assert axis.lines[0].get_marker() == 'o'
  assert list(axis.get_xticks() % 1) == [0] * len(axis.get_xticks())


def test_curves_of_a_run_without_metrics(drawn, tmp_path):
  plots.draw_curves(str(tmp_path / 'curves.png'), [], 'eval/dataset_miou')
  assert not drawn[0].axes[0].lines


def test_confusion(drawn, tmp_path):
  counts = np.array([[900, 90, 10], [1, 0, 2999], [0, 0, 0]])
  path = str(tmp_path / 'figures' / 'confusion.png')
  plots.draw_confusion(path, counts, ('ground', '$cell$', 'r' * 40))
  axis = drawn[0].axes[0]
  shares = [[0.9, 0.09, 0.01], [1 / 3000, 0, 2999 / 3000], [0, 0, 0]]
  assert_allclose(_panel(axis), shares)
  assert _texts(axis.texts) == [
    *('90.0 %\n900', '9.0 %\n90', '1.0 %\n10'),
    *('0.0 %\n1', '0.0 %\n0', '100.0 %\n2,999'),
    *'–––',
  ]
  # White on dark, black on light.
  assert [t.get_color() for t in axis.texts[:2]] == ['white', 'black']
  labels = ['ground', '$cell$', 'r' * 23 + '…']
  for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
    assert _texts(ticks) == labels
    assert not any(t.get_parse_math() for t in ticks)
  assert (axis.get_ylabel(), axis.get_xlabel()) == ('mask', 'prediction')
  assert drawn[0].shorter_side > 400


@pytest.mark.parametrize(
  'num_classes,name',
  [(2, 'a'), (3, 'sky'), *((n, 'class number') for n in (2, 10, 11, 30))],
)
def test_cells_hold_their_text(num_classes, name, drawn, tmp_path):
  counts = np.full((num_classes, num_classes), 10**8)
  counts[0, 0], counts[0, 1] = 1, 0
  names = [f'{name} {i}' for i in range(num_classes)]
  plots.draw_confusion(str(tmp_path / 'a.png'), counts, names)
  figure = drawn[0]
  axis = figure.axes[0]
  width = axis.get_window_extent().width / num_classes
  boxes = [text.get_window_extent() for text in axis.texts]
  assert max(box.width for box in boxes) < width
  assert max(box.height for box in boxes) < width
  # Nothing is cut off at the edges of the picture, and no names meet.
  whole = figure.bbox
  labels = [*axis.get_yticklabels(), axis.yaxis.label, axis.xaxis.label]
  for label in (*labels, *axis.get_xticklabels()):
    box = label.get_window_extent()
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1
    assert whole.y0 <= box.y0 and box.y1 <= whole.y1
  places = [t.get_window_extent() for t in axis.get_yticklabels()]
  assert all(a.y0 >= b.y1 for a, b in itertools.pairwise(places))
  # Of many classes there is no room for counts.
  whole_percents = all(text.isdigit() for text in _texts(axis.texts))
  assert whole_percents == (num_classes > 10)


def test_reliability(drawn, tmp_path):
  nan = float('nan')
  reliability = {
    'count': np.array([0, 0, 100, 300]),
    'confidence': np.array([nan, nan, 0.6, 0.9]),
    'accuracy': np.array([nan, nan, 0.5, 0.8]),
  }
  plots.draw_reliability(str(tmp_path / 'a.png'), reliability, 0.1)
  upper, lower = drawn[0].axes
  bars = lambda axis: [
    (round(b.get_x() + b.get_width() / 2, 6), round(b.get_height(), 6))
    for b in axis.patches
  ]
  assert bars(upper) == [(0.625, 0.5), (0.875, 0.8)]
  assert bars(lower) == [(0.625, 0.25), (0.875, 0.75)]
  diagonal, dots = upper.lines
  assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
  assert_array_equal(dots.get_xydata(), [[0.6, 0.5], [0.9, 0.8]])
  assert upper.get_title() == 'ECE 0.1000'
  assert drawn[0].shorter_side > 400


def test_reliability_without_pixels(drawn, tmp_path):
  nothing = np.full(3, np.nan)
  reliability = {'count': np.zeros(3, int), 'confidence': nothing}
  reliability['accuracy'] = nothing
  plots.draw_reliability(str(tmp_path / 'a.png'), reliability, float('nan'))
  assert not drawn[0].axes[0].patches
