"""Which parameters predict, and a run as a function of images."""

import json

import jax
import numpy as np
import pytest

import unet_jax
from tests import runs, tiny
from unet_jax.prediction import restore
from unet_jax.prediction import step as step_lib
from unet_jax.runtime import errors, mesh


def _config(**sections):
  sections['model'] = {'norm': 'none', **sections.get('model', {})}
  data = {'image_size': (16, 16), 'num_workers': 2, **sections.pop('data', {})}
  return tiny.make_config(data=data, **sections)


def _restore(config, workdir):
  return restore.restore(config, str(workdir), mesh.make_mesh(config))


def _assert_same(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Of a run with two checkpoints; the states of these."""
  path = tmp_path_factory.mktemp('run')
  config = _config(checkpoint={'keep_latest': 2})
  return path, config, *runs.save(path, config, steps=(1, 2))


def test_one_checkpoint(workdir):
  path, config, _, states = workdir
  variables, ensemble, about = _restore(config, path)
  _assert_same(variables['params'], states[2].ema_params)
  assert ensemble.count == 1
  run = {'workdir': str(path), 'fold': None}
  assert about == [{**run, 'step': 2, 'params': 'ema'}]


def test_raw_parameters_of_a_step(workdir):
  path, _, _, states = workdir
  config = _config(checkpoint={'step': 1}, eval={'params': 'raw'})
  variables, _, about = _restore(config, path)
  _assert_same(variables['params'], states[1].params)
  run = {'workdir': str(path), 'fold': None}
  assert about == [{**run, 'step': 1, 'params': 'raw'}]


def test_all_checkpoints(workdir):
  path, _, _, states = workdir
  config = _config(checkpoint={'which': 'all'})
  variables, ensemble, about = _restore(config, path)
  assert ensemble.members == 2 and [a['step'] for a in about] == [1, 2]
  for i, step in enumerate((1, 2)):
    member = jax.tree.map(lambda x, i=i: x[i], variables['params'])
    _assert_same(member, states[step].ema_params)


def test_several_runs_and_folds(workdir, tmp_path):
  path, _, _, states = workdir
  folds = _config(data={'num_folds': 2})
  for fold in range(2):
    folds.data.fold = fold
    runs.save(tmp_path / 'cv' / f'fold_{fold}', folds, seed=fold + 1)
  config = _config(data={'num_folds': 2}, inference={'ensemble': (str(path),)})
  assert restore.member_workdirs(config, str(tmp_path / 'cv')) == [
    *(str(tmp_path / 'cv' / f'fold_{fold}') for fold in range(2)),
    str(path),
  ]
  variables, ensemble, about = _restore(config, tmp_path / 'cv')
  assert ensemble.members == 3
  assert [a['fold'] for a in about] == ['fold_0', 'fold_1', None]
  last = jax.tree.map(lambda x: x[-1], variables['params'])
  _assert_same(last, states[2].ema_params)


def test_no_checkpoints_there(workdir, tmp_path):
  path, _, _, _ = workdir
  with pytest.raises(errors.UserError, match=f'{tmp_path} has no checkpoints/'):
    _restore(_config(), tmp_path)
  with pytest.raises(errors.UserError, match='/none: no such folder; name'):
    _restore(_config(), tmp_path / 'none')
  config = _config(inference={'ensemble': (str(tmp_path),)})
  with pytest.raises(errors.UserError, match='or name the right --config.inf'):
    _restore(config, path)


def test_ensemble_of_another_network(workdir, tmp_path):
  path, _, _, _ = workdir
  runs.save(tmp_path / 'wide', _config(model={'base_features': 6}))
  config = _config(inference={'ensemble': (str(tmp_path / 'wide'),)})
  with pytest.raises(errors.UserError, match='of another network: model.base'):
    _restore(config, path)


def test_an_average_of_other_classes(workdir, tmp_path):
  path, _, _, _ = workdir
  other = _config(data={'mask_values': ((0, 1), (1, 0), (2, 2))})
  runs.save(tmp_path / 'other', other)
  config = _config(inference={'ensemble': (str(tmp_path / 'other'),)})
  with pytest.raises(errors.UserError, match='averaged with .*mask_values is'):
    _restore(config, path)


def test_a_fold_that_was_not_trained(workdir, tmp_path):
  runs.save(tmp_path / 'fold_0', _config())
  with pytest.raises(errors.UserError, match='fold_1: no such folder'):
    _restore(_config(data={'num_folds': 2}), tmp_path)
  (tmp_path / 'fold_1').mkdir()
  with pytest.raises(errors.UserError, match='fold_1 has no .*right --work'):
    _restore(_config(data={'num_folds': 2}), tmp_path)


def test_arrays_of_another_version(tmp_path):
  runs.save(tmp_path, _config())
  # As norms with biases once had none.
  path = tmp_path / 'checkpoints/00000001/config'
  file = path / 'metadata'
  file.write_text(file.read_text().replace('"norm": "none"', '"norm": "layer"'))
  with pytest.raises(errors.UserError, match='step 1 has other arrays than'):
    restore.restore(
      _config(model={'norm': 'layer'}),
      str(tmp_path),
      mesh.make_mesh(_config()),
    )


# A run as a function.


def _logits(model, state, image, config):
  return np.asarray(
    step_lib.predict_step(
      state.variables('ema'),
      image[None],
      model=model,
      mean=config.data.mean,
      std=config.data.std,
    )[0],
    np.float64,
  )


def _softmax(logits):
  e = np.exp(logits - logits.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_load(workdir):
  path, config, model, states = workdir
  segment = unet_jax.load(path)
  assert segment.class_names == ('class_0', 'class_1', 'class_2')
  rng = np.random.default_rng(0)
  batch = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
  want = [_softmax(_logits(model, states[2], x, config)) for x in batch]
  one = segment(batch[0])
  assert one.shape == (16, 16, 3) and one.dtype == np.float32
  np.testing.assert_allclose(one, want[0], atol=1e-5)
  np.testing.assert_allclose(segment(batch), want, atol=1e-5)
  assert segment(batch[:0]).shape == (0, 16, 16, 3)
  several = segment([batch[0], batch[1, :9, :12], batch[2]])
  assert [x.shape for x in several] == [(16, 16, 3), (9, 12, 3), (16, 16, 3)]
  np.testing.assert_allclose(several[2], want[2], atol=1e-5)
  np.testing.assert_allclose(several[1].sum(-1), 1, atol=1e-5)
  # The same image in other types, and with alpha.
  alpha = np.concatenate([batch[0], batch[1, ..., :1]], -1)
  for same in (
    batch[0] / 255,
    batch[0].astype(np.float32) / 255,
    batch[0].astype(np.int64),
    batch[0].astype(np.int16),
    batch[0].astype(np.uint16) * 257,
    alpha,
  ):
    np.testing.assert_allclose(segment(same), want[0], atol=1e-5)
  white = np.full((16, 16), 255, np.uint8)
  np.testing.assert_array_equal(segment(white > 0), segment(white))


def test_load_of_an_average(workdir):
  path, config, model, states = workdir
  segment = unet_jax.load(
    path,
    {'checkpoint.which': 'all', 'inference.flips': ('horizontal',)},
  )
  image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  want = []
  for step in (1, 2):
    straight = _logits(model, states[step], image, config)
    mirrored = _logits(model, states[step], image[:, ::-1], config)[:, ::-1]
    want += [_softmax(straight), _softmax(mirrored)]
  np.testing.assert_allclose(segment(image), np.mean(want, 0), atol=1e-5)


def test_load_of_a_sigmoid_gives_two_classes(tmp_path):
  config = _config(data={'num_classes': 1})
  model, states = runs.save(tmp_path, config)
  image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  got = unet_jax.load(tmp_path)(image)
  logits = _logits(model, states[1], image, config)[..., 0]
  np.testing.assert_allclose(got[..., 1], 1 / (1 + np.exp(-logits)), atol=1e-5)
  np.testing.assert_allclose(got.sum(-1), 1, atol=1e-6)


def test_a_run_of_many_devices_is_loaded_on_any(tmp_path):
  config = _config(data={'batch_size': 6}, mesh={'data': 2, 'spatial': 4})
  assert dict(mesh.make_prediction_mesh(config).shape) == {
    'data': 2,
    'fsdp': 1,
    'spatial': 1,
  }
  config.data.batch_size = 5
  assert mesh.make_prediction_mesh(config).size == 1


def test_mistakes_in_loading(workdir, tmp_path):
  path, *_ = workdir
  with pytest.raises(errors.UserError, match='has no config.json'):
    unet_jax.load(tmp_path)
  for field, value, message in (
    ('inference.blend', 'mean', 'inference.blend=mean: not one of'),
    ('inference.flip', (), r'no such field \(did you mean inference.flips'),
    ('inference.flips', 'horizontal', 'takes a tuple, such as \\(\\)'),
  ):
    with pytest.raises(errors.UserError, match=message):
      unet_jax.load(path, {field: value})
  segment = unet_jax.load(path)
  for image, message in (
    (np.zeros((0, 4, 3), np.uint8), r'not of shape \(0, 4, 3\)'),
    ('cat.jpg', r'not of shape \(\)'),
    (np.full((4, 4, 3), 200.0), '200, expected 0..1; pass uint8'),
    (np.full((4, 4, 3), 256), 'to 256, expected 0..255'),
    (np.full((4, 4, 3), -1), 'from -1 to -1, expected 0..255'),
    (np.full((4, 4, 3), np.nan), 'from nan to nan, expected 0..1'),
  ):
    with pytest.raises(errors.UserError, match=message):
      segment(image)
  config = json.loads((path / 'config.json').read_text())
  config['model']['norm'] = 'batch'
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(errors.UserError, match='has no checkpoints/'):
    unet_jax.load(tmp_path)
