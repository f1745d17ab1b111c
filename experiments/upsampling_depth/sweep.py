"""How much do the kind of upsampling and the depth of a U-Net matter?

python -m experiments.sweep experiments/upsampling_depth/sweep.py --workdir=DIR
python -m experiments.sweep experiments/upsampling_depth/sweep.py:cpu ...

Four kinds, five depths, three seeds: 60 runs. `:cpu` is for two cores.
"""

import itertools

BASE = 'configs/oxford_pets.py:small'
TUNE = {'optimizer.learning_rate': (1e-3, 2e-3, 4e-3, 8e-3), 'steps': 300}
# Half the sides and half the channels, a sixteenth of the work; fewer steps.
REDUCED = {
  'OVERRIDES': {
    'data.image_size': (64, 64),
    'model.base_features': 8,
    'train.num_steps': 400,
    'optimizer.warmup_steps': 40,
    'eval.every': 100,
    'eval.bootstrap': 0,
    'log.num_examples': 0,
    'log.tensorboard': False,
  },
  'TUNE': {'optimizer.learning_rate': (4e-3, 8e-3, 1.6e-2), 'steps': 200},
}
SIZES = {'cpu': REDUCED}


def sweep():
  for upsample, depth, seed in itertools.product(
    ('transpose', 'bilinear', 'nearest', 'pixel_shuffle'),
    (1, 2, 3, 4, 5),
    (0, 1, 2),
  ):
    yield {'model.upsample': upsample, 'model.depth': depth, 'seed': seed}
