"""Tests of unet_jax/data/folder_source.py, through `sources.make_source`."""

import os

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from tests.data.value_pairs import error, make, values, write, write_pairs
from tests.refusals import cases, message_of
from unet_jax.data import decode
from unet_jax.runtime import errors


def _write_splits(root, stems, start=0):
  """The pairs as the folder train/, and one pair as val/."""
  write_pairs(root / 'train', stems, start)
  write_pairs(root / 'val', ['z'])


def _make_files(root, files):
  """Makes what `folder/ stem file.png list.txt=stem,stem` names.

  A name without an ending is a pair; their values are 0, 1, ... in this order.
  """
  count = 0
  for file in files.split():
    path, is_list, stems = file.partition('=')
    path = root / path
    if is_list:
      path.write_text(stems.replace(',', '\n') + '\n')
    elif file.endswith('/'):
      path.mkdir()
    elif path.suffix:
      write(path, 0)
    else:
      write_pairs(path.parent, [path.name], start=count)
      count += 1


# Instances


def _write_instances(root, stems):
  for i, stem in enumerate(stems):
    write(root / 'instances' / f'{stem}.png', 200 + i)


def _instances(source):
  return [int(source[i]['instances'].min()) for i in range(len(source))]


def test_instances_beside_the_masks(tmp_path):
  _write_splits(tmp_path, ['a', 'b', 'c'])
  _write_instances(tmp_path / 'train', ['a', 'b', 'c'])
  source = make(tmp_path, 'train')
  assert values(source) == [0, 1, 2]
  assert _instances(source) == [200, 201, 202]
  assert 'instances' not in make(tmp_path, 'val')[0]
  # They are among the files that arrays depend on.
  before = source.fingerprint
  os.utime(tmp_path / 'train/instances/b.png', ns=(1, 1))
  assert make(tmp_path, 'train').fingerprint != before


def test_instances_of_a_list(tmp_path):
  write_pairs(tmp_path, ['a', 'b', 'c'])
  _write_instances(tmp_path, ['a', 'b', 'c'])
  (tmp_path / 'train.txt').write_text('c\na\n')
  (tmp_path / 'val.txt').write_text('b\n')
  assert _instances(make(tmp_path, 'train')) == [202, 200]


def test_colors_are_instances(tmp_path):
  _write_splits(tmp_path, ['a'])
  path = tmp_path / 'train/instances/a.png'
  write(path, (0, 0, 0), 'RGB')
  image = Image.open(path)
  image.putpixel((1, 0), (1, 0, 2))
  image.putpixel((2, 1), (2, 0, 1))
  image.save(path)
  got = make(tmp_path, 'train')[0]['instances']
  assert got.tolist() == [[0, 2**32 + 2, 0], [0, 0, 2**33 + 1]]


# Layouts


def test_flat_layout_holds_a_fraction_out(tmp_path):
  write_pairs(tmp_path, [f'p{i}' for i in range(20)])
  find = lambda split, seed: values(
    make(tmp_path, split, seed=seed, val_fraction=0.25)
  )
  splits = {}
  for seed in (0, 1):
    train, val = find('train', seed), find('val', seed)
    assert len(val) == 5
    assert sorted(train + val) == list(range(20))
    assert train == sorted(train) and val == sorted(val)
    splits[seed] = val
  assert splits[0] != splits[1]
  assert splits[0] == find('val', 0) == find('auto', 0)
  assert splits[0] != list(range(15, 20))


_LAST = {'val_fraction': 0.25, 'holdout': 'last'}
_EIGHT = 'p0 p1 p2 p3 p4 p5 p6 p7'


@pytest.mark.parametrize(
  'files, fields, expected',
  [
    ('train/a val/a val/d', {}, {'train': [0], 'val': [1, 2], 'auto': [1, 2]}),
    ('train/a test/b test/d', {}, {'train': [0], 'test': [1, 2]}),
    ('train/a test/a test/d', {}, {'train': [0], 'auto': [1, 2]}),
    # val goes before test.
    ('train/a test/a val/a', {}, {'auto': [2], 'test': [1]}),
    # Without either, some of train are held out, of all or of its list.
    (_EIGHT, _LAST, {'train': [0, 1, 2, 3, 4, 5], 'val': [6, 7]}),
    (
      _EIGHT,
      {**_LAST, 'seed': 5},
      {'train': [0, 1, 2, 3, 4, 5], 'val': [6, 7]},
    ),
    (
      f'{_EIGHT} train.txt=p1,p3,p5,p7',
      _LAST,
      {'train': [1, 3, 5], 'val': [7]},
    ),
    # At least one.
    ('a b c', {**_LAST, 'val_fraction': 0.01}, {'train': [0, 1], 'val': [2]}),
  ],
)
def test_splits(tmp_path, files, fields, expected):
  _make_files(tmp_path, files)
  for split, found in expected.items():
    assert values(make(tmp_path, split, **fields)) == found


def test_test_folder_without_masks(tmp_path, caplog):
  caplog.set_level('INFO')
  write_pairs(tmp_path / 'train', [str(i) for i in range(10)])
  write(tmp_path / 'test' / 'images' / '0.png', 50)
  train, val = (values(make(tmp_path, split)) for split in ('train', 'auto'))
  assert len(val) == 2 and sorted(train + val) == list(range(10))
  assert f'{tmp_path / "test"} has no masks/: not used' in caplog.messages
  assert error(tmp_path, 'test') == (
    f"{tmp_path} has no split 'test'; it has train, val"
  )


def test_lists_of_stems(tmp_path):
  stems = ['a', 'b.1', 'c', 'my scan', 'e']
  write_pairs(tmp_path, stems)
  # Stems or names of files, in any order; further columns are ignored.
  (tmp_path / 'train.txt').write_text('c 1 7\n\nb.1\na.png 3\n')
  # As Windows writes it.
  (tmp_path / 'test.txt').write_bytes(b'\xef\xbb\xbfmy scan\r\ne.png\r\n')
  assert values(make(tmp_path, 'train')) == [2, 1, 0]
  assert values(make(tmp_path, 'auto')) == [3, 4]
  assert error(tmp_path, 'val') == (
    f"{tmp_path} has no split 'val'; it has train, test"
  )


def test_natural_order(tmp_path):
  # The order of creation is not that of the names.
  stems = ['s10', 's2', 's01', 's1', 't1_b20', 't1_b3', 'r', '7']
  _write_splits(tmp_path, stems)
  expected = ['7', 'r', 's01', 's1', 's2', 's10', 't1_b3', 't1_b20']
  source = make(tmp_path, 'train')
  assert values(source) == [stems.index(stem) for stem in expected]


def test_digits_that_are_no_numbers(tmp_path):
  _write_splits(tmp_path, ['1²3', '1²', '²'])
  assert len(make(tmp_path, 'train')) == 3


def test_pairs_across_extensions(tmp_path):
  images = {'a': '.JPG', 'b': '.bmp', 'c': '.tiff', 'd': '.webp'}
  for i, (stem, extension) in enumerate(images.items()):
    write(tmp_path / 'train/images' / (stem + extension), (i,) * 3, 'RGB')
    write(tmp_path / 'train/masks' / (stem + '.png'), 100 + i)
  write_pairs(tmp_path / 'val', ['z'])
  # Other files are ignored.
  for name in ('images/Thumbs.db', 'images/.hidden.png', 'masks/notes.txt'):
    (tmp_path / 'train' / name).touch()
  source = make(tmp_path, 'train')
  assert values(source) == [0, 1, 2, 3]
  assert source[0]['name'] == str(tmp_path / 'train/images/a.JPG')
  assert source[0]['mask_name'] == str(tmp_path / 'train/masks/a.png')


def test_grey_network(tmp_path):
  _write_splits(tmp_path, ['a'])
  source = make(tmp_path, 'train', num_channels=1, mean=(0.5,), std=(0.25,))
  assert source[0]['image'].shape == (2, 3, 1)


def test_home_folder(tmp_path, monkeypatch):
  _write_splits(tmp_path / 'set', ['a'])
  monkeypatch.setenv('HOME', str(tmp_path))
  assert values(make('~/set', 'train')) == [0]


def test_fingerprint_changes_with_the_files(tmp_path):
  write_pairs(tmp_path, [f'p{i}' for i in range(10)])
  find = lambda split='train', **data: make(tmp_path, split, **data).fingerprint
  first = find()
  assert find() == first
  assert find('val') != first
  assert find(holdout='last') != first
  for path in ('images/p3.png', 'masks/p3.png'):
    before = [find(split) for split in ('train', 'val')]
    os.utime(tmp_path / path, ns=(1, 1))
    assert [find(split) for split in ('train', 'val')] != before
  before = find()
  write_pairs(tmp_path, ['p91'])
  assert find() != before


def test_isbi2012(shared_data):
  path = shared_data('isbi2012')
  options = {'num_channels': 1, 'mean': (0.5,), 'std': (0.25,)}
  train, val = (
    make(path, split, holdout='last', **options) for split in ('train', 'auto')
  )
  assert (len(train), len(val)) == (24, 6)
  names = [
    os.path.basename(s.read(i)['name'])
    for s in (train, val)
    for i in range(len(s))
  ]
  assert names == [f'{i}.png' for i in range(30)]
  for i, example in ((0, train[0]), (24, val[0])):
    for key, kind in (('image', 'images'), ('mask', 'masks')):
      file = path / 'train' / kind / f'{i}.png'
      expected = np.asarray(Image.open(file).convert('L'))
      assert expected.shape == (512, 512)
      assert_array_equal(np.squeeze(example[key]), expected)


# Mistakes


def test_missing_folder(tmp_path):
  path = tmp_path / 'no'
  assert error(path) == f'--config.data.dir={path}: no such folder'


# A split, the files of the folder, and the message.
_MISTAKES = f"""\
train
  --config.data.dir=ROOT: has neither images/ and masks/, nor train/ with
  images/ and masks/ in it (it is empty)
train imgs/ a.png
  --config.data.dir=ROOT: has neither images/ and masks/, nor train/ with
  images/ and masks/ in it (it has a.png, imgs)
train imgs/ a.png b0/ b1/ b2/ b3/ b4/ b5/ b6/
  --config.data.dir=ROOT: has neither images/ and masks/, nor train/ with
  images/ and masks/ in it (it has a.png, b0, b1, b2, b3, b4 and 3 more)
train images/
  ROOT/images: has no image files ({', '.join(decode.EXTENSIONS)})
train images/a.png
  ROOT/masks: no such folder; put the files there
train scan_1 scan_2 images/scan_11.png images/zebra.png
val scan_1 scan_2 images/scan_11.png images/zebra.png
  ROOT/images/scan_11.png has no mask: ROOT/masks has no file with the stem
  'scan_11' (did you mean scan_1?); 2 file(s) like this. Add the mask or remove
  the file
train scan_1 scan_2 masks/zebra.tif
val scan_1 scan_2 masks/zebra.tif
  ROOT/masks/zebra.tif has no image: ROOT/images has no file with the stem
  'zebra'; 1 file(s) like this. Add the image or remove the file
train scan_1 scan_2 instances/scan_1.png
val scan_1 scan_2 instances/scan_1.png
  ROOT/images/scan_2.png has no instance: ROOT/instances has no file with the
  stem 'scan_2' (did you mean scan_1?); 1 file(s) like this. Add the instance or
  remove the file
train a b images/a.bmp
  ROOT/images/a.bmp and ROOT/images/a.png have the same stem; pairs are made by
  stem, rename or remove one
train a b masks/a.bmp
  ROOT/masks/a.bmp and ROOT/masks/a.png have the same stem; pairs are made by
  stem, rename or remove one
tests train/a train/b test/a test/b
  ROOT has no split 'tests' (did you mean test?); it has train, test
val train/a train/b test/a test/b
  ROOT has no split 'val'; it has train, test
val scan_1 scan_2 train.txt=scan_1 val.txt=scan_2,scam_2
  ROOT/val.txt names scam_2, which images/ does not have (did you mean scan_2?)
val scan_1 scan_2 train.txt=scan_1 val.txt=
  ROOT/val.txt: is empty; one stem a line
"""


@pytest.mark.parametrize('case, message', cases(_MISTAKES))
def test_mistakes(tmp_path, case, message):
  split, _, files = case.partition(' ')
  _make_files(tmp_path, files)
  assert error(tmp_path, split) == message.replace('ROOT', str(tmp_path))


@pytest.mark.parametrize('count, fraction', [(1, 0.2), (4, 0.9)])
def test_hold_out_that_leaves_nothing(tmp_path, count, fraction):
  write_pairs(tmp_path, [f'p{i}' for i in range(count)])
  assert error(tmp_path, val_fraction=fraction) == (
    f'{tmp_path}: {count} pair(s) leave nothing to train on once '
    f'data.val_fraction={fraction} is held out'
  )


def test_link_to_nowhere(tmp_path):
  _write_splits(tmp_path, ['a', 'b'])
  path = tmp_path / 'train/images/a.png'
  path.unlink()
  path.symlink_to(tmp_path / 'gone.png')
  source = make(tmp_path, 'train')
  message = message_of(lambda: source[0], kind=errors.DecodeError)
  assert message == (
    f'{path} cannot be read (No such file or directory); fix it, or skip such '
    'pairs with --config.data.on_error=skip'
  )
  assert source[1]['name'].endswith('b.png')
