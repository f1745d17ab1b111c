"""Alpha of images and masks: which pixels it leaves out, by data.alpha.

Of masks, transparent pixels may also have a class of their own, by the entry
`transparent` of data.mask_values. What their files store there is arbitrary:
programs leave black, white or what was erased.
"""

import ml_collections
import numpy as np

from unet_jax.config import mask_table
from unet_jax.data import stored
from unet_jax.runtime import errors

# Values of a mask that are listed in a message.
_LISTED = 6


def not_opaque(alpha: np.ndarray) -> np.ndarray:
  """Returns which pixels are not opaque: bool [H, W]."""
  opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in 'iu' else 1
  return alpha != opaque


def ignored(
  found: stored.Stored,
  name: str,
  data: ml_collections.ConfigDict,
  channels: int,
) -> np.ndarray | None:
  """Returns which pixels alpha leaves out: bool [H, W], or None.

  Args:
    found: an image, or a mask of which transparent pixels have no class.
    channels: of an image without alpha; 0 of a mask.

  Raises:
    UserError: data.alpha says nothing, and not all pixels are opaque.
  """
  if found.alpha is None or data.alpha == 'drop':
    return None
  if data.alpha == 'nodata':
    left_out = found.alpha == 0
    return left_out if left_out.any() else None
  count = int(np.count_nonzero(not_opaque(found.alpha)))
  if not count:
    return None
  if not channels:
    raise _mask_error(found, name, count, data)
  raise error(name, count, found.alpha.shape, channels)


def error(
  name: str, count: int, size: tuple[int, int], channels: int
) -> errors.UserError:
  """Returns the error for an image that is not opaque everywhere.

  Args:
    name: of the file.
    count: pixels that are not opaque.
    size: height and width.
    channels: without alpha.
  """
  return errors.UserError(
    f'{_start(name, count, size)}; leave it out with --config.data.alpha=drop, '
    'or ignore fully transparent pixels with --config.data.alpha=nodata; as a '
    f'channel it is number {channels + 1} of --config.data.bands'
  )


def _start(name: str, count: int, size: tuple[int, int]) -> str:
  total = size[0] * size[1]
  return f'{name} has alpha that is not opaque in {count} of {total} pixels'


def mark(found: stored.Stored) -> np.ndarray:
  """Returns a mask's values with TRANSPARENT_VALUE where it is transparent.

  That is where alpha is at most half of its highest value in the file: edges
  that were smoothed are cut in their middle, and masks that were drawn as a
  translucent layer stay.

  Args:
    found: its values may be colours.
  """
  assert found.alpha is not None
  where = _is_transparent(found.alpha)
  if not where.any():
    return found.pixels
  # Of floats, those that are no integers are refused later.
  is_float = found.pixels.dtype.kind == 'f'
  values = found.pixels.astype(np.float64 if is_float else np.int64)
  values[where] = mask_table.TRANSPARENT_VALUE
  return values


def _is_transparent(alpha: np.ndarray) -> np.ndarray:
  return 2.0 * alpha <= alpha.max()


def _mask_error(
  found: stored.Stored,
  name: str,
  count: int,
  data: ml_collections.ConfigDict,
) -> errors.UserError:
  """Returns the error for a mask that is not opaque everywhere."""
  assert found.alpha is not None
  start = _start(name, count, found.alpha.shape)
  clear = _is_transparent(found.alpha)
  rows = found.pixels.reshape(clear.size, -1)
  is_flat = bool(np.all(rows == rows[0]))
  # Of an empty mask all pixels are transparent, and then nothing is drawn.
  if not clear.any() or clear.all() and not is_flat:
    return errors.UserError(
      f'{start}, and it tells no pixels apart; take the values that are stored '
      'with --config.data.alpha=drop'
    )
  entries = data.mask_values or _numbered(rows[~clear.ravel()])
  table = mask_table.text_of(((mask_table.TRANSPARENT, 0), *entries))
  return errors.UserError(
    f'{start}; what is stored where it is transparent is arbitrary: if that is '
    f'the background, give it its class with --config.data.mask_values={table} '
    '(255 in place of 0 ignores it)'
  )


def _numbered(rows: np.ndarray) -> list[tuple]:
  """Returns entries for the most frequent values of opaque pixels [N, C].

  Black beside other values is most likely background, too.
  """
  found, counts = np.unique(rows, axis=0, return_counts=True)
  order = np.argsort(-counts, kind='stable')[:_LISTED]
  top = sorted(found[order].tolist())
  first = 0 if len(top) > 1 and not any(top[0]) else 1
  is_grey = all(len(set(value)) == 1 for value in top)
  return [
    (value[0] if is_grey else tuple(value), i)
    for i, value in enumerate(top, first)
  ]
