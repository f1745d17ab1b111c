"""Workdirs with checkpoints that nobody trained, and what runs leave there."""

import contextlib
import os

import jax
import pytest

from tests import tiny
from unet_jax.models import unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.runtime import whole_files
from unet_jax.training import checkpoint
from unet_jax.training import optimizer as optimizer_lib


def save(workdir, config, seed=0, steps=(1,), native=False, **trained):
  """Saves a state of random parameters as each of the steps of a run.

  Args:
    workdir: is made.
    config: of the run.
    seed: of the parameters, with the step.
    steps: ascending.
    native: record that native convolutions made them.
    trained: `edges` and `origins` of the images that it was trained on.

  Returns:
    The network and {step: state}.
  """
  model, mesh = unet.create_model(config), mesh_lib.make_mesh(config)
  optimizer = optimizer_lib.make_optimizer(config)
  os.makedirs(workdir, exist_ok=True)
  whole_files.write_json(os.path.join(workdir, 'config.json'), config.to_dict())
  states = {}
  with contextlib.closing(
    checkpoint.Checkpoints(str(workdir), config, native=native)
  ) as checkpoints:
    for name, value in trained.items():
      setattr(checkpoints, name, value)
    for step in steps:
      state = tiny.make_state(config, model, optimizer, mesh)
      # Another network for each seed and step, its average another again.
      change = lambda tree, by: jax.tree.map(lambda x: x * by + 0.02, tree)
      states[step] = state.replace(
        step=state.step + step,
        params=change(state.params, 1 - 0.1 * seed - 0.03 * step),
        ema_params=change(state.params, 0.8 - 0.1 * seed - 0.03 * step),
      )
      checkpoints.save(states[step], step, {})
    checkpoints.wait()
  return model, states


def assert_figures(found, expected):
  """Of one state by two programs, which may round a loss differently."""
  for name, value in expected.items():
    if isinstance(value, float):
      value = pytest.approx(value, rel=1e-5)
    assert name == 'eval/seconds' or found[name] == value, name
