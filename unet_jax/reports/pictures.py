"""Pictures of an HTML page: images, outlines, masks, weights, errors.

Each panel is an <svg> of layers that lie in the page as data URIs, of at most
240 x 240 px, but for files of their own; an image that several panels show lies
there once.
"""

import base64
import hashlib
import html
import io
from typing import Any

import numpy as np
from PIL import Image

from unet_jax.config import fields
from unet_jax.reports import colors

# Longest edge of a picture, in pixels.
_VIEW = 240
# Up to this edge, in pixels, an image is kept without loss.
_LOSSLESS = 64
# Opacity, of 255, of the veil over the part of an image that has no mask.
_VEIL = 140
# Of the errors of a prediction: their colour, as in figures.py, and the opacity
# of the veil over what is right.
_WRONG, _PALE = (220, 40, 40), 190


def example_panels(example: dict[str, Any], num_classes: int) -> list[str]:
  """Returns image, outline and overlay, or the image alone without a mask.

  Args:
    example: with `name`, `image` uint8 [H, W, C], `mask` uint8 [H, W] or None.
    num_classes: classes that have a colour; others are shown as ignored.
  """
  name, mask = example['name'], example['mask']
  size, photo, again = _photo(example['image'])
  panels = [_panel(f'image {name}', size, photo)]
  if mask is not None:
    lines = _outline_layer(mask, mask.shape, num_classes)
    overlay = _layer(colors.color_mask(_nearest(mask, size), num_classes))
    panels += [
      _panel(f'{name}, mask outlined', size, again + lines),
      _panel(f'{name}, mask as overlay', size, f'{again}{overlay}', 'overlay'),
    ]
  return panels


def batch_panels(
  picture: dict[str, Any], what: str, num_classes: int, top: float
) -> list[str]:
  """Returns the image with an outline, its mask and perhaps its weights.

  Args:
    picture: with `image` uint8 [H, W, C]; `mask` uint8 [H', W'] and perhaps
      `weight_map` float [H', W'], of the middle of the image.
    what: names the image for those who cannot see it.
    num_classes: classes that have a colour; others are shown as ignored.
    top: the weight that gets the last colour of the scale.
  """
  mask = picture['mask']
  size, photo, _ = _photo(picture['image'])
  lines = _outline_layer(mask, picture['image'].shape[:2], num_classes)
  size_of_mask = _view_size(mask.shape)
  classes = colors.color_mask(_nearest(mask, size_of_mask), num_classes)
  panels = [
    _panel(f'{what}, mask outlined', size, photo + lines),
    _panel(f'{what}, mask', size_of_mask, _layer(classes)),
  ]
  if 'weight_map' in picture:
    shares = _nearest(picture['weight_map'], size_of_mask) / top
    weights = _layer(colors.color_scale(shares))
    panels.append(_panel(f'{what}, weight map', size_of_mask, weights))
  return panels


def prediction_panels(example: dict[str, Any], num_classes: int) -> list[str]:
  """Returns image, mask, prediction, and the errors in red on the dim image.

  Args:
    example: with `name`, and what `predicted_part` takes.
    num_classes: classes that have a colour; others are shown as ignored.
  """
  name = example['name']
  image, mask, prediction = predicted_part(example)
  size, photo, again = _photo(image)
  mask, prediction = _nearest(mask, size), _nearest(prediction, size)
  ignored = mask == fields.IGNORE_LABEL
  # A white veil, so that red stands out on any image.
  errors = np.full((*size, 4), (255, 255, 255, _PALE), np.uint8)
  errors[ignored] = 255
  errors[(mask != prediction) & ~ignored] = (*_WRONG, 255)
  return [
    _panel(f'image {name}', size, photo),
    *(
      _panel(f'{name}, {what}', size, _layer(colors.color_mask(m, num_classes)))
      for what, m in (('mask', mask), ('prediction', prediction))
    ),
    _panel(f'{name}, errors', size, again + _layer(errors)),
  ]


def predicted_part(
  example: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns image, mask and prediction of what was predicted.

  Args:
    example: `image` uint8 [H, W, C], `mask` uint8 [H, W], `prediction` uint8
      [H', W'] (of a `valid` network: the centre); of volumes, with an axis D
      before H, the middle slice is returned.
  """
  prediction = example['prediction']
  image, mask = [
    array[
      tuple(
        slice((full - part) // 2, (full - part) // 2 + part)
        for full, part in zip(array.shape, prediction.shape)
      )
    ]
    for array in (example['image'], example['mask'])
  ]
  if prediction.ndim == 3:
    middle = len(prediction) // 2
    return image[middle], mask[middle], prediction[middle]
  return image, mask, prediction


def outline(mask: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns a line of two pixels along each border between classes.

  The side of the higher class has its colour, the other side is black, so that
  one of the two shows on any image. What is ignored, white, counts as higher
  than class 0 and lower than the others.

  Args:
    mask: integers [H, W], -1 where there is neither class nor border.
    num_classes: classes that have a colour; others are white.

  Returns:
    uint8 RGBA [H, W, 4], transparent beside the lines.
  """
  rank = np.where(mask == fields.IGNORE_LABEL, 0.5, mask)
  beside = np.zeros(mask.shape, bool)
  higher = np.zeros(mask.shape, bool)
  for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
    border = (mask[a] != mask[b]) & (mask[a] >= 0) & (mask[b] >= 0)
    for here, there in ((a, b), (b, a)):
      beside[here] |= border
      higher[here] |= border & (rank[here] > rank[there])
  layer = np.zeros((*mask.shape, 4), np.uint8)
  layer[higher, :3] = colors.color_mask(mask[higher], num_classes)
  layer[beside, 3] = 255
  return layer


def file_panel(path: str, alt: str) -> tuple[str, int]:
  """Returns a PNG as it is, and its width in pixels.

  Args:
    path: of the file.
    alt: what it shows, for those who cannot see it.
  """
  with open(path, 'rb') as f:
    stored = f.read()
  width, height = Image.open(io.BytesIO(stored)).size
  uri = f'data:image/png;base64,{base64.b64encode(stored).decode()}'
  layer = _markup(uri, 'class="plot"', (height, width))
  return _panel(alt, (height, width), layer), width


def _view_size(size: tuple[int, int]) -> tuple[int, int]:
  """Returns (height, width), shrunk where it is too large."""
  scale = min(1, _VIEW / max(size))
  return tuple(max(1, round(n * scale)) for n in size)


def _nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Returns values [H, W] at the centres of the pixels of another size."""
  rows, columns = [
    ((np.arange(n) + 0.5) * full / n).astype(int)
    for n, full in zip(size, values.shape)
  ]
  return values[rows[:, None], columns]


def _photo(image: np.ndarray) -> tuple[tuple[int, int], str, str]:
  """Returns the size in the page, the layer, and a reference to the layer."""
  size = _view_size(image.shape[:2])
  picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
  if size != image.shape[:2]:
    picture = picture.resize(
      size[::-1], Image.Resampling.LANCZOS, reducing_gap=2.0
    )
  uri = _encode(picture, lossless=max(size) <= _LOSSLESS)
  key = f'i{hashlib.sha1(uri.encode()).hexdigest()[:12]}'
  return size, _markup(uri, f'id="{key}"', size), f'<use href="#{key}"/>'


def _layer(rgb: np.ndarray) -> str:
  """Returns the layer of a drawing, uint8 [h, w, 3], or 4 with opacity."""
  uri = _encode(Image.fromarray(rgb), lossless=True)
  return _markup(uri, 'class="drawing"', rgb.shape[:2])


def _outline_layer(mask, full: tuple[int, int], num_classes: int) -> str:
  """Returns the layer of the outline of a mask in the middle of an image.

  Of a small image the line is drawn at a whole multiple of its size, so that
  it stays thin.
  """
  canvas = np.full(full, -1, np.int16)
  top, left = [(a - b) // 2 for a, b in zip(full, mask.shape)]
  canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
  size = _view_size(full)
  multiple = max(1, _VIEW // max(full))
  canvas = _nearest(canvas, tuple(n * multiple for n in size))
  layer = outline(canvas, num_classes)
  layer[canvas < 0, 3] = _VEIL
  uri = _encode(Image.fromarray(layer), lossless=True)
  return _markup(uri, 'class="outline"', size)


def _encode(picture: Image.Image, lossless: bool) -> str:
  """Returns a data URI."""
  kind, options = ('png', {}) if lossless else ('jpeg', {'quality': 85})
  stream = io.BytesIO()
  picture.save(stream, kind, **options)
  encoded = base64.b64encode(stream.getvalue()).decode()
  return f'data:image/{kind};base64,{encoded}'


def _markup(uri: str, attribute: str, size: tuple[int, int]) -> str:
  height, width = size
  return (
    f'<image {attribute} href="{uri}" width="{width}" height="{height}" '
    'preserveAspectRatio="none"/>'
  )


def _panel(alt: str, size: tuple[int, int], layers: str, kind: str = '') -> str:
  """Returns the layers above one another; few pixels are shown as squares."""
  height, width = size
  if max(size) <= _VIEW // 2:
    kind += ' pixels'
  alt = html.escape(alt)
  return (
    f'<svg class="panel {kind}" viewBox="0 0 {width} {height}" role="img" '
    f'aria-label="{alt}">{layers}</svg>'
  )
