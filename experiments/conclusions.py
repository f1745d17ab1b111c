"""What a sweep's results say in words: what was held equal, and what differs.

A sentence claims a difference only where statistics.py is certain of it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import collect, contrasts, statistics
from experiments import results as results_lib
from unet_jax import glossary
from unet_jax import report_parts as parts

# Draws of the bootstrap: about ten lie beyond the limits of the interval of one
# of forty comparisons.
RESAMPLES = 20000
_SEED = 0
# With what the values of a field that are no numbers are compared; of other
# fields with the first that the sweep has.
BASELINES = {
  'model.upsample': 'transpose',
  'model.skip': 'concat',
  'model.norm': 'batch',
}
# Claims of single variants that are told in the conclusion.
_MOST_CLAIMS = 3
# Steps times FLOP of a step that differ by less, of 1, are called equal.
_EQUAL = 0.03


@dataclasses.dataclass(frozen=True)
class Analysis:
  """The statistics of one measure.

  Attributes:
    measure: its name, such as `image_miou`.
    draws: of the variants.
    comparisons: what the sweep asks for.
    interaction: p-value of two factors' interaction, None if there is no grid.
  """

  measure: str
  draws: statistics.Draws
  comparisons: list[statistics.Comparison]
  interaction: float | None

  @property
  def num_tests(self) -> int:
    return len(self.comparisons) + (self.interaction is not None)


def analyse(
  results: results_lib.Results, resamples: int = RESAMPLES
) -> list[Analysis]:
  """Returns the statistics of each measure; conclude from the first alone."""
  asked = contrasts.make_contrasts(results.factors, results.variants, BASELINES)
  cells = contrasts.full_grid(results.factors, results.variants)
  analyses = []
  for measure, of_images in results.measures().items():
    draws = statistics.bootstrap(
      of_images, results.variant_indices(), results.seeds(), resamples, _SEED
    )
    compared = statistics.compare(draws, asked, cells)
    analyses.append(Analysis(measure, draws, *compared))
  return analyses


def title(measure: str) -> str:
  """Returns what a measure is called: `image_miou` is 'image mean IoU'."""
  entry, reduction = glossary.find(measure)
  _, _, name = measure.partition('/')
  return f'{reduction} {entry.title}{name and ", "}{name}'.strip()


def conclude(results: results_lib.Results, analysis: Analysis) -> list[str]:
  """Returns a sentence or two; they claim what is certain, or that nothing is.

  Args:
    results: the sweep.
    analysis: of the measure that is concluded from.
  """
  return [*_verdict(results, analysis), *_left_out(results)]


def _left_out(results: results_lib.Results) -> list[str]:
  """A warning of a sweep that is not whole."""
  if not results.left_out:
    return []
  count = len(results.left_out)
  total = count + sum(map(len, results.points))
  failed = sum(why.startswith('failed') for why in results.left_out.values())
  return [
    f'This is of {total - count} of {parts.plural(total, "point")}: {count} '
    f'{"is" if count == 1 else "are"} left out, {failed} of them failed.'
  ]


def _verdict(results, analysis: Analysis) -> list[str]:
  draws, seeds = analysis.draws, [len(points) for points in results.points]
  if not analysis.comparisons:
    return ['There is one variant, and nothing to compare it with.']
  given = (
    f'{_range(seeds)} seed{"" if max(seeds) == 1 else "s"} of each variant and '
    f'{parts.plural(draws.num_images, "image")}'
  )
  if not draws.can_tell:
    why = (
      'how much a training varies is not known'
      if not draws.freedom
      else f'an interval takes at least {statistics.MIN_IMAGES} images'
    )
    return [f'With {given} nothing can be said of the differences: {why}.']
  certain = [c for c in analysis.comparisons if c.is_certain]
  what = title(analysis.measure)
  if not certain:
    count = parts.plural(len(analysis.comparisons), 'difference')
    sentence = (
      f'With {given} nothing can be said: of {count} in {what} there is none '
      'whose interval excludes 0, corrected for their number.'
    )
    return [sentence, *_interaction(results, analysis)]
  averages = [c for c in certain if c.contrast.is_average]
  largest = sorted(certain, key=lambda c: -abs(c.difference))[:_MOST_CLAIMS]
  told = averages or largest
  rest, unknown = (
    len(certain) - len(told),
    len(analysis.comparisons) - len(certain),
  )
  last = []
  if rest:
    last.append(f'{parts.plural(rest, "single difference")} more in the tables')
  if unknown:
    last.append(f'of {unknown} others nothing can be said')
  return [
    *_claims(told, results, what),
    *_interaction(results, analysis),
    *([_sentence('; '.join(last))] if last else []),
  ]


def _claims(told, results, what: str) -> list[str]:
  """Returns a sentence for each factor that makes a difference."""
  short, sentences = results.short, []
  for factor, places in by_factor(told).items():
    fields = factor.split(', ')
    others = [short[f] for f in results.factors if f not in fields]
    name = ', '.join(short[f] for f in fields)
    lead = ''
    if others and not told[places[0]].contrast.others:
      lead = f'on average over {" and ".join(others)}, '
    claims = ', '.join(_claim(told[i], name, short) for i in places)
    sentences.append(_sentence(f'{lead}{what} is {claims}'))
  return sentences


def _claim(c: statistics.Comparison, name: str, short) -> str:
  this, other = c.contrast.values
  low, high = sorted((abs(c.low), abs(c.high)))
  held = ''.join(f', {short[f]} {v}' for f, v in c.contrast.others)
  return (
    f'{abs(c.difference):.4f} {"higher" if c.difference > 0 else "lower"} '
    f'({low:.4f} to {high:.4f}) with {name} {this} than with {other}{held}'
  )


def _sentence(text: str) -> str:
  return f'{text[0].upper()}{text[1:]}.'


def _interaction(results, analysis: Analysis) -> list[str]:
  """A warning of averages that hide something, where that is certain."""
  p = analysis.interaction
  if p is None or p >= 1 - statistics.LEVEL:
    return []
  short = results.short
  a, b = (short[f] for f in results.factors)
  return [
    f'How much {a} matters depends on {b} (interaction, p = {show_p(p)}): look '
    'at the single differences, not at averages alone.'
  ]


def show_p(p: float) -> str:
  return '< 0.001' if p < 0.001 else f'{p:.3f}'


def held_equal(results: results_lib.Results) -> list[str]:
  """Returns sentences on what was alike in all variants, and what was not."""
  steps = {p.evaluation.get('step') for ps in results.points for p in ps}
  return [
    *_budget(results, steps - {None}),
    *_tuning(results),
    _seeds(results),
    *_machines(results),
  ]


def _budget(results, steps: set) -> list[str]:
  """Whether steps or FLOP were equal, as far as either is known."""
  if not steps:
    return []
  low, high = min(steps), max(steps)
  text = f'Every network was trained for {low:,} steps'
  if low < high:
    text = f'Networks were trained for {low:,} to {high:,} steps'
  totals = np.array(
    [
      p.evaluation.get('step', np.nan) * p.figure('train_flops')
      for points in results.points
      for p in points
    ]
  )
  if not np.isfinite(totals).all() or not totals.min():
    return [f'{text}.']
  if totals.max() / totals.min() - 1 < _EQUAL:
    return [f'{text}, of {totals.mean():.3g} FLOP each within {_EQUAL:.0%}.']
  flop = f'{totals.min():.3g} to {totals.max():.3g} FLOP'
  if low == high:
    return [f'{text}; these are {flop}, so that budgets differ in FLOP.']
  return [f'{text}, of {flop}: budgets are equal in neither.']


def _tuning(results) -> list[str]:
  field = results_lib.tuned_field(results.about)
  chosen = [
    {p.row.get(field, '') for p in points} - {''} for points in results.points
  ]
  values = set().union(*chosen)
  if not values:
    return []
  name = field.rpartition('.')[2].replace('_', ' ')
  tune = results.about.get('begun', {}).get('TUNE')
  if tune:
    how = (
      f'The {name} was tuned alike for each variant '
      f'({", ".join(map(_show, tune["values"]))}; {tune["steps"]:,} steps '
      'each, evaluated on a part of the training images)'
    )
  else:
    how = f'The {name} was not tuned' if results.about else f'The {name}'
  if len(values) == 1:
    counts = f'{_show(*values)} for all'
  else:
    is_numeric = all(map(contrasts.is_number, values))
    counts = ', '.join(
      f'{_show(v)} for {sum(v in c for c in chosen)}'
      for v in sorted(values, key=float if is_numeric else None)
    )
    counts += f' of the {len(chosen)} variants'
  return [f'{how}: {counts}.', *_ends(tune, chosen)]


def _ends(tune: dict | None, chosen: list[set[str]]) -> list[str]:
  """A warning of variants whose best value is the last that was tried."""
  tried = [str(v) for v in tune['values']] if tune else []
  if len(tried) < 2 or not all(map(contrasts.is_number, tried)):
    return []
  numbers, told = list(map(float, tried)), []
  for end, word in ((max(numbers), 'high'), (min(numbers), 'low')):
    count = sum(end in map(float, values) for values in chosen)
    if count:
      told.append(
        f'the {word}est was the best for {count}, where a still {word}er one '
        'may be better'
      )
  return [_sentence('; '.join(told))] if told else []


def _show(value: Any) -> str:
  text = str(value)
  return f'{float(text):g}' if contrasts.is_number(text) else text


def _seeds(results) -> str:
  seeds = [[p.seed for p in points] for points in results.points]
  split = {p.evaluation.get('split') for ps in results.points for p in ps}
  of = f' of {min(split)}' if len(split) == 1 and None not in split else ''
  same = all(sorted(s) == sorted(seeds[0]) for s in seeds)
  text = (
    f'seeds {", ".join(seeds[0])} of each'
    if same
    else f'{_range([len(s) for s in seeds])} seeds'
  )
  return (
    f'{parts.plural(len(seeds), "variant")}, {text}, evaluated on the same '
    f'{parts.plural(len(results.images), "image")}{of}.'
  )


def _machines(results) -> list[str]:
  """What the points ran on, as far as it is known."""
  found = {
    tuple(p.row.get(name) or '' for name in collect.MACHINE)
    for points in results.points
    for p in points
  }
  # Where an older version did not record it.
  found = {machine for machine in found if all(machine)}
  if not found:
    return []
  if len(found) > 1:
    told = '; '.join(', '.join(machine) for machine in sorted(found))
    return [
      f'Points ran on different machines ({", ".join(collect.MACHINE)}: '
      f'{told}): their seconds and images/s cannot be compared.'
    ]
  ((device, cores, jobs),) = found
  text = f'Each point ran on {device} with {parts.plural(int(cores), "core")}'
  if jobs == '1':
    return [f'{text}, one at a time.']
  return [
    f'{text}, {jobs} at once: they disturb one another, so that seconds and '
    'images/s are rough.'
  ]


def _range(numbers: Sequence[int]) -> str:
  low, high = min(numbers), max(numbers)
  return f'{low}' if low == high else f'{low} to {high}'


def by_factor(
  comparisons: Sequence[statistics.Comparison],
) -> dict[str, list[int]]:
  """Returns the places of comparisons by what differs, in their order."""
  found = {}
  for i, comparison in enumerate(comparisons):
    found.setdefault(comparison.contrast.factor, []).append(i)
  return found
