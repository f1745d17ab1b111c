"""Which images a TIFF file holds.

A file says in many ways what it holds: pages (IFDs), reduced copies, masks,
thumbnails, SubIFDs, and planes that only its description counts, as ImageJ, OME
and tifffile write them. Here these become a list of images, each of one or more
planes.
"""

import io
import json
import math
import os
import struct
from typing import Self

import numpy as np
import tifffile

from unet_jax.data import tiff_image
from unet_jax.runtime import errors

# First bytes of TIFF files: classic, and BigTIFF.
MAGIC = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')

# Formats whose descriptions count and name the planes.
_DESCRIBED = ('is_shaped', 'is_ome', 'is_imagej', 'is_stk')
# Of slide scanners: one image, then thumbnails, reduced copies and labels.
_SLIDES = ('is_svs', 'is_ndpi', 'is_philips', 'is_bif')


class Images:
  """The images of an opened file; a context manager."""

  def __init__(self, source: bytes | str | os.PathLike, name: str):
    """Opens a file and finds its images.

    Args:
      source: its content, or its path.
      name: for messages.

    Raises:
      DecodeError: the file is damaged, or has no image of its own.
    """
    self._name, self._file = name, None
    reason: object = 'cannot identify image file'
    try:
      handle = io.BytesIO(source) if isinstance(source, bytes) else source
      self._file = tifffile.TiffFile(handle, _multifile=False)
      first = self._file.pages.first
      reason = None
      self._found = _find_images(self._file, first)
    except tiff_image.DAMAGE as e:
      self.close()
      raise tiff_image.broken(name, reason or e) from e
    if not self._found:
      self.close()
      raise tiff_image.refused(
        name, 'a TIFF of reduced copies, masks or SubIFDs alone'
      )

  def __len__(self) -> int:
    return len(self._found)

  def __getitem__(self, index: int) -> tiff_image.Image:
    """Looks at the tags of an image.

    Raises:
      DecodeError: they are damaged, or of a kind that is not read exactly.
    """
    try:
      return tiff_image.Image(*self._found[index], self._name)
    except errors.UserError:
      raise
    except tiff_image.DAMAGE as e:
      raise tiff_image.broken(self._name, e) from e

  def page_of(self, index: int) -> tifffile.TiffPage:
    """Returns the page that has the tags of an image."""
    return self._found[index][0][0].page

  def close(self) -> None:
    if self._file is not None:
      self._file.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def _find_images(
  tiff: tifffile.TiffFile, first: tifffile.TiffPage
) -> list[tuple[list[tiff_image.Plane], tiff_image.Plane | None]]:
  """Returns the planes of each image, and the page that masks it or None."""
  if any(getattr(first, name) for name in _SLIDES):
    return [([tiff_image.Plane(first)], None)]
  writers = [name for name in _DESCRIBED if getattr(first, name)]
  described: list[list[tiff_image.Plane]] = []
  if writers and not (writers == ['is_shaped'] and _is_alone(tiff, first)):
    described = _described_images(tiff)
  _check_whole(tiff, first)
  count, by_pages = sum(map(len, described)), None
  if count < len(tiff.pages):
    # The description may be of another file, of which this is a part or copy.
    by_pages = _images_of_pages(tiff)
    described = described if count >= len(by_pages) else []
  # Others are ordered by their pages alone.
  if any(len(planes) > 1 or planes[0].offset for planes in described):
    return [(planes, None) for planes in described]
  return _images_of_pages(tiff) if by_pages is None else by_pages


def _check_whole(tiff: tifffile.TiffFile, first: tifffile.TiffPage) -> None:
  """Raises ValueError where the end of a file of several images is missing."""
  file, layout = tiff.filehandle, tiff.tiff
  last = tiff.pages.get(len(tiff.pages) - 1, aspage=True).aspage()
  file.seek(last.offset)
  (count,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
  file.seek(last.offset + layout.tagnosize + count * layout.tagsize)
  (following,) = struct.unpack(
    layout.offsetformat, file.read(layout.offsetsize)
  )
  # ImageJ counts images that have no page; what it writes first are the tags.
  number = (tiff.imagej_metadata or {}).get('images', 1)
  end = max(np.add(first.dataoffsets, first.databytecounts), default=0)
  is_cut = (
    len(tiff.pages) == 1 < number
    and first.offset < first.dataoffsets[0]
    and end < file.size < end + (number - 1) * first.nbytes
  )
  if following >= file.size or is_cut:
    raise ValueError('image file is truncated')


def _images_of_pages(
  tiff: tifffile.TiffFile,
) -> list[tuple[list[tiff_image.Plane], tiff_image.Plane | None]]:
  """Returns the images whose pages are no reduced copies, and their masks."""
  pages = [
    tiff.pages.get(i, aspage=True).aspage() for i in range(len(tiff.pages))
  ]
  images: list[tuple[list[tiff_image.Plane], tiff_image.Plane | None]] = []
  for page in pages:
    if page.subfiletype & 4:
      # GDAL's masks follow their images; those of reduced copies are left.
      size = images[-1][0][0].page.shape[:2] if images else None
      if page.shape[:2] == size and images[-1][1] is None:
        images[-1] = (images[-1][0], tiff_image.Plane(page))
    elif not page.subfiletype & 1 and not (
      images and _is_reduced(page, images[0][0][0].page)
    ):
      images.append(([tiff_image.Plane(page)], None))
  for page in pages:
    for sub in page.pages or ():
      if max(sub.shape) >= max(page.shape):
        return []  # Cameras' raw pixels lie below a small picture.
  return images


def _is_alone(tiff: tifffile.TiffFile, first: tifffile.TiffPage) -> bool:
  """Whether tifffile wrote one page of one plane; series take long to make."""
  if len(tiff.pages) > 1 or not first.description.startswith('{'):
    return False
  shape = json.loads(first.description).get('shape', ())
  return math.prod(shape) == first.size > 0


def _is_reduced(page: tifffile.TiffPage, whole: tifffile.TiffPage) -> bool:
  """Whether a page is a smaller copy, marked or not, of another."""
  if page.subfiletype & 1:
    return True
  heights = whole.imagelength, page.imagelength
  widths = whole.imagewidth, page.imagewidth
  if min(*heights, *widths) < 1 or not page.is_tiled:
    return False
  ratio = heights[0] / heights[1]
  return (
    ratio > 1.5
    and abs(widths[0] / ratio - widths[1]) <= 2
    and page.samplesperpixel == whole.samplesperpixel
    and page.dtype == whole.dtype
  )


def _described_images(tiff: tifffile.TiffFile) -> list[list[tiff_image.Plane]]:
  """Returns the planes of each image where a description orders them.

  Those along an axis C are the bands of one image. Returns [] where it counts
  more than there are.
  """
  images: list[list[tiff_image.Plane]] = []
  for series in tiff.series:
    page = series.keyframe
    if page.subfiletype & 5:
      continue
    count = max(series.size // max(math.prod(page.shape), 1), 1)
    order = np.arange(count)[:, None]
    for k in range(len(series.axes)):
      if math.prod(series.shape[:k]) == count and 'C' in series.axes[:k]:
        axis = series.axes.index('C')
        order = np.moveaxis(order.reshape(series.shape[:k]), axis, -1).reshape(
          -1, series.shape[axis]
        )
        break
    planes = _planes_of(series, page, count)
    if len(planes) < count:
      return []
    images += [[planes[i] for i in row] for row in order.tolist()]
  return images


def _planes_of(
  series: tifffile.TiffPageSeries, page: tifffile.TiffPage, count: int
) -> list[tiff_image.Plane]:
  """Returns the planes of a series in order."""
  stored_pages = series._pages
  if count > 1 and len(stored_pages) == 1 and series.dataoffset is not None:
    start = series.dataoffset
    return [
      tiff_image.Plane(page, start + i * page.nbytes) for i in range(count)
    ]
  return [tiff_image.Plane(p.aspage()) for p in stored_pages if p]
