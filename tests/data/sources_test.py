"""Tests of unet_jax/data/sources.py (the TFDS set: oxford_iiit_pet_test.py)."""

import os

import numpy as np
import pytest
from PIL import Image

from configs import folder
from unet_jax.config import default
from unet_jax.data import decode, sources
from unet_jax.runtime import errors


def _write(path, value, mode='L'):
  """A picture of one value, which says which file it was."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, (3, 2), value).save(path)


def _write_pairs(root, stems, start=0):
  """Pairs whose images hold start, start + 1, ... and masks 100 more."""
  for i, stem in enumerate(stems, start):
    _write(root / 'images' / f'{stem}.png', i)
    _write(root / 'masks' / f'{stem}.png', 100 + i)


def _config(root, **data):
  config = folder.get_config()
  config.data.update(dir=str(root), **data)
  return config


def _make(root, split, seed=0, **data):
  config = _config(root, **data)
  config.seed = seed
  return sources.make_source(config, split)


def _values(source):
  """The values of the images, each checked against its mask."""
  values = []
  for i in range(len(source)):
    example = source[i]
    assert example['image'].shape == (2, 3, 3)
    assert example['mask'].shape == (2, 3)
    value = int(example['image'][0, 0, 0])
    assert np.all(example['mask'] == 100 + value)
    values.append(value)
  return values


def _error(root, split='train', **data):
  with pytest.raises(errors.UserError) as e:
    _make(root, split, **data)
  assert '\n' not in str(e.value)
  return str(e.value)


def _write_instances(root, stems):
  for i, stem in enumerate(stems):
    _write(root / 'instances' / f'{stem}.png', 200 + i)


def test_instances_beside_the_masks(tmp_path):
  _write_pairs(tmp_path / 'train', ['a', 'b', 'c'])
  _write_instances(tmp_path / 'train', ['a', 'b', 'c'])
  _write_pairs(tmp_path / 'val', ['d'])
  source = _make(tmp_path, 'train')
  assert _values(source) == [0, 1, 2]
  assert [int(source[i]['instances'].min()) for i in range(3)] == [
    200,
    201,
    202,
  ]
  assert 'instances' not in _make(tmp_path, 'val')[0]
  # They are among what arrays depend on.
  before = source.fingerprint
  os.utime(tmp_path / 'train/instances/b.png', ns=(1, 1))
  assert _make(tmp_path, 'train').fingerprint != before


def test_instances_of_a_list(tmp_path):
  _write_pairs(tmp_path, ['a', 'b', 'c'])
  _write_instances(tmp_path, ['a', 'b', 'c'])
  (tmp_path / 'train.txt').write_text('c\na\n')
  (tmp_path / 'val.txt').write_text('b\n')
  source = _make(tmp_path, 'train')
  assert [int(source[i]['instances'][0, 0]) for i in (0, 1)] == [202, 200]


def test_colors_are_instances(tmp_path):
  _write_pairs(tmp_path / 'train', ['a'])
  _write_pairs(tmp_path / 'val', ['b'])
  _write(tmp_path / 'train/instances/a.png', (0, 0, 0), 'RGB')
  image = Image.open(tmp_path / 'train/instances/a.png')
  image.putpixel((1, 0), (1, 0, 2))
  image.putpixel((2, 1), (2, 0, 1))
  image.save(tmp_path / 'train/instances/a.png')
  got = _make(tmp_path, 'train')[0]['instances']
  assert got.tolist() == [[0, 65538, 0], [0, 0, 131073]]


def test_missing_instances(tmp_path):
  _write_pairs(tmp_path / 'train', ['a1', 'a2'])
  _write_instances(tmp_path / 'train', ['a1'])
  train = tmp_path / 'train'
  assert _error(tmp_path) == (
    f'{train}/images/a2.png has no instance: {train}/instances has no file '
    "with the stem 'a2' (did you mean a1?); 1 file(s) like this. Add the "
    'instance or remove the file'
  )


# Layouts.


def test_flat_layout_holds_a_fraction_out(tmp_path):
  _write_pairs(tmp_path, [f'p{i}' for i in range(20)])
  splits = {}
  for seed in (0, 1):
    train = _values(_make(tmp_path, 'train', seed, val_fraction=0.25))
    val = _values(_make(tmp_path, 'val', seed, val_fraction=0.25))
    assert len(val) == 5
    assert sorted(train + val) == list(range(20))
    assert train == sorted(train) and val == sorted(val)
    splits[seed] = val
  assert splits[0] != splits[1]
  again = _values(_make(tmp_path, 'val', 0, val_fraction=0.25))
  assert again == splits[0]
  assert splits[0] != list(range(15, 20))
  auto = _values(_make(tmp_path, 'auto', 0, val_fraction=0.25))
  assert auto == splits[0]


def test_hold_out_of_the_last(tmp_path):
  _write_pairs(tmp_path, [f'p{i}' for i in range(12)])
  options = {'val_fraction': 0.25, 'holdout': 'last'}
  for seed in (0, 5):
    assert _values(_make(tmp_path, 'train', seed, **options)) == list(range(9))
    assert _values(_make(tmp_path, 'val', seed, **options)) == [9, 10, 11]


def test_a_small_fraction_holds_one_out(tmp_path):
  _write_pairs(tmp_path, ['a', 'b', 'c'])
  assert len(_make(tmp_path, 'val', val_fraction=0.01)) == 1
  assert len(_make(tmp_path, 'train', val_fraction=0.01)) == 2


@pytest.mark.parametrize('other', ['val', 'test'])
def test_folders_of_splits(tmp_path, other):
  _write_pairs(tmp_path / 'train', ['a', 'b', 'c'])
  _write_pairs(tmp_path / other, ['a', 'd'], start=10)
  assert _values(_make(tmp_path, 'train')) == [0, 1, 2]
  assert _values(_make(tmp_path, other)) == [10, 11]
  assert _values(_make(tmp_path, 'auto')) == [10, 11]


def test_val_goes_before_test(tmp_path):
  for i, split in enumerate(('train', 'test', 'val')):
    _write_pairs(tmp_path / split, ['a'], start=i)
  assert _values(_make(tmp_path, 'auto')) == [2]
  assert _values(_make(tmp_path, 'test')) == [1]


def test_test_folder_without_masks(tmp_path, caplog):
  caplog.set_level('INFO')
  _write_pairs(tmp_path / 'train', [str(i) for i in range(10)])
  _write(tmp_path / 'test' / 'images' / '0.png', 50)
  train = _values(_make(tmp_path, 'train'))
  val = _values(_make(tmp_path, 'auto'))
  assert len(val) == 2 and sorted(train + val) == list(range(10))
  assert f'{tmp_path / "test"} has no masks/: not used' in caplog.messages
  assert _error(tmp_path, 'test') == (
    f"{tmp_path} has no split 'test'; it has train, val"
  )


def test_lists_of_stems(tmp_path):
  stems = ['a', 'b.1', 'c', 'my scan', 'e']
  _write_pairs(tmp_path, stems)
  # Stems or names of files, in any order; what follows a stem is left out.
  (tmp_path / 'train.txt').write_text('c 1 7\n\nb.1\na.png 3\n')
  # As Windows writes it.
  (tmp_path / 'test.txt').write_bytes(b'\xef\xbb\xbfmy scan\r\ne.png\r\n')
  assert _values(_make(tmp_path, 'train')) == [2, 1, 0]
  assert _values(_make(tmp_path, 'auto')) == [3, 4]
  assert _error(tmp_path, 'val') == (
    f"{tmp_path} has no split 'val'; it has train, test"
  )


def test_list_of_train_alone_holds_out_of_it(tmp_path):
  _write_pairs(tmp_path, [str(i) for i in range(10)])
  (tmp_path / 'train.txt').write_text('\n'.join('1357'))
  options = {'val_fraction': 0.25, 'holdout': 'last'}
  assert _values(_make(tmp_path, 'train', **options)) == [1, 3, 5]
  assert _values(_make(tmp_path, 'val', **options)) == [7]


def test_natural_order(tmp_path):
  # The order of creation is not that of the names.
  stems = ['s10', 's2', 's01', 's1', 't1_b20', 't1_b3', 'r', '7']
  _write_pairs(tmp_path / 'train', stems)
  _write_pairs(tmp_path / 'val', ['z'])
  expected = ['7', 'r', 's01', 's1', 's2', 's10', 't1_b3', 't1_b20']
  source = _make(tmp_path, 'train')
  assert _values(source) == [stems.index(stem) for stem in expected]


def test_digits_that_are_no_numbers(tmp_path):
  _write_pairs(tmp_path / 'train', ['1²3', '1²', '²'])
  _write_pairs(tmp_path / 'val', ['z'])
  assert len(_make(tmp_path, 'train')) == 3


def test_pairs_across_extensions(tmp_path):
  images = {'a': '.JPG', 'b': '.bmp', 'c': '.tiff', 'd': '.webp'}
  for i, (stem, extension) in enumerate(images.items()):
    _write(tmp_path / 'train/images' / (stem + extension), (i,) * 3, 'RGB')
    _write(tmp_path / 'train/masks' / (stem + '.png'), 100 + i)
  _write_pairs(tmp_path / 'val', ['z'])
  # What is no image is left alone.
  (tmp_path / 'train/images/Thumbs.db').write_bytes(b'')
  (tmp_path / 'train/images/.hidden.png').write_bytes(b'')
  (tmp_path / 'train/masks/notes.txt').write_text('')
  source = _make(tmp_path, 'train')
  assert _values(source) == [0, 1, 2, 3]
  assert source[0]['name'] == str(tmp_path / 'train/images/a.JPG')
  assert source[0]['mask_name'] == str(tmp_path / 'train/masks/a.png')


def test_grey_network(tmp_path):
  _write_pairs(tmp_path / 'train', ['a'])
  _write_pairs(tmp_path / 'val', ['z'])
  source = _make(tmp_path, 'train', num_channels=1, mean=(0.5,), std=(0.25,))
  assert source[0]['image'].shape == (2, 3, 1)


def test_home_folder(tmp_path, monkeypatch):
  _write_pairs(tmp_path / 'set' / 'train', ['a'])
  _write_pairs(tmp_path / 'set' / 'val', ['z'])
  monkeypatch.setenv('HOME', str(tmp_path))
  assert _values(_make('~/set', 'train')) == [0]


def test_fingerprint_changes_with_the_files(tmp_path):
  _write_pairs(tmp_path, [f'p{i}' for i in range(10)])
  make = lambda split='train', **data: _make(tmp_path, split, **data)
  first = make().fingerprint
  assert make().fingerprint == first
  assert make('val').fingerprint != first
  assert make(holdout='last').fingerprint != first
  for path in ('images/p3.png', 'masks/p3.png'):
    before = [make(s).fingerprint for s in ('train', 'val')]
    os.utime(tmp_path / path, ns=(1, 1))
    assert [make(s).fingerprint for s in ('train', 'val')] != before
  before = make().fingerprint
  _write_pairs(tmp_path, ['p91'])
  assert make().fingerprint != before


def test_isbi2012(shared_data):
  path = shared_data('isbi2012')
  options = {'num_channels': 1, 'mean': (0.5,), 'std': (0.25,)}
  train = _make(path, 'train', holdout='last', **options)
  val = _make(path, 'auto', holdout='last', **options)
  assert (len(train), len(val)) == (24, 6)
  names = [
    os.path.basename(s[i]['name']) for s in (train, val) for i in range(len(s))
  ]
  assert names == [f'{i}.png' for i in range(30)]
  for i, example in ((0, train[0]), (24, val[0])):
    for key, kind in (('image', 'images'), ('mask', 'masks')):
      file = path / 'train' / kind / f'{i}.png'
      expected = np.asarray(Image.open(file).convert('L'))
      assert expected.shape == (512, 512)
      np.testing.assert_array_equal(np.squeeze(example[key]), expected)


# Mistakes.


def test_missing_folder(tmp_path):
  path = tmp_path / 'no'
  assert _error(path) == f'--config.data.dir={path}: no such folder'


def test_folder_of_another_layout(tmp_path):
  message = (
    f'--config.data.dir={tmp_path}: has neither images/ and masks/, nor '
    'train/ with images/ and masks/ in it'
  )
  assert _error(tmp_path) == message + ' (it is empty)'
  (tmp_path / 'imgs').mkdir()
  (tmp_path / 'a.png').touch()
  assert _error(tmp_path) == message + ' (it has a.png, imgs)'
  for i in range(7):
    (tmp_path / f'b{i}').touch()
  assert _error(tmp_path) == (
    message + ' (it has a.png, b0, b1, b2, b3, b4 and 3 more)'
  )


def test_empty_and_missing_folders_of_images(tmp_path):
  (tmp_path / 'images').mkdir()
  assert _error(tmp_path) == (
    f'{tmp_path}/images: has no image files ({", ".join(decode.EXTENSIONS)})'
  )
  _write(tmp_path / 'images' / 'a.png', 0)
  assert _error(tmp_path) == (
    f'{tmp_path}/masks: no such folder; put the files there'
  )


def test_image_without_mask(tmp_path):
  _write_pairs(tmp_path, ['scan_1', 'scan_2'])
  _write(tmp_path / 'images' / 'scan_11.png', 0)
  _write(tmp_path / 'images' / 'zebra.png', 0)
  assert _error(tmp_path) == (
    f'{tmp_path}/images/scan_11.png has no mask: {tmp_path}/masks has no file '
    "with the stem 'scan_11' (did you mean scan_1?); 2 file(s) like this. Add "
    'the mask or remove the file'
  )


def test_mask_without_image(tmp_path):
  _write_pairs(tmp_path, ['a', 'b'])
  _write(tmp_path / 'masks' / 'zebra.tif', 0)
  assert _error(tmp_path, 'val') == (
    f'{tmp_path}/masks/zebra.tif has no image: {tmp_path}/images has no file '
    "with the stem 'zebra'; 1 file(s) like this. Add the image or remove the "
    'file'
  )


@pytest.mark.parametrize('kind', ['images', 'masks'])
def test_duplicates_of_a_stem(tmp_path, kind):
  _write_pairs(tmp_path, ['a', 'b'])
  _write(tmp_path / kind / 'a.bmp', 0)
  assert _error(tmp_path) == (
    f'{tmp_path}/{kind}/a.bmp and {tmp_path}/{kind}/a.png have the same stem; '
    'pairs are made by stem, rename or remove one'
  )


def test_unknown_split(tmp_path):
  _write_pairs(tmp_path / 'train', ['a', 'b'])
  _write_pairs(tmp_path / 'test', ['a', 'b'])
  assert _error(tmp_path, 'tests') == (
    f"{tmp_path} has no split 'tests' (did you mean test?); it has train, test"
  )
  assert _error(tmp_path, 'val') == (
    f"{tmp_path} has no split 'val'; it has train, test"
  )


def test_list_that_names_an_absent_stem(tmp_path):
  _write_pairs(tmp_path, ['scan_1', 'scan_2'])
  (tmp_path / 'train.txt').write_text('scan_1\n')
  (tmp_path / 'val.txt').write_text('scan_2\nscam_2\n')
  assert _error(tmp_path, 'val') == (
    f'{tmp_path}/val.txt names scam_2, which images/ does not have (did you '
    'mean scan_2?)'
  )


def test_empty_list(tmp_path):
  _write_pairs(tmp_path, ['a', 'b'])
  (tmp_path / 'train.txt').write_text('a\n')
  (tmp_path / 'val.txt').write_text('\n')
  assert _error(tmp_path, 'val') == (
    f'{tmp_path}/val.txt: is empty; one stem a line'
  )


@pytest.mark.parametrize('count, fraction', [(1, 0.2), (4, 0.9)])
def test_hold_out_that_leaves_nothing(tmp_path, count, fraction):
  _write_pairs(tmp_path, [f'p{i}' for i in range(count)])
  assert _error(tmp_path, val_fraction=fraction) == (
    f'{tmp_path}: {count} pair(s) leave nothing to train on once '
    f'data.val_fraction={fraction} is held out'
  )


def test_link_to_nowhere(tmp_path):
  _write_pairs(tmp_path / 'train', ['a', 'b'])
  _write_pairs(tmp_path / 'val', ['z'])
  path = tmp_path / 'train/images/a.png'
  path.unlink()
  path.symlink_to(tmp_path / 'gone.png')
  source = _make(tmp_path, 'train')
  with pytest.raises(errors.DecodeError) as e:
    source[0]
  assert str(e.value) == (
    f'{path} cannot be read (No such file or directory); mend it, or leave '
    'such pairs out with --config.data.on_error=skip'
  )
  assert source[1]['name'].endswith('b.png')


# Folds.


@pytest.mark.parametrize('holdout', ['random', 'last'])
@pytest.mark.parametrize('seed', [0, 7])
def test_folds_are_a_partition(holdout, seed):
  config = default.get_config()
  config.seed = seed
  for count in (2, 3, 10, 11, 64):
    for num_folds in range(2, min(count, 12) + 1):
      config.data.update(num_folds=num_folds, holdout=holdout)
      folds = sources.cut_folds(count, config)
      assert len(folds) == num_folds
      assert sorted(i for fold in folds for i in fold) == list(range(count))
      sizes = [len(fold) for fold in folds]
      assert max(sizes) - min(sizes) <= 1
      for fold in folds:
        assert list(fold) == sorted(fold)
        if holdout == 'last':
          assert list(fold) == list(range(fold[0], fold[-1] + 1))
  assert holdout == 'last' or folds[0].tolist() != list(range(len(folds[0])))


def test_folds_depend_on_the_seed_where_they_are_random():
  config = default.get_config()
  config.data.num_folds = 4
  first = sources.cut_folds(40, config)[0].tolist()
  assert sources.cut_folds(40, config)[0].tolist() == first
  config.seed = 1
  assert sources.cut_folds(40, config)[0].tolist() != first


def _assert_folds(make, everything):
  """That the folds of `make(split, fold)`, of all values, are right."""
  evaluated, fingerprints = [], set()
  for i in range(3):
    train, fold = make('train', i), make('auto', i)
    assert (train.split, fold.split) == ('train', f'fold_{i}')
    assert train.held_out and fold.held_out
    names = [[s[j]['name'] for j in range(len(s))] for s in (train, fold)]
    assert sorted(names[0] + names[1]) == sorted(everything)
    evaluated += names[1]
    # Another one is evaluated on by its name.
    for other in range(3):
      named = make(f'fold_{i}', other)
      assert [named.read(j)['name'] for j in range(len(named))] == names[1]
    fingerprints |= {str(train.fingerprint), str(fold.fingerprint)}
  assert sorted(evaluated) == sorted(everything)
  assert len(fingerprints) == 6


@pytest.mark.parametrize('layout', ['flat', 'folders', 'lists'])
@pytest.mark.parametrize('holdout', ['random', 'last'])
def test_folds_of_a_folder(tmp_path, layout, holdout):
  stems = [f'p{i}' for i in range(11)]
  folder = tmp_path / 'train' if layout == 'folders' else tmp_path
  _write_pairs(folder, stems)
  if layout == 'folders':
    _write_pairs(tmp_path / 'val', ['v1', 'v2'], start=50)
  elif layout == 'lists':
    _write_pairs(tmp_path, ['v1', 'v2'], start=50)
    (tmp_path / 'train.txt').write_text('\n'.join(stems))
    (tmp_path / 'val.txt').write_text('v2\nv1\n')
  make = lambda split, fold: _make(
    tmp_path, split, num_folds=3, fold=fold, holdout=holdout
  )
  _assert_folds(make, [str(folder / f'images/{stem}.png') for stem in stems])
  if holdout == 'last':  # In the order of the names, p10 after p9.
    assert _values(make('auto', 2)) == [8, 9, 10]
    assert _values(make('train', 1)) == [0, 1, 2, 3, 8, 9, 10]
  if layout == 'flat':  # Nothing is held out but the folds.
    assert _error(tmp_path, 'val', num_folds=3) == (
      f"{tmp_path} has no split 'val'; it has train"
    )
  else:
    assert sorted(_values(make('val', 0))) == [50, 51]


def test_folds_of_shapes():
  config = default.get_config()
  config.data.update(num_train=8, num_eval=3, num_folds=3, image_size=(8, 8))

  def make(split, fold):
    config.data.fold = fold
    return sources.make_source(config, split)

  _assert_folds(make, [f'train shape {i}' for i in range(8)])
  assert len(make('test', 1)) == 3 and make('test', 1).split == 'test'


def test_more_folds_than_examples(tmp_path):
  _write_pairs(tmp_path, ['a', 'b', 'c'])
  assert len(_make(tmp_path, 'train', num_folds=3)) == 2
  assert _error(tmp_path, num_folds=4) == (
    '--config.data.num_folds=4: the 3 example(s) of train cannot be cut into '
    'that many'
  )


def test_unpaired_files_of_a_folder_with_folds_are_collected(tmp_path):
  _write_pairs(tmp_path, ['a', 'b', 'c', 'd'])
  (tmp_path / 'masks/b.png').unlink()
  for split, count in (('train', 2), ('auto', 1)):
    problems = []
    config = _config(tmp_path, num_folds=3)
    assert len(sources.make_source(config, split, problems)) == count
    assert [p.kind for p in problems] == ['unpaired']


# Drawn shapes.


def test_shapes_source():
  config = default.get_config()
  config.data.update(num_train=5, num_eval=3, image_size=(24, 40))
  train = sources.make_source(config, 'train')
  test = sources.make_source(config, 'auto')
  assert (len(train), len(test)) == (5, 3)
  images = [s[i]['image'] for s in (train, test) for i in range(len(s))]
  assert all(image.shape == (24, 40, 3) for image in images)
  # No drawing of one split is in the other.
  assert len({image.tobytes() for image in images}) == 8
  fingerprints = [train.fingerprint, test.fingerprint]
  assert sources.make_source(config, 'train').fingerprint == fingerprints[0]
  config.seed = 1
  fingerprints.append(sources.make_source(config, 'train').fingerprint)
  config.data.num_train = 6
  fingerprints.append(sources.make_source(config, 'train').fingerprint)
  assert len({str(f) for f in fingerprints}) == 4


def test_shapes_source_mistakes():
  config = default.get_config()
  with pytest.raises(errors.UserError) as e:
    sources.make_source(config, 'val')
  assert str(e.value) == (
    "the shapes source has no split 'val'; it has train, test"
  )
