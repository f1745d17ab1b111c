"""Augmentation on the device: image and mask together, inside the jitted step.

A transform is a frozen dataclass called as `transform(key, batch)`. A batch is
a dict of `image` [B, H, W, C], `mask` uint8 [B, H, W] and, where the loss has
one, `weight_map` float16 [B, H, W]; the same entries come back in the same
shapes. Each image is changed or not, with `probability`, 0 to 1; its draws
depend on `key` and on its place in the batch alone, however the batch is split
over devices. The fields of a transform are those of its section of `augment` in
config/default.py, which gives their units.

The order is: flips and turns, which only move pixels; `Resample`, which is
affine, crop and elastic deformation in one interpolation (both in
augment_geometry.py); then brightness, contrast, saturation, hue, gamma, blur,
noise, cutout. Images stay uint8 through flips and turns and are float32, 0 to
255, after anything else. An image for which nothing was drawn keeps its values
exactly. Masks are looked up, never interpolated: they gain no value, except 255
where that is asked for. With data.nodata, pixels that the mask ignores are left
out of the mean of contrast and of the sums of blur.

Volumes [B, D, H, W, C] take the flips and the changes of single voxels' values;
config/checks.py refuses the rest for them.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from unet_jax.config import fields
from unet_jax.data import augment_geometry as geometry
from unet_jax.data.augment_geometry import Array, Batch, Range

# Red, green and blue in grey (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


def _grey(image: Array) -> Array:
  """[B, H, W, C] to [B, H, W, 1]."""
  if image.shape[-1] == 1:
    return image
  # Written out: a sum over so short an axis is slow on CPUs.
  red, green, blue = (image[..., c : c + 1] * _LUMA[c] for c in range(3))
  return red + green + blue


def brightness(image: Array, amount: Array, key: Array) -> Array:
  """Multiplies by the amount."""
  del key
  return image * amount


def contrast(
  image: Array, amount: Array, key: Array, counted: Array | None = None
) -> Array:
  """Multiplies the distance from the image's mean grey by the amount."""
  del key
  axes = tuple(range(1, image.ndim))
  mean = jnp.mean(_grey(image), axes, keepdims=True, where=counted)
  if counted is not None:  # There may be none.
    mean = jnp.nan_to_num(mean)
  return mean + amount * (image - mean)


def saturation(image: Array, amount: Array, key: Array) -> Array:
  """Multiplies the distance from each pixel's grey by the amount."""
  del key
  grey = _grey(image)
  return grey + amount * (image - grey)


def hue(image: Array, amount: Array, key: Array) -> Array:
  """Turns the hue of HSV by degrees; saturation and value stay.

  In sixths of the circle, a pixel's hue is the position of its middle channel
  between the two others; https://en.wikipedia.org/wiki/HSL_and_HSV.
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
  lines = (*image.shape[:2], math.prod(image.shape[2:]))
  values = jax.random.normal(key, lines)
  return image + amount * values.reshape(image.shape)


@dataclasses.dataclass(frozen=True)
class Blur:
  """Blurs with a Gaussian; called like `brightness`, with sigma in pixels.

  The kernel's radius is in pixels; the border is mirrored.
  """

  radius: int

  def __call__(
    self,
    image: Array,
    amount: Array,
    key: Array,
    counted: Array | None = None,
  ) -> Array:
    del key
    places = jnp.arange(-self.radius, self.radius + 1)
    # Below a hundredth of a pixel, the kernel is one pixel anyway.
    kernel = jnp.exp(-((places / jnp.maximum(amount, 0.01)) ** 2) / 2)
    kernel /= jnp.sum(kernel, -1, keepdims=True)
    if counted is None:
      return self._spread(image, kernel)
    # Of neighbours that count, the others' weights are shared out among them.
    total = self._spread(image * counted, kernel)
    weight = self._spread(counted.astype(jnp.float32), kernel)
    return jnp.where(weight > 0, total / jnp.maximum(weight, 1e-6), image)

  def _spread(self, image: Array, kernel: Array) -> Array:
    """Sums pixels along both axes: [B, H, W, C], kernel [B, 1, 1, R]."""
    for axis in (1, 2):
      pad = [(0, 0)] * 4
      pad[axis] = (self.radius, self.radius)
      padded = jnp.pad(image, pad, mode='reflect')
      parts = [
        kernel[..., i : i + 1]
        * jax.lax.slice_in_dim(padded, i, i + image.shape[axis], axis=axis)
        for i in range(kernel.shape[-1])
      ]
      image = sum(parts[1:], parts[0])
    return image


@dataclasses.dataclass(frozen=True)
class Photometric:
  """Changes the values of some images; results are cut off at 0 and 255.

  Attributes:
    change: called with image float32 [B, H, W, C], amount float32 [B, 1, 1, 1]
      (of volumes an axis more) and a key; returns the new image. With
      skips_ignored also with `counted`, the pixels that count in sums, bool
      [B, H, W, 1].
    range: of the amount, drawn for each image.
    log: draws the amount evenly on a log scale.
    skips_ignored: whether sums leave out pixels that the mask ignores.
  """

  change: Callable[..., Array]
  probability: float
  range: Range
  log: bool = False
  skips_ignored: bool = False

  def __call__(self, key: Array, batch: Batch) -> Batch:
    key, key_change = jax.random.split(key)
    image = batch['image'].astype(jnp.float32)
    drawn, amount = geometry.uniform(key, 2, len(image))
    drawn = drawn < self.probability
    amount = geometry.between(amount, self.range, self.log)
    per_image = lambda values: geometry.per_image(values, image.ndim)
    counted = {}
    if self.skips_ignored:
      counted['counted'] = (batch['mask'] != fields.IGNORE_LABEL)[..., None]
    new = self.change(image, per_image(amount), key_change, **counted)
    new = jnp.clip(new, 0, 255)
    return {**batch, 'image': jnp.where(per_image(drawn), new, image)}


@dataclasses.dataclass(frozen=True)
class Cutout:
  """Covers a square (DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552).

  Its centre may be any pixel, so that a part of it may lie outside. It is
  filled with one value for each channel, 0 to 255.
  """

  probability: float
  range: Range
  fill: tuple[float, ...]
  mask: str

  def __call__(self, key: Array, batch: Batch) -> Batch:
    count, *size = batch['mask'].shape
    per_image = lambda values: geometry.per_image(values, 3)
    u = geometry.uniform(key, 4, count)
    side = per_image(min(size) * geometry.between(u[1], self.range))
    covered = per_image(u[0] < self.probability)
    for axis, n in enumerate(size):
      middle = per_image(jnp.floor(n * u[2 + axis]))
      place = jnp.arange(n).reshape((-1, 1) if axis == 0 else (1, -1))
      covered &= jnp.abs(place - middle) < side / 2
    image = batch['image'].astype(jnp.float32)
    image = jnp.where(covered[..., None], jnp.asarray(self.fill), image)
    batch = {**batch, 'image': image}
    if self.mask == 'ignore':
      ignored = jnp.uint8(fields.IGNORE_LABEL)
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


def make_augmentation(config: ml_collections.ConfigDict) -> Augmentation:
  """Returns the transforms of a config that have a probability above 0."""
  a = config.augment
  on = lambda *transforms: tuple(t for t in transforms if t.probability)
  columns = len(config.data.image_size)  # The last axis but channels.
  moves = on(
    geometry.Flip(columns, a.flip_horizontal),
    geometry.Flip(columns - 1, a.flip_vertical),
    geometry.Turn(a.rotate_90),
  )
  # The fields of these sections are those of the classes.
  affine = on(geometry.Affine(**a.affine), geometry.Crop(**a.crop))
  elastic = on(geometry.Elastic(**a.elastic))
  if affine or elastic:
    # Not moved first: compilers would do so again for each pixel looked up.
    resample = geometry.Resample(
      moves + affine, elastic[0] if elastic else None, a.interpolation, a.border
    )
    moves = (resample,)
  # Beyond three sigma there is 0.3 % of a Gaussian.
  blur = Blur(max(1, math.ceil(3 * a.blur.range[1])))
  fill = tuple(255 * mean for mean in config.data.mean)
  skips = bool(config.data.nodata)
  return Augmentation(
    moves
    + on(
      Photometric(brightness, **a.brightness),
      Photometric(contrast, **a.contrast, skips_ignored=skips),
      Photometric(saturation, **a.saturation),
      Photometric(hue, **a.hue),
      Photometric(gamma, **a.gamma, log=True),
      Photometric(blur, **a.blur, skips_ignored=skips),
      Photometric(noise, **a.noise),
      Cutout(**a.cutout, fill=fill),
    )
  )
