"""Tests of unet_jax/data/folder_source.py, through `sources.make_source`."""

import logging
import os
import re

import numpy as np
import pytest
import tifffile
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


def test_instances_below_0_are_said_once(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)
  write_pairs(tmp_path / 'train', ['a', 'b', 'c'])
  _write_instances(tmp_path / 'train', ['a', 'b', 'c'])
  for stem in 'abc':
    path = tmp_path / f'train/instances/{stem}.png'
    path.unlink()
    ids = np.array([[-1, -7, 3], [0, 1, 2]], np.int16)
    tifffile.imwrite(path.with_suffix('.tif'), ids)
  source = make(tmp_path, 'train')
  for i in range(len(source)):
    found = source[i]['instances']
    np.testing.assert_array_equal(found, [[0, 0, 3], [0, 1, 2]])
  said = [m for m in caplog.messages if 'below 0' in m]
  assert said == [
    f'warning: instance masks of the images in {tmp_path}/train/images have '
    'values below 0, which are no object; number objects from 1'
  ]


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
  assert caplog.messages == [
    f'{tmp_path}: not used, by their names no images and masks of a split: '
    'test/images'
  ]
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


# Names that differ, and what is left out. The rules are tested in
# pairing_test.py and folders_test.py.


def _paired(root, split='train', **fields):
  """The names of image and mask of each example."""
  source = make(root, split, **{'val_fraction': 0, **fields})
  files = [source.read(i) for i in range(len(source))]
  path = lambda name: os.path.relpath(name, root)
  return [f'{path(f["name"])} {path(f["mask_name"])}' for f in files]


def test_what_was_paired_is_shown(tmp_path, caplog):
  caplog.set_level('INFO')
  _make_files(
    tmp_path,
    'imgs/a10_scan.png imgs/a9_scan.jpg gt/a9_mask.png gt/a10_mask.gif',
  )
  assert _paired(tmp_path) == [
    'imgs/a9_scan.jpg gt/a9_mask.png',
    'imgs/a10_scan.png gt/a10_mask.gif',
  ]
  assert caplog.messages == [
    f'paired 2 images of {tmp_path}/imgs with masks of {tmp_path}/gt, such as '
    'a10_scan.png with a10_mask.gif (as --config.data.image_pattern='
    "'{stem}_scan' --config.data.mask_pattern='{stem}_mask')"
  ]
  # What it says can be set, and is then not said again.
  patterns = {'image_pattern': '{stem}_scan', 'mask_pattern': '{stem}_mask'}
  assert len(_paired(tmp_path, **patterns)) == 2


def test_what_was_paired_in_the_usual_folders_is_shown(tmp_path, caplog):
  caplog.set_level('INFO')
  _make_files(tmp_path, 'images/a.png images/b.png masks/a_m.png masks/b_m.png')
  assert _paired(tmp_path)[0] == 'images/a.png masks/a_m.png'
  assert "(as --config.data.mask_pattern='{stem}_m')" in caplog.text


def test_splits_may_be_told_by_their_masks(tmp_path):
  _make_files(
    tmp_path, 'train/a.png train_labels/a.png val/b.png valLabels/b.png'
  )
  assert _paired(tmp_path, 'auto') == ['val/b.png valLabels/b.png']


def test_one_folder_of_images_and_masks(tmp_path):
  _make_files(tmp_path, 'p1/a.png p1/a_mask.png p2/a.png p2/a_mask.png')
  assert _paired(tmp_path) == [
    'p1/a.png p1/a_mask.png',
    'p2/a.png p2/a_mask.png',
  ]


def test_images_without_masks_are_left_out(tmp_path, caplog):
  _make_files(
    tmp_path, 'a b images/c.png images/d.png images/e.png images/f.png'
  )
  assert len(_paired(tmp_path)) == 2
  assert len(make(tmp_path, 'val', val_fraction=0.5)) == 1
  # Once for both splits.
  assert caplog.messages == [
    f'4 of 6 images of {tmp_path}/images have no mask and are left out: c.png, '
    'd.png, e.png and 1 more'
  ]
  problems = []
  make(tmp_path, 'train', problems)
  (problem,) = problems
  assert (problem.kind, problem.level) == ('unpaired', 'warning')
  assert len(problem.names) == 4


def test_files_that_are_not_listed_are_not_looked_at(tmp_path, caplog):
  caplog.set_level('INFO')
  _make_files(
    tmp_path,
    'a b c images/c.jpg images/d.png masks/e.png train.txt=a val.txt=b',
  )
  assert _paired(tmp_path) == ['images/a.png masks/a.png']
  assert not caplog.messages
  # With masks of other names.
  for stem in 'abc':
    (tmp_path / f'masks/{stem}.png').rename(tmp_path / f'masks/{stem}_m.png')
  assert _paired(tmp_path) == ['images/a.png masks/a_m.png']


def test_a_listed_image_without_a_mask_is_left_out(tmp_path, caplog):
  _make_files(tmp_path, 'a b images/c.png train.txt=a,c val.txt=b')
  assert _paired(tmp_path) == ['images/a.png masks/a.png']
  assert 'have no mask and are left out: c.png' in caplog.text


def test_files_that_are_passed_over_are_counted(tmp_path, caplog):
  caplog.set_level('INFO')
  _make_files(tmp_path, 'a')
  for name in (
    'images/b.heic images/c.HEIC images/d.jp2 masks/Thumbs.db images/.DS_Store'
  ).split():
    (tmp_path / name).touch()
  assert len(_paired(tmp_path)) == 1
  (message,) = caplog.messages
  assert message.startswith(
    f'{tmp_path}/images and masks/: 5 file(s) passed over, 2 .heic, 1 hidden, '
    '1 .jp2, 1 .db, such as .DS_Store, b.heic, d.jp2 and 1 more; those that '
    'are images are read as .png, '
  )


def test_files_of_which_none_is_read(tmp_path):
  for name in 'imagesTr/a.nii.gz imagesTr/b.nii.gz labelsTr/a.nii.gz'.split():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  assert error(tmp_path) == (
    f'{tmp_path}/imagesTr: has no image files ({", ".join(decode.EXTENSIONS)}) '
    'but 2 .gz; convert them, volumes to TIFFs of their slices, with '
    'data.pages=images'
  )


def test_other_names_of_splits(tmp_path, caplog):
  caplog.set_level('INFO')
  _make_files(
    tmp_path, 'Training/a Valid/b testing/c extra/d extra/e train.txt=a'
  )
  for split, found in {
    'training': 0,
    'train': 0,
    'valid': 1,
    'val': 1,
    'auto': 1,
    'test': 2,
  }.items():
    source = make(tmp_path, split)
    assert values(source) == [found]
    assert source.split == ('train', 'val', 'test')[found]
  assert caplog.messages == [
    f'{tmp_path}: not used, by their names no images and masks of a split: '
    'extra, train.txt'
  ]


def test_images_and_masks_beside_a_split(tmp_path):
  _make_files(tmp_path, 'a b test/c')
  assert values(make(tmp_path, 'train')) == [0, 1]
  assert values(make(tmp_path, 'auto')) == [2]


def test_subfolders(tmp_path):
  _make_files(tmp_path, 'a2 a10 p2/x')  # Of a wrapper, see below.
  for kind in ('images', 'masks'):
    (tmp_path / 'p2' / kind).rename(tmp_path / kind / 'p2')
  (tmp_path / 'p2').rmdir()
  assert _paired(tmp_path) == [
    'images/a2.png masks/a2.png',
    'images/a10.png masks/a10.png',
    'images/p2/x.png masks/p2/x.png',
  ]


def test_no_hold_out(tmp_path):
  _make_files(tmp_path, 'a b')
  assert values(make(tmp_path, 'train', val_fraction=0.0)) == [0, 1]
  for split in ('auto', 'val', 'valid'):
    assert error(tmp_path, split, val_fraction=0.0) == (
      f'--config.data.val_fraction=0 holds nothing of {tmp_path} out to '
      'evaluate on: set a fraction, add val/, or measure the images that are '
      'trained on with --config.data.eval_split=train'
    )


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
train images/ masks/a.png
  ROOT/images: has no image files ({', '.join(decode.EXTENSIONS)})
train images/a.png masks/
  ROOT/masks: has no image files ({', '.join(decode.EXTENSIONS)})
train images/a.png
  --config.data.dir=ROOT: has neither images/ and masks/, nor train/ with
  images/ and masks/ in it (it has images)
train a.png a_1st.png b.png b_1st.png c.png c_2nd.png
  --config.data.dir=ROOT: has neither images/ and masks/, nor train/ with
  images/ and masks/ in it (it has a.png, a_1st.png, b.png, b_1st.png,
  c.png, c_2nd.png; to tell masks from images beside them:
  --config.data.mask_pattern='{{stem}}_1st')
train labels/a.png raw/a.png
  --config.data.dir=ROOT: has neither images/ and masks/, nor train/ with
  images/ and masks/ in it (it has labels, raw; rename the folder of the images
  to images)
train photos/a.png photos/b.png
  --config.data.dir=ROOT: has neither images/ and masks/, nor train/ with
  images/ and masks/ in it (it has photos)
train images/a.png masks/a_1.png masks/a_2.png
  ROOT/masks/a_1.png has no image: ROOT/images has no file of the name 'a_1'
  (did you mean a?); 2 file(s) like this. Add the image, or rename or remove
  the file; join several masks of an image into one
train train/a test/images/a.png test/mask/a.png
  ROOT/train/masks and ROOT/test/mask are called differently: if they mean the
  same, give them one name, otherwise move one away
train scan_1 scan_2 masks/zebra.tif images/scan_3.png
val scan_1 scan_2 masks/zebra.tif images/scan_3.png
  ROOT/masks/zebra.tif has no image: ROOT/images has no file of the name
  'zebra'; 1 file(s) like this. Add the image, or rename or remove the file
train img_1 images/img_000.png masks/img_0.png masks/img_4.png
  ROOT/masks/img_0.png has no image: ROOT/images has no file of the name 'img_0'
  (did you mean img_000?); 2 file(s) like this. Add the image, or rename or
  remove the file
train a images/b.png images/c.png masks/b_mask.png masks/c_mask.png
  ROOT/masks/b_mask.png has no image: ROOT/images has no file of the name
  'b_mask'; 2 file(s) like this. If names differ by a rule,
  give it: --config.data.mask_pattern='{{stem}}_mask'
train images/a.png masks/b.png
  ROOT/masks/b.png has no image: ROOT/images has no file of the name 'b'; 1
  file(s) like this. Add the image, or rename or remove the file
train scan_1 scan_2 instances/scan_1.png
val scan_1 scan_2 instances/scan_1.png
  ROOT/images/scan_2.png has no instance: ROOT/instances has no file of the name
  'scan_2'; 1 file(s) like this. Add the instance, or rename or remove the file
train images/a.png labels/a.png gt/a.png
  ROOT/gt and ROOT/labels may all be the masks; keep one, or name the right one
  masks/ and the others differently
train train/a val/a valid/a
  ROOT/val/images and ROOT/valid/images may all be the images; keep one, or name
  the right one images/ and the others differently
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
  ROOT/val.txt names scam_2, which images/ does not have (did you mean
  scan_2?); 1 name(s) like this. Correct or remove them
val scan_1 scan_2 train.txt=scan_1 val.txt=scan_2 valid.txt=scan_1
  ROOT/val.txt and ROOT/valid.txt are lists of one split; remove one
val scan_1 scan_2 train.txt=scan_1 val.txt=
  ROOT/val.txt: is empty; one stem a line
"""


@pytest.mark.parametrize('case, message', cases(_MISTAKES))
def test_mistakes(tmp_path, case, message):
  split, _, files = case.partition(' ')
  _make_files(tmp_path, files)
  assert error(tmp_path, split) == message.replace('ROOT', str(tmp_path))


# Files, the split that is refused, and the pairs once the advice is followed.
@pytest.mark.parametrize(
  'files, split, expected',
  [
    (
      'images/a.png images/b.png images/c.png masks/a_m.png masks/b_m.png',
      'train',
      2,
    ),
    (
      'images/a_s.png images/b_s.png images/c_s.png '
      'masks/a_m.png masks/b_m.png',
      'train',
      2,
    ),
    ('a.png a_1st.png a_2nd.png b.png b_1st.png', 'train', 2),
    ('a.png a_mask.png b.png b_mask.png b_mask_2.png', 'train', 2),
    ('a', 'auto', 1),
    ('a', 'train', 1),
  ],
)
def test_the_advice_helps(tmp_path, files, split, expected):
  _make_files(tmp_path, files)
  message = error(tmp_path, split)
  advised = dict(re.findall(r"--config\.data\.(\w+)='?([^' )]+)", message))
  advised.pop('dir', None)  # Where the fault is.
  assert advised
  split = advised.pop('eval_split', split)
  advised['val_fraction'] = float(advised.get('val_fraction', 0))
  assert len(make(tmp_path, split, **advised)) == expected


@pytest.mark.parametrize('count, fraction', [(1, 0.2), (4, 0.9)])
def test_hold_out_that_leaves_nothing(tmp_path, count, fraction):
  write_pairs(tmp_path, [f'p{i}' for i in range(count)])
  assert error(tmp_path, val_fraction=fraction) == (
    f'{tmp_path}: {count} pair(s) leave nothing to train on once '
    f'data.val_fraction={fraction} is held out; add pairs, or '
    'evaluate on them too: --config.data.val_fraction=0 '
    '--config.data.eval_split=train'
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
    'files with --config.data.on_error=skip'
  )
  assert source[1]['name'].endswith('b.png')


# Pages


def _write_pages(path, first, count):
  """A TIFF of `count` pages with the values first, first + 1, ..."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pages = [
    Image.fromarray(np.full((4, 6), first + i, np.uint8)) for i in range(count)
  ]
  pages[0].save(path, save_all=True, append_images=pages[1:])


def _write_stacks(root, counts):
  """Stacks s0.tif, ... whose values go on from one to the next."""
  for i, count in enumerate(counts):
    for folder, more in (('images', 0), ('masks', 100)):
      first = sum(counts[:i]) + more
      _write_pages(root / folder / f's{i}.tif', first, count)


def test_pascal_voc(tmp_path):
  """Else images of its val.txt are trained on."""
  for i, stem in enumerate(['a', 'b', 'c']):
    write(tmp_path / f'JPEGImages/{stem}.png', i)
    write(tmp_path / f'SegmentationClass/{stem}.png', 100 + i)
  lists = tmp_path / 'ImageSets/Segmentation'
  lists.mkdir(parents=True)
  (lists / 'train.txt').write_text('c\na\n')
  (lists / 'val.txt').write_text('b\n')
  problems: list = []
  assert values(make(tmp_path, 'train', problems)) == [2, 0]
  assert values(make(tmp_path, 'auto', problems)) == [1]
  assert {problem.kind for problem in problems} == {'paired'}


def test_pages_are_examples(tmp_path):
  _write_stacks(tmp_path / 'train', [3, 1, 2])
  write_pairs(tmp_path / 'val', ['z'])
  source = make(tmp_path, 'train', pages='images')
  assert len(source) == 6
  names = [os.path.basename(source.read(i)['name']) for i in range(6)]
  assert names == ['s0.tif[0]', 's0.tif[1]', 's0.tif[2]', 's1.tif'] + [
    's2.tif[0]',
    's2.tif[1]',
  ]
  for i in range(6):
    assert source[i]['image'].min() == source[i]['image'].max() == i
    assert source[i]['mask'].min() == source[i]['mask'].max() == 100 + i
  one = make(tmp_path, 'val', pages='images').read(0)
  assert (one['name'], one['page']) == (
    str(tmp_path / 'val/images/z.png'),
    0,
  )
  assert source.fingerprint != make(tmp_path, 'train').fingerprint


def test_pages_are_counted_whatever_the_ending(tmp_path):
  """A photograph of two frames is a JPEG by its name."""
  frames = [Image.new('RGB', (9, 8), c) for c in ('red', 'blue')]
  for kind in ('images', 'masks'):
    (tmp_path / 'train' / kind).mkdir(parents=True)
    path = tmp_path / 'train' / kind / 'a.jpg'
    frames[0].save(path, 'MPO', save_all=True, append_images=frames[1:])
  write_pairs(tmp_path / 'val', ['z'])
  assert len(make(tmp_path, 'train', pages='images')) == 2


def test_pages_of_a_file_are_held_out_together(tmp_path):
  counts = [3, 1, 2, 4]
  _write_stacks(tmp_path, counts)
  stacks = np.split(np.arange(10), np.cumsum(counts)[:-1])
  made = lambda split, **data: [
    int(e['image'].min()) for e in make(tmp_path, split, pages='images', **data)
  ]
  parts = [
    [made(split, val_fraction=0.5) for split in ('train', 'val')],
    [made(f'fold_{i}', num_folds=3) for i in range(3)],
  ]
  for part in parts:
    assert sorted(sum(part, [])) == list(range(10))
    for stack in stacks:
      assert sum(set(stack) <= set(rows) for rows in part) == 1
  assert 'the 10 example(s) in 4 file(s) of train cannot be cut' in error(
    tmp_path, 'fold_0', pages='images', num_folds=5
  )


def test_pages_of_image_and_mask_differ(tmp_path):
  _write_stacks(tmp_path / 'train', [3, 2])
  write_pairs(tmp_path / 'val', ['z'])
  _write_pages(tmp_path / 'train/masks/s0.tif', 0, 2)
  folder = tmp_path / 'train'
  assert error(tmp_path, pages='images') == (
    f'{folder}/images/s0.tif holds 3, {folder}/masks/s0.tif holds 2 image(s): '
    'with data.pages=images each page of an image needs a page of its mask; 1 '
    'pair(s) like this. Store as many pages in both'
  )
  problems = []
  source = make(tmp_path, 'train', problems, pages='images')
  assert [problem.kind for problem in problems] == ['pages']
  assert [int(source[i]['image'].min()) for i in range(len(source))] == [3, 4]


def test_a_broken_file_is_one_page(tmp_path):
  _write_stacks(tmp_path / 'train', [2, 2])
  write_pairs(tmp_path / 'val', ['z'])
  (tmp_path / 'train/images/s0.tif').write_bytes(b'II*\0broken')
  (tmp_path / 'train/masks/s0.tif').write_bytes(b'II*\0broken')
  source = make(tmp_path, 'train', pages='images')
  assert len(source) == 3
  assert 's0.tif' in message_of(lambda: source[0], kind=errors.DecodeError)
