"""Windows of images of any size: drawn to train on, laid out to evaluate.

A window is what enters the network. What leaves it is as large or, with `valid`
convolutions, its middle: the output. Outputs are placed on the image; what a
window shows beyond the image's border is mirrored (the overlap-tile strategy of
Ronneberger et al. 2015, arXiv 1505.04597, figure 2) and ignored in the mask.
Only the rows of the window are read from a memory-mapped image.
"""

import grain
import numpy as np

from unet_jax.config import fields
from unet_jax.data import prepared, tiling
from unet_jax.models import unet
from unet_jax.runtime import errors

Example = dict[str, np.ndarray]

_EPOCHS = 2**31


def read_window(example: Example, corner, size) -> Example:
  """Returns a window of an example, in memory.

  Args:
    example: arrays [H, W, ...], `mask` among them; perhaps memory-mapped.
    corner: row and column of its first pixel, perhaps beyond the border.
    size: height and width of the window.

  Returns:
    The same entries at that size: mirrored beyond the border (without repeating
    the last pixel), where the mask is 255.
  """
  borders = example['mask'].shape
  rows, columns = map(tiling.mirrored, corner, size, borders)
  # One slice, which maps to few parts of a file; the rest happens in memory.
  box = tuple(slice(i.min(), i.max() + 1) for i in (rows, columns))
  result = {name: np.array(array[box]) for name, array in example.items()}
  outside = [
    (c + np.arange(n) < 0) | (c + np.arange(n) >= border)
    for c, n, border in zip(corner, size, borders)
  ]
  if any(o.any() for o in outside):
    grid = np.ix_(rows - rows.min(), columns - columns.min())
    result = {name: array[grid] for name, array in result.items()}
    result['mask'][outside[0]] = fields.IGNORE_LABEL
    result['mask'][:, outside[1]] = fields.IGNORE_LABEL
  return result


class _Layout:
  """The sizes of windows and outputs, and a prepared set to lay them on."""

  def __init__(self, dataset: prepared.Prepared, config):
    self._dataset = dataset
    self._window = np.array(config.data.image_size)
    model = unet.create_model(config)
    self._output = np.array(model.output_size(config.data.image_size))
    self._sizes = dataset.stats.sizes

  def _read(self, index: int, start) -> Example:
    """The window whose output starts at `start` in image `index`."""
    corner = start - (self._window - self._output) // 2
    return read_window(self._dataset[index], corner, self._window)


class _Draw(_Layout):
  """Draws a window for a ticket, which is the index of an image.

  As nnU-Net does (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z), a
  fraction of the windows is centred on a pixel of a class that is drawn first,
  so that rare classes are seen; as far as the output stays in the image.
  """

  def __init__(self, dataset: prepared.Prepared, config):
    super().__init__(dataset, config)
    names = fields.class_names(config)
    self._num_classes = len(names)
    self._fraction = config.data.foreground_fraction
    chosen = config.data.sample_classes or names[1:]
    pixels = dataset.stats.class_pixels
    # {class: images that have it}
    self._images = {
      c: np.flatnonzero(pixels[:, c])
      for c in map(names.index, chosen)
      if pixels[:, c].any()
    }
    self._classes = list(self._images)
    if self._fraction and not self._classes:
      raise errors.UserError(
        f'no image of {dataset.split} has a pixel of {", ".join(chosen)} to '
        'draw windows around; check the masks and data.mask_values, or set '
        '--config.data.foreground_fraction=0'
      )

  def tickets(self) -> np.ndarray:
    """Returns each image's index once per started area of an output."""
    counts = -(-self._sizes.prod(1) // self._output.prod())
    return np.repeat(np.arange(len(counts)), counts)

  def __call__(self, index: int, rng: np.random.Generator) -> Example:
    """Returns the window that `rng` draws for image `index`, or another."""
    point = None
    if rng.random() < self._fraction:
      c = self._classes[rng.integers(len(self._classes))]
      index = rng.choice(self._images[c])
      points = self._dataset.places.of(index, c, self._num_classes)
      point = points[rng.integers(len(points))]
    room = self._sizes[index] - self._output
    if point is None:
      start = rng.integers(0, np.maximum(room, 0) + 1)
    else:
      start = np.clip(point - self._output // 2, 0, np.maximum(room, 0))
    # A smaller image lies in the middle of the output.
    return self._read(index, np.where(room < 0, -(-room // 2), start))


def train_windows(dataset: prepared.Prepared, config) -> grain.MapDataset:
  """Returns endless windows; each depends on the seed and its position alone.

  An epoch has as many windows of an image as outputs would cover it, in an
  order that is shuffled anew in each.

  Args:
    dataset: prepared with data.resize `patch`.
    config: of the run.

  Raises:
    UserError: no image has any of data.sample_classes.
  """
  draw = _Draw(dataset, config)
  tickets = grain.MapDataset.source(draw.tickets())
  # Endless, as far as anyone can see: grain's own repeat() is too long for
  # Python once it is cut into batches of one.
  endless = tickets.shuffle(config.seed).repeat(_EPOCHS)
  return endless.random_map(draw, seed=config.seed)


class Tiles(_Layout):
  """Windows whose outputs cover every pixel of every image exactly once.

  The grid of outputs lies in the middle of the image, so that what it has
  beyond the border is the same on both sides. A tile's `example`, int32, is the
  index of its image. Counts of pixels add up to those of the image; a loss that
  is a mean over images, as Dice is, takes each tile for one.
  """

  def __init__(self, dataset: prepared.Prepared, config):
    super().__init__(dataset, config)
    self._grids = -(-self._sizes // self._output)
    self._ends = np.cumsum(self._grids.prod(1))

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Example:
    image = int(np.searchsorted(self._ends, index, 'right'))
    grid = self._grids[image]
    row, column = divmod(index - (self._ends[image] - grid.prod()), grid[1])
    first = -((grid * self._output - self._sizes[image]) // 2)
    start = first + (row, column) * self._output
    return {**self._read(image, start), 'example': np.int32(image)}
