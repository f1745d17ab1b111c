"""Receptive fields."""

from unet_jax.config import output_size


def receptive_field(model: output_size.Structure) -> int:
  """Returns how many pixels of the image, along an axis, reach a logit.

  It is counted back from the logit through the longest path, exactly: which
  pixels are seen depends on where a logit lies in the grid of the coarsest
  stage, and the largest number is returned. Away from the image's borders, and
  without what sees the whole image at once: `squeeze_excite`, and the norms of
  an image's own statistics.
  """
  halvings = model.depth + (model.stem == 'space_to_depth')
  pixels = 0
  for position in range(2**halvings):
    low, high = _seen(model, position)
    pixels = max(pixels, high - low + 1)
  return pixels


def _seen(model: output_size.Structure, position: int) -> tuple[int, int]:
  """First and last pixel, along an axis, that the logit at `position` sees."""
  block = model.convs * (model.kernel_size - 1) // 2
  # An even kernel, with `same` padding, reaches one pixel further to the right.
  kernel = max(model.upsample_kernel, 1)
  left, right = (kernel - 1) // 2, kernel // 2
  has_stem = model.stem == 'space_to_depth'
  low = high = position
  if has_stem:
    low, high = low // 2, high // 2
  for i in range(model.depth):
    low, high = low - block, high + block
    # Interpolating reads the two nearest pixels.
    wide = ((low - 1) // 2, (high + 1) // 2)
    if model.upsample != 'transpose':
      low, high = low - left, high + right
    if model.upsample.startswith('bilinear'):
      low, high = (low - 1) // 2, (high + 1) // 2
    else:
      low, high = low // 2, high // 2
    if model.skip == 'attention' and i > 0:
      low, high = min(low, wide[0]), max(high, wide[1])
  low, high = low - block, high + block
  for _ in range(model.depth):
    low, high = 2 * low - block, 2 * high + 1 + block
  return (2 * low, 2 * high + 1) if has_stem else (low, high)
