"""The batch that steps are measured on; imports no JAX, for PyTorch's sake."""

import ml_collections
import numpy as np


def random_batch(config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
  """Returns image uint8 [B, H, W, C] and mask uint8 [B, H, W]."""
  data, rng = config.data, np.random.default_rng(0)
  shape = (data.batch_size, *data.image_size)
  image = rng.integers(256, size=(*shape, data.num_channels), dtype=np.uint8)
  classes = max(data.num_classes, 2)
  return {
    'image': image,
    'mask': rng.integers(classes, size=shape, dtype=np.uint8),
  }
