"""The default and every recipe, with each of its arguments."""

import importlib

from unet_jax.config import default

_RECIPES = (
  'folder isbi_2012 isbi_2012:small keras_lesson keras_lesson:bilinear '
  'oxford_pets oxford_pets:small shapes volumes'
)


def _config(recipe):
  name, *argument = recipe.split(':')
  return importlib.import_module(f'configs.{name}').get_config(*argument)


CONFIGS = {'default': default.get_config()}
CONFIGS |= {recipe: _config(recipe) for recipe in _RECIPES.split()}
