"""What inference costs, by the compiler, as a sweep asks for it."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.sweep import measure
from tests import tiny
from unet_jax.models import graph, unet


@pytest.fixture
def cache_again():
  """Compiles with the cache after the test, which turns it off."""
  yield
  jax.config.update('jax_enable_compilation_cache', True)
  compilation_cache.reset_cache()


@pytest.mark.parametrize('kernels', ['xla', 'native'])
def test_the_flop_of_inference_are_those_of_an_image(
  cache_again, native_cache, kernels
):
  """Alike by the compiler, of two images on each device, and by our count."""
  config = tiny.make_config(
    # Pixels at borders, which the compiler does not multiply, are few.
    data={'image_size': (64, 64), 'batch_size': 2 * jax.device_count()},
    model={'depth': 0, 'base_features': 16},
  )
  config.data.cache_dir, config.cpu.kernels = native_cache, kernels
  costs = measure.costs(config)
  expected = graph.read(unet.create_model(config), (64, 64, 3)).flops
  assert costs['inference_flops'] == pytest.approx(expected, rel=0.05)
  # uint8 images and float32 logits of the two images on a device are in it.
  assert costs['inference_bytes'] > 2 * 64 * 64 * (3 + 4 * 3)
  assert costs['inference_images_per_second'] > 0
  assert costs['compile_seconds'] > 0 and costs['device'] == 'cpu'
