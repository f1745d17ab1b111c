"""Tests of unet_jax/data/prepare.py."""

import ast
import errno
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import signal
import time

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from tests import folders, program
from tests.data import helpers
from tests.refusals import message_of
from unet_jax.data import (
  mask_advice,
  noticed,
  prepare,
  prepared,
  sources,
  weight_map,
)
from unet_jax.runtime import errors, locks


class _Examples:
  """Random examples in memory.

  With WATCH_DIR, each that is read leaves a file there, and from the fourth on
  reading waits for a file `go`.
  """

  fingerprint = 'examples'
  groups = None
  bad = {}  # {index: exception}
  watch_dir = None

  def __init__(self, config=None, split=None, problems=None):
    del config, problems
    self.split = split

  def __len__(self):
    return 8

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


def _config(cache_dir='', **fields):
  fixed = {'source': 'folder', 'dir': 'x', 'image_size': (8, 6)}
  fixed |= {'num_classes': 3, 'cache_dir': str(cache_dir), 'num_workers': 2}
  return helpers.make_config(**{**fixed, **fields})


def _prepare(cache_dir='', split='train', **fields):
  return prepare.prepare(_config(cache_dir, **fields), split)


def _error(*args, kind=errors.UserError, **fields):
  return message_of(_prepare, *args, kind=kind, **fields)


def _key(source, config):
  make_weights = weight_map.make_weight_map(config)
  return prepare.cache_key(source, config, make_weights)


@pytest.fixture
def examples(monkeypatch):
  """`_Examples` as the folder source, in a state of its own."""
  source = type('Examples', (_Examples,), {'bad': {}})
  monkeypatch.setitem(sources.SOURCES, 'folder', source)
  return source


def _break(examples, kind, *indices):
  examples.bad = {i: kind(f'{i}.png cannot be decoded') for i in indices}


def _assert_rows(dataset, rows, data):
  """That a dataset has these examples of `_Examples`."""
  got = helpers.rows_of(dataset)
  assert len(got['image']) == len(rows)
  for i, row in enumerate(rows):
    expected = prepared.prepare_example(_Examples()[row], data)
    assert_array_equal(got['image'][i], expected['image'])
    assert_array_equal(got['mask'][i], expected['mask'])
  return got


def _assert_stats(dataset, rows):
  """That the statistics are those of these examples of `_Examples`."""
  stats, got = dataset.stats, helpers.rows_of(dataset)
  assert stats.names == tuple(f'{row}.png' for row in rows)
  stored = [
    np.sqrt(np.prod(_Examples()[row]['image'].shape[:2])) for row in rows
  ]
  assert_allclose(stats.edges, stored, rtol=1e-6)  # Before they are resized.
  assert stats.class_pixels.dtype == np.int64
  for i, (image, mask) in enumerate(zip(got['image'], got['mask'])):
    expected = [np.sum(mask == c) for c in (0, 1, 2, 255)]
    assert stats.class_pixels[i].tolist() == expected
    assert_allclose(stats.stds[i], image.std((0, 1)).max(), rtol=1e-5)
    digest = hashlib.sha1(image.tobytes()).digest()[:16]
    assert stats.digests[i].tobytes() == digest


def test_all_kinds_of_cache_hold_the_same(tmp_path, examples):
  """Weight maps too, made of the mask as it is after resizing."""
  for cache in ('none', 'memory', 'disk', 'disk'):
    config = _config(tmp_path / cache, cache=cache)
    config.loss.update(weight_map='border', balance='image')
    dataset = prepare.prepare(config, 'train')
    got = _assert_rows(dataset, range(8), config.data)
    assert got['image'].shape == (8, 8, 6, 3)
    assert got['mask'].shape == (8, 8, 6)
    assert got['image'].dtype == got['mask'].dtype == np.uint8
    assert got['weight_map'].dtype == np.float16
    make = weight_map.make_weight_map(config)
    for mask, weights in zip(got['mask'], got['weight_map']):
      assert_array_equal(weights, make(mask))
    batch = dataset.read_batch(np.array([5, 2]))
    helpers.assert_same(batch, {k: v[[5, 2]] for k, v in got.items()})
  assert isinstance(dataset[0]['weight_map'].base, np.memmap)
  # Memory and none write nothing.
  assert [p.name for p in tmp_path.iterdir()] == ['disk']


def test_disk_is_built_once_and_mapped(tmp_path, examples):
  """Of all folds, and without folds, the same."""
  first = _prepare(tmp_path)
  assert isinstance(first[0]['image'].base, np.memmap)
  _break(examples, RuntimeError, *range(8))  # Another reading would raise.
  rows = helpers.rows_of(first)
  helpers.assert_same(rows, helpers.rows_of(_prepare(tmp_path)))
  for fold in range(3):
    for split in ('train', 'auto'):
      part = _prepare(tmp_path, split, num_folds=3, fold=fold)
      assert isinstance(part[0]['image'].base, np.memmap)
  assert len(_kept_names(tmp_path)) == 1


@pytest.mark.parametrize('cache', ['none', 'memory', 'disk'])
def test_folds_hold_their_examples(tmp_path, examples, cache):
  for fold in range(3):
    held_out = sources.cut_folds(8, _config(num_folds=3))[fold].tolist()
    rest = [i for i in range(8) if i not in held_out]
    for split, rows in (('train', rest), ('auto', held_out)):
      config = _config(tmp_path, num_folds=3, fold=fold, cache=cache)
      dataset = prepare.prepare(config, split)
      assert dataset.split == ('train' if rows == rest else f'fold_{fold}')
      got = _assert_rows(dataset, rows, config.data)
      if cache == 'none':
        continue
      batch = dataset.read_batch(np.array([1, 0]))
      assert_array_equal(batch['image'], got['image'][[1, 0]])
      _assert_stats(dataset, rows)


@pytest.mark.parametrize('cache', ['memory', 'disk'])
def test_undecodable_files_of_folds(tmp_path, examples, cache, caplog):
  _break(examples, errors.DecodeError, 0, 1, 2, 5)
  options = {'cache': cache, 'on_error': 'skip'}
  options |= {'holdout': 'last', 'num_folds': 3, 'fold': 1}
  caplog.set_level(logging.WARNING)
  # Of 0 to 2, 3 to 5, 6 and 7.
  fold = _prepare(tmp_path, 'auto', **options)
  assert fold.stats.names == ('3.png', '4.png')
  assert caplog.messages == ['skipped: 5.png cannot be decoded']
  rest = _prepare(tmp_path, 'train', **options)
  assert rest.stats.names == ('6.png', '7.png')
  assert _error(tmp_path, 'fold_0', **options) == (
    'none of the 3 pairs could be decoded; the first: 0.png cannot be decoded'
  )


def test_key_changes_with_the_fields_of_arrays_alone(examples):
  source = examples()
  key = lambda **fields: _key(source, _config(**fields))
  changing = {
    'image_size': (8, 7),
    'num_channels': 1,
    'num_classes': 4,
    'mask_values': ((0, 0), (1, 1), (2, 1)),
    'intensity': 'image',
    'resize': 'pad',
    'on_error': 'skip',
  }
  others = {
    **{'batch_size': 64, 'num_workers': 7, 'eval_split': 'test'},
    **{'cache': 'memory', 'cache_dir': '/elsewhere'},
    **{'mean': (0.1, 0.2, 0.35), 'std': (0.1, 0.2, 0.35)},
    **{'class_names': ('a', 'b', 'c'), 'model.depth': 1, 'seed': 9},
  }
  keys = {key(**{name: value}) for name, value in changing.items()} | {key()}
  assert len(keys) == 1 + len(changing)
  assert key() == key(**others)
  source.fingerprint = 'others'
  assert key() not in keys


def test_key_changes_with_the_weight_map_alone(examples):
  """Fields that no map uses leave the key as it is without one."""
  source = examples()
  config = _config(instance_key='x')
  config.loss.update(border_weight=3.0, border_sigma=2.0)
  assert _key(source, config) == _key(source, _config())
  keys = {_key(source, config)}
  for field, value in (
    ('loss.weight_map', 'border'),
    ('loss.border_weight', 4.0),
    ('loss.border_sigma', 4.0),
    ('loss.balance', 'image'),
    ('data.instance_key', 'y'),
  ):
    config.update_from_flattened_dict({field: value})
    keys.add(_key(source, config))
  assert len(keys) == 6


def test_a_changed_file_is_prepared_anew(tmp_path):
  pair = (np.ones((5, 5), np.uint8),) * 2
  for split in ('train', 'val'):
    folders.write_pairs(tmp_path / 'set' / split, {'a': pair})
  options = {'dir': str(tmp_path / 'set')}
  assert _prepare(tmp_path / 'cache', **options)[0]['image'].max() == 1
  for kind, key in (('images', 'image'), ('masks', 'mask')):
    path = tmp_path / f'set/train/{kind}/a.png'
    path.write_bytes(folders.encode(pair[0] * 2))
    os.utime(path, ns=(1, 1))  # Clocks of file systems may be coarse.
    assert _prepare(tmp_path / 'cache', **options)[0][key].max() == 2


def test_files_that_trade_names_are_prepared_anew(tmp_path):
  """Where size and date are the same, as after unpacking an archive."""
  one = np.ones((5, 5), np.uint8)
  pairs = {'a': (one, one), 'b': (2 * one, one)}
  root = tmp_path / 'set/train'
  folders.write_pairs(root, pairs)
  folders.write_pairs(tmp_path / 'set/val', {'a': (one, one)})
  a, b = (root / f'images/{name}.png' for name in pairs)
  options = {'dir': str(tmp_path / 'set')}
  for path in (a, b):
    os.utime(path, ns=(1, 1))
  assert a.stat().st_size == b.stat().st_size
  assert _prepare(tmp_path / 'cache', **options)[0]['image'].max() == 1
  a.rename(root / 'c')
  b.rename(a)
  (root / 'c').rename(b)
  assert _prepare(tmp_path / 'cache', **options)[0]['image'].max() == 2


def test_the_kinds_of_files_are_kept(tmp_path):
  pairs = dict(folders.make_pairs(4))
  image, mask = pairs['01']
  pairs['01'] = image[..., 0].astype(np.uint16) << 8, mask
  folders.write_pairs(tmp_path / 'data', pairs)
  for cache in ('memory', 'disk', 'disk'):
    config = folders.make_config(tmp_path / 'data', cache=cache)
    config.data.cache_dir = str(tmp_path / 'cache')
    stats = prepare.prepare(config, 'train').stats
    kinds = ['RGB of 8 bit', 'grey of 16 bit', 'RGB of 8 bit']
    assert stats.origins.tolist() == kinds


def test_statistics(tmp_path, examples):
  """Of the examples that are left, also when they are read again."""
  examples.bad = {2: errors.DecodeError('2.png cannot be decoded')}
  for cache in ('memory', 'disk', 'disk'):
    dataset = _prepare(tmp_path, cache=cache, on_error='skip', resize='pad')
    _assert_stats(dataset, (0, 1, 3, 4, 5, 6, 7))
    stats = dataset.stats
    assert stats.sizes.tolist() == [[8, 6]] * len(dataset) == [[8, 6]] * 7
  assert len(np.unique(stats.digests, axis=0)) == 7
  assert stats.class_pixels[:, 3].any()
  assert _prepare(cache='none').stats is None


def _kept_names(cache_dir):
  """Names of kept files, besides the locks."""
  paths = pathlib.Path(cache_dir, 'prepared').iterdir()
  return sorted(p.name for p in paths if p.suffix != '.lock')


@pytest.mark.parametrize('cache', ['disk', 'memory'])
def test_a_mistake_in_the_data_stops(tmp_path, examples, cache):
  examples.bad = {5: errors.UserError('5 is bad; fix it')}
  assert _error(tmp_path, cache=cache) == '5 is bad; fix it'
  if cache == 'disk':
    assert _kept_names(tmp_path) == []
  # Not what `skip` is for.
  assert '5 is bad' in _error(tmp_path, cache=cache, on_error='skip')


@pytest.mark.parametrize('cache', ['disk', 'memory'])
def test_undecodable_files(tmp_path, examples, cache, caplog):
  _break(examples, errors.DecodeError, 6, 2)
  message = _error(tmp_path, cache=cache, kind=errors.DecodeError)
  assert message == '2.png cannot be decoded'
  config = _config(tmp_path, cache=cache, on_error='skip')
  for _ in range(2):  # Also where the arrays are there.
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      dataset = prepare.prepare(config, 'train')
    assert caplog.messages == [
      'skipped: 2.png cannot be decoded',
      'skipped: 6.png cannot be decoded',
    ]
    _assert_rows(dataset, (0, 1, 3, 4, 5, 7), config.data)


@pytest.mark.parametrize('cache', ['disk', 'memory'])
def test_nothing_can_be_decoded(tmp_path, examples, cache):
  _break(examples, errors.DecodeError, *range(8))
  for _ in range(2):
    assert _error(tmp_path, cache=cache, on_error='skip') == (
      'none of the 8 pairs could be decoded; the first: 0.png cannot be decoded'
    )


def _assert_cannot_keep(cache_dir, reason):
  path = f'{cache_dir}/prepared/{_key(_Examples(), _config(cache_dir))}'
  assert _error(cache_dir) == (
    f'{path}: cannot keep the prepared arrays there ({reason}); free space, '
    'set --config.data.cache_dir=DIR, or use --config.data.cache=memory'
  )


def test_what_is_kept_needs_no_right_to_write(tmp_path, examples, monkeypatch):
  expected = _prepare(tmp_path)[3]['image']

  def lock(*_):
    raise PermissionError(errno.EACCES, 'Permission denied')

  monkeypatch.setattr(prepare.locks, 'lock', lock)
  np.testing.assert_array_equal(_prepare(tmp_path)[3]['image'], expected)
  assert '(Permission denied)' in _error(tmp_path, resize='pad')


def test_cache_that_cannot_be_written(tmp_path, examples):
  (tmp_path / 'file').touch()
  _assert_cannot_keep(tmp_path / 'file', 'Not a directory')
  assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_cache_without_permission(tmp_path, examples):
  tmp_path.chmod(0o500)
  _assert_cannot_keep(tmp_path, 'Permission denied')
  assert not list(tmp_path.iterdir())


def test_full_disk(tmp_path, examples, monkeypatch):
  calls = []

  def allocate(descriptor, offset, length):
    calls.append((os.fstat(descriptor).st_size, offset, length))
    if len(calls) == 2:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'posix_fallocate', allocate)
  _assert_cannot_keep(tmp_path, 'No space left on device')
  # The whole of both files was asked for, before anything was decoded.
  assert [length for _, _, length in calls] == [size for size, _, _ in calls]
  assert calls[0][2] > 8 * 8 * 6 * 3 and calls[1][2] > 8 * 8 * 6
  assert _kept_names(tmp_path) == []


@pytest.mark.parametrize('resize', ['stretch', 'patch'])
def test_what_is_damaged_is_prepared_again(tmp_path, examples, caplog, resize):
  """Of folds too, which share the files."""

  def assert_same():
    caplog.clear()
    found = _prepare(tmp_path, num_folds=2, fold=0, resize=resize)
    for got, want in zip(found, whole, strict=True):
      helpers.assert_same(got, want)

  whole = list(_prepare(cache='memory', num_folds=2, fold=0, resize=resize))
  assert_same()
  [name] = _kept_names(tmp_path)
  folder = tmp_path / 'prepared' / name
  files = sorted(p for p in folder.rglob('*') if p.is_file())
  damages = [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(b''),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
  ]
  for file in files[:2] + files[-2:]:
    for damage in damages:
      damage(file)
      assert_same()
      assert caplog.text.count(f'{folder} is damaged (') == 1, file
  stats = folder / 'stats.npz'
  content = bytearray(stats.read_bytes())
  content[len(content) // 2] ^= 1
  stats.write_bytes(content)
  assert_same()
  assert 'is damaged (' in caplog.text
  assert _kept_names(tmp_path) == [name]
  assert_same()
  assert 'is damaged (' not in caplog.text


def test_what_cannot_be_opened_for_now_is_kept(tmp_path, examples, monkeypatch):
  """Such as with too many files open; hidden files of the system count not."""
  _prepare(tmp_path)
  [name] = _kept_names(tmp_path)
  folder = tmp_path / 'prepared' / name
  (folder / '.nfs0001').write_bytes(b'x')
  content = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
  written = {p: p.stat().st_mtime_ns for p in content}

  def refuse(*args, **kwargs):
    raise OSError(errno.EMFILE, 'Too many open files')

  with monkeypatch.context() as patch:
    patch.setattr(np, 'load', refuse)
    message = message_of(_prepare, tmp_path)
    assert 'Too many open files' in message
  _prepare(tmp_path)
  assert {p: p.stat().st_mtime_ns for p in content} == written


# More than one process


def _prepare_elsewhere(folder, log):
  """What another process does, watched in `watch`; it prints a digest."""
  logging.basicConfig(
    filename=folder / log, level=logging.INFO, format='%(message)s', force=True
  )
  _Examples.watch_dir = folder / 'watch'
  sources.SOURCES['folder'] = _Examples
  print(_digest(_prepare(folder / 'cache')), flush=True)


def _wait_for(condition, what):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end, f'waited for {what}'
    time.sleep(0.01)


def _digest(dataset):
  rows = helpers.rows_of(dataset)
  arrays = (rows['image'], rows['mask'])
  return hashlib.sha256(b''.join(a.tobytes() for a in arrays)).hexdigest()


@pytest.fixture
def watch(tmp_path):
  (tmp_path / 'watch').mkdir()
  return tmp_path / 'watch'


def test_two_processes_build_once(tmp_path, watch, examples):
  logs = [tmp_path / name for name in ('one', 'other')]
  processes = [
    program.fork(_prepare_elsewhere, tmp_path, path.name) for path in logs
  ]
  waiting = 'preparing train: waiting for another run that does it\n'
  try:
    _wait_for(
      lambda: any(waiting in p.read_text() for p in logs if p.exists()), waiting
    )
  finally:
    (watch / 'go').touch()
    digests = [program.finish(p)[0].strip() for p in processes]
  assert digests == [_digest(_prepare(cache='memory'))] * 2
  read_by = [p.name for p in watch.iterdir() if p.name != 'go']
  assert len(read_by) == 8
  assert len({name.split('-')[1] for name in read_by}) == 1
  assert len(_kept_names(tmp_path / 'cache')) == 1


def test_a_process_killed_while_it_builds(tmp_path, watch, examples):
  """Its leftover is not taken for whole, and removed by the next."""
  cache_dir = tmp_path / 'cache'
  process = program.fork(_prepare_elsewhere, tmp_path, 'log')
  try:
    _wait_for(lambda: len(list(watch.iterdir())) > 3, 'the fourth')
  finally:
    process.kill()
    program.finish(process, -signal.SIGKILL)
  key = _key(examples(), _config(cache_dir))
  (leftover,) = _kept_names(cache_dir)
  assert leftover.startswith(f'{key}.tmp-')
  # Those of other arrays too, unless a run is at them.
  folder = cache_dir / 'prepared'
  for name in ('other', 'busy'):
    (folder / f'{name}.tmp-x').mkdir()
  with locks.lock(folder / 'busy.lock', 'a test'):
    got = _digest(_prepare(cache_dir))
  assert got == _digest(_prepare(cache='memory'))
  assert set(_kept_names(cache_dir)) == {'busy.tmp-x', key}
  meta = json.loads((cache_dir / 'prepared' / key / 'meta.json').read_text())
  assert meta['length'] == 8 and meta['skipped'] == []


def _folder_config(root, **fields):
  fields = {'cache': 'memory', 'num_classes': 2, 'resize': 'patch', **fields}
  return _config(dir=str(root), **fields)


def test_tags_that_turn_are_counted_once(tmp_path, caplog):
  exif = Image.Exif()
  exif[274] = 6
  image, mask = np.zeros((16, 24, 3), np.uint8), np.eye(16, 24, dtype=np.uint8)
  turned = folders.encode(image, exif=exif)
  pairs = {name: (turned, folders.encode(mask, exif=exif)) for name in 'abcd'}
  for split in ('train', 'val'):
    folders.write_pairs(tmp_path / split, {**pairs, 'e': (image, mask)})
  names = ', '.join(f'{tmp_path}/train/images/{name}.png' for name in 'abc')
  for orientation, expected, lines in (
    (
      'stored',
      mask,
      [
        'train: 4 of 5 pairs have tags that turn them for display '
        f'({names} and 1 more), which are not applied; '
        '--config.data.orientation=upright applies them'
      ],
    ),
    ('upright', mask.T[:, ::-1], []),
  ):
    caplog.clear()
    config = _folder_config(tmp_path, orientation=orientation)
    row = prepare.prepare(config, 'train')[0]
    assert_array_equal(row['mask'], expected)
    assert row['image'].shape[:2] == expected.shape
    assert [m for m in caplog.messages if 'tags' in m] == lines


def test_masks_that_their_files_changed_are_counted(tmp_path, caplog):
  image, mask = np.zeros((16, 24, 3), np.uint8), np.eye(16, 24, dtype=np.uint8)
  jpeg = folders.encode(np.zeros_like(mask), 'JPEG')
  pairs = dict.fromkeys('ab', (image, jpeg)) | {'c': (image, mask)}
  for split in ('train', 'val'):
    folders.write_pairs(tmp_path / split, pairs)
  prepare.prepare(_folder_config(tmp_path), 'train')
  name = f'{tmp_path}/train/masks/a.png'
  assert [m for m in caplog.messages if 'JPEG' in m] == [
    f'train: {mask_advice.line_on_loss([name, name], 3)}'
  ]


def test_transparent_pixels_are_ignored(tmp_path):
  rgba = np.full((16, 24, 4), 255, np.uint8)
  rgba[:4, :, 3], rgba[4:6, :, 3] = 0, 100
  mask = np.ones((16, 24), np.uint8)
  folders.write_pairs(tmp_path, dict.fromkeys('ab', (rgba, mask)))
  fields = {'num_folds': 2, 'alpha': 'nodata'}
  row = prepare.prepare(_folder_config(tmp_path, **fields), 'train')[0]
  expected = mask.copy()
  expected[:4] = 255
  assert_array_equal(row['mask'], expected)


def _write_train(root, pairs):
  folders.write_pairs(root / 'train', pairs)
  folders.write_pairs(root / 'val', pairs)  # So that none is held out.


def _tiff(array, **options):
  file = io.BytesIO()
  tifffile.imwrite(file, array, **options)
  return file.getvalue()


def _palette_mask(index, colors):
  image = Image.fromarray(np.uint8(index), 'P')
  image.putpalette(np.ravel(colors).tolist())
  file = io.BytesIO()
  image.save(file, 'PNG')
  return file.getvalue()


_CACHES = pytest.mark.parametrize('cache', ['disk', 'memory', 'none'])
_BLACK, _RED, _GREEN = (0, 0, 0), (255, 0, 0), (0, 255, 0)


@_CACHES
def test_palettes_that_differ_from_file_to_file(cache, tmp_path):
  """Refused as indices; as colours they mean the same in all files."""
  image, mask = folders.make_pair()
  pairs = {
    'a': (image, _palette_mask(mask, [_BLACK, _RED])),
    'b': (image, _palette_mask(2 * mask, [_BLACK, _BLACK, _GREEN])),
    'c': (image, _palette_mask(1 - mask, [_RED, _BLACK])),
  }
  _write_train(tmp_path, pairs)

  def read(**fields):
    fields |= {'dir': str(tmp_path), 'cache': cache, 'num_workers': 1}
    config = _config(tmp_path, image_size=(40, 48), **fields)
    return helpers.rows_of(prepare.prepare(config, 'train'))['mask']

  message, root = message_of(read), tmp_path / 'train/masks'
  assert message == (
    f'{root}/c.png: index 0 of its palette is (255, 0, 0), that of {root}/a.png'
    ' is (0, 0, 0), so that an index is no class; give each colour of the set '
    "its class, such as --config.data.mask_values='(((0,0,0),0),((0,255,0),1),"
    "((255,0,0),2))'"
  )
  table = ast.literal_eval(re.search("'(.*)'", message).group(1))
  assert_array_equal(read(mask_values=table), [2 * mask, mask, 2 * mask])


@pytest.mark.parametrize('cache', ['disk', 'memory'])
def test_the_palette_of_a_set(cache, tmp_path):
  """Kept with the arrays, to be compared with that of another set."""
  image, mask = folders.make_pair()
  pairs = {'a': (image, _palette_mask(mask, [_BLACK, _RED]))}
  _write_train(tmp_path, pairs)
  config = _config(tmp_path, dir=str(tmp_path), cache=cache)
  name = str(tmp_path / 'train/masks/a.png')
  for _ in range(2):
    dataset = prepare.prepare(config, 'train').select(np.arange(1))
    assert dataset.palette == {0: (_BLACK, name), 1: (_RED, name)}


@pytest.mark.parametrize('cache', ['disk', 'memory'])
def test_levels_that_are_lost(cache, tmp_path, caplog):
  """Said at each start, and not where a range keeps them."""
  _, mask = folders.make_pair()
  right = np.arange(48) > 20
  image = np.where(mask > 0, 1500 + 90 * right, 300).astype(np.uint16)
  image[:3, :3] = 3700
  _write_train(tmp_path, {'a': (_tiff(image), mask)})
  fields = {'dir': str(tmp_path), 'cache': cache, 'image_size': (40, 48)}

  def prepared_image(**more):
    caplog.clear()
    dataset = prepare.prepare(_config(tmp_path, **fields, **more), 'train')
    return dataset[0]['image'][..., 0]

  for _ in range(2):
    got = prepared_image()
    assert len(np.unique(got)) == 3
    assert caplog.messages[-1].startswith(
      'train: 1 of 1 images keep few of their levels with data.intensity=dtype,'
      ' 3 of 4 on the median; --config.data.intensity=range '
    )
  got = prepared_image(intensity='range', intensity_range=(300, 3700))
  assert_array_equal(got, np.rint((image - 300.0) * 255 / 3400))
  assert not [m for m in caplog.messages if 'levels' in m]


def test_levels_of_some_images_and_all_tags(tmp_path, caplog, monkeypatch):
  """The image that is read between the sampled ones keeps all levels."""
  monkeypatch.setattr(noticed, '_MEASURED', 2)
  _, mask = folders.make_pair()
  rich = np.arange(mask.size, dtype=np.uint16).reshape(mask.shape) * 30
  few = np.where(mask > 0, 1500, np.uint16([300] * 47 + [310])).astype('u2')
  tag = {'extratags': [(42113, 's', 0, '310', True)]}
  files = {'a': _tiff(few), 'b': _tiff(rich), 'c': _tiff(few)}
  _write_train(tmp_path, {name: (file, mask) for name, file in files.items()})
  fields = {'dir': str(tmp_path), 'cache': 'memory', 'image_size': (40, 48)}
  prepare.prepare(_config(tmp_path, **fields), 'train')
  assert '2 of 2 images that were measured keep few' in caplog.messages[-1]
  files = {'a': _tiff(rich), 'b': _tiff(few, **tag), 'c': _tiff(rich)}
  _write_train(tmp_path, {name: (file, mask) for name, file in files.items()})
  prepare.prepare(_config(tmp_path, **fields), 'train')
  assert '1 of 3 images name 310 as their value' in caplog.messages[-1]


@_CACHES
def test_no_data(cache, tmp_path):
  """Ignored in the mask, filled with the mean, left out of the deviation."""
  image, mask = folders.make_pair()
  values = image[..., 0] / np.float32(600)
  values[:, :9] = -9999
  values[20:25] = np.nan
  _write_train(tmp_path, {'a': (_tiff(values), mask)})
  fields = {'dir': str(tmp_path), 'cache': cache, 'image_size': (40, 48)}
  fields |= {'mean': (0.2, 0.2, 0.2), 'nodata': (-9999, 'nan')}
  dataset = prepare.prepare(_config(tmp_path, **fields), 'train')
  ignored = np.isnan(values) | (values < 0)
  got = dataset[0]
  assert_array_equal(got['mask'], np.where(ignored, 255, mask))
  assert (got['image'][ignored] == 51).all()
  expected = np.rint(values.astype(float) * 255)[~ignored]
  assert_array_equal(got['image'][..., 1][~ignored], expected)
  if cache != 'none':
    assert_allclose(dataset.stats.stds, expected.std(), rtol=1e-5)
  # Each step that a message asks for leads on.
  del fields['nodata']
  message = message_of(_rows, tmp_path, fields)
  assert '--config.data.nodata=nan' in message
  message = message_of(_rows, tmp_path, {**fields, 'nodata': ('nan',)})
  assert (
    'If -9999 stands for no data, set --config.data.nodata=nan,-9999' in message
  )


def _rows(cache_dir, fields):
  return helpers.rows_of(prepare.prepare(_config(cache_dir, **fields), 'train'))
