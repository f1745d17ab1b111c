"""Optimiser and learning-rate schedule of a config, from optax."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from unet_jax.config import fields

_log = logging.getLogger(__name__)

# Share of a run above which its warm-up is most likely that of a longer one.
_LONG_WARMUP = 0.3


def schedule_length(config: ml_collections.ConfigDict) -> int:
  """Returns the number of steps after which the schedule has come down."""
  return config.optimizer.decay_steps or config.train.num_steps


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
  """Returns step -> learning rate: linear warm-up, then the schedule."""
  o = config.optimizer
  peak, end = o.learning_rate, o.learning_rate * o.end_factor
  length = schedule_length(config)
  warmup_steps = fields.warmup_steps(o.warmup_steps, length)
  rest = max(length - warmup_steps, 1)
  after = {
    'cosine': lambda: optax.cosine_decay_schedule(
      peak, rest, alpha=o.end_factor
    ),
    'linear': lambda: optax.linear_schedule(peak, end, rest),
    'constant': lambda: optax.constant_schedule(peak),
  }[o.schedule]()
  if not warmup_steps:
    return after
  # From peak / warmup_steps at step 0, so that the first step does something.
  warmup = optax.linear_schedule(
    peak / warmup_steps, peak, max(warmup_steps - 1, 1)
  )
  return optax.join_schedules([warmup, after], [warmup_steps])


def decays(params: Any, rate: float) -> Any:
  """Of each parameter: kernels decay, biases and parameters of norms do not."""
  return jax.tree.map_with_path(
    lambda path, _: rate if path[-1].key == 'kernel' else 0.0, params
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
  num_steps = config.train.num_steps
  if o.warmup_steps > _LONG_WARMUP * num_steps:
    _log.warning(
      'optimizer.warmup_steps=%d: the learning rate rises for a large part of '
      'train.num_steps=%d; --config.optimizer.warmup_steps=-1 takes %d',
      o.warmup_steps,
      num_steps,
      fields.warmup_steps(-1, schedule_length(config)),
    )
  parts = []
  if o.clip_norm:
    parts.append(_clip(o.clip_norm))
  if o.name == 'adamw':  # Loshchilov and Hutter 2019, arXiv 1711.05101.
    parts.append(optax.scale_by_adam(b1=o.b1, b2=o.b2, eps=o.eps))
  else:
    parts.append(optax.trace(decay=o.momentum, nesterov=o.nesterov))
  if o.weight_decay:
    is_decayed = lambda params: jax.tree.map(bool, decays(params, 1))
    parts.append(optax.add_decayed_weights(o.weight_decay, mask=is_decayed))
  parts.append(optax.scale_by_learning_rate(make_schedule(config)))
  return optax.chain(*parts)
