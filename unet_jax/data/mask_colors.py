"""Colours of masks as numbers, which are quicker to compare and to sort."""

import numpy as np

from unet_jax.config import mask_table


def to_numbers(colors: np.ndarray) -> np.ndarray:
  """Returns a number for each colour: integers [..., 3] to int64 [...]."""
  return colors.astype(np.int64) @ np.array([1 << 32, 1 << 16, 1])


def of_number(number: int) -> tuple[int, int, int]:
  """The inverse of `to_numbers`, of colours of 0..65535."""
  if number < 0:
    return (mask_table.TRANSPARENT_VALUE,) * 3
  return number >> 32, number >> 16 & 0xFFFF, number & 0xFFFF
