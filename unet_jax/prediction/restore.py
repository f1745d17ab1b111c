"""Parameters to predict with: of one checkpoint, several, or several runs."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from unet_jax.config import saved as saved_lib
from unet_jax.models import unet
from unet_jax.models.ensemble import Ensemble, make_ensemble
from unet_jax.runtime import errors
from unet_jax.training import checkpoint, optimizer
from unet_jax.training import state as state_lib

PyTree = Any


def has_checkpoints(workdir: str) -> bool:
  """Whether a workdir has any."""
  return os.path.isdir(os.path.join(workdir, 'checkpoints'))


def member_workdirs(
  config: ml_collections.ConfigDict, workdir: str
) -> list[str]:
  """Returns the runs whose networks predict together.

  Args:
    config: its `inference.ensemble` names further runs.
    workdir: of a run; or of a cross-validation, which stands for its folds.

  Raises:
    UserError: one of them has no checkpoints.
  """
  folds = []
  if not has_checkpoints(workdir) and os.path.isdir(workdir):
    folds = [
      os.path.join(workdir, f'fold_{i}') for i in range(config.data.num_folds)
    ]
  further = [os.path.abspath(path) for path in config.inference.ensemble]
  workdirs = [*(folds or [workdir]), *further]
  for path in workdirs:
    if not os.path.isdir(path):
      raise errors.UserError(f'{path}: no such folder; name that of a run')
    if not has_checkpoints(path):
      raise errors.UserError(
        f'{path} has no checkpoints/; train first, or name the right '
        + ('--config.inference.ensemble' if path in further else '--workdir')
      )
  return workdirs


def fingerprints(
  config: ml_collections.ConfigDict, members: Sequence[str]
) -> list[str]:
  """Returns what changes with the parameters of `restore`.

  Checkpoints are checked for damage here as in `restore`, not restored.
  """
  found = [config.eval.params]
  for path in members:
    with contextlib.closing(
      checkpoint.Checkpoints(path, config, read_only=True)
    ) as checkpoints:
      for step in checkpoints.select(
        config.checkpoint.which, config.checkpoint.step
      ):
        found.append(checkpoints.fingerprint(step))
  return found


def restore(
  config: ml_collections.ConfigDict,
  workdir: str,
  mesh: Mesh,
  members: Sequence[str] = (),
) -> tuple[PyTree, Ensemble, list[dict[str, Any]]]:
  """Returns the variables that a config asks for.

  Args:
    config: `checkpoint.which`, `checkpoint.step`, `eval.params` and
      `inference.ensemble` choose them.
    members: `member_workdirs`, if they are known.

  Returns:
    `params` and `batch_stats`, of several networks stacked; the average of
    views and networks; and, of each network, its `workdir`, `step`, `params`
    (`ema` or `raw`), `fold`, the name of the one that it was not trained on,
    or None, and `edges` and `origins` of the images that it was trained on.

  Raises:
    UserError: there is no such checkpoint, or it is of another network.
  """
  networks, about, model = [], [], unet.create_model(config)
  for path in members or member_workdirs(config, workdir):
    with contextlib.closing(
      checkpoint.Checkpoints(path, config, read_only=True)
    ) as checkpoints:
      for step in checkpoints.select(
        config.checkpoint.which, config.checkpoint.step
      ):
        saved = checkpoints.saved_config(step)
        _check_member(saved, config, path, workdir)
        # The optimiser's state has the shape that it was saved with.
        abstract = state_lib.abstract_train_state(
          saved, model, optimizer.make_optimizer(saved), mesh
        )
        state, _ = checkpoints.restore(step, abstract)
        which = config.eval.params if state.ema_params is not None else 'raw'
        networks.append(state.variables(which))
        data = saved.data
        fold = f'fold_{data.fold}' if data.num_folds else None
        about.append(
          {
            'workdir': path,
            'step': step,
            'params': which,
            'fold': fold,
            **checkpoints.trained(step),
          }
        )
  ensemble = make_ensemble(config, len(networks))
  if len(networks) == 1:
    return networks[0], ensemble, about
  return jax.tree.map(lambda *x: jnp.stack(x), *networks), ensemble, about


def _check_member(
  saved: ml_collections.ConfigDict,
  config: ml_collections.ConfigDict,
  path: str,
  workdir: str,
) -> None:
  """Refuses another network, or classes and images of another meaning."""
  saved_lib.check_evaluable(saved, config, path)
  if path == workdir:
    return
  for field in (
    *('class_names', 'mask_values'),
    *('intensity', 'intensity_range', 'nodata', 'bands', 'orientation'),
  ):
    if saved.data[field] != config.data[field]:
      raise errors.UserError(
        f'{path} cannot be averaged with {workdir}: data.{field} is '
        f'{saved.data[field]!r} there, {config.data[field]!r} here'
      )
