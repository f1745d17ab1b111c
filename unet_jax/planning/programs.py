"""The steps of training, evaluation and prediction, lowered and compiled.

They are those that the modes run, for abstract arrays of the same shapes, types
and shardings, so that no device is needed.
"""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered

from unet_jax.evaluation import step as evaluation_step
from unet_jax.kernels import build
from unet_jax.models import unet
from unet_jax.models.ensemble import make_ensemble
from unet_jax.prediction import predictor
from unet_jax.prediction import step as prediction_step
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import programs as training_programs
from unet_jax.training import state as state_lib
from unet_jax.training import steps

_log = logging.getLogger(__name__)
# Seconds between two lines of a compilation.
_PATIENCE = 30
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class Step(NamedTuple):
  """A step of a config: its function for abstract arguments, not compiled."""

  name: str
  lowered: Lowered
  mesh: Mesh
  images: int


class Compilation(NamedTuple):
  """What a compiler made of a step.

  Attributes:
    compiled: the program; None where it needs more memory than a chip has.
    needed: bytes that it would need then, as the compiler says.
    seconds: how long it took.
  """

  compiled: Compiled | None
  needed: float
  seconds: float


def lower_train_step(
  config: ml_collections.ConfigDict, model: unet.UNet, mesh: Mesh
) -> Lowered:
  """Returns the train step of a config, traced for abstract arrays."""
  state = _state(config, model, mesh)
  optimizer = optimizer_lib.make_optimizer(config)
  step = steps.make_train_step(config, model, optimizer, mesh, state)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return step.lower(state, training_programs.abstract_batch(config, mesh), key)


def _state(
  config: ml_collections.ConfigDict, model: unet.UNet, mesh: Mesh
) -> state_lib.TrainState:
  optimizer = optimizer_lib.make_optimizer(config)
  return state_lib.abstract_train_state(config, model, optimizer, mesh)


def _train(
  config: ml_collections.ConfigDict, devices: Sequence[jax.Device]
) -> Step:
  mesh = mesh_lib.make_mesh(config, devices)
  model = unet.create_model(config, build.choose(config, mesh, trains=True))
  lowered = lower_train_step(config, model, mesh)
  return Step('train', lowered, mesh, config.data.batch_size)


def _evaluate(
  config: ml_collections.ConfigDict, devices: Sequence[jax.Device]
) -> Step:
  """The evaluation within a training run."""
  mesh = mesh_lib.make_mesh(config, devices)
  model = unet.create_model(config, build.choose(config, mesh))
  step = evaluation_step.make_eval_step(config, model, mesh)
  variables = _state(config, model, mesh).variables(config.eval.params)
  batch = evaluation_step.abstract_batch(config, mesh)
  lowered = step.lower(variables, batch)
  return Step('evaluate', lowered, mesh, config.data.batch_size)


def _predict(
  config: ml_collections.ConfigDict, devices: Sequence[jax.Device]
) -> Step:
  """The prediction of windows, which is one process' alone."""
  mesh = mesh_lib.make_prediction_mesh(config, devices)
  model = unet.create_model(config, build.choose(config, mesh))
  step = prediction_step.make_window_step(
    config, model, make_ensemble(config, 1), mesh
  )
  variables = _state(config, model, mesh).variables(config.eval.params)
  size, layout = predictor.batch_size(config, mesh), predictor.make_layout
  windows = layout(config, model)
  image = jax.ShapeDtypeStruct(
    (size, *windows.window, config.data.num_channels),
    jnp.uint8,
    sharding=mesh_lib.batch_sharding(mesh)['image'],
  )
  weights = None
  if windows.weights is not None:
    weights = jax.ShapeDtypeStruct(
      (*windows.weights.shape, 1),
      windows.weights.dtype,
      sharding=mesh_lib.replicated(mesh),
    )
  return Step('predict', step.lower(variables, image, weights), mesh, size)


# A step by its name in plan.steps: (config, devices) -> Step.
STEPS: dict[
  str, Callable[[ml_collections.ConfigDict, Sequence[jax.Device]], Step]
] = {'train': _train, 'evaluate': _evaluate, 'predict': _predict}


def compile(step: Step, what: str) -> Compilation:
  """Compiles a step; `what` names it in the log.

  Raises:
    JaxRuntimeError: the compiler fails for another reason than memory.
  """
  start = time.perf_counter()
  taken = lambda: time.perf_counter() - start
  _log.info('compiling %s', what)
  with _saying_that_it_lasts(what, taken):
    try:
      return Compilation(step.lowered.compile(), 0.0, taken())
    except jax.errors.JaxRuntimeError as e:
      needed = needed_bytes(str(e))
      if needed is None:
        raise
      return Compilation(None, needed, taken())


def needed_bytes(message: str) -> float | None:
  """Returns the bytes that the compiler says a program needs; None: no such."""
  found = re.search(r'\(([\d.]+)([KMGT]?)\) exceeds available HBM', message)
  return float(found[1]) * _UNITS[found[2]] if found else None


@contextlib.contextmanager
def _saying_that_it_lasts(
  what: str, taken: Callable[[], float]
) -> Iterator[None]:
  done = threading.Event()

  def say() -> None:
    while not done.wait(_PATIENCE):
      _log.info('still compiling %s: %.0f s', what, taken())

  thread = threading.Thread(target=say, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
