"""The report of a sweep from made-up results, and what it may claim."""

import csv
import itertools
import json
import re
import shutil
import statistics as stdlib
import sys

import fake_sweep
import html_page
import numpy as np
import pytest
from PIL import Image

from experiments.sweep.report import (
  __main__,
  conclusions,
  examples,
  page,
  plots,
  setting,
  statistics,
)
from experiments.sweep.report import results as results_lib
from unet_jax import errors, metric_writer

_GRID = {'model.upsample': ('nearest', 'transpose'), 'model.depth': (2, 10)}
_DRAWS = 1000
_ALL = {*plots.NEEDS, 'quality_by_variant.png'}


def _effect(upsample, depth):
  return (0.06 if depth == 10 else 0) + 0 * len(upsample)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A sweep in which depth matters, one of whose points failed; its report."""
  directory = tmp_path_factory.mktemp('sweep')
  failed = ('upsample=nearest,depth=2,seed=1',)
  fake_sweep.write(directory, _GRID, 5, 40, _effect, failed=failed)
  conclusion = page.write(directory, resamples=_DRAWS)
  return directory, conclusion


@pytest.fixture
def sweep(whole, tmp_path):
  """A copy that a test may break."""
  shutil.copytree(whole[0], tmp_path / 'sweep')
  return tmp_path / 'sweep'


def _page(directory) -> html_page.Page:
  text = (directory / 'report.html').read_text(encoding='utf-8')
  page = html_page.Page(text)
  html_page.assert_self_contained(page, text)
  html_page.assert_pictures_are_named(page)
  return page


def _rows(path):
  with open(path, newline='') as f:
    return list(csv.DictReader(f))


def _rewrite(path, change):
  """Changes the rows of a table; those of which `change` says None go."""
  rows = [row for row in map(change, _rows(path)) if row is not None]
  metric_writer.write_csv(str(path), rows)


def _words(directory) -> str:
  return (directory / 'REPORT.md').read_text()


def test_both_reports_tell_the_same(whole):
  directory, conclusion = whole
  page, words = _page(directory), _words(directory)
  shown = page.text.replace('\N{NO-BREAK SPACE}', ' ')
  for text in (
    'Which upsampling, and how deep?',
    *conclusion,
    '4 variants, 4 to 5 seeds, evaluated on the same 40 images of test.',
    'Every network was trained for 600 steps; these are 1.84e+14 to 5.99e+14 '
    'FLOP, so that budgets differ in FLOP.',
    'The learning rate was tuned alike for each variant (0.001, 0.002; 60 steps'
    ' each, evaluated on a part of the training images): 0.001 for 2, 0.002 for'
    ' 2 of the 4 variants.',
    'The highest was the best for 2, where a still higher one may be better; '
    'the lowest was the best for 2, where a still lower one may be better.',
    'Points ran on different machines (device, cores, jobs: cpu, 10, 1; cpu, '
    '2, 1): their seconds and images/s cannot be compared.',
    'Variants have different seeds, of which these are the means as they are; '
    'differences, and the plots of quality against cost, make up for what a '
    'missing seed does to the others.',
    # 2 averages, 4 single differences and the interaction.
    '7 comparisons of each measure, by 1,000 draws.',
  ):
    assert text in shown and text in words, text
  for text in (
    'upsample=nearest,depth=2,seed=1',
    'failed: out of memory, 8 GiB',
  ):
    assert text in shown and text in words
  assert {p.name for p in (directory / 'figures').iterdir()} == _ALL
  assert len(page.of('image')) == len(_ALL)
  (drawn,) = page.panel(
    'Error near borders, 1 - boundary IoU: mean and standard deviation over '
    'seeds.'
  )
  with Image.open(directory / 'figures' / 'boundary_error.png') as picture:
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(picture))
  for name in _ALL:
    assert f'](figures/{name})' in words
    with Image.open(directory / 'figures' / name) as picture:
      assert picture.size[0] > 500
    assert (directory / 'figures' / name).stat().st_size < 200_000


def test_tables_are_those_of_results_csv(whole):
  directory, _ = whole
  rows = _rows(directory / 'results.csv')
  of = lambda name, upsample, depth: [
    float(row[name])
    for row in rows
    if (row['model.upsample'], row['model.depth']) == (upsample, depth)
  ]
  lines = [line.split(' | ') for line in _words(directory).splitlines()]
  for upsample, depth in itertools.product(
    ('nearest', 'transpose'), '2 10'.split()
  ):
    quality, cost = [
      line for line in lines if line[:2] == [f'| {upsample}', depth]
    ]
    assert quality[2] == str(len(of('seed', upsample, depth)))
    values = of('eval/image_miou', upsample, depth)
    mean, spread = stdlib.mean(values), stdlib.stdev(values)
    assert quality[3] == f'{mean:.4f} ± {spread:.4f}'
    values = of('parameters', upsample, depth)
    assert cost[3] == f'{values[0]:,.0f}'
  # Depth by its size.
  shown = [line[1] for line in lines if line[0] == '| nearest']
  assert shown == ['2', '10'] * 2


def test_rows_of_markdown_have_a_cell_for_each_column(whole):
  tables = re.findall(r'(?:^\|.*\n)+', _words(whole[0]), re.MULTILINE)
  assert len(tables) == 5
  for table in tables:
    assert len({line.count('|') for line in table.splitlines()}) == 1


def test_what_is_certain_is_claimed_and_stands_out(whole):
  directory, conclusion = whole
  found = re.match(
    r'On average over upsample, image mean IoU is (0\.\d+) higher '
    r'\((0\.\d+) to (0\.\d+)\) with depth 10 than with 2\.$',
    conclusion[0],
  )
  difference, low, high = map(float, found.groups())
  assert 0 < low < difference < high
  # Independently: what variants and seeds add up to, by least squares, since
  # one of the networks is missing.
  rows = _rows(directory / 'results.csv')
  grid = [(u, d) for u in ('nearest', 'transpose') for d in ('2', '10')]
  coding = [
    [(row['model.upsample'], row['model.depth']) == v for v in grid]
    + [row['seed'] == seed for seed in '1234']
    for row in rows
  ]
  scores = [float(row['eval/image_miou']) for row in rows]
  found, *_ = np.linalg.lstsq(np.array(coding, float), scores)
  expected = (found[1] - found[0] + found[3] - found[2]) / 2
  assert difference == pytest.approx(expected, abs=1e-4)
  # Two single ones of depth, whose difference the row says too.
  assert conclusion[1:] == [
    '2 single differences more in the tables; of 3 others nothing can be said.',
    'This is of 19 of 20 points: 1 is skipped, 1 of them failed.',
  ]
  flagged = _page(directory).of('tr', **{'class': 'flag'})
  assert len(flagged) == 3
  bold = [line for line in _words(directory).splitlines() if '**10 ag' in line]
  assert len(bold) == 3 and '**all, averaged**' in bold[0]


def _conclude(directory, **options) -> tuple[list[str], conclusions.Analysis]:
  fake_sweep.write(directory, **options)
  results = results_lib.read(directory)
  analysis = conclusions.analyse(results, _DRAWS)[0]
  return conclusions.conclude(results, analysis), analysis


def test_nothing_is_claimed_where_nothing_differs(tmp_path):
  said, analysis = _conclude(tmp_path, grid=_GRID, effect=lambda **_: 0)
  assert said == [
    'With 3 seeds of each variant and 40 images nothing can be said: of 6 '
    'differences in image mean IoU there is none whose interval excludes 0, '
    'corrected for their number.'
  ]
  assert analysis.interaction > 0.05


@pytest.mark.parametrize(
  'seeds,images,why',
  [
    (1, 40, 'how much a training varies is not known'),
    (3, 29, 'an interval takes at least 30 images'),
  ],
)
def test_nothing_is_claimed_of_too_few(seeds, images, why, tmp_path):
  said, _ = _conclude(
    tmp_path, grid=_GRID, seeds=seeds, images=images, effect=_effect
  )
  plural = '' if seeds == 1 else 's'
  assert said == [
    f'With {seeds} seed{plural} of each variant and {images} images nothing '
    f'can be said of the differences: {why}.'
  ]


def test_single_differences_are_claimed_where_there_are_no_averages(tmp_path):
  effect = lambda skip: {'concat': 0, 'add': 0, 'none': -0.2}[skip]
  grid = {'model.skip': ('none', 'concat', 'add')}
  said, _ = _conclude(tmp_path, grid=grid, effect=effect)
  assert re.fullmatch(
    r'Image mean IoU is 0\.\d+ lower \(.*\) with skip none than with concat\.',
    said[0],
  )
  assert said[1:] == ['Of 1 others nothing can be said.']


def test_an_interaction_warns_of_averages(tmp_path):
  effect = lambda upsample, depth: (
    0.15 if (upsample, depth) == ('nearest', 10) else 0
  )
  said, analysis = _conclude(tmp_path, grid=_GRID, effect=effect)
  assert analysis.interaction < 0.05
  assert any(
    s.startswith('How much upsample matters depends on depth') for s in said
  )


def test_one_variant_has_nothing_to_compare(tmp_path):
  fake_sweep.write(tmp_path, {'model.depth': (2,)}, 2, 20)
  said = page.write(tmp_path, 'Only one.\n\nMore.', resamples=10)
  assert said == ['There is one variant, and nothing to compare it with.']
  page = _page(tmp_path)
  assert 'Only one.' in page.texts and 'More.' not in page.text
  assert 'Effect of' not in page.text


def test_a_report_of_little(sweep):
  """Neither costs, nor curves, nor pixels, nor sweep.json."""
  keep = ('point', 'seed', 'model.upsample', 'model.depth', 'eval/image_miou')
  _rewrite(sweep / 'results.csv', lambda row: {k: row[k] for k in keep})
  for folder in (sweep / 'points').iterdir():
    (folder / 'metrics.jsonl').unlink()
    (folder / 'eval.json').unlink()
    _rewrite(
      folder / 'eval.csv', lambda r: {k: r[k] for k in ('image', 'miou')}
    )
  for name in ('sweep.json', 'failures.csv'):
    (sweep / name).unlink()
  shutil.rmtree(sweep / 'figures')
  said = page.write(sweep, resamples=_DRAWS)
  assert 'with depth 10 than with 2' in said[0]
  words = _words(sweep)
  assert {p.name for p in (sweep / 'figures').iterdir()} == {
    'quality_by_variant.png'
  }
  for name in plots.NEEDS:
    assert f'Skipped, for lack of metrics: {name[:-4]} (' in words
  assert 'dataset mean IoU' not in words and '### Cost' not in words
  assert 'steps' not in words and words.startswith('# Sweep\n')
  assert 'upsample=nearest,depth=2,seed=1' not in words
  _page(sweep)


def test_points_that_cannot_be_used_are_named(sweep):
  points = sweep / 'points'
  _rewrite(
    points / 'upsample=transpose,depth=2,seed=0' / 'eval.csv',
    lambda row: {**row, 'image': 'other.png'},
  )
  (points / 'upsample=transpose,depth=2,seed=1' / 'eval.csv').unlink()
  _rewrite(
    points / 'upsample=transpose,depth=10,seed=2' / 'eval.csv',
    lambda row: {**row, 'miou': ''},
  )
  _rewrite(
    sweep / 'results.csv',
    lambda row: row if 'depth=10,seed=0' not in row['point'] else None,
  )
  results = results_lib.read(sweep)
  assert results.skipped == {
    'upsample=nearest,depth=2,seed=1': 'failed: out of memory, 8 GiB',
    'upsample=nearest,depth=10,seed=0': 'not finished',
    'upsample=transpose,depth=10,seed=0': 'not finished',
    'upsample=transpose,depth=2,seed=0': (
      'evaluated on other images than the points before it'
    ),
    'upsample=transpose,depth=2,seed=1': 'it has no eval.csv',
    'upsample=transpose,depth=10,seed=2': (
      'no image has a score in its eval.csv'
    ),
  }
  assert [len(points) for points in results.points] == [4, 4, 3, 3]
  assert setting.describe(results)[-2] == (
    '4 variants, 3 to 4 seeds, evaluated on the same 40 images of test.'
  )


def test_what_is_told_of_every_point_is_no_factor(sweep):
  """Tuned learning rates and steps differ, but nobody asked for them."""
  for about in ('with', 'without'):
    if about == 'without':
      (sweep / 'sweep.json').unlink()
    results = results_lib.read(sweep)
    assert results.factors == ('model.upsample', 'model.depth')
    assert results.variants == list(
      itertools.product(('nearest', 'transpose'), ('2', '10'))
    )


def test_fields_are_named_as_in_the_names_of_points(sweep):
  results = results_lib.read(sweep)
  assert results.short == {
    'model.upsample': 'upsample',
    'model.depth': 'depth',
    'seed': 'seed',
  }
  # A field with one value is no factor, but it takes part in the names.
  path = sweep / 'sweep.json'
  about = json.loads(path.read_text())
  about['fields'].append('suggest.depth')
  path.write_text(json.dumps(about))
  results = results_lib.read(sweep)
  assert results.factors == ('model.upsample', 'model.depth')
  assert [results.short[f] for f in results.factors] == [
    'upsample',
    'model.depth',
  ]


def test_weights_that_are_alone_or_together_keep_the_order_of_the_file(
  tmp_path,
):
  """So that the first, cross-entropy, is what others are compared with."""
  grid = {'loss.weights.cross_entropy': (1, 0), 'loss.weights.dice': (0, 1)}
  neither = [f'cross_entropy=0,dice=0,seed={seed}' for seed in (0, 1)]
  fake_sweep.write(
    tmp_path, grid, 2, 40, lambda cross_entropy, dice: 0.0, failed=neither
  )
  results = results_lib.read(tmp_path)
  assert results.variants == [('1', '0'), ('1', '1'), ('0', '1')]
  asked = conclusions.analyse(results, _DRAWS)[0].comparisons
  assert [c.contrast.values for c in asked] == [
    ('1, 1', '1, 0'),
    ('0, 1', '1, 0'),
  ]


def test_no_results(tmp_path):
  with pytest.raises(errors.UserError, match='results.csv is not there; name'):
    results_lib.read(tmp_path)
  metric_writer.write_csv(str(tmp_path / 'results.csv'), [])
  with pytest.raises(errors.UserError, match='no point .* no rows.*run the sw'):
    results_lib.read(tmp_path)


def test_the_command_prints_one_line_of_a_mistake(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(sys, 'argv', ['report', str(tmp_path)])
  monkeypatch.setattr(errors, 'leave', lambda line, code: sys.exit(line))
  with pytest.raises(SystemExit, match='^error: .*results.csv is not there'):
    __main__.main()


@pytest.mark.parametrize(
  'steps,text',
  [
    ({2: 600, 10: 600}, 'for 600 steps; these are .* differ in FLOP'),
    # In proportion to the FLOP of a step, 4 to 1.6.
    ({2: 1000, 10: 400}, r'for 400 to 1,000 steps, of \S+ FLOP each within 3%'),
    (
      {2: 600, 10: 500},
      'for 500 to 600 steps, of .*: budgets are equal in nei',
    ),
  ],
)
def test_budgets(steps, text, tmp_path):
  fake_sweep.write(tmp_path, {'model.depth': (2, 10)}, 2, 12)
  results = results_lib.read(tmp_path)
  for (depth,), points in zip(results.variants, results.points):
    for point in points:
      point.evaluation['step'] = steps[int(depth)]
  assert re.search(text, setting.describe(results)[0])


def test_what_is_certain_of_other_measures_has_a_mark(tmp_path):
  effect = lambda depth: 0.2 if depth == 10 else 0.0
  fake_sweep.write(tmp_path, {'model.depth': (2, 10)}, 4, 40, effect)
  page.write(tmp_path, resamples=_DRAWS)
  analyses = conclusions.analyse(results_lib.read(tmp_path), _DRAWS)
  certain = [c.is_certain for a in analyses[1:] for c in a.comparisons]
  assert 0 < sum(certain) < len(certain)
  words = _words(tmp_path)
  assert words.count(' †') == sum(certain) and '\n† The interval' in words


@pytest.mark.parametrize(
  'machine,told',
  [
    (
      ('cpu', '1', '2'),
      [
        'Each point ran on cpu with 1 core, 2 at once: they '
        'disturb one another, so that seconds and images/s are rough.'
      ],
    ),
    (
      ('NVIDIA H100', '16', '1'),
      ['Each point ran on NVIDIA H100 with 16 cores, one at a time.'],
    ),
    (('', '', ''), []),
  ],
)
def test_what_the_points_ran_on(machine, told, tmp_path):
  fake_sweep.write(tmp_path, {'model.depth': (2, 10)}, 2, 12)
  results = results_lib.read(tmp_path)
  for points in results.points:
    for point in points:
      point.row.update(zip(('device', 'cores', 'jobs'), machine))
  assert setting.describe(results)[4:] == told


@pytest.mark.parametrize(
  'values,chosen,told',
  [
    ((1e-3, 2e-3, 4e-3), ('0.002', '0.002'), ['0.002 for all.']),
    (
      (1e-3, 2e-3, 4e-3),
      ('0.002', '0.004'),
      [
        '0.002 for 1, 0.004 for 1 of the 2 variants.',
        'The highest was the best for 1, where a still higher one may be '
        'better.',
      ],
    ),
    (
      ('adamw', 'sgd'),
      ('sgd', 'adamw'),
      ['adamw for 1, sgd for 1 of the 2 variants.'],
    ),
  ],
)
def test_what_was_tuned(values, chosen, told, tmp_path):
  fake_sweep.write(tmp_path, {'model.depth': (2, 10)}, 2, 12)
  results = results_lib.read(tmp_path)
  tune = {'field': 'optimizer.x', 'values': values, 'steps': 60}
  results.about['begun']['TUNE'] = tune
  for points, value in zip(results.points, chosen):
    for point in points:
      point.row['optimizer.x'] = value
  _, first, *rest, _, _ = setting.describe(results)
  assert [first.split('): ')[1], *rest] == told


def test_dataset_scores_of_rows_are_those_of_the_evaluation(whole):
  results = results_lib.read(whole[0])
  for measure, name in (
    ('dataset_miou', 'eval/dataset_miou'),
    ('image_miou', 'eval/image_miou'),
  ):
    actual = statistics.score(results.measures()[measure].sum(1))
    expected = np.concatenate(results.metric(name))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_pareto_front_is_what_nothing_beats():
  rng = np.random.default_rng(0)
  for _ in range(20):
    cost, quality = rng.integers(0, 6, (2, 12)).astype(float)
    cost[3], quality[4] = np.nan, np.nan
    beaten = lambda i: any(
      cost[j] <= cost[i]
      and quality[j] >= quality[i]
      and (cost[j] < cost[i] or quality[j] > quality[i])
      for j in range(12)
    )
    front = plots.pareto_front(cost, quality)
    expected = {
      (cost[i], quality[i])
      for i in range(12)
      if not beaten(i) and np.isfinite(cost[i] + quality[i])
    }
    assert {(cost[i], quality[i]) for i in front} == expected
    assert sorted(cost[front]) == list(cost[front])


def test_means_and_deviations_leave_out_what_is_not_there():
  nan = float('nan')
  mean, spread = plots.means_and_deviations(
    [np.array([1, 3, nan]), np.array([4.0]), np.array([nan])]
  )
  np.testing.assert_array_equal(mean, [2, 4, nan])
  np.testing.assert_allclose(spread, [2**0.5, nan, nan])


def test_sizes_of_objects(sweep):
  results = results_lib.read(sweep)
  columns = results.points[0][0].columns
  counted = {n: columns[f'pixels/{n}'] for n in fake_sweep.NAMES}
  total = sum(counted.values())
  # What the evaluation scored as one, pet and border, is the foreground.
  inside = counted['pet'] + counted['border']
  np.testing.assert_allclose(plots.object_sizes(results), inside / total)
  del columns['iou/pet+border']
  np.testing.assert_allclose(plots.object_sizes(results), inside / total)
  columns['pixels/pet'][2] = columns['pixels/border'][2] = 0
  sizes = plots.object_sizes(results)
  assert np.isnan(sizes[2]) and np.isfinite(sizes).sum() == 39


def test_names_are_text(tmp_path):
  # Matplotlib's font has no such cat.
  hostile = html_page.HOSTILE.replace('猫', '|$x_$')
  fake_sweep.write(tmp_path, {'model.skip': ('add', 'none')}, 2, 20)
  change = lambda row: {
    **row,
    'model.skip': hostile if row['model.skip'] == 'add' else 'none',
  }
  _rewrite(tmp_path / 'results.csv', change)
  page.write(tmp_path, hostile, resamples=20)
  assert _page(tmp_path).texts.count(hostile) >= 4
  words = _words(tmp_path)
  assert '<script' not in words and hostile not in words
  (effect,) = [
    line for line in words.splitlines() if '| ' in line and ' against ' in line
  ]
  assert len(re.findall(r'(?<!\\)\|', effect)) == 10


class _Segmenter:
  """Of network k: the class k % 3 everywhere."""

  def __init__(self, folder):
    self.folder = folder

    class Config:
      class eval:
        split = ''

      class data:
        eval_split = 'test'

    self.config = Config

  def __call__(self, images):
    depth = int(re.search(r'depth=(\d+)', self.folder)[1])
    return np.eye(3)[np.full(images.shape[:3], depth % 3)]


def test_examples(sweep, monkeypatch):
  results = results_lib.read(sweep)
  miou = results.stack(['miou'])[..., 0].mean(0)
  chosen = examples.choose(results)
  ranks = [int((miou < miou[i]).sum()) for i in chosen]
  assert ranks == [4, 20, 35]  # Of 39: 3.9, 19.5 (to even) and 35.1.
  dataset = [
    {
      'image': np.full((6, 8, 3), i, np.uint8),
      'mask': np.full((6, 8), i % 3, np.uint8),
    }
    for i in range(40)
  ]
  monkeypatch.setattr('unet_jax.load', _Segmenter)
  monkeypatch.setattr(
    'unet_jax.data.prepare.prepare', lambda config, split: dataset
  )
  examples.save(sweep, results)
  files = sorted((sweep / 'examples').iterdir())
  # The first network that there is of each variant.
  assert [f.name for f in files] == [
    'upsample=nearest,depth=10,seed=0.npz',
    'upsample=nearest,depth=2,seed=0.npz',
    'upsample=transpose,depth=10,seed=0.npz',
    'upsample=transpose,depth=2,seed=0.npz',
  ]
  with np.load(files[1]) as saved:
    assert list(saved['name']) == [f'image_{i:03}.jpg' for i in chosen]
    np.testing.assert_array_equal(saved['image'][:, 0, 0, 0], chosen)
    np.testing.assert_array_equal(
      saved['mask'][:, 0, 0], [i % 3 for i in chosen]
    )
    assert (saved['prediction'] == 2).all()
    assert saved['prediction'].dtype == np.uint8
  drawn = examples.draw(sweep, results, sweep / 'figures')
  assert list(drawn) == [f'predictions_{i}.png' for i in range(3)]
  assert drawn['predictions_0.png'].startswith(f'image_{chosen[0]:03}.jpg: ')
  assert (sweep / 'figures' / 'predictions_2.png').exists()
  # What is there is kept.
  with monkeypatch.context() as patch:
    patch.setattr('unet_jax.load', None)
    examples.save(sweep, results)
  # Unless other images are chosen now.
  monkeypatch.setattr(examples, '_PERCENTILES', (20,))
  assert not examples.draw(sweep, results, sweep / 'figures')
  examples.save(sweep, results)
  assert list(examples.draw(sweep, results, sweep / 'figures')) == [
    'predictions_0.png'
  ]
