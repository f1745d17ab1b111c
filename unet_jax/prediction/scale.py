"""Images that reach the network at another scale than it was trained at."""

import math
from collections.abc import Sequence

import ml_collections

from unet_jax.data import rasters

# An image may be so much larger or smaller than all that were trained on.
_FACTOR = 2


class Scales:
  """Looks at the sizes of predicted images; from any thread.

  Args:
    config: of the run.
    edges: smallest, median and largest of the images that it was trained on,
      in pixels; () if they are not known.
  """

  def __init__(self, config: ml_collections.ConfigDict, edges: Sequence[float]):
    self._data, self._edges = config.data, edges
    if config.data.resize == 'patch':
      self._edges = ()  # Each pixel is a pixel of the network.
    self._odd: list[tuple[float, tuple[int, int]]] = []

  def see(self, raster: rasters.Raster) -> None:
    """Takes an image."""
    if self._edges:
      edge = math.sqrt(math.prod(raster.size))
      low, _, high = self._edges
      if not low / _FACTOR < edge < high * _FACTOR:
        self._odd.append((edge, raster.size))

  def warning(self) -> str:
    """Returns a line on the images of another scale, or ''."""
    if not self._odd:
      return ''
    usual, size = self._edges[1], self._data.image_size
    edge, odd = max(self._odd, key=lambda x: abs(math.log(x[0] / usual)))
    scale = round(math.sqrt(math.prod(size)) / usual, 3)
    window = ','.join(str(round(n / scale)) for n in size)
    return (
      f'{len(self._odd)} image(s), one of {odd[0]} x {odd[1]} pixels, are of '
      'another size than those trained on (edges of about '
      f'{self._edges[0]:.0f} to {self._edges[2]:.0f}), and data.resize='
      f'{self._data.resize} brings all to {size[0]} x {size[1]}: what they '
      f'show is {max(edge / usual, usual / edge):.1f} times as '
      f'{"small" if edge > usual else "large"} to the network. Windows at the '
      'scale of the training: --config.data.resize=patch '
      f'--config.inference.window={window} --config.inference.scales={scale}'
    )
