"""A picture of an image under its classes, from rows, at most 2000 px large."""

import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from unet_jax.data import rasters, stored
from unet_jax.prediction import row_files
from unet_jax.reports import colors, pictures, sheets

# Of the longest side, in pixels.
_LARGEST = 2000
# Share of the classes' colours inside their outlines.
_OPACITY = 0.4
# The most lines of a column of the legend.
_LINES = 20


def write_legend(folder: pathlib.Path, names: Sequence[str]) -> None:
  """Writes legend.png: which colour is which class, of all pictures there."""
  labels = [f'{names[0]} (not coloured)', *names[1:]]
  table = [tuple(color) for color in colors.class_colors(len(names)).tolist()]
  picture = sheets.legend(labels, ['white', *table[1:]], _LINES)
  folder.mkdir(parents=True, exist_ok=True)
  # Of a name of its own, since several runs may write here.
  temporary = folder / f'.legend.{os.getpid()}.tmp'
  picture.save(temporary, 'png')
  os.replace(temporary, folder / 'legend.png')


class OverlayFile(row_files.RowFile):
  """A JPEG of an image under its classes, smaller by a whole factor.

  It is written by rows of classes, uint8 [h, W]; those of the image are read.
  """

  def __init__(
    self, path: pathlib.Path, raster: rasters.Raster, num_classes: int
  ):
    super().__init__(path)
    self._raster, self._num_classes = raster, num_classes
    height, width = raster.size
    self._factor = -(-max(raster.size) // _LARGEST)
    small = (-(-height // self._factor), -(-width // self._factor))
    self._image = np.zeros((*small, 3), np.uint8)
    self._classes = np.zeros(small, np.uint8)
    # Rows that do not fill a row of the picture yet.
    self._rest = (
      np.zeros((0, width, 3), np.uint8),
      np.zeros((0, width), np.uint8),
    )
    # Rows of the picture, and of the image.
    self._next = self._read = 0

  def write(self, rows: np.ndarray) -> None:
    stop = self._read + len(rows)
    image, self._read = self._raster.read(self._read, stop), stop
    f = self._factor
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    image = np.concatenate([self._rest[0], image])
    classes = np.concatenate([self._rest[1], rows])
    is_last = stop == self._raster.size[0]
    count = -(-len(image) // f) if is_last else len(image) // f
    self._rest = (image[count * f :], classes[count * f :])
    if not count:
      return
    # Pixels at the edges that do not fill one of the picture are repeated.
    bottom = max(count * f - len(image), 0)
    right = -image.shape[1] % f
    padded = cv2.copyMakeBorder(
      image[: count * f], 0, bottom, 0, right, cv2.BORDER_REPLICATE
    )
    drawn = slice(self._next, self._next + count)
    small = (padded.shape[1] // f, count)
    self._image[drawn] = cv2.resize(padded, small, interpolation=cv2.INTER_AREA)
    # Of the classes, the pixel in the middle.
    padded = np.pad(
      classes[: count * f], ((0, bottom), (0, right)), mode='edge'
    )
    self._classes[drawn] = padded[f // 2 :: f, f // 2 :: f]
    self._next += count

  def picture(self) -> np.ndarray:
    """Returns uint8 RGB [h, w, 3]; the first class is left as it is.

    It is turned as a viewer shows the image. Dim images are stretched, and a
    line at the bottom says so.
    """
    table = colors.class_colors(self._num_classes)
    colored = table[self._classes]
    image, note = pictures.stretch(self._image)
    blended = cv2.addWeighted(image, 1 - _OPACITY, colored, _OPACITY, gamma=0)
    kernel = np.ones((3, 3), np.uint8)
    # 0 where all neighbours are of the same class.
    edge = cv2.morphologyEx(self._classes, cv2.MORPH_GRADIENT, kernel) > 0
    picture = np.where(edge[..., None], colored, blended)
    picture = np.where((self._classes > 0)[..., None], picture, image)
    picture = stored.turn(picture, self._raster.orientation)
    if not note:
      return picture
    picture = np.ascontiguousarray(picture)  # As OpenCV wants it.
    # White on black, so that it is read on any image.
    for color, width in ((0,) * 3, 3), ((255,) * 3, 1):
      cv2.putText(picture, note, (4, len(picture) - 5), 0, 0.35, color, width)
    return picture

  def _finish(self) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, 90]
    _, encoded = cv2.imencode('.jpg', self.picture()[..., ::-1], options)
    self._file.write(encoded.tobytes())
