"""Resampling against the stock layers and SciPy, in 2-D and 3-D."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from tests.models import networks
from unet_jax.models import resample

_random = networks.random
_assert_same = networks.assert_same_value_and_gradient


@pytest.mark.parametrize('size', [(7, 10), (2, 3), (4, 5, 7)])
@pytest.mark.parametrize(
  'ours,stock',
  [
    (resample.max_pool_2x, nn.max_pool),
    (resample.average_pool_2x, nn.avg_pool),
  ],
  ids=['max', 'average'],
)
def test_pooling_equals_the_stock_layer(ours, stock, size):
  two = (2,) * len(size)
  _assert_same(ours, lambda x: stock(x, two, two), _random(2, *size, 3))


@pytest.mark.parametrize('size', [(5, 6), (1, 1), (2, 3, 1)])
def test_bilinear_equals_image_resize(size):
  shape = (2, *(2 * n for n in size), 3)
  stock = lambda x: jax.image.resize(x, shape, 'bilinear')
  _assert_same(resample.bilinear_2x, stock, _random(2, *size, 3))


@pytest.mark.parametrize('size', [(6, 5), (3, 4, 5)], ids=str)
@pytest.mark.parametrize('align_corners', [False, True])
def test_bilinear_equals_scipy_zoom(size, align_corners):
  x = _random(1, *size, 1)
  settings = {} if align_corners else dict(mode='nearest', grid_mode=True)
  expected = scipy.ndimage.zoom(x[0, ..., 0], 2, order=1, **settings)
  bilinear = functools.partial(
    resample.bilinear_2x, align_corners=align_corners
  )
  actual = jax.jit(bilinear)(x)[0, ..., 0]
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('size', [(3, 4), (2, 3, 4)])
def test_nearest_repeats_pixels(size):
  x = _random(2, *size, 5)
  expected = x
  for axis in range(1, 1 + len(size)):
    expected = np.repeat(expected, 2, axis=axis)
  np.testing.assert_array_equal(resample.nearest_2x(x), expected)


@pytest.mark.parametrize('size', [(4, 6), (7, 5), (2, 4, 3)])
def test_space_to_depth_lists_windows_and_depth_to_space_undoes_it(size):
  x = np.asarray(_random(2, *size, 3))
  y = resample.space_to_depth_2x(jnp.asarray(x))
  # The window's pixels in row-major order, each with its channels.
  for i, offset in enumerate(np.ndindex(*(2,) * len(size))):
    window = tuple(
      slice(o, n // 2 * 2, 2) for o, n in zip(offset, size, strict=True)
    )
    np.testing.assert_array_equal(y[..., 3 * i : 3 * i + 3], x[:, *window])
  even = (slice(n // 2 * 2) for n in size)
  np.testing.assert_array_equal(resample.depth_to_space_2x(y), x[:, *even])
