"""Windows and the images that they make: against MONAI, NumPy, whole passes."""

import functools
import itertools
import warnings

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.data import helpers
from unet_jax.config import output_size
from unet_jax.data import tiling
from unet_jax.models import unet
from unet_jax.prediction import predictor, sinks


def _model(**fields):
  fields = {'depth': 1, 'base_features': 2, 'norm': 'none', **fields}
  return unet.UNet(num_classes=2, **fields)


def _valid_layout():
  return tiling.make_layout(_model(padding='valid'), (20, 28), 0.5, 'constant')


def _image(height, width, channels=1, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, channels), np.uint8)


def _blend(image, layout, function):
  """The image that a function of windows makes."""
  sink = sinks.ArraySink(image.shape[:2])
  canvas = tiling.Canvas(layout, image.shape[:2], sink.write)
  raster = predictor.WholeImage(image)
  for start, window in tiling.read_windows(raster, layout):
    output = function(window)
    if layout.weights is not None:
      output = output * layout.weights[..., None]
    canvas.add(start, output)
  canvas.close()
  return sink.array


_SIZES = [(16, 16), (17, 40), (5, 9), (40, 16), (1, 1), (33, 7), (50, 61)]


@pytest.mark.parametrize('size', _SIZES)
@pytest.mark.parametrize('overlap', [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize('blend', ['gaussian', 'constant'])
def test_what_depends_on_a_pixel_alone_comes_back(size, overlap, blend):
  image = _image(*size, 3)
  layout = tiling.make_layout(_model(), (16, 12), overlap, blend)
  got = _blend(image, layout, lambda w: w.astype(np.float32))
  assert_allclose(got, image, rtol=1e-5)


@pytest.mark.parametrize('size', _SIZES)
def test_windows_of_valid_networks_cover_each_pixel(size):
  image = _image(*size, 3)
  layout = _valid_layout()
  crop = lambda w: w[8:-8, 8:-8].astype(np.float32)
  assert layout.output == (4, 12) and layout.step == (4, 12)
  assert_array_equal(_blend(image, layout, crop), image)


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (5, 40), (37, 23)])
def test_windows_are_those_of_the_mirrored_image(size):
  image = _image(*size)
  layout = _valid_layout()
  # Far enough on each side; NumPy repeats the mirroring as often as it must.
  padded = np.pad(image, ((60, 60), (60, 60), (0, 0)), 'reflect')
  seen = 0
  for (row, column), window in tiling.read_windows(
    predictor.WholeImage(image), layout
  ):
    top, left = row - 8 + 60, column - 8 + 60
    assert_array_equal(window, padded[top : top + 20, left : left + 28])
    seen += 1
  rows, columns = layout.starts(size)
  assert seen == len(rows) * len(columns)


class _CountingImage(predictor.WholeImage):
  """Counts how often each row is read, and the most rows at once."""

  def __init__(self, array):
    super().__init__(array)
    self.reads, self.most = np.zeros(len(array), int), 0

  def read(self, start, stop):
    self.reads[start:stop] += 1
    self.most = max(self.most, stop - start)
    return super().read(start, stop)


def test_each_row_is_read_once_and_never_all_of_them():
  raster = _CountingImage(_image(500, 20))
  layout = tiling.make_layout(_model(), (16, 16), 0.5, 'gaussian')
  for _ in tiling.read_windows(raster, layout):
    pass
  assert (raster.reads == 1).all() and raster.most == 16


def test_rows_are_flushed_as_soon_as_they_are_done():
  layout = tiling.make_layout(_model(), (16, 16), 0.5, 'gaussian')
  bands = []
  canvas = tiling.Canvas(layout, (43, 16), lambda rows: bands.append(len(rows)))
  raster = predictor.WholeImage(_image(43, 16))
  for start, window in tiling.read_windows(raster, layout):
    canvas.add(start, window.astype(np.float32))
    # The rows of one output are held.
    assert sum(bands) == start[0]
  canvas.close()
  assert bands == [8, 8, 8, 3, 16]


def _monai():
  pytest.importorskip('torch', reason='compares with MONAI, which needs torch')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    pytest.importorskip('monai', reason='compares with MONAI')
    from monai.inferers import sliding_window_inference
  return sliding_window_inference


@functools.cache
def _network():
  model = _model(depth=2)
  variables = helpers.random_variables(model, (16, 12))
  return model, jax.jit(lambda x: model.apply(variables, x, train=False))


@pytest.mark.parametrize(
  'size,overlap,blend',
  [
    ((50, 61), 0.5, 'gaussian'),
    ((33, 16), 0.25, 'gaussian'),
    ((40, 45), 0.3, 'constant'),
    ((16, 17), 0.9, 'gaussian'),
  ],
)
def test_blending_equals_monai_on_the_same_weights(size, overlap, blend):
  sliding_window_inference = _monai()
  import torch

  model, apply = _network()
  image = _image(*size)

  def predict(x):
    x = x.numpy().transpose(0, 2, 3, 1)
    logits = np.asarray(apply(x))
    return torch.from_numpy(logits.transpose(0, 3, 1, 2).copy())

  whole = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)[None])
  want = sliding_window_inference(
    whole, (16, 12), 1, predict, overlap=overlap, mode=blend
  )
  layout = tiling.make_layout(model, (16, 12), overlap, blend)
  got = _blend(
    image, layout, lambda w: np.asarray(apply(w[None].astype(np.float32)))[0]
  )
  want = want.numpy()[0].transpose(1, 2, 0)
  assert_allclose(got, want, rtol=1e-5, atol=1e-5 * abs(want).max())


def test_weights_equal_monai():
  _monai()
  from monai.data.utils import compute_importance_map

  for size in [(16, 12), (7, 33), (1, 2), (200, 200)]:
    want = compute_importance_map(size, mode='gaussian').numpy()
    assert_allclose(tiling.gaussian_weights(size), want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
  'fields',
  [
    {'depth': 2},
    {'depth': 3, 'convs': 1},
    {'depth': 1, 'upsample': 'bilinear', 'upsample_kernel': 3},
    {'depth': 2, 'convs': 1, 'skip': 'attention'},
    {'depth': 1, 'stem': 'space_to_depth'},
  ],
)
def test_tiles_of_valid_networks_equal_one_pass_over_the_whole(fields):
  """The overlap-tile strategy, figure 2 of the 2015 paper."""
  model = _model(padding='valid', **fields)
  fits = [n for n in range(1, 200) if output_size.valid_output(n, model)]
  grid = 2 ** (model.depth + (model.stem == 'space_to_depth'))
  window = next(
    n for n in fits if output_size.valid_output(n, model) >= 2 * grid + 1
  )
  layout = tiling.make_layout(model, (window, window), 0.5, 'gaussian')
  assert layout.step[0] % grid == 0
  image = _image(61, 75)
  parameters = helpers.random_variables(model, (window, window))
  with jax.enable_x64(True):
    variables = jax.tree.map(np.float64, parameters)
    double = model.clone(dtype=np.float64)
    jitted = jax.jit(lambda x: double.apply(variables, x, train=False))
    apply = lambda x: np.asarray(jitted(x[None] / 255.0)[0])
    tiles = _blend(image, layout, apply)
    # A pass over the whole, mirrored image; it fits the network somehow.
    margin = (window - layout.output[0]) // 2
    after = [
      next(n for n in fits if n >= size + 2 * margin) - size - margin
      for size in image.shape[:2]
    ]
    widths = [(margin, n) for n in after] + [(0, 0)]
    whole = apply(np.pad(image, widths, 'reflect'))
  whole = whole[: image.shape[0], : image.shape[1]]
  scale = abs(whole).max()
  assert_allclose(tiles, whole, rtol=0, atol=1e-6 * scale)


def test_layouts_by_hand():
  layout = tiling.make_layout(_model(), (16, 12), 0.5, 'constant')
  rows, columns = layout.starts((40, 13))
  assert (rows.tolist(), columns.tolist()) == ([0, 8, 16, 24], [0, 1])
  rows, columns = layout.starts((16, 7))
  assert (rows.tolist(), columns.tolist()) == ([0], [-2])
  paper = unet.UNet(num_classes=2, depth=4, padding='valid')
  layout = tiling.make_layout(paper, (572, 572), 0.5, 'gaussian')
  assert (layout.output, layout.step) == ((388, 388), (384, 384))
  assert layout.starts((512, 300))[0].tolist() == [0, 384]
  assert layout.starts((512, 300))[1].tolist() == [-44]


def test_starts_cover_all_and_no_more():
  layout = tiling.make_layout(_model(), (16, 16), 0.3, 'constant')
  for height, width in itertools.product([16, 17, 27, 28, 40], [11, 90]):
    rows, _ = layout.starts((height, width))
    assert rows[0] == 0 and rows[-1] == height - 16
    assert (np.diff(rows) <= layout.step[0]).all()
    # One fewer would not do.
    assert (len(rows) - 2) * layout.step[0] + 16 < height or len(rows) == 1
