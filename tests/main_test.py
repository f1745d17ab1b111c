"""main.py itself: what a run leaves, evaluation, every config, mistakes."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import program, runs

pytestmark = pytest.mark.whole_runs

_NAMES = ('background', 'disk', 'ring', 'bar')
_TINY = (
  '--config.data.image_size=16,16',
  '--config.data.batch_size=4',
  '--config.model.depth=1',
  '--config.model.base_features=2',
  '--config.log.every=1',
)
# Less to compile, where the network does not matter.
_FAST = ('--config.model.depth=0', '--config.model.norm=none')
_SHAPES = (
  *_TINY,
  '--config.data.num_train=16',
  '--config.data.num_eval=5',
  '--config.train.num_steps=4',
  '--config.optimizer.warmup_steps=50',
  '--config.eval.every=2',
)


def _error(*flags, code=1, **how):
  """The one line of a run that is refused, after lines of the log."""
  out, err = program.run(*flags, code=code, **how)
  assert out == ''
  *log, line = err.splitlines()
  assert all(part[2] == part[5] == ':' for part in log), err
  assert line.startswith('error: ')
  return line.removeprefix('error: ')


def _json(path):
  return json.loads(pathlib.Path(path).read_text())


def _lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def _evaluations(workdir):
  return {m['step']: m for m in _lines(workdir) if 'eval/loss' in m}


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def trained(tmp_path_factory, cache):
  """A run's workdir and what it printed."""
  workdir = tmp_path_factory.mktemp('trained') / 'deep' / 'run'
  printed = program.run(
    *_SHAPES,
    f'--config.data.cache_dir={cache}',
    f'--workdir={workdir}',
    fresh=True,
  )
  return workdir, *printed


@pytest.fixture
def workdir(trained, tmp_path):
  """A copy of the run, to be changed."""
  return pathlib.Path(shutil.copytree(trained[0], tmp_path / 'run'))


def test_workdir_of_a_run(trained):
  workdir, _, err = trained
  assert sorted(p.name for p in workdir.iterdir()) == [
    '.lock',
    'checkpoints',
    'config.json',
    'eval.json',
    'figures',
    'metrics.jsonl',
    'split.json',
    'tensorboard',
  ]
  config = _json(workdir / 'config.json')
  assert config['data']['image_size'] == [16, 16]
  assert config['optimizer']['learning_rate'] == 4e-3
  checkpoints = sorted(p.name for p in (workdir / 'checkpoints').iterdir())
  assert checkpoints == ['00000002', '00000004']
  plots = sorted((workdir / 'figures').iterdir())
  assert [p.name for p in plots] == ['curves.png', 'predictions.png']
  for path in plots:
    with Image.open(path) as png:
      png.load()
      assert png.format == 'PNG' and min(png.size) > 200
  (events,) = (workdir / 'tensorboard').iterdir()
  data = events.read_bytes()
  assert b'train/loss' in data and b'eval/dataset_iou/disk' in data
  assert 'step 4/4: loss' in err and f'wrote {workdir}' in err


def test_metrics_of_a_run(trained):
  workdir = trained[0]
  lines = _lines(workdir)
  assert [m['step'] for m in lines] == [1, 2, 2, 3, 4, 4]
  scores = {
    f'{reduction}_{score}/{name}'
    for reduction in ('dataset', 'image')
    for score in ('iou', 'dice')
    for name in _NAMES
  } | {
    'dataset_miou',
    'dataset_mdice',
    'image_miou',
    'image_mdice',
    'pixel_accuracy',
    'loss',
    'seconds',
  }
  for line in lines:
    names = set(line) - {'step', 'train/images_per_second'}
    if 'eval/loss' in line:
      assert names == {f'eval/{name}' for name in scores}
    else:
      assert names == {'train/loss', 'train/grad_norm', 'train/learning_rate'}
      # Step n is the n-th of 50 warm-up steps.
      rate = 4e-3 * line['step'] / 50
      assert line['train/learning_rate'] == pytest.approx(rate, rel=1e-5)
  # Measured from the second interval on.
  rates = [m for m in lines if m.get('train/images_per_second', 0) > 0]
  assert [m['step'] for m in rates][-2:] == [3, 4]
  about = {'step': 4, 'split': 'test', 'params': 'ema', 'num_examples': 5}
  result = _json(workdir / 'eval.json')
  confusion = np.array(result.pop('confusion'))
  assert result == {**about, **lines[-1]}
  # Of the pixels of the five images; the rims of shapes are ignored.
  assert confusion.shape == (4, 4)
  assert 0.5 < confusion.sum() / (5 * 16 * 16) < 1
  accuracy = np.trace(confusion) / confusion.sum()
  assert accuracy == pytest.approx(result['eval/pixel_accuracy'])


def _assert_table(out, metrics):
  """Rows of names and numbers, '-' for what is undefined."""
  header, *rows, last = out.splitlines()
  columns = ['dataset_iou', 'image_iou', 'dataset_dice', 'image_dice']
  assert header.split() == columns
  shown = lambda v: '-' if v is None else f'{v:.4f}'
  expected = [
    [name, *(shown(metrics[f'eval/{c}/{name}']) for c in columns)]
    for name in _NAMES
  ]
  means = [c.replace('_', '_m') for c in columns]
  expected.append(['mean', *(shown(metrics[f'eval/{m}']) for m in means)])
  assert [row.split() for row in rows] == expected
  assert len({len(row) for row in (header, *rows)}) == 1
  assert last == (
    f'pixel accuracy {metrics["eval/pixel_accuracy"]:.4f}, '
    f'loss {metrics["eval/loss"]:.4f}'
  )


def test_table_of_a_run(trained):
  workdir, out, _ = trained
  _assert_table(out, _json(workdir / 'eval.json'))


def test_evaluation_of_the_last_checkpoint_gives_the_metrics_of_the_run(
  workdir,
):
  before = _json(workdir / 'eval.json')
  (workdir / 'eval.json').unlink()
  (workdir / 'figures' / 'predictions.png').unlink()
  out, err = program.run('--mode=evaluate', f'--workdir={workdir}')
  first, table = out.split('\n', 1)
  assert first == 'step 4, ema parameters, 5 images of test'
  *table, interval = table.splitlines()
  _assert_table('\n'.join(table), before)
  assert "XLA's convolutions" in err
  # It measures more, and the same again.
  found = _json(workdir / 'eval.json')
  runs.assert_figures(found, before)
  low, high = found['intervals']['eval/dataset_miou']
  assert low <= found['eval/dataset_miou'] <= high
  assert interval == (
    f'dataset mIoU {low:.4f} to {high:.4f} in 95 % of resamples of the images'
  )
  assert 0 < found['seconds_waiting_for_device'] < found['seconds']
  assert found['settings']['eval']['tolerance'] == 2.0
  plots = {p.name for p in (workdir / 'figures').iterdir()}
  assert plots == {
    *('curves.png', 'predictions.png', 'confusion.png', 'reliability.png'),
    *('worst.png', 'median.png', 'best.png'),
  }
  assert f'wrote {workdir}/eval.json' in err
  with open(workdir / 'eval.csv', newline='') as f:
    rows = list(csv.DictReader(f))
  assert [row['image'] for row in rows] == [f'test shape {i}' for i in range(5)]
  mean = np.nanmean([float(row['miou']) for row in rows])
  assert mean == pytest.approx(found['eval/image_miou'])
  page = (workdir / 'eval.html').read_text()
  assert 'test shape 3' in page and f'{found["eval/ece"]:.4f}' in page


def test_evaluation_of_raw_parameters_on_the_train_split(workdir):
  ema = _json(workdir / 'eval.json')
  out, _ = program.run(
    '--mode=evaluate',
    f'--workdir={workdir}',
    '--config.eval.split=train',
    '--config.eval.params=raw',
    '--config.log.num_examples=0',
  )
  assert out.startswith('step 4, raw parameters, 16 images of train\n')
  result = _json(workdir / 'eval.json')
  assert result['num_examples'] == 16 and result['split'] == 'train'
  assert result['params'] == 'raw'
  assert result['eval/loss'] != ema['eval/loss']


def test_evaluation_of_the_best_checkpoint(workdir):
  """By a figure that puts the first one before the last."""
  evaluations = _evaluations(workdir)
  worst = max(evaluations, key=lambda step: evaluations[step]['eval/loss'])
  sign = '' if worst == 2 else '-'
  program.run(
    '--mode=evaluate',
    f'--workdir={workdir}',
    '--config.checkpoint.which=best',
    f'--config.checkpoint.best_metric={sign}eval/loss',
    '--config.log.num_examples=0',
  )
  result = _json(workdir / 'eval.json')
  assert result['step'] == 2
  runs.assert_figures(result, evaluations[2])


def test_evaluation_of_a_step(workdir):
  program.run(
    '--mode=evaluate',
    f'--workdir={workdir}',
    '--config.checkpoint.step=2',
    '--config.log.num_examples=0',
  )
  result = _json(workdir / 'eval.json')
  runs.assert_figures(result, _evaluations(workdir)[2])


def test_step_without_a_checkpoint(trained):
  flags = ('--mode=evaluate', f'--workdir={trained[0]}')
  assert _error(*flags, '--config.checkpoint.step=3') == (
    f'--config.checkpoint.step=3: {trained[0]} has checkpoints of the steps '
    '2, 4'
  )


def _stamps(folder):
  return {
    p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob('*')
  }


def test_same_command_again_is_finished(trained, cache):
  workdir, out, _ = trained
  before, lines = _stamps(workdir / 'checkpoints'), _lines(workdir)
  again, err = program.run(
    *_SHAPES, f'--config.data.cache_dir={cache}', f'--workdir={workdir}'
  )
  assert again == out
  assert 'all 4 steps are done; a larger train.num_steps goes on' in err
  assert 'step 4: eval loss' not in err
  assert _stamps(workdir / 'checkpoints') == before
  assert _lines(workdir) == lines


def test_another_network_is_refused(trained, cache):
  workdir = trained[0]
  flags = (f'--config.data.cache_dir={cache}', f'--workdir={workdir}')
  before, config = _stamps(workdir), _json(workdir / 'config.json')
  assert _error(*_SHAPES, *flags, '--config.model.skip=add') == (
    f"{workdir} holds checkpoints of another config: model.skip was 'concat', "
    "now 'add'. Choose another --workdir, or undo the change"
  )
  assert _error(
    '--mode=evaluate', f'--workdir={workdir}', '--config.model.skip=add'
  ) == (
    f"{workdir} holds checkpoints of another network: model.skip was 'concat', "
    "now 'add'. Leave --config out to evaluate with the config of the workdir"
  )
  assert _json(workdir / 'config.json') == config
  assert _stamps(workdir) == before


def _write_pair(image_path, mask_path, mask, seed):
  for path in (image_path, mask_path):
    path.parent.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, (*mask.shape, 3), np.uint8)
  Image.fromarray(image).save(image_path)
  Image.fromarray(mask).save(mask_path)


def test_config_folder(tmp_path, cache):
  for i in range(10):
    mask = np.zeros((20 + i, 24), np.uint8)
    mask[5:15, 4 + i : 12 + i] = 255
    _write_pair(
      tmp_path / f'data/images/{i}.png',
      tmp_path / f'data/masks/{i}.png',
      mask,
      i,
    )
  program.run(
    f'--config={program.ROOT}/configs/folder.py',
    *_TINY,
    f'--config.data.dir={tmp_path}/data',
    '--config.data.mask_values=((0,0),(255,1))',
    *_FAST,
    '--config.train.num_steps=2',
    f'--config.data.cache_dir={cache}',
    cwd=tmp_path,
  )
  result = _json(tmp_path / 'runs/folder/eval.json')
  # A fifth of the ten images is held out.
  assert result['num_examples'] == 2 and result['step'] == 2
  assert 'eval/dataset_iou/class_1' in result


def test_config_oxford_pets_small(tmp_path, cache):
  folder = tmp_path / 'pets'
  (folder / 'annotations').mkdir(parents=True)
  for name, numbers in {'trainval': range(4), 'test': range(4, 7)}.items():
    (folder / f'annotations/{name}.txt').write_text(
      ''.join(f'Abyssinian_{i + 1} 1 1 1\n' for i in numbers)
    )
  (folder / 'annotations/xmls').mkdir()
  for i in range(7):
    _write_pair(
      folder / f'images/Abyssinian_{i + 1}.jpg',
      folder / f'annotations/trimaps/Abyssinian_{i + 1}.png',
      np.random.default_rng(i).integers(1, 4, (20, 18)).astype(np.uint8),
      i,
    )
  out, _ = program.run(
    f'--config={program.ROOT}/configs/oxford_pets.py:small',
    *_TINY,
    f'--config.data.dir={folder}',
    *_FAST,
    '--config.train.num_steps=2',
    f'--config.data.cache_dir={cache}',
    cwd=tmp_path,
    TMPDIR=str(tmp_path),
  )
  result = _json(tmp_path / 'runs/oxford_pets-small/eval.json')
  assert result['num_examples'] == 3 and result['split'] == 'test'
  # The binary score against background, beside those of the classes.
  assert 0 < result['eval/dataset_iou/pet+border'] < 1
  names = [line.split()[0] for line in out.splitlines()[1:-1]]
  assert names == ['pet', 'background', 'border', 'pet+border', 'mean']


@pytest.mark.parametrize(
  'flags,message',
  [
    (
      ['--config.model.dept=3'],
      '--config.model.dept: there is no such field (did you mean '
      'model.depth?); unet_jax/config/default.py lists them all',
    ),
    (
      ['--config.mesh=8'],
      '--config.mesh is a section; set one of its fields: mesh.data, '
      'mesh.fsdp, mesh.spatial',
    ),
    (
      ['--config.model.depth=deep'],
      '--config.model.depth=deep: takes a whole number, such as 3',
    ),
    (
      [f'--config={program.ROOT}/configs/shape.py'],
      f'--config={program.ROOT}/configs/shape.py: no such file '
      '(did you mean shapes?); configs/ has folder, isbi_2012, keras_lesson, '
      'oxford_pets, shapes, volumes',
    ),
    (
      [f'--config={program.ROOT}/configs/oxford_pets.py:tiny'],
      'configs/oxford_pets.py:tiny: the size is one of large, small',
    ),
    (
      ['--mode=predicct'],
      '--mode=predicct: value should be one of <train|cross_validate|'
      'evaluate|predict|inspect|summary|plan|import|export>',
    ),
    (
      ['--worksdir=a'],
      "Unknown command line flag 'worksdir'. Did you mean: workdir ?",
    ),
    (['train'], 'train: flags are written --name=value'),
  ],
)
def test_mistakes_in_flags(flags, message):
  # Most are forked. One is started as a shell does, and never imports jax.
  assert _error(*flags, code=2, fresh=flags == ['train']) == message


@pytest.mark.parametrize(
  'flags,message',
  [
    (
      ['--config.model.upsample=bilinar'],
      '--config.model.upsample=bilinar: not one of transpose, bilinear, '
      'bilinear_corners, nearest, pixel_shuffle (did you mean bilinear?)',
    ),
    (
      ['--config.model.padding=valid', '--config.data.image_size=96,96'],
      # 8 n + 28 pixels, n of them at the bottleneck.
      'an image size of 96 pixels does not fit model.padding=valid at '
      'model.depth=3; the nearest that do are 92 or 100 '
      '(--config.data.image_size=H,W)',
    ),
  ],
)
def test_mistakes_in_values(flags, message, tmp_path):
  fresh = len(flags) == 1
  assert _error(*flags, f'--workdir={tmp_path}/run', fresh=fresh) == message
  assert not (tmp_path / 'run').exists()


def test_batch_that_three_devices_cannot_share(tmp_path):
  message = _error(
    '--config.data.batch_size=4',
    f'--workdir={tmp_path}/run',
    **program.devices(3),
  )
  assert message == (
    '--config.data.batch_size=4 is not divisible by 3 (devices along data and '
    'fsdp, times optimizer.accumulate_steps); the nearest that are: 3 or 6'
  )
  assert not (tmp_path / 'run').exists()


def test_workdir_that_cannot_be_written(tmp_path):
  # A file in the way stops the superuser as well.
  (tmp_path / 'file').touch()
  assert _error(f'--workdir={tmp_path}/file/run') == (
    f'--workdir={tmp_path}/file/run: cannot be written (Not a directory); '
    'change that, or choose another'
  )


def test_evaluation_without_a_checkpoint(tmp_path):
  flags = ('--mode=evaluate', f'--workdir={tmp_path}')
  assert _error(*flags) == (
    f'{tmp_path} has no checkpoints/; train first, or name the right --workdir'
  )
  assert not list(tmp_path.iterdir())
  (tmp_path / 'checkpoints').mkdir()
  assert _error(*flags) == (
    f'{tmp_path} has no checkpoint; train first, or name the right --workdir'
  )
