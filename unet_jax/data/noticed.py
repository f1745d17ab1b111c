"""What there is to warn of in a set, noticed while it is prepared."""

import ml_collections

from unet_jax.data import examples, image_levels, mask_advice, smoothed
from unet_jax.runtime import errors

# Images of a set whose levels are measured, which takes a tenth of decoding;
# one of so many of these is searched for smoothing, as long as decoding takes.
_MEASURED, _SELDOM = 32, 4


class Noticed:
  """Sees each example of a set, from many threads and in any order.

  Args:
    total: number of examples.
    data: the section of a config.
  """

  def __init__(self, total: int, data: ml_collections.ConfigDict):
    self._total, self._data = total, data
    self._step = -(-total // _MEASURED)
    # By index; names are of images that viewers turn, and of lossy masks.
    self._turned: dict[int, str] = {}
    self._lossy: dict[int, str] = {}
    self._levels: dict[int, image_levels.Levels | None] = {}
    self._left: dict[int, tuple[str, smoothed.Smoothed | None]] = {}

  def see(self, index: int, example: examples.Example) -> None:
    """Takes an example as it was decoded."""
    image_file, mask_file = (
      example.get(key) for key in ('image_file', 'mask_file')
    )
    if any(file and file.orientation != 1 for file in (image_file, mask_file)):
      self._turned[index] = example['name']
    if examples.has_lossy_mask(example):
      self._lossy[index] = example['mask_name']
    # Tags of no data are rare, and all are counted.
    has_tag = image_file and image_file.nodata is not None
    if index % self._step == 0 or has_tag:
      self._levels[index] = image_file and image_file.levels
    if index % (_SELDOM * self._step) == 0 and example['mask'].ndim == 2:
      found = smoothed.find(example['mask'])
      self._left[index] = example['mask_name'], found

  def lines(self) -> list[str]:
    """Returns a line for each thing to warn of."""
    levels = [found for _, found in sorted(self._levels.items())]
    turned = [name for _, name in sorted(self._turned.items())]
    lossy = [name for _, name in sorted(self._lossy.items())]
    left = [found for _, found in sorted(self._left.items())]
    lines = image_levels.lines_on_set(levels, self._data, self._total)
    if turned and self._data.orientation == 'stored':
      lines.append(
        f'{len(turned)} of {self._total} pairs have tags that '
        f'turn them for display ({errors.some(turned)}), which are not '
        'applied; --config.data.orientation=upright applies them'
      )
    if lossy:
      lines.append(mask_advice.line_on_loss(lossy, self._total))
    return lines + mask_advice.lines_on_sample(left, self._data)
