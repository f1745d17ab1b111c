"""Pictures of an HTML page: images, outlines, masks, weights, errors.

A panel is a stack of layers, which templates/parts.html draws. Layers lie in
the page as data URIs, of at most 240 x 240 px, but for files of their own; an
image that several panels show lies there once. The first `num_classes` classes
have a colour; other values are shown as ignored pixels are, in white.
"""

import base64
import dataclasses
import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from unet_jax.config import fields
from unet_jax.data import resize
from unet_jax.reports import colors

# Longest edge of a picture, in pixels.
_VIEW = 240
# Up to this edge, in pixels, an image is stored without loss.
_LOSSLESS = 64
# Levels between the darkest and the brightest percent of an image, below which
# it is stretched; below the smaller number there is nothing but noise to see.
_DIM, _EMPTY = 64, 3
# Opacity, of 255, of the veil over the part of an image that has no mask, and
# over the pixels of a prediction that are right.
_VEIL, _PALE = 140, 190


@dataclasses.dataclass(frozen=True)
class Layer:
  """A picture that fills its panel.

  Attributes:
    uri: data URI; '' shows the layer of the same key again.
    kind: CSS class.
    key: by which other layers show this one again.
  """

  uri: str
  kind: str = ''
  key: str = ''


@dataclasses.dataclass(frozen=True)
class Panel:
  """Layers above one another.

  Attributes:
    alt: names the picture for those who cannot see it.
    size: height and width in the page, in pixels.
    layers: lowest first.
    kind: CSS classes.
  """

  alt: str
  size: tuple[int, int]
  layers: list[Layer]
  kind: str = ''


@dataclasses.dataclass(frozen=True)
class Figure:
  """Panels side by side above a caption, which starts with a file's name."""

  panels: list[Panel]
  caption: str = ''
  name: str = ''


def stretch(image: np.ndarray) -> tuple[np.ndarray, str]:
  """Returns an image of few levels with these over the whole range.

  Args:
    image: uint8 [..., C]; other images than dim ones come back as they are.

  Returns:
    uint8 [..., C], and what was done, for people; '' for nothing.
  """
  low, high = (int(v) for v in np.percentile(image, (1, 99)))
  if not _EMPTY <= high - low < _DIM:
    return image, ''
  table = np.rint(np.linspace(0, 255, high - low + 1))
  levels = np.clip(image, low, high) - low
  return table.astype(np.uint8)[levels], f'levels {low} to {high} stretched'


def example_panels(example: Mapping[str, Any], num_classes: int) -> list[Panel]:
  """Returns image, outline and overlay, or the image alone without a mask.

  Args:
    example: with `name`, `image` uint8 [H, W, C], `mask` uint8 [H, W] or None.
  """
  name, mask = example['name'], example['mask']
  size, photo, again = _photo(example['image'])
  panels = [_panel(f'image {name}', size, [photo])]
  if mask is not None:
    lines = _outline_layer(mask, mask.shape, num_classes)
    classes = _layer(colors.color_mask(_nearest(mask, size), num_classes))
    panels += [
      _panel(f'{name}, mask outlined', size, [again, lines]),
      _panel(f'{name}, mask as overlay', size, [again, classes], 'overlay'),
    ]
  return panels


def batch_panels(
  picture: Mapping[str, Any], alt: str, num_classes: int, top: float
) -> list[Panel]:
  """Returns the image with an outline, its mask and perhaps its weights.

  Args:
    picture: with `image` uint8 [H, W, C]; `mask` uint8 [H', W'] and perhaps
      `weight_map` float [H', W'], of the middle of the image.
    top: the weight that gets the last colour of the scale.
  """
  mask = picture['mask']
  size, photo, _ = _photo(picture['image'])
  lines = _outline_layer(mask, picture['image'].shape[:2], num_classes)
  mask_size = _view_size(mask.shape)
  classes = colors.color_mask(_nearest(mask, mask_size), num_classes)
  panels = [
    _panel(f'{alt}, mask outlined', size, [photo, lines]),
    _panel(f'{alt}, mask', mask_size, [_layer(classes)]),
  ]
  if 'weight_map' in picture:
    shares = _nearest(picture['weight_map'], mask_size) / top
    weights = _layer(colors.color_scale(shares))
    panels.append(_panel(f'{alt}, weight map', mask_size, [weights]))
  return panels


def prediction_panels(
  example: Mapping[str, Any], num_classes: int
) -> list[Panel]:
  """Returns image, mask, prediction, and the errors in red on the pale image.

  Args:
    example: with `name`, and the arrays that `predicted_part` takes.
  """
  name = example['name']
  image, mask, prediction = predicted_part(example)
  size, photo, again = _photo(image)
  mask, prediction = _nearest(mask, size), _nearest(prediction, size)
  ignored = mask == fields.IGNORE_LABEL
  # A white veil, so that red stands out on any image.
  errors = np.full((*size, 4), (255, 255, 255, _PALE), np.uint8)
  errors[ignored] = 255
  errors[(mask != prediction) & ~ignored] = (*colors.WRONG, 255)
  classes = {'mask': mask, 'prediction': prediction}
  return [
    _panel(f'image {name}', size, [photo]),
    *(
      _panel(
        f'{name}, {what}', size, [_layer(colors.color_mask(m, num_classes))]
      )
      for what, m in classes.items()
    ),
    _panel(f'{name}, errors', size, [again, _layer(errors)]),
  ]


def predicted_part(
  example: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the part of image and mask that was predicted, and the prediction.

  An example has `image` uint8 [H, W, C], `mask` uint8 [H, W] and `prediction`
  uint8 [H', W'] (of a `valid` network: the centre); of volumes, with an axis D
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
  one of the two shows on any image. Ignored pixels, white, count as higher than
  class 0 and lower than the others.

  Args:
    mask: integers [H, W], -1 where there is neither class nor border.

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


def file_panel(path: str, alt: str) -> Panel:
  """Returns a PNG file as it is, in its own size; `alt` as in `Panel`."""
  with open(path, 'rb') as f:
    stored = f.read()
  width, height = Image.open(io.BytesIO(stored)).size
  return Panel(alt, (height, width), [Layer(_uri(stored, 'png'))], 'plot')


def _view_size(size: tuple[int, ...]) -> tuple[int, int]:
  """Returns (height, width), shrunk where it is too large."""
  scale = min(1, _VIEW / max(size))
  height, width = (max(1, round(n * scale)) for n in size)
  return height, width


def _nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Returns values [H, W] at the centres of the pixels of another size."""
  return resize.resize_labels(values, size, 'stretch', 0)


def _photo(image: np.ndarray) -> tuple[tuple[int, int], Layer, Layer]:
  """Returns the size in the page, the layer, and a reference to the layer.

  Dim images are stretched: a caption should have the words of `stretch`.
  """
  size = _view_size(image.shape[:2])
  image, _ = stretch(image)
  picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
  if size != image.shape[:2]:
    picture = picture.resize(
      size[::-1], Image.Resampling.LANCZOS, reducing_gap=2.0
    )
  uri = _encode(picture, lossless=max(size) <= _LOSSLESS)
  key = f'i{hashlib.sha1(uri.encode()).hexdigest()[:12]}'
  return size, Layer(uri, key=key), Layer('', key=key)


def _layer(rgb: np.ndarray, kind: str = 'drawing') -> Layer:
  """Returns the layer of uint8 [h, w, 3], or 4 with opacity."""
  return Layer(_encode(Image.fromarray(rgb), lossless=True), kind)


def _outline_layer(
  mask: np.ndarray, full: tuple[int, ...], num_classes: int
) -> Layer:
  """Returns the outline of a mask in the middle of an image of size `full`.

  On a small image the line is drawn at a whole multiple of its size, so that
  it stays thin.
  """
  canvas = np.full(full, -1, np.int16)
  top, left = [(a - b) // 2 for a, b in zip(full, mask.shape)]
  canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
  height, width = _view_size(full)
  multiple = max(1, _VIEW // max(full))
  canvas = _nearest(canvas, (height * multiple, width * multiple))
  layer = outline(canvas, num_classes)
  layer[canvas < 0, 3] = _VEIL
  return _layer(layer, 'outline')


def _encode(picture: Image.Image, lossless: bool) -> str:
  """Returns a data URI."""
  kind, options = ('png', {}) if lossless else ('jpeg', {'quality': 85})
  stream = io.BytesIO()
  picture.save(stream, kind, **options)
  return _uri(stream.getvalue(), kind)


def _uri(stored: bytes, kind: str) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(stored).decode()}'


def _panel(
  alt: str, size: tuple[int, int], layers: list[Layer], kind: str = ''
) -> Panel:
  """Returns a panel; few pixels are shown as squares."""
  pixels = ' pixels' if max(size) <= _VIEW // 2 else ''
  return Panel(alt, size, layers, kind + pixels)
