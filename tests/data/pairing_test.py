"""Tests of unet_jax/data/pairing.py."""

import hashlib
import unicodedata

import pytest

from unet_jax.data import pairing

_STEM = pairing.STEM


def _pair(images, masks, *patterns, **options):
  found = pairing.pair(images, masks, patterns or None, **options)
  return found, [(i, m) for i, m in found.masks.items()]


def test_equal_names_pair_and_others_are_left():
  found, pairs = _pair(['a', 'b.1', 'p/a', 'c'], ['p/a', 'b.1', 'a'])
  assert pairs == [('a', 'a'), ('b.1', 'b.1'), ('p/a', 'p/a')]
  assert found.is_exact and found.patterns == (_STEM, _STEM)


# Images, masks in the same order, and the patterns that are found.
_WAYS = {
  'suffixes': ('a0_scan a1_scan', 'a0_mask a1_mask', '{stem}_scan {stem}_mask'),
  'a suffix': ('a b', 'a_mask b_mask', '{stem} {stem}_mask'),
  'a prefix': ('cat dog', 'mask-cat mask-dog', '{stem} mask-{stem}'),
  'prefixes': ('img_1 img_2', 'seg_1 seg_2', 'img_{stem} seg_{stem}'),
  'without separators': ('img1 img2', 'gt1 gt2', 'img{stem} gt{stem}'),
  'numbers behind': (
    '21_training 22_training',
    '21_manual1 22_manual1',
    '{stem}_training {stem}_manual1',
  ),
  'other zeros': ('i_000 i_001 i_010', 'i_0 i_1 i_10', '{stem} {stem}'),
  'zeros and suffix': ('01 02', '001_m 002_m', '{stem} {stem}_m'),
  'other case': ('IMG_1 IMG_2', 'img_1 img_2', '{stem} {stem}'),
  'endings of some images': (
    'a b c d',
    'a.jpg B.png c d.jpg.png',
    '{stem} {stem}',
  ),
  'the ending of the image': ('a b', 'a.jpg b.jpg', '{stem} {stem}.jpg'),
  'brackets': (
    'benign|(1) benign|(2)',
    'benign|(1)_mask benign|(2)_mask',
    '{stem} {stem}_mask',
  ),
  'folders': ('p/1 q/1', 'p/1_mask q/1_mask', '{stem} {stem}_mask'),
  'two words': (
    'ISIC_1 ISIC_2',
    'ISIC_1_Segmentation ISIC_2_Segmentation',
    '{stem} {stem}_Segmentation',
  ),
  'one pair': ('train-volume', 'train-labels', '{stem}-volume {stem}-labels'),
  'common prefix': ('s1_a s1_b', 'm1_a m1_b', 's{stem} m{stem}'),
}


@pytest.mark.parametrize('name', _WAYS)
def test_what_is_the_only_way_pairs_by_itself(name):
  images, masks = (
    [stem.replace('|', ' ') for stem in stems.split()]
    for stems in _WAYS[name][:2]
  )
  found, pairs = _pair(images, masks[::-1])
  assert sorted(pairs) == sorted(zip(images, masks))
  assert found.patterns == tuple(_WAYS[name][2].split())


@pytest.mark.parametrize(
  'images, masks',
  [
    # Neighbours: numbered from 0, and from 1.
    ('i_0 i_1 i_2', 'i_1 i_2 i_3'),
    # A number is not cut, though all masks have a 1 in front.
    ('i_1 i_2 i_3', 'i_11 i_12 i_13'),
    # Nor a word.
    ('cat car', 'bat bar'),
    # Not all: the rest might belong to others.
    ('a b c', 'a_mask b_mask'),
    ('a b', 'a_mask b_mask c_mask'),
    ('a b', 'a_mask c'),
    # Two ways: each number may be the image's.
    ('1_2 2_1', 'm_1_2_x m_2_1_y'),
    ('1_2 2_3 3_1', 'a1 a2 a3'),
    ('a', 'b'),
    ('01 1', '001 002'),
  ],
)
def test_what_is_not_the_only_way_does_not_pair(images, masks):
  equal = sorted(set(images.split()) & set(masks.split()))
  found, pairs = _pair(images.split(), masks.split())
  assert sorted(found.masks) == equal
  assert all(image == mask for image, mask in pairs)


def test_given_patterns():
  images = ['1_scan', '02_scan', '3_scan', 'notes']
  masks = ['1_mask', '2_mask', '1_color', '9']
  patterns = ('{stem}_scan', '{stem}_mask')
  # To the letter, if not all can be paired.
  assert _pair(images, masks, *patterns)[1] == [('1_scan', '1_mask')]
  found, pairs = _pair(['1_scan', '02_scan'], ['1_mask', '2_mask'], *patterns)
  assert pairs == [('1_scan', '1_mask'), ('02_scan', '2_mask')]
  assert not found.is_exact
  # They are given: what would pair by itself does not.
  assert not _pair(['a_x'], ['a_mask'], '{stem}', '{stem}_mask')[1]


def test_listed_images_need_not_have_all_masks():
  images, masks = ['a', 'b'], ['a_mask', 'b_mask', 'c_mask']
  assert not _pair(images, masks)[1]
  assert _pair(images, masks, are_listed=True)[1] == [
    ('a', 'a_mask'),
    ('b', 'b_mask'),
  ]


def test_many_files():
  images = [f'scan_{i}' for i in range(3000)]
  masks = [f'lab_{i:05d}' for i in range(3000)]
  found, pairs = _pair(images, masks)
  assert pairs == list(zip(images, masks))
  assert found.patterns == ('scan_{stem}', 'lab_{stem}')


def test_patterns_are_suggested():
  images, masks = ['a', 'b', 'c', 'd'], ['a_mask', 'b_mask', 'z_mask']
  assert pairing.likely_patterns(images, masks) == ('{stem}', '{stem}_mask')
  assert pairing.likely_patterns(['a', 'b'], ['a', 'c']) is None


def test_names_of_random_letters_follow_no_rule():
  names = [hashlib.sha256(bytes([i])).hexdigest() for i in range(40)]
  images = [f'{name}/{name}' for name in names[:10]]
  masks = [f'{name}/{other}' for name, other in zip(names[:10], names[10:])]
  assert pairing.likely_patterns(images, masks) is None


@pytest.mark.parametrize(
  'keys, expected',
  [
    ('a a_x b b_x c c_y', '{stem}_x'),
    ('p/1 p/seg1 q/1 q/seg1', 'seg{stem}'),
    ('a b', '{stem}_mask'),
  ],
)
def test_patterns_of_masks_among_images(keys, expected):
  assert pairing.likely_mask_pattern(keys.split()) == expected


@pytest.mark.parametrize(
  'name, names, expected',
  [
    ('img_0', ('img_100', 'img_000', 'img_010'), 'img_000'),
    ('img_007', ('img_70', 'img_7', 'img_07x'), 'img_7'),
    ('case_001', ('case_004_0000', 'case_001_0000'), 'case_001_0000'),
    ('lung', ('lungs', 'heart'), 'lungs'),
    ('lung', ('heart',), None),
  ],
)
def test_nearest(name, names, expected):
  hint = f' (did you mean {expected}?)' if expected else ''
  assert pairing.nearest(name, names) == hint


def test_core():
  assert pairing.core('p/a_mask', '{stem}_mask') == 'p/a'
  assert pairing.core('a_mask', '{stem}_scan') is None
  # Something must be left.
  assert pairing.core('p/_mask', '{stem}_mask') is None
  assert pairing.core('ab', 'ab{stem}b') is None


def test_mask_names():
  names = 'a_mask mask-1 seg/a a_GT a.label maskara damask gt2 1_mask_2'.split()
  expected = [True, True, False, True, True, False, False, True, True]
  assert [pairing.is_mask_name(name) for name in names] == expected


def test_one_form_of_a_name():
  names = {unicodedata.normalize(form, 'Zürich_é') for form in ('NFC', 'NFD')}
  assert len(names) == 2
  assert len({pairing.normal_form(name) for name in names}) == 1
