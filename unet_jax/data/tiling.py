"""Cuts images of any size into windows, and puts the outputs together.

A window is an input of the network, an output its result: as large or, with
`valid` convolutions, the middle of the window. Windows beyond the image's
border are mirrored. Outputs come row of windows by row of windows, so that only
the rows of one window are in memory, of an image of any height.

- `same` padding: windows overlap, and outputs are averaged with weights that
  fall off towards their borders, where a network sees less (Isensee et al.
  2021, doi 10.1038/s41592-020-01008-z). Starts, weights and sums are those of
  MONAI's `sliding_window_inference`.
- `valid` padding: outputs lie side by side and see all that they depend on: the
  overlap-tile strategy of Ronneberger et al. 2015 (arXiv 1505.04597, figure 2).
  Where they are at least 2**depth pixels large, they start at multiples of
  that, so that the network halves each of them on the same grid, and together
  they are what one pass over the whole image gives.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from unet_jax.data import rasters
from unet_jax.models import unet

# Without a least weight, sums far from a middle would be of rounding errors.
_LEAST_WEIGHT = 1e-3


def mirrored(start: int, length: int, size: int) -> np.ndarray:
  """Indices start, start + 1, ... mirrored at 0 and size - 1: int [length]."""
  period = max(2 * size - 2, 1)
  indices = np.arange(start, start + length) % period
  return np.where(indices < size, indices, period - indices)


def gaussian_weights(size: tuple[int, ...], sigma: float = 0.125) -> np.ndarray:
  """Returns float32 [H, W]: a Gaussian around the middle, at least 1e-3.

  Its standard deviation `sigma` is a share of each side; nnU-Net's is 1/8.
  """
  axes = []
  for n in size:
    x = np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)
    axes.append(np.exp(x**2 / np.float32(-2 * (sigma * n) ** 2)))
  weights = axes[0][:, None] * axes[1]
  return np.maximum(weights, max(weights.min(), np.float32(_LEAST_WEIGHT)))


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
  """How the outputs of a network are laid over images.

  Attributes:
    window: height and width of the network's input.
    output: of its output.
    step: rows and columns from one output to the next.
    weights: float32 [*output] of an output's pixels in the average where
      outputs overlap; None where outputs lie side by side.
    centered: whether outputs that reach beyond the image do so on both sides,
      or only at the end.
  """

  window: tuple[int, ...]
  output: tuple[int, ...]
  step: tuple[int, ...]
  weights: np.ndarray | None = None
  centered: bool = False

  @property
  def margins(self) -> np.ndarray:
    """Rows and columns of the window before its output: int [2]."""
    return (np.array(self.window) - self.output) // 2

  def starts(self, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first rows and columns of the outputs over an image.

    An image smaller than an output lies in its middle. With `weights` the last
    output ends where the image does; without, it may go beyond.
    """
    rows, columns = map(self._axis_starts, size, self.output, self.step)
    return rows, columns

  def _axis_starts(self, n: int, output: int, step: int) -> np.ndarray:
    if n <= output:
      return np.array([-((output - n) // 2)])
    starts = np.arange(math.ceil((n - output) / step) + 1) * step
    if self.weights is not None:
      return np.minimum(starts, n - output)
    beyond = starts[-1] + output - n
    return starts - beyond // 2 if self.centered else starts


def make_layout(
  model: unet.UNet, window: Sequence[int], overlap: float, blend: str
) -> Layout:
  """Returns the layout to predict with.

  Args:
    window: height and width of its input.
    overlap: the share of a window that the next one covers too; not used with
      `valid` padding, whose windows overlap by the margins of their outputs.
    blend: `gaussian` weights, or `constant`.
  """
  window = tuple(window)
  output = model.output_size(window)
  if model.padding == 'valid':
    grid = 2 ** (model.depth + (model.stem == 'space_to_depth'))
    # An output smaller than the grid cannot keep to it.
    step = tuple(n // grid * grid or n for n in output)
    return Layout(window, output, step)
  step = tuple(max(int(n * (1 - overlap)), 1) for n in output)
  ones = np.ones(output, np.float32)
  weights = gaussian_weights(output) if blend == 'gaussian' else ones
  return Layout(window, output, step, weights)


class _Rows:
  """Rows of an image, mirrored beyond it; keeps those that come again."""

  def __init__(self, raster: rasters.Raster):
    self._raster = raster
    self._first, self._kept = 0, np.zeros((0, 0, 0), np.uint8)

  def read(self, start: int, length: int) -> np.ndarray:
    """Returns uint8 [length, W, C] from row `start` on; never goes back."""
    indices = mirrored(start, length, self._raster.size[0])
    low, high = int(indices.min()), int(indices.max()) + 1
    end = self._first + len(self._kept)
    if not self._first <= low < end:
      self._kept = self._raster.read(low, high)
    else:
      self._kept = self._kept[low - self._first :]
      if high > end:
        more = self._raster.read(end, high)
        self._kept = np.concatenate([self._kept, more])
    self._first = low
    if np.array_equal(indices, np.arange(low, low + length)):
      return self._kept[:length]
    return self._kept[indices - low]


def read_windows(
  raster: rasters.Raster, layout: Layout
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
  """Yields the windows of an image, by rows.

  Yields:
    (row, column) of the first pixel of the window's output in the image, and
    the window, uint8 [*layout.window, C].
  """
  rows = _Rows(raster)
  height, width = layout.window
  above, before = layout.margins.tolist()
  row_starts, column_starts = layout.starts(raster.size)
  for row in row_starts.tolist():
    band = rows.read(row - above, height)
    for column in column_starts.tolist():
      left = column - before
      if 0 <= left <= raster.size[1] - width:
        window = band[:, left : left + width]
      else:
        window = band[:, mirrored(left, width, raster.size[1])]
      yield (row, column), window


class Canvas:
  """Puts outputs together; flushes rows that no later output reaches.

  Args:
    size: height and width of the image.
    write: called with its rows, float32 [h, W, K], from top to bottom.
  """

  def __init__(
    self,
    layout: Layout,
    size: tuple[int, ...],
    write: Callable[[np.ndarray], None],
  ):
    self._layout, self._size, self._write = layout, size, write
    rows, _ = layout.starts(size)
    # The row in the image of the first row of `_sums`.
    self._first = int(rows[0])
    self._sums = self._weights = np.zeros(0)  # Allocated by the first `add`.

  def add(self, start: tuple[int, ...], output: np.ndarray) -> None:
    """Adds an output; those of one row of windows come together.

    Args:
      start: its first row and column in the image.
      output: float32 [*layout.output, K], times `layout.weights` unless these
        are None.
    """
    row, column = start
    if not self._sums.size:
      shape = (self._layout.output[0], self._size[1])
      self._sums = np.zeros((*shape, output.shape[-1]), np.float32)
      self._weights = np.zeros(shape, np.float32)
    if row > self._first:
      self._flush(row - self._first)
    inside = slice(max(column, 0), min(column + output.shape[1], self._size[1]))
    of_output = slice(inside.start - column, inside.stop - column)
    if self._layout.weights is None:
      self._sums[:, inside] = output[:, of_output]
    else:
      self._sums[:, inside] += output[:, of_output]
      self._weights[:, inside] += self._layout.weights[:, of_output]

  def _flush(self, count: int) -> None:
    """Writes the first rows, and moves the others up."""
    low, high = max(self._first, 0), min(self._first + count, self._size[0])
    if low < high:
      rows = slice(low - self._first, high - self._first)
      band = self._sums[rows].copy()
      if self._layout.weights is not None:
        band /= self._weights[rows, :, None]
      self._write(band)
    for held in (self._sums, self._weights):
      held[: len(held) - count] = held[count:].copy()
      held[len(held) - count :] = 0
    self._first += count

  def close(self) -> None:
    """Writes the remaining rows."""
    self._flush(len(self._sums))
