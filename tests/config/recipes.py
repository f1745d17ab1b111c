"""The default and every recipe, with each of its arguments."""

from configs import (
  folder,
  isbi_2012,
  keras_lesson,
  oxford_pets,
  shapes,
  volumes,
)
from unet_jax.config import default

CONFIGS = {
  'default': default.get_config(),
  'folder': folder.get_config(),
  'isbi_2012': isbi_2012.get_config(),
  'isbi_2012:small': isbi_2012.get_config('small'),
  'keras_lesson': keras_lesson.get_config(),
  'keras_lesson:bilinear': keras_lesson.get_config('bilinear'),
  'oxford_pets': oxford_pets.get_config(),
  'oxford_pets:small': oxford_pets.get_config('small'),
  'shapes': shapes.get_config(),
  'volumes': volumes.get_config(),
}
