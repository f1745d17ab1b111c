"""Drawn images and volumes: a pure function of a seed.

Disks, rings and bars (balls, shells and rods in volumes) of random size, angle,
colour and texture overlap on a textured background under uneven light, with
noise. Nothing but the outline tells the class.

Numbers are Python's and arrays float32: float64 takes 1.4 times the time.
"""

import functools
import hashlib
import itertools
import math
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import examples
from unet_jax.runtime import errors

CLASSES = ('background', 'disk', 'ring', 'bar')
NUM_CLASSES = len(CLASSES)
# Half the width of the rim that the mask ignores around an outline, in pixels,
# by the number of axes; a pixel there belongs to two classes. Volumes: only
# where colours are mixed. A wider rim left less than half of a rod.
_RIMS = {2: 1.0, 3: 0.5}
# Least and greatest radius, as shares of the shortest edge, by the number of
# axes. Volumes have few voxels a side, and shells must be thicker than rims.
_RADII = {2: (0.17, 0.25), 3: (0.3, 0.4)}
# Least distance between two colours of a picture, of 441 from black to white.
_CONTRAST = 80


def _color(rng: np.random.Generator, taken: list[list[float]]) -> list[float]:
  """Draws a colour, 0..255, unlike those that the picture has, and adds it."""
  while True:
    color = rng.uniform(40, 215, 3).tolist()
    if all(math.dist(color, other) > _CONTRAST for other in taken):
      taken.append(color)
      return color


def _direction(
  rng: np.random.Generator, dims: int, turn: float
) -> tuple[float, ...]:
  """A random unit vector; in a plane, that of an angle below `turn`."""
  if dims == 2:
    angle = rng.uniform(0, turn)
    return math.sin(angle), math.cos(angle)
  vector = rng.normal(size=dims).tolist()
  return tuple(x / math.hypot(*vector) for x in vector)


def _texture(
  rng: np.random.Generator, color: Sequence[float], grid: np.ndarray
) -> np.ndarray:
  """A colour with a random plane wave on it: float32 [3, H, W]."""
  direction, period = _direction(rng, len(grid), math.pi), rng.uniform(3, 12)
  phase = sum(x * d for x, d in zip(grid, direction)) + rng.uniform(0, period)
  wave = np.sin(2 * math.pi / period * phase)
  # Channels first: NumPy is slow where the last axis is short.
  strength = rng.uniform(-25, 25, 3).tolist()
  return np.stack([c + wave * s for c, s in zip(color, strength)])


def _signed_distance(
  kind: int,
  offsets: Sequence[np.ndarray],
  radius: float,
  direction: Sequence[float],
) -> np.ndarray:
  """Distance of each pixel to a shape's outline in pixels, negative inside.

  Args:
    kind: an index into CLASSES, 1 or more.
    offsets: pixels below and right of the centre: two of [H, W], or three of
      [D, H, W].
    radius: of the disk and the ring's outer edge; the bar is 2.8 radius long.
    direction: unit vector along the bar.
  """
  length = lambda parts: np.abs(functools.reduce(np.hypot, parts))
  if kind == 1:
    return length(offsets) - radius
  if kind == 2:
    return np.abs(length(offsets) - 0.75 * radius) - 0.25 * radius
  pairs = list(zip(offsets, direction))
  along = np.abs(sum(x * d for x, d in pairs)) - 1.4 * radius
  # The cross product with the direction, which in a plane is one number.
  cross = [x * e - y * d for (x, d), (y, e) in itertools.combinations(pairs, 2)]
  return np.maximum(along, length(cross) - 0.35 * radius)


def _reach(radius: float) -> float:
  """How far from its centre a shape and its rim are: a bar's corners."""
  return 1.45 * radius + 1.5


def draw(
  seed: tuple[int, ...], size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """Draws one example.

  Args:
    seed: any integers; equal seeds give equal examples.
    size: height and width in pixels; depth, height and width of a volume.

  Returns:
    image: uint8 [H, W, 3] or [D, H, W, 3].
    mask: uint8 [H, W] or [D, H, W], an index into CLASSES, 255 on the rims of
      outlines.
  """
  rng = np.random.default_rng(seed)
  dims = len(size)
  grid = np.indices(size).astype(np.float32)
  colors: list[list[float]] = []
  image = _texture(rng, _color(rng, colors), grid)
  mask = np.zeros(size, np.uint8)
  scale = min(size)
  for _ in range(rng.integers(2, 4)):
    kind = int(rng.integers(1, NUM_CLASSES))
    center = (rng.uniform(0.15, 0.85, dims) * size).tolist()
    radius = rng.uniform(*_RADII[dims]) * scale
    direction = _direction(rng, dims, 2 * math.pi)
    # Only the pixels that the shape may change.
    reach = _reach(radius)
    near = tuple(
      slice(max(0, int(c - reach)), int(c + reach) + 1) for c in center
    )
    here = grid[:, *near]
    offsets = [x - c for x, c in zip(here, center)]
    distance = _signed_distance(kind, offsets, radius, direction)
    alpha = np.clip(0.5 - distance, 0, 1)
    below = image[:, *near]
    below += alpha * (_texture(rng, _color(rng, colors), here) - below)
    mask[near][distance < 0] = kind
    mask[near][np.abs(distance) < _RIMS[dims]] = fields.IGNORE_LABEL
  # Light that falls off to one side.
  slopes = rng.uniform(-0.35, 0.35, dims).tolist()
  image *= 1 + sum(s * (x / n - 0.5) for s, x, n in zip(slopes, grid, size))
  image += 8 * rng.standard_normal(image.shape, np.float32)
  image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
  return np.ascontiguousarray(np.moveaxis(image, 0, -1)), mask


class ShapesSource:
  """Drawn images; the example is a function of seed, split and index."""

  held_out = False
  groups = None

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    split: str,
    problems: list[examples.Problem] | None = None,
  ):
    del problems  # There are no files.
    if split == 'auto':
      split = 'test'
    if split not in ('train', 'test'):
      raise errors.UserError(
        f'the shapes source has no split {split!r}; it has train, test'
      )
    data = config.data
    self.split = split
    self._length = data.num_train if split == 'train' else data.num_eval
    # The two splits count up from different ends of the seeds.
    self._seed = (config.seed, ('train', 'test').index(split))
    self._size = tuple(data.image_size)
    code = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()
    self.fingerprint = [
      'shapes',
      self._seed,
      self._length,
      self._size,
      code,
      np.__version__,
    ]

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> examples.Example:
    image, mask = draw((*self._seed, index), self._size)
    name = f'{self.split} shape {index}'
    return {'image': image, 'mask': mask, 'name': name, 'mask_name': name}

  read = __getitem__
