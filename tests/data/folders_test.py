"""Tests of unet_jax/data/folders.py."""

import os

import pytest

from tests.refusals import message_of
from unet_jax.data import folders


@pytest.mark.parametrize(
  'names, expected',
  [
    ('train Train TRAINING training', ('train', '')),
    ('val valid Validation DEV', ('val', '')),
    ('test Testing', ('test', '')),
    ('images Image imgs img Original', ('', 'images')),
    (
      'masks labels GT Ground_Truth segmentation 1st_manual masks_2',
      ('', 'masks'),
    ),
    ('train_images images-train TrainImages imagesTr', ('train', 'images')),
    ('labelsTr trainannot train_labels', ('train', 'masks')),
    ('imagesTs testing_images', ('test', 'images')),
    ('val_masks', ('val', 'masks')),
    ('instances', ('', 'instances')),
    (
      'p2 patients test_1 train2 masks_old predicted_masks tr trimaps',
      ('', ''),
    ),
  ],
)
def test_meaning(names, expected):
  assert {folders.meaning(name) for name in names.split()} == {expected}


def test_split_names():
  names = 'train valid DEV testing auto fold_0 train[:90%] images'.split()
  assert [folders.split_name(name) for name in names] == (
    'train val val test auto fold_0 train[:90%] images'.split()
  )


def _tree(root, files):
  for file in files.split():
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.endswith('/'):
      path.mkdir()
    else:
      path.touch()
  return folders.Tree(str(root))


def _keys(tree, split, patterns=None):
  kinds = tree.kinds(split, patterns)
  return kinds and {
    kind: ' '.join(sorted(folder.files)) for kind, folder in kinds.items()
  }


# The files, and by split the keys of the images and of the masks.
_LAYOUTS = [
  ('images/a.png masks/a.png', {'': 'a/a'}),
  ('Images/a.PNG MASKS/a.Tif', {'': 'a/a'}),
  ('train/images/a.png train/masks/a.png', {'train': 'a/a', '': None}),
  ('images/train/a.png masks/train/a.png', {'train': 'a/a'}),
  (
    'images/train/a.png masks/train/a.png images/val/b.png masks/val/b.png',
    {'train': 'a/a', 'val': 'b/b'},
  ),
  ('imagesTr/a.png labelsTr/a.png imagesTs/b.png', {'train': 'a/a'}),
  ('train_images/a.png train_masks/a.png', {'train': 'a/a'}),
  (
    'train/a.png train_labels/a.png val/b.png val_labels/b.png',
    {'train': 'a/a', 'val': 'b/b'},
  ),
  ('a.png masks/a.png', {'': 'a/a'}),
  # Names of patients are parts of the keys, on either side.
  ('images/p1/a.png masks/p1/a.png', {'': 'p1/a/p1/a'}),
  ('images/p1/s/a.png masks/p1/s/a.png', {'': 'p1/s/a/p1/s/a'}),
  ('p1/images/a.png p1/masks/a.png', {'': 'p1/a/p1/a'}),
  (
    'p1/images/a.png p1/masks/a.png p2/images/a.png p2/masks/a.png',
    {'': 'p1/a p2/a/p1/a p2/a'},
  ),
  ('train/p1/images/a.png train/p1/masks/a.png', {'train': 'p1/a/p1/a'}),
  # A patient is called as a split is.
  (
    'images/test/a.png images/b.png masks/test/a.png masks/b.png',
    {'': 'b test/a/b test/a', 'test': None},
  ),
  # As archives unpack.
  ('images/images/a.png masks/masks/a.png', {'': 'a/a'}),
  ('set/images/a.png set/masks/a.png', {'': 'set/a/set/a'}),
  ('segmentation/images/a.png segmentation/masks/a.png', {'': 'a/a'}),
  # One side has a folder more.
  ('images/a.png annotations/trimaps/a.png', {'': 'a/a'}),
  # One folder of images and masks.
  ('a.png a_mask.png b.jpg', {'': 'a b/a_mask'}),
  ('train/a.png train/gt_a.png', {'train': 'a/gt_a'}),
  ('p1/a_1.tif p1/a_1_mask.tif', {'': 'p1/a_1/p1/a_1_mask'}),
  # Ours by name goes before others.
  ('images/a.png masks/a.png labels/b.png', {'': 'a/a'}),
  ('images/a.png masks/a.png b.png', {'': 'a/a'}),
  # A folder without images is no choice.
  ('images/a.png labels/a.txt gt/a.png', {'': 'a/a'}),
  ('images/a.png', {'': None}),
  ('a.png b.png', {'': None}),
  ('a_mask.png b_mask.png', {'': None}),
]


@pytest.mark.parametrize('files, expected', _LAYOUTS)
def test_layouts(tmp_path, files, expected):
  tree = _tree(tmp_path, files)
  for split, keys in expected.items():
    found = _keys(tree, split)
    assert (found and f'{found["images"]}/{found["masks"]}') == keys


def test_patterns_tell_masks_from_images(tmp_path):
  tree = _tree(tmp_path, 'a.png a_lesion.png b.png')
  assert _keys(tree, '') is None
  assert _keys(tree, '', ('{stem}', '{stem}_lesion')) == {
    'images': 'a b',
    'masks': 'a_lesion',
  }


def test_instances(tmp_path):
  tree = _tree(tmp_path, 'images/a.png masks/a.png instances/a.png')
  assert _keys(tree, '') == {'images': 'a', 'masks': 'a', 'instances': 'a'}


def test_what_is_passed_over(tmp_path):
  tree = _tree(
    tmp_path,
    'train/images/a.png train/masks/a.png train/notes/x.png extra/images/a.png '
    'test/images/b.png .git/c.png train/masks/Thumbs.db train/masks/.x.png '
    'train/images/b.heic train/images/c.HEIC train/images/README',
  )
  kinds = tree.kinds('train', None)
  unused = tree.passed_over + tree.unused(list(kinds.values()))
  assert [os.path.relpath(path, tmp_path) for path in unused] == [
    'extra',
    'train/notes',
    'test/images',
  ]
  others = {k: len(v) for k, v in kinds['images'].others.items()}
  assert others == {'no ending': 1, '.heic': 2}
  assert {k: len(v) for k, v in kinds['masks'].others.items()} == {
    'hidden': 1,
    '.db': 1,
  }


@pytest.mark.parametrize(
  'files, message',
  [
    ('images/a.png gt/a.png labels/a.png', 'gt and ROOT/labels may all be the'),
    # The field of view of a retina is called `mask`.
    (
      'images/a.png mask/a.png 1st_manual/a.png',
      '1st_manual and ROOT/mask may',
    ),
    (
      'img/a.png photos/a.png masks/a.png',
      'img and ROOT/photos may all be the',
    ),
    ('Images/a.png images/a.png masks/a.png', 'Images and ROOT/images may all'),
    ('val/images/a.png valid/images/a.png', 'val/images and ROOT/valid/images'),
  ],
)
def test_choices_are_refused(tmp_path, files, message):
  tree = _tree(tmp_path, files)
  split = 'val' if 'val' in files else ''
  assert message.replace('ROOT', str(tmp_path)) in message_of(
    tree.kinds, split, None
  )


def test_links(tmp_path):
  (tmp_path / 'store/p1').mkdir(parents=True)
  (tmp_path / 'store/p1/a.png').touch()
  root = tmp_path / 'set'
  (root / 'masks').mkdir(parents=True)
  (root / 'images').symlink_to(tmp_path / 'store')
  (root / 'masks/p1').symlink_to(tmp_path / 'store/p1')
  (root / 'masks/p1/up').symlink_to(root / 'masks')  # A circle.
  tree = folders.Tree(str(root))
  assert _keys(tree, '') == {'images': 'p1/a', 'masks': 'p1/a'}


def test_a_link_to_itself_is_named(tmp_path):
  (tmp_path / 'images').mkdir()
  (tmp_path / 'images/a.png').symlink_to('a.png')
  assert message_of(folders.Tree, str(tmp_path)) == (
    f'{tmp_path}/images/a.png cannot be read (Too many levels of symbolic '
    'links); allow it, or move it away'
  )


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_folder_that_cannot_be_read(tmp_path):
  (tmp_path / 'images').mkdir(mode=0)
  assert message_of(folders.Tree, str(tmp_path)) == (
    f'{tmp_path}/images cannot be read (Permission denied); allow it, or move '
    'it away'
  )


def test_unicode_forms_are_one_name(tmp_path):
  tree = _tree(tmp_path, 'images/e\u0301.png masks/\u00e9.png')
  assert _keys(tree, '') == {'images': '\u00e9', 'masks': '\u00e9'}
