"""What do skips add to a U-Net, and does it matter how they are joined?

python -m experiments.sweep experiments/skips/sweep.py[:cpu] --workdir=DIR
"""

import itertools

from experiments.upsampling_depth.sweep import REDUCED

BASE = 'configs/oxford_pets.py:small'
SIZES = {'cpu': REDUCED}


def sweep():
  kinds = ('concat', 'add', 'none', 'attention')
  for skip, seed in itertools.product(kinds, (0, 1, 2)):
    yield {'model.skip': skip, 'seed': seed}
