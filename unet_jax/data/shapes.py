"""Drawn images for the embedded default: a pure function of a seed.

Disks, rings and bars of random size, angle, colour and texture overlap on a
textured background under uneven light, with noise. Nothing but the outline
tells the class.
"""

import numpy as np

from unet_jax import config as config_lib

CLASSES = ('background', 'disk', 'ring', 'bar')
NUM_CLASSES = len(CLASSES)
# Half the width of the rim that the mask ignores around an outline, in pixels;
# a pixel there belongs to two classes.
_RIM = 1.0
# Least distance between two colours of a picture, of 441 from black to white.
_CONTRAST = 80


def _color(rng: np.random.Generator, taken: list[np.ndarray]) -> np.ndarray:
  """A random colour, 0..255, that can be told from those in the picture."""
  while True:
    color = rng.uniform(40, 215, 3)
    if all(np.linalg.norm(color - other) > _CONTRAST for other in taken):
      taken.append(color)
      return color


def _texture(rng: np.random.Generator, color: np.ndarray, y, x) -> np.ndarray:
  """A colour with a random plane wave on it: float [H, W, 3]."""
  angle, period = rng.uniform(0, np.pi), rng.uniform(3, 12)
  phase = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, period)
  wave = np.sin(2 * np.pi / period * phase)
  return color + wave[..., None] * rng.uniform(-25, 25, 3)


def _signed_distance(kind: int, y, x, radius: float, angle: float):
  """Distance of each pixel to a shape's outline in pixels, negative inside.

  Args:
    kind: an index into CLASSES, 1 or more.
    y: pixels below the centre, [H, W].
    x: pixels right of the centre, [H, W].
    radius: of the disk and the ring's outer edge; the bar is 2.8 radius long.
    angle: of the bar, in radians.
  """
  if kind == 1:
    return np.hypot(y, x) - radius
  if kind == 2:
    return np.abs(np.hypot(y, x) - 0.75 * radius) - 0.25 * radius
  along = np.abs(x * np.cos(angle) + y * np.sin(angle)) - 1.4 * radius
  across = np.abs(y * np.cos(angle) - x * np.sin(angle)) - 0.35 * radius
  return np.maximum(along, across)


def draw(seed: tuple[int, ...], size: tuple[int, int]):
  """Draws one example.

  Args:
    seed: any integers; equal seeds give equal examples.
    size: height and width in pixels.

  Returns:
    image: uint8 [H, W, 3].
    mask: uint8 [H, W], an index into CLASSES, 255 on the rims of outlines.
  """
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
  colors = []
  image = _texture(rng, _color(rng, colors), y, x)
  mask = np.zeros(size, np.uint8)
  scale = min(size)
  for _ in range(rng.integers(2, 4)):
    kind = int(rng.integers(1, NUM_CLASSES))
    center = rng.uniform(0.15, 0.85, 2) * size
    radius = rng.uniform(0.17, 0.25) * scale
    distance = _signed_distance(
      kind, y - center[0], x - center[1], radius, rng.uniform(0, 2 * np.pi)
    )
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    texture = _texture(rng, _color(rng, colors), y, x)
    image += alpha * (texture - image)
    mask[distance < 0] = kind
    mask[np.abs(distance) < _RIM] = config_lib.IGNORE_LABEL
  # Light that falls off to one side.
  slope = rng.uniform(-0.35, 0.35, 2)
  light = 1 + slope[0] * (y / size[0] - 0.5) + slope[1] * (x / size[1] - 0.5)
  image = image * light[..., None] + rng.normal(0, 8, image.shape)
  return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask
