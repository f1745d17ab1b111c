"""What a TIFF says of the place and the size of its pixels, to be kept.

GeoTIFF (OGC 19-008r4): the place in a coordinate system. TIFF 6.0: pixels per
inch or centimetre, and how a viewer turns them. The pixels of a prediction lie
where those of its image do, so the tags are copied as they are. Not copied is
what is about the values of the image, such as GDAL's nodata and metadata.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import tifffile

from unet_jax.data import tiff, tiff_image
from unet_jax.runtime import errors

_PLACE = (
  33550,  # ModelPixelScale
  33920,  # IntergraphMatrix
  33922,  # ModelTiepoint
  34264,  # ModelTransformation
  34735,  # GeoKeyDirectory
  34736,  # GeoDoubleParams
  34737,  # GeoAsciiParams
  50844,  # RPCCoefficient
)
_RESOLUTION, _UNIT = (282, 283), 296
_ORIENTATION, _GDAL_NODATA = 274, 42113
# What this module may have given to a file.
ALL = (*_PLACE, _ORIENTATION, _GDAL_NODATA)


class Tags(NamedTuple):
  """Tags as tifffile writes them.

  Attributes:
    extra: code, type, count, value and True of each.
    resolution: pixels in a unit along x and y, or None.
    unit: TIFF's ResolutionUnit: 1 none, 2 inch, 3 centimetre.
  """

  extra: tuple[tuple[int, int, int, Any, bool], ...] = ()
  resolution: tuple[float, float] | None = None
  unit: int = 1

  def options(self) -> dict[str, Any]:
    """Returns these as options of `tifffile.TiffWriter.write`."""
    unit = self.unit if self.resolution else None
    return {
      'extratags': self.extra,
      'resolution': self.resolution,
      'resolutionunit': unit,
    }

  def of_orientation(self, orientation: int) -> 'Tags':
    """Returns these and how a viewer turns the image, 1 to 8 (1: not)."""
    more = ((_ORIENTATION, 3, 1, orientation, True),)
    return self._replace(extra=self.extra + more * (orientation != 1))

  def of_nodata(self, value: float) -> 'Tags':
    """Returns these and the value by which GDAL knows pixels without data."""
    more = ((_GDAL_NODATA, 2, 0, f'{value:g}', True),)
    return self._replace(extra=self.extra + more)


NONE = Tags()


def read(path: pathlib.Path, codes: Sequence[int] = _PLACE) -> list[Tags]:
  """Returns what to keep of each image of a TIFF; [] of other files.

  That is the tags of `codes` and the resolution.
  """
  try:
    with tiff.Images(path, str(path)) as images:
      pages = (images.page_of(i) for i in range(len(images)))
      return [_of_page(page, codes) for page in pages]
  except (errors.DecodeError, *tiff_image.DAMAGE):
    return []  # What decodes the image says why, where it matters.


def _of_page(page: tifffile.TiffPage, codes: Sequence[int]) -> Tags:
  tags, extra = page.tags, []
  for code in codes:
    if code in tags:
      value = tags[code].value
      if isinstance(value, str):  # Other than ASCII occurs.
        value = value.encode('utf-8', 'surrogateescape')
      kind, count = int(tags[code].dtype), tags[code].count
      extra.append((code, kind, count, value, True))
  pairs = [tags.valueof(code, (0, 1)) for code in _RESOLUTION]
  known = all(above > 0 and below > 0 for above, below in pairs)
  x, y = (above / max(below, 1) for above, below in pairs)
  unit = int(tags.valueof(_UNIT, 2))
  return Tags(tuple(extra), (x, y) if known else None, unit)
