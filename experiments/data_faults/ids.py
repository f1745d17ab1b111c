"""How often classes are taken for numbers of objects, and objects for classes.

  python -m experiments.data_faults.ids [--sets=100]

Draws sets of masks of some kinds, and prints for how many of each
`samples.are_objects` says that their values number objects.
"""

import argparse
import collections
from collections.abc import Callable, Iterator

import numpy as np

from unet_jax.inspection import samples, scan

_SIDE, _CELLS = 128, 8
# Sets of masks that show these ids, each of so many parts.
Ids = Iterator[list[int]]


def _draw(ids: list[int], parts: int, rng: np.random.Generator) -> np.ndarray:
  """A mask of discs; some touch, and few of one number lie apart."""
  mask = np.zeros((_SIDE, _SIDE), np.uint16)
  y, x = np.mgrid[:_SIDE, :_SIDE]
  cell = _SIDE // _CELLS
  places = rng.permutation(_CELLS**2)[: len(ids) * parts]
  for k, place in enumerate(places.tolist()):
    cy, cx = (cell * (n + rng.uniform(0.3, 0.7)) for n in divmod(place, _CELLS))
    disc = np.hypot(y - cy, x - cx) < rng.uniform(3, 0.6 * cell)
    mask[disc] = ids[k % len(ids)]
  return mask


def _numbered(rng: np.random.Generator) -> Ids:
  """Objects, counted from 1 in each image."""
  mean = rng.uniform(4, 25)
  for _ in range(rng.integers(6, 60)):
    yield list(range(1, 1 + min(rng.poisson(mean), 40)))


def _through(rng: np.random.Generator) -> Ids:
  """Objects, counted through the set, of which images show several."""
  last, mean = 0, rng.uniform(2, 8)
  for _ in range(rng.integers(5, 25)):
    count = 1 + rng.poisson(mean)
    yield list(range(last + 1, last + 1 + count))
    last += count


def _one_each(rng: np.random.Generator) -> Ids:
  """One object in each image, with a number of its own."""
  for i in range(rng.integers(10, 60)):
    yield [i + 1]


def _followed(rng: np.random.Generator) -> Ids:
  """Objects in slices or frames, each in some that follow one another."""
  frames, count = rng.integers(40, 100), rng.integers(30, 90)
  starts = rng.integers(0, frames, count)
  ends = starts + rng.integers(2, 7, count)
  for t in range(frames):
    yield (1 + np.flatnonzero((starts <= t) & (t < ends))).tolist()


def _organs(rng: np.random.Generator) -> Ids:
  """Classes of one part, of which each image shows most."""
  count, share = rng.integers(8, 30), rng.uniform(0.5, 1)
  for _ in range(rng.integers(5, 60)):
    yield (1 + np.flatnonzero(rng.random(count) < share)).tolist()


def _slices(rng: np.random.Generator) -> Ids:
  """Classes of one part, of which each image shows a fifth to a half."""
  count, share = rng.integers(20, 50), rng.uniform(0.2, 0.5)
  for _ in range(rng.integers(30, 80)):
    yield (1 + np.flatnonzero(rng.random(count) < share)).tolist()


def _scenes(rng: np.random.Generator) -> Ids:
  """Classes of several parts, of which images show some."""
  count = rng.integers(10, 100)
  for _ in range(rng.integers(20, 60)):
    yield (1 + rng.permutation(count)[: rng.integers(2, 9)]).tolist()


def _breeds(rng: np.random.Generator) -> Ids:
  """Classes of which each image shows one object, of four or more images."""
  count = rng.integers(8, 37)
  for i in range(int(count * rng.uniform(4, 12))):
    yield [i % count + 1]


# Each with the parts that a value has in a mask.
_OBJECTS: dict[Callable[[np.random.Generator], Ids], int] = dict.fromkeys(
  (_numbered, _through, _one_each, _followed), 1
)
_CLASSES = {_organs: 1, _slices: 1, _scenes: 3, _breeds: 1}


def _are_objects(masks: list[np.ndarray]) -> bool:
  pixels, in_masks = collections.Counter[int](), collections.Counter[int]()
  for mask in masks:
    values = scan.count_values(mask)
    pixels.update(values)
    in_masks.update(values.keys())
  chosen = np.linspace(0, len(masks) - 1, 24, dtype=int)
  sampled = [masks[i] for i in np.unique(chosen)]
  return samples.are_objects(pixels, in_masks, sampled)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--sets', type=int, default=100)
  args = parser.parse_args()
  for kinds in (_OBJECTS, _CLASSES):
    for make, parts in kinds.items():
      found = 0
      for seed in range(args.sets):
        rng = np.random.default_rng(seed)
        masks = [_draw(ids, parts, rng) for ids in make(rng) if ids]
        found += _are_objects(masks)
      print(f'{make.__name__[1:]}: {found} of {args.sets} are objects')


if __name__ == '__main__':
  main()
