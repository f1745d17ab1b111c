"""Checks of the loss; a table as in checks.py, which runs it."""

from typing import Any

import ml_collections

# The losses of single pixels, which weigh them.
_OF_PIXELS = ('cross_entropy', 'focal', 'hard_pixels')


def table(config: ml_collections.ConfigDict, mode: str) -> dict[str, Any]:
  data, loss = config.data, config.loss
  weights = loss.class_weights
  has_pixels = any(loss.weights[name] for name in _OF_PIXELS)
  is_pair = len(loss.tversky) == 2 and all(
    isinstance(v, int | float) and v >= 0 for v in loss.tversky
  )
  return {
    'data.std: must be above 0': any(s <= 0 for s in data.std),
    'loss.border_sigma: must be above 0 pixels': not loss.border_sigma > 0,
    'loss.class_weights: must be at least 0, and not all 0': (
      weights and (min(weights) < 0 or not any(weights))
    ),
    'loss.hard_fraction: must be above 0, and at most 1': (
      not 0 < loss.hard_fraction <= 1
    ),
    'loss.tversky: takes two numbers of at least 0, not both 0, such as '
    '0.3,0.7': not is_pair or not any(loss.tversky),
    'config.loss.weights: all are 0; set one, for instance '
    '--config.loss.weights.cross_entropy=1': not any(loss.weights.values()),
    'loss.weights.cl_dice is of all classes but the first: with '
    'loss.class_weights, one of these must be above 0': (
      loss.weights.cl_dice and weights[1:] and not any(weights[1:])
    ),
    **{
      f'loss.{name} weighs the pixels of {", ".join(_OF_PIXELS)}, which are '
      'off; set loss.weights.cross_entropy, or leave it out': (
        loss[name] != 'none' and not has_pixels
      )
      for name in ('weight_map', 'balance')
    },
    f'data.instance_key names a feature of the tfds source, not of '
    f'{data.source}; the folder source takes instances/ beside masks/': (
      data.instance_key and data.source != 'tfds'
    ),
  }
