"""What is in the pictures of a workdir."""

import numpy as np
import pytest
from PIL import Image

from unet_jax import colors, figures

_NAMES = ('ground', 'cell', 'rim')


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are saved, as matplotlib has them."""
  saved, save = [], figures._save

  def keep(figure, path):
    saved.append(figure)
    save(figure, path)

  monkeypatch.setattr(figures, '_save', keep)
  return saved


def _panel(axis):
  (image,) = axis.images
  return np.asarray(image.get_array())


def test_predictions_side_by_side(drawn, tmp_path):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (6, 8, 3), np.uint8)
  mask = rng.integers(0, 3, (6, 8)).astype(np.uint8)
  prediction = mask.copy()
  prediction[2, 3] = (mask[2, 3] + 1) % 3
  mask[0, 0] = 255
  # Grey, and of a `valid` network, which predicts the centre.
  grey = {'image': image[..., :1], 'mask': mask, 'prediction': mask[1:5, 2:6]}
  path = tmp_path / 'figures' / 'predictions.png'
  figures.draw_predictions(
    str(path),
    [{'image': image, 'mask': mask, 'prediction': prediction}, grey],
    _NAMES,
  )
  (figure,) = drawn
  axes = np.reshape(figure.axes, (2, 4))
  assert [a.get_title() for a in axes[0]] == [
    'image',
    'mask',
    'prediction',
    'errors',
  ]
  np.testing.assert_array_equal(_panel(axes[0, 0]), image)
  np.testing.assert_array_equal(_panel(axes[0, 1]), colors.color_mask(mask, 3))
  np.testing.assert_array_equal(
    _panel(axes[0, 2]), colors.color_mask(prediction, 3)
  )
  errors = _panel(axes[0, 3])
  assert tuple(errors[2, 3]) == (220, 40, 40)
  assert tuple(errors[0, 0]) == (255, 255, 255)
  assert (errors == (220, 40, 40)).all(-1).sum() == 1
  np.testing.assert_array_equal(_panel(axes[1, 0]), image[1:5, 2:6, 0])
  np.testing.assert_array_equal(
    _panel(axes[1, 1]), colors.color_mask(mask[1:5, 2:6], 3)
  )
  assert not (_panel(axes[1, 3]) == (220, 40, 40)).all(-1).any()
  labels = [t.get_text() for t in figure.legends[0].get_texts()]
  assert labels == [*_NAMES, 'ignored']
  with Image.open(path) as png:
    assert png.format == 'PNG' and min(png.size) > 400
    assert len(np.unique(np.asarray(png))) > 50


def test_legend_names_ignored_pixels_only_where_there_are_any(drawn, tmp_path):
  zeros = np.zeros((4, 4), np.uint8)
  example = {'image': zeros[..., None], 'mask': zeros, 'prediction': zeros}
  figures.draw_predictions(str(tmp_path / 'a.png'), [example], _NAMES)
  labels = [t.get_text() for t in drawn[0].legends[0].get_texts()]
  assert labels == list(_NAMES)


@pytest.mark.parametrize(
  'best,right',
  [
    ('eval/dataset_miou', {'eval/dataset_miou': ([2], [0.5])}),
    (
      '-eval/seconds',
      {'eval/dataset_miou': ([2], [0.5]), 'eval/seconds': ([2, 4], [7, 8])},
    ),
  ],
)
def test_curves(best, right, drawn, tmp_path):
  lines = [
    {'step': 1, 'train/loss': 3.0},
    {'step': 2, 'train/loss': 2.0},
    {
      'step': 2,
      'eval/loss': 2.5,
      'eval/dataset_miou': 0.5,
      'eval/seconds': 7,
    },
    # An undefined score is no point.
    {'step': 4, 'eval/dataset_miou': None, 'eval/seconds': 8},
  ]
  figures.draw_curves(str(tmp_path / 'curves.png'), lines, best)
  points = lambda axis: {
    line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
    for line in axis.lines
  }
  left_axis, right_axis = drawn[0].axes
  assert points(left_axis) == {
    'train/loss': ([1, 2], [3.0, 2.0]),
    'eval/loss': ([2], [2.5]),
  }
  assert points(right_axis) == right
  with Image.open(tmp_path / 'curves.png') as png:
    assert png.format == 'PNG'


def test_curves_of_a_run_without_figures(drawn, tmp_path):
  figures.draw_curves(str(tmp_path / 'curves.png'), [], 'eval/dataset_miou')
  assert not drawn[0].axes[0].lines
