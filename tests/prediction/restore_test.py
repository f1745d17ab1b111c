"""The parameters to predict with, of checkpoints, folds and further runs."""

import shutil

import jax
import numpy as np
import pytest

from tests import runs
from tests.prediction.conftest import make_config
from unet_jax.prediction import restore
from unet_jax.runtime import errors, mesh


def _restore(config, workdir):
  return restore.restore(config, str(workdir), mesh.make_mesh(config))


def _assert_same(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)


def test_one_checkpoint(workdir):
  path, config, _, states = workdir
  raw = make_config(checkpoint={'step': 1}, eval={'params': 'raw'})
  run = {'workdir': str(path), 'fold': None, 'edges': (), 'origins': ()}
  for asked, step, params, expected in (
    (config, 2, 'ema', states[2].ema_params),
    (raw, 1, 'raw', states[1].params),
  ):
    variables, ensemble, about = _restore(asked, path)
    _assert_same(variables['params'], expected)
    assert ensemble.count == 1
    assert about == [{**run, 'step': step, 'params': params}]


def test_all_checkpoints(workdir):
  path, _, _, states = workdir
  config = make_config(checkpoint={'which': 'all'})
  variables, ensemble, about = _restore(config, path)
  assert ensemble.members == 2 and [a['step'] for a in about] == [1, 2]
  for i, step in enumerate((1, 2)):
    member = jax.tree.map(lambda x, i=i: x[i], variables['params'])
    _assert_same(member, states[step].ema_params)


def test_several_runs_and_folds(workdir, tmp_path):
  path, _, _, states = workdir
  folds = make_config(data={'num_folds': 2})
  for fold in range(2):
    folds.data.fold = fold
    runs.save(tmp_path / 'cv' / f'fold_{fold}', folds, seed=fold + 1)
  config = _averaged_with(path)
  config.data.num_folds = 2
  networks = [*(f'{tmp_path}/cv/fold_{fold}' for fold in range(2)), str(path)]
  assert restore.member_workdirs(config, str(tmp_path / 'cv')) == networks
  variables, ensemble, about = _restore(config, tmp_path / 'cv')
  assert ensemble.members == 3
  assert [a['fold'] for a in about] == ['fold_0', 'fold_1', None]
  last = jax.tree.map(lambda x: x[-1], variables['params'])
  _assert_same(last, states[2].ema_params)


def test_no_checkpoints_there(workdir, tmp_path):
  path, _, _, _ = workdir
  with pytest.raises(errors.UserError, match=f'{tmp_path} has no checkpoints/'):
    _restore(make_config(), tmp_path)
  with pytest.raises(errors.UserError, match='/none: no such folder; name'):
    _restore(make_config(), tmp_path / 'none')
  with pytest.raises(errors.UserError, match='or name the right --config.inf'):
    _restore(_averaged_with(tmp_path), path)


def _averaged_with(workdir):
  return make_config(inference={'ensemble': (str(workdir),)})


def test_ensemble_of_another_network_or_other_classes(workdir, tmp_path):
  path, _, _, _ = workdir
  classes = {'mask_values': ((0, 1), (1, 0), (2, 2))}
  for message, other in {
    'of another network: model.base': {'model': {'base_features': 6}},
    'averaged with .*mask_values is': {'data': classes},
    'averaged with .*orientation is': {'data': {'orientation': 'upright'}},
  }.items():
    shutil.rmtree(tmp_path)
    runs.save(tmp_path, make_config(**other))
    with pytest.raises(errors.UserError, match=message):
      _restore(_averaged_with(tmp_path), path)


def test_a_fold_that_was_not_trained(workdir, tmp_path):
  runs.save(tmp_path / 'fold_0', make_config())
  with pytest.raises(errors.UserError, match='fold_1: no such folder'):
    _restore(make_config(data={'num_folds': 2}), tmp_path)
  (tmp_path / 'fold_1').mkdir()
  with pytest.raises(errors.UserError, match='fold_1 has no .*right --work'):
    _restore(make_config(data={'num_folds': 2}), tmp_path)


def test_arrays_of_another_version(tmp_path):
  runs.save(tmp_path, make_config())
  # As norms with biases once had none.
  path = tmp_path / 'checkpoints/00000001/config'
  file = path / 'metadata'
  file.write_text(file.read_text().replace('"norm": "none"', '"norm": "layer"'))
  (path.parent / 'digests.json').unlink()
  with pytest.raises(errors.UserError, match='step 1 has other arrays than'):
    _restore(make_config(model={'norm': 'layer'}), tmp_path)
