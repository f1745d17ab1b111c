"""Tests of unet_jax/training/update.py: the native AdamW is that of optax."""

import jax
import numpy as np
import pytest

from tests import tiny
from unet_jax.models import unet
from unet_jax.training import optimizer, update


@pytest.mark.parametrize(
  'fields',
  [
    {'clip_norm': 0.5, 'weight_decay': 0.1, 'ema_decay': 0.5},
    {'clip_norm': 0.0, 'weight_decay': 0.0, 'ema_decay': 0.0},
    {'schedule': 'cosine', 'warmup_steps': 2, 'decay_steps': 5, 'b1': 0.5},
  ],
)
def test_native_is_optax(fields, native_cache):
  """State and norm after some steps, from other states than the first too."""
  config = tiny.make_config(optimizer={'name': 'adamw'} | fields)
  tx = optimizer.make_optimizer(config)
  state = tiny.make_state(
    config, unet.create_model(config), tx, tiny.one_device()
  )
  rng = np.random.default_rng(0)
  changes = [
    jax.jit(update.make_update(config, tx, native)) for native in (False, True)
  ]
  states = [state, state]
  for _ in range(4):
    draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
    grads = jax.tree.map(draw, state.params)
    stats = jax.tree.map(draw, state.batch_stats)
    states, norms = zip(
      *(change(s, grads, stats) for change, s in zip(changes, states))
    )
    np.testing.assert_allclose(*norms, rtol=1e-6)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      *states,
    )
  assert int(states[1].step) == 4


def test_averages_forget_the_initial_values():
  """Of parameters and batch statistics, at the same growing rate."""
  config = tiny.make_config(optimizer={'ema_decay': 0.9})
  tx = optimizer.make_optimizer(config)
  state = tiny.make_state(
    config, unet.create_model(config), tx, tiny.one_device()
  )
  ones = jax.tree.map(np.ones_like, state.batch_stats)
  grads = jax.tree.map(np.ones_like, state.params)
  change = jax.jit(update.make_update(config, tx))
  parts = lambda s: [
    tree['bottleneck']['norm1'][name][0]
    for tree, name in (
      (s.ema_batch_stats, 'mean'),
      (s.ema_params, 'scale'),
      (s.batch_stats, 'mean'),
      (s.params, 'scale'),
    )
  ]
  for step in range(3):
    before, (state, _) = parts(state)[:2], change(state, grads, ones)
    keep = min(0.9, (1 + step) / (10 + step))
    *averages, stat, scale = parts(state)
    assert stat == 1 and scale != before[1]
    for old, new, average in zip(before, (stat, scale), averages):
      expected = old * keep + new * (1 - keep)
      np.testing.assert_allclose(average, expected, rtol=1e-6)
