"""Which differences between variants of a network are certain.

Each variant is trained with several seeds, and every network is scored on the
same images. Another test set and another training would have given other
scores, so both are drawn again, many times:

- The images with replacement, as many as there are (Efron and Tibshirani 1993,
  ch. 13). All networks get the same draw, which makes the differences paired:
  an image that is hard for all of them cancels.
- The trainings. A network's score is the sum of its variant's, an effect of its
  seed on all variants, and a deviation of its own. Seeds have an effect since
  variants with the same seed see the same batches, and parameters of the same
  name and shape begin alike; where all variants have the same seeds it cancels
  in their differences (a randomised block design: Montgomery, Design and
  Analysis of Experiments, ch. 4), and where networks are missing it is
  estimated by least squares. The standard deviation s of the rest is pooled
  over the P networks of V variants and S seeds, with P - V - S + 1 degrees of
  freedom. A draw adds s * t to each network, t being normal over the root of
  (the draw's chi-squared, divided by its degrees of freedom), as in Student's
  t. Without this, the luck of a seed would pass for an effect (Bouthillier et
  al. 2021, arXiv:2103.03098); drawing the networks themselves again would
  underestimate it: the mean of three varies less by a factor of sqrt(2 / 3).

Two refinements:

- Seeds may affect variants that share a value of a factor more than others:
  networks of one depth begin more alike. A difference that is averaged over
  other factors has therefore a deviation of its own: the scores are averaged
  for each value and seed, and the variation beyond value and seed is pooled,
  with (values - 1) * (seeds - 1) degrees of freedom.
- The trainings of some variants may vary more than others'. A variant whose own
  networks deviate more than s keeps its own deviation. Its networks are few, so
  this is rough: of a restless and a calm variant that are equal, one difference
  in seven is claimed with three seeds, and one in five with two, where one in
  twenty should be; of all differences of such a sweep together any is claimed
  in one of ten sweeps.

Drawing the levels one by one is Davison and Hinkley 1997, ch. 3.8. Variation of
network and image together is in both levels, so that intervals are up to
sqrt(2) too wide where nothing else varies: they err towards claiming nothing.
With one seed for each variant, and where variants share too few seeds to
estimate the seeds' effect, intervals are those of other images alone, and
nothing is certain.

Of m comparisons, intervals are percentiles at a level of 1 - 0.05 / m each
(Bonferroni), so that with 95 % confidence all of them hold at once; p-values
are corrected as Holm 1979 does.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.sweep.report.contrasts import Contrast
from unet_jax.evaluation import bootstrap as bootstrap_lib
from unet_jax.evaluation import confusion

LEVEL = 0.95
# Percentiles of fewer images are too narrow to conclude anything from.
MIN_IMAGES = 30
# Scores, and shares of a variance, that differ by no more are the same.
_ROUNDING = 1e-9
# Of the draws of averages' deviations: the same report each time.
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Draws:
  """Scores of V variants, and R draws of them."""

  # [V], means over seeds, as if all variants had all of them.
  scores: np.ndarray
  # [R, V]: the images are drawn again; images and trainings are.
  of_images: np.ndarray
  draws: np.ndarray
  # [V, S], the score with each seed, NaN where there is none.
  networks: np.ndarray
  # The standard deviation s, and its degrees of freedom; NaN and 0 if unknown.
  deviation: float
  freedom: int
  # Whether seeds' effects on all variants are subtracted from it.
  has_blocks: bool
  num_images: int

  @property
  def can_tell(self) -> bool:
    """Whether there are enough seeds and images to conclude from."""
    return self.freedom > 0 and self.num_images >= MIN_IMAGES


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A difference of scores with its simultaneous interval."""

  contrast: Contrast
  difference: float
  low: float
  high: float
  # Corrected for the number of comparisons.
  p: float
  # The interval excludes 0, p is below 0.05, and seeds and images are enough to
  # conclude from.
  is_certain: bool


def means_of_images(values: np.ndarray) -> np.ndarray:
  """Returns the input of `bootstrap` for a mean over images, [P, N, 1, 2].

  Scores are [P, N], of N images by P networks; NaN, where an image has none,
  does not count in the mean.
  """
  has_score = np.isfinite(values)
  return np.stack([np.where(has_score, values, 0), has_score], -1)[:, :, None]


def counts_of_images(
  iou: np.ndarray, in_mask: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
  """Returns the input of `bootstrap` for the dataset mIoU, from images' IoU.

  The pixels in both follow from IoU = both / (mask + prediction - both),
  exactly, since they are whole numbers.

  Args:
    iou: float [P, N, C], NaN of a class that is in neither.
    in_mask, predicted: pixels of each class, [P, N, C].

  Returns:
    float64 [P, N, C, 2]: pixels in both, and in either.
  """
  total, iou = in_mask + predicted, np.nan_to_num(iou)
  both = np.rint(iou * total / (1 + iou))
  return np.stack([both, total - both], -1)


def score(sums: np.ndarray) -> np.ndarray:
  """Returns the scores of sums [..., K, 2]: ratios, averaged over K."""
  return confusion.nanmean(confusion.ratio(sums[..., 0], sums[..., 1]), -1)


def bootstrap(
  of_images: np.ndarray,
  variant_of: Sequence[int],
  seed_of: Sequence[str],
  resamples: int,
  seed: int,
) -> Draws:
  """Draws images and trainings again, as described at the top of this file.

  Args:
    of_images: float64 [P, N, K, 2] of P networks and N images: the numerators
      and denominators that a score sums over images, divides, and averages
      over K. Each network has a score.
    variant_of, seed_of: of each network the index of its variant, 0 to V - 1,
      and the seed that it was trained with, [P].
    resamples: how many draws, R.
    seed: of the draws.
  """
  variants = np.asarray(variant_of)
  names, places = np.unique(seed_of, return_inverse=True)
  design, has_blocks = _design(variants, places)
  inverse = np.linalg.pinv(design)
  averaging = inverse[: variants.max() + 1]
  of_networks = score(of_images.sum(1))
  squares = (of_networks - design @ inverse @ of_networks) ** 2
  # The share of each network's variance that its square keeps; they add up to
  # the degrees of freedom.
  left = 1 - np.sum(design * inverse.T, 1)
  freedom = round(left.sum())
  spread = np.sqrt(squares.sum() / freedom) if freedom else float('nan')
  if not has_blocks and len(names) < len(variants):
    freedom, spread = 0, float('nan')
  networks = np.full((len(averaging), len(names)), np.nan)
  networks[variants, places] = of_networks
  rng = np.random.default_rng(seed)
  drawn = _draw_images(of_images, resamples, rng) @ averaging.T
  draws = drawn
  if freedom:
    of_variants = [np.bincount(variants, x)[variants] for x in (squares, left)]
    # Nothing is left of a variant with one seed, up to rounding.
    own = np.sqrt(of_variants[0] / np.maximum(of_variants[1], _ROUNDING))
    root = np.sqrt(rng.chisquare(freedom, (resamples, 1)) / freedom)
    normal = rng.standard_normal((resamples, len(variants)))
    draws = drawn + np.maximum(spread, own) * normal / root @ averaging.T
  return Draws(
    averaging @ of_networks,
    drawn,
    draws,
    networks,
    float(spread),
    freedom,
    has_blocks,
    of_images.shape[1],
  )


def _design(variants: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, bool]:
  """Returns the design matrix of the variants and seeds of networks, [P].

  Returns:
    (float64 [P, V + S - 1], true): the variants' columns, then those of the
    seeds, whose effects add up to 0; or (the variants' columns, false), where
    there is one seed, nothing is left to estimate deviations from, or seeds
    and variants are confounded.
  """
  of_variants = np.eye(variants.max() + 1)[variants]
  num_seeds = seeds.max() + 1
  of_seeds = (np.eye(num_seeds)[:, 1:] - np.eye(num_seeds)[:, :1])[seeds]
  design = np.hstack([of_variants, of_seeds])
  rank = np.linalg.matrix_rank(design)
  if num_seeds > 1 and design.shape[1] == rank < len(variants):
    return design, True
  return of_variants, False


def _draw_images(
  of_images: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
  """Returns the scores [R, P] of the networks on each draw of the images."""
  networks, count, *rest = of_images.shape
  table = np.moveaxis(of_images, 1, 0).reshape(count, -1)
  return np.concatenate(
    [
      score(sums.reshape(-1, networks, *rest))
      for sums in bootstrap_lib.resample(table, resamples, rng)
    ]
  )


def compare(
  draws: Draws, contrasts: Sequence[Contrast], cells: np.ndarray | None = None
) -> tuple[list[Comparison], float | None]:
  """Compares variants, corrected for the number of comparisons.

  Args:
    draws: see `bootstrap`.
    contrasts: the differences.
    cells: of a grid of two factors, whose interaction is one comparison more,
      see `interaction`; None for none.

  Returns:
    A comparison for each contrast, in their order, and the corrected p-value of
    the interaction, None without `cells`.
  """
  if not contrasts:
    return [], None
  weights = np.array([c.weights for c in contrasts]).T
  differences, drawn = draws.scores @ weights, draws.draws @ weights
  can_tell = np.full(len(contrasts), draws.can_tell)
  if draws.has_blocks:
    for i, (deviation, freedom) in _averages(draws, contrasts).items():
      drawn[:, i] = draws.of_images @ weights[:, i]
      can_tell[i] &= freedom > 0
      if freedom:
        t = np.random.default_rng(_SEED).standard_t(freedom, len(drawn))
        drawn[:, i] += deviation * t
  differences, drawn = (
    np.where(abs(x) > _ROUNDING, x, 0) for x in (differences, drawn)
  )
  # Two-sided; with the sample itself as a draw, none is 0.
  beyond = np.minimum((drawn <= 0).sum(0), (drawn >= 0).sum(0))
  single = np.minimum(2 * (beyond + 1) / (len(drawn) + 1), 1)
  p = holm([*single, *([] if cells is None else [interaction(draws, cells)])])
  tail = (1 - LEVEL) / 2 / len(p)
  low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
  excludes_0 = (low > 0) | (high < 0)
  certain = excludes_0 & (p[: len(contrasts)] < 1 - LEVEL) & can_tell
  columns = (differences, low, high, p[: len(contrasts)], certain)
  rows = zip(contrasts, *(column.tolist() for column in columns))
  comparisons = [Comparison(*row) for row in rows]
  return comparisons, None if cells is None else float(p[-1])


def _averages(
  draws: Draws, contrasts: Sequence[Contrast]
) -> dict[int, tuple[float, int]]:
  """Returns the deviation over seeds of differences that are averages.

  Returns:
    {place of a contrast: (standard deviation, degrees of freedom)}; 0 degrees
    where no two seeds trained all that is averaged.
  """
  found: dict[int, tuple[float, int]] = {}
  of_factors: dict[str, list[int]] = {}
  for i, contrast in enumerate(contrasts):
    if contrast.is_average:
      of_factors.setdefault(contrast.factor, []).append(i)
  for places in of_factors.values():
    weights = np.array([contrasts[i].weights for i in places])
    values = np.unique(np.concatenate([weights > 0, weights < 0]), axis=0)
    table = np.array([draws.networks[value].mean(0) for value in values])
    table = table[:, np.isfinite(table).all(0)]
    seeds, deviation = table.shape[1], float('nan')
    freedom = (len(table) - 1) * max(seeds - 1, 0)
    if freedom:
      rest = table - table.mean(1, keepdims=True)
      rest -= rest.mean(0)
      deviation = float(np.sqrt(2 * (rest**2).sum() / freedom / seeds))
    found.update(dict.fromkeys(places, (deviation, freedom)))
  return found


def holm(values: Sequence[float]) -> np.ndarray:
  """Returns p-values corrected for their number (Holm 1979)."""
  p = np.asarray(values, float)
  order = np.argsort(p)
  steps = p[order] * np.arange(len(p), 0, -1)
  corrected = np.empty(len(p))
  corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
  return corrected


def interaction(draws: Draws, cells: np.ndarray) -> float:
  """Returns the p-value of two factors' interaction.

  The null hypothesis: the effect of one is the same at each value of the other.
  The sum of squares that neither factor's means explain is compared with that
  of the draws around the scores, which have no interaction.

  Args:
    draws: see `bootstrap`.
    cells: the variant of each pair of values, [A, B].
  """

  def left(scores: np.ndarray) -> np.ndarray:
    table = scores[..., cells]
    table = table - table.mean(-1, keepdims=True)
    table = table - table.mean(-2, keepdims=True)
    return (table**2).sum((-1, -2))

  found = left(draws.scores)
  without = left(draws.draws - draws.scores)
  # Rounding alone makes no interaction.
  beyond = (without >= found - 1e-12).sum()
  return float((beyond + 1) / (len(without) + 1))
