"""Logits of a scaled image at the image's own size."""

from collections.abc import Iterator

import cv2
import numpy as np

# Logits of a band that is enlarged at once, in bytes.
_BAND = 16 * 2**20


def resize_logits(
  logits: np.ndarray, size: tuple[int, int]
) -> Iterator[np.ndarray]:
  """Yields logits at another size, in bands of rows from top to bottom.

  As images are resized (see `resize.resize_pair`): averaged over areas along
  sides that shrink, interpolated linearly along sides that grow, the corners of
  the picture aligned.

  Args:
    logits: float32 [H, W, K].
    size: height and width.
  """
  k = logits.shape[-1]
  small = tuple(map(min, logits.shape, size))
  logits = _resize(logits, small, cv2.INTER_AREA)
  height, width = size
  rows = max(_BAND // (4 * width * k), 1)
  at = np.clip((np.arange(height) + 0.5) * small[0] / height - 0.5, 0, None)
  above = np.minimum(at.astype(np.int64), small[0] - 1)
  below = np.minimum(above + 1, small[0] - 1)
  share = (at - above).astype(np.float32)[:, None, None]
  for start in range(0, height, rows):
    part = slice(start, start + rows)
    if small[0] == height:
      band = logits[part]
    else:
      first, weight = logits[above[part]], share[part]
      band = first + weight * (logits[below[part]] - first)
    yield _resize(band, (len(band), width), cv2.INTER_LINEAR)


def _resize(
  logits: np.ndarray, size: tuple[int, int], interpolation: int
) -> np.ndarray:
  """Resizes float32 [H, W, K]; OpenCV takes 4 channels at once, not more."""
  if logits.shape[:2] == tuple(size):
    return logits
  parts = [
    cv2.resize(
      np.ascontiguousarray(logits[..., i : i + 4]),
      size[::-1],
      interpolation=interpolation,
    ).reshape(*size, -1)  # It drops a single channel.
    for i in range(0, logits.shape[-1], 4)
  ]
  return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
