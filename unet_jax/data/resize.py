"""Image and mask to one size."""

import functools
import itertools
from collections.abc import Sequence

import cv2
import numpy as np

from unet_jax.config import fields


def scaled_size(
  size: Sequence[int], target: Sequence[int], resize: str
) -> tuple[int, ...]:
  """Returns height and width after scaling, before padding or cropping."""
  if resize == 'stretch':
    return tuple(target)
  pick = min if resize == 'pad' else max
  ratio = pick(t / s for s, t in zip(size, target))
  return tuple(pick(max(round(s * ratio), 1), t) for s, t in zip(size, target))


def _fit(array: np.ndarray, target: Sequence[int], fill: int) -> np.ndarray:
  """Pads with `fill` or crops [H, W, ...] at the centre to `target`."""
  for axis, t in enumerate(target):
    n = array.shape[axis]
    if n > t:
      start = (n - t) // 2
      array = np.take(array, range(start, start + t), axis)
    elif n < t:
      widths = [(0, 0)] * array.ndim
      widths[axis] = ((t - n) // 2, t - n - (t - n) // 2)
      array = np.pad(array, widths, constant_values=fill)
  return array


def resize_pair(
  image: np.ndarray, mask: np.ndarray, target: Sequence[int], resize: str
) -> tuple[np.ndarray, np.ndarray]:
  """Brings an image and its mask to one size, pixel on pixel.

  Images are averaged over areas where they shrink and interpolated linearly
  where they grow; masks take the value at the centre of each new pixel, see
  `resize_labels`. Both align the corners of the picture, so that neither moves
  against the other.

  Args:
    image: uint8 [H, W, C].
    mask: uint8 [H, W].
    target: height and width.
    resize: `stretch`, `pad` (with 0, and 255 in the mask), `crop`, or `patch`,
      which changes nothing.

  Returns:
    uint8 [*target, C] and uint8 [*target].
  """
  mask = resize_labels(mask, target, resize, fields.IGNORE_LABEL)
  return resize_image(image, target, resize), mask


def resize_image(
  image: np.ndarray, target: Sequence[int], resize: str
) -> np.ndarray:
  """As `resize_pair`, of the image alone."""
  if resize == 'patch':
    return image
  image = _resize_image(image, scaled_size(image.shape, target, resize))
  return _fit(image, target, 0)


def _resize_image(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
  """Resizes uint8 [H, W, C], see `resize_pair`."""
  if size == image.shape[:-1]:
    return image
  # First shrink, then grow: INTER_AREA averages only where no side grows.
  small = tuple(min(n, t) for n, t in zip(image.shape, size))
  image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
  image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
  return image.reshape(*size, -1)  # OpenCV drops a single channel.


def scale_image(
  image: np.ndarray, target: Sequence[int], resize: str
) -> tuple[np.ndarray, tuple[slice, slice]]:
  """Resizes a whole image as `resize_pair` does, but `crop` cuts nothing off.

  Returns:
    uint8 [H', W', C], and the rows and columns of it that show the image.
  """
  size = scaled_size(image.shape, target, resize)
  image = _resize_image(image, size)
  if resize == 'pad':
    image = _fit(image, target, 0)
  starts = [(n - s) // 2 for n, s in zip(image.shape, size)]
  rows, columns = (slice(a, a + s) for a, s in zip(starts, size))
  return image, (rows, columns)


def resize_labels(
  labels: np.ndarray, target: Sequence[int], resize: str, fill: int
) -> np.ndarray:
  """Resizes integers [H, W] as `resize_pair` does masks, padded by `fill`.

  A new pixel takes the old one at its centre. Every label then keeps its share
  of the area on average, which the label of the largest area would not: at a
  quarter of the size, that drops all that is thinner than two pixels.

  A centre on the border of two old pixels (at even factors, all of them) takes
  either, by a pattern that changes along both axes: always the same one would
  move the labels by half an old pixel, and one for a whole row its straight
  borders.
  """
  if resize == 'patch':
    return labels
  old, size = labels.shape, scaled_size(labels.shape, target, resize)
  if size != old:
    (rows, row_ties), (columns, column_ties) = map(_centres, old, size)
    if not (row_ties.any() or column_ties.any()):
      return _fit(labels[rows][:, columns], target, fill)
    i, j = map(np.arange, size)
    new = np.empty(size, labels.dtype)
    # All four neighbours of a corner are taken equally often.
    for a, b in itertools.product((0, 1), (0, 1)):
      up = row_ties[a::2] & (b + i[a::2] // 2)
      left = column_ties[b::2] & (a + j[b::2] // 2)
      # Whole rows first: five times as fast as one index for both.
      chosen = labels[rows[a::2] - up]
      new[a::2, b::2] = chosen[:, columns[b::2] - left]
    labels = new
  return _fit(labels, target, fill)


@functools.lru_cache(maxsize=256)
def _centres(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the old pixel at the centre of each new one along an axis.

  Returns:
    int [new], and 1 where the centre lies on the border to the pixel before,
    else 0.
  """
  # Exact, where OpenCV's fixed-point numbers miss half of the borders.
  places, rest = np.divmod((2 * np.arange(new) + 1) * old, 2 * new)
  return places, (rest == 0).astype(places.dtype)
