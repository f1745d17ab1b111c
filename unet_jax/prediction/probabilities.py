"""Classes and their probabilities from logits.

Logits of one channel are a sigmoid's: they have two classes, the background
first.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np


def predict(logits: Any) -> Any:
  """Returns the class of each pixel: float [..., K] to uint8 [...].

  Of equal logits the first class wins; of one channel it is class 1 where the
  logit is above 0. The array is one of NumPy or, in a step, of JAX.
  """
  if logits.shape[-1] == 1:
    return (logits[..., 0] > 0).astype(np.uint8)
  return logits.argmax(-1).astype(np.uint8)


def by_class(logits: np.ndarray) -> np.ndarray:
  """Returns float32 [classes, ...] of float [..., K], on the host.

  NumPy is ten times as fast over planes as over the last axis.
  """
  planes = np.moveaxis(logits, -1, 0).astype(np.float32, 'C')
  if len(planes) == 1:  # Softmax of (0, x) is (1 - sigmoid, sigmoid) of x.
    planes = np.concatenate([np.zeros_like(planes), planes])
  return planes


def softmax(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns probabilities that add up to 1, and the log of the sum of exp.

  Planes and probabilities are float32 [classes, ...], see `by_class`; the log
  is float32 [...].
  """
  highest = planes.max(0)
  result = planes - highest
  np.exp(result, out=result)
  total = result.sum(0)
  result /= total
  return result, np.log(total) + highest


def planes(logits: np.ndarray) -> np.ndarray:
  """Returns the probabilities of logits [H, W, K]: float32 [classes, H, W]."""
  return softmax(by_class(logits))[0]


# Pixels of a slice: a few megabytes of float32 for some tens of classes, which
# fit into a processor's cache.
_PIXELS = 2**16


def row_bands(
  shape: tuple[int, ...], pixels: int | None = None
) -> Iterator[slice]:
  """Yields slices of rows that together cover an array [H, W, ...] once.

  A slice of more than one row has at most so many pixels; None is the default.
  """
  height, width = shape[:2]
  rows = max((pixels or _PIXELS) // width, 1)
  for start in range(0, height, rows):
    yield slice(start, min(start + rows, height))
