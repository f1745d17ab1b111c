"""Checkpoints whose files are damaged, and saves that fail at the end."""

import contextlib
import gc
import logging
import pathlib
import shutil

import jax
import jaxlib
import PIL
import pytest

from tests import runs, tiny
from tests.refusals import message_of
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import checkpoint
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import state as state_lib

# Where an array is damaged, Orbax abandons the coroutines that read the others;
# some are found in a later test.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


def _abstract(config, model):
  """Shapes of the state of a run."""
  return state_lib.abstract_train_state(
    config,
    model,
    optimizer_lib.make_optimizer(config),
    mesh_lib.make_mesh(config),
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a run with checkpoints 1 and 2, its config and network."""
  workdir = tmp_path_factory.mktemp('run')
  config = tiny.make_config()
  model, _ = runs.save(workdir, config, steps=(1, 2))
  return workdir, config, model


def _truncate(path):
  for file in filter(pathlib.Path.is_file, path.rglob('*')):
    file.write_bytes(file.read_bytes()[:20])


@pytest.mark.parametrize(
  'part,damage',
  [
    ('config/metadata', lambda path: path.write_text('{"a')),
    ('config', shutil.rmtree),
    ('data/metadata', lambda path: path.write_bytes(b'{"\xff": 1}')),
    ('state/ocdbt.process_0/d', _truncate),
    ('state/ocdbt.process_0/d', shutil.rmtree),
  ],
)
def test_a_damaged_checkpoint_is_one_line(run, tmp_path, part, damage):
  """As Orbax says it, of one without digests."""
  workdir, config, model = run
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  (copy / 'checkpoints/00000002/digests.json').unlink()
  damage(copy / 'checkpoints/00000002' / part)
  abstract = _abstract(config, model)
  with contextlib.closing(
    checkpoint.Checkpoints(str(copy), config, read_only=True)
  ) as checkpoints:

    def read(step):
      checkpoints.saved_config(step)
      checkpoints.restore(step, abstract)

    message = message_of(read, 2)
    read(1)
  assert message.startswith(
    f'{copy}/checkpoints: the checkpoint of step 2 is damaged ('
  )
  assert message.endswith(
    '; restore its folder, or move it away to go on from another. Other '
    'checkpoints: 1'
  )
  gc.collect()  # The coroutines, while the filter holds.


def _flip(folder):
  """Changes a bit of the largest file, which holds arrays."""
  file = max(folder.rglob('*/d/*'), key=lambda path: path.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 4
  file.write_bytes(content)
  return file.relative_to(folder)


def test_a_damaged_checkpoint_is_passed_over(
  run, tmp_path, caplog, monkeypatch
):
  """By what reads a run; one that goes on sets it aside and saves it again."""
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)
  caplog.set_level(logging.INFO)
  workdir, config, model = run
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  lines = [f'{{"step": {step}, "eval/loss": {step}}}\n' for step in (1, 2)]
  (copy / 'metrics.jsonl').write_text(''.join(lines))
  config.checkpoint.best_metric = 'eval/loss'
  newest = copy / 'checkpoints/00000002'
  name = _flip(newest)
  warning = (
    f'warning: {newest} is damaged ({name} is not as it was saved): it is '
    'passed over'
  )
  with contextlib.closing(
    checkpoint.Checkpoints(str(copy), config, read_only=True)
  ) as checkpoints:
    for which in 'latest', 'best', 'all':
      caplog.clear()
      assert checkpoints.select(which, -1) == [1]
      assert warning in caplog.messages
    message = message_of(checkpoints.select, 'latest', 2)
    assert message.endswith(
      f': damaged: step 2 ({name} is not as it was saved); restore the folder '
      'of one, or take another with --config.checkpoint.step, of 1'
    )

  _, states = runs.save(tmp_path / 'other', config, steps=(2,))
  for _ in range(2):
    with contextlib.closing(
      checkpoint.Checkpoints(str(copy), config)
    ) as checkpoints:
      checkpoints.set_aside_damaged()
      assert checkpoints.steps == [1]
      checkpoints.save(states[2], 2, {})
      checkpoints.wait()
      assert checkpoints.select('latest', -1) == [2]
    name = _flip(newest)
  kept = sorted(path.name for path in newest.parent.glob('damaged*'))
  assert kept == ['damaged_00000002_0', 'damaged_00000002_1']

  _flip(newest.parent / '00000001')
  with contextlib.closing(
    checkpoint.Checkpoints(str(copy), config)
  ) as checkpoints:
    message = message_of(checkpoints.set_aside_damaged)
    assert checkpoints.steps == [1, 2]
  assert message.startswith(
    f'{copy}/checkpoints: damaged: step 2 ({name} is not as it was saved), '
    'step 1 ('
  )
  assert message.endswith(
    '; restore the folder of one, or move them away to start anew'
  )


@pytest.mark.parametrize('is_old', [False, True])
def test_other_convolutions_are_said(tmp_path, caplog, monkeypatch, is_old):
  """Of a run that goes on; checkpoints without a record are XLA's."""
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)
  caplog.set_level(logging.INFO)
  config = tiny.make_config()
  model, _ = runs.save(tmp_path, config, native=not is_old)
  if is_old:
    shutil.rmtree(tmp_path / 'checkpoints/00000001/meta')
  before, other = ('xla', 'native') if is_old else ('native', 'xla')
  abstract = _abstract(config, model)

  def said(native, read_only=False):
    caplog.clear()
    with contextlib.closing(
      checkpoint.Checkpoints(str(tmp_path), config, read_only, native)
    ) as checkpoints:
      checkpoints.restore(1, abstract)
    return [m for m in caplog.messages if 'was made with' in m]

  assert said(before == 'native') == []
  assert said(other == 'native', read_only=True) == []
  assert said(other == 'native') == [
    f'step 1 was made with the convolutions of cpu.kernels={before}, this run '
    f'has {other} ones, whose bits differ'
  ]


def test_other_versions_are_said_and_equal_ones_are_not(
  tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)
  caplog.set_level(logging.INFO)
  config = tiny.make_config()
  model, _ = runs.save(tmp_path, config)
  abstract = _abstract(config, model)

  def said():
    caplog.clear()
    with contextlib.closing(
      checkpoint.Checkpoints(str(tmp_path), config)
    ) as checkpoints:
      checkpoints.restore(1, abstract)
    return [m for m in caplog.messages if 'was made with' in m]

  assert said() == []
  before = jaxlib.__version__, PIL.__version__
  monkeypatch.setattr('PIL.__version__', '99.1')
  monkeypatch.setattr('jaxlib.__version__', '88.2')
  assert said() == [
    f'step 1 was made with jaxlib {before[0]} (now 88.2), Pillow {before[1]} '
    '(now 99.1); bits may differ from a run that has the same versions '
    'throughout'
  ]


def test_a_save_that_fails_while_closing_is_one_line(run, monkeypatch):
  workdir, config, _ = run
  checkpoints = checkpoint.Checkpoints(str(workdir), config, read_only=True)

  def fail():
    raise ValueError('RESOURCE_EXHAUSTED: Failed writing: No space left')

  close = checkpoints._manager.close
  monkeypatch.setattr(checkpoints._manager, 'close', fail)
  message = message_of(checkpoints.close)
  close()
  assert message == (
    f'{workdir}/checkpoints: the checkpoint could not be saved '
    '(RESOURCE_EXHAUSTED: Failed writing: No space left); free space there and '
    'run the same command again. Whole checkpoints: 1, 2'
  )


@pytest.mark.parametrize('sign', ['', '-'])
def test_an_evaluation_that_is_nan_is_not_the_best(run, tmp_path, sign):
  workdir, config, _ = run
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  name = 'eval/loss'
  for other in 'NaN', 'null':
    for first, second in (other, '0.5'), ('0.5', other):
      lines = [f'{{"step": 1, "{name}": {first}}}']
      lines += [f'{{"step": 2, "{name}": {second}}}']
      (copy / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
      config.checkpoint.best_metric = sign + name
      with contextlib.closing(
        checkpoint.Checkpoints(str(copy), config, read_only=True)
      ) as checkpoints:
        right = 2 if second == '0.5' else 1
        assert checkpoints.select('best', -1) == [right]


def test_states_are_restored_into_abstract_arrays(run):
  """Of which Orbax checks the shapes; NumPy's would be taken unchecked."""
  _, config, model = run
  abstract = _abstract(config, model)
  kinds = {type(x) for x in jax.tree.leaves(abstract)}
  assert kinds == {jax.ShapeDtypeStruct}


def test_a_step_that_is_renamed_or_removed_is_one_line(run, tmp_path):
  workdir, config, model = run
  folder = tmp_path / 'run/checkpoints'
  shutil.copytree(workdir / 'checkpoints', folder)
  (folder / '00000002').rename(folder / '00000009')
  abstract = _abstract(config, model)
  with contextlib.closing(
    checkpoint.Checkpoints(str(tmp_path / 'run'), config, read_only=True)
  ) as checkpoints:
    assert message_of(checkpoints.restore, 9, abstract) == (
      f'{folder}/00000009 holds step 2; rename it to 00000002, or move it away'
    )
    shutil.rmtree(folder / '00000001')
    for read in (checkpoints.restore, 1, abstract), (checkpoints.select, '', 1):
      assert message_of(*read) == (
        f'{folder}: a run that goes on there replaced what was read; run the '
        'same command again'
      )


def test_a_step_below_the_latest_is_saved_too(tmp_path):
  """Orbax returns False for it unless it is forced."""
  config = tiny.make_config()
  _, states = runs.save(tmp_path, config, steps=(2,))
  with contextlib.closing(
    checkpoint.Checkpoints(str(tmp_path), config)
  ) as checkpoints:
    checkpoints.save(states[2], 1, {})
    checkpoints.wait()
    assert checkpoints.steps == [1, 2]
