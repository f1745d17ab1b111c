"""Classes and their probabilities of an image's logits, on the host.

Logits of one channel are a sigmoid's: they have two classes, the background
first.
"""

import numpy as np

from unet_jax import row_bands


def predict(logits: np.ndarray) -> np.ndarray:
  """Returns the class of each pixel: float [H, W, K] to uint8 [H, W]."""
  if logits.shape[-1] == 1:
    return (logits[..., 0] > 0).astype(np.uint8)
  result = np.empty(logits.shape[:2], np.uint8)
  for rows in row_bands.row_bands(logits.shape):
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
