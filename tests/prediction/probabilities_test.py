"""Classes and probabilities, of arrays on the host and on a device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from unet_jax.prediction import probabilities


@pytest.mark.parametrize('num_channels', [1, 3])
def test_predictions_are_those_on_the_device(num_channels):
  logits = np.random.default_rng(0).integers(-1, 2, (9, 11, num_channels))
  logits = logits.astype(np.float32)  # With many that are equal.
  actual = probabilities.predict(logits)
  on_device = jax.jit(probabilities.predict)(jnp.array(logits[None]))
  assert actual.dtype == on_device.dtype == np.uint8
  np.testing.assert_array_equal(actual, on_device[0])
  # Of equal logits the first class; above 0 for a sigmoid.
  first = [np.argmax(z) for z in logits.reshape(-1, num_channels)]
  expected = logits[..., 0] > 0 if num_channels == 1 else first
  np.testing.assert_array_equal(actual.ravel(), np.ravel(expected))


def test_predicted_classes():
  for logits, expected in (
    ([[0.1, 0.3, 0.2], [2.0, -1.0, 0.0]], [1, 0]),
    ([[-0.1], [0.0], [0.1]], [0, 0, 1]),
  ):
    classes = probabilities.predict(np.array([[logits]], np.float32))
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, [[expected]])


@pytest.mark.parametrize('num_channels', [1, 2, 5])
def test_planes_add_up_to_one(num_channels):
  logits = np.random.default_rng(0).normal(0, 50, (7, 9, num_channels))
  logits = logits.astype(np.float32)
  both = logits.astype(float)
  if num_channels == 1:
    both = np.concatenate([0 * both, both], -1)
  planes = probabilities.planes(logits)
  assert planes.dtype == np.float32
  expected = np.moveaxis(special.softmax(both, -1), -1, 0)
  np.testing.assert_allclose(planes, expected, rtol=1e-5, atol=1e-30)
  _, log_sum = probabilities.softmax(probabilities.by_class(logits))
  expected = special.logsumexp(both, -1)
  np.testing.assert_allclose(log_sum, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(1, 1), (5, 7), (100, 3, 2)])
def test_bands_cover_all_rows_once(shape):
  for pixels in (1, 20, 10**6):
    bands = [*probabilities.row_bands(shape, pixels)]
    rows = np.concatenate([np.arange(shape[0])[band] for band in bands])
    np.testing.assert_array_equal(rows, np.arange(shape[0]))
    most = max(band.stop - band.start for band in bands)
    assert most == 1 or most * shape[1] <= pixels
