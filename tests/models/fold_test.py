"""Tests of unet_jax/models/fold.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unet_jax.models import fold, unet


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'block': 'residual', 'squeeze_excite': 2},
    {'skip': 'attention', 'upsample': 'bilinear', 'activation': 'elu'},
    {'deep_supervision': (0.5,), 'downsample': 'conv', 'padding': 'valid'},
  ],
)
def test_the_folded_network_computes_the_same(fields):
  model = unet.UNet(2, depth=2, base_features=4, norm='batch', **fields)
  x = jax.random.normal(jax.random.key(0), (2, 44, 44, 3))
  variables = model.init(jax.random.key(1), x, train=False)
  # Trained norms: none of these is 0 or 1.
  draw = lambda x, seed: jax.random.uniform(
    jax.random.key(seed), x.shape, x.dtype, 0.5, 2
  )
  variables = {
    'params': jax.tree.map(
      lambda x: draw(x, x.size) if x.ndim == 1 else x, variables['params']
    ),
    'batch_stats': jax.tree.map(
      lambda x: draw(x, x.size + 1), variables['batch_stats']
    ),
  }
  folded, folded_variables = fold.fold_batch_norm(model, variables)
  assert folded.norm == 'none' and set(folded_variables) == {'params'}
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  wanted = folded.init(jax.random.key(0), x, train=False)
  assert shapes(folded_variables) == shapes(wanted)
  np.testing.assert_allclose(
    folded.apply(folded_variables, x, train=False),
    model.apply(variables, x, train=False),
    rtol=1e-4,
    atol=1e-4,
  )


def test_other_norms_stay():
  model = unet.UNet(2, depth=1, base_features=4, norm='group')
  assert fold.fold_batch_norm(model, {'params': {}}) == (model, {'params': {}})
