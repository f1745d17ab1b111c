"""What files store, as images of the network and as values of masks.

`stored.read` gives the pixels as they were written. Images take what their
files say of display: palettes are looked up, white-is-zero is inverted. Masks
do not: their values are those that are stored. EXIF's and TIFF's orientation
turns neither, or both, by data.orientation.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from unet_jax.config import mask_table
from unet_jax.data import alpha, image_levels, intensity, stored
from unet_jax.runtime import errors

EXTENSIONS = (
  *('.png', '.jpg', '.jpeg', '.jfif', '.tif', '.tiff'),
  *('.bmp', '.gif', '.webp'),
)


@dataclasses.dataclass(frozen=True)
class Decoded:
  """An image or a mask from a file.

  Attributes:
    array: an image uint8 [H, W, C], or a mask's values: integers [H, W], or RGB
      [H, W, 3].
    ignored: bool [H, W], pixels that hold no data; None where all do.
    kind: colours, bits and format, such as `RGB 8 bit JPEG` or `grey 8 bit
      lossy WebP`.
    orientation: the file's tag, whether it was applied or not.
    pages: images in the file.
    nodata: the value that the file names as no data, or None.
    origin: see `stored.Stored`.
    outside: of an image, see `image_levels.share_outside`.
    palette: uint8 RGB [N, 3], of a mask whose values are its indices.
    measure: returns the levels of an image whose values are not those of 8
      bits.
  """

  array: np.ndarray
  ignored: np.ndarray | None
  kind: str
  orientation: int
  pages: int
  nodata: float | None = None
  origin: str = ''
  outside: float = 0.0
  palette: np.ndarray | None = None
  measure: Callable[[], image_levels.Levels] | None = None

  @functools.cached_property
  def levels(self) -> image_levels.Levels | None:
    return self.measure and self.measure()


def decode_image(
  content: bytes, name: str, data: ml_collections.ConfigDict, page: int = 0
) -> Decoded:
  """Reads an image of a file as uint8 [H, W, data.num_channels].

  One channel is grey (ITU-R 601 of RGB), three are RGB or the file's own bands;
  other depths than 8 bit are scaled by data.intensity.

  Raises:
    DecodeError: the file is damaged, or of a kind that is not read.
    UserError: it holds more than is used (pages, bands, alpha), or values out
      of the range that is scaled to 0..255.
  """
  found = _read(content, name, data, page)
  array, ignored, outside = to_network(found, name, data)
  is_plain = found.pixels.dtype == np.uint8
  later = None
  if not is_plain or found.nodata is not None or data.intensity != 'dtype':
    later = functools.partial(measure, found, name, data)
  return _decoded(
    array, ignored, found, content, data, measure=later, outside=outside
  )


def is_lossy(kind: str) -> bool:
  """Whether files of a `Decoded.kind` hold other values than were written."""
  return kind.endswith('JPEG') or 'lossy' in kind


def measure(
  found: stored.Stored, name: str, data: ml_collections.ConfigDict
) -> image_levels.Levels:
  """Measures the values of an image, see `image_levels.measure`."""
  pixels, ignored = select(found, name, data)
  return image_levels.measure(pixels, data, found.bits, ignored, found.nodata)


def decode_mask(
  content: bytes, name: str, data: ml_collections.ConfigDict, page: int = 0
) -> Decoded:
  """Reads a mask's values as they are stored.

  A file with a palette gives indices, or its colours where data.mask_values has
  colours. A file whose channels are equal gives one of them.

  Raises:
    DecodeError: the file is damaged, or of a kind that is not read.
    UserError: it holds more than is used (pages, bands, alpha), or values that
      are no integers.
  """
  found = _read(content, name, data, page)
  ignored, table = None, mask_table.of(data)
  if found.kind == 'palette' and table.has_colors:
    colors = _look_up(found, name)
    found = dataclasses.replace(found, pixels=colors, palette=None)
  values, palette = found.pixels, found.palette
  if table.has_transparent and found.alpha is not None and palette is None:
    values = alpha.mark(found)
  elif found.kind != 'palette':  # There alpha belongs to the colours.
    ignored = alpha.ignored(found, name, data, 0)
  if values.dtype.kind == 'f':
    bad = ~(np.isfinite(values) & (values == np.rint(values)))
    if bad.any():
      raise errors.UserError(
        f'{name}: the mask holds floats that are no integers, such as '
        f'{values[bad][0]} ({np.count_nonzero(bad)} of {values.size} values); '
        'store classes as integers, and 255 where there is no label'
      )
    values = values.astype(np.int64)
  if values.ndim == 3:
    values = _one_value(values, found.kind, name)
  return _decoded(values, ignored, found, content, data, palette=palette)


def _read(
  content: bytes, name: str, data: ml_collections.ConfigDict, page: int
) -> stored.Stored:
  found = stored.read(content, name, page)
  check_pages(found.pages, name, data)
  return found


def check_pages(pages: int, name: str, data: ml_collections.ConfigDict) -> None:
  """Refuses files of several images unless data.pages says how to use them."""
  if pages > 1 and data.pages == 'one':
    raise errors.UserError(
      f'{name} holds {pages} images (pages or frames); make each an image of '
      'its own with --config.data.pages=images, or, where they are channels, '
      'store them as channels of one page'
    )


def _decoded(
  array: np.ndarray,
  ignored: np.ndarray | None,
  found: stored.Stored,
  content: bytes,
  data: ml_collections.ConfigDict,
  **more: Any,
) -> Decoded:
  if data.orientation == 'upright' and found.orientation != 1:
    array = stored.turn(array, found.orientation)
    if ignored is not None:
      ignored = stored.turn(ignored, found.orientation)
  format_ = stored.format_of(content)
  if found.is_lossy and format_ != 'JPEG':
    format_ = f'lossy {format_}'
  kind = f'{found.describe()} {format_}'
  return Decoded(
    array,
    ignored,
    kind,
    found.orientation,
    found.pages,
    found.nodata,
    found.origin,
    **more,
  )


def _look_up(found: stored.Stored, name: str) -> np.ndarray:
  """Returns the colours of a palette's indices: uint8 [H, W, 3]."""
  assert found.palette is not None
  highest = int(found.pixels.max(initial=0))
  if highest >= len(found.palette):
    raise stored.broken(
      name, f'index {highest} of a palette of {len(found.palette)} colours'
    )
  return found.palette[found.pixels]


def _one_value(values: np.ndarray, kind: str, name: str) -> np.ndarray:
  """Returns [H, W] of equal channels, else RGB [H, W, 3]."""
  if np.all(values == values[..., :1]):
    return values[..., 0]
  channels = values.shape[2]
  is_planes = (
    kind == 'bands'
    and len(np.unique(values)) == 2
    and np.all(np.count_nonzero(values, axis=-1) == 1)
  )
  if channels != 3 or is_planes:
    what = 'a plane for each class' if is_planes else f'{channels} channels'
    raise errors.UserError(
      f'{name}: the mask has {what}; store one value a pixel, such as '
      'planes.argmax(-1), or an RGB image of one colour a class'
    )
  if values.min() < mask_table.TRANSPARENT_VALUE or values.max() > 65535:
    raise errors.UserError(
      f'{name}: the colours of the mask are from {values.min()} to '
      f'{values.max()}; store colours of 0..255, or one value a pixel'
    )
  return values


def to_channels(
  found: stored.Stored, name: str, data: ml_collections.ConfigDict
) -> tuple[np.ndarray, np.ndarray | None]:
  """Chooses what of a file is shown to the network.

  Returns:
    Grey [H, W] or [H, W, C] of the stored type, and which pixels hold no data,
    bool [H, W] or None.

  Raises:
    UserError: it holds more than is used, or white-is-zero of a type that has
      no highest value.
  """
  pixels = found.pixels
  if found.kind == 'palette':
    pixels = _look_up(found, name)
  elif found.white_is_zero:
    if pixels.dtype.kind != 'u':
      raise errors.UserError(
        f'{name} shows 0 as white (its photometric tag) and holds '
        f'{pixels.dtype}, which has no black; store it as black-is-zero'
      )
    pixels = pixels.dtype.type(2**found.bits - 1) - pixels
  if data.bands:
    # Asked for both, so alpha is not only dropped as a band that is not chosen.
    ignored = None
    if data.alpha == 'nodata':
      ignored = alpha.ignored(found, name, data, 0)
    return _chosen(pixels, found, name, data), ignored
  number = pixels.shape[2] if pixels.ndim == 3 else 1
  ignored = alpha.ignored(found, name, data, number)
  is_color = found.kind in ('rgb', 'palette')
  if number == data.num_channels or number == 1 or is_color and number == 3:
    return pixels, ignored
  # Of too few, the last one several times.
  first = ','.join(str(min(i + 1, number)) for i in range(data.num_channels))
  raise errors.UserError(
    f'{name} has {number} bands, the network {data.num_channels} channel(s), '
    f'of at most 3; choose those it sees with --config.data.bands={first}'
    + ('' if data.num_channels == 3 else ',')
  )


def _chosen(
  pixels: np.ndarray,
  found: stored.Stored,
  name: str,
  data: ml_collections.ConfigDict,
) -> np.ndarray:
  """Returns the bands that data.bands names: [H, W, C]."""
  pixels = pixels[..., None] if pixels.ndim == 2 else pixels
  number = pixels.shape[2] + (found.alpha is not None)
  missing = [band for band in data.bands if band not in range(1, number + 1)]
  if missing:
    raise errors.UserError(
      f'{name} has {number} band(s), numbered from 1, and data.bands='
      f'{tuple(data.bands)} asks for number {missing[0]}; choose others'
    )
  if found.alpha is not None and number in data.bands:
    # Their types differ for GDAL's masks alone.
    last = found.alpha[..., None].astype(pixels.dtype)
    pixels = np.concatenate([pixels, last], -1)
  chosen = pixels[..., [band - 1 for band in data.bands]]
  return chosen[..., 0] if len(data.bands) == 1 else chosen


def to_network(
  found: stored.Stored,
  name: str,
  data: ml_collections.ConfigDict,
  limits: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray | None, float]:
  """Makes of what is stored what the network sees.

  Args:
    found: an image, or some of its rows.
    name: of the file, for messages.
    limits: see `intensity.to_uint8`.

  Returns:
    uint8 [H, W, num_channels]; which pixels hold no data, bool [H, W] or None,
    which have data.mean; and the share of values outside of the range, see
    `image_levels.share_outside`.

  Raises:
    UserError: see `to_channels` and `intensity.to_uint8`.
  """
  pixels, ignored = select(found, name, data)
  # Colours of a palette have 8 bits, however many its indices have.
  bits = 8 if found.kind == 'palette' else found.bits
  array = intensity.to_uint8(
    pixels, data, name, bits, ignored, limits, found.nodata
  )
  array = _convert(array, data.num_channels)
  outside = image_levels.share_outside(pixels, data, ignored)
  return intensity.fill(array, ignored, data), ignored, outside


def select(
  found: stored.Stored, name: str, data: ml_collections.ConfigDict
) -> tuple[np.ndarray, np.ndarray | None]:
  """As `to_channels`, with the values of data.nodata ignored, too."""
  pixels, ignored = to_channels(found, name, data)
  as_stored = found.kind == 'palette' or found.white_is_zero
  values = found.pixels if as_stored else pixels
  without = intensity.find_no_data(values, data)
  if ignored is not None and without is not None:
    return pixels, ignored | without
  return pixels, without if ignored is None else ignored


def _convert(array: np.ndarray, num_channels: int) -> np.ndarray:
  """Turns grey and RGB into one another: uint8 [H, W, num_channels]."""
  if array.shape[2:] == (1,):
    array = array[..., 0]
  if num_channels == (1 if array.ndim == 2 else array.shape[2]):
    return array.reshape(*array.shape[:2], num_channels)
  image = Image.fromarray(np.ascontiguousarray(array))
  array = np.asarray(image.convert('L' if num_channels == 1 else 'RGB'))
  return array.reshape(*array.shape[:2], num_channels)
