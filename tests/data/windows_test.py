"""Windows against NumPy's padding, exact covers, and whole images."""

import contextlib
import mmap

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special

from tests.data import helpers
from tests.data.augmenting import random_batch
from tests.refusals import message_of
from unet_jax.data import pipeline, prepare, sources, windows
from unet_jax.evaluation import confusion as confusion_lib
from unet_jax.evaluation import counting
from unet_jax.models import unet


class _Source:
  """Images of many sizes; each pixel holds its place.

  Channels are image, row and column. Class 1 is in each image, class 2 in one
  pixel of image 3 alone, class 3 nowhere.
  """

  sizes = ((40, 70), (9, 30), (33, 33), (50, 21), (16, 16), (5, 3))
  fingerprint = 'windows'
  groups = None
  rare = (3, 49, 4)  # Image, row, column: at the border.

  def __init__(self, config, split, problems=None):
    del config, problems
    self.split = split

  def __len__(self):
    return len(self.sizes)

  def __getitem__(self, index):
    size = self.sizes[index]
    image = np.stack([np.full(size, index), *np.indices(size)], -1)
    mask = (np.indices(size).sum(0) % 7 == 0).astype(np.uint8)
    if index == self.rare[0]:
      mask[self.rare[1:]] = 2
    name = f'{index}.png'
    example = {'image': image.astype(np.uint8), 'mask': mask}
    return {**example, 'name': name, 'mask_name': name}


def _config(cache_dir='', padding='same', **fields):
  # Of two convolutions: `valid` takes two pixels from each side.
  model = {'depth': 0, 'base_features': 4, 'norm': 'none', 'padding': padding}
  data = {'source': 'folder', 'dir': 'x', 'resize': 'patch', 'num_classes': 4}
  data |= {'cache': 'disk' if cache_dir else 'memory'}
  data |= {'cache_dir': str(cache_dir), 'num_workers': 2}
  data |= {'image_size': (16, 12), 'batch_size': 8, **fields}
  model = {f'model.{name}': value for name, value in model.items()}
  return helpers.make_config(**model, **data)


@pytest.fixture(autouse=True)
def source(monkeypatch):
  source = type('Source', (_Source,), {})
  monkeypatch.setitem(sources.SOURCES, 'folder', source)
  return source


def _draws(dataset=None, **fields):
  config = _config(**fields)
  return windows.Draws(dataset or prepare.prepare(config, 'train'), config)


def _drawn(count, **fields):
  """The first windows of a run, one by one."""
  draws, config = _draws(**fields), _config(**fields)
  batches = pipeline._ShuffledBatches(draws, config)
  size = config.data.batch_size
  found = [batches[k] for k in range(-(-count // size))]
  return [
    {name: array[i] for name, array in batch.items()}
    for batch in found
    for i in range(size)
  ][:count]


# Reading


def _assert_pixels(dataset, i, c):
  """That the pixels of a class in an image are kept: all, or 1,000 of them."""
  mask, points = dataset[i]['mask'], dataset.pixels.of(i, c)
  expected = np.argwhere(mask == c)
  assert points.dtype == np.int32
  assert len(expected) == dataset.stats.class_pixels[i, c]
  if len(expected) <= 1000:
    assert_array_equal(points, expected)
  else:
    assert len(points) == len(np.unique(points, axis=0)) == 1000
    assert np.all(mask[tuple(points.T)] == c)


def test_pixels_of_classes(source):
  prepared = prepare.prepare(_config(), 'train')
  for i in range(len(prepared)):
    for c in range(4):
      _assert_pixels(prepared, i, c)
  assert prepared.pixels.of(3, 2).tolist() == [list(source.rare[1:])]


def test_pixels_of_a_fold_are_the_same_in_any_cache(tmp_path, source):
  # The last has more pixels of a class than are kept.
  source.sizes, source.rare = source.sizes[::-1], (2, 49, 4)
  for split in ('train', 'auto'):
    folds = {'num_folds': 2, 'fold': 1, 'holdout': 'last'}
    kept = prepare.prepare(_config(tmp_path, **folds), split)
    in_memory = prepare.prepare(_config(**folds), split)
    assert len(kept) == 3 and kept.stats.names == in_memory.stats.names
    for i in range(3):
      for c in range(4):
        _assert_pixels(kept, i, c)
        points = kept.pixels.of(i, c)
        assert_array_equal(points, in_memory.pixels.of(i, c))
  assert kept.stats.class_pixels[2, 0] > 1000


@pytest.mark.parametrize(
  'height, width, corner, size',
  [
    (20, 31, (3, 5), (7, 9)),
    (20, 31, (0, 0), (20, 31)),
    (20, 31, (-4, 6), (9, 30)),
    (20, 31, (15, 25), (30, 40)),
    (20, 31, (-19, -30), (58, 91)),
    (20, 31, (-60, -5), (150, 6)),
    (1, 1, (-1, -2), (3, 4)),
  ],
)
def test_window_is_that_of_the_padded_image(height, width, corner, size):
  example = random_batch(np.random.default_rng(0), 1, height, width, values=3)
  example = {name: array[0] for name, array in example.items()}
  got = windows.read_window(example, np.array(corner), np.array(size))
  pad, top, left = 150, corner[0] + 150, corner[1] + 150
  for name, array in example.items():
    widths = [(pad, pad), (pad, pad)] + [(0, 0)] * (array.ndim - 2)
    mode = {'mode': 'reflect'}
    if name == 'mask':
      mode = {'mode': 'constant', 'constant_values': 255}
    padded = np.pad(array, widths, **mode)
    expected = padded[top : top + size[0], left : left + size[1]]
    assert got[name].dtype == array.dtype
    assert_array_equal(got[name], expected)
    assert not np.shares_memory(got[name], array)


class _Recorder:
  """An array that adds up how many elements are taken of it."""

  def __init__(self, array):
    self.shape, self._array, self.taken = array.shape, array, 0

  def __getitem__(self, key):
    result = self._array[key]
    self.taken += result.size
    return result


@pytest.mark.parametrize('corner', [(5000, 7000), (-10, 9990), (9980, -5)])
def test_only_the_window_is_read(corner, tmp_path):
  """Of 100 megapixels in a file (which is empty, and takes no room)."""
  file = tmp_path / 'large.npy'
  np.lib.format.open_memmap(file, 'w+', np.uint8, (10000, 10000))
  recorders = {
    name: _Recorder(np.load(file, mmap_mode='r')) for name in ('image', 'mask')
  }
  got = windows.read_window(recorders, np.array(corner), np.array((32, 48)))
  assert got['image'].shape == (32, 48)
  for recorder in recorders.values():
    assert recorder.taken <= 32 * 48


# The cache


def test_images_keep_their_size(tmp_path, source):
  for cache in ('memory', 'disk', 'disk'):
    config = _config(tmp_path, cache=cache)
    config.loss.weight_map = 'border'
    prepared = prepare.prepare(config, 'train')
    examples = source(None, None)
    assert len(prepared) == len(examples)
    assert prepared.stats.sizes.tolist() == [list(s) for s in source.sizes]
    for i in range(len(examples)):
      got, expected = prepared[i], examples[i]
      assert_array_equal(got['image'], expected['image'])
      assert_array_equal(got['mask'], expected['mask'])
      assert got['weight_map'].shape == expected['mask'].shape
  assert isinstance(got['image'].base, mmap.mmap)


def test_windows_of_any_size_share_a_cache():
  key = lambda **data: prepare.cache_key(
    sources.make_source(_config(), 'train'), _config(**data), None
  )
  assert key() == key(image_size=(32, 32)) == key(foreground_fraction=0.5)
  assert key() == key(sample_classes=('class_1',))
  assert len({key(), key(resize='pad'), key(num_classes=5)}) == 3


# Training


def _check_place(window, output, sizes):
  """A window is one of its image, with its output inside where that fits."""
  image, mask = window['image'].astype(int), window['mask']
  index = image[0, 0, 0]
  size = sizes[index]
  assert np.all(image[..., 0] == index)
  valid = mask != 255
  for axis in (0, 1):
    place = image[..., axis + 1]
    line = place[:, 0] if axis == 0 else place[0]
    # The mirrored parts count backwards.
    assert np.all(np.abs(np.diff(line)) <= 1)
    inside = valid.any(1 - axis)
    margin = (len(inside) - output[axis]) // 2
    middle = inside[margin : margin + output[axis]]
    if size[axis] >= output[axis]:
      assert middle.all()
    else:
      assert middle.sum() == size[axis]
      before, after = np.argmax(middle), np.argmax(middle[::-1])
      assert 0 <= after - before <= 1
    start = line[inside]
    assert_array_equal(start, start[0] + np.arange(len(start)))
  rows, columns = (place[valid] for place in (image[..., 1], image[..., 2]))
  expected = ((rows + columns) % 7 == 0).astype(int)
  expected[(index == 3) & (rows == 49) & (columns == 4)] = 2
  assert_array_equal(mask[valid], expected)


@pytest.mark.parametrize('padding, lost', [('same', 0), ('valid', 4)])
def test_outputs_lie_in_their_images(padding, lost, source):
  images = set()
  for window in _drawn(150, padding=padding):
    assert window['image'].shape == (16, 12, 3)
    assert window['mask'].shape == (16, 12)
    _check_place(window, (16 - lost, 12 - lost), source.sizes)
    images.add(int(window['image'][0, 0, 0]))
  assert images == set(range(6))


@pytest.mark.parametrize('fraction', [0.0, 0.5, 1.0])
def test_rare_class_is_drawn(fraction, source):
  """A class of one pixel in one image has its share of the windows."""
  draws, n = _draws(foreground_fraction=fraction), 900
  masks = draws.read_batch(np.arange(n) % len(draws), 0)['mask']
  share = np.mean((masks == 2).any((1, 2)))
  # Two of the three classes that may be drawn are there. The others have it
  # where they fall on it: in a corner of the image, seldom.
  expected = fraction / 2
  slack = 3 * (expected * (1 - expected) / n) ** 0.5
  assert expected - slack <= share <= expected + slack + 0.03


@pytest.mark.parametrize('padding', ['same', 'valid'])
def test_window_is_centred_on_a_pixel_of_a_chosen_class(source, padding):
  options = {'foreground_fraction': 1.0, 'sample_classes': ('class_2',)}
  drawn = _drawn(20, padding=padding, **options)
  assert all(2 in window['mask'] for window in drawn)
  # As far as the image goes.
  if padding == 'same':
    assert drawn[0]['image'][8, 6].tolist() == [3, 49 - 7, 6]
  source.rare = (0, 20, 33)
  window = _drawn(4, padding=padding, **options)[3]
  assert window['image'][8, 6].tolist() == [0, 20, 33]


def test_no_class_to_draw():
  dataset = prepare.prepare(_config(), 'train')
  options = {'sample_classes': ('class_3',)}
  assert message_of(_draws, dataset, **options) == (
    'no image of train has a pixel of class_3 to draw windows around; check '
    'the masks and data.mask_values, or set '
    '--config.data.foreground_fraction=0'
  )
  _draws(dataset, foreground_fraction=0.0, **options)


def test_windows_of_an_epoch(source):
  """Each image as often as outputs would cover its area, all over it."""
  counts = [-(-h * w // (16 * 12)) for h, w in source.sizes]
  drawn = _drawn(3 * sum(counts), foreground_fraction=0.0)
  epochs = []
  for epoch in range(3):
    start = epoch * sum(counts)
    taken = drawn[start : start + sum(counts)]
    epochs.append([w['image'][0, 0].tolist() for w in taken])
    images = [int(w['image'][0, 0, 0]) for w in taken]
    assert np.bincount(images).tolist() == counts
  # Another order and other windows in each.
  assert len({str(e) for e in epochs}) == 3
  assert len({str(sorted(e)) for e in epochs}) == 3


def test_windows_lie_anywhere():
  draws = _draws(foreground_fraction=0.0)
  corners = draws.read_batch(np.zeros(800, int), 0)['image'][:, 0, 0]
  assert not corners[:, 0].any()
  for axis, room in ((1, 40 - 16), (2, 70 - 12)):
    starts = corners[:, axis]
    assert (starts.min(), starts.max()) == (0, room)
    # Of an even distribution: room / sqrt(12), here of the mean of 800.
    assert abs(starts.mean() - room / 2) < 4 * room / (12 * 800) ** 0.5


def _take(batches, count):
  with contextlib.closing(batches):
    return [jax.tree.map(np.asarray, next(batches)) for _ in range(count)]


def test_position_and_seed_decide_the_windows(tmp_path):
  """Bit for bit: after a stop, with other threads, on disk or in memory."""
  config = _config(tmp_path)
  config.loss.weight_map = 'border'
  start = lambda config: pipeline.train_batches(
    prepare.prepare(config, 'train'), config, helpers.make_mesh()
  )
  expected = _take(start(config), 9)
  assert set(expected[0]) == {'image', 'mask', 'weight_map'}
  assert expected[0]['weight_map'].shape == (8, 16, 12)
  config.data.update(num_workers=5, cache='memory')
  batches = start(config)
  first = [jax.tree.map(np.asarray, next(batches)) for _ in range(4)]
  position = batches.get_state()
  batches.close()
  helpers.assert_same(first, expected[:4])
  batches = start(config)
  batches.set_state(position)
  helpers.assert_same(_take(batches, 5), expected[4:])
  config.seed = 1
  other = _take(start(config), 1)[0]
  assert not np.array_equal(other['image'], expected[0]['image'])


@pytest.mark.parametrize('count, batch_size', [(1, 4), (2, 8), (30, 8)])
def test_small_images_come_once_an_epoch(source, count, batch_size):
  """Of no more than a window each, also after a stop, in another order each."""
  source.sizes, source.rare = ((9, 11),) * count, (0, 8, 4)
  config = _config(batch_size=batch_size, foreground_fraction=0.0)
  dataset = prepare.prepare(config, 'train')
  start = lambda: pipeline.train_batches(dataset, config, helpers.make_mesh())
  images = lambda batches: [
    int(i) for b in batches for i in b['image'][:, 0, 0, 0]
  ]
  total = -(-5 * count // batch_size)
  expected = images(_take(start(), total))
  epochs = [expected[i * count : (i + 1) * count] for i in range(5)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(count))
  assert len(set(map(tuple, epochs))) >= min(count, 5)
  for stop in (1, total - 1):
    # The position is the number of batches, as before windows had our order.
    batches = start()
    batches.set_state({'next_index': stop})
    assert batches.get_state() == {'next_index': stop}
    found = images(_take(batches, total - stop))
    assert found == expected[stop * batch_size :]


@pytest.mark.parametrize('first', [0, 123, 2**40])
def test_batches_of_any_size_have_the_same_windows(first):
  draws = _draws(foreground_fraction=0.5)
  indices = np.random.default_rng(0).integers(len(draws), size=24)
  whole = draws.read_batch(indices, first)
  for size in (1, 3, 8):
    parts = [
      draws.read_batch(indices[i : i + size], first + i)
      for i in range(0, 24, size)
    ]
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    helpers.assert_same(joined, whole)


@pytest.mark.parametrize('num_processes', [2, 4])
def test_parts_of_processes_are_the_batches_of_one(num_processes):
  """Also the third batch, which lies in two epochs of 32 windows."""
  config, draws = _config(batch_size=12), _draws()
  assert len(draws) == 32
  whole = [pipeline._ShuffledBatches(draws, config)[k] for k in range(4)]
  parts = pipeline._ShuffledBatches(draws, config, num_processes)
  for k, expected in enumerate(whole):
    found = [parts[k * num_processes + i] for i in range(num_processes)]
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *found)
    helpers.assert_same(joined, expected)


# Evaluation


@pytest.mark.parametrize('padding, lost', [('same', 0), ('valid', 4)])
def test_tiles_cover_each_pixel_once(padding, lost, source):
  config = _config(padding=padding)
  tiles = windows.Tiles(prepare.prepare(config, 'eval'), config)
  covered = [np.zeros(size, int) for size in source.sizes]
  order = []
  for i in range(len(tiles)):
    tile = tiles[i]
    order.append(int(tile['example']))
    assert tile['example'].dtype == np.int32
    assert tile['image'].shape == (16, 12, 3)
    assert np.all(tile['image'][tile['mask'] != 255][:, 0] == order[-1])
    half = lost // 2
    middle = (slice(half, 16 - half), slice(half, 12 - half))
    image, mask = tile['image'][middle], tile['mask'][middle]
    _, rows, columns = image[mask != 255].T
    np.add.at(covered[order[-1]], (rows, columns), 1)
  assert order == sorted(order)
  for count in covered:
    assert np.all(count == 1)
  grids = [-(-h // (16 - lost)) * -(-w // (12 - lost)) for h, w in source.sizes]
  assert np.bincount(order).tolist() == grids


@pytest.mark.eight_devices
def test_tiles_are_scored_as_whole_images(source):
  """On one device and on eight; `valid` convolutions make them equal."""
  config = _config(padding='valid', num_classes=3)
  model = unet.create_model(config)
  variables = helpers.random_variables(model, (9, 9), 3)
  variables['batch_stats'] = {}
  confusion, losses = [], []
  for example in map(source(None, None).__getitem__, range(6)):
    image, mask = example['image'], example['mask'].astype(int)
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)], 'reflect')
    x = (padded[None] / 255 - 0.5) / 0.25
    logits = np.asarray(model.apply(variables, x, train=False))[0]
    confusion.append(np.zeros((3, 3), int))
    np.add.at(confusion[-1], (mask, logits.argmax(-1)), 1)
    log_p = special.log_softmax(logits, -1)
    losses += [-np.take_along_axis(log_p, mask[..., None], -1).ravel()]
  expected = confusion_lib.scores(np.array(confusion), ('a', 'b', 'c'))
  expected['loss'] = np.concatenate(losses).mean()
  config.data.class_names = ('a', 'b', 'c')
  config.log.num_examples = 3
  dataset = prepare.prepare(config, 'eval')
  for devices in (1, 8):
    evaluator = counting.Evaluator(
      config, model, dataset, helpers.make_mesh(devices)
    )
    assert evaluator.num_examples == 6
    metrics, _, shown = evaluator.run(variables)
    assert len(set(np.round(list(metrics.values()), 6))) > 8
    for name, value in expected.items():
      # A pixel whose two classes are equal up to rounding may turn.
      found = metrics[f'eval/{name}']
      assert_allclose(found, value, rtol=1e-4, err_msg=name)
    assert len(shown) == 3
    assert shown[0]['prediction'].shape == (12, 8)
