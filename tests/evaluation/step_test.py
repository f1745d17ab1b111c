"""The evaluation step: padding, and the statistics of a network."""

import jax
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from tests import tiny


def test_padding_counts_nowhere():
  config = tiny.make_config()
  config.loss.weights.dice = 1.0
  state, _ = tiny.setup(config)
  batch = tiny.make_batch(config)
  weight = np.ones(8, np.float32)
  weight[[2, 7]] = 0
  padded = tiny.evaluate(config, state, {**batch, 'weight': weight})
  real = jax.tree.map(lambda x: x[weight == 1], batch)
  real['weight'] = np.ones(6, np.float32)
  alone = tiny.evaluate(config, state, real)
  assert np.all(np.asarray(padded['confusion'])[weight == 0] == 0)
  for name in ('confusion', 'prediction'):
    assert_array_equal(padded[name][weight == 1], alone[name])
  assert np.asarray(alone['confusion']).sum() == (real['mask'] != 255).sum()
  for name in ('loss_total', 'loss_count'):
    assert set(padded[name]) == {'cross_entropy', 'dice'}
    for term, value in padded[name].items():
      assert_allclose(value, alone[name][term], rtol=1e-5)
  assert alone['loss_count']['dice'] == 6


def test_evaluation_uses_running_statistics_of_the_parameters_asked_for():
  config = tiny.make_config(model={'depth': 0, 'dropout': 0.5})
  state, _ = tiny.setup(config)
  zeros = jax.tree.map(lambda x: x * 0, state.ema_params)
  state = state.replace(ema_params=zeros)
  batch = {**tiny.make_batch(config), 'weight': np.ones(8, np.float32)}
  raw, ema = (tiny.evaluate(config, state, batch, w) for w in ('raw', 'ema'))
  valid = (batch['mask'] != 255).sum()
  # Zero parameters: equal logits, log 3 a pixel, class 0 everywhere.
  loss = ema['loss_total']['cross_entropy']
  assert_allclose(loss, valid * np.log(3), rtol=1e-5)
  assert not np.any(ema['prediction'])
  assert np.any(raw['prediction'])
  # One image alone gives the same as among others: no batch statistics.
  one = jax.tree.map(lambda x: x[3:4], batch)
  alone = tiny.evaluate(config, state, one)
  assert_array_equal(alone['prediction'][0], raw['prediction'][3])
