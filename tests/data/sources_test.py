"""Tests of unet_jax/data/sources.py: folds."""

import re

import numpy as np
import pytest

from tests.data import helpers
from tests.data.value_pairs import error, make, values, write, write_pairs
from unet_jax.data import sources


@pytest.mark.parametrize('holdout', ['random', 'last'])
@pytest.mark.parametrize('seed', [0, 7])
def test_folds_are_a_partition(holdout, seed):
  config = helpers.make_config(seed=seed, holdout=holdout)
  for count in (2, 3, 10, 11, 64):
    for num_folds in range(2, min(count, 12) + 1):
      config.data.num_folds = num_folds
      folds = sources.cut_folds(count, config)
      assert len(folds) == num_folds
      assert sorted(i for fold in folds for i in fold) == list(range(count))
      sizes = [len(fold) for fold in folds]
      assert max(sizes) - min(sizes) <= 1
      for fold in folds:
        assert list(fold) == sorted(fold)
        if holdout == 'last':
          assert list(fold) == list(range(fold[0], fold[-1] + 1))
  assert holdout == 'last' or folds[0].tolist() != list(range(len(folds[0])))


@pytest.mark.parametrize('num_folds', [2, 5])
def test_folds_cover_groups_in_any_order(num_folds):
  """Folders p1, p10, p2, ... of examples whose names are in natural order."""
  config = helpers.make_config(holdout='folder', num_folds=num_folds)
  groups = np.repeat([0, 2, 3, 4, 5, 6, 7, 8, 9, 1], 3)
  folds = sources.cut_folds(30, config, groups)
  assert sorted(np.concatenate(folds).tolist()) == list(range(30))
  whole = [set(groups[fold].tolist()) for fold in folds]
  assert sum(map(len, whole)) == 10


def test_folds_depend_on_the_seed_where_they_are_random():
  cut = lambda seed: sources.cut_folds(
    40, helpers.make_config(seed=seed, num_folds=4)
  )[0].tolist()
  assert cut(0) == cut(0) != cut(1)


def _assert_folds(make, everything):
  """That the folds of `make(split, fold)`, of all values, are right."""
  names = lambda source: [source.read(i)['name'] for i in range(len(source))]
  evaluated, fingerprints = [], set()
  for i in range(3):
    train, fold = make('train', i), make('auto', i)
    assert (train.split, fold.split) == ('train', f'fold_{i}')
    assert train.held_out and fold.held_out
    assert sorted(names(train) + names(fold)) == sorted(everything)
    assert names(fold) == [fold[j]['name'] for j in range(len(fold))]
    evaluated += names(fold)
    # Another one is evaluated on by its name.
    for other in range(3):
      assert names(make(f'fold_{i}', other)) == names(fold)
    fingerprints |= {str(train.fingerprint), str(fold.fingerprint)}
  assert sorted(evaluated) == sorted(everything)
  assert len(fingerprints) == 6


@pytest.mark.parametrize('layout', ['flat', 'folders', 'lists'])
@pytest.mark.parametrize('holdout', ['random', 'last'])
def test_folds_of_a_folder(tmp_path, layout, holdout):
  stems = [f'p{i}' for i in range(11)]
  folder = tmp_path / 'train' if layout == 'folders' else tmp_path
  write_pairs(folder, stems)
  if layout == 'folders':
    write_pairs(tmp_path / 'val', ['v1', 'v2'], start=50)
  elif layout == 'lists':
    write_pairs(tmp_path, ['v1', 'v2'], start=50)
    (tmp_path / 'train.txt').write_text('\n'.join(stems))
    (tmp_path / 'val.txt').write_text('v2\nv1\n')
  find = lambda split, fold: make(
    tmp_path, split, num_folds=3, fold=fold, holdout=holdout
  )
  _assert_folds(find, [str(folder / f'images/{stem}.png') for stem in stems])
  if holdout == 'last':  # In the order of the names, p10 after p9.
    assert values(find('auto', 2)) == [8, 9, 10]
    assert values(find('train', 1)) == [0, 1, 2, 3, 8, 9, 10]
  if layout == 'flat':  # Nothing is held out but the folds.
    assert error(tmp_path, 'val', num_folds=3) == (
      f"{tmp_path} has no split 'val'; it has train"
    )
  else:
    assert sorted(values(find('val', 0))) == [50, 51]


def test_folds_of_shapes():
  find = lambda split, fold: sources.make_source(
    helpers.make_config(
      num_train=8, num_eval=3, num_folds=3, image_size=(8, 8), fold=fold
    ),
    split,
  )
  _assert_folds(find, [f'train shape {i}' for i in range(8)])
  assert len(find('test', 1)) == 3 and find('test', 1).split == 'test'


def test_more_folds_than_examples(tmp_path):
  write_pairs(tmp_path, ['a', 'b', 'c'])
  assert len(make(tmp_path, 'train', num_folds=3)) == 2
  assert error(tmp_path, num_folds=4) == (
    '--config.data.num_folds=4: the 3 example(s) of train cannot be cut into '
    'that many; at most 3'
  )


def test_unpaired_files_of_a_folder_with_folds_are_collected(tmp_path):
  write_pairs(tmp_path, ['a', 'b', 'c', 'd'])
  (tmp_path / 'masks/b.png').unlink()
  for split, count in (('train', 2), ('auto', 1)):
    problems = []
    assert len(make(tmp_path, split, problems, num_folds=3)) == count
    assert [p.kind for p in problems] == ['unpaired']


@pytest.mark.parametrize(
  'layout', ['images/{0}', '{0}/images', 'archive/{0}/images']
)
@pytest.mark.parametrize('folds', [0, 4])
def test_folders_of_patients_are_held_out_whole(tmp_path, layout, folds):
  """Else slices of one patient are trained on and evaluated."""
  for i in range(24):
    for kind in ('images', 'masks'):
      place = layout.replace('images', kind).format(f'p{i % 8}')
      write(tmp_path / place / f's{i}.png', i)
  for holdout in ('random', 'folder'):
    problems: list = []
    fields = {'num_folds': folds, 'val_fraction': 0.25, 'holdout': holdout}
    trained, held_out = (
      {int(re.search(r'p(\d)', s.read(i)['name'])[1]) for i in range(len(s))}
      for s in (
        make(tmp_path, split, problems, **fields) for split in ('train', 'auto')
      )
    )
    said = [p.message for p in problems if p.kind == 'shared folders']
    if holdout == 'folder':
      assert len(trained) == 6 and len(held_out) == 2 and not said
      assert not trained & held_out
    else:
      shared = len(trained & held_out)
      (message,) = said
      assert message.startswith(f'{shared} folder(s) have images both in')
