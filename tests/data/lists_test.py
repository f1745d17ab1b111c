"""Tests of unet_jax/data/lists.py."""

import pytest

from tests.refusals import message_of
from unet_jax.data import lists

_FLAT = ['a', 'b.1', 'my scan', 'é']
_NESTED = ['p1/a', 'p2/a', 'p2/b', 'c']


def _select(root, content, keys, problems=None):
  path = root / 'train.txt'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return lists.select(str(path), keys, problems)


@pytest.mark.parametrize(
  'content, keys, expected',
  [
    ('b.1\na\n', _FLAT, ['b.1', 'a']),
    ('a.png\nb.1.TIF\n', _FLAT, ['a', 'b.1']),
    ('a 1 7\nmy scan\nb.1\t2\n', _FLAT, ['a', 'my scan', 'b.1']),
    ('a.png,a_mask.png\nb.1;x\n', _FLAT, ['a', 'b.1']),
    ('images/a.png masks/a.png\n./b.1\n', _FLAT, ['a', 'b.1']),
    ('/old/place/a.jpg\nC:\\old\\images\\b.1.png\n', _FLAT, ['a', 'b.1']),
    ('"a.png"\n# of the second day\n\n  b.1  \n', _FLAT, ['a', 'b.1']),
    # As other systems' editors write it.
    (b'\xef\xbb\xbfa\r\nb.1\r\n', _FLAT, ['a', 'b.1']),
    (b'a\rb.1\r', _FLAT, ['a', 'b.1']),
    ('a\r\né\r\n'.encode('utf-16'), _FLAT, ['a', 'é']),
    ('é\n'.encode('cp1252'), _FLAT, ['é']),
    ('e\u0301\n', _FLAT, ['é']),
    # Folders: the whole key, its end if it is the only one, a path around it.
    ('p2/a\np1/a.png\n', _NESTED, ['p2/a', 'p1/a']),
    ('b\nc.png\n', _NESTED, ['p2/b', 'c']),
    ('images/p2/b.png\np1/images/a.png\n', _NESTED, ['p2/b', 'p1/a']),
    ('train/images/c\n/old/p2/b.png\n', _NESTED, ['c', 'p2/b']),
  ],
)
def test_what_a_line_may_be(tmp_path, content, keys, expected):
  assert _select(tmp_path, content, keys) == expected


@pytest.mark.parametrize(
  'content, keys, message',
  [
    ('x\na\n', _FLAT, 'names x, which images/ does not have; 1 name(s)'),
    ('my_scan\n', _FLAT, 'which images/ does not have (did you mean my scan?)'),
    # Another patient's image is not this one's.
    (
      'p3/b\n',
      _NESTED,
      'names p3/b, which images/ does not have (did you mean',
    ),
    ('p1/c\n', _NESTED, 'names p1/c, which images/ does not have'),
    ('a\n', _NESTED, 'names a, which images/ does not have once, but in p1/a '),
    ('# nothing\n', _FLAT, 'is empty; one stem a line'),
    ('', _FLAT, 'is empty; one stem a line'),
  ],
)
def test_mistakes(tmp_path, content, keys, message):
  assert message in message_of(_select, tmp_path, content, keys)


def test_images_are_used_once(tmp_path):
  problems = []
  content = 'a\nb.1\na.png\na\n'
  assert _select(tmp_path, content, _FLAT, problems) == ['a', 'b.1']
  (problem,) = problems
  assert problem.level == 'warning'
  assert problem.message == (
    f'{tmp_path}/train.txt names a.png again; each image is used once (2 '
    'line(s) like this)'
  )


def test_find(tmp_path):
  for name in ('Train.txt', 'valid.TXT', 'notes.txt', 'test.csv', 'images.txt'):
    (tmp_path / name).touch()
  assert lists.find(str(tmp_path)) == {
    'train': f'{tmp_path}/Train.txt',
    'val': f'{tmp_path}/valid.TXT',
  }
  voc = tmp_path / 'ImageSets/Segmentation'
  voc.mkdir(parents=True)
  (voc / 'train.txt').touch()
  assert lists.find(str(tmp_path))['train'] == f'{tmp_path}/Train.txt'
  (tmp_path / 'val.txt').touch()
  assert 'are lists of one split; remove one' in message_of(
    lists.find, str(tmp_path)
  )
