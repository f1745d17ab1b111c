"""Images of any size through one step: against one image at a time."""

import concurrent.futures
import functools

import jax
import numpy as np
import pytest

from tests import tiny
from tests.models import networks
from tests.prediction.resampling_test import torch_resize
from unet_jax.data import resize as resize_lib
from unet_jax.data import tiling
from unet_jax.models import ensemble, unet
from unet_jax.prediction import predictor, sinks, step
from unet_jax.runtime import errors
from unet_jax.runtime import mesh as mesh_lib


@functools.cache
def _predictor(inference=(), model=(), **data):
  """Returns a predictor, and its network's logits of one window."""
  config = tiny.make_config(
    data={'image_size': (16, 12), 'batch_size': 8, 'num_workers': 2, **data},
    model={'norm': 'none', **dict(model)},
    inference=dict(inference),
  )
  model, mesh = unet.create_model(config), mesh_lib.make_mesh(config)
  x = np.zeros((1, *config.data.image_size, config.data.num_channels))
  variables = networks.variables(model, x)
  network = predictor.Predictor(config, model, variables, ensemble.SINGLE, mesh)
  scale = {'mean': config.data.mean, 'std': config.data.std}
  run = jax.jit(lambda x: step.predict_step(variables, x, model=model, **scale))
  return network, lambda image: np.asarray(run(image[None])[0])


def _predict(network, images):
  return network.logits([predictor.WholeImage(image) for image in images])


def _images(sizes, channels=3):
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (*s, channels), np.uint8) for s in sizes]


# More than a batch, so that windows of one image lie in two.
_SIZES = [(16, 12), (40, 33), (5, 7), (16, 30), (23, 9), (31, 12), (16, 12)]


def _stretch(image, size, resize='stretch'):
  mask = np.zeros(image.shape[:2], np.uint8)
  return resize_lib.resize_pair(image, mask, size, resize)


def _close(got, want):
  scale = max(abs(want).max(), 1e-3)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale)


def test_stretched_images_come_back_to_their_size():
  network, logits = _predictor()
  images = _images([(32, 24), (16, 12), (50, 17), (16, 40)])
  for image, got in zip(images, _predict(network, images)):
    small, _ = _stretch(image, (16, 12))
    _close(got, torch_resize(logits(small), image.shape[:2]))


def test_padded_images_lose_what_was_added():
  network, logits = _predictor(resize='pad')
  image = _images([(20, 60)])[0]
  small, mask = _stretch(image, (16, 12), 'pad')
  rows = np.flatnonzero((mask == 0).any(1))
  inside = logits(small)[rows[0] : rows[-1] + 1]
  assert len(rows) == 4
  _close(_predict(network, [image])[0], torch_resize(inside, (20, 60)))


def test_what_a_crop_cuts_off_is_predicted_too():
  network, _ = _predictor(resize='crop')
  image = _images([(32, 60)])[0]
  small, _ = _stretch(image, (16, 30))
  got = _predict(network, [image])[0]
  assert got.shape == (32, 60, 3) and np.isfinite(got).all()
  # The window slides over the image, scaled to cover one.
  whole, _ = _predictor(resize='patch')
  _close(got, torch_resize(_predict(whole, [small])[0], (32, 60)))


@pytest.mark.parametrize('batch_size', [0, 16, 40])
def test_windows_of_many_images_share_batches(batch_size):
  inference = (('batch_size', batch_size), ('overlap', 0.4))
  network, logits = _predictor(inference, resize='patch')
  model = unet.create_model(tiny.make_config(model={'norm': 'none'}))
  layout = tiling.make_layout(model, (16, 12), 0.4, 'gaussian')
  images = _images(_SIZES)
  for image, got in zip(images, _predict(network, images)):
    sink = sinks.ArraySink(image.shape[:2])
    canvas = tiling.Canvas(layout, image.shape[:2], sink.write)
    raster = predictor.WholeImage(image)
    for start, window in tiling.read_windows(raster, layout):
      canvas.add(start, logits(window) * layout.weights[..., None])
    canvas.close()
    _close(got, sink.array)


def test_rows_of_large_images_are_written_as_they_come(monkeypatch):
  images = _images([(70, 31), (16, 12), (90, 20)])
  network, _ = _predictor(resize='patch')
  want = _predict(network, images)
  monkeypatch.setattr(predictor, '_KEPT', 0)
  for a, b in zip(_predict(network, images), want):
    np.testing.assert_array_equal(a, b)


class _Sink(sinks.ArraySink):
  """Records how it ended."""

  def __init__(self, size):
    super().__init__(size)
    self.ended = []

  def close(self):
    self.ended.append('closed')

  def abort(self):
    self.ended.append('aborted')


class _Damaged(predictor.WholeImage):
  """An image whose rows from some row on cannot be read."""

  row = 0

  def read(self, start, stop):
    if stop > self.row:
      raise errors.DecodeError('rows are damaged')
    return super().read(start, stop)


@pytest.mark.parametrize('kept', [0, 2**20])
@pytest.mark.parametrize('resize', ['patch', 'stretch'])
@pytest.mark.parametrize('at', ['open', 'read', 'write'])
def test_a_failure_ends_each_sink_once(monkeypatch, kept, resize, at):
  monkeypatch.setattr(predictor, '_KEPT', kept)
  network, _ = _predictor(resize=resize)
  images = _images([(40, 33)] * 8)
  opened = {}

  def open_image(i):
    if i == 5 and at == 'open':
      raise OSError('broken')
    sink = _Sink((40, 33))
    opened[i] = sink
    if i == 5 and at == 'write':
      sink.write = lambda rows: (_ for _ in ()).throw(OSError('broken'))
    kind = _Damaged if i == 5 and at == 'read' else predictor.WholeImage
    return kind(images[i]), sink

  with pytest.raises((OSError, errors.DecodeError), match='broken|damaged'):
    network.run(range(8), open_image)
  ends = {i: sink.ended for i, sink in opened.items()}
  assert all(len(ended) == 1 for ended in ends.values()), ends
  assert ends.get(5, ['aborted']) == ['aborted']


@pytest.mark.parametrize('kept', [0, 2**20])
@pytest.mark.parametrize('resize', ['patch', 'stretch'])
@pytest.mark.parametrize('row', [0, 17])
def test_damaged_images_are_skipped(monkeypatch, kept, resize, row):
  monkeypatch.setattr(predictor, '_KEPT', kept)
  monkeypatch.setattr(_Damaged, 'row', row)
  network, _ = _predictor(resize=resize)
  images = _images([(40, 33), (23, 9), (40, 33), (40, 12), (31, 12)])
  sinks = [_Sink(image.shape[:2]) for image in images]
  kinds = [predictor.WholeImage, _Damaged] * 2 + [predictor.WholeImage]
  skipped = []

  def skip(i, error):
    skipped.append((i, str(error)))
    return True

  network.run(range(5), lambda i: (kinds[i](images[i]), sinks[i]), skip)
  assert sorted(skipped) == [(i, 'rows are damaged') for i in (1, 3)]
  ends = [sink.ended for sink in sinks]
  assert ends == [['closed'], ['aborted']] * 2 + [['closed']]
  # The others are as without the damaged ones.
  sound = [images[i] for i in (0, 2, 4)]
  for i, want in zip((0, 2, 4), _predict(network, sound)):
    np.testing.assert_allclose(sinks[i].array, want, rtol=1e-4, atol=1e-5)


def test_two_threads_share_a_network():
  network, _ = _predictor(resize='patch')
  images = _images(_SIZES)
  want = _predict(network, images)
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    for got in pool.map(_predict, [network] * 3, [images] * 3):
      for a, b in zip(got, want):
        np.testing.assert_array_equal(a, b)


def test_a_crop_that_would_be_huge_is_refused():
  network, _ = _predictor(resize='crop')
  with pytest.raises(errors.UserError, match='would become 16 x 320000 with'):
    _predict(network, _images([(1, 20000)]))


def test_no_image_at_all():
  network, _ = _predictor(resize='patch')
  assert _predict(network, []) == []


def test_one_channel_and_valid_convolutions():
  data = dict(num_channels=1, num_classes=1, mean=(0.5,), std=(0.25,))
  data |= dict(resize='patch', image_size=(20, 20))
  network, logits = _predictor(model=(('padding', 'valid'),), **data)
  image = _images([(30, 21)], 1)[0]
  got = _predict(network, [image])[0]
  assert got.shape == (30, 21, 1)
  padded = np.pad(image, ((8, 30), (8, 30), (0, 0)), 'reflect')
  for row in range(0, 30, 4):
    for column in range(0, 21, 4):
      want = logits(padded[row : row + 20, column : column + 20])
      part = got[row : row + 4, column : column + 4]
      _close(part, want[: part.shape[0], : part.shape[1]])
