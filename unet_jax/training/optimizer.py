"""Optimiser and learning-rate schedule of a config, from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax


def _length(config: ml_collections.ConfigDict) -> int:
  """Returns the number of steps after which the schedule has come down."""
  return config.optimizer.decay_steps or config.train.num_steps


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
  """Returns step -> learning rate: linear warm-up, then the schedule."""
  o = config.optimizer
  peak, end = o.learning_rate, o.learning_rate * o.end_factor
  rest = max(_length(config) - o.warmup_steps, 1)
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


def rate_change(
  old: ml_collections.ConfigDict, new: ml_collections.ConfigDict, step: int
) -> str:
  """Returns one line where a run goes on at another learning rate; else ''.

  Args:
    old: the config that the checkpoint was saved with.
    new: the config that continues it.
    step: number of updates done, 1 or more.
  """
  # Asked first: a schedule takes the device.
  if old.optimizer == new.optimizer and _length(old) == _length(new):
    return ''
  before, now = make_schedule(old), make_schedule(new)
  planned, next_rate = float(before(step)), float(now(step))
  if abs(planned - next_rate) <= 1e-6 * abs(planned):
    return ''
  last = float(before(step - 1))
  times = f', {next_rate / last:.2g} times as high' if last else ''
  length = _length(old)
  text = (
    f'the learning rate of step {step} was {last:.2g}, that of step {step + 1} '
    f'is {next_rate:.2g}{times}: the {new.optimizer.schedule} schedule came '
    f'down at step {length}, now at {_length(new)}'
  )
  if _length(new) <= length:
    return text
  keep = f'--config.optimizer.decay_steps={length}'
  if not new.optimizer.end_factor:
    # Otherwise nothing would be learned from there on.
    keep += ' --config.optimizer.end_factor=0.01'
  return f'{text}. {keep} keeps the old schedule, and stays at its end'


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
