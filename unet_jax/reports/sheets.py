"""Predictions side by side and legends, as one picture; by no matplotlib.

Drawing them with matplotlib took half a second, and as long again to import.
"""

import functools
import importlib.util
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unet_jax.config import fields
from unet_jax.reports import colors, pictures

# In pixels: the longest edge of a panel, what is between two, a line of text.
PANEL, GAP, _LINE = 240, 8, 22
_TITLES = ('image', 'mask', 'prediction', 'errors')
# Longest printed name of a class, in characters.
_LABEL = 24


def write_predictions(
  path: str, examples: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> None:
  """Draws input, mask, prediction and errors side by side, an example a row.

  Examples are those of `pictures.predicted_part`.
  """
  os.makedirs(os.path.dirname(path), exist_ok=True)
  predictions(examples, names).save(path)


def predictions(
  examples: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Image.Image:
  """As `write_predictions`; returns the picture, RGB."""
  table = [tuple(color) for color in colors.class_colors(len(names)).tolist()]
  labels = [n if len(n) <= _LABEL else f'{n[: _LABEL - 1]}…' for n in names]
  if any((e['mask'] == fields.IGNORE_LABEL).any() for e in examples):
    labels, table = [*labels, 'ignored'], [*table, (255, 255, 255)]
  width = len(_TITLES) * (PANEL + GAP) + GAP
  fitting = max(1, width // _entry_width(labels))
  below = legend(labels, table, -(-len(labels) // fitting))
  rows = [_row(example, len(names)) for example in examples]
  height = _LINE + sum(row.height for row in rows) + below.height
  sheet = Image.new('RGB', (width, height), 'white')
  draw = ImageDraw.Draw(sheet)
  for i, title in enumerate(_TITLES):
    middle = GAP + i * (PANEL + GAP) + PANEL // 2
    draw.text((middle, _LINE // 2), title, 'black', _font(), anchor='mm')
  top = _LINE
  for row in rows:
    sheet.paste(row, (0, top))
    top += row.height
  sheet.paste(below, ((width - below.width) // 2, top))
  return sheet


def _row(example: Mapping[str, Any], num_classes: int) -> Image.Image:
  image, mask, prediction = pictures.predicted_part(example)
  image, note = pictures.stretch(image)
  ignored = mask == fields.IGNORE_LABEL
  errors = np.where(ignored, 255, 225)[..., None].repeat(3, -1)
  errors[(mask != prediction) & ~ignored] = colors.WRONG
  panels = (
    np.broadcast_to(image, (*mask.shape, 3)),
    colors.color_mask(mask, num_classes),
    colors.color_mask(prediction, num_classes),
    errors.astype(np.uint8),
  )
  scale = PANEL / max(mask.shape)
  size = [max(1, round(n * scale)) for n in mask.shape[::-1]]
  height = size[1] + GAP + (_LINE if note else 0)
  row = Image.new('RGB', (len(panels) * (PANEL + GAP) + GAP, height), 'white')
  for i, panel in enumerate(panels):
    # Pixels of small images are seen as squares; classes are never mixed.
    smooth = i == 0 and scale < 1
    how = Image.Resampling.BOX if smooth else Image.Resampling.NEAREST
    drawn = Image.fromarray(np.ascontiguousarray(panel)).resize(size, how)
    row.paste(drawn, (GAP + i * (PANEL + GAP) + (PANEL - size[0]) // 2, 0))
  if note:
    place = (GAP, size[1] + _LINE // 2)
    ImageDraw.Draw(row).text(place, note, 'black', _font(), anchor='lm')
  return row


def legend(
  labels: Sequence[str], fills: Sequence[Any], lines: int
) -> Image.Image:
  """Returns squares of colour, each beside its label, in columns of `lines`."""
  width = _entry_width(labels)
  columns = -(-len(labels) // lines)
  size = (columns * width + 8, min(len(labels), lines) * _LINE + 8)
  picture = Image.new('RGB', size, 'white')
  draw = ImageDraw.Draw(picture)
  for i, (label, fill) in enumerate(zip(labels, fills, strict=True)):
    x, y = 4 + i // lines * width, 4 + i % lines * _LINE
    draw.rectangle((x + 3, y + 3, x + 18, y + 18), fill, 'gray')
    draw.text((x + 26, y + 11), label, 'black', _font(), anchor='lm')
  return picture


def _entry_width(labels: Sequence[str]) -> int:
  return 2 * _LINE + int(max(_font().getlength(label) for label in labels))


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
  """Matplotlib's font, without importing it, which is slow.

  It has Greek and Cyrillic; Pillow's own has not even umlauts.
  """
  spec = importlib.util.find_spec('matplotlib')
  assert spec is not None and spec.origin is not None
  fonts = pathlib.Path(spec.origin).parent / 'mpl-data/fonts/ttf'
  return ImageFont.truetype(fonts / 'DejaVuSans.ttf', 13)
