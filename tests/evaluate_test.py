"""Full evaluations, at both resolutions: against images counted one by one."""

import csv
import json
import logging
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import measure

import unet_jax
from tests import runs, tiny
from unet_jax import evaluate
from unet_jax.config import checks, saved
from unet_jax.data import identity, prepare, sources
from unet_jax.data import resize as resize_lib
from unet_jax.evaluation import confusion, counting, files
from unet_jax.models import ensemble
from unet_jax.prediction import predictor
from unet_jax.runtime import errors, progress, whole_files

_NAMES = ('sky', 'sea', 'land')
_SIZES = [(20, 33), (16, 16), (41, 24), (9, 60), (16, 20), (24, 24)]


def _config(root, data=None, **sections):
  config = tiny.make_config(**sections)
  config.data.update(source='folder', dir=str(root), cache='memory')
  config.data.update(eval_split='train', val_fraction=0.1, class_names=_NAMES)
  config.data.mask_values = ((7, 0), (8, 1), (9, 2), (0, 255))
  config.data.num_workers = 2
  config.data.update(data or {})
  config.model.norm = 'none'
  config.log.num_examples = 2
  return config


def _write(root, sizes):
  """Images and masks of several sizes; the last is held out as `val`."""
  rng = np.random.default_rng(0)
  pairs = []
  for folder in ('images', 'masks'):
    (root / folder).mkdir(parents=True)
  for i, size in enumerate(sizes):
    mask = rng.choice([0, 7, 8, 9], size, p=[0.1, 0.3, 0.3, 0.3])
    mask = np.kron(mask[::4, ::4], np.ones((4, 4), int))[: size[0], : size[1]]
    noise = rng.integers(0, 80, (*size, 3))
    image = (noise + 19 * mask[..., None]).astype(np.uint8)
    Image.fromarray(image).save(root / f'images/{i}.png')
    Image.fromarray(mask.astype(np.uint8)).save(root / f'masks/{i}.png')
    pairs.append((image, mask))
  return pairs


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  root = tmp_path_factory.mktemp('data')
  return root, _write(root, _SIZES)


def _evaluate(workdir, config):
  evaluate.run(config, str(workdir))
  return json.loads((workdir / 'eval.json').read_text())


def _run(workdir, config, resolution='network', **fields):
  runs.save(workdir, config)
  config = saved.read(str(workdir), {'eval.resolution': resolution, **fields})
  checks.validate(config, 'evaluate')
  found = _evaluate(workdir, config)
  with open(workdir / 'eval.csv', newline='') as f:
    return found, list(csv.DictReader(f))


def _confusion(mask, prediction, classes=range(3)):
  """By hand: a loop over classes."""
  pairs = lambda i: [np.sum((mask == i) & (prediction == j)) for j in classes]
  return np.array([pairs(i) for i in classes])


def _kept(config, pairs, resolution='original'):
  """Index, image and mask (of classes) of the split's pairs, in order."""
  order = np.random.default_rng(config.seed).permutation(len(pairs))
  classes = np.full(10, 255, np.uint8)
  classes[[7, 8, 9]] = [0, 1, 2]
  kept = [(i, pairs[i][0], classes[pairs[i][1]]) for i in sorted(order[:-1])]
  if resolution == 'original':
    return kept
  size = config.data.image_size
  resized = lambda *pair: resize_lib.resize_pair(*pair, size, 'stretch')
  return [(i, *resized(image, mask)) for i, image, mask in kept]


def _counts(config, pairs, segment, resolution='original'):
  """Confusion of each image, with the run as a function."""
  return [
    _confusion(mask, segment(image).argmax(-1))
    for _, image, mask in _kept(config, pairs, resolution)
  ]


@pytest.mark.parametrize('resize', ['stretch', 'pad', 'crop', 'patch'])
def test_original_masks_are_untouched(data, tmp_path, resize, capsys):
  root, pairs = data
  config = _config(root, data={'resize': resize})
  found, rows = _run(tmp_path, config, 'original')
  counts = _counts(config, pairs, unet_jax.load(tmp_path))
  for row, count, kept in zip(rows, counts, _kept(config, pairs), strict=True):
    assert row['image'] == f'{root}/images/{kept[0]}.png'
    iou, dice = confusion.iou_and_dice(count)
    assert float(row['iou/sea']) == pytest.approx(iou[1])
    assert float(row['dice/land']) == pytest.approx(dice[2])
  assert found['confusion'] == np.sum(counts, 0).tolist()
  for name, value in confusion.scores(np.array(counts), _NAMES).items():
    assert found[f'eval/{name}'] == pytest.approx(value), name
  assert found['num_examples'] == 5 and found['resolution'] == 'original'
  assert 'eval/loss' not in found
  out = capsys.readouterr().out
  assert out.startswith('step 1, ema parameters, 5 images of train\n')
  assert 'loss' not in out


def test_masks_are_resized_at_the_resolution_of_the_network(data, tmp_path):
  root, pairs = data
  config = _config(root)
  found, _ = _run(tmp_path, config)
  counts = _counts(config, pairs, unet_jax.load(tmp_path), 'network')
  assert found['confusion'] == np.sum(counts, 0).tolist()
  assert found['eval/loss'] > 0
  page = (tmp_path / 'eval.html').read_text()
  assert page.count(f'Evaluation of {tmp_path}') >= 1
  assert 'Evaluation of Evaluation' not in page
  assert '16 x 16 pixels, to which' in page
  assert f'{found["eval/ece"]:.4f}' in page


def test_views_and_networks_are_averaged(data, tmp_path):
  root, pairs = data
  config = _config(root)
  runs.save(tmp_path / 'other', config, seed=3)
  networks = (str(tmp_path / 'other'),)
  fields = {'inference.flips': ('vertical',), 'inference.ensemble': networks}
  for resolution in ('network', 'original'):
    found, _ = _run(tmp_path / resolution, config, resolution, **fields)
    assert (found['networks'], found['views']) == (2, 2)
    segment = unet_jax.load(tmp_path / resolution, fields)
    counts = _counts(config, pairs, segment, resolution)
    assert found['confusion'] == np.sum(counts, 0).tolist()


@pytest.mark.parametrize('resolution', ['network', 'original'])
def test_pictures_need_no_second_pass(data, tmp_path, monkeypatch, resolution):
  """They show what was measured: each image is predicted and read once."""
  root, pairs = data
  config = _config(root, eval={'num_examples': 2})
  kinds = {'network': counting.Evaluator, 'original': predictor.Predictor}
  calls = {}
  spied = {kind: 'run' for kind in kinds.values()} | {files: 'write_full'}
  for owner, name in spied.items():
    spy = mock.Mock(side_effect=getattr(owner, name))
    calls[owner] = spy
    monkeypatch.setattr(
      owner, name, lambda *args, spy=spy, **kw: spy(*args, **kw)
    )
  _, rows = _run(tmp_path, config, resolution)
  monkeypatch.undo()
  counts = {name: calls[kind].call_count for name, kind in kinds.items()}
  assert counts == {name: name == resolution for name in kinds}
  shown = calls[files].call_args.args[-1]['pictures']
  counts = {kind: len(examples) for kind, examples in shown.items()}
  assert counts == {'worst': 2, 'median': 2, 'best': 2}
  segment = unet_jax.load(tmp_path)
  by_name = {
    f'{root}/images/{i}.png': (image, mask)
    for i, image, mask in _kept(config, pairs, resolution)
  }
  scores = {row['image']: float(row['miou']) for row in rows}
  for example in [e for examples in shown.values() for e in examples]:
    image, mask = by_name[example['name']]
    prediction = segment(image).argmax(-1)
    expected = {'image': image, 'mask': mask, 'prediction': prediction}
    for key, value in expected.items():
      np.testing.assert_array_equal(example[key], value)
    assert example['score'] == scores[example['name']]


def test_tiles_are_counted(data, tmp_path, caplog, monkeypatch):
  """At the resolution of the network."""
  root, _ = data
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)
  config = _config(root, data={'resize': 'patch'})
  runs.save(tmp_path, config)
  found = _evaluate(tmp_path, config)
  assert found['eval/loss'] > 0 and 'eval/ece' not in found
  assert found['num_examples'] == 5 and found['intervals'] == {}
  assert 'need --config.eval.resolution=original' in caplog.text
  assert not (tmp_path / 'eval.csv').exists()


def test_a_workdir_that_cannot_be_written_is_found_at_once(
  data, tmp_path, monkeypatch
):
  config = _config(data[0])
  runs.save(tmp_path, config)
  # Not by a mode, which does not stop the superuser.
  monkeypatch.setattr(whole_files.os, 'access', lambda *_: False)
  monkeypatch.setattr(sources, 'make_source', lambda *_, **__: pytest.fail())
  with pytest.raises(errors.UserError, match='cannot be written'):
    evaluate.run(config, str(tmp_path))


def test_broken_files(tmp_path):
  root = tmp_path / 'data'
  _write(root, _SIZES)
  (root / 'images/3.png').write_bytes(b'no image')
  config = _config(root, data={'on_error': 'skip'})
  found, rows = _run(tmp_path / 'run', config, 'original')
  assert found['num_examples'] == len(rows) == 4
  config.data.on_error = 'stop'
  config.eval.resolution = 'original'
  with pytest.raises(errors.UserError, match='3.png cannot be decoded'):
    evaluate.run(config, str(tmp_path / 'run'))
  for path in (root / 'images').iterdir():
    path.write_bytes(b'no image')
  config.data.on_error = 'skip'
  with pytest.raises(errors.UserError, match='no image of the split could be'):
    evaluate.run(config, str(tmp_path / 'run'))


def test_valid_networks_are_measured_in_their_middle(data, tmp_path):
  root, pairs = data
  size = {'image_size': (20, 20)}
  config = _config(root, size, model={'padding': 'valid'})
  found, _ = _run(tmp_path / 'middle', config)
  # 20 pixels give 4.
  pixels = lambda masks: [sum(np.sum(m == c) for m in masks) for c in range(3)]
  masks = [mask[8:12, 8:12] for *_, mask in _kept(config, pairs, 'network')]
  assert np.sum(found['confusion'], 1).tolist() == pixels(masks)
  # The original is covered by mirrored tiles.
  found, _ = _run(tmp_path / 'all', config, 'original')
  masks = [mask for *_, mask in _kept(config, pairs)]
  assert np.sum(found['confusion'], 1).tolist() == pixels(masks)


def test_objects(data, tmp_path):
  """Of a network whose predictions are known: all is land."""
  root, pairs = data
  config = _config(root, eval={'instances': 'land', 'params': 'raw'})
  _, states = runs.save(tmp_path, config)
  params = jax.tree.map(np.array, states[1].params)
  params['head']['kernel'] *= 0
  params['head']['bias'] = np.float32([0, 0, 1])
  variables = {'params': params, 'batch_stats': {}}
  about = [{'workdir': '', 'step': 1, 'params': 'raw', 'fold': None}]
  restored = (variables, ensemble.SINGLE, about)
  with mock.patch.object(evaluate.restore, 'restore', lambda *_: restored):
    found = _evaluate(tmp_path, config)
  matched = total = 0
  for *_, mask in _kept(config, pairs, 'network'):
    labels = measure.label(mask == 2, connectivity=1)
    predicted = measure.label(mask != 255, connectivity=1)
    total += labels.max() + predicted.max()
    for i in range(1, labels.max() + 1):
      for j in range(1, predicted.max() + 1):
        both = np.sum((labels == i) & (predicted == j))
        matched += both / np.sum((labels == i) | (predicted == j)) >= 0.5
  assert found['eval/ap50'] == pytest.approx(matched / (total - matched))


def test_folds_are_not_evaluated_by_what_was_trained_on_them(data, tmp_path):
  root, _ = data
  config = _config(root, data={'num_folds': 2, 'eval_split': 'auto'})
  config.log.num_examples = 0
  for fold in range(2):
    config.data.fold = fold
    runs.save(tmp_path / f'fold_{fold}', config)
  config.data.fold = 0
  with pytest.raises(errors.UserError, match='fold_1 was trained on fold_0'):
    evaluate.run(config, str(tmp_path))
  found = _evaluate(tmp_path / 'fold_0', config)
  assert (found['split'], found['num_examples']) == ('fold_0', 3)


def test_what_was_trained_on_is_said_or_refused(
  data, tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)
  config = _config(data[0], data={'eval_split': 'auto', 'val_fraction': 0.4})
  config.data.cache_dir = str(tmp_path / 'cache')
  config.log.num_examples = 0
  held_out = []
  for seed in range(2):
    config.seed = seed
    splits = [sources.make_source(config, split) for split in ('train', 'val')]
    runs.save(tmp_path / f'run{seed}', config)
    train_set = prepare.prepare_source(splits[0], config)
    sources.keep_record(str(tmp_path / f'run{seed}'), splits, None, train_set)
    held_out.append([image.name for image in identity.images_of(splits[1])])
  # The config's own seed would choose those of the other.
  evaluate.run(config, str(tmp_path / 'run0'))
  with open(tmp_path / 'run0/eval.csv', newline='') as f:
    names = [row['image'] for row in csv.DictReader(f)]
  assert names == [f'{data[0]}/{name}' for name in held_out[0]]
  assert 'trained on' not in caplog.text
  leaked = [name for name in held_out[0] if name not in held_out[1]]
  config.inference.ensemble = (str(tmp_path / 'run1'),)
  with pytest.raises(errors.UserError) as e:
    evaluate.run(config, str(tmp_path / 'run0'))
  text = f'run1 was trained on {len(leaked)} of the 2 images of val ('
  assert text + ', '.join(leaked) in str(e.value)
  config.inference.ensemble = ()
  config.eval.split = 'train'
  evaluate.run(config, str(tmp_path / 'run0'))
  assert 'run0 was trained on 4 of the 4 images of train (' in caplog.text
  assert 'in other files' not in caplog.text
  # The same pixels in another format.
  for path in data[0].rglob('*.png'):
    copy = tmp_path / 'copies/test' / path.relative_to(data[0])
    copy.parent.mkdir(parents=True, exist_ok=True)
    Image.open(path).save(copy.with_suffix('.tif'), compression='tiff_lzw')
  # A file that was trained on is not one of the others.
  name = next(
    path.name
    for path in sorted(data[0].glob('images/*.png'))
    if f'images/{path.name}' not in held_out[0]
  )
  for folder in ('images', 'masks'):
    shutil.copy(
      data[0] / folder / name, tmp_path / 'copies/test' / folder / 'again.png'
    )
  config.data.update(dir=str(tmp_path / 'copies'))
  config.eval.split = 'test'
  evaluate.run(config, str(tmp_path / 'run0'))
  text = 'run0 was trained on, in other files ('
  assert f'4 of test have the pixels of images that {tmp_path}/{text}' in (
    caplog.text
  )
  assert 'run0 was trained on 1 of the 7 images of test (' in caplog.text


def test_a_sigmoid_has_two_classes(tmp_path):
  root = tmp_path / 'data'
  pairs = _write(root, _SIZES)
  config = _config(root, {'num_classes': 1, 'class_names': ('water', 'land')})
  config.data.mask_values = ((7, 0), (8, 0), (9, 1), (0, 255))
  found, rows = _run(tmp_path / 'run', config, 'original')
  segment = unet_jax.load(tmp_path / 'run')
  counts = 0
  for _, image, mask in _kept(config, pairs):
    land = np.where(mask == 255, 255, mask == 2)
    counts += _confusion(land, segment(image)[..., 1] > 0.5, range(2))
  assert found['confusion'] == counts.tolist()
  assert 0 < found['eval/ece'] < 1 and 'iou/land' in rows[0]


@pytest.mark.parametrize(
  'resolution,resize,expected',
  [
    ('network', 'stretch', 'evaluating train: 2 of 5 images'),
    ('network', 'patch', 'evaluating train: 2 of 22 tiles'),
    ('original', 'stretch', 'evaluating train: 2 of 5 images, '),
  ],
)
def test_lines_at_intervals(
  data, tmp_path, resolution, resize, expected, monkeypatch
):
  """Where there is no terminal, of all ways to evaluate and to prepare."""
  lines = []
  monkeypatch.setattr(progress, '_INTERVAL', (0, 0))
  log = logging.getLogger('unet_jax.runtime.progress')
  monkeypatch.setattr(
    log, 'info', lambda text, *args: lines.append(text % args)
  )
  config = _config(data[0], data={'resize': resize, 'batch_size': 2})
  config.log.num_examples = 0
  runs.save(tmp_path, config)
  config = saved.read(str(tmp_path), {'eval.resolution': resolution})
  evaluate.run(config, str(tmp_path))
  assert any(line.startswith(expected) for line in lines), lines
  prepares = any(line.startswith('preparing train: ') for line in lines)
  assert prepares == (resolution == 'network')
