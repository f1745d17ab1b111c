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
def test_the_folded_network_computes_the_same(native_cache, fields):
  """Alone, and each of two members that are stacked."""
  model = unet.UNet(
    2, depth=2, base_features=4, norm='batch', native=True, **fields
  )
  x = jax.random.normal(jax.random.key(0), (2, 44, 44, 3))
  variables = jax.jit(lambda x: model.init(jax.random.key(1), x, train=False))(
    x
  )
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
  network, folded = fold.without_norms(model), fold.fold(model, variables)
  assert network.norm == 'none' and set(folded) == {'params'}
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  wanted = jax.eval_shape(
    lambda x: network.init(jax.random.key(0), x, train=False), x
  )
  assert shapes(folded) == shapes(wanted)
  np.testing.assert_allclose(
    jax.jit(network.apply, static_argnames='train')(folded, x, train=False),
    jax.jit(model.apply, static_argnames='train')(variables, x, train=False),
    rtol=1e-4,
    atol=1e-4,
  )
  two = jax.tree.map(lambda x: jnp.stack([0 * x + 1, x]), variables)
  for got, want in zip(
    jax.tree.leaves(fold.fold(model, two, 2)),
    jax.tree.leaves(folded),
    strict=True,
  ):
    np.testing.assert_allclose(got[1], want, rtol=1e-6)


@pytest.mark.parametrize('fields', [{'native': False}, {'norm': 'group'}])
def test_others_stay(fields):
  model = unet.UNet(2, **{'norm': 'batch', 'native': True, **fields})
  assert fold.without_norms(model) is model
  assert fold.fold(model, {'params': {}}) == {'params': {}}
