"""Your own images: DIR/images/ and DIR/masks/, paired by file stem.

  python main.py --config=configs/folder.py --config.data.dir=DIR \
    --config.data.num_classes=2 --config.data.mask_values='((0,0),(255,1))'

DIR may hold `images/` and `masks/` directly (a part is then held out for
evaluation, see `data.val_fraction`, or `train.txt` and `val.txt` or `test.txt`
beside them list the stems of each split), or `train/` and `val/` or `test/`,
each with its `images/` and `masks/`. Other usual names, subfolders and stems
that differ by a rule are in docs/data.md. `instances/` beside them, where it
exists, numbers the objects of each mask (for `loss.weight_map`). Look at a new
set first: `--mode=inspect` suggests its config. Where images are few, one part
held out says little: `--mode=cross_validate --config.data.num_folds=5` trains
five networks, each image evaluated by the one that was not trained on it.
"""

import ml_collections

from unet_jax.config import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.data.update(
    source='folder',
    image_size=(256, 256),
    num_classes=2,
    batch_size=8,
  )
  config.model.update(depth=4, base_features=32)
  config.train.num_steps = 2000
  config.eval.every = 500
  config.checkpoint.every = 250
  return config
