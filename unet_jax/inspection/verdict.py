"""The verdict on a whole set: do its masks fit when all of them are changed?

A single pair may look wrong by accident; the same fault in many of them hardly.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from unet_jax.inspection import alignment

# A verdict needs at least so many pairs, and a mean that is so many standard
# errors away from the mean without the fault.
_MIN_PAIRS = 8
_MIN_ERRORS = 4.0
# Pairs that one turn must fix: at least so many, and these shares of all pairs
# and of the suspicious ones.
_MIN_TURNED, _MIN_TURNED_SHARE, _MIN_TURNED_CAUSE = 3, 0.05, 0.5
# Largest mean offset of the masks of a set, in cells.
_MAX_OFFSET = 0.4
# Masks that belong to their images score at least this share more than the
# same masks do, on average, flipped and turned.
_MIN_GAIN = 0.1


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A fault of a whole set.

  Attributes:
    kind: `turned`, `moved`, `shuffled` or `no fit`.
    message: one line: what, of how many, how to fix it.
  """

  kind: str
  message: str


def summarize(
  fits: Sequence[alignment.Fit | None], owners: Mapping[int, int] | None = None
) -> Verdict | None:
  """Returns the fault of a set as a whole, if it has one.

  Args:
    fits: of the pairs, in the order of the set; None has no border.
    owners: of some pairs, such as 32 evenly spread ones, the index of the mask
      that `alignment.MaskFinder.find` says fits the image best.
  """
  known = [fit for fit in fits if fit is not None]
  if len(known) < _MIN_PAIRS:
    return None
  scores = np.stack([fit.scores for fit in known]).astype(np.float64)
  return (
    _all_alike(scores)
    or _out_of_step(owners or {})
    or _some_turned(known)
    or _off_center(scores)
    or _unrelated(scores)
  )


def _is_positive(values: np.ndarray) -> bool:
  """Whether the mean of values [n] is above 0, beyond chance."""
  error = values.std(ddof=1) / math.sqrt(len(values))
  return bool(values.mean() > _MIN_ERRORS * error)


def _all_alike(scores: np.ndarray) -> Verdict | None:
  """Masks fit better, on average, when turned or moved in one way."""
  gains = scores[:, 1:] - scores[:, :1]
  best = int(gains.mean(0).argmax())
  if not _is_positive(gains[:, best]):
    return None
  if best < len(alignment.TURNS):
    kind, words = 'turned', alignment.TURNS[best][0]
  else:
    x, y = alignment.MOVES[best - len(alignment.TURNS)]
    kind, words = 'moved', _move_in_share(x, y, '.0f')
  better = int((gains[:, best] > 0).sum())
  return Verdict(
    kind,
    f'{better} of {len(scores)} masks fit better when {words}; on average they '
    'all do, so look at how masks are made or read',
  )


def _move_in_share(x: float, y: float, form: str) -> str:
  share = 100 / alignment.SIZE
  words = alignment.move_in_words(x * share, y * share, '% of the side', form)
  return f'{words} (roughly)'


def _out_of_step(owners: Mapping[int, int]) -> Verdict | None:
  """Masks belong to the images a constant number further on."""
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


def _some_turned(fits: Sequence[alignment.Fit]) -> Verdict | None:
  """One turn would fix a part of the pairs."""
  counts = collections.Counter(
    fit.best for fit in fits if alignment.is_suspicious(fit)
  )
  name = max((turn[0] for turn in alignment.TURNS), key=lambda n: counts[n])
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
  """Masks are off by less than the smallest distance that is tried."""
  first = 1 + len(alignment.TURNS)
  column = {move: first + i for i, move in enumerate(alignment.MOVES)}
  offsets = []
  for x, y in ((1, 0), (0, 1)):
    ahead, behind = scores[:, column[x, y]], scores[:, column[-x, -y]]
    # The top of a parabola through the three means.
    bend = 2 * scores[:, 0].mean() - ahead.mean() - behind.mean()
    slope = ahead - behind
    certain = _is_positive(slope) or _is_positive(-slope)
    offset = slope.mean() / 2 / bend if certain and bend > 0 else 0.0
    offsets.append(float(np.clip(offset, -1, 1)))
  if max(map(abs, offsets)) < _MAX_OFFSET:
    return None
  right, down = offsets
  words = _move_in_share(right, down, '.1f')
  return Verdict(
    'moved',
    f'the {len(scores)} masks would fit better, on average, when {words}; '
    'look at how masks are made or resized',
  )


def _unrelated(scores: np.ndarray) -> Verdict | None:
  """Masks do not fit their images at all."""
  wrong = scores[:, 1 : 1 + len(alignment.TURNS)].mean(1)
  gain = scores[:, 0].mean() / max(wrong.mean(), 1e-6) - 1
  if gain >= _MIN_GAIN:
    return None
  return Verdict(
    'no fit',
    f'the {len(scores)} masks fit their images hardly better than when flipped '
    'or turned: they may belong to other images, look at how they are paired',
  )
