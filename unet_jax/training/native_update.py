"""The optimiser's part of a step in one native call (kernels/adamw.cc)."""

from typing import Any

import jax
import ml_collections
import optax

from unet_jax.kernels import adamw
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training.state import PyTree, TrainState

Array = jax.Array


def change(
  config: ml_collections.ConfigDict,
  state: TrainState,
  grads: PyTree,
  rate: Array,
) -> tuple[TrainState, Array]:
  """Changes parameters, optax's state and the parameters' moving average.

  Args:
    config: its optimiser is `adamw`.
    state: float32, whole, on one device.
    grads: as the parameters.
    rate: share of its way to the new parameters that the average moves.

  Returns:
    The state, with step and batch statistics as before; the gradients' norm.
  """
  o = config.optimizer
  adam = next(
    s for s in state.opt_state if isinstance(s, optax.ScaleByAdamState)
  )
  count = optax.safe_increment(adam.count)
  before = adamw.Moments(state.params, adam.mu, adam.nu, state.ema_params)
  learning_rate = optimizer_lib.make_schedule(config)(adam.count)
  after, norm = adamw.update(
    grads,
    before,
    (learning_rate, 1 - o.b1**count, 1 - o.b2**count, rate),
    optimizer_lib.decays(state.params, o.weight_decay),
    b1=o.b1,
    b2=o.b2,
    eps=o.eps,
    max_norm=o.clip_norm,
  )
  fields: dict[str, Any] = {'mu': after.first, 'nu': after.second}
  changed = state.replace(
    params=after.params,
    opt_state=optax.tree.set(state.opt_state, count=count, **fields),
    ema_params=after.average,
  )
  return changed, norm
