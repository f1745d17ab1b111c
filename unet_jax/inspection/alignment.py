"""How well the border of a mask lies on the edges of its image, pair by pair.

`measure` brings image and mask to 64 x 64 cells and compares two things:

* Edges of the image: the gradient of the blurred image along four directions
  (0, 45, 90 and 135 degrees; the strongest of the channels), divided by the
  mean gradient around, so that a weak edge in a calm part counts like a strong
  one in a busy part, and spread by a cell, so that a border need not be drawn
  exactly.
* The border of the mask: the cells where the class changes, each with the one
  of the four directions that crosses the border. A band of ignored pixels
  (255) between two classes is a border along its middle.

The score is the mean, over the border, of the edges across it, divided by the
mean over the whole image and all directions: 1 is chance. The same border is
then looked up flipped, turned, transposed and moved, and so are the borders of
other masks. All of these are only places in the same small map.

Edges and borders that are compared per direction are as in oriented chamfer
matching (Shotton, Blake and Cipolla, 2008, Multiscale Categorical Object
Recognition Using Contour Fragments, section 3); here edges are spread where
distances are computed there. experiments/data_faults measures how often the
verdicts are right.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from unet_jax.config import fields

EXPLAINED = (
  'The score is the mean strength of the image edges that lie under the border '
  'of the mask and run along it, relative to the whole image: 1 is chance, '
  'masks that fit mostly have 1.2 to 2. The same border is also tried flipped, '
  'turned, transposed, moved by 1.6, 4.7 and 11 % of the side, and replaced by '
  'those of other masks. Suspicion is the share by which the best of these (or '
  '1.1, if that is more) scores higher than the mask as it is, less where the '
  'border is short; where it is above 0.044, the pixels under the mask are '
  'compared with those under the masks of the other pairs, and pairs that fit '
  'neither way should be looked at.'
)

# Pairs of more than this suspicion are suspicious.
THRESHOLD = 0.044
# A mask that scores less is suspicious even where nothing else that was tried
# fits.
_EXPECTED = 1.1
_IGNORED = fields.IGNORE_LABEL

# Side of the square that image and mask are brought to, in cells.
SIZE = 64
# Scales of the gradient: an image's saturates at a step of 190 grey levels, a
# mask's is 238 on a straight border.
_IMAGE_SCALE = 0.5
_MASK_SCALE = 0.35
# Side of the neighbourhood whose mean gradient divides the gradient, in cells.
_WINDOW = 9
# Added to that mean, so that noise in flat parts is no edge: a share of the
# image's mean, and an amount (a step of 1 grey level has a gradient of 2).
_SHARE = 0.25
_FLOOR = 2
# Side of the square around an edge in which it counts, in cells.
_SPREAD = np.ones((3, 3), np.uint8)
# A cell is on the border where the gradient is at least this share of the
# mask's greatest: lines as thin as a cell count only where nothing else is.
_BORDER = 0.55
# Ignored cells within this distance of a known one may hold a border.
_BAND = 3
# At most this many places of a border are looked up, spread over all of it; a
# mask with fewer than the minimum has no border.
_MAX_PLACES = 500
_MIN_PLACES = 16
# Distances that masks are moved by, in cells.
_DISTANCES = (1, 3, 7)

# Turns of a mask: name; x and y swap; then x, y count from the other end.
TURNS = (
  ('flipped left to right', False, True, False),
  ('flipped upside down', False, False, True),
  ('turned by 180 degrees', False, True, True),
  ('transposed', True, False, False),
  ('transposed and turned by 180 degrees', True, True, True),
  ('turned by 90 degrees clockwise', True, True, False),
  ('turned by 90 degrees counter-clockwise', True, False, True),
)
# Moves of a mask to eight sides: right and down, in cells.
MOVES = tuple(
  (round(x * d / math.hypot(x, y)), round(y * d / math.hypot(x, y)))
  for d in _DISTANCES
  for x, y in itertools.product((-1, 0, 1), repeat=2)
  if x or y
)
_AS_IT_IS = 'as it is'
# Value of `Fit.best` where another mask fits best.
OTHER = 'replaced by the mask of another image'

# The map of edges is [_ROW, _ROW, 4], with room for masks that are moved out.
_PAD = max(_DISTANCES)
_ROW = SIZE + 2 * _PAD


def _places() -> np.ndarray:
  """Returns the places of all cells and directions in the map of edges.

  These are integers [1 + len(TURNS), SIZE * SIZE * 4]: as they are, and turned.
  """
  y, x, d = np.indices((SIZE, SIZE, 4)).reshape(3, -1)
  rows = []
  for swap, from_right, from_below in (
    (False, False, False),
    *(turn[1:] for turn in TURNS),
  ):
    ty, tx, td = (x, y, 2 - d) if swap else (y, x, d)
    if from_right:
      tx, td = SIZE - 1 - tx, -td
    if from_below:
      ty, td = SIZE - 1 - ty, -td
    rows.append(((ty + _PAD) * _ROW + tx + _PAD) * 4 + td % 4)
  return np.stack(rows)


_PLACES = _places()
_STEPS = np.array([[(y * _ROW + x) * 4] for x, y in MOVES])


def _directions(planes: Sequence[np.ndarray], scale: float) -> np.ndarray:
  """Returns the planes' strongest gradient along each of the four directions.

  The planes are uint8 [K, K] each, the result is uint8 [4, K, K], at most 255.
  The scale is one of the gradient, which Sobel's kernel makes 4 times the
  difference between the cells before and behind.
  """
  stacked = np.stack(planes)
  x, y = cv2.spatialGradient(stacked.reshape(-1, stacked.shape[-1]))
  gradients = []
  diagonal = scale * math.sqrt(0.5)
  for gradient, factor in (
    (x, scale),
    (cv2.add(x, y), diagonal),
    (y, scale),
    (cv2.subtract(y, x), diagonal),
  ):
    size = cv2.convertScaleAbs(gradient, alpha=factor)
    gradients.append(size.reshape(stacked.shape).max(0))
  strongest = np.stack(gradients)
  strongest[:, [0, -1]] = 0  # Planes lie below each other there.
  return strongest


def _edges(image: np.ndarray) -> tuple[np.ndarray, float]:
  """Returns the map of edges of uint8 [H, W, C], flat, and its mean."""
  small = image
  if min(image.shape[:2]) > 2 * SIZE:
    # Several times faster than averaging all of a large image.
    small = cv2.resize(small, (2 * SIZE, 2 * SIZE))
  small = cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
  strength = _directions(cv2.split(cv2.blur(small, (3, 3))), _IMAGE_SCALE)
  strongest = strength.max(0)
  around = cv2.boxFilter(strongest, cv2.CV_32F, (_WINDOW, _WINDOW))
  around += _SHARE * float(strongest.mean()) + _FLOOR
  strength = cv2.convertScaleAbs(strength * (64 / around))
  strength = cv2.dilate(cv2.merge(list(strength)), _SPREAD)
  means = cv2.mean(strength)
  padded = cv2.copyMakeBorder(
    strength, _PAD, _PAD, _PAD, _PAD, cv2.BORDER_CONSTANT, value=means
  )
  return padded.ravel(), sum(means) / 4


@functools.lru_cache(maxsize=64)
def _centers(height: int, width: int) -> np.ndarray:
  """Returns the cells' centres, [SIZE, SIZE], as indices into a flat image."""
  axes = []
  for length in (height, width):
    twice = (2 * np.arange(SIZE) + 1) * length
    pixels = twice // (2 * SIZE)
    # A centre between two pixels takes either in turn, since always the same
    # one would move the mask by half a pixel.
    between = twice % (2 * SIZE) == 0
    pixels[1::2] -= between[1::2]
    axes.append(pixels)
  return axes[0][:, None] * width + axes[1]


def _where_equal(values: np.ndarray, value: int) -> np.ndarray:
  """Returns uint8: 255 where values have the value, else 0."""
  return 255 * (values == value).view(np.uint8)


def _fill_ignored(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Gives ignored cells the nearest class; also returns those far from any."""
  distance, nearest = cv2.distanceTransformWithLabels(
    _where_equal(mask, _IGNORED), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
  )
  known = mask != _IGNORED
  # OpenCV's labels count from 1, in an order of its own.
  classes = np.zeros(np.count_nonzero(known) + 1, np.uint8)
  classes[nearest[known]] = mask[known]
  return classes[nearest], distance > _BAND


def border(mask: np.ndarray) -> np.ndarray | None:
  """Returns the border of a mask, uint8 [H, W], to be looked up on any image.

  Returns:
    uint16 [n]: cell * 4 + direction of up to 500 places; None where there is
    (almost) no border.
  """
  small = np.take(mask, _centers(*mask.shape))
  counts = np.bincount(small.ravel(), minlength=256)
  classes = np.flatnonzero(counts[:_IGNORED])
  if len(classes) < 2:
    return None
  far = None
  if counts[_IGNORED]:
    small, far = _fill_ignored(small)
  # The last class has no border that is not another's too.
  planes = [
    cv2.blur(_where_equal(small, c), (3, 3)) for c in classes[:-1].tolist()
  ]
  strength = _directions(planes, _MASK_SCALE)
  strongest = strength.max(0)
  if far is not None:
    strongest[far] = 0
  on_border = strongest > _BORDER * max(int(strongest.max()), 1)
  places = np.flatnonzero(on_border)
  if len(places) < _MIN_PLACES:
    return None
  if len(places) > _MAX_PLACES:
    keep = np.arange(_MAX_PLACES) * len(places) // _MAX_PLACES
    places = places[keep]
  directions = strength.reshape(4, -1)[:, places].argmax(0)
  return (places * 4 + directions).astype(np.uint16)


@dataclasses.dataclass(frozen=True)
class Fit:
  """How well a mask fits its image.

  Attributes:
    score: of the mask as it is; 1 is chance.
    best: the change of the mask that fits best, in words: `flipped left to
      right`, `moved 12 px right and 12 px up`; `as it is` for none.
    best_score: the score after this change.
    suspicion: larger is worse: the share by which the best score, or 1.1 if
      that is more, is above `score`, times the length of the border / 500
      cells, since a short one fits much by accident.
    scores: float32 [32], as it is, turned in seven ways, moved in 24.
    border: see `border`.
  """

  score: float
  best: str
  best_score: float
  suspicion: float
  scores: np.ndarray = dataclasses.field(repr=False)
  border: np.ndarray = dataclasses.field(repr=False)


def measure(
  image: np.ndarray,
  mask: np.ndarray,
  other_borders: Sequence[np.ndarray | None] = (),
) -> Fit | None:
  """Returns how well a mask fits its image.

  Args:
    image: uint8 [H, W, C].
    mask: uint8 [H, W] classes, 255 is ignored.
    other_borders: `border` of masks of other images, which are tried too.

  Returns:
    None where the mask has (almost) no border.
  """
  places = border(mask)
  if places is None:
    return None
  edges, mean = _edges(image)
  tried = np.empty((1 + len(TURNS) + len(MOVES), len(places)), np.intp)
  turned, moved = np.split(tried, [1 + len(TURNS)])
  np.take(_PLACES, places, axis=1, out=turned)
  np.add(turned[0], _STEPS, out=moved)
  scores = _mean_strength(edges, tried, mean)
  score, best = float(scores[0]), int(scores.argmax())
  best_score, words = float(scores[best]), _in_words(best, mask.shape)
  for other in other_borders:
    if other is not None:
      other_score = float(_mean_strength(edges, _PLACES[0, other], mean))
      if other_score > best_score:
        best_score, words = other_score, OTHER
  # In an image without edges all scores are 0, and nothing is known.
  gain = max(best_score, _EXPECTED) / score - 1 if score else 0.0
  suspicion = gain * len(places) / _MAX_PLACES
  return Fit(score, words, best_score, suspicion, scores, places)


def _mean_strength(
  edges: np.ndarray, places: np.ndarray, mean: float
) -> np.ndarray:
  """Returns the score of places [..., n] of the map of edges: float32 [...]."""
  total = np.take(edges, places).sum(-1, dtype=np.uint32)
  return (total / max(mean * places.shape[-1], 1.0)).astype(np.float32)


def scores(image: np.ndarray, borders: Sequence[np.ndarray]) -> list[float]:
  """Returns the score of each `border` on an image uint8 [H, W, C]."""
  edges, mean = _edges(image)
  return [
    float(_mean_strength(edges, _PLACES[0, border], mean)) for border in borders
  ]


def is_suspicious(fit: Fit) -> bool:
  """Whether the pair is worth a second look, which `verdict` takes.

  THRESHOLD is such that about one in a hundred right photographs is above it,
  but most right pairs of some kinds (thin lines, bands beside brighter bands),
  see experiments/data_faults.
  """
  return fit.suspicion > THRESHOLD


def _in_words(alternative: int, size: tuple[int, int]) -> str:
  """Returns the change that `Fit.scores[alternative]` is the score of."""
  if not alternative:
    return _AS_IT_IS
  if alternative <= len(TURNS):
    return TURNS[alternative - 1][0]
  x, y = MOVES[alternative - 1 - len(TURNS)]
  right, down = x * size[1] / SIZE, y * size[0] / SIZE
  return move_in_words(right, down, 'px', '.3g' if max(size) < 256 else '.0f')


def move_in_words(right: float, down: float, unit: str, form: str) -> str:
  """Returns 'moved 3 px left and 4 px up'; `form` formats the numbers."""
  parts = [
    f'{abs(by):{form}} {unit} {forth if by > 0 else back}'
    for by, forth, back in ((right, 'right', 'left'), (down, 'down', 'up'))
    if by
  ]
  return 'moved ' + ' and '.join(parts)


class MaskFinder:
  """Finds which of many masks fits an image best."""

  def __init__(self, borders: Sequence[np.ndarray | None]):
    """Takes the `border` of each mask; None is never found."""
    self._known = np.array([i for i, b in enumerate(borders) if b is not None])
    known = [borders[i] for i in self._known]
    self._counts = np.array([len(b) for b in known])
    self._starts = np.cumsum(self._counts) - self._counts
    self._places = np.concatenate(known) if known else None

  def find(self, image: np.ndarray) -> tuple[int, float] | None:
    """Returns the index of the mask that scores most, and its score.

    It takes about a millisecond for a hundred masks. The gain over chance is
    weighed by the root of the border's length, since a short border scores well
    by accident. The image is uint8 [H, W, C].
    """
    if self._places is None:
      return None
    edges, mean = _edges(image)
    strength = np.take(edges, np.take(_PLACES[0], self._places))
    totals = np.add.reduceat(strength, self._starts, dtype=np.uint32)
    scores = totals / np.maximum(mean * self._counts, 1.0)
    best = int(((scores - 1) * np.sqrt(self._counts)).argmax())
    return int(self._known[best]), float(scores[best])
