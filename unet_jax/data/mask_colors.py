"""Colours of masks as numbers, which are quicker to compare and to sort."""

import numpy as np

from unet_jax.config import mask_table
from unet_jax.data import smoothed


def to_numbers(colors: np.ndarray) -> np.ndarray:
  """Returns a number for each colour: integers [..., 3] to int64 [...]."""
  return colors.astype(np.int64) @ np.array([1 << 32, 1 << 16, 1])


def of_number(number: int) -> tuple[int, int, int]:
  """The inverse of `to_numbers`, of colours of 0..65535."""
  if number < 0:
    return (mask_table.TRANSPARENT_VALUE,) * 3
  return number >> 32, number >> 16 & 0xFFFF, number & 0xFFFF


def of_areas(numbers: np.ndarray) -> list[int]:
  """As `smoothed.drawn_values`, of colours: among the 255 most frequent."""
  found, inverse, counts = np.unique(
    numbers, return_inverse=True, return_counts=True
  )
  order = np.argsort(-counts, kind='stable')
  ranks = np.empty(len(order), np.intp)
  ranks[order] = np.arange(len(order))
  ranks = np.minimum(ranks, 255).astype(np.uint8)
  drawn = smoothed.drawn_values(ranks[inverse].reshape(numbers.shape))
  return sorted(found[order[[rank for rank in drawn if rank < 255]]].tolist())
