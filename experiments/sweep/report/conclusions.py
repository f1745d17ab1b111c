"""The conclusion of a sweep, in words.

A sentence claims a difference only where statistics.py is certain of it.
"""

import dataclasses
from collections.abc import Sequence

from experiments.sweep.report import contrasts, statistics
from experiments.sweep.report.results import Results
from experiments.sweep.report.setting import number_range, sentence
from experiments.sweep.report.statistics import Comparison
from unet_jax.evaluation import glossary
from unet_jax.reports import html

# Draws of the bootstrap: about ten lie beyond the limits of the interval of one
# of forty comparisons.
RESAMPLES = 20000
_SEED = 0
# Baseline value of each categorical field; other fields use the sweep's first
# value.
BASELINES = {
  'model.upsample': 'transpose',
  'model.skip': 'concat',
  'model.norm': 'batch',
}
# Most single differences that the conclusion names.
_MOST_CLAIMS = 3


@dataclasses.dataclass(frozen=True)
class Analysis:
  """The statistics of one measure, such as `image_miou`."""

  measure: str
  draws: statistics.Draws
  comparisons: list[Comparison]
  # The p-value of two factors' interaction, None if there is no grid.
  interaction: float | None

  @property
  def title(self) -> str:
    return title(self.measure)

  @property
  def num_tests(self) -> int:
    return len(self.comparisons) + (self.interaction is not None)


def analyse(results: Results, resamples: int = RESAMPLES) -> list[Analysis]:
  """Returns the statistics of each measure; conclude from the first alone."""
  asked = contrasts.make_contrasts(results.factors, results.variants, BASELINES)
  cells = contrasts.full_grid(results.factors, results.variants)
  networks = results.variant_indices(), [p.seed for p in results.networks]
  analyses = []
  for measure, of_images in results.measures().items():
    draws = statistics.bootstrap(of_images, *networks, resamples, _SEED)
    compared = statistics.compare(draws, asked, cells)
    analyses.append(Analysis(measure, draws, *compared))
  return analyses


def title(measure: str) -> str:
  """Returns a measure's name in print: 'image mean IoU' for `image_miou`."""
  found = glossary.find(measure)
  if found is None:
    return measure
  entry, reduction = found
  _, _, name = measure.partition('/')
  return f'{reduction} {entry.title}{name and ", "}{name}'.strip()


def conclude(results: Results, analysis: Analysis) -> list[str]:
  """Returns a few sentences that claim what is certain, or that nothing is."""
  sentences = _verdict(results, analysis)
  if results.skipped:
    count, done = len(results.skipped), len(results.networks)
    failed = sum(r.startswith('failed') for r in results.skipped.values())
    sentences.append(
      f'This is of {done} of {html.plural(count + done, "point")}: {count} '
      f'{"is" if count == 1 else "are"} skipped, {failed} of them failed.'
    )
  return sentences


def _verdict(results: Results, analysis: Analysis) -> list[str]:
  draws, comparisons = analysis.draws, analysis.comparisons
  if not comparisons:
    return ['There is one variant, and nothing to compare it with.']
  seeds = [len(points) for points in results.points]
  given = (
    f'{number_range(seeds)} seed{"" if max(seeds) == 1 else "s"} of each '
    f'variant and {html.plural(draws.num_images, "image")}'
  )
  if not draws.can_tell:
    reason = (
      f'an interval takes at least {statistics.MIN_IMAGES} images'
      if draws.freedom
      else 'how much a training varies is not known'
    )
    return [f'With {given} nothing can be said of the differences: {reason}.']
  certain = [c for c in comparisons if c.is_certain]
  if not certain:
    count = html.plural(len(comparisons), 'difference')
    text = (
      f'With {given} nothing can be said: of {count} in {analysis.title} there '
      'is none whose interval excludes 0, corrected for their number.'
    )
    return [text, *_interaction(results, analysis)]
  largest = sorted(certain, key=lambda c: -abs(c.difference))[:_MOST_CLAIMS]
  named = [c for c in certain if c.contrast.is_average] or largest
  last = []
  if rest := len(certain) - len(named):
    last.append(f'{html.plural(rest, "single difference")} more in the tables')
  if unknown := len(comparisons) - len(certain):
    last.append(f'of {unknown} others nothing can be said')
  return [
    *_claims(named, results, analysis.title),
    *_interaction(results, analysis),
    *([sentence('; '.join(last))] if last else []),
  ]


def _claims(
  named: Sequence[Comparison], results: Results, what: str
) -> list[str]:
  """Returns a sentence for each factor that makes a difference."""
  short, sentences = results.short, []
  for factor, places in by_factor(named).items():
    fields = factor.split(', ')
    others = [short[f] for f in results.factors if f not in fields]
    name = ', '.join(short[f] for f in fields)
    lead = ''
    if others and not named[places[0]].contrast.others:
      lead = f'on average over {" and ".join(others)}, '
    claims = ', '.join(_claim(named[i], name, short) for i in places)
    sentences.append(sentence(f'{lead}{what} is {claims}'))
  return sentences


def _claim(c: Comparison, name: str, short: dict[str, str]) -> str:
  this, other = c.contrast.values
  low, high = sorted((abs(c.low), abs(c.high)))
  held = ''.join(f', {short[f]} {v}' for f, v in c.contrast.others)
  return (
    f'{abs(c.difference):.4f} {"higher" if c.difference > 0 else "lower"} '
    f'({low:.4f} to {high:.4f}) with {name} {this} than with {other}{held}'
  )


def _interaction(results: Results, analysis: Analysis) -> list[str]:
  """Warns of averages that hide something, where that is certain."""
  p = analysis.interaction
  if p is None or p >= 1 - statistics.LEVEL:
    return []
  a, b = (results.short[f] for f in results.factors)
  return [
    f'How much {a} matters depends on {b} (interaction, p = {show_p(p)}): look '
    'at the single differences, not at averages alone.'
  ]


def show_p(p: float) -> str:
  return '< 0.001' if p < 0.001 else f'{p:.3f}'


def by_factor(comparisons: Sequence[Comparison]) -> dict[str, list[int]]:
  """Returns the places of the comparisons of each factor, in their order."""
  found: dict[str, list[int]] = {}
  for i, comparison in enumerate(comparisons):
    found.setdefault(comparison.contrast.factor, []).append(i)
  return found
