"""Import of weights: a file becomes a checkpoint at step 0 of a workdir."""

import contextlib
import os
import pathlib
from typing import Any

import jax
import ml_collections

from unet_jax.config import default, fields, saved
from unet_jax.models import unet
from unet_jax.runtime import errors, locks, program, whole_files
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import checkpoint
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import state as state_lib
from unet_jax.weights import files, match


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Writes config.json and a checkpoint at step 0 with a file's weights.

  Training goes on from it, and evaluation takes it, as from any other.

  Args:
    config: `weights` names the file; `model` and `data` say what it is.
    workdir: absolute path; has no checkpoint yet.

  Raises:
    UserError: the file cannot be read, or does not fit the network.
  """
  program.initialize(fields.cache_dir(config))
  file = files.read(config.weights.path)
  variables = match.variables_of_file(file, config)
  mesh = mesh_lib.make_mesh(config)
  optimizer = optimizer_lib.make_optimizer(config)
  whole_files.make_workdir(workdir)
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      # Opening the checkpoints removes what a training run is saving.
      path, what = pathlib.Path(workdir, '.lock'), f'training in {workdir}'
      stack.enter_context(locks.lock(path, what, wait=False))
    checkpoints = checkpoint.Checkpoints(workdir, config)
    stack.enter_context(contextlib.closing(checkpoints))
    if checkpoints.steps:
      raise errors.UserError(
        f'{workdir} has checkpoints of a run already; choose another --workdir'
      )
    state = state_lib.state_of_variables(
      variables, config, unet.create_model(config), optimizer, mesh
    )
    checkpoints.save(state, 0, {})
    checkpoints.wait()
  whole_files.write_json(os.path.join(workdir, 'config.json'), config.to_dict())
  if jax.process_index() == 0:
    count = sum(x.size for x in jax.tree.leaves(variables['params']))
    print(
      f'{config.weights.path}: {count} parameters in {workdir}, step 0. Its '
      f'network: {match.flags(_network(config))}'
    )


def _network(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields that the network depends on and that are not the default."""
  usual = fields.flatten(default.get_config())
  return {
    field: value
    for field, value in fields.flatten(config).items()
    if saved.is_of_network(field) and value != usual[field]
  }
