"""Classes and their probabilities of an image's logits, on the host.

Logits of one channel are a sigmoid's: they have two classes, the background
first.
"""

from collections.abc import Iterator

import numpy as np


def predict(logits: np.ndarray) -> np.ndarray:
  """Returns the class of each pixel: float [H, W, K] to uint8 [H, W]."""
  if logits.shape[-1] == 1:
    return (logits[..., 0] > 0).astype(np.uint8)
  result = np.empty(logits.shape[:2], np.uint8)
  for rows in row_bands(logits.shape):
    result[rows] = logits[rows].argmax(-1)
  return result


def planes(logits: np.ndarray) -> np.ndarray:
  """Returns probabilities that add up to 1: float32 [classes, H, W].

  NumPy is ten times as fast over planes as over the last axis.

  Args:
    logits: float [H, W, K].
  """
  result = np.moveaxis(logits, -1, 0).astype(np.float32, 'C')
  if len(result) == 1:  # Softmax of (0, x) is (1 - sigmoid, sigmoid) of x.
    result = np.concatenate([np.zeros_like(result), result])
  result -= result.max(0)
  np.exp(result, out=result)
  result /= result.sum(0)
  return result


# Pixels of a part: a few megabytes of float32 for some tens of classes, which
# is also what a processor's cache takes.
_PIXELS = 2**16


def row_bands(shape: tuple[int, ...]) -> Iterator[slice]:
  """Yields slices of rows that together cover an array [H, W, ...] once."""
  height, width = shape[:2]
  rows = max(_PIXELS // width, 1)
  for start in range(0, height, rows):
    yield slice(start, min(start + rows, height))
