"""A run as a function of images."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import special

import unet_jax
from tests import runs
from tests.prediction.conftest import make_config
from unet_jax.data import rasters
from unet_jax.prediction import segmenter
from unet_jax.prediction import step as step_lib
from unet_jax.runtime import errors, mesh


def _probabilities(model, state, image, config):
  """By SciPy, of the network's logits."""
  fixed = dict(model=model, mean=config.data.mean, std=config.data.std)
  variables = state.variables('ema')
  logits = step_lib.predict_step(variables, image[None], **fixed)
  logits = np.asarray(logits[0], np.float64)
  if logits.shape[-1] == 1:
    logits = np.concatenate([0 * logits, logits], -1)
  return special.softmax(logits, -1)


def test_load(workdir):
  path, config, model, states = workdir
  segment = unet_jax.load(path)
  assert segment.class_names == ('class_0', 'class_1', 'class_2')
  rng = np.random.default_rng(0)
  batch = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
  want = [_probabilities(model, states[2], x, config) for x in batch]
  one = segment(batch[0])
  assert one.shape == (16, 16, 3) and one.dtype == np.float32
  np.testing.assert_allclose(one, want[0], atol=1e-5)
  np.testing.assert_allclose(segment(batch), want, atol=1e-5)
  assert segment(batch[:0]).shape == (0, 16, 16, 3)
  several = segment([batch[0], batch[1, :9, :12], batch[2]])
  assert [x.shape for x in several] == [(16, 16, 3), (9, 12, 3), (16, 16, 3)]
  np.testing.assert_allclose(several[2], want[2], atol=1e-5)
  np.testing.assert_allclose(several[1].sum(-1), 1, atol=1e-5)
  # The same image in other types, and with alpha that is opaque.
  alpha = np.concatenate([batch[0], np.full_like(batch[0, ..., :1], 255)], -1)
  for same in (
    batch[0] / 255,
    batch[0].astype(np.float32) / 255,
    batch[0].astype(np.int64),
    batch[0].astype(np.int16),
    batch[0].astype(np.uint16) * 257,
    alpha,
    Image.fromarray(batch[0]),
  ):
    np.testing.assert_allclose(segment(same), want[0], atol=1e-5)
  # All values of one bit are exact in bfloat16 too.
  bits = (batch[0] > 128).astype(np.float32)
  for same in jnp.asarray(bits, jnp.bfloat16), batch[0] > 128:
    np.testing.assert_array_equal(segment(same), segment(bits))
  # A palette's indices and inks are no colours.
  for mode in 'P', 'CMYK':
    picture = Image.fromarray(batch[0]).convert(mode)
    colors = np.asarray(picture.convert('RGB'))
    np.testing.assert_array_equal(segment(picture), segment(colors))
  alpha[:3, 5:9, 3] = 0
  with pytest.raises(errors.UserError, match='alpha that is not opaque in 12 '):
    segment(alpha)
  white = np.full((16, 16), 255, np.uint8)
  np.testing.assert_array_equal(segment(white > 0), segment(white))


def test_pixels_without_data_are_nan(workdir):
  segment = unet_jax.load(workdir[0], {'data.alpha': 'nodata'})
  image = np.random.default_rng(0).integers(1, 256, (16, 16, 2), np.uint8)
  image[:3, 5:9, 1] = 0
  found = np.isnan(segment(image)).all(-1)
  np.testing.assert_array_equal(found, image[..., 1] == 0)


def test_load_of_an_average(workdir):
  path, config, model, states = workdir
  fields = {'checkpoint.which': 'all', 'inference.flips': ('horizontal',)}
  segment = unet_jax.load(path, fields)
  image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  want = []
  for step in (1, 2):
    for turn in (np.s_[:], np.s_[:, ::-1]):
      p = _probabilities(model, states[step], image[turn], config)
      want.append(p[turn])
  np.testing.assert_allclose(segment(image), np.mean(want, 0), atol=1e-5)


def test_load_of_a_sigmoid_gives_two_classes(tmp_path):
  config = make_config(data={'num_classes': 1})
  model, states = runs.save(tmp_path, config)
  image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  got = unet_jax.load(tmp_path)(image)
  want = _probabilities(model, states[1], image, config)
  assert got.shape == (16, 16, 2)
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_allclose(got.sum(-1), 1, atol=1e-6)


@pytest.mark.eight_devices
def test_a_run_of_many_devices_is_loaded_on_any(tmp_path):
  config = make_config(data={'batch_size': 6}, mesh={'data': 2, 'spatial': 4})
  shape = mesh.make_prediction_mesh(config).shape
  assert dict(shape) == {'data': 2, 'fsdp': 1, 'spatial': 1}
  config.data.batch_size = 5
  assert mesh.make_prediction_mesh(config).size == 1


def test_mistakes_in_loading(workdir, tmp_path):
  path, *_ = workdir
  with pytest.raises(errors.UserError, match='has no config.json'):
    unet_jax.load(tmp_path)
  for field, value, message in (
    ('inference.blend', 'mean', 'inference.blend=mean: not one of'),
    ('inference.flip', (), r'no such field \(did you mean inference.flips'),
    ('inference.flips', 'horizontal', "='horizontal': takes names with commas"),
  ):
    with pytest.raises(errors.UserError, match=message):
      unet_jax.load(path, {field: value})
  for fields in 'eval.params', ['eval.params'], {1: 2}:
    with pytest.raises(errors.UserError, match='fields are a dict such as {'):
      unet_jax.load(path, fields)
  with pytest.raises(errors.UserError, match='no path of a run; further ones'):
    unet_jax.load([path])
  segment = unet_jax.load(path)
  for image, message in (
    (np.zeros((4, 4, 3), complex), 'complex128 has no values to show'),
    (np.zeros((4, 4, 3), object), 'object has no values to show'),
    (np.zeros((4, 4, 3), 'M8[s]'), r'datetime64\[s\] has no values to show'),
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


def test_arrays_have_one_range_with_files():
  """Of any type; what no image of the training holds is not refused."""
  config = make_config(data={'num_channels': 1, 'num_classes': 2})
  data = config.data
  data.update(intensity='range', intensity_range=(-100, 155))
  values = np.int16([[-100, 0], [155, 3000]])
  for image in (values, values.astype(np.float64), values.astype(np.int64)):
    stored = segmenter._as_stored(image, data)
    rows = rasters.ArrayRaster(stored, data).read(0, 2)
    assert rows[..., 0].tolist() == [[0, 100], [255, 255]]
  data.update(intensity='dtype', intensity_range=(), nodata=('nan',))
  image = np.float32([[0, np.nan], [1, 0]])
  raster = rasters.ArrayRaster(segmenter._as_stored(image, data), data)
  assert raster.ignored(0, 2).tolist() == [[False, True], [False, False]]
