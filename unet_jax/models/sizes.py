"""Sizes of outputs, and the receptive field."""

from typing import Protocol


class Structure(Protocol):
  """The fields of a network, or of the config's section `model`, read here."""

  convs: int
  kernel_size: int
  depth: int
  stem: str
  upsample: str
  upsample_kernel: int
  skip: str


def lost_by_upsampling(kind: str, kernel_size: int) -> int:
  """Returns the pixels that `Upsample` loses along an axis, without padding.

  Args:
    kind: of the upsampling, not `bilinear_corners`: where its pixels lie
      depends on the size of the image.
    kernel_size: of the convolution behind it, odd, or 0 for none.
  """
  if kind == 'transpose':
    return 0
  return 2 * (kind == 'bilinear') + max(kernel_size - 1, 0)


def valid_output(size: int, model: Structure) -> int | None:
  """Output pixels of a `valid` network, or None where `size` does not fit."""
  lost = model.convs * (model.kernel_size - 1)
  lost_up = lost_by_upsampling(model.upsample, model.upsample_kernel)
  has_stem = model.stem == 'space_to_depth'
  if has_stem:
    if size % 2:
      return None
    size //= 2
  for _ in range(model.depth):
    size -= lost
    if size <= 0 or size % 2:
      return None
    size //= 2
  size -= lost
  for i in reversed(range(model.depth)):
    # The coefficients of a gate are interpolated too.
    is_gated = model.skip == 'attention' and i > 0
    size = 2 * size - max(lost_up, 2 * is_gated) - lost
  size *= 2 if has_stem else 1
  return size if size > 0 else None


def nearest_valid(size: int, model: Structure) -> list[int]:
  """Returns the one or two nearest sizes that fit a `valid` network."""
  fits = lambda n: valid_output(n, model) is not None
  below = next((n for n in range(size - 1, 0, -1) if fits(n)), None)
  above = size + 1
  while not fits(above):
    above += 1
  return [above] if below is None else [below, above]


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
