"""Augmentation on the device: image and mask together, inside the jitted step.

A transform is a frozen dataclass called as `transform(key, image, mask)` with
image [B, H, W, C] and mask [B, H, W], both uint8; it draws for each image of
the batch from `key` alone and returns the same shapes and types. Masks stay
integers and gain no value.
"""

import dataclasses

import jax
import jax.numpy as jnp

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Flip:
  """Mirrors each image and its mask with a probability.

  Attributes:
    axis: 1 turns rows (vertical), 2 columns (horizontal).
    probability: 0 to 1, drawn for each image.
  """

  axis: int
  probability: float

  def __call__(self, key: Array, image: Array, mask: Array):
    chosen = jax.random.bernoulli(key, self.probability, image.shape[:1])
    flip = lambda x: jnp.where(
      chosen.reshape(-1, *[1] * (x.ndim - 1)), jnp.flip(x, self.axis), x
    )
    return flip(image), flip(mask)


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Applies transforms in order, each with a key of its own."""

  transforms: tuple = ()

  def __call__(self, key: Array, image: Array, mask: Array):
    for i, transform in enumerate(self.transforms):
      image, mask = transform(jax.random.fold_in(key, i), image, mask)
    return image, mask


def make_augmentation(config) -> Augmentation:
  """Returns the transforms of a config; those of probability 0 are left out."""
  transforms = (
    Flip(2, config.augment.flip_horizontal),
    Flip(1, config.augment.flip_vertical),
  )
  return Augmentation(tuple(t for t in transforms if t.probability))
