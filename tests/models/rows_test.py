"""Rows that are split over devices: the numbers of one device, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests import step_difference, tiny
from unet_jax.models import layers, resample, rows
from unet_jax.runtime import mesh as mesh_lib

pytestmark = pytest.mark.eight_devices


@pytest.fixture(autouse=True)
def float64(monkeypatch):
  monkeypatch.setattr(jnp, 'float32', jnp.float64)
  with jax.enable_x64(True):
    yield


def _mesh(**mesh):
  return mesh_lib.make_mesh(tiny.make_config(mesh=mesh))


def _bilinear(x, kernel):
  return resample.bilinear_2x(x, align_corners=True) * kernel[0, 0, 0, 0]


def _pool_and_join(x, kernel):
  return resample.max_pool_2x(resample.bilinear_2x(x)) * kernel[0, 0, 0, 0]


def _convolve(x, kernel):
  return layers.convolve(x, kernel, None, 'SAME')


@pytest.mark.parametrize(
  'function,size,height',
  [
    (_convolve, 3, 16),
    (_convolve, 2, 4),
    # Fewer rows than the halo; rows that do not split evenly.
    (_convolve, 5, 4),
    (_convolve, 3, 6),
    (_bilinear, 1, 4),
    (_bilinear, 1, 6),
    (_pool_and_join, 1, 4),
    (_pool_and_join, 1, 6),
  ],
)
def test_operation(function, size, height):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, height, 5, 2))
  kernel = rng.normal(size=(size, size, 2, 2))

  def loss(x, kernel):
    y = function(x, kernel)
    # Each value counts differently.
    return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape)))

  value_and_grad = jax.value_and_grad(loss, (0, 1))
  mesh = _mesh(data=2, spatial=4)
  sent = jax.device_put((x, kernel), mesh_lib.replicated(mesh))
  actual = jax.jit(rows.split(mesh, value_and_grad))(*sent)
  expected = jax.jit(value_and_grad)(x, kernel)
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, rtol=1e-12, atol=1e-12),
    actual,
    expected,
  )


def test_halo_is_all_that_is_sent():
  """A convolution and its gradients send rows to neighbours, no image."""
  mesh = _mesh(data=2, spatial=4)
  x = jax.ShapeDtypeStruct(
    (2, 16, 8, 2),
    np.float64,
    sharding=mesh_lib.batch_sharding(mesh)['image'],
  )
  kernel = jax.ShapeDtypeStruct(
    (3, 3, 2, 2), np.float64, sharding=mesh_lib.replicated(mesh)
  )
  loss = lambda x, k: jnp.sum(layers.convolve(x, k, None, 'SAME') ** 2)
  step = rows.split(mesh, jax.grad(loss, (0, 1)))
  program = jax.jit(step).lower(x, kernel).compile().as_text()
  assert 'collective-permute' in program and 'all-gather' not in program


def test_thin_rows_of_a_train_step():
  """The partitioner's updates of this network are up to 203 % off."""
  config = tiny.make_config(
    data={'image_size': (8, 8), 'num_classes': 4},
    model={'base_features': 2, 'depth': 2, 'convs': 1, 'norm': 'batch'},
    mesh={'data': 4, 'spatial': 2},
  )
  largest, where = step_difference.difference(config)
  assert largest < 1e-12, where
