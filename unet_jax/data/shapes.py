"""Drawn images for the embedded default: a pure function of a seed.

Disks, squares and triangles of random size, angle, colour and texture overlap
on a textured background under uneven light, with noise. Nothing but the outline
tells the class.
"""

import numpy as np

# Raise it when the drawings change, so that prepared arrays are built anew.
VERSION = 1
CLASSES = ('background', 'disk', 'square', 'triangle')
NUM_CLASSES = len(CLASSES)
# Half the width of the rim that the mask ignores around an outline, in pixels;
# a pixel there belongs to two classes.
_RIM = 0.75
_IGNORE_LABEL = 255


def _texture(rng: np.random.Generator, y, x) -> np.ndarray:
  """A random colour with a random plane wave on it: float [H, W, 3], 0..255."""
  color = rng.uniform(50, 205, 3)
  angle, period = rng.uniform(0, np.pi), rng.uniform(3, 12)
  phase = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, period)
  wave = np.sin(2 * np.pi / period * phase)
  return color + wave[..., None] * rng.uniform(-30, 30, 3)


def _signed_distance(kind: int, y, x, radius: float, angle: float):
  """Distance of each pixel to a shape's outline, negative inside.

  Args:
    kind: 1 disk, 2 square, 3 triangle (corners: distances are those to the
      sides' lines).
    y: pixels below the centre, [H, W]; likewise x, to the right.
    x: see y.
    radius: of the disk; the others have the disk's area.
    angle: in radians.
  """
  if kind == 1:
    return np.hypot(y, x) - radius
  sides = {2: 4, 3: 3}[kind]
  # A regular polygon of n sides and inner radius r has the area n r^2 tan(pi/n).
  inner = radius * np.sqrt(np.pi / (sides * np.tan(np.pi / sides)))
  angles = angle + np.arange(sides) * 2 * np.pi / sides
  return np.max([x * np.cos(a) + y * np.sin(a) for a in angles], 0) - inner


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
  image = _texture(rng, y, x)
  mask = np.zeros(size, np.uint8)
  scale = min(size)
  for _ in range(rng.integers(2, 6)):
    kind = int(rng.integers(1, NUM_CLASSES))
    center = rng.uniform(0.1, 0.9, 2) * size
    radius = rng.uniform(0.12, 0.24) * scale
    distance = _signed_distance(
        kind, y - center[0], x - center[1], radius, rng.uniform(0, 2 * np.pi)
    )
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    image += alpha * (_texture(rng, y, x) - image)
    mask[distance < 0] = kind
    mask[np.abs(distance) < _RIM] = _IGNORE_LABEL
  # Light that falls off to one side.
  slope = rng.uniform(-0.35, 0.35, 2)
  light = 1 + slope[0] * (y / size[0] - 0.5) + slope[1] * (x / size[1] - 0.5)
  image = image * light[..., None] + rng.normal(0, 12, image.shape)
  return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask
