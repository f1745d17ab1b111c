"""Augmentation on the device: image and mask together, inside the jitted step.

A transform is a frozen dataclass called as `transform(key, batch)`. A batch is
a dict of `image` [B, H, W, C], `mask` uint8 [B, H, W] and, where the loss has
one, `weight_map` float16 [B, H, W]; the same entries come back in the same
shapes. Each image's draws depend on `key` and on its place in the batch alone,
however the batch is split over devices.

The order is: flips and turns, which only move pixels; `Resample`, which is
affine, crop and elastic deformation in one interpolation; then brightness,
contrast, saturation, hue, gamma, blur, noise, cutout. Images stay uint8 through
flips and turns and are float32, 0 to 255, after anything else. An image for
which nothing was drawn keeps its values exactly. Masks are looked up, never
interpolated: they gain no value, except 255 where that is asked for.

Volumes [B, D, H, W, C] take the flips and what changes each voxel's values by
themselves; config.py refuses the rest for them.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from unet_jax import config as config_lib

Array = jax.Array
Batch = dict[str, Array]
Range = tuple[float, float]

# Red, green and blue in grey (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


def _uniform(key: Array, number: int, count: int) -> Array:
  """Returns [number, count] in 0..1: all that a transform draws, at once."""
  return jax.random.uniform(key, (number, count))


def _between(uniform: Array, limits: Range, log: bool = False) -> Array:
  """Spreads 0..1 evenly between limits, `log`: evenly on a log scale."""
  low, high = map(math.log, limits) if log else limits
  values = low + (high - low) * uniform
  return jnp.exp(values) if log else values


def _per_image(values: Array, ndim: int) -> Array:
  """[B] to [B, 1, ...] with `ndim` axes."""
  return values.reshape(-1, *[1] * (ndim - 1))


def _choose(chosen: Array, batch: Batch, other: Batch) -> Batch:
  """Takes the images [B] that are chosen from `other`."""
  return jax.tree.map(
    lambda x, y: jnp.where(_per_image(chosen, x.ndim), y, x), batch, other
  )


def _map(linear, offset=None) -> Array:
  """Returns [B, 3, 3] of 2x2 entries and 2 offsets (or 0), each [B]."""
  zero = 0.0 * linear[0][0]
  offset = offset or (zero, zero)
  rows = [(*line, o) for line, o in zip(linear, offset)]
  rows.append((zero, zero, zero + 1))
  return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def _where(drawn: Array, value: Array) -> Array:
  """`value` [B, 3, 3] of the images [B] that are drawn, or no change."""
  return jnp.where(_per_image(drawn, 3), value, jnp.eye(3))


@dataclasses.dataclass(frozen=True)
class Flip:
  """Mirrors each image and its mask with a probability.

  Attributes:
    axis: of the batch; of images, 1 turns rows (vertical), 2 columns
      (horizontal).
    probability: 0 to 1, drawn for each image.
  """

  axis: int
  probability: float

  def __call__(self, key: Array, batch: Batch) -> Batch:
    chosen = self._draw(key, len(batch['image']))
    flipped = jax.tree.map(lambda x: jnp.flip(x, self.axis), batch)
    return _choose(chosen, batch, flipped)

  def inverse(self, key: Array, count: int, size: tuple[int, int]) -> Array:
    """The same, as `Affine.inverse`."""
    del size
    sign = 1.0 - 2 * self._draw(key, count)
    one = jnp.ones_like(sign)
    rows, columns = (sign, one) if self.axis == 1 else (one, sign)
    return _map(((rows, 0 * one), (0 * one, columns)))

  def _draw(self, key: Array, count: int) -> Array:
    return _uniform(key, 1, count)[0] < self.probability


@dataclasses.dataclass(frozen=True)
class Turn:
  """Turns square images by 90, 180 or 270 degrees, each as often.

  Attributes:
    probability: of a turn, 0 to 1, drawn for each image.
  """

  probability: float

  def __call__(self, key: Array, batch: Batch) -> Batch:
    turns = self._draw(key, len(batch['image']))
    transposed = jax.tree.map(lambda x: x.swapaxes(1, 2), batch)
    batch = _choose(turns % 2 == 1, batch, transposed)
    for axis, mirrored in ((1, (1, 2)), (2, (2, 3))):
      chosen = (turns == mirrored[0]) | (turns == mirrored[1])
      flipped = jax.tree.map(lambda x: jnp.flip(x, axis), batch)
      batch = _choose(chosen, batch, flipped)
    return batch

  def inverse(self, key: Array, count: int, size: tuple[int, int]) -> Array:
    """The same, as `Affine.inverse`."""
    del size
    turns = self._draw(key, count)
    cos = jnp.asarray([1.0, 0.0, -1.0, 0.0])[turns]
    sin = jnp.asarray([0.0, 1.0, 0.0, -1.0])[turns]
    return _map(((cos, sin), (-sin, cos)))

  def _draw(self, key: Array, count: int) -> Array:
    """Quarter turns [B], counter-clockwise, as numpy.rot90 counts them."""
    u = _uniform(key, 2, count)
    turns = 1 + jnp.floor(3 * u[1]).astype(jnp.int32)
    return jnp.where(u[0] < self.probability, turns, 0)


@dataclasses.dataclass(frozen=True)
class Affine:
  """Shears, scales, turns and moves an image, in this order, about its centre.

  Attributes:
    probability: 0 to 1, drawn for each image.
    rotation: degrees, counter-clockwise.
    scale: factor of both sides, drawn evenly on a log scale.
    shear: degrees by which columns lean; rows stay rows.
    translation: shares of the height (down) and the width (right), one drawn
      for each.
  """

  probability: float
  rotation: Range
  scale: Range
  shear: Range
  translation: Range

  def inverse(self, key: Array, count: int, size: tuple[int, int]) -> Array:
    """Maps (row, column, 1) from the result's centre to the image's centre.

    Args:
      key: of the draws.
      count: B.
      size: height and width, in pixels.

    Returns:
      float32 [B, 3, 3].
    """
    u = _uniform(key, 6, count)
    angle = jnp.deg2rad(_between(u[1], self.rotation))
    scale = _between(u[2], self.scale, log=True)
    lean = jnp.tan(jnp.deg2rad(_between(u[3], self.shear)))
    moved = [n * _between(v, self.translation) for n, v in zip(size, u[4:])]
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

  As in Szegedy et al. (2015), https://arxiv.org/abs/1409.4842, section 6,
  except that a side which would be longer than the image's is that long.

  Attributes:
    probability: 0 to 1, drawn for each image.
    area: share of the image's area.
    aspect: of the window's width to height, over the image's; drawn evenly on
      a log scale.
  """

  probability: float
  area: Range
  aspect: Range

  def inverse(self, key: Array, count: int, size: tuple[int, int]) -> Array:
    """As `Affine.inverse`."""
    u = _uniform(key, 5, count)
    area = _between(u[1], self.area)
    aspect = _between(u[2], self.aspect, log=True)
    sides = [
      jnp.minimum(1, jnp.sqrt(area / aspect)),
      jnp.minimum(1, jnp.sqrt(area * aspect)),
    ]
    offset = [(v - 0.5) * (1 - s) * n for v, s, n in zip(u[3:], sides, size)]
    linear = ((sides[0], 0 * area), (0 * area, sides[1]))
    return _where(u[0] < self.probability, _map(linear, offset))


def _spline_matrix(length: int, nodes: int) -> np.ndarray:
  """Returns [length, nodes], which interpolates nodes by a cubic spline.

  The first and the last node lie on the first and the last pixel.
  """
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

  Attributes:
    probability: 0 to 1, drawn for each image.
    grid: nodes along each axis.
    sigma: standard deviation of both components, in pixels of the result.
  """

  probability: float
  grid: int
  sigma: Range

  def displacement(self, key: Array, count: int, size: tuple[int, int]):
    """Returns those of rows and of columns, each float32 [B, H, W]."""
    key, key_nodes = jax.random.split(key)
    u = _uniform(key, 2, count)
    sigma = (u[0] < self.probability) * _between(u[1], self.sigma)
    shape = (2, count, self.grid, self.grid)
    nodes = _per_image(sigma, 3) * jax.random.normal(key_nodes, shape)
    return jnp.einsum(
      'yi,abij,xj->abyx',
      _spline_matrix(size[0], self.grid),
      nodes,
      _spline_matrix(size[1], self.grid),
      precision='highest',
    )


def _mirror(places: Array, length: int) -> Array:
  """Folds places to 0..length - 1; the border pixels are not repeated."""
  last = length - 1
  period = max(2 * last, 1)
  places = jnp.abs(places)
  places -= period * jnp.floor(places / period)
  return jnp.clip(jnp.minimum(places, 2 * last - places), 0, last)


def _mirror_neighbor(index: Array, length: int) -> Array:
  """As `_mirror`, for neighbours of what it returns that have a weight."""
  last = length - 1
  index = jnp.abs(index)
  return jnp.clip(jnp.minimum(index, 2 * last - index), 0, last)


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


def resample(
  batch: Batch, rows: Array, columns: Array, interpolation: str, border: str
) -> Batch:
  """Looks images up at places between their pixels.

  Args:
    batch: `image` uint8 [B, H, W, C] with C at most 3, `mask` uint8 [B, H, W]
      and perhaps `weight_map` [B, H, W].
    rows: float32 [B, H, W], where each pixel comes from; beyond the first and
      the last row the image is mirrored.
    columns: likewise.
    interpolation: of the image, `bilinear` or `bicubic`; masks and weight maps
      are those of the nearest pixel.
    border: `mirror`, or `ignore`: the mask is 255 outside the image.

  Returns:
    The batch with `image` as float32, 0 to 255.
  """
  image, mask = batch['image'], batch['mask']
  height, width, channels = image.shape[1:]
  # The bytes of a pixel and its mask in one word: one lookup for all of them.
  packed = mask.astype(jnp.uint32) << 24
  for c in range(channels):
    packed |= image[..., c].astype(jnp.uint32) << (8 * c)

  def look_up(array, row, column):
    # Within each image, so that devices need only their own.
    index = (row * width + column).reshape(len(array), -1)
    flat = array.reshape(len(array), -1)
    return jnp.take_along_axis(
      flat, index, axis=1, mode='promise_in_bounds'
    ).reshape(row.shape)

  y, x = _mirror(rows, height), _mirror(columns, width)
  top, left = jnp.floor(y), jnp.floor(x)
  weights_of = INTERPOLATIONS[interpolation]
  y_weights, x_weights = weights_of(y - top), weights_of(x - left)
  lower, right = y - top >= 0.5, x - left >= 0.5
  top, left = top.astype(jnp.int32), left.astype(jnp.int32)
  shifts = jnp.arange(0, 8 * channels, 8, dtype=jnp.uint32)
  new_image, nearest = 0.0, jnp.uint32(0)
  for i, y_weight in y_weights.items():
    line = 0.0
    for j, x_weight in x_weights.items():
      word = look_up(
        packed,
        _mirror_neighbor(top + i, height),
        _mirror_neighbor(left + j, width),
      )
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
    new_mask = jnp.where(inside, new_mask, config_lib.IGNORE_LABEL)
  new = {'image': new_image, 'mask': new_mask.astype(jnp.uint8)}
  if 'weight_map' in batch:
    new['weight_map'] = look_up(
      batch['weight_map'],
      _mirror_neighbor(top + lower, height),
      _mirror_neighbor(left + right, width),
    )
  return new


@dataclasses.dataclass(frozen=True)
class Resample:
  """Flips, turns, affine, crop, then elastic deformation, interpolated once.

  Attributes:
    maps: what has a method `inverse`, in the order in which it is applied.
    elastic: or None.
    interpolation: see `resample`.
    border: see `resample`.
  """

  maps: tuple = ()
  elastic: Elastic | None = None
  interpolation: str = 'bilinear'
  border: str = 'mirror'

  def places(self, key: Array, count: int, size: tuple[int, int]):
    """Where each pixel of the result comes from.

    Args:
      key: of the draws.
      count: B.
      size: height and width, in pixels.

    Returns:
      Rows and columns, each float32 [B, H, W].
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
    moved = [0.0, 0.0]
    if self.elastic:
      moved = self.elastic.displacement(keys[-1], count, size)
    entry = lambda i, j: inverse[:, i, j, None, None]
    result = []
    for i in range(2):
      # Written as a displacement that is exactly 0 where nothing was drawn.
      change = entry(i, 2)
      for j in range(2):
        change += (entry(i, j) - (i == j)) * from_centre[j]
        change += entry(i, j) * moved[j]
      result.append(pixel[i] + change)
    return result

  def __call__(self, key: Array, batch: Batch) -> Batch:
    count, *size = batch['image'].shape[:3]
    rows, columns = self.places(key, count, tuple(size))
    return resample(batch, rows, columns, self.interpolation, self.border)


def _grey(image: Array) -> Array:
  """[B, H, W, C] to [B, H, W, 1]."""
  if image.shape[-1] == 1:
    return image
  # Written out: a sum over so short an axis is slow on CPUs.
  return sum(image[..., c : c + 1] * luma for c, luma in enumerate(_LUMA))


def brightness(image: Array, amount: Array, key: Array) -> Array:
  """Multiplies by the amount."""
  del key
  return image * amount


def contrast(image: Array, amount: Array, key: Array) -> Array:
  """Multiplies the distance from the image's mean grey by the amount."""
  del key
  mean = jnp.mean(_grey(image), tuple(range(1, image.ndim)), keepdims=True)
  return mean + amount * (image - mean)


def saturation(image: Array, amount: Array, key: Array) -> Array:
  """Multiplies the distance from each pixel's grey by the amount."""
  del key
  grey = _grey(image)
  return grey + amount * (image - grey)


def hue(image: Array, amount: Array, key: Array) -> Array:
  """Turns the hue of HSV by degrees; saturation and value stay.

  The hue of a pixel, in sixths of the circle, is where its middle channel
  stands between the two others; https://en.wikipedia.org/wiki/HSL_and_HSV.
  """
  del key
  red, green, blue = (image[..., c : c + 1] for c in range(3))
  value = jnp.max(image, -1, keepdims=True)
  chroma = value - jnp.min(image, -1, keepdims=True)
  sixth = jnp.where(
    value == red,
    green - blue,
    jnp.where(value == green, blue - red, red - green),
  ) / jnp.maximum(chroma, 1e-6)
  sixth += jnp.where(value == red, 0, jnp.where(value == green, 2, 4))
  # Red, green and blue are highest at 0, 2 and 4, and lowest opposite.
  distance = sixth + amount / 60 - jnp.asarray([0.0, 2.0, 4.0])
  distance = jnp.abs(distance - 6 * jnp.round(distance / 6))
  return value - chroma * jnp.clip(distance - 1, 0, 1)


def gamma(image: Array, amount: Array, key: Array) -> Array:
  """Raises values, as shares of 255, to the amount."""
  del key
  return 255 * (image / 255) ** amount


def noise(image: Array, amount: Array, key: Array) -> Array:
  """Adds Gaussian noise whose standard deviation, of 255, is the amount."""
  # Drawn in lines: random bits with a short last axis are slow to make.
  values = jax.random.normal(
    key, (*image.shape[:2], math.prod(image.shape[2:]))
  )
  return image + amount * values.reshape(image.shape)


@dataclasses.dataclass(frozen=True)
class Blur:
  """Blurs with a Gaussian; called like `brightness`, with sigma in pixels.

  Attributes:
    radius: of the kernel, in pixels; the border is mirrored.
  """

  radius: int

  def __call__(self, image: Array, amount: Array, key: Array) -> Array:
    del key
    places = jnp.arange(-self.radius, self.radius + 1)
    # Below a hundredth of a pixel, the kernel is one pixel anyway.
    kernel = jnp.exp(-((places / jnp.maximum(amount, 0.01)) ** 2) / 2)
    kernel /= jnp.sum(kernel, -1, keepdims=True)
    for axis in (1, 2):
      pad = [(0, 0)] * 4
      pad[axis] = (self.radius, self.radius)
      padded = jnp.pad(image, pad, mode='reflect')
      image = sum(
        kernel[..., i : i + 1]
        * jax.lax.slice_in_dim(padded, i, i + image.shape[axis], axis=axis)
        for i in range(len(places))
      )
    return image


@dataclasses.dataclass(frozen=True)
class Photometric:
  """Changes the values of some images; results are cut off at 0 and 255.

  Attributes:
    change: called with image float32 [B, H, W, C], amount float32 [B, 1, 1, 1]
      (of volumes an axis more) and a key; returns the new image.
    probability: 0 to 1, drawn for each image.
    range: of the amount, drawn for each image.
    log: draws the amount evenly on a log scale.
  """

  change: Callable[[Array, Array, Array], Array]
  probability: float
  range: Range
  log: bool = False

  def __call__(self, key: Array, batch: Batch) -> Batch:
    key, key_change = jax.random.split(key)
    image = batch['image'].astype(jnp.float32)
    drawn, amount = _uniform(key, 2, len(image))
    drawn = drawn < self.probability
    amount = _between(amount, self.range, self.log)
    ndim = image.ndim
    new = self.change(image, _per_image(amount, ndim), key_change)
    new = jnp.clip(new, 0, 255)
    return {**batch, 'image': jnp.where(_per_image(drawn, ndim), new, image)}


@dataclasses.dataclass(frozen=True)
class Cutout:
  """Covers a square (DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552).

  Its centre may be any pixel, so that a part of it may lie outside.

  Attributes:
    probability: 0 to 1, drawn for each image.
    range: of the square's side, as a share of the shorter edge.
    fill: values of the channels, 0 to 255.
    mask: `keep`, or `ignore`: 255 under the square.
  """

  probability: float
  range: Range
  fill: tuple[float, ...]
  mask: str

  def __call__(self, key: Array, batch: Batch) -> Batch:
    count, *size = batch['mask'].shape
    u = _uniform(key, 4, count)
    side = min(size) * _between(u[1], self.range)
    covered = _per_image(u[0] < self.probability, 3)
    for axis, n in enumerate(size):
      middle = _per_image(jnp.floor(n * u[2 + axis]), 3)
      place = jnp.arange(n).reshape((-1, 1) if axis == 0 else (1, -1))
      covered &= jnp.abs(place - middle) < _per_image(side, 3) / 2
    image = batch['image'].astype(jnp.float32)
    image = jnp.where(covered[..., None], jnp.asarray(self.fill), image)
    batch = {**batch, 'image': image}
    if self.mask == 'ignore':
      ignored = jnp.uint8(config_lib.IGNORE_LABEL)
      batch['mask'] = jnp.where(covered, ignored, batch['mask'])
    return batch


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Applies transforms in order, each with a key of its own."""

  transforms: tuple = ()

  def __call__(self, key: Array, batch: Batch) -> Batch:
    for i, transform in enumerate(self.transforms):
      batch = transform(jax.random.fold_in(key, i), batch)
    return batch


def make_augmentation(config) -> Augmentation:
  """Returns the transforms of a config; those of probability 0 are left out."""
  a = config.augment
  on = lambda *transforms: tuple(t for t in transforms if t.probability)
  columns = len(config.data.image_size)  # The last axis but channels.
  moves = on(
    Flip(columns, a.flip_horizontal),
    Flip(columns - 1, a.flip_vertical),
    Turn(a.rotate_90),
  )
  affine = on(
    Affine(
      a.affine.probability,
      a.affine.rotation,
      a.affine.scale,
      a.affine.shear,
      a.affine.translation,
    ),
    Crop(a.crop.probability, a.crop.area, a.crop.aspect),
  )
  elastic = on(Elastic(a.elastic.probability, a.elastic.grid, a.elastic.sigma))
  if affine or elastic:
    # Not moved first: compilers would do so again for each pixel looked up.
    moves = (
      Resample(moves + affine, *(elastic or [None]), a.interpolation, a.border),
    )
  # Beyond three sigma there is 0.3 % of a Gaussian.
  blur = Blur(max(1, math.ceil(3 * a.blur.range[1])))
  fill = tuple(255 * mean for mean in config.data.mean)
  return Augmentation(
    moves
    + on(
      Photometric(brightness, a.brightness.probability, a.brightness.range),
      Photometric(contrast, a.contrast.probability, a.contrast.range),
      Photometric(saturation, a.saturation.probability, a.saturation.range),
      Photometric(hue, a.hue.probability, a.hue.range),
      Photometric(gamma, a.gamma.probability, a.gamma.range, log=True),
      Photometric(blur, a.blur.probability, a.blur.range),
      Photometric(noise, a.noise.probability, a.noise.range),
      Cutout(a.cutout.probability, a.cutout.range, fill, a.cutout.mask),
    )
  )
