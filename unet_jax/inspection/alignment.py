"""How well the border of a mask lies on the edges of its image.

`measure` brings image and mask to 64 x 64 cells and compares two things:

* Edges of the image: the gradient of the blurred image along four directions
  (0, 45, 90 and 135 degrees; of the channels the strongest), divided by the
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

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

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
  'border is short; pairs above 0.044 should be looked at.'
)

# Pairs of more than this suspicion are suspicious.
THRESHOLD = 0.044
# A mask that scores less is suspicious even where nothing else that was tried
# fits.
_EXPECTED = 1.1
_IGNORED = fields.IGNORE_LABEL

# Side of the square that image and mask are brought to, in cells.
_SIZE = 64
# Scales of the gradient of image and mask: that of an image saturates at a step
# of 190 grey levels, that of a mask is 238 on a straight border.
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
# At most this many places of a border are looked up, spread over all of it;
# with fewer than the other number there is none.
_MAX_PLACES = 500
_MIN_PLACES = 16
# Distances that masks are moved by, in cells.
_DISTANCES = (1, 3, 7)

# How a mask is turned: name; x and y swap; then x, y count from the other end.
_TURNS = (
  ('flipped left to right', False, True, False),
  ('flipped upside down', False, False, True),
  ('turned by 180 degrees', False, True, True),
  ('transposed', True, False, False),
  ('transposed and turned by 180 degrees', True, True, True),
  ('turned by 90 degrees clockwise', True, True, False),
  ('turned by 90 degrees counter-clockwise', True, False, True),
)
# How a mask is moved, to eight sides: right and down, in cells.
_MOVES = tuple(
  (round(x * d / math.hypot(x, y)), round(y * d / math.hypot(x, y)))
  for d in _DISTANCES
  for x, y in itertools.product((-1, 0, 1), repeat=2)
  if x or y
)
_AS_IT_IS = 'as it is'
# What `Fit.best` says where another mask fits best.
OTHER = 'replaced by the mask of another image'

# The map of edges is [_ROW, _ROW, 4], with room for what is moved out.
_PAD = max(_DISTANCES)
_ROW = _SIZE + 2 * _PAD


def _places() -> np.ndarray:
  """Where each cell and direction is in the map of edges, and turned.

  Returns:
    integers [1 + len(_TURNS), _SIZE * _SIZE * 4].
  """
  y, x, d = np.indices((_SIZE, _SIZE, 4)).reshape(3, -1)
  rows = []
  for swap, from_right, from_below in (
    (False, False, False),
    *(turn[1:] for turn in _TURNS),
  ):
    ty, tx, td = (x, y, 2 - d) if swap else (y, x, d)
    if from_right:
      tx, td = _SIZE - 1 - tx, -td
    if from_below:
      ty, td = _SIZE - 1 - ty, -td
    rows.append(((ty + _PAD) * _ROW + tx + _PAD) * 4 + td % 4)
  return np.stack(rows)


_PLACES = _places()
_STEPS = np.array([[(y * _ROW + x) * 4] for x, y in _MOVES])


def _directions(planes: Sequence[np.ndarray], scale: float) -> np.ndarray:
  """The strongest gradient of the planes along each of the four directions.

  Args:
    planes: uint8 [K, K] each.
    scale: of the gradient, which Sobel's kernel makes 4 times the difference
      between the cells before and behind.

  Returns:
    uint8 [4, K, K], at most 255.
  """
  stacked = np.stack(planes)
  x, y = cv2.spatialGradient(stacked.reshape(-1, stacked.shape[-1]))
  strongest = []
  diagonal = scale * math.sqrt(0.5)
  for gradient, factor in (
    (x, scale),
    (cv2.add(x, y), diagonal),
    (y, scale),
    (cv2.subtract(y, x), diagonal),
  ):
    size = cv2.convertScaleAbs(gradient, alpha=factor)
    strongest.append(size.reshape(stacked.shape).max(0))
  strongest = np.stack(strongest)
  strongest[:, [0, -1]] = 0  # Planes lie below each other there.
  return strongest


def _edges(image: np.ndarray) -> tuple[np.ndarray, float]:
  """The map of edges of uint8 [H, W, C], flat, and its mean."""
  small = image
  if min(image.shape[:2]) > 2 * _SIZE:
    # Several times faster than averaging all of a large image.
    small = cv2.resize(small, (2 * _SIZE, 2 * _SIZE))
  small = cv2.resize(small, (_SIZE, _SIZE), interpolation=cv2.INTER_AREA)
  strength = _directions(cv2.split(cv2.blur(small, (3, 3))), _IMAGE_SCALE)
  strongest = strength.max(0)
  around = cv2.boxFilter(strongest, cv2.CV_32F, (_WINDOW, _WINDOW))
  around += _SHARE * float(strongest.mean()) + _FLOOR
  strength = cv2.convertScaleAbs(strength * (64 / around))
  strength = cv2.dilate(cv2.merge(list(strength)), _SPREAD)
  means = cv2.mean(strength)
  padded = cv2.copyMakeBorder(
    strength, *[_PAD] * 4, cv2.BORDER_CONSTANT, value=means
  )
  return padded.ravel(), sum(means) / 4


@functools.lru_cache(maxsize=64)
def _centers(height: int, width: int) -> np.ndarray:
  """Where the centres of the cells are in an array [height, width], flat.

  Returns:
    integers [_SIZE, _SIZE].
  """
  axes = []
  for length in (height, width):
    twice = (2 * np.arange(_SIZE) + 1) * length
    pixels = twice // (2 * _SIZE)
    # A centre between two pixels takes either in turn, since always the same
    # one would move the mask by half a pixel.
    between = twice % (2 * _SIZE) == 0
    pixels[1::2] -= between[1::2]
    axes.append(pixels)
  return axes[0][:, None] * width + axes[1]


def _fill_ignored(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Gives ignored cells the nearest class; also says which are far from any."""
  distance, nearest = cv2.distanceTransformWithLabels(
    cv2.compare(mask, _IGNORED, cv2.CMP_EQ),
    cv2.DIST_L2,
    5,
    labelType=cv2.DIST_LABEL_PIXEL,
  )
  known = mask != _IGNORED
  # OpenCV's labels count from 1, in an order of its own.
  classes = np.zeros(np.count_nonzero(known) + 1, np.uint8)
  classes[nearest[known]] = mask[known]
  return classes[nearest], distance > _BAND


def border(mask: np.ndarray) -> np.ndarray | None:
  """Returns where the border of a mask is, to be used on any image.

  Args:
    mask: uint8 [H, W] classes, 255 is ignored.

  Returns:
    uint16 [n]: cells and directions of up to 500 places, in a form of this
    file; None where there is (almost) no border.
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
    cv2.blur(cv2.compare(small, int(c), cv2.CMP_EQ), (3, 3))
    for c in classes[:-1]
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
    best: what to do with the mask so that it fits best, in words: `flipped left
      to right`, `moved 12 px right and 12 px up`; `as it is` where that is it.
    best_score: the score of that.
    suspicion: what pairs are sorted by, larger is worse: the share by which the
      best score, or 1.1 if that is more, is above `score`, times the part of
      500 cells that the border has, since a short one fits much by accident.
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
  tried = np.empty((1 + len(_TURNS) + len(_MOVES), len(places)), np.intp)
  turned, moved = np.split(tried, [1 + len(_TURNS)])
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
  # Of an image without edges all scores are 0, and nothing is known.
  gain = max(best_score, _EXPECTED) / score - 1 if score else 0.0
  suspicion = gain * len(places) / _MAX_PLACES
  return Fit(score, words, best_score, suspicion, scores, places)


def _mean_strength(edges, places, mean: float) -> np.ndarray:
  """The score of places [..., n] of the map of edges: float32 [...]."""
  total = np.take(edges, places).sum(-1, dtype=np.uint32)
  return (total / max(mean * places.shape[-1], 1.0)).astype(np.float32)


def is_suspicious(fit: Fit) -> bool:
  """Whether a person should look at the pair.

  THRESHOLD is such that about one in a hundred right pairs is above it, see
  experiments/data_faults.
  """
  return fit.suspicion > THRESHOLD


def _in_words(alternative: int, size: tuple[int, int]) -> str:
  """What `Fit.scores[alternative]` is the score of, in pixels of [H, W]."""
  if not alternative:
    return _AS_IT_IS
  if alternative <= len(_TURNS):
    return _TURNS[alternative - 1][0]
  x, y = _MOVES[alternative - 1 - len(_TURNS)]
  right, down = x * size[1] / _SIZE, y * size[0] / _SIZE
  return _move_in_words(right, down, 'px', '.3g' if max(size) < 256 else '.0f')


def _move_in_words(right: float, down: float, unit: str, form: str) -> str:
  parts = [
    f'{abs(by):{form}} {unit} {forth if by > 0 else back}'
    for by, forth, back in ((right, 'right', 'left'), (down, 'down', 'up'))
    if by
  ]
  return 'moved ' + ' and '.join(parts)


class MaskFinder:
  """Finds which of many masks fits an image best."""

  def __init__(self, borders: Sequence[np.ndarray | None]):
    """Takes what `border` returns of each mask; None is never found."""
    self._known = np.array([i for i, b in enumerate(borders) if b is not None])
    known = [borders[i] for i in self._known]
    self._counts = np.array([len(b) for b in known])
    self._starts = np.cumsum(self._counts) - self._counts
    self._places = np.concatenate(known) if known else None

  def find(self, image: np.ndarray) -> tuple[int, float] | None:
    """Returns the index of the mask that scores most, and its score.

    It takes about a millisecond for a hundred masks. What decides is how far a
    score is above chance times the root of the border's length, since a short
    border scores well by accident.

    Args:
      image: uint8 [H, W, C].
    """
    if self._places is None:
      return None
    edges, mean = _edges(image)
    strength = np.take(edges, np.take(_PLACES[0], self._places))
    totals = np.add.reduceat(strength, self._starts, dtype=np.uint32)
    scores = totals / np.maximum(mean * self._counts, 1.0)
    best = int(((scores - 1) * np.sqrt(self._counts)).argmax())
    return int(self._known[best]), float(scores[best])


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What is wrong with a whole set.

  Attributes:
    kind: `turned`, `moved`, `shuffled` or `no fit`.
    message: one line: what, of how many, how to mend it.
  """

  kind: str
  message: str


# A verdict on a set needs so many pairs, and a mean that is so many standard
# errors away from what it would be without the fault.
_MIN_PAIRS = 8
_MIN_ERRORS = 4.0
# Pairs that one turn would mend: so many, and these shares of all pairs and of
# those that are suspicious.
_MIN_TURNED, _MIN_TURNED_SHARE, _MIN_TURNED_CAUSE = 3, 0.05, 0.5
# How far the masks of a set may be off on average, in cells.
_MAX_OFFSET = 0.4
# Masks that belong to their images score at least this share more than the
# same masks do, on average, flipped and turned.
_MIN_GAIN = 0.1


def summarize(
  fits: Sequence[Fit | None], owners: Mapping[int, int] | None = None
) -> list[Verdict]:
  """Returns what is wrong with a set as a whole, at most one verdict.

  Args:
    fits: of the pairs, in the order of the set; None has no border.
    owners: of some pairs, such as 32 evenly spread ones, the index of the mask
      that `MaskFinder.find` says fits the image best.
  """
  fits = [fit for fit in fits if fit is not None]
  if len(fits) < _MIN_PAIRS:
    return []
  scores = np.stack([fit.scores for fit in fits]).astype(np.float64)
  verdict = (
    _all_alike(scores)
    or _out_of_step(owners or {})
    or _some_turned(fits)
    or _off_center(scores)
    or _unrelated(scores)
  )
  return [verdict] if verdict else []


def _is_positive(values: np.ndarray) -> bool:
  """Whether the mean of values [n] is above 0, beyond chance."""
  error = values.std(ddof=1) / math.sqrt(len(values))
  return bool(values.mean() > _MIN_ERRORS * error)


def _all_alike(scores: np.ndarray) -> Verdict | None:
  """That masks fit better, on average, when turned or moved in one way."""
  gains = scores[:, 1:] - scores[:, :1]
  best = int(gains.mean(0).argmax())
  if not _is_positive(gains[:, best]):
    return None
  if best < len(_TURNS):
    kind, words = 'turned', _TURNS[best][0]
  else:
    x, y = _MOVES[best - len(_TURNS)]
    kind, words = 'moved', _move_in_share(x, y, '.0f')
  better = int((gains[:, best] > 0).sum())
  return Verdict(
    kind,
    f'{better} of {len(scores)} masks fit better when {words}; on average they '
    'all do, so look at how masks are made or read',
  )


def _move_in_share(x: float, y: float, form: str) -> str:
  share = 100 / _SIZE
  words = _move_in_words(x * share, y * share, '% of the side', form)
  return f'{words} (roughly)'


def _out_of_step(owners: Mapping[int, int]) -> Verdict | None:
  """That masks belong to the images a constant number further on."""
  if len(owners) < _MIN_PAIRS:
    return None
  steps, counts = np.unique(
    [owner - index for index, owner in owners.items()], return_counts=True
  )
  step, count = int(steps[counts.argmax()]), int(counts.max())
  if not step or count <= len(owners) / 2:
    return None
  return Verdict(
    'shuffled',
    f'{count} of {len(owners)} images that were tried are fitted best by the '
    f'mask {abs(step)} {"after" if step > 0 else "before"} theirs in the order '
    'of the set: images and masks are out of step, look at their names',
  )


def _some_turned(fits: Sequence[Fit]) -> Verdict | None:
  """That one turn would mend a part of the pairs."""
  counts = collections.Counter(f.best for f in fits if is_suspicious(f))
  name = max((turn[0] for turn in _TURNS), key=lambda n: counts[n])
  needed = max(
    _MIN_TURNED,
    _MIN_TURNED_SHARE * len(fits),
    _MIN_TURNED_CAUSE * counts.total(),
  )
  if counts[name] < needed:
    return None
  return Verdict(
    'turned',
    f'{counts[name]} of {len(fits)} masks fit clearly better when {name}, the '
    'others do not; look at how these were made',
  )


def _off_center(scores: np.ndarray) -> Verdict | None:
  """That masks are off by less than the smallest distance that is tried."""
  first = 1 + len(_TURNS)
  column = {move: first + i for i, move in enumerate(_MOVES)}
  offsets = []
  for ahead, behind in (((1, 0), (-1, 0)), ((0, 1), (0, -1))):
    ahead, behind = scores[:, column[ahead]], scores[:, column[behind]]
    # The top of a parabola through the three means.
    bend = 2 * scores[:, 0].mean() - ahead.mean() - behind.mean()
    slope = ahead - behind
    certain = _is_positive(slope) or _is_positive(-slope)
    offset = slope.mean() / 2 / bend if certain and bend > 0 else 0.0
    offsets.append(float(np.clip(offset, -1, 1)))
  if max(map(abs, offsets)) < _MAX_OFFSET:
    return None
  words = _move_in_share(*offsets, '.1f')
  return Verdict(
    'moved',
    f'the {len(scores)} masks would fit better, on average, when {words}; '
    'look at how masks are made or resized',
  )


def _unrelated(scores: np.ndarray) -> Verdict | None:
  """That masks do not fit their images at all."""
  wrong = scores[:, 1 : 1 + len(_TURNS)].mean(1)
  gain = scores[:, 0].mean() / max(wrong.mean(), 1e-6) - 1
  if gain >= _MIN_GAIN:
    return None
  return Verdict(
    'no fit',
    f'the {len(scores)} masks fit their images hardly better than when flipped '
    'or turned: they may belong to other images, look at how they are paired',
  )
