"""Folders whose images hold a number each, and masks 100 more."""

import numpy as np
from PIL import Image

from tests.data import helpers
from tests.refusals import message_of
from unet_jax.data import sources


def write(path, value, mode='L'):
  """An image of 3 x 2 pixels of one value, which identifies the file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, (3, 2), value).save(path)


def write_pairs(root, stems, start=0):
  """Pairs whose images hold start, start + 1, ..."""
  for i, stem in enumerate(stems, start):
    write(root / 'images' / f'{stem}.png', i)
    write(root / 'masks' / f'{stem}.png', 100 + i)


def make(root, split, problems=None, **fields):
  config = helpers.make_config(
    **{'source': 'folder', 'dir': str(root), 'num_classes': 2, **fields}
  )
  return sources.make_source(config, split, problems)


def values(source):
  """The values of the images, each checked against its mask."""
  found = []
  for i in range(len(source)):
    example = source[i]
    assert example['image'].shape == (2, 3, 3)
    assert example['mask'].shape == (2, 3)
    value = int(example['image'][0, 0, 0])
    assert np.all(example['mask'] == 100 + value)
    found.append(value)
  return found


def error(root, split='train', **fields):
  return message_of(make, root, split, **fields)
