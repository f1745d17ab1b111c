"""Tests of unet_jax/inspect_data.py: the whole mode, on folders."""

import json
import math

import folders
import numpy as np
import pytest

from unet_jax import config as config_lib
from unet_jax import errors, inspect_data


def make_config(root, tmp_path, **data):
  config = folders.make_config(root, **data)
  config.data.update(batch_size=8, cache_dir=str(tmp_path / 'cache'))
  config.model.update(depth=1, base_features=2)
  return config


def write_splits(root):
  folders.write_pairs(root / 'train', folders.make_pairs(9))
  folders.write_pairs(root / 'val', folders.make_pairs(3, start=50))


def test_a_good_set(tmp_path, capsys):
  write_splits(tmp_path / 'data')
  config = make_config(tmp_path / 'data', tmp_path, suggest=True)
  config.model.update(padding='valid')
  config.loss.weights.dice = 0.5
  inspect_data.run(config, str(tmp_path / 'run'))
  report = json.loads((tmp_path / 'run/inspect.json').read_text())
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
  assert report['fit']['examples'][0]['suspicion'] is not None
  assert (tmp_path / 'run/inspect.html').stat().st_size > 10_000
  printed = capsys.readouterr().out
  assert '0 error(s)' in printed and 'inspect.html' in printed
  namespace = {}
  exec((tmp_path / 'run/suggested.py').read_text(), namespace)
  suggested = namespace['get_config']()
  config_lib.validate(suggested)
  assert suggested.data.dir == str(tmp_path / 'data')
  # Only what an inspection reads was kept: no arrays of the whole set.
  assert not (tmp_path / 'cache/prepared').exists()


def test_errors_are_told_after_the_report(tmp_path, capsys):
  write_splits(tmp_path / 'data')
  image, mask = folders.make_pair()
  bad = {'08': (image, mask * np.uint8(77)), '<b>': (image[:20], mask)}
  folders.write_pairs(tmp_path / 'data/train', bad)
  (tmp_path / 'data/train/masks/03.png').unlink()
  config = make_config(tmp_path / 'data', tmp_path)
  with pytest.raises(errors.UserError, match='error.s. in the data, told abov'):
    inspect_data.run(config, str(tmp_path / 'run'))
  report = json.loads((tmp_path / 'run/inspect.json').read_text())
  kinds = {f['kind'] for f in report['findings'] if f['level'] == 'error'}
  assert {'unpaired', 'unknown values', 'different sizes'} <= kinds
  assert 'error' in report['network']
  printed = capsys.readouterr().out
  assert '03.png has no mask' in printed
  assert 'value 77' in printed
