"""The lesson's Keras U-Net, layer for layer; 7,696,193 parameters.

256 x 256 grey pixels, three 2x2 max poolings, 64 to 512 features, two 3x3
`same` convolutions with ReLU a stage, 2x2 transposed convolutions of stride 2,
concatenated skips, one sigmoid channel, no norm.

  python main.py --config=configs/keras_lesson.py --config.data.dir=DIR

`:bilinear` doubles the size bilinearly instead, and halves the channels with a
2x2 convolution after it, which is the "up-convolution" of the 2015 paper (arXiv
1505.04597, section 2), and has as many parameters: 7,696,193.

DIR is a folder as in configs/folder.py; masks of 0 (background) and 255.
"""

import ml_collections

from unet_jax.config import default
from unet_jax.runtime import errors


def get_config(upsample: str = 'transpose') -> ml_collections.ConfigDict:
  """Returns the config; `upsample` is `transpose` or `bilinear`."""
  if upsample not in ('transpose', 'bilinear'):
    raise errors.UserError(
      f'configs/keras_lesson.py:{upsample}: the upsampling is one of '
      'transpose, bilinear'
    )
  config = default.get_config()
  config.data.update(
    source='folder',
    image_size=(256, 256),
    num_channels=1,
    num_classes=1,
    mask_values=((0, 0), (255, 1)),
    # Values in 0..1, as they are in the lesson.
    mean=(0.0,),
    std=(1.0,),
    batch_size=8,
  )
  config.model.update(
    depth=3,
    base_features=64,
    upsample=upsample,
    upsample_kernel=2,
    norm='none',
  )
  # Keras' Adam: no decay, no schedule.
  config.optimizer.update(
    learning_rate=1e-3,
    warmup_steps=0,
    schedule='constant',
    weight_decay=0.0,
    clip_norm=0.0,
    eps=1e-7,
    ema_decay=0.0,
  )
  config.train.num_steps = 2000
  config.eval.every = 500
  config.checkpoint.every = 250
  return config
