"""Windows of images of any size: drawn to train on, laid out to evaluate.

Windows, outputs and mirrored borders are those of tiling.py; the mask of a
window is 255 beyond the border. Only the rows of a window are read from a
memory-mapped image.
"""

from typing import Any

import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import prepared, tiling
from unet_jax.models import unet
from unet_jax.runtime import errors

# Random numbers of a window: six are used, and Philox makes four at a time.
_NUMBERS = 8


def read_window(
  arrays: prepared.Arrays, corner: np.ndarray, size: tuple[int, ...]
) -> prepared.Arrays:
  """Returns a window of an example, in memory.

  Args:
    arrays: of the example, [H, W, ...], perhaps memory-mapped.
    corner: int [2]: the window's first row and column, perhaps negative.
    size: height and width of the window.

  Returns:
    The same entries at that size: mirrored beyond the border (without repeating
    the last pixel), where the mask is 255.
  """
  borders, corners = arrays['mask'].shape, corner.tolist()
  ends = [c + n for c, n in zip(corners, size)]
  if min(corners) >= 0 and all(e <= n for e, n in zip(ends, borders)):
    box = tuple(map(slice, corners, ends))
    return {name: np.array(array[box]) for name, array in arrays.items()}
  rows, columns = map(tiling.mirrored, corners, size, borders)
  # One slice, which maps to few parts of a file; the rest happens in memory.
  box = tuple(slice(i.min(), i.max() + 1) for i in (rows, columns))
  grid = np.ix_(rows - rows.min(), columns - columns.min())
  result = {name: array[box][grid] for name, array in arrays.items()}
  for axis, indices in enumerate((rows, columns)):
    outside = indices != np.arange(corners[axis], ends[axis])
    result['mask'].swapaxes(0, axis)[outside] = fields.IGNORE_LABEL
  return result


def _make_layout(config: ml_collections.ConfigDict) -> tiling.Layout:
  """Outputs side by side, centred on the image."""
  window = tuple(config.data.image_size)
  output = unet.create_model(config).output_size(window)
  return tiling.Layout(window, output, step=output, centered=True)


class Draws:
  """The windows of an epoch: as many of an image as outputs would cover it.

  As nnU-Net does (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z), a
  fraction of the windows is centred on a pixel of a class that is drawn first,
  so that rare classes are seen; as far as the output stays in the image.

  Raises:
    UserError: no image has any of data.sample_classes.
  """

  def __init__(
    self, dataset: prepared.Dataset, config: ml_collections.ConfigDict
  ):
    assert dataset.stats and dataset.pixels  # Read whole, for `patch`.
    self._dataset, self._layout = dataset, _make_layout(config)
    self._sizes, self._pixels = dataset.stats.sizes, dataset.pixels
    self._seed, self._fraction = config.seed, config.data.foreground_fraction
    areas = self._sizes.prod(1)
    # Image i has the windows from ends[i - 1] to ends[i].
    self._ends = np.cumsum(-(-areas // np.prod(self._layout.output)))
    names = fields.class_names(config)
    chosen = config.data.sample_classes or names[1:]
    counts = dataset.stats.class_pixels
    # {class: images that have it}
    self._images = {
      c: np.flatnonzero(counts[:, c])
      for c in map(names.index, chosen)
      if counts[:, c].any()
    }
    self._classes = list(self._images)
    if self._fraction and not self._classes:
      raise errors.UserError(
        f'no image of {dataset.split} has a pixel of {", ".join(chosen)} to '
        'draw windows around; check the masks and data.mask_values, or set '
        '--config.data.foreground_fraction=0'
      )

  def __len__(self) -> int:
    return int(self._ends[-1])

  def read_batch(self, indices: np.ndarray, first: int) -> prepared.Arrays:
    """Draws windows, stacked: [B, H, W, ...].

    Args:
      indices: int [B] of windows in an epoch.
      first: position of the first among all windows of the run. Positions and
        the seed give the random numbers, for any size of batch.
    """
    philox = np.random.Philox(key=self._seed, counter=first * _NUMBERS // 4)
    numbers = np.random.Generator(philox).random((len(indices), _NUMBERS))
    images = np.searchsorted(self._ends, indices, 'right')
    return prepared.stack(list(map(self._draw, images.tolist(), numbers)))

  def _draw(self, index: int, numbers: np.ndarray) -> prepared.Arrays:
    """Returns the window that numbers in 0..1 give of an image, or another."""
    part, of_classes, of_images, of_points = numbers[:4].tolist()
    choose = lambda items, number: items[int(number * len(items))]
    output = np.array(self._layout.output)
    if part < self._fraction:
      c = choose(self._classes, of_classes)
      index = choose(self._images[c], of_images)
      point = choose(self._pixels.of(index, c), of_points)
    room = self._sizes[index] - output
    free = np.maximum(room, 0)
    if part < self._fraction:
      start = np.clip(point - output // 2, 0, free)
    else:
      start = (numbers[4:6] * (free + 1)).astype(int)
    # A smaller image lies in the middle of the output.
    start = np.where(room < 0, -(-room // 2), start)
    corner = start - self._layout.margins
    return read_window(self._dataset[index], corner, self._layout.window)


class Tiles:
  """Windows whose outputs cover every pixel of every image exactly once.

  A tile's `example`, int32, is the index of its image. Counts of pixels add up
  to those of the image; a loss that is a mean over images, such as Dice, takes
  each tile for an image.
  """

  def __init__(
    self, dataset: prepared.Dataset, config: ml_collections.ConfigDict
  ):
    assert dataset.stats  # Read whole.
    self._dataset, self._layout = dataset, _make_layout(config)
    self._starts = [
      self._layout.starts(size) for size in dataset.stats.sizes.tolist()
    ]
    counts = [len(rows) * len(columns) for rows, columns in self._starts]
    self._first = np.cumsum([0, *counts])

  def __len__(self) -> int:
    return int(self._first[-1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = int(np.searchsorted(self._first, index, 'right')) - 1
    rows, columns = self._starts[image]
    row, column = divmod(index - int(self._first[image]), len(columns))
    corner = np.array((rows[row], columns[column])) - self._layout.margins
    window = read_window(self._dataset[image], corner, self._layout.window)
    return {**window, 'example': np.int32(image)}

  def read_batch(self, indices: np.ndarray) -> prepared.Arrays:
    """Returns tiles, stacked: [B, H, W, ...]."""
    return prepared.stack([self[index] for index in indices])
