"""Faults of masks, injected into all pairs of a set, or into single ones."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from experiments.data_faults.kinds import Pair
from unet_jax.data import resize

# From the masks of all pairs, and an index among them, to a faulty mask.
Fault = Callable[[Sequence[np.ndarray], int], np.ndarray]

# Shares of the side that masks are moved by.
MOVES = (0.01, 0.02, 0.04, 0.08)


def _move(mask: np.ndarray, share: float, angle: float) -> np.ndarray:
  """Moves a mask; its outermost pixels fill the gap."""
  rows, columns = (
    np.clip(np.arange(n) - round(share * n * by), 0, n - 1)
    for n, by in zip(mask.shape, (math.sin(angle), math.cos(angle)))
  )
  return mask[rows[:, None], columns]


def _of_other_aspect(mask: np.ndarray) -> np.ndarray:
  """What is left of a mask that was cut to a square of another picture.

  Its middle three quarters, from side to side, are stretched to the whole.
  """
  cut = mask.shape[1] // 8
  return mask[:, cut : mask.shape[1] - cut]


def make(size: int, rng: np.random.Generator) -> dict[str, Fault]:
  """Returns {name: fault} for a set of `size` pairs; 'none' comes first."""
  angle, order = rng.uniform(0, 2 * math.pi), rng.permutation(size)
  some = np.arange(size) % 4 == 1

  def move(share: float) -> Fault:
    return lambda masks, i: _move(masks[i], share, angle)

  return {
    'none': lambda masks, i: masks[i],
    'flipped left to right': lambda masks, i: masks[i][:, ::-1],
    'flipped upside down': lambda masks, i: masks[i][::-1],
    'turned by 180 degrees': lambda masks, i: masks[i][::-1, ::-1],
    'turned by 90 degrees': lambda masks, i: np.rot90(masks[i]),
    'transposed': lambda masks, i: masks[i].T,
    **{f'moved by {share:.0%}': move(share) for share in MOVES},
    'shuffled': lambda masks, i: masks[order[i]],
    'the next in the list': lambda masks, i: masks[(i + 1) % size],
    'cut and stretched': lambda masks, i: _of_other_aspect(masks[i]),
    'every second flipped': lambda masks, i: masks[i][:, :: 1 - i % 2 * 2],
    'every fourth flipped': lambda masks, i: masks[i][:, :: 1 - 2 * some[i]],
  }


def inject(pairs: Sequence[Pair], fault: Fault) -> list[Pair]:
  """Returns pairs with the fault in the mask of each."""
  masks = [mask for _, mask in pairs]
  faulty = []
  for i, (image, _) in enumerate(pairs):
    mask = resize.resize_labels(fault(masks, i), image.shape[:2], 'stretch', 0)
    faulty.append((image, np.ascontiguousarray(mask)))
  return faulty
