"""The report of a sweep from made-up results."""

import itertools
import operator
import pathlib
import re
import shutil
import statistics as stdlib
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.sweep import folder as folders
from experiments.sweep.report import __main__ as command
from experiments.sweep.report import page as page_lib
from experiments.sweep.report import plots, results, sections
from tests import html_page
from tests.experiments.sweep.report import fake_sweep
from unet_jax.runtime import errors

_ROOT = pathlib.Path(__file__).resolve().parents[4]
_ALL = {*plots.NEEDS, 'quality_by_variant.png'}


def _page(directory) -> html_page.Page:
  text = (directory / 'report.html').read_text(encoding='utf-8')
  page = html_page.Page(text)
  html_page.assert_self_contained(page, text)
  html_page.assert_pictures_are_named(page)
  return page


def _words(directory) -> str:
  return (directory / 'REPORT.md').read_text()


def test_both_reports_say_the_same(whole):
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
    'upsample=nearest,depth=2,seed=1',
    'failed: out of memory, 8 GiB',
  ):
    assert text in shown and text in words, text
  folder = directory / 'figures'
  assert {path.name for path in folder.iterdir()} == _ALL
  assert len(page.of('image')) == len(_ALL)
  (drawn,) = page.panel(
    'Error near borders, 1 - boundary IoU: mean and standard deviation over '
    'seeds.'
  )
  with Image.open(folder / 'boundary_error.png') as picture:
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(picture))
  for name in _ALL:
    assert f'](figures/{name})' in words
    with Image.open(folder / name) as picture:
      assert picture.size[0] > 500
    assert (folder / name).stat().st_size < 200_000


def test_tables_are_those_of_results_csv(whole):
  directory, _ = whole
  rows = folders.read_csv(directory / 'results.csv')
  lines = [line.split(' | ') for line in _words(directory).splitlines()]
  for variant in itertools.product(('nearest', 'transpose'), ('2', '10')):
    fields = operator.itemgetter('model.upsample', 'model.depth')
    of = lambda name: [float(r[name]) for r in rows if fields(r) == variant]
    head = [f'| {variant[0]}', variant[1]]
    quality, cost = [line for line in lines if line[:2] == head]
    assert quality[2] == str(len(of('seed')))
    values = of('eval/image_miou')
    mean, spread = stdlib.mean(values), stdlib.stdev(values)
    assert quality[3] == f'{mean:.4f} ± {spread:.4f}'
    assert cost[3] == f'{of("parameters")[0]:,.0f}'
  # Depth by its size.
  shown = [line[1] for line in lines if line[0] == '| nearest']
  assert shown == ['2', '10'] * 2


def test_the_committed_report_has_the_tables_of_its_results():
  directory = _ROOT / 'experiments/upsampling_depth'
  rows = folders.read_csv(directory / 'results.csv')
  fields = ('model.upsample', 'model.depth')
  values = operator.itemgetter(*fields)
  variants = list(dict.fromkeys(map(values, rows)))
  # As in eval.csv, from which the names of the classes come.
  columns = dict.fromkeys(f'pixels/{n}' for n in fake_sweep.NAMES)
  point = lambda row: results.Point(row['point'], row, [], columns, {}, [])
  of = lambda v: [point(row) for row in rows if values(row) == v]
  sweep = results.Results(fields, variants, list(map(of, variants)), {}, {})
  words = _words(directory)
  for table in sections.variants_of(sweep).tables:
    assert page_lib._markdown_table(table) in words
  assert sections._HOW in words


def test_rows_of_markdown_have_a_cell_for_each_column(whole):
  tables = re.findall(r'(?:^\|.*\n)+', _words(whole[0]), re.MULTILINE)
  assert len(tables) == 5
  for table in tables:
    assert len({line.count('|') for line in table.splitlines()}) == 1


def test_certain_differences_are_claimed_and_stand_out(whole):
  directory, conclusion = whole
  found = re.match(
    r'On average over upsample, image mean IoU is (0\.\d+) higher '
    r'\((0\.\d+) to (0\.\d+)\) with depth 10 than with 2\.$',
    conclusion[0],
  )
  difference, low, high = map(float, found.groups())
  assert 0 < low < difference < high
  # Independently: the sum of effects of variants and seeds, by least squares,
  # since one of the networks is missing.
  rows = folders.read_csv(directory / 'results.csv')
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
  # Two single ones of depth, whose difference the row has too.
  assert conclusion[1:] == [
    '2 single differences more in the tables; of 3 others nothing can be said.',
    'This is of 19 of 20 points: 1 is skipped, 1 of them failed.',
  ]
  assert len(_page(directory).of('tr', **{'class': 'flag'})) == 3
  bold = [line for line in _words(directory).splitlines() if '**10 ag' in line]
  assert len(bold) == 3 and '**all, averaged**' in bold[0]


def test_one_variant_has_nothing_to_compare(tmp_path):
  fake_sweep.write(tmp_path, {'model.depth': (2,)}, 2, 20)
  said = page_lib.write(tmp_path, 'Only one.\n\nMore.', resamples=10)
  assert said == ['There is one variant, and nothing to compare it with.']
  page = _page(tmp_path)
  assert 'Only one.' in page.texts and 'More.' not in page.text
  assert 'Effect of' not in page.text


def test_a_report_of_little(sweep):
  """Neither costs, nor curves, nor pixels, nor sweep.json."""
  keep = ('point', 'seed', 'model.upsample', 'model.depth', 'eval/image_miou')
  only = lambda names: lambda row: {name: row[name] for name in names}
  fake_sweep.rewrite(sweep / 'results.csv', only(keep))
  for folder in (sweep / 'points').iterdir():
    (folder / 'metrics.jsonl').unlink()
    (folder / 'eval.json').unlink()
    fake_sweep.rewrite(folder / 'eval.csv', only(('image', 'miou')))
  for name in ('sweep.json', 'failures.csv'):
    (sweep / name).unlink()
  shutil.rmtree(sweep / 'figures')
  said = page_lib.write(sweep, resamples=fake_sweep.DRAWS)
  assert 'with depth 10 than with 2' in said[0]
  words = _words(sweep)
  drawn = {path.name for path in (sweep / 'figures').iterdir()}
  assert drawn == {'quality_by_variant.png'}
  for name in plots.NEEDS:
    assert f'Skipped, for lack of metrics: {name[:-4]} (' in words
  assert words.startswith('# Sweep\n')
  names = 'dataset mean IoU', '### Cost', 'steps', 'depth=2,seed=1'
  assert not [name for name in names if name in words]
  _page(sweep)


def test_the_command_prints_one_line_of_a_mistake(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['report', str(tmp_path)])
  monkeypatch.setattr(errors, 'exit_with', lambda line, code: sys.exit(line))
  with pytest.raises(SystemExit, match='^error: .*results.csv is not there'):
    command.main()


def test_names_are_text(tmp_path):
  # Matplotlib's font has no such cat.
  hostile = html_page.HOSTILE.replace('猫', '|$x_$')
  fake_sweep.write(tmp_path, {'model.skip': ('add', 'none')}, 2, 20)
  skip = lambda row: hostile if row['model.skip'] == 'add' else 'none'
  change = lambda row: {**row, 'model.skip': skip(row)}
  fake_sweep.rewrite(tmp_path / 'results.csv', change)
  page_lib.write(tmp_path, hostile, resamples=20)
  assert _page(tmp_path).texts.count(hostile) >= 4
  words = _words(tmp_path)
  assert '<script' not in words and hostile not in words
  (effect,) = re.findall(r'^.*\| .* against .*$', words, re.MULTILINE)
  assert len(re.findall(r'(?<!\\)\|', effect)) == 10
