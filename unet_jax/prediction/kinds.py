"""Images of another kind than those trained on: values, depth and channels."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import ml_collections

from unet_jax.data import rasters
from unet_jax.prediction import scale
from unet_jax.runtime import errors

# Share of the values of all images that may lie outside of the range of the
# training, and of one of them, which may be dark or bright by nature.
_OUTSIDE, _OUTSIDE_OF_ONE = 0.01, 0.1


class Check(Protocol):
  """Looks at predicted images; from one thread at a time."""

  def see(self, raster: rasters.Raster) -> None:
    """Takes an image that was read."""

  def warning(self) -> str:
    """Returns a line on the images that are of another kind, or ''."""


def checks(
  config: ml_collections.ConfigDict, about: Mapping[str, Any]
) -> list[Check]:
  """Returns what to look at; `about` is that of `restore.restore`."""
  return [
    scale.Scales(config, about['edges']),
    Ranges(config),
    Origins(config, about['origins']),
  ]


class Ranges:
  """Looks at how much of each image data.intensity_range cuts off."""

  def __init__(self, config: ml_collections.ConfigDict):
    self._range = config.data.intensity_range
    self._num_seen, self._total = 0, 0.0
    self._odd = list[float]()

  def see(self, raster: rasters.Raster) -> None:
    share = raster.outside
    self._num_seen += 1
    self._total += share
    if share > _OUTSIDE:
      self._odd.append(share)

  def warning(self) -> str:
    odd = self._odd
    is_more = self._total > _OUTSIDE * self._num_seen
    if not odd or not (is_more or max(odd) > _OUTSIDE_OF_ONE):
      return ''
    return (
      f'{len(odd)} of {self._num_seen} image(s) have more than '
      f'{_OUTSIDE:.0%} of their values outside of data.intensity_range='
      f'{tuple(self._range)}, {sum(odd) / len(odd):.1%} on average, which the '
      'network sees as 0 or 255: give values of the unit that it was trained '
      'on, or train with a range that holds both'
    )


class Origins:
  """Looks at depth and channels of each image as it is stored.

  Args:
    config: of the run.
    origins: of the images that it was trained on, see `stored.Stored`; not
      compared where none is known.
  """

  def __init__(self, config: ml_collections.ConfigDict, origins: Sequence[str]):
    self._data, self._known = config.data, [o for o in origins if o]
    # Each image's own range does away with depths.
    self._has_depth = config.data.intensity != 'image'
    self._num_seen, self._odd = 0, list[str]()

  def see(self, raster: rasters.Raster) -> None:
    self._num_seen += 1
    alike = [self._are_alike(known, raster.origin) for known in self._known]
    if alike and not any(alike):
      self._odd.append(raster.origin)

  def _are_alike(self, known: str, origin: str) -> bool:
    (channels, _, depth), (others, _, other) = (
      text.partition(' of ') for text in (known, origin)
    )
    is_depth_known = self._has_depth and depth and other
    return channels == others and (depth == other or not is_depth_known)

  def warning(self) -> str:
    if not self._odd:
      return ''
    return (
      f'{len(self._odd)} of {self._num_seen} image(s) are '
      f'{errors.some(sorted(set(self._odd)))}, those trained on '
      f'{errors.some(self._known)}: they were converted (data.intensity='
      f'{self._data.intensity}, data.num_channels={self._data.num_channels}), '
      'and the network may not know what they show; check what it predicts'
    )
