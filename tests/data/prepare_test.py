"""Tests of unet_jax/data/prepare.py.

Run as a program with the arguments CACHE_DIR and WATCH_DIR, this file prepares
`_Examples` as another process would, see `_start_process`.
"""

import ast
import errno
import hashlib
import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from ml_collections import config_dict
from PIL import Image
from scipy import ndimage
from skimage import transform

from unet_jax.config import default
from unet_jax.data import masks as masks_lib
from unet_jax.data import prepare, sources, weight_map
from unet_jax.data import prepared as prepared_lib
from unet_jax.data import resize as resize_lib
from unet_jax.runtime import errors

_ROOT = pathlib.Path(__file__).resolve().parents[2]


class _Examples:
  """Random examples in memory.

  With WATCH_DIR, each that is read leaves a file there, and from the fourth on
  reading waits for a file `go`.
  """

  fingerprint = 'examples'
  bad = {}  # {index: exception}
  length = 8
  watch_dir = None

  def __init__(self, config, split, problems=None):
    del config, problems
    self.split = split

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    if self.watch_dir:
      (self.watch_dir / f'{index}-{os.getpid()}').touch()
      while index >= 3 and not (self.watch_dir / 'go').exists():
        time.sleep(0.005)
    if index in self.bad:
      raise self.bad[index]
    rng = np.random.default_rng(index)
    size = (10 + index, 21 - index)
    return {
      'image': rng.integers(0, 256, (*size, 3), np.uint8),
      'mask': rng.integers(0, 3, size, np.uint8),
      'name': f'{index}.png',
      'mask_name': f'{index}_mask.png',
    }


def _config(cache_dir='', **data):
  config = default.get_config()
  config.data.update(
    source='folder',
    dir='x',
    image_size=(8, 6),
    num_classes=3,
    cache_dir=str(cache_dir),
    num_workers=2,
  )
  config.data.update(**data)
  return config


@pytest.fixture
def examples(monkeypatch):
  """`_Examples` as the folder source, in a state of its own."""
  source = type('Examples', (_Examples,), {'bad': {}})
  monkeypatch.setitem(sources.SOURCES, 'folder', source)
  return source


def _arrays(prepared):
  rows = [prepared[i] for i in range(len(prepared))]
  return [np.stack([row[key] for row in rows]) for key in ('image', 'mask')]


# map_mask


def _map_error(values, table=(), num_classes=3, name='m.png'):
  with pytest.raises(errors.UserError) as e:
    masks_lib.map_mask(np.asarray(values), table, num_classes, name)
  assert '\n' not in str(e.value)
  return str(e.value)


_DTYPES = (np.uint8, np.uint16, np.dtype('>u2'), np.int32, np.int64)


@pytest.mark.parametrize('dtype', _DTYPES)
def test_map_mask_without_a_table(dtype):
  values = np.array([[0, 1, 2], [255, 1, 0]], dtype)
  got = masks_lib.map_mask(values, (), 3, 'm')
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize('dtype', _DTYPES)
def test_map_mask_with_a_table(dtype):
  values = np.array([[7, 0, 30], [255, 7, 7]], dtype)
  table = ((0, 255), (30, 0), (7, 2), (255, 1), (99, 0))
  got = masks_lib.map_mask(values, table, 3, 'm')
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got, [[2, 255, 0], [1, 2, 2]])


def test_map_mask_of_large_values():
  values = np.array([[0, 40000]], np.uint16)
  got = masks_lib.map_mask(values, ((0, 0), (40000, 1), (256, 2)), 3, 'm')
  np.testing.assert_array_equal(got, [[0, 1]])


@pytest.mark.parametrize('num_classes', [1, 2])
def test_map_mask_of_two_classes(num_classes):
  values = np.array([[0, 1, 255]], np.uint8)
  got = masks_lib.map_mask(values, (), num_classes, 'm')
  np.testing.assert_array_equal(got, values)
  table = ((0, 0), (255, 1))
  got = masks_lib.map_mask(values[:, ::2], table, num_classes, 'm')
  np.testing.assert_array_equal(got, [[0, 1]])


_COLORS = (((0, 0, 0), 0), ((255, 0, 0), 2), ((0, 0, 255), 1), (7, 255))


def test_map_mask_of_colors():
  values = [[[0, 0, 0], [0, 0, 255]], [[255, 0, 0], [7, 7, 7]]]
  got = masks_lib.map_mask(np.array(values, np.uint8), _COLORS, 3, 'm')
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got, [[0, 1], [2, 255]])


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_map_mask_of_grey_with_a_table_of_colors(dtype):
  """A file with nothing but grey in it is decoded to one channel."""
  values = np.array([[0, 7]], dtype)
  got = masks_lib.map_mask(values, _COLORS, 3, 'm')
  np.testing.assert_array_equal(got, [[0, 255]])
  # 255 is no code of (0, 0, 255).
  assert _map_error(np.array([[0, 255]], dtype), _COLORS) == (
    'm.png: value 255 in 1 of 2 pixels is not in data.mask_values; add (255, '
    'CLASS) to data.mask_values, CLASS in 0..2 or 255 to ignore'
  )
  no_grey = (((255, 0, 0), 1),)
  assert 'value 0 in 1 of 1 pixels' in _map_error(
    np.array([[0]], dtype), no_grey
  )


@pytest.mark.parametrize('dtype', _DTYPES)
def test_unknown_value(dtype):
  """The most frequent one is named; the line that it prints mends it."""
  values = np.array([[0, 9, 4, 4], [0, 4, 9, 0]], dtype)
  table = ((0, 0), (1, 1))
  message = _map_error(values, table, name='a/m.png')
  assert message == (
    'a/m.png: value 4 in 3 of 8 pixels is not in data.mask_values; add (4, '
    'CLASS) to data.mask_values, CLASS in 0..2 or 255 to ignore'
  )
  assert 'value 9 in 2 of 8 pixels' in _map_error(values, (*table, (4, 2)))
  got = masks_lib.map_mask(values, (*table, (4, 2), (9, 255)), 3, 'm')
  np.testing.assert_array_equal(got, [[0, 255, 2, 2], [0, 2, 255, 0]])


def test_unknown_color():
  values = np.zeros((2, 2, 3), np.uint8)
  values[0, 1] = (1, 2, 3)
  assert _map_error(values, _COLORS) == (
    'm.png: value (1, 2, 3) in 1 of 4 pixels is not in data.mask_values; add '
    '((1, 2, 3), CLASS) to data.mask_values, CLASS in 0..2 or 255 to ignore'
  )
  # Black and blue are no 0 and 255.
  values[0, 1] = (0, 0, 255)
  table = (((0, 0, 0), 0), ((255, 0, 0), 1))
  assert 'a mask of 0 and 255' not in _map_error(values, table, 2)


@pytest.mark.parametrize('num_classes', [1, 2])
@pytest.mark.parametrize('table', [(), ((0, 0), (1, 1))])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_mask_of_0_and_255(num_classes, table, dtype):
  """Refused also where 255 could be `ignore`; both of its tables work."""
  values = np.array([[0, 255, 255], [0, 0, 0]], dtype)
  message = _map_error(values, table, num_classes)
  assert message == (
    'm.png: value 255 in 2 of 6 pixels is not in data.mask_values; a mask of 0 '
    "and 255 needs --config.data.mask_values='((0,0),(255,1))', or "
    "'((0,0),(1,1),(255,255))' where 255 is to be ignored"
  )
  tables = map(ast.literal_eval, re.findall(r"'(.*?)'", message))
  got = [
    masks_lib.map_mask(values, t, num_classes, 'm').tolist() for t in tables
  ]
  assert got == [[[0, 1, 1], [0, 0, 0]], [[0, 255, 255], [0, 0, 0]]]


def test_all_of_255():
  values = np.full((2, 2), 255, np.uint8)
  assert 'a mask of 0 and 255' in _map_error(values, (), 2)
  # With more classes nobody takes 255 for the foreground.
  np.testing.assert_array_equal(masks_lib.map_mask(values, (), 3, 'm'), values)


@pytest.mark.parametrize('count', [1, 2, 5])
def test_mask_of_colors_without_a_table(count):
  """The table that it prints can be pasted, and works."""
  rng = np.random.default_rng(0)
  colors = rng.integers(0, 256, (count, 3), np.uint8)
  index = np.repeat(np.arange(count), 4 * np.arange(count, 0, -1))
  values = colors[index][None]
  message = _map_error(values, ((0, 0), (1, 1)), 5)
  start = (
    f'm.png: the mask is an RGB image of {count} colours, not a map of '
    'classes; give each colour its class, such as --config.data.mask_values='
  )
  assert message.startswith(start)
  shown = re.fullmatch("'(.*)'", message.removeprefix(start)).group(1)
  config = config_dict.ConfigDict({'mask_values': ()})
  config.mask_values = ast.literal_eval(shown)
  # The most frequent colour first.
  got = masks_lib.map_mask(values, config.mask_values, 5, 'm')
  np.testing.assert_array_equal(got, index[None])


def test_mask_of_many_colors():
  values = np.arange(30, dtype=np.uint8).reshape(1, 10, 3)
  message = _map_error(values)
  assert 'an RGB image of 10 colours' in message
  assert message.endswith("((15,16,17),5),)' and so on")


# resize_pair


def _disk(size, center, radius):
  rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
  inside = np.hypot(rows - center[0], columns - center[1]) < radius
  return inside.astype(np.uint8)


# Where the centre of a new pixel is on the edge of two old ones, nearest takes
# one of two that are half an old pixel off, hence the larger tolerances.
@pytest.mark.parametrize('resize', ['stretch', 'pad', 'crop'])
@pytest.mark.parametrize(
  'size, target, tolerance',
  [
    ((90, 120), (30, 40), 0.12),
    ((97, 131), (47, 53), 0.12),
    ((131, 97), (40, 53), 0.12),
    ((50, 47), (128, 131), 0.2),
    ((301, 99), (64, 128), 0.2),
    ((99, 301), (128, 64), 0.2),
    ((64, 64), (96, 96), 0.35),
    ((128, 128), (64, 64), 0.35),
  ],
)
def test_image_and_mask_stay_on_one_another(size, target, resize, tolerance):
  """An object has the same centre in image and mask, where it belongs."""
  center = np.array(size) * (0.47, 0.52)
  disk = _disk(size, center, 0.2 * min(size))
  image, mask = resize_lib.resize_pair(
    np.stack([disk * 255] * 3, -1), disk, target, resize
  )
  assert image.shape == (*target, 3) and mask.shape == target
  assert image.dtype == mask.dtype == np.uint8
  in_image = ndimage.center_of_mass(image[..., 0].astype(float))
  in_mask = ndimage.center_of_mass(mask == 1)
  np.testing.assert_allclose(in_image, in_mask, atol=tolerance)
  if resize == 'stretch':
    expected = center * target / size - 0.5
    np.testing.assert_allclose(in_image, expected, atol=0.1)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('resize', ['stretch', 'pad', 'crop'])
@pytest.mark.parametrize(
  'size, target',
  [((150, 90), (50, 30)), ((101, 67), (33, 40)), ((40, 50), (101, 111))],
)
def test_coordinates_as_image_and_as_mask(size, target, resize, axis):
  """What each pixel says of its place is the same in both, on average."""
  place = np.indices(size)[axis].astype(np.uint8)
  image, mask = resize_lib.resize_pair(place[..., None], place, target, resize)
  valid = mask != 255
  difference = image[..., 0][valid].astype(float) - mask[valid]
  assert np.abs(difference).max() < 3
  assert abs(difference.mean()) < 0.25


@pytest.mark.parametrize('factor', [2, 3, 5])
def test_shrinking_averages_areas(factor):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (12 * factor, 7 * factor, 3), np.uint8)
  mask = image[..., 0]
  got, _ = resize_lib.resize_pair(image, mask, (12, 7), 'stretch')
  blocks = image.reshape(12, factor, 7, factor, 3).mean((1, 3))
  np.testing.assert_allclose(got, blocks, atol=0.51)


def test_shrinking_one_side_and_growing_the_other():
  rng = np.random.default_rng(0)
  column = rng.integers(0, 256, (64, 1, 1), np.uint8)
  image = np.repeat(column, 10, 1)
  got, _ = resize_lib.resize_pair(image, image[..., 0], (16, 25), 'stretch')
  blocks = column.reshape(16, 4).mean(1)
  expected = np.repeat(blocks[:, None], 25, 1)
  np.testing.assert_allclose(got[..., 0], expected, atol=1)


@pytest.mark.parametrize('target', [(20, 14), (23, 31)])
def test_growing_is_linear(target):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (10, 7, 3), np.uint8)
  got, _ = resize_lib.resize_pair(image, image[..., 0], target, 'stretch')
  expected = transform.resize(
    image.astype(float), target, order=1, mode='edge', anti_aliasing=False
  )
  np.testing.assert_allclose(got, expected, atol=1)


@pytest.mark.parametrize(
  'size, target',
  [
    ((12, 8), (6, 4)),
    ((128, 128), (96, 97)),
    ((500, 333), (128, 128)),
    ((37, 41), (64, 64)),
    ((999, 5), (64, 48)),
  ],
)
def test_mask_takes_the_pixel_at_the_centre(size, target):
  rng = np.random.default_rng(0)
  mask = rng.integers(0, 256, size, np.uint8)
  _, got = resize_lib.resize_pair(mask[..., None], mask, target, 'stretch')
  index = [
    np.floor((np.arange(t) + 0.5) * n / t).astype(int)
    for n, t in zip(size, target)
  ]
  np.testing.assert_array_equal(got, mask[np.ix_(*index)])


@pytest.mark.parametrize('resize', ['stretch', 'pad', 'crop'])
@pytest.mark.parametrize('channels', [1, 3])
def test_the_right_size_is_left_alone(resize, channels):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (9, 14, channels), np.uint8)
  mask = rng.integers(0, 256, (9, 14), np.uint8)
  got = resize_lib.resize_pair(image, mask, (9, 14), resize)
  np.testing.assert_array_equal(got[0], image)
  np.testing.assert_array_equal(got[1], mask)


@pytest.mark.parametrize(
  'size, target, rows, columns',
  [
    ((10, 20), (20, 20), slice(5, 15), slice(0, 20)),
    ((20, 10), (11, 10), slice(0, 11), slice(2, 8)),
    ((30, 10), (15, 8), slice(0, 15), slice(1, 6)),
  ],
)
def test_pad(size, target, rows, columns):
  """What is added is 0 in the image and 255 in the mask, on both sides."""
  image, mask = resize_lib.resize_pair(
    np.full((*size, 3), 200, np.uint8), np.ones(size, np.uint8), target, 'pad'
  )
  expected = np.zeros(target, np.uint8)
  expected[rows, columns] = 200
  np.testing.assert_array_equal(image, np.stack([expected] * 3, -1))
  np.testing.assert_array_equal(mask, np.where(expected, 1, 255))


@pytest.mark.parametrize('size', [(20, 40), (40, 20)])
def test_crop(size):
  """The middle is kept; nothing is filled in."""
  place = np.indices(size)[np.argmax(size)].astype(np.uint8)
  image, mask = resize_lib.resize_pair(
    place[..., None], place, (20, 20), 'crop'
  )
  expected = np.arange(10, 30)
  expected = np.broadcast_to(
    expected if size[1] == 40 else expected[:, None], (20, 20)
  )
  np.testing.assert_array_equal(mask, expected)
  np.testing.assert_array_equal(image[..., 0], expected)


@pytest.mark.parametrize('resize', ['pad', 'crop'])
@pytest.mark.parametrize('size', [(1, 1000), (1000, 1), (7, 5), (1, 1)])
def test_extreme_sizes(resize, size):
  image, mask = resize_lib.resize_pair(
    np.full((*size, 1), 9, np.uint8), np.ones(size, np.uint8), (6, 8), resize
  )
  assert image.shape == (6, 8, 1) and mask.shape == (6, 8)
  assert np.any(mask == 1)
  assert np.all((image[..., 0] == 9) == (mask == 1))


# prepare_example


def _example(image_size, mask_size):
  return {
    'image': np.zeros((*image_size, 3), np.uint8),
    'mask': np.zeros(mask_size, np.uint8),
    'name': 'images/a.jpg',
    'mask_name': 'masks/a.png',
  }


@pytest.mark.parametrize(
  'mask_size, shown, hint',
  [
    ((3, 4), '4 x 3', ''),
    (
      (5, 2),
      '2 x 5',
      '; the one is the other turned: an EXIF rotation, applied to one?',
    ),
  ],
)
def test_sizes_that_differ(mask_size, shown, hint):
  with pytest.raises(errors.UserError) as e:
    prepared_lib.prepare_example(_example((2, 5), mask_size), _config().data)
  assert str(e.value) == (
    f'images/a.jpg is 5 x 2 pixels, masks/a.png {shown} (width x height); make '
    f'the mask of the image as it is stored{hint}'
  )


def test_prepare_example_maps_before_it_resizes():
  """So that values of any size survive, and padding is not mapped."""
  example = _example((4, 4), (4, 4))
  example['mask'] = np.full((4, 4), 40000, np.uint16)
  data = _config(
    image_size=(4, 8), resize='pad', mask_values=((40000, 1), (255, 2))
  ).data
  got = prepared_lib.prepare_example(example, data)
  assert got['mask'].dtype == np.uint8
  expected = np.full((4, 8), 255)
  expected[:, 2:6] = 1
  np.testing.assert_array_equal(got['mask'], expected)


# The cache


def test_all_kinds_of_cache_hold_the_same(tmp_path, examples):
  by_kind = {}
  for cache in ('none', 'memory', 'disk', 'disk'):
    config = _config(tmp_path, cache=cache)
    by_kind[cache] = _arrays(prepare.prepare(config, 'train'))
  source = examples(None, None)
  for i in range(len(source)):
    expected = prepared_lib.prepare_example(source[i], _config().data)
    for images, masks in by_kind.values():
      np.testing.assert_array_equal(images[i], expected['image'])
      np.testing.assert_array_equal(masks[i], expected['mask'])
  for images, masks in by_kind.values():
    assert images.shape == (8, 8, 6, 3) and masks.shape == (8, 8, 6)
    assert images.dtype == masks.dtype == np.uint8


def test_memory_and_none_write_nothing(tmp_path, examples):
  for cache in ('none', 'memory'):
    prepare.prepare(_config(tmp_path, cache=cache), 'train')
  assert not list(tmp_path.iterdir())


def test_disk_is_built_once_and_mapped(tmp_path, examples):
  first = prepare.prepare(_config(tmp_path), 'train')
  assert isinstance(first[0]['image'].base, np.memmap)
  # Another reading would raise.
  examples.bad = {i: RuntimeError('read again') for i in range(8)}
  again = prepare.prepare(_config(tmp_path), 'train')
  for a, b in zip(_arrays(first), _arrays(again)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('cache', ['none', 'memory', 'disk'])
def test_folds_hold_their_examples(tmp_path, examples, cache):
  for fold in range(3):
    held_out = sources.cut_folds(8, _config(num_folds=3))[fold].tolist()
    rest = [i for i in range(8) if i not in held_out]
    for split, rows in (('train', rest), ('auto', held_out)):
      config = _config(tmp_path, num_folds=3, fold=fold, cache=cache)
      prepared = prepare.prepare(config, split)
      assert prepared.split == ('train' if rows == rest else f'fold_{fold}')
      images, masks = _arrays(prepared)
      assert len(images) == len(rows)
      source = examples(None, None)
      for i, row in enumerate(rows):
        expected = prepared_lib.prepare_example(source[row], config.data)
        np.testing.assert_array_equal(images[i], expected['image'])
        np.testing.assert_array_equal(masks[i], expected['mask'])
      if cache == 'none':
        continue
      batch = prepared.read_batch(np.array([1, 0]))
      np.testing.assert_array_equal(batch['image'], images[[1, 0]])
      stats = prepared.stats
      assert stats.names == tuple(f'{row}.png' for row in rows)
      counts = [np.bincount(mask.ravel(), minlength=3) for mask in masks]
      np.testing.assert_array_equal(stats.class_pixels[:, :3], counts)
      digests = [hashlib.sha1(i.tobytes()).digest()[:16] for i in images]
      assert [d.tobytes() for d in stats.digests] == digests


def test_all_folds_share_what_is_on_disk(tmp_path, examples):
  """Also with a run without folds."""
  prepare.prepare(_config(tmp_path), 'train')
  # Another reading would raise.
  examples.bad = {i: RuntimeError('read again') for i in range(8)}
  for fold in range(3):
    for split in ('train', 'auto'):
      config = _config(tmp_path, num_folds=3, fold=fold)
      prepared = prepare.prepare(config, split)
      assert isinstance(prepared[0]['image'].base, np.memmap)
  assert len([p for p in (tmp_path / 'prepared').iterdir() if p.is_dir()]) == 1


@pytest.mark.parametrize('cache', ['memory', 'disk'])
def test_undecodable_files_of_folds(tmp_path, examples, cache, caplog):
  examples.bad = {i: errors.DecodeError(f'{i} is broken') for i in (0, 1, 2, 5)}
  config = _config(
    tmp_path, cache=cache, on_error='skip', holdout='last', num_folds=3, fold=1
  )
  caplog.set_level(logging.WARNING)
  # Of 0 to 2, 3 to 5, 6 and 7.
  assert prepare.prepare(config, 'auto').stats.names == ('3.png', '4.png')
  assert caplog.messages == ['left out: 5 is broken']
  assert prepare.prepare(config, 'train').stats.names == ('6.png', '7.png')
  with pytest.raises(errors.UserError) as e:
    prepare.prepare(config, 'fold_0')
  assert str(e.value) == (
    'none of the 3 pairs could be decoded; the first: 0 is broken'
  )


_KEY_CHANGES = {
  'image_size': (8, 7),
  'num_channels': 1,
  'num_classes': 4,
  'mask_values': ((0, 0), (1, 1), (2, 1)),
  'intensity': 'image',
  'resize': 'pad',
  'on_error': 'skip',
}


def test_key_changes_with_each_field(examples):
  source = examples(None, None)
  key = prepare.cache_key(source, _config())
  assert prepare.cache_key(source, _config()) == key
  keys = {key}
  for field, value in _KEY_CHANGES.items():
    keys.add(prepare.cache_key(source, _config(**{field: value})))
  assert len(keys) == 1 + len(_KEY_CHANGES)
  source.fingerprint = 'others'
  assert prepare.cache_key(source, _config()) not in keys


def test_key_stays_with_all_other_fields(examples):
  source = examples(None, None)
  key = prepare.cache_key(source, _config())
  others = {
    'batch_size': 64,
    'cache': 'memory',
    'cache_dir': '/elsewhere',
    'num_workers': 7,
    'class_names': ('a', 'b', 'c'),
    'mean': (0.1, 0.2, 0.35),
    'std': (0.1, 0.2, 0.35),
    'eval_split': 'test',
  }
  assert prepare.cache_key(source, _config(**others)) == key
  config = _config()
  config.model.depth = 1
  config.seed = 9
  assert prepare.cache_key(source, config) == key


def test_key_changes_with_the_weight_map_alone(examples):
  """What a map does not need leaves the key as it is without one."""
  source = examples(None, None)
  config = _config(instance_key='x')
  config.loss.update(border_weight=3.0, border_sigma=2.0)
  assert prepare.cache_key(source, config) == prepare.cache_key(
    source, _config()
  )
  keys = {prepare.cache_key(source, config)}
  for field, value in (
    ('loss.weight_map', 'border'),
    ('loss.border_weight', 4.0),
    ('loss.border_sigma', 4.0),
    ('loss.balance', 'image'),
    ('data.instance_key', 'y'),
  ):
    config.update_from_flattened_dict({field: value})
    keys.add(prepare.cache_key(source, config))
  assert len(keys) == 6


def test_a_changed_file_is_prepared_anew(tmp_path):
  for split in ('train', 'val'):
    for kind in ('images', 'masks'):
      (tmp_path / 'set' / split / kind).mkdir(parents=True)
      Image.new('L', (5, 5), 1).save(tmp_path / 'set' / split / kind / 'a.png')
  config = _config(tmp_path / 'cache', dir=str(tmp_path / 'set'))
  assert prepare.prepare(config, 'train')[0]['image'].max() == 1
  path = tmp_path / 'set/train/images/a.png'
  Image.new('L', (5, 5), 2).save(path)
  os.utime(path, ns=(1, 1))  # Clocks of file systems may be coarse.
  assert prepare.prepare(config, 'train')[0]['image'].max() == 2
  path = tmp_path / 'set/train/masks/a.png'
  Image.new('L', (5, 5), 2).save(path)
  os.utime(path, ns=(1, 1))
  assert prepare.prepare(config, 'train')[0]['mask'].max() == 2


def test_weight_maps_are_kept(tmp_path, examples):
  """Made of the mask as it is after resizing."""
  for cache in ('none', 'memory', 'disk', 'disk'):
    config = _config(tmp_path, cache=cache)
    config.loss.update(weight_map='border', balance='image')
    prepared = prepare.prepare(config, 'train')
    make = weight_map.make_weight_map(config)
    for i in range(len(prepared)):
      example = prepared[i]
      assert example['weight_map'].dtype == np.float16
      np.testing.assert_array_equal(
        example['weight_map'], make(example['mask'])
      )
  assert isinstance(example['weight_map'].base, np.memmap)


@pytest.mark.parametrize('resize', ['stretch', 'pad', 'crop'])
def test_instances_are_resized_with_the_mask(resize):
  seen = []
  example = _example((19, 31), (19, 31))
  example['mask'] = np.arange(19 * 31).reshape(19, 31) % 3
  # Each instance says which value of the mask it had.
  example['instances'] = 1000 * (example['mask'] + 1)
  data = _config(image_size=(12, 12), resize=resize).data
  spy = lambda mask, instances: seen.append(instances)
  mask = prepared_lib.prepare_example(example, data, spy)['mask']
  expected = np.where(mask == 255, 0, 1000 * (mask.astype(int) + 1))
  np.testing.assert_array_equal(seen[0], expected)


def test_instances_of_another_size():
  example = _example((19, 31), (19, 31))
  example['instances'] = np.zeros((19, 30), int)
  with pytest.raises(errors.UserError) as e:
    prepared_lib.prepare_example(example, _config().data)
  assert str(e.value).startswith(
    'images/a.jpg is 31 x 19 pixels, the instance mask of images/a.jpg 30 x 19 '
  )


def test_statistics(tmp_path, examples):
  """Of what is left of the examples, also when they are read again."""
  examples.bad = {2: errors.DecodeError('2.png cannot be decoded')}
  for cache in ('memory', 'disk', 'disk'):
    config = _config(tmp_path, cache=cache, on_error='skip', resize='pad')
    prepared = prepare.prepare(config, 'train')
    stats = prepared.stats
    assert stats.names == tuple(f'{i}.png' for i in (0, 1, 3, 4, 5, 6, 7))
    assert stats.class_pixels.dtype == np.int64
    assert stats.sizes.tolist() == [[8, 6]] * 7
    for i in range(len(prepared)):
      image, mask = prepared[i]['image'], prepared[i]['mask']
      expected = [np.sum(mask == c) for c in (0, 1, 2, 255)]
      assert stats.class_pixels[i].tolist() == expected
      np.testing.assert_allclose(
        stats.stds[i], image.std((0, 1)).max(), rtol=1e-5
      )
      digest = hashlib.sha1(image.tobytes()).digest()[:16]
      assert stats.digests[i].tobytes() == digest
  assert len(np.unique(stats.digests, axis=0)) == 7
  assert stats.class_pixels[:, 3].any()
  assert prepare.prepare(_config(cache='none'), 'train').stats is None


def test_histogram_of_a_large_mask():
  """More pixels than float32 counts one by one."""
  mask = np.full((2**13, 2**12 + 1), 7, np.uint8)
  mask[5] = 255
  counts = masks_lib.histogram(mask)
  assert counts.dtype == np.int64
  assert counts[[7, 255]].tolist() == [mask.size - 2**12 - 1, 2**12 + 1]
  assert counts.sum() == mask.size


def _leftovers(cache_dir):
  """What is kept, besides the locks."""
  paths = pathlib.Path(cache_dir, 'prepared').iterdir()
  return sorted(p.name for p in paths if p.suffix != '.lock')


@pytest.mark.parametrize('cache', ['disk', 'memory'])
def test_a_mistake_in_the_data_stops(tmp_path, examples, cache):
  examples.bad = {5: errors.UserError('5 is bad; mend it')}
  with pytest.raises(errors.UserError) as e:
    prepare.prepare(_config(tmp_path, cache=cache), 'train')
  assert str(e.value) == '5 is bad; mend it'
  if cache == 'disk':
    assert _leftovers(tmp_path) == []
  # Not what `skip` is for.
  with pytest.raises(errors.UserError, match='5 is bad'):
    prepare.prepare(_config(tmp_path, cache=cache, on_error='skip'), 'train')


@pytest.mark.parametrize('cache', ['disk', 'memory'])
def test_undecodable_files(tmp_path, examples, cache, caplog):
  examples.bad = {
    i: errors.DecodeError(f'{i}.png cannot be decoded') for i in (6, 2)
  }
  with pytest.raises(errors.DecodeError) as e:
    prepare.prepare(_config(tmp_path, cache=cache), 'train')
  assert str(e.value) == '2.png cannot be decoded'

  config = _config(tmp_path, cache=cache, on_error='skip')
  source = examples(None, None)
  for _ in range(2):  # Also where the arrays are there.
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      prepared = prepare.prepare(config, 'train')
    assert caplog.messages == [
      'left out: 2.png cannot be decoded',
      'left out: 6.png cannot be decoded',
    ]
    images, _ = _arrays(prepared)
    assert len(images) == 6
    for image, i in zip(images, (0, 1, 3, 4, 5, 7)):
      expected = prepared_lib.prepare_example(source[i], config.data)
      np.testing.assert_array_equal(image, expected['image'])


@pytest.mark.parametrize('cache', ['disk', 'memory'])
def test_nothing_can_be_decoded(tmp_path, examples, cache):
  examples.bad = {i: errors.DecodeError(f'{i} is broken') for i in range(8)}
  config = _config(tmp_path, cache=cache, on_error='skip')
  for _ in range(2):
    with pytest.raises(errors.UserError) as e:
      prepare.prepare(config, 'train')
    assert str(e.value) == (
      'none of the 8 pairs could be decoded; the first: 0 is broken'
    )


def _cache_error(config, examples, reason):
  key = prepare.cache_key(examples(None, None), config)
  path = pathlib.Path(config.data.cache_dir, 'prepared', key)
  with pytest.raises(errors.UserError) as e:
    prepare.prepare(config, 'train')
  assert str(e.value) == (
    f'{path}: cannot keep the prepared arrays there ({reason}); free space, '
    'set --config.data.cache_dir=DIR, or use --config.data.cache=memory'
  )


def test_cache_that_cannot_be_written(tmp_path, examples):
  (tmp_path / 'file').touch()
  _cache_error(_config(tmp_path / 'file'), examples, 'Not a directory')
  assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_cache_without_permission(tmp_path, examples):
  tmp_path.chmod(0o500)
  _cache_error(_config(tmp_path), examples, 'Permission denied')
  assert not list(tmp_path.iterdir())


def test_full_disk(tmp_path, examples, monkeypatch):
  calls = []

  def allocate(descriptor, offset, length):
    calls.append((os.fstat(descriptor).st_size, offset, length))
    if len(calls) == 2:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'posix_fallocate', allocate)
  _cache_error(_config(tmp_path), examples, 'No space left on device')
  # The whole of both files was asked for, before anything was decoded.
  assert [length for _, _, length in calls] == [size for size, _, _ in calls]
  assert calls[0][2] > 8 * 8 * 6 * 3 and calls[1][2] > 8 * 8 * 6
  assert _leftovers(tmp_path) == []


# More than one process


def _start_process(cache_dir, watch_dir):
  environment = {**os.environ, 'PYTHONPATH': str(_ROOT)}
  return subprocess.Popen(
    [sys.executable, __file__, str(cache_dir), str(watch_dir)],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _wait_for(condition, what):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end, f'waited for {what}'
    time.sleep(0.01)


def _digest(prepared):
  arrays = _arrays(prepared)
  return hashlib.sha256(b''.join(a.tobytes() for a in arrays)).hexdigest()


def test_two_processes_build_once(tmp_path, examples):
  watch_dir = tmp_path / 'watch'
  watch_dir.mkdir()
  processes = [_start_process(tmp_path / 'cache', watch_dir) for _ in range(2)]
  messages = []

  def read(process):
    for line in process.stderr:
      messages.append(line.strip())

  threads = [threading.Thread(target=read, args=(p,)) for p in processes]
  for thread in threads:
    thread.start()
  try:
    waiting = 'preparing train: waiting for another run that does it'
    _wait_for(lambda: waiting in messages, f'{waiting!r} in {messages}')
  finally:
    (watch_dir / 'go').touch()
    digests = [p.stdout.read().strip() for p in processes]
    codes = [p.wait() for p in processes]
    for thread in threads:
      thread.join()
  for process in processes:
    process.stdout.close()
    process.stderr.close()
  assert codes == [0, 0]
  expected = _digest(prepare.prepare(_config(cache='memory'), 'train'))
  assert digests == [expected, expected]
  read_by = [p.name for p in watch_dir.iterdir() if p.name != 'go']
  assert len(read_by) == 8
  assert len({name.split('-')[1] for name in read_by}) == 1
  assert len(_leftovers(tmp_path / 'cache')) == 1


def test_a_process_killed_while_it_builds(tmp_path, examples):
  """What it leaves is not taken for whole, and removed by the next."""
  cache_dir, watch_dir = tmp_path / 'cache', tmp_path / 'watch'
  watch_dir.mkdir()
  with _start_process(cache_dir, watch_dir) as process:
    try:
      _wait_for(lambda: len(list(watch_dir.iterdir())) > 3, 'the fourth')
    finally:
      process.send_signal(signal.SIGKILL)
  config = _config(cache_dir)
  key = prepare.cache_key(examples(None, None), config)
  (leftover,) = _leftovers(cache_dir)
  assert leftover.startswith(f'{key}.tmp-')
  got = _digest(prepare.prepare(config, 'train'))
  assert got == _digest(prepare.prepare(_config(cache='memory'), 'train'))
  assert _leftovers(cache_dir) == [key]
  meta = json.loads((cache_dir / 'prepared' / key / 'meta.json').read_text())
  assert meta['length'] == 8 and meta['skipped'] == []


def _main(cache_dir, watch_dir):
  logging.basicConfig(level=logging.INFO, format='%(message)s')
  _Examples.watch_dir = pathlib.Path(watch_dir)
  sources.SOURCES['folder'] = _Examples
  print(_digest(prepare.prepare(_config(cache_dir), 'train')))


if __name__ == '__main__':
  _main(*sys.argv[1:])
