"""Kinds of right data: pairs that must not be accused.

Each kind is drawn, with its mask exact, or read from real sets. What makes it
hard for a detector is in its docstring. `TUNED` were looked at when thresholds
and features were chosen, `HELD_OUT` were not.
"""

import gzip
import pathlib
from collections.abc import Callable

import cv2
import numpy as np
from scipy import ndimage

from unet_jax.config import default
from unet_jax.data import decode
from unet_jax.data import masks as masks_lib

# (image uint8 [H, W, C], mask uint8 [H, W]).
Pair = tuple[np.ndarray, np.ndarray]

_PETS_TABLE: tuple[tuple[int, int], ...] = ((1, 0), (2, 1), (3, 2))


def _smooth(
  rng: np.random.Generator, size: tuple[int, int], sigma: float
) -> np.ndarray:
  """Returns smooth noise of mean 0 and standard deviation 1."""
  noise = ndimage.gaussian_filter(rng.standard_normal(size), sigma)
  return (noise - noise.mean()) / noise.std()


def _pair(
  image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, noise: float
) -> Pair:
  """Adds noise; the image is [H, W] or [H, W, C]."""
  image = image + rng.normal(0, noise, image.shape)
  image = image.reshape(*image.shape[:2], -1)
  return image.clip(0, 255).astype(np.uint8), mask.astype(np.uint8)


def _discs(
  rng: np.random.Generator, size: int, number: int, low: float, high: float
) -> np.ndarray:
  y, x = np.mgrid[:size, :size]
  found = np.zeros((size, size), np.uint8)
  for k in range(number):
    cy, cx = rng.uniform(0, size, 2)
    a, b = rng.uniform(low, high, 2)
    angle = rng.uniform(0, np.pi)
    u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    found[(u / a) ** 2 + (v / b) ** 2 < 1] = k + 1
  return found


def discs(rng: np.random.Generator, i: int) -> Pair:
  """Objects on a darker ground: nothing is hard."""
  del i
  mask = _discs(rng, 64, 4, 5, 11) > 0
  return _pair(50 + 150 * mask, mask, rng, 12)


def cord(rng: np.random.Generator, i: int) -> Pair:
  """A band between brighter bands, whose outer edges are stronger."""
  del i
  x, y = np.arange(52), np.arange(60)[:, None]
  center = 30 + rng.normal(0, 2) + 2 * np.sin(x / 20 + rng.uniform(0, 6))
  half = rng.uniform(3, 4.5)
  mask = np.abs(y - center) < half
  image = np.full(mask.shape, 60.0)
  image[(y > center - half - 4) & (y < center + half + 3)] = 200
  image[mask] = 120
  return _pair(ndimage.gaussian_filter(image, 0.8), mask, rng, 4)


def vessels(rng: np.random.Generator, i: int) -> Pair:
  """Thin dark curves in a bright field on black, whose rim is stronger."""
  del i
  y, x = np.mgrid[:256, :256]
  field = np.hypot(y - 128, x - 128) < 118
  mask = np.zeros((256, 256), bool)
  for k in range(14):
    place = np.array([128 + rng.normal(0, 10), 20 + rng.normal(0, 5)])
    angle, width = rng.uniform(-1, 1), 1 + (k < 5)
    for _ in range(230):
      place += np.sin(angle), np.cos(angle)
      angle += rng.normal(0, 0.06)
      if np.hypot(*(place - 128)) > 112:
        break
      r, c = place.astype(int)
      mask[r - width + 1 : r + width, c - width + 1 : c + width] = True
  image = ndimage.gaussian_filter(150.0 * field - 25 * mask, 0.8)
  image = (image + rng.normal(0, 3, mask.shape)) * field
  return _pair(
    np.stack([image * 1.2, image * 0.8, image * 0.5], -1), mask, rng, 0
  )


def membranes(rng: np.random.Generator, i: int) -> Pair:
  """Cells with thin dark walls, and specks inside that are as dark."""
  del i
  points = rng.uniform(0, 256, (45, 2))
  y, x = np.mgrid[:256, :256]
  far = np.hypot(y - points[:, :1, None], x - points[:, 1:, None])
  far = np.partition(far, 1, 0)
  wall = far[1] - far[0] < 5
  specks = _discs(rng, 256, 60, 2, 5) > 0
  image = 170 - 90 * (wall | specks) + 12 * _smooth(rng, (256, 256), 3)
  return _pair(ndimage.gaussian_filter(image, 1), ~wall, rng, 10)


def land_cover(rng: np.random.Generator, i: int) -> Pair:
  """Aerial tiles: four classes told by colour and texture, edges elsewhere."""
  del i
  fields = np.stack([_smooth(rng, (128, 128), 14) for _ in range(4)])
  mask = fields.argmax(0)
  colors = np.array([(70, 90, 60), (110, 105, 85), (60, 75, 95), (95, 95, 95)])
  grain = np.stack([_smooth(rng, (128, 128), s) for s in (1, 2.5, 6, 1.5)])
  image = (
    colors[mask] + (14 * np.take_along_axis(grain, mask[None], 0)[0])[..., None]
  )
  image[_discs(rng, 128, 12, 2, 6) > 0] += 60  # Cars, trees: no class.
  return _pair(image, mask, rng, 3)


def series(rng: np.random.Generator, i: int) -> Pair:
  """Slices of one volume: neighbours look alike."""
  base = _smooth(np.random.default_rng(3), (64, 64), 5)
  value = np.roll(base, i, 1)
  return _pair(120 + 40 * value, value > 0, rng, 3)


def layers(rng: np.random.Generator, i: int) -> Pair:
  """Layers of a retina: bands beside brighter bands, of several classes."""
  del i
  y, x = np.mgrid[:128, :160]
  top = 40 + rng.normal(0, 4) + 6 * np.sin(x / 40 + rng.uniform(0, 6))
  depth = y - top - 2 * _smooth(rng, (128, 160), 20)
  ends = np.cumsum([0, 8, 6, 10, 5, 9])
  band = np.digitize(depth, ends)
  grey = np.array([15, 150, 60, 120, 40, 230, 90])[band]
  image = ndimage.gaussian_filter(grey.astype(float), 1)
  image *= 1 + 0.25 * _smooth(rng, (128, 160), 1)  # Speckle.
  mask = np.array([0, 0, 1, 2, 3, 0, 0])[band]
  return _pair(image, mask, rng, 4)


def cracks(rng: np.random.Generator, i: int) -> Pair:
  """Thin cracks in a rough road with painted marks, which are stronger."""
  del i
  size = 192
  mask = np.zeros((size, size), np.uint8)
  for _ in range(3):
    place, angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
    points = []
    for _ in range(60):
      points.append(place.copy())
      angle += rng.normal(0, 0.25)
      place += 4 * np.array([np.cos(angle), np.sin(angle)])
    cv2.polylines(mask, [np.int32(points)], False, 1, 2)
  image = 120 + 12 * _smooth(rng, (size, size), 1) - 35.0 * mask
  mark = int(rng.integers(20, 150))
  image[:, mark : mark + 14] = 220
  return _pair(ndimage.gaussian_filter(image, 0.7), mask, rng, 6)


def nuclei(rng: np.random.Generator, i: int) -> Pair:
  """Instances: bright blobs of varied brightness on black, some not marked."""
  del i
  ids = _discs(rng, 160, 30, 4, 9)
  bright = np.r_[8, rng.uniform(40, 220, 30)][ids]
  dim = 18 * (_discs(rng, 160, 15, 4, 9) > 0)
  return _pair(ndimage.gaussian_filter(bright + dim, 1.5), ids > 0, rng, 4)


def one_color(rng: np.random.Generator, i: int) -> Pair:
  """Scenes of one colour: objects differ by a few levels from the ground."""
  del i
  mask = _discs(rng, 128, 3, 12, 25) > 0
  image = 140 + 2.5 * _smooth(rng, (128, 128), 25) + 4 * mask
  return _pair(image[..., None] + np.array([0, -20, -70]), mask, rng, 1)


def deep(rng: np.random.Generator, i: int) -> Pair:
  """int16 values of a scanner whose tissue takes a tenth of the range."""
  del i
  body = _discs(rng, 128, 1, 40, 60) > 0
  organ = (_discs(rng, 128, 2, 10, 18) > 0) & body
  image = 2 + 20 * body + 3 * organ + 1.5 * _smooth(rng, (128, 128), 8) * body
  bone = (_discs(rng, 128, 3, 2, 5) > 0) & body & ~organ
  return _pair(image + 60 * bone, organ, rng, 0.5)


def shadows(rng: np.random.Generator, i: int) -> Pair:
  """Roofs whose shadows, all to one side, have the stronger edge."""
  del i
  roof = np.zeros((160, 160), np.uint8)
  shade = np.zeros((160, 160), bool)
  for _ in range(7):
    y, x = rng.integers(5, 130, 2)
    h, w = rng.integers(12, 28, 2)
    roof[y : y + h, x : x + w] = 1
    shade[y + 6 : y + h + 6, x + 6 : x + w + 6] = True
  image = 105 + 9 * _smooth(rng, (160, 160), 2) - 70.0 * shade
  image = np.where(roof, 128 + 8 * _smooth(rng, (160, 160), 4), image)
  return _pair(image[..., None] * np.array([1, 0.95, 0.85]), roof, rng, 4)


def halo(rng: np.random.Generator, i: int) -> Pair:
  """Phase contrast: grey cells in bright halos, whose outer edge is strong."""
  del i
  cell = _discs(rng, 192, 8, 10, 18) > 0
  ring = ndimage.binary_dilation(cell, iterations=5) & ~cell
  inside = 8 * _smooth(rng, (192, 192), 1.5)
  image = 110 + 100 * ring - 12 * cell + inside * cell
  return _pair(ndimage.gaussian_filter(image.astype(float), 1.2), cell, rng, 5)


def stripes(rng: np.random.Generator, i: int) -> Pair:
  """Faults in a striped cloth: every line is an edge, the fault is weak."""
  del i
  y, x = np.mgrid[:128, :128]
  mask = _discs(rng, 128, 2, 8, 20) > 0
  image = 120 + 60 * (((x + 2 * np.sin(y / 20)) // 5) % 2) - 22 * mask
  return _pair(ndimage.gaussian_filter(image, 0.7), mask, rng, 6)


def lungs(rng: np.random.Generator, i: int) -> Pair:
  """Radiographs: one layout in all, nearly the same when mirrored."""
  del i
  y, x = np.mgrid[:128, :128]
  mask = np.zeros((128, 128), bool)
  for side in (-1, 1):
    cx = 64 + side * rng.normal(27, 2)
    cy, a, b = rng.normal(62, 3), rng.normal(16, 2), rng.normal(38, 3)
    mask |= ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1
  image = 170 - 80 * mask + 14 * _smooth(rng, (128, 128), 7)
  image += 22 * np.sin(y / 3.2 + np.abs(x - 64) / 9)  # Ribs.
  return _pair(ndimage.gaussian_filter(image, 1.5), mask, rng, 5)


TUNED: dict[str, Callable[[np.random.Generator, int], Pair]] = {
  f.__name__: f for f in (discs, cord, vessels, membranes, land_cover, series)
}
HELD_OUT: dict[str, Callable[[np.random.Generator, int], Pair]] = {
  f.__name__: f
  for f in (
    layers, cracks, nuclei, one_color, deep, shadows, halo, stripes, lungs
  )
}  # fmt: skip


def draw(name: str, count: int, seed: int) -> list[Pair]:
  """Returns `count` pairs of a kind that is drawn."""
  make = (TUNED | HELD_OUT)[name]
  return [make(np.random.default_rng([seed, i]), i) for i in range(count)]


def _files(
  folder: pathlib.Path, name: str
) -> list[tuple[pathlib.Path, pathlib.Path]]:
  """Paths of all pairs, in order."""
  if name == 'isbi2012':
    masks = (folder / 'train/masks').iterdir()
    found = sorted(masks, key=lambda p: int(p.stem))
    return [(folder / 'train/images' / p.name, p) for p in found]
  found = sorted((folder / 'annotations/trimaps').glob('[!.]*.png'))
  return [(folder / 'images' / f'{p.stem}.jpg', p) for p in found]


def _hippocampus(folder: pathlib.Path, count: int) -> list[Pair]:
  """The middle slices of volumes of int16 or float, of a range of its own."""
  pairs = []
  for path in sorted((folder / 'imagesTr').glob('[!.]*.nii.gz'))[:count]:
    image, mask = (
      _read_nifti(p) for p in (path, folder / 'labelsTr' / path.name)
    )
    k = mask.shape[0] // 2
    image = image[k] * (255 / max(float(image.max()), 1))
    pairs.append((image[..., None].astype(np.uint8), mask[k].astype(np.uint8)))
  return pairs


def _read_nifti(path: pathlib.Path) -> np.ndarray:
  """Returns the values of a NIfTI-1 file of one volume, [Z, Y, X]."""
  data = gzip.decompress(path.read_bytes())
  shape = np.frombuffer(data, '<i2', 8, 40)[3:0:-1]
  code = int(np.frombuffer(data, '<i2', 1, 70)[0])
  kind = {2: '<u1', 4: '<i2', 8: '<i4', 16: '<f4', 64: '<f8'}[code]
  start = int(np.frombuffer(data, '<f4', 1, 108)[0])
  return np.frombuffer(data, kind, int(np.prod(shape)), start).reshape(shape)


def read(name: str, data: pathlib.Path, count: int) -> list[Pair]:
  """Returns up to `count` pairs of a real set, evenly spread."""
  folder = data / name
  if name == 'hippocampus':
    return _hippocampus(folder, count)
  files = _files(folder, name)
  channels, table = 3, _PETS_TABLE
  if name == 'isbi2012':
    channels, table = 1, ((0, 0), (255, 1))
  config = default.get_config().data
  config.num_channels = channels
  pairs = []
  chosen = np.linspace(0, len(files) - 1, min(count, len(files)), dtype=int)
  for image_path, mask_path in (files[i] for i in chosen.tolist()):
    image = decode.decode_image(
      image_path.read_bytes(), str(image_path), config
    ).array
    values = decode.decode_mask(
      mask_path.read_bytes(), str(mask_path), config
    ).array
    mask = masks_lib.map_mask(values, table, len(table), str(mask_path))
    pairs.append((image, mask))
  return pairs
