"""Images that occur twice, or look alike, must be reported."""

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from experiments.data_faults import kinds
from tests import folders
from tests.folders import make_pairs
from tests.inspection import measured
from unet_jax.data import prepare, stored
from unet_jax.inspection import (
  before_training,
  duplicates,
  findings,
  records,
  scan,
)


def _smooth(seed):
  """A picture that survives re-encoding."""
  coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
  return np.asarray(Image.fromarray(coarse).resize((48, 40), 2))


def test_duplicates_within_and_across_splits(tmp_path):
  train, val = make_pairs(6), make_pairs(3, 50)
  for pairs, start in ((train, 0), (val, 50)):
    for i, (stem, (_, mask)) in enumerate(pairs.items(), start):
      pairs[stem] = _smooth(i), mask
  # Exact within, near across, mirrored across, contradicting.
  train['04'] = train['01']
  val['00'] = folders.encode(train['02'][0], 'JPEG', quality=80), train['02'][1]
  val['01'] = train['03'][0][:, ::-1].copy(), train['03'][1]
  mask = np.random.default_rng(0).integers(0, 2, (40, 48), np.uint8)
  train['05'] = train['00'][0], mask
  measured.write(tmp_path, train=train, val=val)
  found = measured.find(tmp_path, 'train', 'val')
  train, val = (
    [str(tmp_path / f'{split}/images/0{i}.png') for i in range(6)]
    for split in ('train', 'val')
  )
  exact, leakage = found['exact duplicates'], found['near duplicates, leakage']
  mirrored = found['turned copies, leakage']
  assert (exact.level, leakage.level) == ('note', 'warning')
  pairs = lambda *names: tuple(f'{a} = {b}' for a, b in names)
  assert exact.names == pairs((train[0], train[5]), (train[1], train[4]))
  assert leakage.names == pairs((train[2], val[0]))
  assert mirrored.names == pairs((train[3], val[1]))
  assert mirrored.level == 'warning'
  assert '(0 of 1,050 right images are called so, 523 of ' in mirrored.message
  assert found['contradicting masks'].names == (train[0], train[5])


def test_a_training_says_what_is_nearly_the_same(tmp_path, monkeypatch):
  train, val = make_pairs(6), make_pairs(3, 50)
  for pairs, start in ((train, 0), (val, 50)):
    for i, (stem, (_, mask)) in enumerate(pairs.items(), start):
      pairs[stem] = _smooth(i), mask
  val['00'] = folders.encode(train['02'][0], 'JPEG', quality=80), train['02'][1]
  train['04'] = train['01']  # Within a split it harms nothing.
  measured.write(tmp_path, train=train, val=val)
  config = folders.make_config(tmp_path, cache='memory')
  sets = {s: prepare.prepare(config, s) for s in ('train', 'val')}
  found = before_training.find_near(sets, config)
  assert [f.kind for f in found] == ['near duplicates, leakage']
  copy, original = (
    str(tmp_path / f'{name}.png')
    for name in ('val/images/00', 'train/images/02')
  )
  assert found[0].names == (f'{original} = {copy}',)
  assert '1 of val' in found[0].message
  assert 'skip_checks=near_duplicates' in found[0].message
  config.data.skip_checks = ('near_duplicates',)
  assert not before_training.find_near(sets, config)
  config.data.skip_checks = ()
  monkeypatch.setattr(before_training, '_CHEAP', 8)
  assert not before_training.find_near(sets, config)


@pytest.mark.parametrize('resize', ['stretch', 'pad', 'patch'])
def test_one_picture_in_two_formats_is_one_image(tmp_path, resize):
  """A training and an inspection say so, in the same words."""
  train, val = make_pairs(4), make_pairs(3, 50)
  val['01'] = train['02']
  val['02'] = train['03'][0], val['02'][1]
  measured.write(tmp_path, train=train, val=val)
  for stem in ('01', '02'):
    path = tmp_path / f'val/images/{stem}.png'
    Image.open(path).save(path.with_suffix('.bmp'))
    path.unlink()
  data = dict(cache='memory', resize=resize)
  config = folders.make_config(tmp_path, **data)
  sets = {s: prepare.prepare(config, s) for s in ('train', 'val')}
  trained = {f.kind: f for f in findings.find_in_prepared(sets, config)}
  inspected = measured.find(tmp_path, 'train', 'val', **data)
  leakage = inspected['exact duplicates, leakage']
  assert leakage.level == 'error'
  assert leakage.names == tuple(
    f'{tmp_path}/train/images/0{i + 1}.png = {tmp_path}/val/images/0{i}.bmp'
    for i in (1, 2)
  )
  for kind in ('exact duplicates, leakage', 'contradicting masks'):
    assert trained[kind] == inspected[kind]
  assert 'near duplicates, leakage' not in inspected


def test_masks_of_one_picture_in_two_sizes_do_not_contradict():
  pair = [
    records.Measurement(
      *('train', i, f'{i}.png'),
      image_size=size,
      digest=b'same',
      class_pixels=np.array(size),
    )
    for i, size in enumerate([(4, 4), (4, 4), (8, 8)])
  ]
  kinds = lambda *ms: {f.kind for f in duplicates.find_exact({'train': ms})}
  assert kinds(pair[0], pair[2]) == {'exact duplicates'}
  pair[1].class_pixels = np.array([8, 0])
  assert kinds(*pair[:2]) == {'exact duplicates', 'contradicting masks'}


def test_a_stem_in_two_lists_is_an_error(tmp_path):
  folders.write_pairs(tmp_path, make_pairs(6))
  (tmp_path / 'train.txt').write_text('00\n01\n02\n03\n')
  (tmp_path / 'val.txt').write_text('03\n04\n')
  found = measured.find(tmp_path, 'train', 'val')['same files in two splits']
  assert found.level == 'error'
  assert found.names == (str(tmp_path / 'images/03.png'),)


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
  for split, data in (('val', {}), ('fold_0', {'num_folds': 3})):
    found = measured.find(tmp_path, 'train', split, **data)
    assert 'holdout=last' in found[duplicates.NEIGHBOURS].message
    found = measured.find(tmp_path, 'train', split, holdout='last', **data)
    assert duplicates.NEIGHBOURS not in found


def test_frames_of_a_video_that_are_trained_on_and_held_out(tmp_path):
  """A training says so, too; not of lists, folders or other images."""
  base = np.asarray(_smooth(3))
  frames = [np.roll(base, 2 * i, 1) for i in range(24)]
  others = [np.asarray(_smooth(i)) for i in range(24)]
  for name, images in ('video', frames), ('others', others):
    pairs = {
      f'{i}': (im, folders.make_pair(i)[1]) for i, im in enumerate(images)
    }
    folders.write_pairs(tmp_path / name, pairs)

  def find(name, **data):
    config = folders.make_config(tmp_path / name, cache='memory', **data)
    sets = {s: prepare.prepare(config, s) for s in ('train', 'val')}
    return {f.kind for f in findings.find_in_prepared(sets, config)}

  assert duplicates.NEIGHBOURS in find('video')
  assert duplicates.NEIGHBOURS not in find('video', holdout='last')
  assert duplicates.NEIGHBOURS not in find('video', skip_checks=('neighbours',))
  assert duplicates.NEIGHBOURS not in find('others')
  for split, numbers in ('train', range(12)), ('val', range(12, 24)):
    names = '\n'.join(map(str, numbers))
    (tmp_path / f'video/{split}.txt').write_text(names)
  assert duplicates.NEIGHBOURS not in find('video')


def test_a_series_with_a_folder_of_its_own_needs_no_other_holdout(tmp_path):
  """`data.holdout` chooses nothing there."""
  base = np.asarray(_smooth(3))
  for split, first in (('train', 0), ('val', 12)):
    pairs = {
      f'{i:03d}': (np.roll(base, 2 * i, 1), folders.make_pair(i)[1])
      for i in range(first, first + 12)
    }
    folders.write_pairs(tmp_path / split, pairs)
  assert duplicates.NEIGHBOURS not in measured.find(tmp_path, 'train', 'val')
  splits, config = measured.measure(tmp_path, 'train', 'val')
  found = duplicates.find_similar(splits, config, held_out=True)
  assert duplicates.NEIGHBOURS in {f.kind for f in found}


def test_pages_of_a_file_may_look_alike(tmp_path):
  """They are held out together; files that look alike still leak."""
  for alike, folder in ((False, tmp_path / 'a'), (True, tmp_path / 'b')):
    for kind in ('images', 'masks'):
      (folder / kind).mkdir(parents=True)
    for i in range(10):
      base = _smooth(3 if alike else i)
      turn = lambda page: np.roll(base, 2 * page + 2 * alike * i, 1)
      tifffile.imwrite(
        folder / f'images/{i}.tif',
        np.stack([turn(page) for page in range(4)]),
        photometric='rgb',
      )
      masks = np.stack([folders.make_pair(i)[1]] * 4)
      kind = dict(photometric='minisblack')
      tifffile.imwrite(folder / f'masks/{i}.tif', masks, **kind)
    for data in ({}, {'num_folds': 3}):
      split = 'fold_0' if data else 'val'
      found = measured.find(folder, 'train', split, pages='images', **data)
      assert (duplicates.NEIGHBOURS in found) == alike


def _measured(images, split):
  measurements = []
  for i, image in enumerate(images):
    m = records.Measurement(split, i, f'{split}{i:02d}')
    scan.shrink(m, image)
    measurements.append(m)
  return measurements


def _names(measurements):
  """Names of near duplicates, and of those that are turned."""
  groups = duplicates.near_duplicates(measurements)
  names = lambda kind: [tuple(m.name for m in g) for g in groups[kind]]
  return names('near duplicates'), names('turned copies')


@pytest.mark.parametrize('name', ['vessels', 'cord', 'cracks', 'lungs', 'deep'])
def test_one_layout_makes_no_duplicates_but_copies_are_found(name):
  """Different eyes are round and bright alike; a copy has the same vessels."""
  images = [image for image, _ in kinds.draw(name, 24, seed=77)]
  train = _measured(images, 'train')
  assert _names(train) == ([], [])
  size = images[3].shape[1::-1]
  smaller = cv2.resize(images[3], (size[0] * 3 // 4, size[1] * 3 // 4))
  brighter = cv2.convertScaleAbs(images[7], alpha=1.05, beta=4)
  copies = [smaller, brighter, images[9][:, ::-1].copy()]
  copies = [c.reshape(*c.shape[:2], -1) for c in copies]
  near, turned = _names([*train, *_measured(copies, 'val')])
  assert near == [('train03', 'val00'), ('train07', 'val01')]
  assert turned == [('train09', 'val02')]


@pytest.mark.parametrize('shape', [(40, 48), (300, 200)])
def test_copies_that_are_turned(shape):
  """All ways, of any size, and brighter besides."""
  images = [cv2.resize(_smooth(i), shape[::-1]) for i in range(24)]
  copies = [stored.turn(images[i], i) for i in range(1, 9)]
  copies = [cv2.convertScaleAbs(copy, alpha=1.05, beta=4) for copy in copies]
  near, turned = _names(
    [*_measured(images, 'train'), *_measured(copies, 'val')]
  )
  assert near == [('train01', 'val00')]
  assert turned == [(f'train{i:02}', f'val{i - 1:02}') for i in range(2, 9)]


@pytest.mark.parametrize('share', [0.3, 3.0])
def test_pairs_are_those_of_all_products(share):
  """Sets of few pairs, and those of which nearly all are alike."""
  rng = np.random.default_rng(0)
  smooth = [
    cv2.GaussianBlur(x, (0, 0), 2) for x in rng.normal(size=(91, 16, 16))
  ]
  smooth = np.reshape(smooth, (91, 256))
  smooth -= smooth.mean(1, keepdims=True)
  thumbs = smooth[-1:] + smooth[:-1] / share
  thumbs[:80:8] = [
    stored.turn(t.reshape(16, 16), 1 + i % 8).ravel()
    for i, t in enumerate(thumbs[1:80:8] + 0.02 * rng.normal(size=(10, 256)))
  ]
  thumbs /= np.linalg.norm(thumbs, axis=1, keepdims=True)
  threshold, expected = 0.9, set()
  for turn in range(1, 9):
    turned = [stored.turn(t.reshape(16, 16), turn).ravel() for t in thumbs]
    pairs = np.argwhere(np.triu(turned @ thumbs.T > threshold, 1))
    expected |= {(*pair, turn) for pair in pairs.tolist()}
  assert {turn for *_, turn in expected} == set(range(1, 9))
  assert (len(expected) > 1000) == (share > 1)
  found = duplicates._alike(thumbs, threshold)
  assert set(map(tuple, found.tolist())) == expected
  keys = duplicates._keys(thumbs)
  np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1)
  # Most other pairs are told apart by them.
  if share < 1:
    assert np.mean(keys @ keys.T > threshold) < 0.1


def test_the_most_alike_count_where_there_are_too_many(monkeypatch):
  """Not the first ones: of a layout, images are alike by the million."""
  monkeypatch.setattr(duplicates, '_MOST_PAIRS', 3)
  monkeypatch.setattr(duplicates, '_NEAR', -1.0)
  images = [_smooth(i) for i in range(24)]
  copies = [images[20].copy(), images[22][::-1].copy()]
  found = _names([*_measured(images, 'train'), *_measured(copies, 'val')])
  assert found == ([('train20', 'val00')], [('train22', 'val01')])


def test_near_duplicates_of_images_that_all_look_alike():
  """As X-rays do: typical similarity makes no duplicate."""
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
  groups, turned = duplicates.near_duplicates(measurements).values()
  assert [[m.index for m in g] for g in groups] == [[7, 31]] and not turned
