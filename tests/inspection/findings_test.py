"""Each injected fault must be reported."""

import ast
import copy
import io
import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests import folders
from tests.folders import make_pairs
from tests.inspection import measured
from unet_jax.config import fields
from unet_jax.data import prepare, sources
from unet_jax.inspection import (
  duplicates,
  findings,
  records,
  second_look,
  suggest,
)

# 255 of a mask is ignored.
_IGNORING = ((0, 0), (1, 1), (255, 255))


def _mask(root, stem):
  return str(root / f'train/masks/{stem}.png')


def test_a_good_set_has_no_finding(tmp_path):
  measured.write(tmp_path, train=make_pairs(6), val=make_pairs(3, start=50))
  found = measured.find(tmp_path, 'train', 'val')
  assert not {f.kind for f in found.values() if f.level != 'note'}, found


def test_masks_of_one_class(tmp_path):
  pairs = make_pairs(6)
  image, mask = pairs['01']
  pairs['01'] = image, np.zeros_like(mask)
  pairs['02'] = pairs['02'][0], np.ones_like(mask)
  pairs['03'] = pairs['03'][0], np.full_like(mask, 255)
  pairs['04'] = np.full_like(image, 93), pairs['04'][1]
  pairs['05'] = pairs['05'][0], np.where(mask, 255, 0).astype(np.uint8)
  measured.write(tmp_path, train=pairs)
  found = measured.find(tmp_path, mask_values=_IGNORING)
  for kind, level, stem in (
    ('empty mask', 'note', '01'),
    ('mask of one class', 'warning', '02'),
    ('ignored mask', 'warning', '03'),
    ('constant image', 'warning', '04'),
  ):
    assert found[kind].level == level
    assert found[kind].names[0].endswith(f'{stem}.png')
  assert len(found['empty mask'].names) == 2  # 05 has class 0 and ignored.


def _deep(pairs, factor):
  grey = lambda image: image[..., 0] * np.uint16(factor)
  return {k: (grey(image), mask) for k, (image, mask) in pairs.items()}


def test_all_splits_have_one_range(tmp_path):
  """And what was measured with another says so."""
  measured.write(
    tmp_path, train=_deep(make_pairs(6), 8), val=_deep(make_pairs(3, 50), 2)
  )
  splits, config = measured.measure(tmp_path, 'train', 'val')
  found = findings.find(splits, config)
  flags = [
    re.search('intensity_range=([0-9,]+)', f.message)[1]
    for f in found
    if f.kind in ('lost levels', 'constant image')
  ]
  assert len(flags) == 4 and len(set(flags)) == 1
  why = {s.field: s.why for s in suggest.suggest(splits, (), config)}
  assert (
    why['data.mean']
    == why['data.std']
    == (
      'measured over 6 images as data.intensity=dtype scales them: set another '
      'one first, as is advised, and inspect again'
    )
  )
  limits = tuple(map(int, flags[0].split(',')))
  splits, config = measured.measure(
    tmp_path, intensity='range', intensity_range=limits
  )
  why = {s.field: s.why for s in suggest.suggest(splits, (), config)}
  assert why['data.mean'] == (
    'measured over 6 images as data.intensity=range scales them'
  )


def test_images_of_one_colour_are_right_where_there_is_nothing(tmp_path):
  """Tiles of sea: no pair has to be removed."""
  pairs = make_pairs(6)
  for stem in ('01', '04'):
    image, mask = pairs[stem]
    pairs[stem] = np.full_like(image, 30), np.zeros_like(mask)
  measured.write(tmp_path, train=pairs)
  found = measured.find(tmp_path)['constant image']
  assert found.level == 'note' and '2 of 6 images' in found.message
  assert 'remove' not in found.message


def test_dim_deep_images_are_a_matter_of_the_range(tmp_path):
  pairs = {
    stem: (np.uint16(100 + 50 * mask), mask)
    for stem, (_, mask) in make_pairs(6).items()
  }
  measured.write(tmp_path, train=pairs)
  found = measured.find(tmp_path, num_channels=1, mean=(0.5,), std=(0.2,))
  assert found['constant image'].level == 'warning'
  assert 'data.intensity=range' in found['constant image'].message


def test_tiles_of_one_of_many_classes_are_right(tmp_path):
  pairs = make_pairs(6)
  for stem, value in (('01', 1), ('02', 2)):
    pairs[stem] = pairs[stem][0], np.full_like(pairs[stem][1], value)
  measured.write(tmp_path, train=pairs)
  splits, config = measured.measure(
    tmp_path, mask_values=((0, 0), (1, 1), (2, 1))
  )
  for m in splits['train']:
    m.class_pixels = np.insert(m.class_pixels, 2, m.values.get(2, 0))
  config.data.update(num_classes=3, class_names=(), mask_values=())
  found = {f.kind: f for f in findings.find(splits, config)}
  assert found['mask of one class'].level == 'note'


@pytest.mark.parametrize(
  'value, table, kind, message',
  [
    (255, _IGNORING, 'ignored mask', 'no pixel to learn from'),
    (None, ((0, 0), (1, 0)), 'absent class', 'class_1'),
  ],
)
def test_sets_without_a_class_are_errors(tmp_path, value, table, kind, message):
  pairs = make_pairs(3)
  if value is not None:
    pairs = {k: (i, np.full_like(m, value)) for k, (i, m) in pairs.items()}
  measured.write(tmp_path, train=pairs)
  found = measured.find(tmp_path, mask_values=table)[kind]
  assert found.level == 'error' and message in found.message


def test_broken_and_unpaired_files_are_all_named(tmp_path):
  pairs = make_pairs(5)
  pairs['01'] = b'broken', pairs['01'][1]
  pairs['03'] = pairs['03'][0], folders.encode(pairs['03'][1])[:55]
  pairs['04'] = pairs['04'][0], pairs['04'][1] * 9
  measured.write(tmp_path, train=pairs)
  alone = tmp_path / 'train/images/alone.png'
  alone.write_bytes(folders.encode(pairs['00'][0]))
  twin = folders.encode(pairs['00'][1], 'BMP')
  (tmp_path / 'train/masks/00.bmp').write_bytes(twin)
  problems = []
  config = folders.make_config(tmp_path)
  assert len(sources.make_source(config, 'train', problems)) == 5
  assert [p.kind for p in problems] == ['unpaired', 'same stem']
  assert problems[0].names == (str(alone),)
  splits, config = measured.measure(tmp_path)
  found = findings.find(splits, config)
  # Each with its own reason, and the file that has the fault.
  broken = [f for f in found if f.kind == 'broken']
  assert [f.names for f in broken] == [
    (str(tmp_path / 'train/images/01.png'),),
    (_mask(tmp_path, '03'),),
  ]
  assert all(f.names[0] in f.message for f in broken)
  (values,) = [f for f in found if f.kind == 'unknown values']
  assert values.level == 'error'
  assert values.names == (_mask(tmp_path, '04'),)
  # Of many, the rest is reported together, and so are files of one reason,
  # whatever their sizes.
  splits['train'] = [copy.copy(m) for m in splits['train'] * 3]
  for reasons, counts in ((15, [1] * 7 + [8]), (2, [8, 7])):
    for i, m in enumerate(splits['train']):
      text = f'{m.name} lacks {i % reasons}, as {m.mask_name} of {i} x 4'
      m.error = ('broken', text)
    broken = [f for f in findings.find(splits, config) if f.kind == 'broken']
    assert [len(f.names) for f in broken] == counts
    first, *others = broken[-1].names
    assert broken[-1].message.startswith(f'{first} lacks ')
    assert f'(and {len(others)} more: {others[0]}, ' in broken[-1].message


def test_unknown_values_are_reported_one_by_one(tmp_path):
  pairs = make_pairs(6)
  for stem, value in (('01', 7), ('04', 7), ('05', 4)):
    mask = pairs[stem][1].copy()
    mask[0, :3] = value
    pairs[stem] = pairs[stem][0], mask
  measured.write(tmp_path, train=pairs)
  message = measured.find(tmp_path)['unknown values'].message
  assert message.endswith(
    '(3 of 6 masks hold values outside the table: '
    f'7: 6 pixels of 2 mask(s), first {_mask(tmp_path, "01")}; '
    f'4: 3 pixels of 1 mask(s), first {_mask(tmp_path, "05")})'
  )


def test_ids_of_objects_are_counted(tmp_path):
  """Also where no single mask has many."""
  ids = np.arange(40 * 48).reshape(40, 48) // 480
  for count in (12, 2):
    pairs = {
      k: (image, (ids % count + count * i).astype(np.uint8))
      for i, (k, (image, _)) in enumerate(make_pairs(6).items())
    }
    measured.write(tmp_path, train=pairs)
    found = measured.find(tmp_path)
    message = found['unknown values'].message
    number = len(np.unique([mask for _, mask in pairs.values()])) - 2
    assert message.count('.png') == 1 and 'CLASS' not in message
    assert '"((0,0),(\'others\',1))" (' in message
    ending = rf'table: {number} values, \d+, \d+, \d+ and {number - 3} more\)'
    assert re.search(ending + '$', message)


def test_colors_have_one_table_in_all_splits(tmp_path):
  colors = np.array([[0] * 3, [0, 0, 200], [90, 0, 0], [0, 250, 0]], np.uint8)
  splits = {'train': {}, 'val': {}}
  for i, (k, (image, mask)) in enumerate(make_pairs(6).items()):
    used = colors[[0, 1 + i % 3]] if i % 2 else colors[[1 + i % 3, 3]]
    splits['train' if i < 3 else 'val'][k] = image, used[mask]
  measured.write(tmp_path, **splits)
  by_split, config = measured.measure(tmp_path, 'train', 'val')
  tables = [
    re.search(r"mask_values='(\S+)'", f.message).group(1)
    for f in findings.find(by_split, config)
    if f.kind == 'unknown values'
  ]
  ordered = sorted(map(tuple, colors.tolist()))
  table = [(color, i) for i, color in enumerate(ordered)]
  assert [list(ast.literal_eval(t)) for t in tables] == [table, table]


def test_files(tmp_path):
  pairs = make_pairs(5)
  exif = Image.Exif()
  exif[0x0112] = 3
  image, mask = pairs['02']
  jpeg = folders.encode(pairs['01'][1] * np.uint8(255), 'JPEG')
  pairs['01'] = pairs['01'][0], jpeg
  pairs['02'] = folders.encode(image, 'JPEG', exif=exif), mask
  pairs['03'] = folders.encode(np.uint16(257) * image[..., 0]), mask
  measured.write(tmp_path, train=pairs)
  found = measured.find(tmp_path)
  assert found['JPEG masks'].names == (_mask(tmp_path, '01'),)
  assert 'PNG' in found['JPEG masks'].message
  rotated = found['EXIF rotation']
  assert rotated.names == (str(tmp_path / 'train/images/02.png'),)
  assert 'turned by 180 degrees' in rotated.message
  kinds = found['kinds of images']
  assert kinds.level == 'warning'  # The depth varies.
  assert '3 RGB 8 bit PNG, 1 RGB 8 bit JPEG, 1 grey 16 bit PNG' in kinds.message
  assert [n[-6:] for n in kinds.names] == ['02.png', '03.png']


def _flip_masks(pairs):
  return {k: (i, m[:, ::-1].copy()) for k, (i, m) in pairs.items()}


def test_masks_that_do_not_lie_on_the_edges(tmp_path):
  pairs = make_pairs(24)
  # One of another image, and in the other split all flipped.
  pairs['11'] = pairs['11'][0], pairs['17'][1]
  measured.write(tmp_path, train=pairs, val=_flip_masks(make_pairs(16, 50)))
  found = measured.find(tmp_path)
  assert 'masks turned' not in found
  odd = found['mask beside the edges']
  assert odd.level == 'warning' and odd.names == (_mask(tmp_path, '11'),)
  turned = measured.find(tmp_path, 'val')['masks turned']
  # It may be wrong: a warning, with its odds and a switch.
  assert turned.level == 'warning'
  assert 'flipped left to right' in turned.message
  assert re.search(
    r'\(\d of \d+ right sets are called so, \d+ of', turned.message
  )
  assert '--config.data.skip_checks=turned leaves' in turned.message
  skip = {'skip_checks': ('turned', 'edges')}
  assert not measured.find(tmp_path, 'val', **skip)


def test_the_owner_of_a_mask_is_found(tmp_path):
  """Every mask one image late."""
  pairs = make_pairs(16)
  images, masks = zip(*pairs.values())
  late = zip(images, (masks[-1], *masks[:-1]))
  measured.write(tmp_path, train=dict(zip(pairs, late)))
  splits, config = measured.measure(tmp_path)
  source = sources.make_source(config, 'train')
  second_look.look_again(source, splits['train'], config)
  owners = {m.index: m.owner for m in splits['train'] if m.owner is not None}
  right = [owner == (i + 1) % 16 for i, owner in owners.items()]
  assert len(right) >= 12 and np.mean(right) > 0.8
  found = {f.kind: f for f in findings.find(splits, config)}
  assert found['masks shuffled'].level == 'warning'
  assert 'the mask 1 after theirs' in found['masks shuffled'].message


@pytest.mark.parametrize('cache', ['memory', 'disk'])
def test_the_cheap_part_from_prepared_sets(tmp_path, cache):
  train, val = make_pairs(12), _flip_masks(make_pairs(12, 50))
  train['03'] = np.full_like(train['03'][0], 9), train['03'][1]
  train['05'] = train['05'][0], np.full_like(train['05'][1], 255)
  val['07'] = train['07']
  measured.write(tmp_path / 'data', train=train, val=val)
  config = folders.make_config(tmp_path / 'data', mask_values=_IGNORING)
  config.data.update(cache=cache, cache_dir=str(tmp_path / 'cache'))
  sets = {s: prepare.prepare(config, s) for s in ('train', 'val')}
  found = {f.kind: f for f in findings.find_in_prepared(sets, config)}
  levels = {kind: f.level for kind, f in found.items()}
  assert levels == {
    'masks turned': 'warning',
    'constant image': 'warning',
    'ignored mask': 'warning',
    'exact duplicates, leakage': 'error',
  }
  assert found['masks turned'].split == 'val'
  train, val = (f'{tmp_path}/data/{s}/images/07.png' for s in ('train', 'val'))
  assert found['exact duplicates, leakage'].names == (f'{train} = {val}',)


def test_real_sets(shared_data):
  data = dict(num_channels=1, mean=(0.5,), std=(0.25,))
  data['mask_values'] = ((0, 0), (255, 1))
  root = shared_data('isbi2012') / 'train'
  splits, config = measured.measure(root, 'train', 'val', **data)
  found = {f.kind: f.level for f in findings.find(splits, config)}
  assert found == {duplicates.NEIGHBOURS: 'warning', 'shrunk images': 'note'}


def _tiff(array):
  file = io.BytesIO()
  tifffile.imwrite(file, array)
  return file.getvalue()


def test_ranges_of_values(tmp_path):
  """One error for all images, with the range that was measured."""
  pairs = {
    stem: (_tiff(image[..., 0].astype(np.int32) * 300), mask)
    for stem, (image, mask) in make_pairs(4).items()
  }
  measured.write(tmp_path, train=pairs)
  found = measured.find(tmp_path)
  error, note = found['range of values'], found['stored values']
  assert error.level == 'error' and len(error.names) == 4
  assert error.message.endswith(' (4 of 4 images)')
  ends = note.message.rpartition(' ')[2]
  assert note.message == (
    'the images hold int32; all but 0.1% of the pixels at each end are in the '
    f'range {ends}'
  )
  assert f'--config.data.intensity_range={ends} (4' in error.message
  limits = tuple(map(int, ends.split(',')))
  found = measured.find(tmp_path, intensity='range', intensity_range=limits)
  assert {f.kind for f in found.values() if f.level != 'note'} == set()


def test_lost_levels(tmp_path):
  pairs = {
    stem: (_tiff(image[..., 0].astype(np.uint16) * 9), mask)
    for stem, (image, mask) in make_pairs(4).items()
  }
  measured.write(tmp_path, train=pairs)
  lost = measured.find(tmp_path)['lost levels']
  assert lost.level == 'warning'
  assert lost.message.startswith('4 of 4 images keep few of their levels with ')


def _palette(mask, *colors):
  image = Image.fromarray(mask, 'P')
  image.putpalette(np.ravel(colors).tolist())
  file = io.BytesIO()
  image.save(file, 'PNG')
  return file.getvalue()


def test_palettes_that_differ_between_sets(tmp_path):
  """As preparing finds them within one."""
  black, red, green = (0, 0, 0), (255, 0, 0), (0, 255, 0)
  sets = {
    'train': [_palette(m, black, red) for _, m in make_pairs(3).values()],
    'val': [_palette(m, black, green) for _, m in make_pairs(3).values()],
  }
  for split, masks in sets.items():
    images = [image for image, _ in make_pairs(3).values()]
    pairs = {str(i): pair for i, pair in enumerate(zip(images, masks))}
    measured.write(tmp_path, **{split: pairs})
  config = measured.folders.make_config(tmp_path, cache='memory')
  prepared = {s: prepare.prepare(config, s) for s in sets}
  found = {f.kind: f for f in findings.find_in_prepared(prepared, config)}
  assert found['palettes differ'].level == 'error'
  assert 'index 1 of its palette' in found['palettes differ'].message
  del prepared['val']
  found = {f.kind for f in findings.find_in_prepared(prepared, config)}
  assert 'palettes differ' not in found


def test_each_check_has_a_switch():
  """And each switch is that of a kind of finding."""
  every = [
    records.Finding('warning', kind, '', 'text') for kind in records._CHECKS
  ]
  assert set(records._CHECKS.values()) == set(fields.CHECKS)
  for check in fields.CHECKS:
    kept = records.wanted(every, (check,))
    assert {f.kind for f in every} - {f.kind for f in kept} == {
      kind for kind, of in records._CHECKS.items() if of == check
    }
  for f in records.wanted(every, ()):
    assert f'--config.data.skip_checks={records._CHECKS[f.kind]} ' in f.message
  # Files that cannot be used are always named.
  broken = records.Finding('error', 'broken', '', 'text')
  assert records.wanted([broken], tuple(fields.CHECKS)) == [broken]
