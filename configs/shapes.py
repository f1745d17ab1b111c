"""Embedded default: overlapping drawn shapes, no download, no GPU needed.

Background, disk, ring and bar, told apart by outline alone: each shape
has a random colour and texture, so that a network without a view of the
surroundings (`--config.model.depth=0`) cannot solve it.

  python main.py
"""

from configs import default


def get_config():
  config = default.get_config()
  config.data.update(
    source='shapes',
    eval_split='test',
    class_names=('background', 'disk', 'ring', 'bar'),
  )
  return config
