"""The whole mode, on folders."""

import json
import math
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests import folders
from unet_jax import inspect_data, train
from unet_jax.config import checks
from unet_jax.inspection import shown
from unet_jax.models import unet
from unet_jax.runtime import errors


def make_config(root, tmp_path, **data):
  config = folders.make_config(root, **data)
  config.data.update(batch_size=8, cache_dir=str(tmp_path / 'cache'))
  config.model.update(depth=1, base_features=2)
  config.inspect.network = True
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
  fields = report['suggestion']['fields']
  (why,) = (why for field, *_, why in fields if field == 'data.holdout')
  assert why.endswith('a part held out at random leaks')


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
  # They are drawn before there is a table.
  page = (tmp_path / 'run/inspect.html').read_text()
  assert 'classes of the suggested data.mask_values' in page
  assert 'cannot be drawn' not in page


def test_values_of_no_table_are_drawn():
  """Such as those of a mask with JPEG's values, or of a class that is new."""
  data = folders.make_config('unused').data
  values = np.array([[7, 7, 300], [9, 7, 9]])
  mask, number, note = shown._drawn(values, 'a.png', [data, data])
  np.testing.assert_array_equal(mask, [[0, 0, 2], [1, 0, 1]])
  assert number == 3 and note == 'a colour for each of 3 values'
  photo = np.random.default_rng(0).integers(0, 256, (60, 60, 3))
  mask, number, _ = shown._drawn(photo, 'a.png', [data])
  assert mask.max() == number - 1 == 200


@pytest.mark.parametrize('network', [False, True])
def test_deep_images_are_inspected_as_they_should_be_trained_with(
  tmp_path, network
):
  """As CT: int16, which `dtype` refuses."""
  pairs = {
    k: (10 * i[..., 0].astype(np.int16) - 1000, m)
    for k, (i, m) in folders.make_pairs(9).items()
  }
  for folder in ('images', 'masks'):
    (tmp_path / 'data' / folder).mkdir(parents=True)
  for name, (image, mask) in pairs.items():
    tifffile.imwrite(tmp_path / f'data/images/{name}.tif', image)
    Image.fromarray(mask).save(tmp_path / f'data/masks/{name}.png')
  config = make_config(tmp_path / 'data', tmp_path, suggest=True)
  config.inspect.network = network
  inspect_data.run(config, str(tmp_path / 'run'))
  report = read_report(tmp_path)
  assert report['counts']['error'] == 0
  data = read_suggested(tmp_path).data
  assert data.intensity == 'range'
  values = np.concatenate([i.ravel() for i, _ in pairs.values()])
  low, high = data.intensity_range
  assert np.mean(values < low) < 0.01 and np.mean(values > high) < 0.01
  assert abs(data.std[0] - report['splits']['train']['std'][0]) < 0.01
  assert data.std[0] > 0.1


def _look(tmp_path, **data):
  """Inspects twice, then as suggested; returns that and its comments."""
  config = make_config(tmp_path / 'data', tmp_path, suggest=True, **data)
  config.inspect.network = False
  try:
    inspect_data.run(config, str(tmp_path / 'run'))
  except errors.UserError as e:  # Of a table that is not the default.
    assert 'the suggested config maps these values' in str(e)
  suggested = read_suggested(tmp_path)
  checks.validate(suggested)
  inspect_data.run(suggested, str(tmp_path / 'again'))
  report = json.loads((tmp_path / 'again/inspect.json').read_text())
  assert report['counts']['error'] == 0
  comments = (tmp_path / 'run/suggested.py').read_text().replace('#', '')
  return suggested.data, ' '.join(comments.split())


def test_stacks_are_whole_after_one_look(tmp_path):
  """Values of images and masks are those of all pages."""
  pairs = list(folders.make_pairs(18).values())
  for folder in ('images', 'masks'):
    (tmp_path / 'data' / folder).mkdir(parents=True)
  for i in range(6):
    images = [
      (5 + k) * image[..., 0].astype(np.uint16)
      for k, (image, _) in enumerate(pairs[3 * i : 3 * i + 3])
    ]
    masks = [
      (k + 1) * 40 * mask
      for k, (_, mask) in enumerate(pairs[3 * i : 3 * i + 3])
    ]
    for folder, arrays in (('images', images), ('masks', masks)):
      path = tmp_path / f'data/{folder}/{i}.tif'
      tifffile.imwrite(path, np.stack(arrays), photometric='minisblack')
  data, text = _look(tmp_path)
  assert data.pages == 'images' and data.intensity == 'range'
  assert max(image.max() for image in images) / 2 < data.intensity_range[1]
  assert data.mask_values == ((0, 0), (40, 1), (80, 2), (120, 3))
  # Of the split that is trained on, 5 of the files.
  assert '5 files hold 15 images, and their masks as many.' in text


def test_images_are_turned_where_masks_fit_only_then(tmp_path):
  pairs = {}
  for name, (image, mask) in folders.make_pairs(9).items():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.rot90(image))
    pairs[name] = folders.encode_image(turned, exif=exif), mask
  folders.write_pairs(tmp_path / 'data', pairs)
  data, text = _look(tmp_path)
  assert data.orientation == 'upright'
  assert 'only then do their masks have the same size' in text


def test_nothing_usable(tmp_path):
  pairs = {k: (b'broken', m) for k, (_, m) in folders.make_pairs(5).items()}
  folders.write_pairs(tmp_path / 'data', pairs)
  config = make_config(tmp_path / 'data', tmp_path)
  with pytest.raises(errors.UserError, match='error.s. in the data'):
    inspect_data.run(config, str(tmp_path / 'run'))
  report = read_report(tmp_path)
  assert report['network']['error'] == 'no pair of train can be used'


def test_a_suggested_table_counts_the_test_split(tmp_path):
  """Train and val are gone through; test may have values of its own."""
  write_splits(tmp_path / 'data')
  pairs = {k: (i, 5 * m) for k, (i, m) in folders.make_pairs(2, 70).items()}
  folders.write_pairs(tmp_path / 'data/test', pairs)
  config = make_config(tmp_path / 'data', tmp_path, suggest=True)
  assert inspect_data._wanted_splits(config) == ['train', 'auto', 'val', 'test']
  config.inspect.network = False
  with pytest.raises(errors.UserError, match='suggested config maps'):
    inspect_data.run(config, str(tmp_path / 'run'))
  assert read_suggested(tmp_path).data.mask_values == ((0, 0), (1, 1), (5, 2))


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


def test_neither_jax_nor_a_network_is_needed(tmp_path):
  """Their import alone takes as long as to inspect a small set."""
  write_splits(tmp_path / 'data')
  program = f"""
import sys
from tests import folders
from unet_jax import inspect_data
config = folders.make_config({str(tmp_path / 'data')!r})
inspect_data.run(config, {str(tmp_path / 'run')!r})
print([name for name in ('jax', 'flax', 'grain') if name in sys.modules])
"""
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True
  )
  assert done.stdout.splitlines()[-1] == '[]', done.stderr
  assert read_report(tmp_path)['network'] is None


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
  monkeypatch.setattr(train.pipeline, 'train_batches', goes_on)
  monkeypatch.setattr(train.programs, 'start', mock.Mock())
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
  monkeypatch.setattr(train.pipeline, 'train_batches', goes_on)
  monkeypatch.setattr(train.programs, 'start', mock.Mock())
  stops = pytest.raises(
    errors.UserError, match=r'absent class: .*data\.skip_checks=absent leaves'
  )
  with pytest.raises(ArithmeticError) if passes else stops:
    train.run(config, str(tmp_path / 'run'))
