"""The whole mode, on folders."""

import json
import math
from unittest import mock

import jax
import numpy as np
import pytest

from tests import folders
from unet_jax import inspect_data, train
from unet_jax.config import checks
from unet_jax.models import unet
from unet_jax.runtime import errors


def make_config(root, tmp_path, **data):
  config = folders.make_config(root, **data)
  config.data.update(batch_size=8, cache_dir=str(tmp_path / 'cache'))
  config.model.update(depth=1, base_features=2)
  return config


def write_splits(root):
  folders.write_pairs(root / 'train', folders.make_pairs(9))
  folders.write_pairs(root / 'val', folders.make_pairs(3, start=50))


def read_report(tmp_path):
  return json.loads((tmp_path / 'run/inspect.json').read_text())


def read_suggested(tmp_path):
  namespace = {}
  exec((tmp_path / 'run/suggested.py').read_text(), namespace)
  return namespace['get_config']()


def test_a_good_set(tmp_path, capsys):
  write_splits(tmp_path / 'data')
  config = make_config(tmp_path / 'data', tmp_path, suggest=True)
  config.model.update(padding='valid')
  config.loss.weights.dice = 0.5
  inspect_data.run(config, str(tmp_path / 'run'))
  report = read_report(tmp_path)
  assert report['counts']['error'] == 0
  train = report['splits']['train']
  assert train['num_examples'] == 9
  assert train['sizes'] == [[40, 48, 9]]
  assert [c['images'] for c in train['classes']] == [9, 9]
  assert sum(c['pixels'] for c in train['classes']) == 9 * 40 * 48
  assert [c['instances'] for c in train['classes']] == [9, 9]
  network = report['network']
  assert network['input'] == [32, 32, 3]
  assert network['output'] == network['mask'] == [16, 16]
  assert network['error'] is None and network['grad_norm'] > 0
  # Cross-entropy of equal classes, and half of about a half of Dice.
  assert math.log(2) + 0.1 < network['expected_loss'] < math.log(2) + 0.4
  assert set(network['terms']) == {'loss/cross_entropy', 'loss/dice'}
  assert [e['split'] for e in report['fit']['examples']].count('train') == 9
  scores = [e['suspicion'] for e in report['fit']['examples']]
  assert scores == sorted(scores, reverse=True)
  assert (tmp_path / 'run/inspect.html').stat().st_size > 10_000
  printed = capsys.readouterr().out
  assert '0 error(s)' in printed and 'inspect.html' in printed
  suggested = read_suggested(tmp_path)
  checks.validate(suggested)
  unet.create_model(suggested).output_size(suggested.data.image_size)
  assert suggested.data.dir == str(tmp_path / 'data')
  # Only what an inspection reads was kept: no arrays of the whole set.
  assert not (tmp_path / 'cache/prepared').exists()


def test_folds_of_a_stack(tmp_path):
  """Neighbours that look alike must not be in two folds."""
  rng = np.random.default_rng(0)
  walk = np.cumsum(rng.normal(size=(12, 40, 48, 3)), 0)
  walk = (walk - walk.min()) / (walk.max() - walk.min()) * 255
  pairs = folders.make_pairs(12).items()
  images = walk.astype(np.uint8)
  pairs = {k: (image, mask) for image, (k, (_, mask)) in zip(images, pairs)}
  folders.write_pairs(tmp_path / 'data', pairs)
  config = make_config(tmp_path / 'data', tmp_path, num_folds=4, fold=1)
  config.data.suggest = True
  inspect_data.run(config, str(tmp_path / 'run'))
  report = read_report(tmp_path)
  counts = {k: v['num_examples'] for k, v in report['splits'].items()}
  assert counts == {'train': 9, 'fold_1': 3}
  assert report['network']['error'] is None
  data = read_suggested(tmp_path).data
  assert (data.num_folds, data.fold, data.holdout) == (4, 1, 'last')


def test_errors_are_reported_after_the_report(tmp_path, capsys):
  write_splits(tmp_path / 'data')
  image, mask = folders.make_pair()
  bad = {'08': (image, mask * np.uint8(77)), '<b>': (image[:20], mask)}
  folders.write_pairs(tmp_path / 'data/train', bad)
  (tmp_path / 'data/train/images/03.png').unlink()
  (tmp_path / 'data/train/masks/04.png').unlink()
  (tmp_path / 'data/train/images/x.heic').touch()
  config = make_config(tmp_path / 'data', tmp_path)
  with pytest.raises(errors.UserError, match='error.s. in the data, reported'):
    inspect_data.run(config, str(tmp_path / 'run'))
  report = read_report(tmp_path)
  kinds = {f['kind'] for f in report['findings'] if f['level'] == 'error'}
  assert {'unpaired', 'unknown values', 'different sizes'} <= kinds
  # What can be left out is listed too.
  levels = {(f['kind'], f['level']) for f in report['findings']}
  assert {('unpaired', 'warning'), ('passed over', 'note')} <= levels
  # The pairs that can be used still make a batch.
  assert report['network']['error'] is None
  assert report['network']['loss'] > 0
  printed = capsys.readouterr().out
  assert '03.png has no image' in printed
  assert 'value 77' in printed


def test_values_of_a_new_set_are_fixed_by_the_suggested_config(
  tmp_path, capsys
):
  pairs = {
    k: (i, m * np.uint8(7)) for k, (i, m) in folders.make_pairs(5).items()
  }
  folders.write_pairs(tmp_path / 'data', pairs)
  config = make_config(tmp_path / 'data', tmp_path, suggest=True)
  with pytest.raises(errors.UserError, match='check its data.mask_values'):
    inspect_data.run(config, str(tmp_path / 'run'))
  printed = capsys.readouterr().out
  assert 'train: 4 pairs; no mask can be mapped yet' in printed
  assert 'which maps the unknown values: python' in printed
  assert read_suggested(tmp_path).data.mask_values == ((0, 0), (7, 1))


def test_nothing_usable(tmp_path):
  pairs = {k: (b'broken', m) for k, (_, m) in folders.make_pairs(5).items()}
  folders.write_pairs(tmp_path / 'data', pairs)
  config = make_config(tmp_path / 'data', tmp_path)
  with pytest.raises(errors.UserError, match='error.s. in the data'):
    inspect_data.run(config, str(tmp_path / 'run'))
  report = read_report(tmp_path)
  assert report['network']['error'] == 'no pair of train can be used'


def test_a_problem_of_a_shared_folder_is_reported_once(tmp_path):
  """Both splits are held out of one folder, whose pairs are incomplete."""
  folders.write_pairs(tmp_path / 'data', folders.make_pairs(6))
  (tmp_path / 'data/masks/03.png').unlink()
  (tmp_path / 'data/images/04.png').unlink()
  config = make_config(tmp_path / 'data', tmp_path)
  _, _, found, _ = inspect_data._scan(config)
  unpaired = [(f.level, f.split) for f in found if f.kind == 'unpaired']
  assert unpaired == [('error', ''), ('warning', '')]


def test_a_broken_file_that_is_skipped_is_a_warning(tmp_path):
  write_splits(tmp_path / 'data')
  (tmp_path / 'data/train/images/02.png').write_bytes(b'broken')
  config = make_config(tmp_path / 'data', tmp_path, on_error='skip')
  _, _, found, _ = inspect_data._scan(config)
  assert {f.kind: f.level for f in found} == {'broken': 'warning'}


def test_several_processes_are_refused(tmp_path, monkeypatch):
  write_splits(tmp_path / 'data')
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  config = make_config(tmp_path / 'data', tmp_path)
  with pytest.raises(errors.UserError, match='runs in one process'):
    inspect_data.run(config, str(tmp_path / 'run'))


@pytest.mark.parametrize('cache', ['memory', 'none'])
def test_training_goes_on_with_a_warning_of_masks(
  tmp_path, monkeypatch, caplog, cache
):
  """An accusation that can be wrong stops nobody, and can be left out."""
  for split, seed in (('train', 0), ('val', 50)):
    pairs = folders.make_pairs(16, seed)
    flipped = {k: (i, m[:, ::-1].copy()) for k, (i, m) in pairs.items()}
    folders.write_pairs(tmp_path / 'data' / split, flipped)
  goes_on = mock.Mock(side_effect=ArithmeticError)
  monkeypatch.setattr(train.optimizer_lib, 'make_optimizer', goes_on)
  for skipped, count in (((), 2), (('turned',), 0)):
    config = make_config(tmp_path / 'data', tmp_path, cache=cache)
    config.data.skip_checks = skipped
    caplog.clear()
    with pytest.raises(ArithmeticError):
      train.run(config, str(tmp_path / f'run{count}'))
    warned = [r.message for r in caplog.records if 'masks turned' in r.message]
    assert len(warned) == count


@pytest.mark.parametrize('check, passes', [('absent', True), ('unfit', False)])
def test_training_stops_on_what_cannot_be_wrong(
  tmp_path, monkeypatch, check, passes
):
  pairs = {k: (i, m * 0) for k, (i, m) in folders.make_pairs(4).items()}
  for split in ('train', 'val'):
    folders.write_pairs(tmp_path / 'data' / split, pairs)
  config = make_config(tmp_path / 'data', tmp_path, cache='memory')
  config.data.skip_checks = (check, 'one_class', 'duplicates')
  goes_on = mock.Mock(side_effect=ArithmeticError)
  monkeypatch.setattr(train.optimizer_lib, 'make_optimizer', goes_on)
  stops = pytest.raises(
    errors.UserError, match=r'absent class: .*data\.skip_checks=absent leaves'
  )
  with pytest.raises(ArithmeticError) if passes else stops:
    train.run(config, str(tmp_path / 'run'))
