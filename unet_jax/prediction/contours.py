"""Outlines of connected parts of a class map, as GeoJSON (RFC 7946).

A polygon runs along the edges between pixels, in pixel coordinates: x to the
right, y down, (0, 0) the upper left corner of the upper left pixel. So it
covers the pixels of its part exactly, and its area is their number.
"""

import json
import pathlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from unet_jax.prediction import row_files

COORDINATES = (
  'pixels of the image as it is stored: x to the right, y down, (0, 0) is its '
  'upper left corner'
)


def _ring(contour: np.ndarray) -> list[list[int]]:
  """Returns the corners of a contour that OpenCV found in doubled pixels.

  OpenCV returns the outermost pixels inside. A pixel x is doubled to 2 x and
  2 x + 1, so these are 2 x at its left edge and 2 x + 1 at its right one:
  (p + 1) // 2 is the corner x or x + 1. Around a hole it is the same from the
  other side.

  Returns:
    [[x, y], ...] of integers [N, 1, 2]; the last point is the first one. As RFC
    7946 asks, the area by the shoelace formula is positive, of holes negative:
    the opposite of OpenCV's orientation.
  """
  points = (contour[::-1, 0] + 1) // 2
  # A diagonal step from pixel to pixel is one corner, twice.
  points = points[np.any(points != points[np.arange(len(points)) - 1], 1)]
  corners = points.tolist()
  return [*corners, corners[0]]


def features(
  classes: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> Iterator[dict]:
  """Yields a GeoJSON feature for each part of each class but the first.

  Pixels are connected over their edges, not over corners: rings touch
  themselves nowhere. It takes some 10 bytes a pixel of memory, and more while
  a part that spans the image is outlined.

  Both arrays are uint8 [H, W]; the probabilities are 255 times those of the
  pixels' own classes.
  """
  for c, name in enumerate(names[1:], 1):
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
      (classes == c).view(np.uint8), connectivity=4
    )
    for i in range(1, count):
      left, top, width, height, area = stats[i].tolist()
      window = (slice(top, top + height), slice(left, left + width))
      part = labels[window] == i
      contours, hierarchy = cv2.findContours(
        part.view(np.uint8).repeat(2, 0).repeat(2, 1),
        cv2.RETR_CCOMP,
        cv2.CHAIN_APPROX_SIMPLE,
        offset=(2 * left, 2 * top),
      )
      # The outer ring first: holes have a parent.
      order = np.argsort(hierarchy[0, :, 3] >= 0, kind='stable')
      mean = probabilities[window][part].mean() / 255
      yield {
        'type': 'Feature',
        'geometry': {
          'type': 'Polygon',
          'coordinates': [_ring(contours[k]) for k in order],
        },
        'properties': {
          'class': name,
          'class_index': c,
          'area': area,
          'mean_probability': round(float(mean), 4),
        },
      }


def to_text(found: Iterator[dict]) -> Iterator[str]:
  """Yields the lines of a FeatureCollection, a feature on each."""
  head = json.dumps({'type': 'FeatureCollection', 'coordinates': COORDINATES})
  yield head[:-1] + ', "features": ['
  for i, feature in enumerate(found):
    yield (',' if i else '') + '\n' + json.dumps(feature)
  yield '\n]}\n'


class ContoursFile(row_files.RowFile):
  """GeoJSON, written by classes and probabilities of the whole image.

  Rows are uint8 [h, W, 2], see `features`.
  """

  def __init__(
    self, path: pathlib.Path, size: tuple[int, int], names: Sequence[str]
  ):
    """Begins the file of an image of some height and width."""
    super().__init__(path)
    self._names, self._next = names, 0
    self._planes = np.zeros((2, *size), np.uint8)

  def write(self, rows: np.ndarray) -> None:
    stop = self._next + len(rows)
    self._planes[:, self._next : stop] = np.moveaxis(rows, -1, 0)
    self._next = stop

  def _finish(self) -> None:
    classes, probabilities = self._planes
    for text in to_text(features(classes, probabilities, self._names)):
      self._file.write(text.encode())
