"""A U-Net of configurable depth for image segmentation, in JAX."""

import os
import time
from collections.abc import Mapping
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
  from unet_jax.prediction import segmenter

# Start of the program, before its slow imports (`time.perf_counter`).
STARTED = time.perf_counter()


def load(
  workdir: str | os.PathLike, fields: Mapping[str, Any] | None = None
) -> 'segmenter.Segmenter':
  """Returns a run's network as a function of images, see segmenter.py."""
  # Imported here: it imports jax, and flags are checked without waiting for it.
  from unet_jax.prediction import segmenter

  return segmenter.load(workdir, fields)
