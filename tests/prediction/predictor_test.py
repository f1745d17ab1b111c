"""Images of any size through one step: against one image at a time."""

import concurrent.futures

import jax
import numpy as np
import pytest

from tests import tiny
from unet_jax.data import resize as resize_lib
from unet_jax.data import tiling
from unet_jax.models import averaging, unet
from unet_jax.prediction import predictor, step
from unet_jax.runtime import errors
from unet_jax.runtime import mesh as mesh_lib


def _predictor(inference=None, model=None, **data):
  config = tiny.make_config(
    data={'image_size': (16, 12), 'batch_size': 8, 'num_workers': 2, **data},
    model={'norm': 'none', **(model or {})},
    inference=inference or {},
  )
  network = unet.create_model(config)
  mesh = mesh_lib.make_mesh(config)
  variables = network.init(
    jax.random.key(1),
    np.zeros((1, *config.data.image_size, config.data.num_channels)),
    train=False,
  )
  network = predictor.Predictor(
    config, network, variables, averaging.NONE, mesh
  )

  def logits(image):
    """Of one image of the network's size."""
    return np.asarray(
      step.predict_step(
        variables,
        image[None],
        model=unet.create_model(config),
        mean=config.data.mean,
        std=config.data.std,
      )[0]
    )

  return network, logits, config


def _images(sizes, channels=3):
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (*s, channels), np.uint8) for s in sizes]


# More than a batch, so that windows of one image lie in two.
_SIZES = [(16, 12), (40, 33), (5, 7), (16, 30), (23, 9), (31, 12), (16, 12)]


def _close(got, want):
  scale = max(abs(want).max(), 1e-3)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale)


def _torch_resize(logits, size):
  torch = pytest.importorskip('torch', reason='resizes with torch')
  x = torch.from_numpy(logits.transpose(2, 0, 1)[None].copy())
  x = torch.nn.functional.interpolate(x, size, mode='bilinear')
  return x.numpy()[0].transpose(1, 2, 0)


def test_stretched_images_come_back_to_their_size():
  network, logits, config = _predictor()
  images = _images([(32, 24), (16, 12), (50, 17), (16, 40)])
  for image, got in zip(images, network.logits(images)):
    small, _ = resize_lib.resize_pair(
      image, np.zeros(image.shape[:2], np.uint8), (16, 12), 'stretch'
    )
    _close(got, _torch_resize(logits(small), image.shape[:2]))


def test_padded_images_lose_what_was_added():
  network, logits, config = _predictor(resize='pad')
  image = _images([(20, 60)])[0]
  small, mask = resize_lib.resize_pair(
    image, np.zeros((20, 60), np.uint8), (16, 12), 'pad'
  )
  rows = np.flatnonzero((mask == 0).any(1))
  inside = logits(small)[rows[0] : rows[-1] + 1]
  assert len(rows) == 4
  _close(network.logits([image])[0], _torch_resize(inside, (20, 60)))


def test_what_a_crop_cuts_off_is_predicted_too():
  network, logits, config = _predictor(resize='crop')
  image = _images([(32, 60)])[0]
  small, _ = resize_lib.resize_pair(
    image, np.zeros((32, 60), np.uint8), (16, 30), 'stretch'
  )
  got = network.logits([image])[0]
  assert got.shape == (32, 60, 3) and np.isfinite(got).all()
  # The window slides over the image, scaled to cover one.
  whole, _, _ = _predictor(resize='patch')
  _close(got, _torch_resize(whole.logits([small])[0], (32, 60)))


@pytest.mark.parametrize('batch_size', [0, 16, 40])
def test_windows_of_many_images_share_batches(batch_size):
  network, logits, config = _predictor(
    {'batch_size': batch_size, 'overlap': 0.4}, resize='patch'
  )
  layout = tiling.make_layout(
    unet.create_model(config), (16, 12), 0.4, 'gaussian'
  )
  images = _images(_SIZES)
  for image, got in zip(images, network.logits(images)):
    sink = predictor.ArraySink(image.shape[:2])
    canvas = tiling.Canvas(layout, image.shape[:2], sink)
    raster = predictor.WholeImage(image)
    for start, window in tiling.read_windows(raster, layout):
      canvas.add(start, logits(window) * layout.weights[..., None])
    canvas.close()
    _close(got, sink.array)


def test_large_images_are_handed_on_in_bands(monkeypatch):
  images = _images([(70, 31), (16, 12), (90, 20)])
  want = _predictor(resize='patch')[0].logits(images)
  monkeypatch.setattr(predictor, '_KEPT', 0)
  network = _predictor(resize='patch')[0]
  for a, b in zip(network.logits(images), want):
    np.testing.assert_array_equal(a, b)


class _Sink(predictor.ArraySink):
  """Tells how it ended."""

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
  network, _, _ = _predictor(resize=resize)
  images = _images([(40, 33)] * 8)
  opened = {}

  def open_image(i):
    if i == 5 and at == 'open':
      raise OSError('broken')
    sink = _Sink((40, 33))
    opened[i] = sink
    if i == 5 and at == 'write':
      sink.write = lambda start, band: (_ for _ in ()).throw(OSError('broken'))
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
def test_damaged_images_are_left_out(monkeypatch, kept, resize, row):
  monkeypatch.setattr(predictor, '_KEPT', kept)
  monkeypatch.setattr(_Damaged, 'row', row)
  network, _, _ = _predictor(resize=resize)
  images = _images([(40, 33), (23, 9), (40, 33), (40, 12), (31, 12)])
  sinks = [_Sink(image.shape[:2]) for image in images]
  left_out = []

  def leave_out(i, error):
    left_out.append((i, str(error)))
    return True

  network.run(
    range(5),
    lambda i: (
      (_Damaged if i in (1, 3) else predictor.WholeImage)(images[i]),
      sinks[i],
    ),
    leave_out,
  )
  assert sorted(left_out) == [(i, 'rows are damaged') for i in (1, 3)]
  ends = [sink.ended for sink in sinks]
  assert ends == [['closed'], ['aborted']] * 2 + [['closed']]
  # The others are as without the damaged ones.
  sound = [images[i] for i in (0, 2, 4)]
  for i, want in zip((0, 2, 4), network.logits(sound)):
    np.testing.assert_allclose(sinks[i].array, want, rtol=1e-4, atol=1e-5)


def test_two_threads_share_a_network():
  network, _, _ = _predictor(resize='patch')
  images = _images(_SIZES)
  want = network.logits(images)
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    for got in pool.map(network.logits, [images] * 3):
      for a, b in zip(got, want):
        np.testing.assert_array_equal(a, b)


def test_a_crop_that_would_be_huge_is_refused():
  network, _, _ = _predictor(resize='crop')
  with pytest.raises(errors.UserError, match='would become 16 x 320000 with'):
    network.logits(_images([(1, 20000)]))


def test_no_image_at_all():
  network, _, _ = _predictor(resize='patch')
  assert network.logits([]) == []


def test_one_channel_and_valid_convolutions():
  network, logits, config = _predictor(
    model={'padding': 'valid'},
    resize='patch',
    image_size=(20, 20),
    num_channels=1,
    num_classes=1,
    mean=(0.5,),
    std=(0.25,),
  )
  image = _images([(30, 21)], 1)[0]
  got = network.logits([image])[0]
  assert got.shape == (30, 21, 1)
  padded = np.pad(image, ((8, 30), (8, 30), (0, 0)), 'reflect')
  for row in range(0, 30, 4):
    for column in range(0, 21, 4):
      want = logits(padded[row : row + 20, column : column + 20])
      part = got[row : row + 4, column : column + 4]
      _close(part, want[: part.shape[0], : part.shape[1]])


@pytest.mark.parametrize('size', [(1, 1), (7, 40), (64, 3), (16, 12), (33, 33)])
@pytest.mark.parametrize('classes', [1, 3, 6, 150])
def test_logits_are_resized_as_images_are(size, classes, monkeypatch):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(16, 12, classes)).astype(np.float32)
  whole = np.concatenate(list(predictor.resize_logits(logits, size)))
  monkeypatch.setattr(predictor, '_BAND', 1)
  bands = list(predictor.resize_logits(logits, size))
  assert [len(b) for b in bands] == [1] * size[0]
  np.testing.assert_allclose(np.concatenate(bands), whole, rtol=1e-5, atol=1e-5)
  # Where both sides grow, it is the interpolation of any library.
  if size[0] >= 16 and size[1] >= 12:
    _close(whole, _torch_resize(logits, size))
  # A constant stays what it is, along sides that shrink as well.
  flat = np.full((16, 12, 1), 2.5, np.float32)
  got = np.concatenate(list(predictor.resize_logits(flat, size)))
  np.testing.assert_allclose(got, np.full((*size, 1), 2.5), rtol=1e-6)
