"""A trained network as a function of images, for programs and notebooks."""

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from unet_jax.config import checks, saved
from unet_jax.config import fields as fields_lib
from unet_jax.data import rasters
from unet_jax.kernels import build
from unet_jax.models import unet
from unet_jax.prediction import kinds, predictor, probabilities, restore
from unet_jax.runtime import errors
from unet_jax.runtime import mesh as mesh_lib

_log = logging.getLogger(__name__)

# Modes of Pillow whose arrays are no grey and no RGB.
_NO_VALUES = ('P', 'PA', 'CMYK', 'YCbCr', 'HSV')


def load(
  workdir: str | os.PathLike, fields: Mapping[str, Any] | None = None
) -> 'Segmenter':
  """Loads the network of a run.

  Args:
    workdir: of a training run, or of a cross-validation, whose folds are then
      averaged.
    fields: {'section.field': value} to set in its config, such as
      {'inference.flips': ('horizontal',), 'checkpoint.which': 'best'}.

  Returns:
    A function of images, see `Segmenter`.

  Raises:
    UserError: the workdir has no config or no checkpoint, or a field cannot
      have that value.
  """
  if not isinstance(workdir, str | os.PathLike):
    raise errors.UserError(
      f'{workdir!r} is no path of a run; further ones are named by the field '
      'inference.ensemble'
    )
  fields = {} if fields is None else fields
  if not (isinstance(fields, Mapping) and all(map(_is_text, fields))):
    raise errors.UserError(
      f"{fields!r}: fields are a dict such as {{'eval.params': 'raw'}}"
    )
  workdir = os.path.abspath(workdir)
  config = saved.read(workdir, fields)
  if config is None:
    raise errors.UserError(
      f'{workdir} has no config.json; name the workdir of a run'
    )
  checks.validate(config, 'load')
  return Segmenter(config, workdir)


def _is_text(value: object) -> bool:
  return isinstance(value, str)


class Segmenter:
  """Probabilities of images, in the order of `class_names`; see `load`."""

  def __init__(self, config: ml_collections.ConfigDict, workdir: str):
    self.config = config
    self.class_names = fields_lib.class_names(config)
    mesh = mesh_lib.make_prediction_mesh(config)
    variables, ensemble, about = restore.restore(config, workdir, mesh)
    self._checks = kinds.checks(config, about[0])
    model = unet.create_model(config, build.choose(config, mesh))
    self._predictor = predictor.Predictor(
      config, model, variables, ensemble, mesh
    )

  def __call__(self, images: Any) -> np.ndarray | list[np.ndarray]:
    """Returns the probabilities of each class, at the images' own size.

    Args:
      images: an image [H, W, C] or [H, W], a batch [B, H, W, C], or a list of
        images of any sizes, Pillow's too; grey or RGB, either with alpha (see
        data.alpha); integers of 0..255, uint16 of 0..65535 or floats of 0..1
        (of any type and range unless data.intensity is `dtype`; with `range`,
        values as the files of the training had them).

    Returns:
      float32 [H, W, classes], [B, H, W, classes], or a list of these, that add
      up to 1; there are two classes where the network has one sigmoid channel.
      Pixels without data (data.nodata, data.alpha) are NaN.

    Raises:
      UserError: an array of another shape, or of values that cannot be used.
    """
    if isinstance(images, list | tuple):
      return self._of_list(images)
    if np.ndim(images) == 4:
      images = np.asarray(images)
      shape = (*images.shape[:3], len(self.class_names))
      return np.reshape(self._of_list(images), shape).astype(np.float32)
    return self._of_list([images])[0]

  def _of_list(self, images: Iterable[Any]) -> list[np.ndarray]:
    data = self.config.data
    opened = [
      rasters.ArrayRaster(_as_stored(image, data), data) for image in images
    ]
    for check in self._checks:
      if not check.warning():
        for raster in opened:
          check.see(raster)
        if line := check.warning():
          _log.warning('%s', line)  # Once.
    found = []
    for raster, logits in zip(opened, self._predictor.logits(opened)):
      planes = probabilities.planes(logits)
      ignored = raster.ignored(0, raster.size[0])
      if ignored is not None:
        planes[:, ignored] = np.nan
      found.append(np.ascontiguousarray(np.moveaxis(planes, 0, -1)))
    return found


def _as_stored(image: Any, data: ml_collections.ConfigDict) -> np.ndarray:
  """Returns an array as a file would hold it.

  Raises:
    UserError: it is empty, no array, or of other values than `Segmenter` takes.
  """
  if isinstance(image, Image.Image) and image.mode in _NO_VALUES:
    has_alpha = 'transparency' in image.info or image.mode == 'PA'
    image = image.convert('RGBA' if has_alpha else 'RGB')
  image = np.asarray(image)
  if image.ndim not in (2, 3) or not image.size:
    raise errors.UserError(
      f'an image is an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not of '
      f'shape {image.shape}; PIL.Image.open(path) reads a file'
    )
  if jnp.issubdtype(image.dtype, jnp.floating) and image.dtype.kind != 'f':
    image = image.astype(np.float32)  # Such as bfloat16.
  if image.dtype.kind not in 'biuf':
    raise errors.UserError(
      f'an image of {image.dtype} has no values to show; pass uint8 of 0..255, '
      'or floats of 0..1'
    )
  if image.dtype == bool:
    return image.astype(np.uint8) * np.uint8(255)
  # Of floats without data in places, the raster knows which.
  if data.intensity != 'dtype' or (
    image.dtype in (np.uint8, np.uint16)
    or (image.dtype.kind == 'f' and data.nodata)
  ):
    return image
  # Integers are widened by arithmetic; they still mean 0..255.
  highest = 1 if image.dtype.kind == 'f' else 255
  if not (image.min() >= 0 and image.max() <= highest):
    raise errors.UserError(
      f'an image of {image.dtype} holds values from {image.min():g} to '
      f'{image.max():g}, expected 0..{highest}; pass uint8 of 0..255, or '
      'divide by the highest value that its pixels can have'
    )
  return image if highest == 1 else image.astype(np.uint8)
