"""Cross-entropy, Dice, or both?

python -m experiments.sweep experiments/losses/sweep.py[:cpu] --workdir=DIR
"""

import itertools

from experiments.upsampling_depth.sweep import REDUCED

BASE = 'configs/oxford_pets.py:small'
SIZES = {'cpu': REDUCED}


def sweep():
  weights = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
  for (cross_entropy, dice), seed in itertools.product(weights, (0, 1, 2)):
    yield {
      'loss.weights.cross_entropy': cross_entropy,
      'loss.weights.dice': dice,
      'seed': seed,
    }
