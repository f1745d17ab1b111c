"""The verdict on a whole set: do its masks fit when all of them are changed?

A single pair may look wrong by accident; the same fault in many of them hardly.
Two witnesses are heard. The edges under the borders of masks (`alignment`) are
quickly measured, and raise a suspicion; what pixels of a class look like
(`appearance`) is asked only then. experiments/data_faults measures how often
both are misled.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from unet_jax.inspection import alignment, appearance

# A verdict needs at least so many pairs, and a mean that is so many standard
# errors away from the mean without the fault; a suspicion needs fewer.
MIN_PAIRS = 8
_MIN_ERRORS = 4.0
_MIN_ERRORS_SUSPECTED = 3.0
# Masks that are changed must be predicted better by this factor.
_MIN_RATIO = 1.15
# And explain so much more of their variance: where pixels tell next to nothing
# of the classes, every small change is better by accident. Moves change little,
# and may also be better by so many standard errors.
_MIN_EXPLAINED, _MIN_ERRORS_ALONE = 0.01, 8.0
# A set with more than this share of suspicious pairs is suspected.
_MANY = 0.05
# Pairs that one turn must fix: at least so many, and these shares of all pairs
# and of the suspicious ones.
_MIN_TURNED, _MIN_TURNED_SHARE, _MIN_TURNED_CAUSE = 3, 0.05, 0.5
# Largest mean offset of the masks of a set that the edges may show, in cells.
_MAX_OFFSET = 0.4
# Masks that belong to their images score at least this share more than the
# same masks do, on average, flipped and turned.
_MIN_GAIN = 0.15
# Moves of less than these pixels, or this share of the side, do not matter:
# people do not draw more exactly.
_MIN_PIXELS, _MIN_SHARE = 0.9, 0.0125
# A place that is as good as this share of the best, and from which the way to
# the best leads down, is a place of its own: masks lie there for a reason.
_MIN_PEAK = 0.3
# Pairs that are looked at again: of the whole set, and of the suspicious ones.
_SPREAD, _MOST_ODD = 32, 32
# A pair is odd where its mask is predicted less than this share of the typical.
_TYPICAL = 0.5
# A difference of predictions is clear if it is more than this share of that.
_CLEARLY = 0.05

# How often right sets of 16 pairs, of 18 kinds, are called so, and sets of 24
# with the fault: experiments/data_faults.
_ODDS = {
  'turned': '0 of 205 right sets are called so, 180 of 180 turned ones are',
  'stretched': '0 of 205 right sets are called so, 25 of 36 such ones are',
  'moved': '0 of 205 right sets are called so, 91 of 105 moved ones are',
  'shuffled': '0 of 205 right sets are called so, 64 of 72 shuffled ones are',
  'unfit': '0 of 205 right sets are called so, 64 of 72 shuffled ones are',
}
ODDS_OF_PAIRS = '6 of 3,280 right masks of 18 kinds are called so'


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A fault of a whole set.

  Attributes:
    kind: `turned`, `stretched`, `moved`, `shuffled` or `unfit`.
    message: one line: what, of how many, how to fix it.
  """

  kind: str
  message: str

  def with_odds(self) -> str:
    """The message and how often such a verdict is right."""
    return f'{self.message} ({_ODDS[self.kind]})'


# Of the pairs of a set, in order; None is not known.
Fits = Sequence[alignment.Fit | None]
Looks = Sequence[appearance.Look | None]
_Known = Sequence[appearance.Look]
_Place = tuple[int, int]


def is_suspected(fits: Fits, owners: Mapping[int, int] | None = None) -> bool:
  """Whether the edges of a set's images speak against its masks.

  Args:
    fits: of the pairs; None has no border.
    owners: see `summarize`.
  """
  known = [fit for fit in fits if fit is not None]
  if len(known) < MIN_PAIRS:
    return False
  scores = np.stack([fit.scores for fit in known]).astype(np.float64)
  gains = scores[:, 1:] - scores[:, :1]
  best = gains[:, int(gains.mean(0).argmax())]
  return (
    _is_positive(best, _MIN_ERRORS_SUSPECTED)
    or _step(owners or {})[0] != 0
    or _some_turned(known, len(known)) is not None
    or _is_off_center(scores)
    or _gain_over_turns(scores) < _MIN_GAIN
    or sum(map(alignment.is_suspicious, known)) > _MANY * len(known)
  )


def summarize(
  fits: Fits, looks: Looks, owners: Mapping[int, int] | None = None
) -> Verdict | None:
  """Returns the fault of a set that `is_suspected`, if it has one.

  Args:
    fits: of the pairs, in the order of the set; None has no border.
    looks: of the same pairs, see `look_again`.
    owners: of some pairs, such as 32 evenly spread ones, the index of the mask
      that `alignment.MaskFinder.find` says fits the image best.
  """
  known = [fit for fit in fits if fit is not None]
  seen = [look for look in looks if look is not None]
  if min(len(known), len(seen)) < MIN_PAIRS:
    return None
  scores = np.stack([fit.scores for fit in known]).astype(np.float64)
  least = -_CLEARLY * float(np.median([look.alone[0] for look in seen]))
  # Where the pixels do not speak for the masks as they are.
  doubted = [
    fit
    for fit, look in zip(fits, looks, strict=True)
    if fit is not None
    and (look is None or look.alone[_turn(fit)] - look.alone[0] >= least)
  ]
  return (
    _all_turned(scores, seen)
    or _out_of_step(owners or {}, seen)
    or _some_turned(doubted, len(known))
    or _stretched(seen)
    or _moved(seen)
    or _unfit(seen)
  )


def look_again(
  fits: Fits,
  load: Callable[[int], tuple[np.ndarray, np.ndarray]],
  owners: Mapping[int, int] | None = None,
) -> list[appearance.Look | None]:
  """Returns what the pixels of some pairs say of their masks.

  These are the most suspicious ones, and others evenly spread over the set.

  Args:
    fits: of the pairs, in the order of the set.
    load: from an index to an image uint8 [H, W, C] and its mask uint8 [H, W].
    owners: see `summarize`.
  """
  fitted = [i for i, fit in enumerate(fits) if fit is not None]
  looks: list[appearance.Look | None] = [None] * len(fits)
  n = min(len(fitted), _SPREAD)
  if n < MIN_PAIRS:
    return looks
  spread = np.linspace(0, len(fitted) - 1, n, dtype=int).tolist()
  odd = {
    i: fit.suspicion
    for i, fit in enumerate(fits)
    if fit is not None and alignment.is_suspicious(fit)
  }
  chosen = [fitted[k] for k in spread]
  chosen += sorted(odd, key=lambda i: -odd[i])[:_MOST_ODD]
  chosen = sorted(set(chosen))
  step, n = _step(owners or {})[0], len(chosen)
  cells = {i: appearance.to_cells(*load(i)) for i in chosen}
  # Far in the order of the set, where neighbours may be alike.
  others = [
    [cells[chosen[(k + n // part) % n]].mask for part in (2, 3)]
    for k in range(n)
  ]
  stepped: list[np.ndarray | None] = [None] * n
  if step:
    for k, i in enumerate(chosen):
      if 0 <= i + step < len(fits) and fits[i + step] is not None:
        stepped[k] = appearance.to_cells(*load(i + step)).mask
  for i, look in zip(
    chosen, appearance.measure([cells[i] for i in chosen], others, stepped)
  ):
    looks[i] = look
  return looks


def is_odd(fit: alignment.Fit, look: appearance.Look, looks: _Known) -> bool:
  """Whether the pixels of a suspicious pair speak against its mask too.

  The mask says much less about them than masks of the set usually do, and would
  say more if it were changed; or they are for the turn that the edges are for.
  """
  typical = float(np.median([other.alone[0] for other in looks]))
  now, turn = look.alone[0], _turn(fit)
  if turn and look.alone[turn] > now + _CLEARLY * typical:
    return True
  return bool(now < _TYPICAL * typical and look.best_alone > _MIN_RATIO * now)


def _turn(fit: alignment.Fit) -> int:
  """Returns the index of the turn that fits best, 0 if none does."""
  best = int(fit.scores.argmax())
  return best if best <= len(alignment.TURNS) else 0


def _is_positive(values: np.ndarray, errors: float = _MIN_ERRORS) -> bool:
  """Whether the mean of values [n] is above 0, beyond chance."""
  error = values.std(ddof=1) / math.sqrt(len(values))
  return bool(values.mean() > errors * error)


def _is_better(
  changed: np.ndarray, now: np.ndarray, ratio: float = _MIN_RATIO
) -> bool:
  """Whether masks that are changed say clearly more: scores [n] of both."""
  least = max(ratio * now.mean(), now.mean() + _MIN_EXPLAINED)
  return bool(changed.mean() > least and _is_positive(changed - now))


def _all_turned(scores: np.ndarray, looks: _Known) -> Verdict | None:
  """Masks fit better, on average, when turned in one way.

  One witness must be sure and the other not against it.
  """
  turned = np.stack([look.turned for look in looks])
  num = len(alignment.TURNS)
  for values, is_sure in (
    (scores, lambda t: _is_positive(scores[:, t] - scores[:, 0])),
    (turned, lambda t: _is_better(turned[:, t], turned[:, 0])),
  ):
    best = 1 + int(values[:, 1 : 1 + num].mean(0).argmax())
    moved = values[:, 1 + num :].mean(0) if values is scores else np.zeros(1)
    if (
      is_sure(best)
      and values[:, best].mean() > moved.max()
      and (scores[:, best] - scores[:, 0]).mean() > 0
      and not _is_better(turned[:, 0], turned[:, best])
    ):
      better = int((scores[:, best] > scores[:, 0]).sum())
      return Verdict(
        'turned',
        f'{better} of {len(scores)} masks fit better when '
        f'{alignment.TURNS[best - 1][0]}; on average they all do, so look at '
        'how masks are made or read',
      )
  return None


def _stretched(looks: _Known) -> Verdict | None:
  """Masks say more about their images when all are stretched in one way."""
  turned = np.stack([look.turned for look in looks])
  halfway = np.stack([look.halfway for look in looks])
  num = halfway.shape[1]
  best = int(turned[:, -num:].mean(0).argmax())
  changed, now = turned[:, best - num], turned[:, 0]
  if (
    not _is_better(changed, now)
    # What moves explain better.
    or changed.mean() < np.mean([look.moved for look in looks], 0).max()
    # As they are is a place of its own, see `_moved`.
    or _is_positive(now - halfway[:, best])
  ):
    return None
  return Verdict(
    'stretched',
    f'{int((changed > now).sum())} of {len(looks)} masks that were tried fit '
    f'better when {appearance.TURNED[best - num]}; on average they all do, so '
    'look at how masks are cut or resized',
  )


def _step(owners: Mapping[int, int]) -> tuple[int, int]:
  """Returns by how many places most masks are late, 0 for none; and how many.

  See `summarize`.
  """
  if len(owners) < MIN_PAIRS:
    return 0, 0
  steps, counts = np.unique(
    [owner - index for index, owner in owners.items()], return_counts=True
  )
  step, count = int(steps[counts.argmax()]), int(counts.max())
  return (step, count) if count > len(owners) / 2 else (0, 0)


def _out_of_step(owners: Mapping[int, int], looks: _Known) -> Verdict | None:
  """Masks belong to the images a constant number further on."""
  step, count = _step(owners)
  if not step:
    return None
  pairs = [(look.stepped, look.turned[0]) for look in looks]
  known = np.array([pair for pair in pairs if not math.isnan(pair[0])])
  if len(known) < MIN_PAIRS or not _is_better(*known.T):
    return None
  return Verdict(
    'shuffled',
    f'{count} of {len(owners)} images that were tried are fitted best by the '
    f'mask {abs(step)} {"after" if step > 0 else "before"} theirs in the order '
    'of the set: images and masks are out of step, look at their names',
  )


def _some_turned(fits: Sequence[alignment.Fit], total: int) -> Verdict | None:
  """One turn would fix a part of the pairs."""
  counts = collections.Counter(
    fit.best for fit in fits if alignment.is_suspicious(fit)
  )
  name = max((turn[0] for turn in alignment.TURNS), key=lambda n: counts[n])
  needed = max(
    _MIN_TURNED,
    _MIN_TURNED_SHARE * total,
    _MIN_TURNED_CAUSE * counts.total(),
  )
  if counts[name] < needed:
    return None
  return Verdict(
    'turned',
    f'{counts[name]} of {total} masks fit clearly better when {name}, the '
    'others do not; look at how these were made',
  )


def _is_off_center(scores: np.ndarray) -> bool:
  """Whether masks are off by less than the smallest distance that is tried."""
  first = 1 + len(alignment.TURNS)
  column = {move: first + i for i, move in enumerate(alignment.MOVES)}
  for x, y in ((1, 0), (0, 1)):
    ahead, behind = scores[:, column[x, y]], scores[:, column[-x, -y]]
    # The top of a parabola through the three means.
    bend = 2 * scores[:, 0].mean() - ahead.mean() - behind.mean()
    slope = ahead - behind
    certain = _is_positive(slope) or _is_positive(-slope)
    if certain and bend > 0 and abs(slope.mean() / 2 / bend) >= _MAX_OFFSET:
      return True
  return False


def _is_clearly_at(peak: _Place, maps: np.ndarray, looks: _Known) -> bool:
  """Whether masks fit clearly better, and far enough, where a peak is."""
  gain = maps[:, *peak] - maps[:, appearance.REACH, appearance.REACH]
  is_clear = gain.mean() > _MIN_EXPLAINED and _is_positive(gain)
  if not is_clear and not _is_positive(gain, _MIN_ERRORS_ALONE):
    return False
  share = np.divide(appearance.top(maps.mean(0), peak), appearance.SIDE)
  pixels = np.median([np.hypot(*(share * look.size)) for look in looks])
  return bool(pixels >= _MIN_PIXELS and np.hypot(*share) >= _MIN_SHARE)


def _moved(looks: _Known) -> Verdict | None:
  """Masks say more about their images when all are moved in one way."""
  maps = np.stack([look.moved for look in looks])
  mean, reach = maps.mean(0), appearance.REACH
  peak, highest = appearance.climb(mean), divmod(int(mean.argmax()), len(mean))
  if not _is_clearly_at(peak, maps, looks):
    # As they are they may be right, and only the objects beside stand out more:
    # then the way there leads through worse places.
    now = maps[:, reach, reach]
    worse = now - maps[:, *appearance.lowest_on_way(mean, highest)]
    is_apart = now.mean() > _MIN_PEAK * mean[highest] and _is_positive(worse)
    if is_apart or not _is_clearly_at(highest, maps, looks):
      return None
    peak = highest
  y, x = (100 * (place - reach) / appearance.SIDE for place in peak)
  words = alignment.move_in_words(x, y, '% of the side', '.1f')
  return Verdict(
    'moved',
    f'the {len(looks)} masks that were tried would fit better, on average, '
    f'when {words} (roughly); look at how masks are made or resized',
  )


def _gain_over_turns(scores: np.ndarray) -> float:
  """The share by which masks fit better than when flipped and turned."""
  wrong = scores[:, 1 : 1 + len(alignment.TURNS)].mean(1)
  return scores[:, 0].mean() / max(float(wrong.mean()), 1e-6) - 1


def _unfit(looks: _Known) -> Verdict | None:
  """Masks fit their images no better than those of other images do.

  If images and masks were shuffled, a pair's own mask would be one more of
  another image: the differences would be 0 but for chance.
  """
  pixels = np.array([look.turned[0] - look.others.mean() for look in looks])
  edges = np.array([look.edges for look in looks if not math.isnan(look.edges)])
  if _is_positive(pixels) or (len(edges) > 1 and _is_positive(edges)):
    return None
  return Verdict(
    'unfit',
    f'the {len(looks)} masks that were tried fit their images hardly better '
    'than masks of other images do: look at how they are paired',
  )
