"""Cross-validation: scores against `statistics`, and runs that are stopped."""

import json
import os
import pathlib
import signal
import statistics

import numpy as np
import pytest

from tests import folders, program, runs
from tests.refusals import message_of
from unet_jax import cross_validate, evaluate, train
from unet_jax.config import fields
from unet_jax.data import digests, identity, sources
from unet_jax.evaluation import files
from unet_jax.runtime import errors
from unet_jax.training import progress


def _config(root, cache_dir, num_folds=2):
  config = folders.make_config(
    root, num_folds=num_folds, cache_dir=str(cache_dir), batch_size=8
  )
  config.data.class_names = ('ground', 'cell')
  config.data.image_size = (16, 16)
  config.model.update(depth=0, base_features=2, norm='none')
  config.train.num_steps = 4
  config.log.update(every=1, num_examples=0, tensorboard=False)
  config.data.check = False
  return config


def _read(path):
  return json.loads(pathlib.Path(path).read_text())


def _evaluation(config, seed, **metrics):
  """What eval.json would have, of a drawn confusion matrix."""
  rng = np.random.default_rng(seed)
  names = fields.metric_names(config)
  return {
    **dict(zip(names, rng.random(len(names)).tolist())),
    **metrics,
    'step': config.train.num_steps,
    'params': 'ema',
    'settings': files.settings(config),
    'num_examples': 3,
    'confusion': rng.integers(1, 100, (2, 2)).tolist(),
  }


def _assert_pooled(summary, confusions):
  """The `pooled` metrics, from the definition of each."""
  (tn, fp), (fn, tp) = np.sum(confusions, 0)
  expected = {
    'dataset_iou/ground': tn / (tn + fp + fn),
    'dataset_iou/cell': tp / (tp + fp + fn),
    'dataset_dice/ground': 2 * tn / (2 * tn + fp + fn),
    'dataset_dice/cell': 2 * tp / (2 * tp + fp + fn),
    'pixel_accuracy': (tp + tn) / (tp + tn + fp + fn),
  }
  for score in ('iou', 'dice'):
    both = [expected[f'dataset_{score}/{name}'] for name in ('ground', 'cell')]
    expected[f'dataset_m{score}'] = sum(both) / 2
  pooled = {k: v['pooled'] for k, v in summary.items() if 'pooled' in v}
  assert {f'eval/{k}' for k in expected} <= pooled.keys()
  # Of full evaluations.
  recall = [tn / (tn + fp), tp / (tp + fn)]
  both = [expected[f'dataset_iou/{name}'] for name in ('ground', 'cell')]
  expected |= {
    'dataset_precision/ground': tn / (tn + fn),
    'dataset_precision/cell': tp / (tp + fp) if tp + fp else np.nan,
    'dataset_recall/ground': recall[0],
    'dataset_recall/cell': recall[1],
    'mean_accuracy': sum(recall) / 2,
    'dataset_fwiou': (both[0] * (tn + fp) + both[1] * (tp + fn))
    / (tn + fp + tp + fn),
  }
  for name, value in pooled.items():
    want = expected[name.removeprefix('eval/')]
    value = np.nan if value is None else value
    assert value == pytest.approx(want, nan_ok=True), name


def test_summary_of_folds():
  config = _config('x', '', 4)
  names = fields.metric_names(config)
  undefined, once = 'eval/image_iou/cell', 'eval/dataset_iou/cell'
  seconds = {'eval/seconds': 1.0}
  found = [_evaluation(config, i, **seconds) for i in range(4)]
  # Of one fold only, such as a measure that came later.
  found[0]['eval/ece'] = 0.5
  for i in range(4):
    found[i][once] = 0.25 if i == 2 else None
    found[i][undefined] = None
  summary = cross_validate.summarize(found, config)
  assert list(summary) == names and 'eval/seconds' in found[0]
  for name in names:
    values = [e[name] for e in found]
    assert summary[name]['folds'] == values
    if name not in (undefined, once):
      mean, std = statistics.mean(values), statistics.stdev(values)
      assert summary[name]['mean'] == pytest.approx(mean)
      assert summary[name]['std'] == pytest.approx(std)
  assert summary[undefined]['mean'] is summary[undefined]['std'] is None
  assert summary[once]['mean'] == 0.25 and summary[once]['std'] is None
  _assert_pooled(summary, [e['confusion'] for e in found])
  header, *rows, last, loss = cross_validate.format_table(
    summary, ('ground', 'cell')
  ).splitlines()
  assert len({len(row) for row in (header, *rows)}) == 1
  assert header.split() == [
    *('dataset_iou', 'image_iou', 'dataset_dice', 'image_dice'),
    *('pooled_iou', 'pooled_dice'),
  ]
  assert [row.split()[0] for row in rows] == ['ground', 'cell', 'mean']
  spread = lambda figure: f'{figure["mean"]:.4f} +- {figure["std"]:.4f}'
  ground, cell, mean = rows
  assert spread(summary['eval/dataset_iou/ground']) in ground
  assert cell.split()[1:7] == ['0.2500', '+-', '-', '-', '+-', '-']
  assert mean.split()[-1] == f'{summary["eval/dataset_mdice"]["pooled"]:.4f}'
  assert last.startswith(
    f'pixel accuracy {spread(summary["eval/pixel_accuracy"])}, pooled '
  )
  assert loss == f'loss {spread(summary["eval/loss"])}'


@pytest.fixture
def fake(monkeypatch):
  """Runs that write their evaluation at once; the list of what was done."""
  done = []

  def trains(config, workdir, cut):
    assert cut is None  # No fold has a record.
    done.append(('train', config.data.fold, workdir))
    os.makedirs(workdir, exist_ok=True)

  def evaluates(config, workdir):
    done.append(('evaluate', config.data.fold, workdir))
    assert config.eval.split == '' and config.checkpoint.which == 'latest'
    found = {
      **_evaluation(config, config.data.fold),
      'split': f'fold_{config.data.fold}',
      'params': config.eval.params,
    }
    pathlib.Path(workdir, 'eval.json').write_text(json.dumps(found))

  monkeypatch.setattr(train, 'run', trains)
  monkeypatch.setattr(evaluate, 'run', evaluates)
  return done


def test_finished_folds_are_left_alone(tmp_path, fake, capsys):
  config = _config('x', tmp_path / 'cache', 3)
  cross_validate.run(config, str(tmp_path))
  assert fake == [
    (what, i, f'{tmp_path}/fold_{i}')
    for i in range(3)
    for what in ('train', 'evaluate')
  ]
  assert _read(tmp_path / 'config.json')['data']['num_folds'] == 3
  first = _read(tmp_path / 'cross_validation.json')
  assert first['num_examples'] == [3, 3, 3] and first['split'] == 'train'
  found = [_read(tmp_path / f'fold_{i}/eval.json') for i in range(3)]
  summary = cross_validate.summarize(found, config)
  assert first['figures'] == json.loads(json.dumps(summary))
  fake.clear()
  cross_validate.run(config, str(tmp_path))
  assert not fake
  assert _read(tmp_path / 'cross_validation.json') == first
  assert '3 folds of train, 9 images' in capsys.readouterr().out


@pytest.mark.parametrize(
  'changed',
  [{'split': 'train'}, {'step': 2}, {'params': 'raw'}, {'settings': None}],
)
def test_a_later_evaluation_of_something_else_is_replaced(
  tmp_path, fake, changed
):
  config = _config('x', tmp_path / 'cache')
  config.eval.split, config.checkpoint.which = 'train', 'best'
  cross_validate.run(config, str(tmp_path))
  path = tmp_path / 'fold_1/eval.json'
  before = _read(path)
  other = {k: v for k, v in {**before, **changed}.items() if v is not None}
  path.write_text(json.dumps(other))
  fake.clear()
  cross_validate.run(config, str(tmp_path))
  assert [d[:2] for d in fake] == [('train', 1), ('evaluate', 1)]
  assert _read(path) == before


@pytest.mark.parametrize('kind', [digests.KIND, digests.FIRST_KIND])
def test_folds_whose_masks_changed_are_evaluated_anew(
  tmp_path, fake, kind, monkeypatch
):
  """Also where an earlier version made the digests."""
  # Of one block, the two are the same.
  monkeypatch.setattr(digests, '_BLOCK', 16)
  root, work = tmp_path / 'set', tmp_path / 'work'
  folders.write_pairs(root, {str(i): folders.make_pair(i) for i in range(6)})
  config = _config(root, tmp_path / 'cache')
  cross_validate.run(config, str(work))
  for fold in range(2):
    of_fold = cross_validate._of_fold(config, fold)
    splits = [sources.make_source(of_fold, s) for s in ('train', 'auto')]
    earlier = identity.Record('', '', {}, kind=kind)
    sources.keep_record(str(work / f'fold_{fold}'), splits, earlier)
  fake.clear()
  cross_validate.run(config, str(work))
  assert not fake
  # One that one fold holds out is one that the other was trained on.
  (root / 'masks/0.png').write_bytes(folders.encode(folders.make_pair(7)[1]))
  cross_validate.run(config, str(work))
  assert [d[:2] for d in fake] == [
    (what, fold) for fold in range(2) for what in ('train', 'evaluate')
  ]


def test_other_eval_settings_are_evaluated_anew(tmp_path, fake):
  config = _config('x', tmp_path / 'cache')
  cross_validate.run(config, str(tmp_path))
  fake.clear()
  config.eval.foreground = ('ground', 'cell')
  cross_validate.run(config, str(tmp_path))
  assert [d[0] for d in fake] == ['train', 'evaluate'] * 2


def test_a_mistake_names_its_fold(tmp_path, monkeypatch):
  def fails(config, workdir, cut):
    del workdir, cut
    if config.data.fold == 1:
      raise errors.DecodeError('7.png cannot be decoded')

  monkeypatch.setattr(train, 'run', fails)
  monkeypatch.setattr(evaluate, 'run', lambda config, workdir: None)
  done = iter([False, False])
  monkeypatch.setattr(cross_validate, '_is_evaluated', lambda *_: next(done))
  config = _config('x', tmp_path / 'cache')
  assert message_of(cross_validate.run, config, str(tmp_path)) == (
    'fold 1: 7.png cannot be decoded'
  )


def _steps(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['step'] for line in lines]


def test_an_interrupted_cross_validation_goes_on(tmp_path, monkeypatch):
  """Three times in one process, by signals within and right after a fold."""
  folders.write_pairs(tmp_path / 'data', folders.make_pairs(9))
  config = _config(tmp_path / 'data', tmp_path / 'cache')
  run = lambda: cross_validate.run(config, str(tmp_path / 'run'))
  folds = [tmp_path / f'run/fold_{i}' for i in range(2)]
  raises = lambda: os.kill(os.getpid(), signal.SIGTERM)

  def stopped_by(owner, name, replacement):
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, replacement)
      with pytest.raises(SystemExit) as e:
        run()
    assert e.value.code == 128 + signal.SIGTERM
    assert not folds[1].exists()
    return max(_steps(folds[0]))

  update, write = progress.Progress.update, files.write
  at_step_2 = lambda self, step: (update(self, step), step == 2 and raises())
  assert stopped_by(progress.Progress, 'update', at_step_2) == 2
  # When all of the first fold is done, the second is not begun.
  after = lambda *args, **about: (write(*args, **about), raises())
  assert stopped_by(files, 'write', after) == 4
  before = _read(folds[0] / 'eval.json')
  # An image that comes now is in no fold; the other fold is that of before.
  folders.write_pairs(tmp_path / 'data', {'00a': folders.make_pair(99)})
  run()
  parts = [_read(fold / 'split.json')['parts'] for fold in folds]
  for fold in ('fold_0', 'fold_1'):
    assert parts[0][fold] == parts[1][fold]
  assert [name for name, *_ in parts[1]['new']] == ['images/00a.png']
  found = [_read(fold / 'eval.json') for fold in folds]
  runs.assert_figures(found[0], before)
  assert [e['num_examples'] for e in found] == [5, 4]
  assert [e['split'] for e in found] == ['fold_0', 'fold_1']
  # Every pixel of every image, once.
  confusions = [e['confusion'] for e in found]
  assert np.sum(confusions) == 9 * 16 * 16
  summary = _read(tmp_path / 'run/cross_validation.json')['figures']
  _assert_pooled(summary, confusions)
  losses = [e['eval/loss'] for e in found]
  assert summary['eval/loss']['std'] == pytest.approx(statistics.stdev(losses))

  config.model.base_features = 4
  assert 'model.base_features was 2' in message_of(run)


@pytest.mark.whole_runs
def test_main(tmp_path):
  """The command itself, once and again, and a fold as a run of its own."""
  fields = (
    f'data.num_folds=2 data.num_train=9 data.cache_dir={tmp_path}/cache '
    'data.image_size=16,16 data.batch_size=4 model.depth=0 '
    'model.base_features=2 model.norm=none train.num_steps=2 log.num_examples=0'
  )
  run = (f'--workdir={tmp_path}/run', '--mode=cross_validate')
  flags = (*run, *(f'--config.{field}' for field in fields.split()))
  _, err = program.run(*flags, code=1)
  assert 'set --config.data.eval_split=auto' in err
  out, err = program.run(*flags, '--config.data.eval_split=auto')
  table = out[out.index('2 folds of train, 9 images, ') :]
  names = ('background', 'disk', 'ring', 'bar', 'mean')
  rows = [line.split() for line in table.splitlines()]
  assert [row[0] for row in rows[2:7]] == list(names)
  path = tmp_path / 'run/cross_validation.json'
  pooled = _read(path)['figures']['eval/dataset_iou/background']['pooled']
  assert rows[2][-2] == f'{pooled:.4f}'
  assert f'wrote {path}' in err
  again, err = program.run(*run)
  assert again == table and 'fold 1 of 2 is done' in err
