"""What the tags of a TIFF page say of its pixels, and what is refused."""

import struct

import numpy as np
import tifffile

# By their TIFF tag: none, three of fax machines, LZW, JPEG, two names of
# deflate, PackBits, JPEG 2000 of RGB, LERC, JPEG 2000, LZMA, PNG, Zstandard,
# WebP, two names of JPEG XL.
_COMPRESSIONS = {
  *(1, 2, 3, 4, 5, 7, 8, 32946, 32773, 33005, 34887, 34712, 34925, 34933),
  *(50000, 50001, 50002, 52546),
}
LZW, JPEG = 5, 7

# Tags that say how pixels are stored and what they mean.
_NEEDED = {
  *(254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284),
  *(292, 317, 320, 322, 323, 324, 325, 338, 339, 347, 530, 32997, 42113),
}

# PhotometricInterpretation.
_WHITE_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 2, 3, 5, 6
_GREY = (0, 1, 4)
_OTHER_COLORS = {
  8: 'Lab colours',
  9: 'Lab colours',
  10: 'Lab colours',
  32803: "a camera's raw pattern",
  34892: "a camera's raw colours",
  32844: 'LogL light',
  32845: 'LogLuv light',
}


def check_tags(page: tifffile.TiffPage) -> None:
  """Raises ValueError where tifffile left out a tag that it could not read.

  It would go on with the tag's default.
  """
  file, layout = page.parent.filehandle, page.parent.tiff
  order, size = layout.byteorder, layout.tagsize
  file.seek(page.offset)
  (count,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
  entries = file.read(count * size)
  for start in range(0, count * size, size):
    (code,) = struct.unpack(order + 'H', entries[start : start + 2])
    if code in _NEEDED and code not in page.tags:
      raise ValueError(f'tag {code} cannot be read')


def unreadable(page: tifffile.TiffPage, planes: int) -> str:
  """Says what a page is that is not read exactly; '' where it is."""
  kind, channels = page.photometric, page.samplesperpixel
  bits = page.bitspersample
  if page.compression not in _COMPRESSIONS:
    method = getattr(page.compression, 'name', page.compression)
    return f'a TIFF compressed by {method} (tag {int(page.compression)})'
  if isinstance(bits, tuple):
    return f'a TIFF whose channels have {"+".join(map(str, bits))} bits'
  if page.dtype is None or page.dtype.kind not in 'biuf':
    name = getattr(page.sampleformat, 'name', page.sampleformat)
    return f'a TIFF of {bits} bits of {str(name).lower()} values'
  if page.imagedepth > 1:
    return f'a TIFF volume of {page.imagedepth} slices in one page'
  if kind in _OTHER_COLORS:
    return f'a TIFF of {_OTHER_COLORS[kind]}'
  if kind == _YCBCR and (page.compression != JPEG or page.planarconfig != 1):
    return 'a TIFF of YCbCr colours without JPEG'
  if kind == _CMYK and (
    (page.dtype != np.uint8 or page.compression == JPEG or planes > 1)
    or channels - (alpha_index(page) is not None) != 4
  ):
    return f'a TIFF of inks ({channels} channels of {bits} bits)'
  if kind not in (*_GREY, _RGB, _PALETTE, _CMYK, _YCBCR):
    return f'a TIFF of unknown colours (photometric tag {int(kind)})'
  if kind in (_RGB, _YCBCR) and channels < 3:
    return f'a TIFF of RGB colours with {channels} channels'
  if kind == _PALETTE and 320 not in page.tags:
    return 'a TIFF of palette colours without a palette'
  return ''


def alpha_index(page: tifffile.TiffPage) -> int | None:
  """Returns the channel that is tagged as alpha."""
  extra = [int(value) for value in page.extrasamples]
  for i, value in enumerate(extra):
    if value in (1, 2):
      return page.samplesperpixel - len(extra) + i
  return None


def meaning(
  page: tifffile.TiffPage, channels: int
) -> tuple[str, np.ndarray | None]:
  """Returns the kind of a page's pixels, and its palette."""
  if page.photometric == _CMYK:
    return 'rgb', None
  if page.photometric == _PALETTE and channels == 1:
    table = np.array(page.tags.valueof(320), np.uint16).reshape(3, -1).T
    # Some old writers store 8 bits.
    return 'palette', (table >> 8 if table.max() > 255 else table).astype(
      np.uint8
    )
  if page.photometric in (_RGB, _YCBCR) and channels == 3:
    return 'rgb', None
  return ('grey' if channels == 1 else 'bands'), None


def nodata(page: tifffile.TiffPage) -> float | None:
  """Returns the value that GDAL's tag names."""
  value = page.tags.valueof(42113)
  try:
    return None if value is None else float(str(value).strip(' \0'))
  except ValueError:
    return None


def is_cmyk(page: tifffile.TiffPage) -> bool:
  return page.photometric == _CMYK


def is_white_zero(page: tifffile.TiffPage) -> bool:
  return page.photometric == _WHITE_IS_ZERO
