"""At equal FLOP, a wide U-Net for few steps or a narrow one for many?

python -m experiments.sweep experiments/widths/sweep.py[:cpu] --workdir=DIR
"""

import itertools

from experiments.upsampling_depth.sweep import REDUCED

BASE = 'configs/oxford_pets.py:small'
BUDGET = 'flops'
SIZES = {'cpu': REDUCED}


def sweep():
  for width, seed in itertools.product((4, 8, 12, 16, 24), (0, 1, 2)):
    yield {'model.base_features': width, 'seed': seed}
