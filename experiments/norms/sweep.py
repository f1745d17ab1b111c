"""Which normalisation suits a U-Net at a small batch?

python -m experiments.sweep experiments/norms/sweep.py[:cpu] --workdir=DIR
"""

import itertools

from experiments.upsampling_depth.sweep import REDUCED

BASE = 'configs/oxford_pets.py:small'
SIZES = {'cpu': REDUCED}


def sweep():
  kinds = ('none', 'batch', 'group', 'instance', 'layer')
  for norm, seed in itertools.product(kinds, (0, 1, 2)):
    yield {'model.norm': norm, 'seed': seed}
