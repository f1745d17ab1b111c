"""Tests of unet_jax/data/findings.py: each injected fault must be told."""

import numpy as np
import pytest
from PIL import Image

from tests import folders
from tests.folders import make_pairs
from unet_jax.data import prepare, sources
from unet_jax.inspection import duplicates, findings, records, scan


def find(root, splits=('train',), **data):
  """Returns {kind: finding} of a folder."""
  config = folders.make_config(root, **data)
  measured = {}
  for split in splits:
    source = sources.make_source(config, split, [])
    measured[split], _ = scan.scan(source, config)
  return {f.kind: f for f in findings.find(measured, config)}


def write_splits(root, **splits):
  for split, pairs in splits.items():
    folders.write_pairs(root / split, pairs)


def test_a_good_set_has_no_finding(tmp_path):
  write_splits(tmp_path, train=make_pairs(6), val=make_pairs(3, start=50))
  found = find(tmp_path, ('train', 'val'))
  assert not {f.kind for f in found.values() if f.level != 'note'}, found


def test_masks_that_say_nothing(tmp_path):
  pairs = make_pairs(6)
  image, mask = pairs['01']
  pairs['01'] = image, np.zeros_like(mask)
  pairs['02'] = pairs['02'][0], np.ones_like(mask)
  pairs['03'] = pairs['03'][0], np.full_like(mask, 255)
  pairs['04'] = np.full_like(image, 93), pairs['04'][1]
  pairs['05'] = pairs['05'][0], np.where(mask, 255, 0).astype(np.uint8)
  write_splits(tmp_path, train=pairs, val=make_pairs(2, 50))
  found = find(tmp_path, mask_values=((0, 0), (1, 1), (255, 255)))
  for kind, level, stem in (
    ('empty mask', 'note', '01'),
    ('mask of one class', 'warning', '02'),
    ('ignored mask', 'warning', '03'),
    ('constant image', 'warning', '04'),
  ):
    assert found[kind].level == level
    assert found[kind].names[0].endswith(f'{stem}.png')
  assert len(found['empty mask'].names) == 2  # 05 has class 0 and ignored.


def test_all_masks_ignored_is_an_error(tmp_path):
  pairs = {k: (i, np.full_like(m, 255)) for k, (i, m) in make_pairs(3).items()}
  write_splits(tmp_path, train=pairs, val=make_pairs(2, 50))
  found = find(tmp_path, mask_values=((0, 0), (1, 1), (255, 255)))
  assert found['ignored mask'].level == 'error'


def test_absent_classes(tmp_path):
  write_splits(tmp_path, train=make_pairs(3), val=make_pairs(2, 50))
  found = find(tmp_path, mask_values=((0, 0), (1, 0)))
  assert found['absent class'].level == 'error'
  assert 'class_1' in found['absent class'].message


def test_broken_and_unpaired_files_are_all_named(tmp_path):
  pairs = make_pairs(5)
  pairs['01'] = b'broken', pairs['01'][1]
  pairs['03'] = pairs['03'][0], folders.encode(pairs['03'][1])[:55]
  pairs['04'] = pairs['04'][0], pairs['04'][1] * 9
  write_splits(tmp_path, train=pairs, val=make_pairs(2, 50))
  (tmp_path / 'train/images/alone.png').write_bytes(
    folders.encode(pairs['00'][0])
  )
  (tmp_path / 'train/masks/00.bmp').write_bytes(
    folders.encode(pairs['00'][1], 'BMP')
  )
  problems = []
  config = folders.make_config(tmp_path)
  source = sources.make_source(config, 'train', problems)
  assert len(source) == 5
  assert [p.kind for p in problems] == ['same stem', 'unpaired']
  assert problems[1].names == (str(tmp_path / 'train/images/alone.png'),)
  config = folders.make_config(tmp_path)
  source = sources.make_source(config, 'train', [])
  measured = {'train': scan.scan(source, config)[0]}
  found = findings.find(measured, config)
  # Each with its own reason, and the file that is to blame.
  broken = [f for f in found if f.kind == 'broken']
  assert [f.names for f in broken] == [
    (str(tmp_path / 'train/images/01.png'),),
    (str(tmp_path / 'train/masks/03.png'),),
  ]
  assert all(f.names[0] in f.message for f in broken)
  (values,) = [f for f in found if f.kind == 'unknown values']
  assert values.level == 'error'
  assert values.names == (str(tmp_path / 'train/masks/04.png'),)
  # Of many, the rest is told together.
  for m in measured['train']:
    m.error = ('broken', f'{m.name} cannot be decoded')
  measured['train'] *= 3
  broken = [f for f in findings.find(measured, config) if f.kind == 'broken']
  assert len(broken) == 8 and len(broken[-1].names) == 8
  assert broken[-1].message.endswith('(and 7 more files)')


def test_unknown_values_are_told_one_by_one(tmp_path):
  pairs = make_pairs(6)
  for stem, value in (('01', 7), ('04', 7), ('05', 4)):
    mask = pairs[stem][1].copy()
    mask[0, :3] = value
    pairs[stem] = pairs[stem][0], mask
  write_splits(tmp_path, train=pairs, val=make_pairs(2, 50))
  message = find(tmp_path)['unknown values'].message
  mask = lambda stem: str(tmp_path / 'train/masks' / f'{stem}.png')
  assert message.endswith(
    '(3 of 6 masks hold values outside the table: '
    f'7: 6 pixels of 2 mask(s), first {mask("01")}; '
    f'4: 3 pixels of 1 mask(s), first {mask("05")})'
  )


def test_jpeg_masks(tmp_path):
  pairs = make_pairs(3)
  jpeg = folders.encode(pairs['01'][1] * np.uint8(255), 'JPEG')
  pairs['01'] = pairs['01'][0], jpeg
  write_splits(tmp_path, train=pairs, val=make_pairs(2, 50))
  found = find(tmp_path)
  assert found['JPEG masks'].names == (str(tmp_path / 'train/masks/01.png'),)
  assert 'PNG' in found['JPEG masks'].message


def test_exif_rotation_and_kinds(tmp_path):
  pairs = make_pairs(4)
  exif = Image.Exif()
  exif[0x0112] = 3
  image, mask = pairs['02']
  pairs['02'] = folders.encode(image, 'JPEG', exif=exif), mask
  pairs['03'] = folders.encode(np.uint16(257) * image[..., 0]), mask
  write_splits(tmp_path, train=pairs, val=make_pairs(2, 50))
  found = find(tmp_path)
  assert found['EXIF rotation'].names == (
    str(tmp_path / 'train/images/02.png'),
  )
  assert 'turned by 180 degrees' in found['EXIF rotation'].message
  kinds = found['kinds of images']
  assert kinds.level == 'warning'  # The depth varies.
  assert '2 RGB 8 bit PNG, 1 RGB 8 bit JPEG, 1 grey 16 bit PNG' in kinds.message
  assert [n[-6:] for n in kinds.names] == ['02.png', '03.png']


def test_duplicates_within_and_across_splits(tmp_path):
  train, val = make_pairs(6), make_pairs(3, 50)
  rng = np.random.default_rng(0)

  def picture(seed):
    """Smooth, so that it survives re-encoding."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((48, 40), 2))

  for i, stem in enumerate(train):
    train[stem] = picture(i), train[stem][1]
  for i, stem in enumerate(val):
    val[stem] = picture(50 + i), val[stem][1]
  # Exact within, near across, mirrored across, contradicting.
  train['04'] = train['01']
  val['00'] = folders.encode(train['02'][0], 'JPEG', quality=80), train['02'][1]
  val['01'] = train['03'][0][:, ::-1].copy(), train['03'][1]
  train['05'] = train['00'][0], rng.integers(0, 2, (40, 48), np.uint8)
  write_splits(tmp_path, train=train, val=val)
  found = find(tmp_path, ('train', 'val'))
  path = lambda split, stem: str(tmp_path / split / 'images' / f'{stem}.png')
  assert found['exact duplicates'].level == 'note'
  assert found['exact duplicates'].names == (
    f'{path("train", "00")} = {path("train", "05")}',
    f'{path("train", "01")} = {path("train", "04")}',
  )
  leakage = found['near duplicates, leakage']
  assert leakage.level == 'warning'
  assert leakage.names == (
    f'{path("train", "02")} = {path("val", "00")}',
    f'{path("train", "03")} = {path("val", "01")}',
  )
  assert found['contradicting masks'].names == (
    path('train', '00'),
    path('train', '05'),
  )


def _flip_masks(pairs):
  return {
    k: (image, mask[:, ::-1].copy()) for k, (image, mask) in pairs.items()
  }


def test_masks_that_do_not_lie_on_the_edges(tmp_path):
  pairs = make_pairs(24)
  # One of another image, and in the other split all flipped.
  pairs['11'] = pairs['11'][0], pairs['17'][1]
  flipped = _flip_masks(make_pairs(16, 50))
  write_splits(tmp_path, train=pairs, val=flipped)
  found = find(tmp_path)
  assert 'masks turned' not in found
  odd = found['mask beside the edges']
  assert odd.level == 'warning'
  assert odd.names == (str(tmp_path / 'train/masks/11.png'),)
  found = find(tmp_path, ('val',))
  assert found['masks turned'].level == 'error'
  assert 'flipped left to right' in found['masks turned'].message


def test_the_owner_of_a_mask_is_found(tmp_path):
  """Every mask one image late."""
  pairs = make_pairs(16)
  masks = [mask for _, mask in pairs.values()]
  late = {
    stem: (image, masks[i - 1])
    for i, (stem, (image, _)) in enumerate(pairs.items())
  }
  write_splits(tmp_path, train=late, val=make_pairs(3, 50))
  config = folders.make_config(tmp_path)
  source = sources.make_source(config, 'train')
  measured, _ = scan.scan(source, config)
  scan.find_owners(source, measured, config)
  owners = {m.index: m.owner for m in measured if m.owner is not None}
  right = [owner == (i + 1) % 16 for i, owner in owners.items()]
  assert len(right) >= 12 and np.mean(right) > 0.8
  found = {f.kind: f for f in findings.find({'train': measured}, config)}
  assert found['masks shuffled'].level == 'error'
  assert 'the mask 1 after theirs' in found['masks shuffled'].message


@pytest.mark.parametrize('cache', ['memory', 'disk'])
def test_the_cheap_part_from_prepared_sets(tmp_path, cache):
  train, val = make_pairs(12), _flip_masks(make_pairs(12, 50))
  train['03'] = np.full_like(train['03'][0], 9), train['03'][1]
  train['05'] = train['05'][0], np.full_like(train['05'][1], 255)
  val['07'] = train['07']
  write_splits(tmp_path / 'data', train=train, val=val)
  config = folders.make_config(
    tmp_path / 'data',
    cache=cache,
    cache_dir=str(tmp_path / 'cache'),
    mask_values=((0, 0), (1, 1), (255, 255)),
  )
  sets = {s: prepare.prepare(config, s) for s in ('train', 'val')}
  found = {f.kind: f for f in findings.find_in_prepared(sets, config)}
  levels = {kind: f.level for kind, f in found.items()}
  assert levels == {
    'masks turned': 'error',
    'constant image': 'warning',
    'ignored mask': 'warning',
    'exact duplicates, leakage': 'warning',
  }
  assert found['masks turned'].split == 'val'
  assert found['exact duplicates, leakage'].names == (
    f'{tmp_path}/data/train/images/07.png = {tmp_path}/data/val/images/07.png',
  )


def test_a_stem_in_two_lists_is_an_error(tmp_path):
  folders.write_pairs(tmp_path, make_pairs(6))
  (tmp_path / 'train.txt').write_text('00\n01\n02\n03\n')
  (tmp_path / 'val.txt').write_text('03\n04\n')
  found = find(tmp_path, ('train', 'val'))
  assert found['same files in two splits'].level == 'error'
  assert found['same files in two splits'].names == (
    str(tmp_path / 'images/03.png'),
  )


def test_a_stack_must_not_be_held_out_at_random(tmp_path):
  rng = np.random.default_rng(0)
  walk = np.cumsum(rng.normal(size=(24, 12, 12)), 0)
  walk = (walk - walk.min()) / (walk.max() - walk.min()) * 255
  pairs = {
    # Not in the order of the characters.
    f's{i}': (
      np.asarray(Image.fromarray(w.astype(np.uint8)).resize((48, 40))),
      folders.make_pair(i)[1],
    )
    for i, w in enumerate(walk)
  }
  folders.write_pairs(tmp_path, pairs)
  kind = duplicates.NEIGHBOURS
  found = find(tmp_path, ('train', 'val'))
  assert 'holdout=last' in found[kind].message
  assert kind not in find(tmp_path, ('train', 'val'), holdout='last')
  folds = ('train', 'fold_0')
  found = find(tmp_path, folds, num_folds=3)
  assert 'holdout=last' in found[kind].message
  assert kind not in find(tmp_path, folds, num_folds=3, holdout='last')


def test_near_duplicates_of_images_that_all_look_alike():
  """As X-rays do: what is usual in a set is no duplicate."""
  rng = np.random.default_rng(0)
  common = rng.normal(size=256)
  thumbs = common + 0.15 * rng.normal(size=(40, 256))
  thumbs[7] = thumbs[31] + 0.005 * rng.normal(size=256)
  thumbs -= thumbs.mean(1, keepdims=True)
  thumbs /= np.linalg.norm(thumbs, axis=1, keepdims=True)
  assert np.mean(thumbs @ thumbs.T > 0.95) > 0.9
  measurements = [
    records.Measurement('train', i, thumbnail=t.astype(np.float32))
    for i, t in enumerate(thumbs)
  ]
  groups = duplicates.near_duplicates(measurements)
  assert [[m.index for m in g] for g in groups] == [[7, 31]]


def test_real_sets(shared_data):
  config = folders.make_config(shared_data('isbi2012') / 'train')
  config.data.update(
    num_channels=1, mean=(0.5,), std=(0.25,), mask_values=((0, 0), (255, 1))
  )
  measured = {}
  for split in ('train', 'val'):
    source = sources.make_source(config, split)
    measured[split], _ = scan.scan(source, config)
  found = {f.kind: f.level for f in findings.find(measured, config)}
  assert found == {duplicates.NEIGHBOURS: 'warning', 'shrunk images': 'note'}
