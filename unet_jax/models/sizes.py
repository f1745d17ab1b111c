"""Receptive fields."""

from unet_jax.config.output_size import Structure


def receptive_field(model: Structure) -> int:
  """Returns how many pixels of the image, along an axis, reach a logit.

  Counted back exactly from the logit through the longest path. Which pixels
  reach a logit depends on its place in the grid of the coarsest stage; this is
  the largest number. It holds away from the image's borders, and ignores layers
  that read the whole image at once: `squeeze_excite`, and the norms with an
  image's own statistics.
  """
  halvings = model.depth + (model.stem == 'space_to_depth')
  ranges = (_pixels_read(model, position) for position in range(2**halvings))
  return max(high - low + 1 for low, high in ranges)


def _pixels_read(model: Structure, position: int) -> tuple[int, int]:
  """First and last pixel, along an axis, that the logit at `position` reads."""
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
    interpolated = ((low - 1) // 2, (high + 1) // 2)
    if model.upsample != 'transpose':
      low, high = low - left, high + right
    if model.upsample.startswith('bilinear'):
      low, high = (low - 1) // 2, (high + 1) // 2
    else:
      low, high = low // 2, high // 2
    if model.skip == 'attention' and i > 0:
      low, high = min(low, interpolated[0]), max(high, interpolated[1])
  low, high = low - block, high + block
  for _ in range(model.depth):
    low, high = 2 * low - block, 2 * high + 1 + block
  return (2 * low, 2 * high + 1) if has_stem else (low, high)
