"""Sentences on budget, tuning, seeds and machines of a sweep."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.sweep import tables
from experiments.sweep.report import contrasts
from experiments.sweep.report.results import Results
from unet_jax.reports import html

# Relative difference up to which steps times FLOP of a step count as equal.
_EQUAL = 0.03


def describe(results: Results) -> list[str]:
  """Returns sentences on budget, tuning, seeds and machines."""
  return [
    *_budget(results),
    *_tuning(results),
    _seeds(results),
    *_machines(results),
  ]


def _budget(results: Results) -> list[str]:
  """Says whether steps or FLOP were equal, as far as either is known."""
  steps = [point.evaluation.get('step') for point in results.networks]
  known = [step for step in steps if step is not None]
  if not known:
    return []
  low, high = min(known), max(known)
  text = f'Every network was trained for {low:,} steps'
  if low < high:
    text = f'Networks were trained for {low:,} to {high:,} steps'
  flops = np.concatenate(results.metric('train_flops'))
  totals = np.array([np.nan if s is None else s for s in steps]) * flops
  if not np.isfinite(totals).all() or not totals.min():
    return [f'{text}.']
  if totals.max() / totals.min() - 1 < _EQUAL:
    return [f'{text}, of {totals.mean():.3g} FLOP each within {_EQUAL:.0%}.']
  flop = f'{totals.min():.3g} to {totals.max():.3g} FLOP'
  if low == high:
    return [f'{text}; these are {flop}, so that budgets differ in FLOP.']
  return [f'{text}, of {flop}: budgets are equal in neither.']


def _tuning(results: Results) -> list[str]:
  field, tune = results.tuned_field, results.tune
  chosen = [
    {point.row.get(field, '') for point in points} - {''}
    for points in results.points
  ]
  values = set[str]().union(*chosen)
  if not values:
    return []
  name = field.rpartition('.')[2].replace('_', ' ')
  how = f'The {name} was not tuned' if results.about else f'The {name}'
  if tune:
    how = (
      f'The {name} was tuned alike for each variant '
      f'({", ".join(map(_show, tune["values"]))}; {tune["steps"]:,} steps '
      'each, evaluated on a part of the training images)'
    )
  if len(values) == 1:
    return [f'{how}: {_show(*values)} for all.', *_ends(tune, chosen)]
  is_numeric = all(map(contrasts.is_number, values))
  counts = ', '.join(
    f'{_show(value)} for {sum(value in c for c in chosen)}'
    for value in sorted(values, key=float if is_numeric else None)
  )
  text = f'{how}: {counts} of the {len(chosen)} variants.'
  return [text, *_ends(tune, chosen)]


def _ends(tune: dict[str, Any], chosen: list[set[str]]) -> list[str]:
  """Warns of variants whose best value is the highest or lowest tried."""
  tried = [str(value) for value in tune.get('values', ())]
  if len(tried) < 2 or not all(map(contrasts.is_number, tried)):
    return []
  numbers, warnings = list(map(float, tried)), []
  for end, word in ((max(numbers), 'high'), (min(numbers), 'low')):
    count = sum(end in map(float, values) for values in chosen)
    if count:
      warnings.append(
        f'the {word}est was the best for {count}, where a still {word}er one '
        'may be better'
      )
  return [sentence('; '.join(warnings))] if warnings else []


def _show(value: Any) -> str:
  text = str(value)
  return f'{float(text):g}' if contrasts.is_number(text) else text


def _seeds(results: Results) -> str:
  seeds = [[point.seed for point in points] for points in results.points]
  text = f'{number_range([len(s) for s in seeds])} seeds'
  if all(sorted(s) == sorted(seeds[0]) for s in seeds):
    text = f'seeds {", ".join(seeds[0])} of each'
  split, *others = {p.evaluation.get('split') for p in results.networks}
  of = '' if split is None or others else f' of {split}'
  return (
    f'{html.plural(len(seeds), "variant")}, {text}, evaluated on the same '
    f'{html.plural(len(results.images), "image")}{of}.'
  )


def _machines(results: Results) -> list[str]:
  """Names the machines of the points, as far as they are recorded."""
  found = {
    tuple(point.row.get(name) or '' for name in tables.MACHINE)
    for point in results.networks
  }
  # An older version did not record them.
  found = {machine for machine in found if all(machine)}
  if not found:
    return []
  if len(found) > 1:
    machines = '; '.join(', '.join(machine) for machine in sorted(found))
    return [
      f'Points ran on different machines ({", ".join(tables.MACHINE)}: '
      f'{machines}): their seconds and images/s cannot be compared.'
    ]
  ((device, cores, jobs),) = found
  text = f'Each point ran on {device} with {html.plural(int(cores), "core")}'
  if jobs == '1':
    return [f'{text}, one at a time.']
  return [
    f'{text}, {jobs} at once: they disturb one another, so that seconds and '
    'images/s are rough.'
  ]


def number_range(numbers: Sequence[int]) -> str:
  low, high = min(numbers), max(numbers)
  return f'{low}' if low == high else f'{low} to {high}'


def sentence(text: str) -> str:
  return f'{text[0].upper()}{text[1:]}.'
