"""What a gradient changes: parameters, optimiser state, moving averages."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from unet_jax.training import native_update
from unet_jax.training.state import PyTree, TrainState

Array = jax.Array
# (state, gradients, batch_stats) -> the state after a step, gradient norm.
Update = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Array]]


def make_update(
  config: ml_collections.ConfigDict,
  optimizer: optax.GradientTransformation,
  native: bool = False,
) -> Update:
  """Returns the function that a step calls with its gradients.

  Args:
    config: names the optimiser.
    optimizer: of that config.
    native: take the native AdamW: unet_jax/kernels are loaded, and the
      parameters are whole and on one device. It compiles in no time, and XLA's
      form of `optimizer` in a third of that of a step.
  """
  o = config.optimizer
  change = functools.partial(_by_optax, optimizer)
  if native and o.name == 'adamw':
    change = functools.partial(native_update.change, config)

  def update(state, grads, batch_stats):
    step = state.step.astype(jnp.float32)
    # Grows with the step, so that the initial values are soon forgotten.
    keep = jnp.minimum(o.ema_decay, (1 + step) / (10 + step))
    changed, norm = change(state, grads, 1 - keep)
    averages = changed.ema_batch_stats
    if averages is not None:
      averages = _average(averages, batch_stats, 1 - keep)
    changed = changed.replace(
      step=state.step + 1, batch_stats=batch_stats, ema_batch_stats=averages
    )
    return changed, norm

  return update


def _average(averages: PyTree, new: PyTree, rate: Array) -> PyTree:
  return jax.tree.map(lambda a, b: a + rate * (b - a), averages, new)


def _by_optax(
  optimizer: optax.GradientTransformation,
  state: TrainState,
  grads: PyTree,
  rate: Array,
) -> tuple[TrainState, Array]:
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  averages = state.ema_params
  if averages is not None:
    averages = _average(averages, params, rate)
  changed = state.replace(
    params=params, opt_state=opt_state, ema_params=averages
  )
  return changed, optax.tree.norm(grads)
