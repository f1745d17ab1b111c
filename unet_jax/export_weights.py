"""Export of a checkpoint's parameters to one file, for other programs."""

import logging
import os

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from unet_jax.config import fields, saved
from unet_jax.prediction import restore
from unet_jax.runtime import errors, mesh, program
from unet_jax.weights import deduce, files, naming

_log = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Writes the parameters of a checkpoint as safetensors.

  Args:
    config: `export`, `checkpoint.which`, `checkpoint.step` and `eval.params`
      say what is written where.
    workdir: absolute path of a run.

  Raises:
    UserError: there is no such checkpoint, or the network has no counterpart in
      the names that are asked for.
  """
  program.initialize(fields.cache_dir(config))
  path = config.export.path
  folder = os.path.dirname(os.path.abspath(path))
  if not os.path.isdir(folder):
    raise errors.UserError(
      f'--config.export.path={path}: there is no folder {folder}; make it, or '
      'choose another'
    )
  variables, _, about = restore.restore(config, workdir, mesh.make_mesh(config))
  if len(about) > 1:
    raise errors.UserError(
      f'--mode=export writes one network, not {len(about)}; choose one with '
      '--config.checkpoint.step=N, without inference.ensemble'
    )
  step, which = about[0]['step'], about[0]['params']
  variables = multihost_utils.process_allgather(variables, tiled=True)
  variables = jax.tree.map(np.asarray, variables)
  arrays = naming.flatten(variables)
  exported = named(arrays, config)
  metadata = {
    'writer': 'unet_jax',
    'config': saved.to_json(config),
    'step': str(step),
    'params': which,
    'naming': config.export.format,
  }
  if jax.process_index() == 0:
    files.write_safetensors(path, exported, metadata)
    print(
      f'wrote {len(exported)} arrays ({which} parameters, step {step}): {path}'
    )


def named(
  arrays: dict[str, np.ndarray], config: ml_collections.ConfigDict
) -> dict[str, np.ndarray]:
  """Returns the arrays under the names of `export.format`."""
  if config.export.format == 'unet_jax':
    return {k.replace('/', '.'): v for k, v in arrays.items()}
  flat = fields.flatten(config)
  for field, allowed in deduce.MILESIAL.items():
    if flat[field] not in allowed:
      raise errors.UserError(
        f'--config.export.format=milesial: that network has {field}='
        f'{" or ".join(map(str, allowed))}, this run has {flat[field]}'
      )
  renamed, nameless = naming.to_milesial(arrays, config.model.depth)
  if nameless:
    raise errors.UserError(
      '--config.export.format=milesial has no names for ' + ', '.join(nameless)
    )
  if config.model.depth != 4 or config.model.base_features != 64:
    _log.info(
      "milesial's UNet class itself has a depth of 4 and 64 features; this "
      'network has %d and %d',
      config.model.depth,
      config.model.base_features,
    )
  mean, std = config.data.mean, config.data.std
  if any(mean) or any(s != 1 for s in std):
    _log.info(
      'the network takes (value - mean) / std of images in 0..1, with mean %s '
      "and std %s; milesial's programs do not do that",
      mean,
      std,
    )
  return renamed
