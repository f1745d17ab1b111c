"""A sweep's tables and folders, as the report reads them."""

import itertools
import json

import numpy as np
import pytest

from experiments.sweep.report import conclusions, results, setting, statistics
from tests.experiments.sweep.report import fake_sweep
from unet_jax.runtime import errors, whole_files


def test_points_that_cannot_be_used_are_named(sweep):
  of_point = lambda values: (
    sweep / 'points' / f'upsample=transpose,{values}' / 'eval.csv'
  )
  other = lambda row: {**row, 'image': 'other.png'}
  fake_sweep.rewrite(of_point('depth=2,seed=0'), other)
  of_point('depth=2,seed=1').unlink()
  no_score = lambda row: {**row, 'miou': ''}
  fake_sweep.rewrite(of_point('depth=10,seed=2'), no_score)
  fake_sweep.rewrite(
    sweep / 'results.csv',
    lambda row: row if 'depth=10,seed=0' not in row['point'] else None,
  )
  found = results.read(sweep)
  assert found.skipped == {
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
  assert [len(points) for points in found.points] == [4, 4, 3, 3]
  assert setting.describe(found)[-2] == (
    '4 variants, 3 to 4 seeds, evaluated on the same 40 images of test.'
  )


def test_fields_that_every_point_reports_are_no_factors(sweep):
  """Tuned learning rates and steps differ, but nobody asked for them."""
  for is_there in (True, False):
    if not is_there:
      (sweep / 'sweep.json').unlink()
    found = results.read(sweep)
    assert found.factors == ('model.upsample', 'model.depth')
    grid = itertools.product(('nearest', 'transpose'), ('2', '10'))
    assert found.variants == list(grid)


def test_fields_are_named_as_in_the_names_of_points(sweep):
  names = {'model.upsample': 'upsample', 'model.depth': 'depth', 'seed': 'seed'}
  assert results.read(sweep).short == names
  # A field with one value is no factor, but it takes part in the names.
  path = sweep / 'sweep.json'
  about = json.loads(path.read_text())
  about['fields'].append('suggest.depth')
  path.write_text(json.dumps(about))
  found = results.read(sweep)
  assert found.factors == ('model.upsample', 'model.depth')
  assert [found.short[f] for f in found.factors] == ['upsample', 'model.depth']


def test_weights_alone_or_together_keep_the_order_of_the_file(tmp_path):
  """So that all others are compared with the first, cross-entropy."""
  grid = {'loss.weights.cross_entropy': (1, 0), 'loss.weights.dice': (0, 1)}
  neither = [f'cross_entropy=0,dice=0,seed={seed}' for seed in (0, 1)]
  fake_sweep.write(tmp_path, grid, 2, 40, failed=neither)
  found = results.read(tmp_path)
  assert found.variants == [('1', '0'), ('1', '1'), ('0', '1')]
  asked = conclusions.analyse(found, fake_sweep.DRAWS)[0].comparisons
  pairs = [c.contrast.values for c in asked]
  assert pairs == [('1, 1', '1, 0'), ('0, 1', '1, 0')]


def test_no_results(tmp_path):
  with pytest.raises(errors.UserError, match='results.csv is not there; name'):
    results.read(tmp_path)
  whole_files.write_csv(str(tmp_path / 'results.csv'), [])
  with pytest.raises(errors.UserError, match='no point .* no rows.*run the sw'):
    results.read(tmp_path)


def test_dataset_scores_of_rows_are_those_of_the_evaluation(whole):
  found = results.read(whole[0])
  for measure in ('dataset_miou', 'image_miou'):
    actual = statistics.score(found.measures()[measure].sum(1))
    expected = np.concatenate(found.metric(f'eval/{measure}'))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
