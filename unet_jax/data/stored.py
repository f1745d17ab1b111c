"""What an image file stores, read once and with one meaning.

Every file of training, inspection, evaluation and prediction comes from here.
The pixels are those that were written: conventions of display (white is zero, a
palette, an orientation, the stretch of 2 and 4 bits to 8) are kept beside them
and not applied. What cannot be read exactly is refused by name. docs/formats.md
has the rules, and what other libraries make of the same files.

tifffile reads TIFF (see tiff.py), Pillow the rest and the headers of all;
imagecodecs decodes JPEG and PNG files to the same pixels in less time, PNGs of
16 bits, which Pillow reduces to 8, and finds damage that Pillow lets pass.
"""

import contextlib
import dataclasses
import io
import os
import struct
import warnings
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from PIL import (
  Image,
  ImageFile,
  MpoImagePlugin,
  PngImagePlugin,
  UnidentifiedImageError,
)

from unet_jax.data import jpeg, png, tiff, tiff_image
from unet_jax.data.tiff_image import broken
from unet_jax.runtime import errors

# Pillow refuses images of more than 179 megapixels as an attack; scans of
# tissue and of the earth are larger. Now it warns at 1 gigapixel.
Image.MAX_IMAGE_PIXELS = 2**30
# Nor is text of more than a megabyte, or a profile of colours, a bomb.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**30

# What libraries print of files that they cannot read, or that have odd
# metadata; our messages name the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings('ignore', module=r'PIL\.')

_FORMATS = ('PNG', 'JPEG', 'MPO', 'BMP', 'DIB', 'GIF', 'WEBP')
_STARTS = {
  b'\x89P': 'PNG',
  b'\xff\xd8': 'JPEG',
  b'GI': 'GIF',
  b'RI': 'WebP',
  b'BM': 'BMP',
}
# EXIF's tag of the orientation.
_ORIENTATION = 0x0112
# What Pillow raises for damaged files.
_DAMAGE = (
  EOFError,
  OSError,
  SyntaxError,
  ValueError,
  IndexError,
  struct.error,
  Image.DecompressionBombError,
)


_SUFFIXES = {'f': ' float', 'i': ' signed'}


@dataclasses.dataclass(frozen=True)
class Stored:
  """An image of a file, or some rows of it, as stored.

  Attributes:
    pixels: [H, W], or [H, W, C], of the stored type in native byte order;
      samples of fewer bits are uint8 or uint16 and keep their values.
    kind: `grey`, `palette` (pixels are indices), `rgb` or `bands`. YCbCr and
      CMYK have become RGB, and so have all colours of GIF, whose writers
      renumber indices.
    bits: of a sample as stored: 1, 2, 4, 8, 12, 16, 32, 64.
    palette: uint8 RGB [N, 3], or None.
    alpha: [H, W] of any type, 0 is transparent, or None. GDAL's internal masks
      are alpha of 0 and 255.
    white_is_zero: whether a viewer shows 0 as white.
    orientation: 1 to 8, EXIF's and TIFF's tag of how to turn for display.
    nodata: the value that GDAL's tag names, or None.
    pages: images in the file that are no reduced copies, masks or thumbnails.
    is_lossy: whether the pixels are near those that were written, not equal.
  """

  pixels: np.ndarray
  kind: str
  bits: int
  palette: np.ndarray | None = None
  alpha: np.ndarray | None = None
  white_is_zero: bool = False
  orientation: int = 1
  nodata: float | None = None
  pages: int = 1
  is_lossy: bool = False

  def describe(self) -> str:
    """Returns colours and bits, such as `RGB with alpha 8 bit`."""
    kind = 'RGB' if self.kind == 'rgb' else self.kind
    if kind == 'bands':
      kind = f'{self.pixels.shape[2]} bands'
    alpha = '' if self.alpha is None else ' with alpha'
    suffix = _SUFFIXES.get(self.pixels.dtype.kind, '')
    return f'{kind}{alpha} {self.bits} bit{suffix}'

  @property
  def origin(self) -> str:
    """What the network's channels come from, such as `grey of 16 bit`.

    Floats and integers of more bits have no depth, since these types are seldom
    chosen for what is in them.
    """
    if self.kind == 'palette':
      return 'RGB of 8 bit'
    kind = self.describe().split(f' {self.bits} bit')[0]
    has_depth = self.bits <= 16 and self.pixels.dtype.kind != 'f'
    depth = f' of {self.bits} bit' if has_depth else ''
    return kind.removesuffix(' with alpha') + depth


def read(data: bytes, name: str, page: int = 0) -> Stored:
  """Reads one image of a file.

  Args:
    data: the content of the file.
    name: for messages.
    page: which of `Stored.pages` images, from 0.

  Raises:
    DecodeError: the file is damaged, or of a kind that is not read exactly.
  """
  if data[:4] in tiff.MAGIC:
    with tiff.Images(data, name) as images:
      image = images[page]
      return of_tiff(image, len(images), 0, image.size[0])
  with _named(name, data):
    found = _read_with_pillow(data, name, page)
    return dataclasses.replace(found, is_lossy=_is_lossy(data))


@contextlib.contextmanager
def _named(name: str, data: bytes) -> Iterator[None]:
  """Raises DecodeError, which names the file, for one that is damaged."""
  try:
    yield
  except errors.UserError:
    raise
  except UnidentifiedImageError as e:
    raise _unidentified(data, name) from e
  except _DAMAGE as e:
    raise broken(name, e) from e


def of_tiff(
  image: tiff_image.Image, pages: int, start: int, stop: int, parallel=map
) -> Stored:
  """Returns rows start..stop-1 of an image of a TIFF file."""
  pixels, alpha = image.read(start, stop, parallel)
  return Stored(
    pixels,
    image.kind,
    image.bits,
    image.palette,
    alpha,
    image.white_is_zero,
    image.orientation,
    image.nodata,
    pages,
    image.is_lossy,
  )


def count_pages(path: str | os.PathLike) -> int:
  """Returns `Stored.pages` of a file without decoding pixels.

  Raises:
    DecodeError: it cannot be read.
  """
  name = os.fspath(path)
  with _named(name, b''), open(path, 'rb') as f:
    data = f.read(4)
    if data in tiff.MAGIC:
      with tiff.Images(path, name) as images:
        return len(images)
    data += f.read()
  with _named(name, data):
    return len(_frames(_open(data, name)))


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
  """Turns [H, W, ...] as stored to how a tag of 1 to 8 shows it."""
  if orientation in (5, 6, 7, 8):
    array = array.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    array = array[::-1]
  if orientation in (2, 3, 6, 7):
    array = array[:, ::-1]
  return np.ascontiguousarray(array)


def turn_back(array: np.ndarray, orientation: int) -> np.ndarray:
  """Turns what `turn` gave to how it is stored."""
  # Turns by 90 degrees are each other's reverse, all others their own.
  return turn(array, {6: 8, 8: 6}.get(orientation, orientation))


def format_of(data: bytes) -> str:
  """Returns the name of a file's format by its first bytes."""
  return _STARTS.get(data[:2], 'TIFF')


def _unidentified(data: bytes, name: str) -> errors.DecodeError:
  if data[4:8] == b'ftyp':
    return tiff_image.refused(name, 'HEIC')
  reason = 'cannot identify image file'
  if data.startswith(b'version https://git-lfs'):
    reason = 'a pointer of Git LFS; `git lfs pull` gets the file'
  elif data[:64].lstrip().lower().startswith((b'<!doctype', b'<html')):
    reason = 'a web page, as servers send for a file that they do not give'
  elif not data:
    reason = 'it is empty'
  return broken(name, reason)


def _is_lossy(data: bytes) -> bool:
  # Of WebP's two codings, VP8L is the exact one; a third name begins a file
  # that has alpha or metadata, whatever its coding.
  is_vp8 = data[12:16] == b'VP8 ' or (
    data[12:16] == b'VP8X' and b'VP8L' not in data
  )
  return format_of(data) == 'JPEG' or (format_of(data) == 'WebP' and is_vp8)


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
  image = Image.open(io.BytesIO(data))
  if image.format not in _FORMATS:
    raise tiff_image.refused(name, f'{image.format}')
  return image


def _frames(image: ImageFile.ImageFile) -> Sequence[int]:
  """Returns the frames of a file that are images of their own."""
  count = getattr(image, 'n_frames', 1)
  if not isinstance(image, MpoImagePlugin.MpoImageFile):
    return range(count)
  # Cameras add thumbnails and maps of light, which are smaller.
  size, frames = image.size, []
  for i in range(count):
    try:
      image.seek(i)
    except ValueError:  # Programs that edit and send photographs drop them.
      break
    if image.size == size:
      frames.append(i)
  image.seek(0)
  return frames


def _read_with_pillow(data: bytes, name: str, page: int) -> Stored:
  image = _open(data, name)
  orientation = _orientation(image, data)
  frames = _frames(image) if image.format not in ('BMP', 'DIB') else [0]
  if len(frames) == 1 and image.format == 'PNG':
    return dataclasses.replace(_read_png(image, data), orientation=orientation)
  if len(frames) > 1 and image.format == 'PNG' and data[24] == 16:
    raise tiff_image.refused(name, 'an animated PNG of 16 bits')
  is_jpeg = image.format in ('JPEG', 'MPO') and image.mode in ('L', 'RGB')
  if len(frames) == 1 and is_jpeg:
    array = jpeg.decode(image, data)
    kind = 'grey' if array.ndim == 2 else 'rgb'
    return Stored(array, kind, 8, orientation=orientation)
  if len(frames) > 1:
    image.seek(frames[page])
  image.load()
  return dataclasses.replace(
    _of_pillow(image, name, colors=len(frames) > 1 or image.format == 'GIF'),
    orientation=orientation,
    pages=len(frames),
  )


def _of_pillow(image: Image.Image, name: str, colors: bool) -> Stored:
  """Takes the pixels of a loaded image; of an index, its colour if `colors`."""
  transparent = 'transparency' in image.info
  if colors and image.mode == 'P':
    image = image.convert('RGBA' if transparent else 'RGB')
  elif image.mode == 'CMYK':
    image = image.convert('RGB')
  array = np.asarray(image)
  if image.mode == '1':
    return Stored(array.astype(np.uint8), 'grey', 1)
  if image.mode == 'L':
    return Stored(array, 'grey', 8)
  if image.mode == 'P':
    return Stored(array, 'palette', 8, _palette(image))
  if image.mode == 'RGB':
    return Stored(array, 'rgb', 8)
  if image.mode == 'RGBA':
    return Stored(array[..., :3], 'rgb', 8, alpha=array[..., 3])
  if image.mode == 'LA':
    return Stored(array[..., 0], 'grey', 8, alpha=array[..., 1])
  raise tiff_image.refused(name, f'{image.format} of the mode {image.mode}')


def _palette(image: Image.Image) -> np.ndarray:
  return np.array(image.getpalette('RGB'), np.uint8).reshape(-1, 3)


def _read_png(image: ImageFile.ImageFile, data: bytes) -> Stored:
  """Reads a PNG of one frame, of any depth and type of colour."""
  depth, color = data[24], data[25]
  if not png.is_sound(data):
    image.load()  # Pillow judges what is wrong.
  array = png.decode(data)
  key = image.info.get('transparency')
  if color == 3:
    palette, alpha = _palette(image), None
    if key is not None:
      table = np.full(256, 255, np.uint8)
      if isinstance(key, bytes):
        table[: len(key)] = np.frombuffer(key, np.uint8)
      else:
        table[key] = 0
      alpha = table[array]
    return Stored(array, 'palette', depth, palette, alpha)
  kind = 'rgb' if color & 2 else 'grey'
  if color & 4:
    pixels = array[..., :3] if color & 2 else array[..., 0]
    return Stored(pixels, kind, depth, alpha=array[..., -1])
  alpha = None
  if key is not None:
    key = 1 if depth == 1 and key else key  # Pillow shows white as 255.
    same = array == np.array(key, array.dtype)
    same = same.all(-1) if color & 2 else same
    alpha = np.where(same, np.uint8(0), np.uint8(255))
  return Stored(array, kind, depth, alpha=alpha)


def _orientation(image: ImageFile.ImageFile, data: bytes) -> int:
  """Returns EXIF's tag of an opened image, which is not loaded."""
  content = image.info.get('exif')
  if content is None and image.format == 'PNG' and b'eXIf' in data:
    # It may come after the pixels, where Pillow sees it once these are loaded.
    for code, start, length in png.chunks(data):
      if code == b'eXIf':
        content = data[start + 8 : start + 8 + length]
  if not content:
    return 1
  exif = Image.Exif()
  try:
    exif.load(content)
    value = exif.get(_ORIENTATION, 1)
  except _DAMAGE:
    return 1
  return value if value in range(1, 9) else 1
