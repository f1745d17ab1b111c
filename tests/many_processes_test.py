"""Modes in two processes, each with its part of the images, against one."""

import json
import pathlib
import shutil
import socket

import jax
import pytest
from orbax.checkpoint._src.path import step

from tests import folders, program, runs
from unet_jax import evaluate, inspect_data, predict
from unet_jax.runtime import errors

# Of an evaluation; in `rows`, both processes have rows of each image.
_WAYS = ('network', 'rows', 'original')


def _config(root):
  config = folders.make_config(root / 'data', val_fraction=0.5)
  config.data.update(batch_size=4, cache_dir=str(root / 'cache'))
  config.data.check = False
  config.model.update(depth=1, base_features=2)
  config.predict.input = str(root / 'data/images')
  return config


def _all_modes(root, name):
  """Runs them all in this process; as main.py would, one after the other."""
  config, workdir = _config(root), str(root / name)
  for way in _WAYS:
    config.eval.resolution = 'original' if way == 'original' else 'network'
    config.mesh.spatial = jax.device_count() if way == 'rows' else 1
    evaluate.run(config, workdir)
    if jax.process_index() == 0:
      for kind in ('json', 'csv'):
        new = root / f'{name}_{way}.{kind}'
        shutil.move(root / name / f'eval.{kind}', new)
  if jax.process_index():
    # This process is one whose view of the shared folder is late.
    names = step._StandardNameFormat
    names._glob_step_paths = lambda *_: []  # type: ignore[method-assign]
  predict.run(config, workdir)
  inspect_data.run(config, workdir)
  # The last process has an image that nobody can read.
  (root / name / 'broken').mkdir(exist_ok=True)
  good = sorted((root / 'data/images').iterdir())[0]
  shutil.copy(good, root / name / 'broken/a.png')
  (root / name / 'broken/b.png').write_bytes(b'no image')
  config.predict.input = str(root / name / 'broken')
  config.predict.output = str(root / name / 'none')
  with pytest.raises(errors.DecodeError, match='b.png'):
    predict.run(config, workdir)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  root = tmp_path_factory.mktemp('modes')
  # Nine images, so that parts are not equal, of two sizes.
  pairs = folders.make_pairs(9)
  pairs['09'] = folders.make_pair(9, (40, 64))
  folders.write_pairs(root / 'data', pairs)
  runs.save(root / 'one', _config(root))
  shutil.copytree(root / 'one', root / 'two')
  _all_modes(root, 'one')
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  processes = [
    program.fork(
      _all_modes,
      root,
      'two',
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(i),
    )
    for i in range(2)
  ]
  printed = [program.finish(process)[0] for process in processes]
  return root, printed


@pytest.mark.parametrize('way', _WAYS)
def test_evaluation(results, way):
  root, printed = results
  one, two = (
    json.loads((root / f'{name}_{way}.json').read_text())
    for name in ('one', 'two')
  )
  assert one['num_examples'] == 5
  for about in (one, two):
    about['workdirs'] = None
    about.pop('settings')
  runs.assert_figures(
    {k: v for k, v in two.items() if 'seconds' not in k},
    {k: v for k, v in one.items() if 'seconds' not in k},
  )
  rows = [(root / f'{name}_{way}.csv').read_text() for name in ('one', 'two')]
  assert rows[0] == rows[1]
  assert 'dataset_iou' in printed[0] and 'dataset_iou' not in printed[1]


def test_predictions(results):
  root, printed = results
  one, two = (
    {path.name: path.read_bytes() for path in (root / name).glob('**/*.png')}
    for name in ('one/predictions/masks', 'two/predictions/masks')
  )
  assert len(one) == 10 and one == two
  index = json.loads((root / 'two/predictions/index.json').read_text())
  assert len(index['images']) == 10
  assert '10 images, 10 new' in printed[0] and ' new' not in printed[1]


def test_inspection(results):
  root, _ = results
  one, two = (
    json.loads((root / name / 'inspect.json').read_text())
    for name in ('one', 'two')
  )
  for key in ('splits', 'findings', 'fit', 'counts'):
    assert one[key] == two[key], key


def test_an_error_of_one_ends_all(results):
  root, printed = results
  assert not list(pathlib.Path(root, 'two/none/masks').glob('b.*'))
