"""Folders of small images and masks, for the tests of what reads them."""

import io

import numpy as np
from PIL import Image

from unet_jax.config import default


def encode_image(image, kind='PNG', **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def encode(array, kind='PNG', **options):
  return encode_image(Image.fromarray(array), kind, **options)


def write_pairs(root, pairs):
  """Writes {stem: (image array or bytes, mask array or bytes)} as PNGs."""
  for folder in ('images', 'masks'):
    (root / folder).mkdir(parents=True, exist_ok=True)
  for stem, pair in pairs.items():
    for folder, content in zip(('images', 'masks'), pair):
      if not isinstance(content, bytes):
        content = encode(content)
      (root / folder / f'{stem}.png').write_bytes(content)


def make_config(root, **data):
  config = default.get_config()
  usual = {'image_size': (32, 32), 'num_classes': 2}
  config.data.update(source='folder', dir=str(root), **{**usual, **data})
  config.cpu.kernels = 'xla'  # To compile native ones takes seconds.
  return config


def make_pair(seed=0, size=(40, 48)):
  """A bright rectangle on noise and blotches, and its mask."""
  rng = np.random.default_rng(seed)
  mask = np.zeros(size, np.uint8)
  top, left = rng.integers(3, 12, 2)
  mask[top : top + 17, left : left + 21] = 1
  coarse = Image.fromarray(rng.integers(0, 90, (5, 6), np.uint8))
  blotches = np.asarray(coarse.resize(size[::-1], Image.Resampling.BILINEAR))
  noise = rng.integers(0, 20, (*size, 3)) + blotches[..., None]
  return (noise + 140 * mask[..., None]).astype(np.uint8), mask


def make_pairs(count, start=0):
  """{stem: (image, mask)}, each from a seed of its own."""
  return {f'{i:02}': make_pair(start + i) for i in range(count)}
