"""The size of a network's output, from the size of an image."""

from typing import Protocol

from unet_jax.runtime import errors


class Structure(Protocol):
  """The fields of a network, or of the config's section `model`, read here."""

  convs: int
  kernel_size: int
  depth: int
  stem: str
  padding: str
  upsample: str
  upsample_kernel: int
  skip: str


def output_size(size: tuple[int, ...], model: Structure) -> tuple[int, ...]:
  """Returns the logits' height and width for an image's, in pixels.

  With `same` padding they are equal. With `valid`, each stage takes convs *
  (kernel_size - 1) pixels, and every pooled size must be even: 572 gives 388
  at depth 4 (figure 1 of the 2015 paper). Interpolating takes a pixel on each
  side as well, and so does the convolution of 3 x 3 pixels after it.

  Args:
    size: height and width of the image (depth, height, width of a volume).

  Raises:
    UserError: the size does not fit; the message names the nearest that do.
  """
  if model.padding == 'same':
    halvings = model.depth + (model.stem == 'space_to_depth')
    if min(size) < 2**halvings:
      stem = ', model.stem=space_to_depth' if halvings > model.depth else ''
      raise errors.UserError(
        f'an image of {" x ".join(map(str, size))} pixels cannot be halved '
        f'{halvings} times (model.depth={model.depth}{stem}); use at least '
        f'{2**halvings} pixels or a smaller depth'
      )
    return tuple(size)
  return tuple(_valid_or_refused(n, model) for n in size)


def _valid_or_refused(size: int, model: Structure) -> int:
  output = valid_output(size, model)
  if output is not None:
    return output
  above = size + 1
  while valid_output(above, model) is None:
    above += 1
  below = size - 1
  while below > 0 and valid_output(below, model) is None:
    below -= 1
  nearest = f'{below} or {above}' if below > 0 else f'{above}'
  raise errors.UserError(
    f'an image size of {size} pixels does not fit model.padding=valid at '
    f'model.depth={model.depth}; the nearest that do are {nearest} '
    '(--config.data.image_size=H,W)'
  )


def valid_output(size: int, model: Structure) -> int | None:
  """Output pixels of a `valid` network, or None where `size` does not fit."""
  lost = model.convs * (model.kernel_size - 1)
  lost_up = upsampling_loss(model.upsample, model.upsample_kernel)
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
    gated = model.skip == 'attention' and i > 0
    size = 2 * size - max(lost_up, 2 * gated) - lost
  size *= 2 if has_stem else 1
  return size if size > 0 else None


def upsampling_loss(kind: str, kernel_size: int) -> int:
  """Returns how many pixels an upsampling loses along an axis, without padding.

  Args:
    kind: of the upsampling, not `bilinear_corners`: where its pixels lie
      depends on the size of the image.
    kernel_size: of the convolution behind it, odd, or 0 for none.
  """
  if kind == 'transpose':
    return 0
  return 2 * (kind == 'bilinear') + max(kernel_size - 1, 0)
