"""The memory of a step that native kernels write to, see pages.h."""

import pathlib
import resource

import jax
import jax.numpy as jnp
import pytest

from unet_jax.kernels import convolution

_HUGE = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


@pytest.mark.skipif(
  not _HUGE.exists() or '[madvise]' not in _HUGE.read_text(),
  reason='huge pages are not given to those who ask for them',
)
def test_a_step_has_few_page_faults(native_cache):
  def step(x, kernel):
    for _ in range(3):
      x = convolution.convolve(x, kernel, 1)
    return x.sum()

  x, kernel = jnp.ones((12, 256, 256, 16)), jnp.ones((3, 3, 16, 16))
  step = jax.jit(step)
  step(x, kernel).block_until_ready()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  step(x, kernel).block_until_ready()
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
  # It holds two arrays of the size of x at a time.
  assert faults < x.nbytes / resource.getpagesize() / 4
