"""Colours of classes and of weights; no matplotlib, which is slow to import."""

import colorsys

import numpy as np

# Wrong pixels of a prediction.
WRONG = (220, 40, 40)

# Okabe and Ito's eight colours, which colour-blind readers can tell apart, and
# twelve that a search put far from these, from white (ignored pixels) and from
# one another. The smallest CIEDE2000 distance of two of the 20 is 21.5, and 9.5
# without red or green cones (Machado et al. 2009): of the eight, 21.7 and 11.6.
_CLASSES = np.array(
  [
    [0, 0, 0],
    [230, 159, 0],
    [86, 180, 233],
    [0, 158, 115],
    [240, 228, 66],
    [0, 114, 178],
    [213, 94, 0],
    [204, 121, 167],
    [96, 32, 0],
    [0, 32, 224],
    [32, 0, 64],
    [192, 32, 64],
    [160, 255, 160],
    [0, 64, 64],
    [160, 0, 128],
    [160, 96, 255],
    [255, 192, 192],
    [96, 96, 96],
    [0, 224, 224],
    [64, 96, 0],
  ],
  np.uint8,
)
# The golden ratio minus 1: steps of it around the colour wheel never meet.
_STEP = 0.618034

# 16 even steps of matplotlib's viridis, which is perceptually uniform.
_VIRIDIS = np.frombuffer(
  bytes.fromhex(
    '440154481a6c472f7d41448739568c31688e2a788e23888e'
    '1f988b22a88435b77954c5687ad151a5db36d2e21bfde725'
  ),
  np.uint8,
).reshape(16, 3)


def class_colors(num_classes: int) -> np.ndarray:
  """Returns uint8 [num_classes, 3]; beyond 20, from a colour wheel."""
  wheel = [
    colorsys.hsv_to_rgb(i * _STEP % 1, 0.85, (1, 0.8, 0.6)[i % 3])
    for i in range(len(_CLASSES), num_classes)
  ]
  wheel = np.rint(255 * np.reshape(wheel, (-1, 3))).astype(np.uint8)
  return np.concatenate([_CLASSES[:num_classes], wheel])


def color_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns uint8 RGB [H, W, 3] of classes [H, W]; ignored pixels are white."""
  table = np.full((256, 3), 255, np.uint8)
  table[:num_classes] = class_colors(num_classes)
  return table[mask]


def color_scale(shares: np.ndarray) -> np.ndarray:
  """Returns uint8 RGB [..., 3] of numbers [...] in 0..1, dark blue to yellow.

  Numbers beyond the range get the colour of its end.
  """
  at = np.linspace(0, 1, len(_VIRIDIS))
  channels = [np.interp(shares, at, values) for values in _VIRIDIS.T]
  return np.rint(np.stack(channels, -1)).astype(np.uint8)
