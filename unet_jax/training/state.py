"""The state of a training run: arrays only."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from unet_jax.models import unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.runtime import program

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
  """The arrays that a step reads and writes.

  Attributes:
    step: int32 scalar, number of updates done.
    params: float32 parameters.
    batch_stats: running statistics of batch norm; {} without it.
    opt_state: optax's state.
    ema_params: exponential moving average (EMA) of params; None where it is
      off.
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
    """Returns the model's collections: of the `ema` (where kept) or `raw`."""
    if which == 'ema' and self.ema_params is not None:
      return {'params': self.ema_params, 'batch_stats': self.ema_batch_stats}
    return {'params': self.params, 'batch_stats': self.batch_stats}


def create_train_state(
  key: jax.Array,
  config: ml_collections.ConfigDict,
  model: unet.UNet,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> TrainState:
  """Returns the state at step 0 with drawn parameters, made where it lives."""
  abstract = abstract_train_state(config, model, optimizer, mesh)
  return drawing(config, model, optimizer, abstract, mesh)(key)


def drawing(
  config: ml_collections.ConfigDict,
  model: unet.UNet,
  optimizer: optax.GradientTransformation,
  abstract: TrainState,
  mesh: Mesh,
) -> jax.stages.Wrapped:
  """Returns key -> state at step 0, jitted; `abstract` is what it returns."""
  return _jit(_drawing(config, model, optimizer), abstract, mesh)


def state_of_variables(
  variables: dict[str, PyTree],
  config: ml_collections.ConfigDict,
  model: unet.UNet,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> TrainState:
  """Returns the state at step 0 of a network that has its parameters already.

  The variables, `params` and `batch_stats`, are on host or devices.
  """

  def create(variables: dict[str, PyTree]) -> TrainState:
    # Copies, not aliases: the state's buffers are donated.
    copied = jax.tree.map(jnp.copy, variables)
    return _state_at_0(copied, config.optimizer.ema_decay > 0, optimizer)

  abstract = abstract_train_state(config, model, optimizer, mesh)
  return _jit(create, abstract, mesh)(variables)


def abstract_train_state(
  config: ml_collections.ConfigDict,
  model: unet.UNet,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> TrainState:
  """Returns shapes, types and shardings of a config's state, no arrays."""
  create = _drawing(config, model, optimizer)
  return with_shardings(jax.eval_shape(create, jax.random.key(0)), mesh)


def with_shardings(shapes: TrainState, mesh: Mesh) -> TrainState:
  """Returns a state's shapes and types with the shardings of a mesh."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    mesh_lib.state_sharding(mesh, shapes),
  )


def _jit(
  create: Callable[..., TrainState], abstract: TrainState, mesh: Mesh
) -> jax.stages.Wrapped:
  num_drawn = sum(x.size for x in jax.tree.leaves(abstract.params))
  return jax.jit(
    create,
    out_shardings=jax.tree.map(lambda x: x.sharding, abstract),
    compiler_options=program.compiler_options(mesh, num_drawn),
  )


def _drawing(
  config: ml_collections.ConfigDict,
  model: unet.UNet,
  optimizer: optax.GradientTransformation,
) -> Callable[[jax.Array], TrainState]:
  """Returns key -> state at step 0."""
  shape = (1, *config.data.image_size, config.data.num_channels)
  return _make_drawing(model, optimizer, shape, config.optimizer.ema_decay > 0)


# The same function again: JAX traces it once, for the state and for its shapes.
@functools.lru_cache(maxsize=1)
def _make_drawing(
  model: unet.UNet,
  optimizer: optax.GradientTransformation,
  image_shape: tuple[int, ...],
  has_ema: bool,
) -> Callable[[jax.Array], TrainState]:
  @jax.jit
  def create(key: jax.Array) -> TrainState:
    variables = model.init(key, jnp.zeros(image_shape), train=False)
    return _state_at_0(variables, has_ema, optimizer)

  return create


def _state_at_0(
  variables: Mapping[str, PyTree],
  has_ema: bool,
  optimizer: optax.GradientTransformation,
) -> TrainState:
  params, batch_stats = variables['params'], variables.get('batch_stats', {})
  # Copies, not aliases: the state's buffers are donated one by one.
  copy = lambda tree: jax.tree.map(jnp.copy, tree) if has_ema else None
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=optimizer.init(params),
    ema_params=copy(params),
    ema_batch_stats=copy(batch_stats),
  )
