"""A U-Net of configurable depth for image segmentation, in JAX."""

import time

# Of the program, as nearly as its slow imports matter (`time.perf_counter`).
STARTED = time.perf_counter()


def load(workdir, fields=None):
  """Returns a run's network as a function of images, see segmenter.py."""
  # Imports jax, which what checks a command line does without.
  from unet_jax.prediction import segmenter

  return segmenter.load(workdir, fields)
