"""The differences between variants that a sweep asks for."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Contrast:
  """A difference between variants: a field, its value, and another value."""

  factor: str
  values: tuple[str, str]
  # ((field, value), ...) that are held; () for a mean over all of them.
  others: tuple[tuple[str, str], ...]
  # Of the V variants' scores; the positive ones add up to 1, the others to -1.
  weights: tuple[float, ...]

  @property
  def is_average(self) -> bool:
    """Whether it is a mean over several differences."""
    return sum(w > 0 for w in self.weights) > 1


def is_number(value: str) -> bool:
  try:
    float(value)
  except ValueError:
    return False
  return True


def levels(
  factors: Sequence[str], variants: Sequence[Sequence[str]]
) -> dict[str, list[str]]:
  """Returns each factor's values: numbers by size, others as they occur."""
  result = {}
  for factor, column in zip(factors, zip(*variants)):
    values = list(dict.fromkeys(column))
    if all(map(is_number, values)):
      values.sort(key=float)
    result[factor] = values
  return result


def make_contrasts(
  factors: Sequence[str],
  variants: Sequence[Sequence[str]],
  baselines: Mapping[str, str],
) -> list[Contrast]:
  """Returns the differences that a sweep asks for.

  Numbers are compared with their lower neighbour, other values with a baseline:
  at each combination of the other factors, and, if all combinations exist, on
  average over them. Where several factors differ, and no difference exists at
  more than one combination of the others (cross-entropy, Dice, or both), all
  variants are compared with the first.

  Args:
    factors: names of the fields that differ.
    variants: their values of each variant.
    baselines: {factor: value}; the default is the first value.
  """
  if not is_grid(factors, variants):
    return _with_first(factors, variants)
  values, single, averaged = levels(factors, variants), [], []
  index = {tuple(v): i for i, v in enumerate(variants)}
  identity = np.eye(len(variants))
  for k, factor in enumerate(factors):
    others = list(dict.fromkeys((*v[:k], *v[k + 1 :]) for v in variants))
    names = [f for f in factors if f != factor]
    for pair in _pairs(values[factor], baselines.get(factor)):
      found = []
      for held in others:
        keys = [(*held[:k], value, *held[k:]) for value in pair]
        if all(key in index for key in keys):
          this, other = (index[key] for key in keys)
          weights = identity[this] - identity[other]
          found.append(weights)
          at = tuple(zip(names, held))
          single.append(Contrast(factor, pair, at, tuple(weights)))
      if len(found) == len(others) > 1:
        mean = tuple(np.mean(found, 0))
        averaged.append(Contrast(factor, pair, (), mean))
  return [*averaged, *single]


def is_grid(factors: Sequence[str], variants: Sequence[Sequence[str]]) -> bool:
  """Whether factors differ one by one, see `make_contrasts`."""
  counts: collections.Counter = collections.Counter()
  for pair in itertools.combinations(variants, 2):
    differing = [(k, *ab) for k, ab in enumerate(zip(*pair)) if len({*ab}) > 1]
    if len(differing) == 1:
      ((k, a, b),) = differing
      counts[k, frozenset((a, b))] += 1
  return len(factors) < 2 or max(counts.values(), default=0) > 1


def _pairs(values: list[str], baseline: str | None) -> list[tuple[str, str]]:
  if all(map(is_number, values)):
    return [(b, a) for a, b in itertools.pairwise(values)]
  if baseline not in values:
    baseline = values[0]
  return [(v, baseline) for v in values if v != baseline]


def _with_first(
  factors: Sequence[str], variants: Sequence[Sequence[str]]
) -> list[Contrast]:
  first, *rest = map(', '.join, variants)
  name, identity = ', '.join(factors), np.eye(len(variants))
  return [
    Contrast(name, (variant, first), (), tuple(weights - identity[0]))
    for variant, weights in zip(rest, identity[1:])
  ]


def full_grid(
  factors: Sequence[str], variants: Sequence[Sequence[str]]
) -> np.ndarray | None:
  """Returns the variants' indices [A, B] of two factors, or None."""
  if len(factors) != 2:
    return None
  rows, columns = levels(factors, variants).values()
  index = {tuple(v): i for i, v in enumerate(variants)}
  if len(index) < len(rows) * len(columns) or min(len(rows), len(columns)) < 2:
    return None
  return np.array([[index[a, b] for b in columns] for a in rows])
