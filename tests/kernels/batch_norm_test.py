"""The sums of batch_norm.cc; see tests/models/batch_norm_test.py too."""

import numpy as np

from unet_jax.kernels import batch_norm


def test_bits_repeat(native_cache):
  x = np.random.default_rng(0).normal(size=(4, 70, 60, 16)).astype(np.float32)
  found = {np.asarray(batch_norm.moments(x)).tobytes() for _ in range(10)}
  assert len(found) == 1
