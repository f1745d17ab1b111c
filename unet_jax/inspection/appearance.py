"""How well the classes of a set are told from what its pixels look like.

A second witness beside `alignment`, asked only where that one suspects masks.
Where neighbours of an object have stronger edges than the object itself (a band
between brighter bands, a bright field on black, thin lines), borders seem to
fit better elsewhere; but classes still say most about the pixels they lie on.

Each pixel of an image gets some features: its values, values around, whether it
is a thin dark or bright line, how strong edges are. A linear function of these,
fitted by least squares to the classes of all the other pairs, predicts the
classes of a pair; its score is the covariance of prediction and class, as a
share of the variance of the class. That is done for the masks as they are, and
again, from the fit on, for masks that are all flipped, turned or moved in one
way: where masks are right, none of these is predicted better than they are.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from unet_jax.config import fields
from unet_jax.inspection import alignment

# Longest side of the grid that image and mask are brought to, in cells: twice
# that of `alignment`, for thin lines.
SIDE = 128
# Masks of twice this side and more are thinned out.
_MASK_SIDE = 512
# Most classes that are predicted one by one; of more (numbers of objects), the
# most common against the others.
_MAX_CLASSES = 6
# Sides of neighbourhoods, in cells.
_AROUND, _LINE = 25, 7
# Added to standard deviations, in grey levels: less contrast is noise.
_FLOOR = 2.0
# Share of its variance that is added to a feature's.
_RIDGE = 1e-3
_IGNORED = fields.IGNORE_LABEL

# Stretches of a mask around its middle: words, width and height; and halfway.
STRETCHES = (
  ('squeezed to 3/4 of the width', 3 / 4, 1),
  ('squeezed to 3/4 of the height', 1, 3 / 4),
  ('stretched to 4/3 of the width', 4 / 3, 1),
  ('stretched to 4/3 of the height', 1, 4 / 3),
)
_HALFWAY = tuple((words, x**0.5, y**0.5) for words, x, y in STRETCHES)
# What `Look.turned` are the scores of.
TURNED = (
  'as they are',
  *(turn[0] for turn in alignment.TURNS),
  *(stretch[0] for stretch in STRETCHES),
)
# Masks are moved by up to so many cells to each side.
REACH = 16
# Room for them: a size that is transformed quickly.
_PADDED = SIDE + REACH


class Cells(NamedTuple):
  """What is kept of a pair: little, however large it is.

  Attributes:
    image: uint8 [SIDE, SIDE, C].
    mask: uint8 [h, w] classes, 255 is ignored; at most 1023 on a side.
    size: height and width of the image in pixels.
  """

  image: np.ndarray
  mask: np.ndarray
  size: tuple[int, int]


def to_cells(image: np.ndarray, mask: np.ndarray) -> Cells:
  """Takes an image uint8 [H, W, C] and its mask uint8 [H, W]."""
  size = image.shape[:2]
  small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
  y, x = (max(n // _MASK_SIDE, 1) for n in size)
  thinned = np.ascontiguousarray(mask[y // 2 :: y, x // 2 :: x])
  return Cells(small.reshape(SIDE, SIDE, -1), thinned, size)


@dataclasses.dataclass(frozen=True)
class Look:
  """How well the mask of a pair, as it is and changed, is predicted.

  All scores are shares of the variance of the classes that is explained: 0 is
  chance, 1 is all of it.

  Attributes:
    turned: float32 [12]: see TURNED, where those of all pairs are turned alike.
    halfway: float32 [4]: the same, stretched halfway to STRETCHES.
    moved: float32 [2 * REACH + 1] * 2: moved down and right, in cells of which
      an image has 128 on a side, where those of all pairs are moved alike.
    others: float32 [k]: masks of other images in its place, and those of all
      pairs replaced alike.
    stepped: the mask that another suspicion puts in its place, and those of all
      pairs replaced alike; nan for none.
    alone: float32 [8]: as it is and turned, where the others are as they are.
    best_alone: the best that this mask, or the others in its place, scores
      after any of these changes, where the others are as they are.
    edges: the mask's score of `alignment` above the mean of the others in its
      place.
    size: height and width of the image in pixels.
  """

  turned: np.ndarray = dataclasses.field(repr=False)
  halfway: np.ndarray = dataclasses.field(repr=False)
  moved: np.ndarray = dataclasses.field(repr=False)
  others: np.ndarray = dataclasses.field(repr=False)
  stepped: float
  alone: np.ndarray = dataclasses.field(repr=False)
  best_alone: float
  edges: float
  size: tuple[int, int]


def _features(image: np.ndarray) -> np.ndarray:
  """Returns features of an image, float32 [K, SIDE, SIDE].

  The image is uint8 [SIDE, SIDE, C].
  """
  values = image.astype(np.float32)
  grey = values.mean(-1)
  around = (_AROUND, _AROUND)
  mean = cv2.blur(grey, around)
  var = cv2.blur(grey * grey, around) - mean * mean
  # Contrast with what is around: a bright field's rim weighs no more than its
  # content.
  local = (grey - mean) / (np.sqrt(np.maximum(var, 0)) + _FLOOR)
  soft = cv2.GaussianBlur(local, (0, 0), 1)
  kernel = np.ones((_LINE, _LINE), np.uint8)
  smooth = cv2.GaussianBlur(grey, (0, 0), 0.7)
  scale = 1 / (np.sqrt(np.maximum(var, 0)) + _FLOOR)
  dark = cv2.morphologyEx(smooth, cv2.MORPH_BLACKHAT, kernel) * scale
  bright = cv2.morphologyEx(smooth, cv2.MORPH_TOPHAT, kernel) * scale
  edge = cv2.magnitude(
    cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
  )
  edge = edge / (cv2.blur(edge, around) + _FLOOR)
  unit = np.moveaxis(values, -1, 0) / 128 - 1
  level = grey / 128 - 1
  blurred = cv2.blur(level, (5, 5))
  return np.stack(
    [
      *unit,
      level**2,
      level**3,
      blurred,
      blurred**2,
      blurred**3,
      local,
      soft,
      soft**2,
      cv2.blur(local, (7, 7)),
      dark,
      bright,
      edge,
      cv2.blur(edge, (5, 5)),
      np.sqrt(np.maximum(var, 0)) / 64,
    ]
  )


def _targets(mask: np.ndarray, classes: Sequence[int]) -> np.ndarray:
  """Returns the shares of the classes in each cell: float32 [T, SIDE, SIDE].

  Less their mean over the cells that are known; ignored cells are 0.
  """
  shares = np.stack(
    [
      cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
      for plane in (
        (mask != _IGNORED).astype(np.float32),
        *((mask == c).astype(np.float32) for c in classes),
      )
    ]
  )
  known, found = shares[0], shares[1:]
  mean = found.sum((1, 2)) / max(float(known.sum()), 1.0)
  return found - mean[:, None, None] * known


def _turned(targets: np.ndarray) -> np.ndarray:
  """Returns targets as they are, turned, stretched: [16, T, SIDE, SIDE]."""
  turned = [targets]
  for _, swap, from_right, from_below in alignment.TURNS:
    # As in `alignment`: places swap before they count from the other end.
    t = targets.swapaxes(1, 2) if swap else targets
    t = t[:, :, ::-1] if from_right else t
    turned.append(t[:, ::-1] if from_below else t)
  middle = (SIDE - 1) / 2
  for _, *scales in (*STRETCHES, *_HALFWAY):
    matrix = np.array([[k, 0, middle * (1 - k)] for k in scales])
    matrix[1, :2] = matrix[1, 1::-1]
    stretched = [cv2.warpAffine(t, matrix, (SIDE, SIDE)) for t in targets]
    turned.append(np.stack(stretched))
  return np.stack(turned)


def _products(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Returns sums of features times moved targets: [moves, T, K].

  What is moved in is 0, which is the mean.
  """
  pad = (_PADDED, _PADDED)
  spectra = np.fft.rfft2(features, pad)[None] * np.conj(
    np.fft.rfft2(targets, pad)[:, None]
  )
  span = np.arange(-REACH, REACH + 1)
  # [T, K, moves down, PADDED], and then [T, K, moves down, moves right].
  rows = np.fft.ifft(spectra, axis=-2)[..., span, :]
  both = np.fft.irfft(rows, _PADDED)[..., span]
  return both.reshape(*both.shape[:2], -1).transpose(2, 0, 1)


def measure(
  pairs: Sequence[Cells],
  others: Sequence[Sequence[np.ndarray]],
  stepped: Sequence[np.ndarray | None],
) -> list[Look]:
  """Returns how well the masks of a set are predicted.

  Args:
    pairs: of the set, or some of them.
    others: for each pair, equally many masks of other images.
    stepped: for each pair, a further mask of another image, or None.

  Returns:
    One for each pair; none where there are fewer than two pairs or classes.
  """
  classes = _classes(pairs)
  if len(pairs) < 2 or not classes:
    return []
  squares, products, variances = [], [], []
  for pair, replaced, step in zip(pairs, others, stepped, strict=True):
    features = _features(pair.image)
    features -= features.mean((1, 2), keepdims=True)
    targets = _targets(pair.mask, classes)
    replaced = [*replaced, pair.mask if step is None else step]
    changed = np.concatenate(
      [_turned(targets), [_targets(mask, classes) for mask in replaced]]
    )
    flat = features.reshape(len(features), -1)
    cross = changed.reshape(-1, flat.shape[1]) @ flat.T
    cross = cross.reshape(*changed.shape[:2], -1)
    squares.append(flat @ flat.T)
    products.append(np.concatenate([cross, _products(features, targets)]))
    variances.append(
      np.square(changed[: len(TURNED) + len(_HALFWAY)]).sum((2, 3))
    )
  together, alone = _scores(
    np.stack(squares).sum(0, np.float64),
    np.stack(products),
    np.stack(variances),
  )
  turns, edge = len(TURNED), 2 * REACH + 1
  first = turns + len(_HALFWAY)
  return [
    Look(
      turned=row[:turns],
      halfway=row[turns:first],
      moved=row[-(edge**2) :].reshape(edge, edge),
      others=row[first : -(edge**2) - 1],
      stepped=math.nan if step is None else float(row[-(edge**2) - 1]),
      alone=single[: 1 + len(alignment.TURNS)],
      best_alone=float(single.max()),
      edges=_edge_gain(pair, replaced),
      size=pair.size,
    )
    for pair, replaced, step, row, single in zip(
      pairs, others, stepped, together, alone
    )
  ]


def _edge_gain(pair: Cells, others: Sequence[np.ndarray]) -> float:
  """See `Look.edges`; nan where a mask has no border."""
  found = [alignment.border(mask) for mask in (pair.mask, *others)]
  borders = [border for border in found if border is not None]
  if len(borders) < len(found):
    return math.nan
  own, *rest = alignment.scores(pair.image, borders)
  return own - sum(rest) / len(rest)


def _classes(pairs: Sequence[Cells]) -> list[int]:
  """Returns the classes to predict; none where there is nothing to tell."""
  counts = np.zeros(256, np.int64)
  for pair in pairs:
    counts += np.bincount(pair.mask.ravel(), minlength=256)
  ranked = np.argsort(-counts[:_IGNORED], kind='stable').tolist()
  classes = [c for c in ranked if counts[c]]
  if len(classes) < 2:
    return []
  return classes[1:] if len(classes) <= _MAX_CLASSES else classes[:1]


def _scores(
  square: np.ndarray, products: np.ndarray, variances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Predicts each pair from the others: [n, changes], twice.

  With the others changed in the same way, and with the others as they are.

  Args:
    square: sum of products of features [K, K].
    products: of changed targets and features [n, changes, T, K].
    variances: of targets as they are, turned and stretched [n, changes, T].
  """
  ridge = np.diag(_RIDGE * np.diag(square) + 1e-6)
  inverse = np.linalg.inv(square + ridge).astype(np.float32)
  products = products.astype(np.float32)
  # A class counts by its variance over the set.
  by_class = np.maximum(variances.mean(0), 1e-9)
  scale = 1 / by_class[0] / variances.shape[-1]
  weights = (products.sum(0) - products) @ inverse
  together = (weights * products).sum(-1) @ scale
  # A mask that is squeezed explains less, since it covers less.
  together[:, : len(by_class)] *= (by_class[0] / by_class).mean(-1)
  alone = (weights[:, :1] * products).sum(-1) @ scale
  return together, alone


def climb(mean: np.ndarray) -> tuple[int, int]:
  """Returns the peak that the way up leads to from no move.

  The map `mean` is that of `Look.moved`, over the looks.
  """
  last, peak = None, (REACH, REACH)
  while peak != last:
    last = peak
    row, column = (max(place - 1, 0) for place in last)
    around = mean[row : last[0] + 2, column : last[1] + 2]
    down, right = divmod(int(around.argmax()), around.shape[1])
    peak = row + down, column + right
  return peak


def lowest_on_way(mean: np.ndarray, peak: tuple[int, int]) -> tuple[int, int]:
  """Returns the lowest place on the straight way to a peak from no move."""
  length = max(abs(place - REACH) for place in peak)
  ways = np.linspace((REACH, REACH), peak, 2 * length + 1).round().astype(int)
  row, column = ways[mean[*ways.T].argmin()].tolist()
  return row, column


def top(mean: np.ndarray, peak: tuple[int, int]) -> list[float]:
  """Returns the moves down and right of the top of a peak, in cells.

  It is that of a parabola through the peak and its neighbours.
  """
  moves = []
  for place, line in zip(peak, (mean[:, peak[1]], mean[peak[0]])):
    moves.append(float(place - REACH))
    if 0 < place < len(line) - 1:
      before, here, after = line[place - 1 : place + 2].tolist()
      bend = 2 * here - before - after
      moves[-1] += (after - before) / (2 * bend) if bend > 0 else 0.0
  return moves
