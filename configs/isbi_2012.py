"""The 2015 paper (arXiv 1505.04597): cells in electron microscopy, ISBI 2012.

572 x 572 pixels in, 388 x 388 out: unpadded convolutions, cropped and
concatenated skips, depth 4, 64 to 1024 features, dropout at the end of the two
deepest stages of the encoder, He-normal initialisation, SGD of momentum 0.99 on
one tile at a time; 31,030,658 parameters.

  python main.py --config=configs/isbi_2012.py --config.data.dir=DIR
  python main.py --mode=cross_validate --config=configs/isbi_2012.py:small \
    --config.data.dir=DIR --config.data.num_folds=5

DIR holds the training stack as `images/` and `masks/`, 30 pairs of one name,
512 x 512 pixels; 0 is a membrane, 255 a cell. The last fifth of the stack is
held out; the paper trains on all of it. The paper's recipe has not been
measured yet. `:small` is for a CPU: another network, which pads, normalises and
has 16 channels, on windows of 256 x 256 pixels. Five folds of 700 steps on two
cores of a shared x86 server, seed 0, 36 minutes in all: dataset Dice 0.875 +-
0.006 (mean of both classes), V_rand 0.949 +- 0.046 after thinning.
"""

import ml_collections

from unet_jax.config import default
from unet_jax.runtime import errors


def get_config(recipe: str = 'paper') -> ml_collections.ConfigDict:
  """Returns the config; `recipe` is `paper` or `small` (CPU)."""
  if recipe not in ('paper', 'small'):
    raise errors.UserError(
      f'configs/isbi_2012.py:{recipe}: the recipe is one of paper, small'
    )
  config = default.get_config()
  config.data.update(
    source='folder',
    image_size=(572, 572),
    num_channels=1,
    num_classes=2,
    class_names=('membrane', 'cell'),
    mask_values=((0, 0), (255, 1)),
    # Neighbouring slices look alike.
    holdout='last',
    # Of the training stack.
    mean=(0.495,),
    std=(0.173,),
    batch_size=1,
  )
  # Overlapping tiles, mirrored at the borders of the slices.
  config.data.resize = 'patch'
  config.augment.flip_vertical = 0.5
  config.augment.rotate_90 = 0.75
  # Of 3 x 3 displacements of 10 pixels: the defaults.
  config.augment.elastic.probability = 1.0
  config.loss.weight_map = 'border'
  config.loss.balance = 'image'
  config.model.update(
    depth=4,
    base_features=64,
    padding='valid',
    norm='none',
    # The rate and the two places in the authors' published network.
    dropout=0.5,
    dropout_stages=2,
  )
  # The paper gives no learning rate. A tenth of what is usual with a momentum
  # of 0.9: 0.99 adds up ten times as many gradients.
  config.optimizer.update(
    name='sgd',
    learning_rate=1e-3,
    warmup_steps=0,
    momentum=0.99,
    schedule='constant',
    weight_decay=0.0,
    clip_norm=0.0,
    ema_decay=0.0,
  )
  config.train.num_steps = 20000
  # The challenge's measures: of whole slices, and of cells as objects.
  config.eval.update(every=1000, resolution='original', instances='cell')
  config.checkpoint.every = 500
  config.log.every = 50
  if recipe == 'small':
    _make_small(config)
  return config


def _make_small(config: ml_collections.ConfigDict) -> None:
  """Five folds in half an hour on two cores."""
  config.data.update(image_size=(256, 256), batch_size=2)
  config.augment.elastic.probability = 0.5
  config.augment.brightness.probability = 0.5
  config.augment.contrast.probability = 0.5
  # Pixels count alike: for the overlap of classes, not for whole borders.
  config.loss.update(weight_map='none', balance='none')
  config.model.update(
    depth=3,
    base_features=16,
    padding='same',
    norm='batch',
    dropout=0.0,
    dropout_stages=1,
  )
  config.optimizer.update(
    name='adamw',
    learning_rate=2e-3,
    warmup_steps=50,
    momentum=0.9,
    schedule='cosine',
    weight_decay=1e-4,
    clip_norm=1.0,
    ema_decay=0.99,
  )
  config.train.num_steps = 700
  config.eval.every = 0
  # As the paper averages over seven turned copies.
  config.inference.update(
    flips=('horizontal', 'vertical'), rotate_90=True, batch_size=4
  )
