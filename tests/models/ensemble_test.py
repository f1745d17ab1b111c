"""Averages over views and networks: against NumPy, one view at a time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unet_jax.models import ensemble

_FLIPS = [(), ('horizontal',), ('vertical',), ('horizontal', 'vertical')]


def _ensemble(members=1, **fields):
  config = tiny.make_config()
  config.inference.update(**fields)
  return ensemble.make_ensemble(config, members)


def _apply(variables, x):
  """A network whose output depends on the place and the neighbours."""
  height, width = x.shape[-3:-1]
  ramp = jnp.arange(height)[:, None, None] * 0.3 + jnp.arange(width)[:, None]
  right = jnp.roll(x, 1, axis=-2)
  return (x * ramp * 0.1 - right) @ variables['kernel']


def _inputs(classes, members=1, size=(6, 6), seed=0):
  rng = np.random.default_rng(seed)
  kernel = rng.normal(size=(members, 2, classes)).astype(np.float32)
  image = rng.normal(size=(3, *size, 2)).astype(np.float32)
  return {'kernel': kernel}, image


def _probabilities(logits):
  logits = np.asarray(logits, np.float64)
  if logits.shape[-1] == 1:
    return 1 / (1 + np.exp(-logits))
  e = np.exp(logits - logits.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize('flips', _FLIPS)
@pytest.mark.parametrize('rotate', [False, True])
def test_views_are_the_group_that_is_asked_for(flips, rotate):
  views = _ensemble(flips=flips, rotate_90=rotate).views
  image = np.arange(9, dtype=np.int32).reshape(1, 3, 3, 1)
  got = {np.asarray(ensemble._view(image, view)).tobytes() for view in views}
  both = {True: (False, True), False: (False,)}
  mirrors, tops = both['horizontal' in flips], both['vertical' in flips]
  turns = range(4) if rotate else (0,)
  want = set()
  for turn, mirror, top in itertools.product(turns, mirrors, tops):
    x = np.rot90(image, turn, (1, 2))
    x = x[:, :, ::-1] if mirror else x
    want.add((x[:, ::-1] if top else x).tobytes())
  assert got == want and len(views) == len(want)
  assert views[0] == ensemble.View()


@pytest.mark.parametrize('classes', [1, 3])
@pytest.mark.parametrize('members', [1, 3])
@pytest.mark.parametrize('flips', [_FLIPS[0], *_FLIPS[2:]])
@pytest.mark.parametrize('rotate', [False, True])
def test_average_of_views_and_networks(classes, members, flips, rotate):
  variables, image = _inputs(classes, members)
  group = _ensemble(members, flips=flips, rotate_90=rotate)
  one = jax.tree.map(lambda x: x[0], variables)
  got = jax.jit(ensemble.ensemble_logits, static_argnums=(0, 3))(
    _apply, variables if members > 1 else one, image, group
  )
  total = []
  for member, view in itertools.product(range(members), group.views):
    seen = image.swapaxes(1, 2) if view.transpose else image
    seen = seen[:, ::-1] if view.flip_rows else seen
    seen = seen[:, :, ::-1] if view.flip_columns else seen
    logits = np.asarray(_apply({'kernel': variables['kernel'][member]}, seen))
    logits = logits[:, :, ::-1] if view.flip_columns else logits
    logits = logits[:, ::-1] if view.flip_rows else logits
    logits = logits.swapaxes(1, 2) if view.transpose else logits
    total.append(_probabilities(logits))
  want = np.mean(total, 0)
  np.testing.assert_allclose(_probabilities(got), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('scales', [(1.0, 1.5), (1.5,)])
def test_scaled_views_equal_torch(scales):
  torch = pytest.importorskip('torch', reason='compares with torch')
  variables, image = _inputs(3, size=(8, 6))
  one = {'kernel': variables['kernel'][0]}
  group = _ensemble(scales=scales)
  got = ensemble.ensemble_logits(_apply, one, image, group)

  def resize(x, size):
    x = torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())
    resized = torch.nn.functional.interpolate
    x = resized(x, size, mode='bilinear', antialias=True)
    return x.numpy().transpose(0, 2, 3, 1)

  larger = np.asarray(_apply(one, resize(image, (12, 9))))
  want = [_probabilities(resize(larger, (8, 6)))]
  if 1.0 in scales:
    want.append(_probabilities(_apply(one, image)))
  want = np.mean(want, 0)
  np.testing.assert_allclose(_probabilities(got), want, rtol=1e-4, atol=1e-5)


def test_one_view_of_one_network_is_the_network_itself():
  group = _ensemble()
  assert group == ensemble.SINGLE and group.count == 1
  variables, image = _inputs(3)
  one = {'kernel': variables['kernel'][0]}
  averaged = lambda v, x: ensemble.ensemble_logits(_apply, v, x, group)
  a, b = (jax.jit(f).lower(one, image).as_text() for f in (_apply, averaged))
  assert a.split('\n', 1)[1] == b.split('\n', 1)[1]


@pytest.mark.parametrize('classes', [1, 2])
def test_certain_networks_stay_finite(classes):
  variables, image = _inputs(classes)
  one = {'kernel': variables['kernel'][0] * 1e6}
  group = _ensemble(flips=('horizontal',))
  got = ensemble.ensemble_logits(_apply, one, image, group)
  assert np.isfinite(got).all()


def test_volumes_are_flipped_in_their_planes():
  rng = np.random.default_rng(0)
  volume = rng.normal(size=(2, 3, 6, 6, 2)).astype(np.float32)
  variables = {'kernel': rng.normal(size=(2, 2)).astype(np.float32)}
  group = _ensemble(flips=('vertical',))
  average = lambda x: ensemble.ensemble_logits(_apply, variables, x, group)
  want = np.stack([average(volume[:, i]) for i in range(3)], 1)
  np.testing.assert_allclose(average(volume), want, rtol=1e-5, atol=1e-6)
