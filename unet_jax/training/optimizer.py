"""Optimiser and learning-rate schedule of a config, from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
  """Returns step -> learning rate: linear warm-up, then the schedule."""
  o = config.optimizer
  peak, end = o.learning_rate, o.learning_rate * o.end_factor
  length = o.decay_steps or config.train.num_steps
  rest = max(length - o.warmup_steps, 1)
  after = {
    'cosine': lambda: optax.cosine_decay_schedule(
      peak, rest, alpha=o.end_factor
    ),
    'linear': lambda: optax.linear_schedule(peak, end, rest),
    'constant': lambda: optax.constant_schedule(peak),
  }[o.schedule]()
  if not o.warmup_steps:
    return after
  # From peak / warmup_steps at step 0, so that the first step does something.
  warmup = optax.linear_schedule(
    peak / o.warmup_steps, peak, max(o.warmup_steps - 1, 1)
  )
  return optax.join_schedules([warmup, after], [o.warmup_steps])


def _decay_mask(params: Any) -> Any:
  """True for kernels: biases and norm parameters are not decayed."""
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def _clip(max_norm: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm`, by one factor: its divisions take a pass."""

  def clip(grads: Any, params: Any) -> Any:
    del params
    factor = jnp.minimum(1, max_norm / optax.tree.norm(grads))
    return jax.tree.map(lambda g: g * factor, grads)

  return optax.stateless(clip)


def make_optimizer(
  config: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
  """Returns the chain: clip, moments, decoupled decay of kernels, schedule."""
  o = config.optimizer
  parts = []
  if o.clip_norm:
    parts.append(_clip(o.clip_norm))
  if o.name == 'adamw':  # Loshchilov and Hutter 2019, arXiv 1711.05101.
    parts.append(optax.scale_by_adam(b1=o.b1, b2=o.b2, eps=o.eps))
  else:
    parts.append(optax.trace(decay=o.momentum, nesterov=o.nesterov))
  if o.weight_decay:
    parts.append(optax.add_decayed_weights(o.weight_decay, mask=_decay_mask))
  parts.append(optax.scale_by_learning_rate(make_schedule(config)))
  return optax.chain(*parts)
