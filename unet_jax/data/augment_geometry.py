"""Flips, turns and resampling of a batch on the device; see augment.py."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from unet_jax.config import fields

Array = jax.Array
Batch = dict[str, Array]
Range = tuple[float, float]


def uniform(key: Array, number: int, count: int) -> Array:
  """Returns all draws of a transform at once: [number, count] in 0..1."""
  return jax.random.uniform(key, (number, count))


def between(uniform: Array, limits: Range, log: bool = False) -> Array:
  """Spreads 0..1 evenly between limits, `log`: evenly on a log scale."""
  low, high = map(math.log, limits) if log else limits
  values = low + (high - low) * uniform
  return jnp.exp(values) if log else values


def per_image(values: Array, ndim: int) -> Array:
  """[B] to [B, 1, ...] with `ndim` axes."""
  return values.reshape(-1, *[1] * (ndim - 1))


def _choose(chosen: Array, batch: Batch, other: Batch) -> Batch:
  """Replaces the chosen images, bool [B], by those of `other`."""
  return jax.tree.map(
    lambda x, y: jnp.where(per_image(chosen, x.ndim), y, x), batch, other
  )


def _map(linear: Sequence, offset: Sequence | None = None) -> Array:
  """Returns [B, 3, 3] of 2x2 entries and 2 offsets (or 0), each [B]."""
  zero = 0.0 * linear[0][0]
  offset = offset or (zero, zero)
  rows = [(*line, o) for line, o in zip(linear, offset)]
  rows.append((zero, zero, zero + 1))
  return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def _where(drawn: Array, value: Array) -> Array:
  """`value` [B, 3, 3] for the images that are drawn, bool [B], or identity."""
  return jnp.where(per_image(drawn, 3), value, jnp.eye(3))


class Map(Protocol):
  """A transform that moves pixels by an affine map."""

  def inverse(self, key: Array, count: int, size: tuple[int, int]) -> Array:
    """Maps (row, column, 1) from the result's centre to the image's centre.

    Args:
      count: B.
      size: height and width, in pixels.

    Returns:
      float32 [B, 3, 3].
    """


@dataclasses.dataclass(frozen=True)
class Flip:
  """Mirrors each image and its mask with a probability.

  Attributes:
    axis: of the batch; of images, 1 turns rows (vertical), 2 columns
      (horizontal).
  """

  axis: int
  probability: float

  def __call__(self, key: Array, batch: Batch) -> Batch:
    chosen = self._draw(key, len(batch['image']))
    flipped = jax.tree.map(lambda x: jnp.flip(x, self.axis), batch)
    return _choose(chosen, batch, flipped)

  def inverse(self, key: Array, count: int, size: tuple[int, int]) -> Array:
    del size
    sign = 1.0 - 2 * self._draw(key, count)
    one = jnp.ones_like(sign)
    rows, columns = (sign, one) if self.axis == 1 else (one, sign)
    return _map(((rows, 0 * one), (0 * one, columns)))

  def _draw(self, key: Array, count: int) -> Array:
    return uniform(key, 1, count)[0] < self.probability


@dataclasses.dataclass(frozen=True)
class Turn:
  """Turns square images by 90, 180 or 270 degrees, each as often."""

  probability: float

  def __call__(self, key: Array, batch: Batch) -> Batch:
    turns = self._draw(key, len(batch['image']))
    transposed = jax.tree.map(lambda x: x.swapaxes(1, 2), batch)
    batch = _choose(turns % 2 == 1, batch, transposed)
    for axis in (1, 2):
      chosen = (turns == axis) | (turns == axis + 1)
      flipped = jax.tree.map(lambda x: jnp.flip(x, axis), batch)
      batch = _choose(chosen, batch, flipped)
    return batch

  def inverse(self, key: Array, count: int, size: tuple[int, int]) -> Array:
    del size
    turns = self._draw(key, count)
    cos = jnp.asarray([1.0, 0.0, -1.0, 0.0])[turns]
    sin = jnp.asarray([0.0, 1.0, 0.0, -1.0])[turns]
    return _map(((cos, sin), (-sin, cos)))

  def _draw(self, key: Array, count: int) -> Array:
    """Quarter turns [B], counter-clockwise, as numpy.rot90 counts them."""
    u = uniform(key, 2, count)
    turns = 1 + jnp.floor(3 * u[1]).astype(jnp.int32)
    return jnp.where(u[0] < self.probability, turns, 0)


@dataclasses.dataclass(frozen=True)
class Affine:
  """Shears, scales, turns and moves an image, in this order, about its centre.

  Rows stay rows when it is sheared; it is moved down and right.
  """

  probability: float
  rotation: Range
  scale: Range
  shear: Range
  translation: Range

  def inverse(self, key: Array, count: int, size: tuple[int, int]) -> Array:
    u = uniform(key, 6, count)
    angle = jnp.deg2rad(between(u[1], self.rotation))
    scale = between(u[2], self.scale, log=True)
    lean = jnp.tan(jnp.deg2rad(between(u[3], self.shear)))
    moved = [n * between(v, self.translation) for n, v in zip(size, u[4:])]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    linear = (
      (cos / scale, sin / scale),
      ((-sin - lean * cos) / scale, (cos - lean * sin) / scale),
    )
    offset = [-(a * moved[0] + b * moved[1]) for a, b in linear]
    return _where(u[0] < self.probability, _map(linear, offset))


@dataclasses.dataclass(frozen=True)
class Crop:
  """Cuts a window out of an image and zooms it to the full size.

  As in Szegedy et al. (2015), https://arxiv.org/abs/1409.4842, section 6, with
  sides cut to those of the image.
  """

  probability: float
  area: Range
  aspect: Range

  def inverse(self, key: Array, count: int, size: tuple[int, int]) -> Array:
    u = uniform(key, 5, count)
    area = between(u[1], self.area)
    aspect = between(u[2], self.aspect, log=True)
    sides = [
      jnp.minimum(1, jnp.sqrt(area / aspect)),
      jnp.minimum(1, jnp.sqrt(area * aspect)),
    ]
    offset = [(v - 0.5) * (1 - s) * n for v, s, n in zip(u[3:], sides, size)]
    linear = ((sides[0], 0 * area), (0 * area, sides[1]))
    return _where(u[0] < self.probability, _map(linear, offset))


def _spline_matrix(length: int, nodes: int) -> np.ndarray:
  """Cubic spline from nodes to pixels, [length, nodes]; their ends coincide."""
  from scipy import ndimage  # Takes 0.2 s, which few runs need.

  places = [np.linspace(0, nodes - 1, length)]
  columns = [
    ndimage.map_coordinates(node, places, order=3, mode='mirror')
    for node in np.eye(nodes)
  ]
  return np.stack(columns, -1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Elastic:
  """Smooth random deformation (Ronneberger et al. 2015, section 3.1).

  https://arxiv.org/abs/1505.04597: displacements at the nodes of a coarse grid
  are Gaussian, those of the pixels between them are interpolated bicubically.
  The deviation `sigma`, of both components, is in pixels of the result.
  """

  probability: float
  grid: int
  sigma: Range

  def displacement(
    self, key: Array, count: int, size: tuple[int, int]
  ) -> Array:
    """Returns the displacements of rows and columns: float32 [2, B, H, W]."""
    key, key_nodes = jax.random.split(key)
    u = uniform(key, 2, count)
    sigma = (u[0] < self.probability) * between(u[1], self.sigma)
    shape = (2, count, self.grid, self.grid)
    nodes = per_image(sigma, 3) * jax.random.normal(key_nodes, shape)
    return jnp.einsum(
      'yi,abij,xj->abyx',
      _spline_matrix(size[0], self.grid),
      nodes,
      _spline_matrix(size[1], self.grid),
      precision='highest',
    )


def _mirror(places: Array, length: int) -> Array:
  """Mirrors places into 0..length - 1; border pixels are not repeated."""
  period = max(2 * (length - 1), 1)
  places = jnp.abs(places)
  return _reflect(places - period * jnp.floor(places / period), length)


def _reflect(places: Array, length: int) -> Array:
  """As `_mirror`, for places less than `length` beyond the border."""
  last = length - 1
  return jnp.clip(jnp.minimum(places, 2 * last - places), 0, last)


def _linear_weights(t: Array) -> dict[int, Array]:
  return {0: 1 - t, 1: t}


def _cubic_weights(t: Array) -> dict[int, Array]:
  """Keys (1981), equation 4, with a = -1/2: exact for quadratics."""
  return {
    -1: t * (-0.5 + t * (1 - 0.5 * t)),
    0: 1 + t * t * (-2.5 + 1.5 * t),
    1: t * (0.5 + t * (2 - 1.5 * t)),
    2: t * t * (-0.5 + 0.5 * t),
  }


INTERPOLATIONS = {'bilinear': _linear_weights, 'bicubic': _cubic_weights}


def _pack(image: Array, mask: Array) -> Array:
  """A pixel and its mask in one word, so that one lookup gets all of them."""
  packed = mask.astype(jnp.uint32) << 24
  for c in range(image.shape[-1]):
    packed |= image[..., c].astype(jnp.uint32) << (8 * c)
  return packed


def _look_up(array: Array, rows: Array, columns: Array) -> Array:
  """Returns array[b, rows[b], columns[b]] of each image b, mirrored."""
  count, height, width = array.shape
  # Per image, so that devices need only their own.
  index = _reflect(jnp.abs(rows), height) * width
  index += _reflect(jnp.abs(columns), width)
  array, index = (x.reshape(count, -1) for x in (array, index))
  found = jnp.take_along_axis(array, index, 1, mode='promise_in_bounds')
  return found.reshape(rows.shape)


def resample(
  batch: Batch, rows: Array, columns: Array, interpolation: str, border: str
) -> Batch:
  """Interpolates images at places between their pixels.

  Args:
    batch: `image` uint8 [B, H, W, C] with C at most 3, `mask` uint8 [B, H, W]
      and perhaps `weight_map` [B, H, W].
    rows: float32 [B, H, W], the source of each pixel; images are mirrored
      beyond their first and last row.
    columns: likewise.
    interpolation: of the image, `bilinear` or `bicubic`; masks and weight maps
      take the nearest pixel.
    border: `mirror`, or `ignore`: the mask is 255 outside the image.

  Returns:
    The batch with `image` as float32, 0 to 255.
  """
  height, width, channels = batch['image'].shape[1:]
  packed = _pack(batch['image'], batch['mask'])
  y, x = _mirror(rows, height), _mirror(columns, width)
  top, left = jnp.floor(y), jnp.floor(x)
  weights_of = INTERPOLATIONS[interpolation]
  y_weights, x_weights = weights_of(y - top), weights_of(x - left)
  lower, right = y - top >= 0.5, x - left >= 0.5
  top, left = top.astype(jnp.int32), left.astype(jnp.int32)
  shifts = jnp.arange(0, 8 * channels, 8, dtype=jnp.uint32)
  new_image, nearest = jnp.float32(0), jnp.uint32(0)
  for i, y_weight in y_weights.items():
    line = jnp.float32(0)
    for j, x_weight in x_weights.items():
      word = _look_up(packed, top + i, left + j)
      values = ((word[..., None] >> shifts) & 255).astype(jnp.float32)
      line += x_weight[..., None] * values
      if i in (0, 1) and j in (0, 1):
        nearest = jnp.where((lower == i) & (right == j), word, nearest)
    new_image += y_weight[..., None] * line
  if interpolation == 'bicubic':
    new_image = jnp.clip(new_image, 0, 255)  # It overshoots at edges.
  new_mask = (nearest >> 24).astype(jnp.uint8)
  if border == 'ignore':
    inside = (rows >= -0.5) & (rows < height - 0.5)
    inside &= (columns >= -0.5) & (columns < width - 0.5)
    new_mask = jnp.where(inside, new_mask, fields.IGNORE_LABEL)
  new = {'image': new_image, 'mask': new_mask}
  if 'weight_map' in batch:
    weight_map = batch['weight_map']
    new['weight_map'] = _look_up(weight_map, top + lower, left + right)
  return new


@dataclasses.dataclass(frozen=True)
class Resample:
  """Flips, turns, affine, crop, then elastic deformation, interpolated once.

  The maps are in the order in which they are applied.
  """

  maps: tuple[Map, ...] = ()
  elastic: Elastic | None = None
  interpolation: str = 'bilinear'
  border: str = 'mirror'

  def places(
    self, key: Array, count: int, size: tuple[int, int]
  ) -> tuple[Array, Array]:
    """Returns the source of each pixel: rows and columns, float32 [B, H, W].

    Its arguments are those of `Map.inverse`.
    """
    keys = jax.random.split(key, len(self.maps) + 1)
    inverse = jnp.broadcast_to(jnp.eye(3), (count, 3, 3))
    for part, part_key in zip(self.maps, keys):
      part_inverse = part.inverse(part_key, count, size)
      inverse = jnp.einsum(
        'bij,bjk->bik', inverse, part_inverse, precision='highest'
      )
    pixel = jnp.meshgrid(*map(jnp.arange, size), indexing='ij')
    from_centre = [p - (n - 1) / 2 for p, n in zip(pixel, size)]
    moved: Array | tuple[float, float] = (0.0, 0.0)
    if self.elastic:
      moved = self.elastic.displacement(keys[-1], count, size)
    entry = lambda i, j: inverse[:, i, j, None, None]

    def place(i: int) -> Array:
      # Written as a displacement that is exactly 0 where nothing was drawn.
      change = entry(i, 2)
      for j in range(2):
        change += (entry(i, j) - (i == j)) * from_centre[j]
        change += entry(i, j) * moved[j]
      return pixel[i] + change

    return place(0), place(1)

  def __call__(self, key: Array, batch: Batch) -> Batch:
    count, height, width = batch['mask'].shape
    rows, columns = self.places(key, count, (height, width))
    return resample(batch, rows, columns, self.interpolation, self.border)
