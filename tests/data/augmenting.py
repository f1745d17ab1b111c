"""Batches and calls for the tests of augmentation."""

import jax
import numpy as np


def random_batch(rng, n, height, width, channels=3, values=256):
  return {
    'image': rng.integers(0, 256, (n, height, width, channels), np.uint8),
    'mask': rng.integers(0, values, (n, height, width), np.uint8),
    'weight_map': rng.random((n, height, width)).astype(np.float16),
  }


def run(transform, batch, key=0):
  """The batch that a transform returns, compiled."""
  call = jax.jit(transform)
  return jax.tree.map(np.asarray, call(jax.random.key(key), batch))


def drawn_by(method, key, *args):
  """The draws of a method; compiled as a whole, which is faster."""
  call = jax.jit(lambda key: method(key, *args))
  return jax.tree.map(np.asarray, call(key))
