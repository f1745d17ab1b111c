"""The state of a training run: arrays only."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from unet_jax.runtime import mesh as mesh_lib
from unet_jax.runtime import program

PyTree = Any


@flax.struct.dataclass
class TrainState:
  """What a step reads and writes.

  Attributes:
    step: int32 scalar, number of updates done.
    params: float32 parameters.
    batch_stats: running statistics of batch norm; {} without it.
    opt_state: optax's state.
    ema_params: moving average of params; None where it is off.
    ema_batch_stats: moving average of batch_stats, kept with ema_params so that
      the averaged network is normalised by its own statistics; None likewise.
  """

  step: jax.Array
  params: PyTree
  batch_stats: PyTree
  opt_state: PyTree
  ema_params: PyTree
  ema_batch_stats: PyTree

  def variables(self, which: str = 'raw') -> dict[str, PyTree]:
    """The collections that the model takes: of `ema` (where kept) or `raw`."""
    if which == 'ema' and self.ema_params is not None:
      return {'params': self.ema_params, 'batch_stats': self.ema_batch_stats}
    return {'params': self.params, 'batch_stats': self.batch_stats}


def _create(
  key: jax.Array,
  model,
  optimizer: optax.GradientTransformation,
  image_shape: tuple[int, int, int],
  ema: bool,
) -> TrainState:
  """Returns the state at step 0; `image_shape` is (H, W, C)."""
  variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
  params = variables['params']
  return _state_at_0(params, variables.get('batch_stats', {}), optimizer, ema)


def _state_at_0(
  params: PyTree,
  batch_stats: PyTree,
  optimizer: optax.GradientTransformation,
  ema: bool,
) -> TrainState:
  # Copies, not aliases: the state's buffers are donated one by one.
  copy = lambda tree: jax.tree.map(jnp.copy, tree) if ema else None
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=optimizer.init(params),
    ema_params=copy(params),
    ema_batch_stats=copy(batch_stats),
  )


def _creator(config, model, optimizer):
  image_shape = (*config.data.image_size, config.data.num_channels)
  return functools.partial(
    _create,
    model=model,
    optimizer=optimizer,
    image_shape=image_shape,
    ema=bool(config.optimizer.ema_decay),
  )


def abstract_train_state(config, model, optimizer, mesh: Mesh) -> TrainState:
  """Returns shapes, types and shardings of a config's state, no arrays."""
  create = _creator(config, model, optimizer)
  shapes = jax.eval_shape(create, jax.random.key(0))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    mesh_lib.state_sharding(mesh, shapes),
  )


def state_of_variables(
  variables: dict[str, PyTree], config, model, optimizer, mesh: Mesh
) -> TrainState:
  """Returns the state at step 0 of a network that has its parameters already.

  Args:
    variables: `params` and `batch_stats`, on host or devices.
    config: of the run.
    model: whose variables they are.
    optimizer: of the run.
    mesh: where the state lives.
  """
  abstract = abstract_train_state(config, model, optimizer, mesh)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)

  def create(variables):
    return _state_at_0(
      # Copies, not what was given: the state's buffers are donated.
      *jax.tree.map(jnp.copy, (variables['params'], variables['batch_stats'])),
      optimizer,
      bool(config.optimizer.ema_decay),
    )

  return jax.jit(
    create,
    out_shardings=shardings,
    compiler_options=program.compiler_options(mesh, for_init=True),
  )(variables)


def create_train_state(
  key: jax.Array, config, model, optimizer, mesh: Mesh
) -> TrainState:
  """Returns the state at step 0, made where it lives."""
  abstract = abstract_train_state(config, model, optimizer, mesh)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  create = _creator(config, model, optimizer)
  return jax.jit(
    create,
    out_shardings=shardings,
    compiler_options=program.compiler_options(mesh, for_init=True),
  )(key)
