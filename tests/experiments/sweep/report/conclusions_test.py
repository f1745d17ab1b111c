"""What a report claims, and what it says of the setting, on made-up results."""

import re

import pytest

from experiments.sweep.report import conclusions, page, results, setting
from tests.experiments.sweep.report import fake_sweep

_DEPTHS = {'model.depth': (2, 10)}


def _conclude(directory, **options) -> tuple[list[str], conclusions.Analysis]:
  fake_sweep.write(directory, **options)
  sweep = results.read(directory)
  analysis = conclusions.analyse(sweep, fake_sweep.DRAWS)[0]
  return conclusions.conclude(sweep, analysis), analysis


def test_nothing_is_claimed_where_nothing_differs(tmp_path):
  said, analysis = _conclude(tmp_path, grid=fake_sweep.GRID)
  assert said == [
    'With 3 seeds of each variant and 40 images nothing can be said: of 6 '
    'differences in image mean IoU there is none whose interval excludes 0, '
    'corrected for their number.'
  ]
  assert analysis.interaction > 0.05


@pytest.mark.parametrize(
  'seeds, images, given, why',
  [
    (1, 40, '1 seed', 'how much a training varies is not known'),
    (3, 29, '3 seeds', 'an interval takes at least 30 images'),
  ],
)
def test_nothing_is_claimed_of_too_few(seeds, images, given, why, tmp_path):
  sizes = {'seeds': seeds, 'images': images}
  effect = fake_sweep.depth_matters
  said, _ = _conclude(tmp_path, grid=fake_sweep.GRID, effect=effect, **sizes)
  assert said == [
    f'With {given} of each variant and {images} images nothing can be said of '
    f'the differences: {why}.'
  ]


def test_single_differences_are_claimed_where_there_are_no_averages(tmp_path):
  effect = lambda skip: -0.2 if skip == 'none' else 0
  grid = {'model.skip': ('none', 'concat', 'add')}
  said, _ = _conclude(tmp_path, grid=grid, effect=effect)
  assert re.fullmatch(
    r'Image mean IoU is 0\.\d+ lower \(.*\) with skip none than with concat\.',
    said[0],
  )
  assert said[1:] == ['Of 1 others nothing can be said.']


def test_an_interaction_warns_of_averages(tmp_path):
  effect = lambda upsample, depth: 0.15 * ((upsample, depth) == ('nearest', 10))
  said, analysis = _conclude(tmp_path, grid=fake_sweep.GRID, effect=effect)
  assert analysis.interaction < 0.05
  warning = 'How much upsample matters depends on depth'
  assert any(text.startswith(warning) for text in said)


def test_certain_differences_of_other_measures_have_a_mark(tmp_path):
  effect = lambda depth: 0.2 if depth == 10 else 0.0
  fake_sweep.write(tmp_path, _DEPTHS, 4, 40, effect)
  page.write(tmp_path, resamples=fake_sweep.DRAWS)
  analyses = conclusions.analyse(results.read(tmp_path), fake_sweep.DRAWS)
  certain = [c.is_certain for a in analyses[1:] for c in a.comparisons]
  assert 0 < sum(certain) < len(certain)
  words = (tmp_path / 'REPORT.md').read_text()
  assert words.count(' †') == sum(certain) and '\n† The interval' in words


@pytest.fixture(scope='module')
def depths(tmp_path_factory):
  """The folder of a sweep of two depths with two seeds."""
  directory = tmp_path_factory.mktemp('depths')
  fake_sweep.write(directory, _DEPTHS, 2, 12)
  return directory


def test_budgets(depths):
  sweep = results.read(depths)
  for steps, text in (
    ((600, 600), 'for 600 steps; these are .* differ in FLOP'),
    # In proportion to the FLOP of a step, 4 to 1.6.
    ((1000, 400), r'for 400 to 1,000 steps, of \S+ FLOP each within 3%'),
    ((600, 500), 'for 500 to 600 steps, of .*: budgets are equal in nei'),
  ):
    for point in sweep.networks:
      point.evaluation['step'] = steps[point.row['model.depth'] == '10']
    assert re.search(text, setting.describe(sweep)[0])


def test_machines_of_the_points(depths):
  sweep = results.read(depths)
  two = (
    'Each point ran on cpu with 1 core, 2 at once: they disturb one another, '
    'so that seconds and images/s are rough.'
  )
  one = 'Each point ran on NVIDIA H100 with 16 cores, one at a time.'
  for machine, sentences in (
    (('cpu', '1', '2'), [two]),
    (('NVIDIA H100', '16', '1'), [one]),
    (('', '', ''), []),
  ):
    for point in sweep.networks:
      point.row.update(zip(('device', 'cores', 'jobs'), machine))
    assert setting.describe(sweep)[4:] == sentences


_RATES, _KINDS = (1e-3, 2e-3, 4e-3), ('adamw', 'sgd')
_TWO_RATES = '0.002 for 1, 0.004 for 1 of the 2 variants.'
_HIGHEST = (
  'The highest was the best for 1, where a still higher one may be better.'
)


@pytest.mark.parametrize(
  'values, chosen, sentences',
  [
    (_RATES, '0.002 0.002', ['0.002 for all.']),
    (_RATES, '0.002 0.004', [_TWO_RATES, _HIGHEST]),
    (_KINDS, 'sgd adamw', ['adamw for 1, sgd for 1 of the 2 variants.']),
  ],
)
def test_tuned_values(values, chosen, sentences, depths):
  sweep = results.read(depths)
  tune = {'field': 'optimizer.x', 'values': values, 'steps': 60}
  sweep.about['begun']['TUNE'] = tune
  for points, value in zip(sweep.points, chosen.split()):
    for point in points:
      point.row['optimizer.x'] = value
  _, first, *rest, _, _ = setting.describe(sweep)
  assert [first.split('): ')[1], *rest] == sentences
