"""Steps against NumPy, the formulas that they implement, and themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests import tiny
from unet_jax.models import unet
from unet_jax.runtime import mesh
from unet_jax.training import losses, optimizer, steps, update

_KEY = jax.random.key(7)


def _assert_close(actual, expected, rtol=1e-4, atol=1e-6):
  close = lambda a, b: assert_allclose(a, b, rtol=rtol, atol=atol)
  jax.tree.map(close, actual, expected)


def _numpy(tree):
  """Copies, which outlive the donated buffers."""
  return jax.tree.map(np.array, tree)


_NO_FLIPS = {'flip_horizontal': 0.0, 'flip_vertical': 0.0}


def _config(**sections):
  return tiny.make_config(augment=_NO_FLIPS, **sections)


def _plain(model=None, **sections):
  """Without norm and, unless `model` says otherwise, at depth 0."""
  model = {'depth': 0, 'norm': 'none', **(model or {})}
  return tiny.make_config(model=model, **sections)


def _at(state, step):
  return state.replace(step=jnp.asarray(step, jnp.int32))


def _cross_entropies(logits, mask):
  """Of the pixels that count, 0 elsewhere; and where they are."""
  valid = mask != 255
  target = np.where(valid, mask, 0).astype(int)[..., None]
  log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target, -1)[..., 0]
  return -log_p * valid, valid


@pytest.fixture(scope='module')
def whole():
  """A config without norm, its state after a step of the whole batch."""
  config = _config(model={'norm': 'none'})
  state, step = tiny.setup(config)
  batch = tiny.make_batch(config)
  before = _numpy(state)
  after, metrics = step(state, batch, _KEY)
  return config, batch, before, _numpy(after), _numpy(metrics), step


@functools.cache
def _step_in_parts(parts):
  """The step of `whole`, but that it takes the batch in parts."""
  optimizer = {'accumulate_steps': parts}
  return tiny.setup(_config(model={'norm': 'none'}, optimizer=optimizer))[1]


def test_normalize():
  image = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
  mean, std = (0.48, 0.45, 0.1), (0.26, 0.5, 1.0)
  actual = jax.jit(lambda x: steps.normalize(x, mean, std))(image)
  assert actual.dtype == jnp.float32
  expected = (image.astype(np.float64) / 255 - mean) / std
  assert_allclose(actual, expected, atol=1e-6)


def test_loss_falls_on_a_fixed_batch():
  config = _config(optimizer={'learning_rate': 0.5})
  state, step = tiny.setup(config)
  batch = tiny.make_batch(config)
  history = []
  for _ in range(12):
    state, metrics = step(state, batch, _KEY)
    history.append(float(metrics['loss']))
  assert int(state.step) == 12
  assert history[-1] < 0.8 * history[0]
  # Statistics of the batch norm move as well.
  assert not np.allclose(state.batch_stats['down_0']['norm1']['mean'], 0)


def test_step_is_gradient_descent_on_the_mean_loss(whole):
  """Loss, gradient norm and update against a plain jax.grad."""
  config, batch, before, after, metrics, _ = whole
  model = unet.create_model(config)

  @jax.jit
  @jax.value_and_grad
  def loss_of(params):
    x = (batch['image'] / 255 - np.float32(0.5)) / np.float32(0.25)
    logits = model.apply({'params': params}, x, train=True)
    values, valid = _cross_entropies(logits, batch['mask'])
    return values.sum() / valid.sum()

  loss, gradient = loss_of(before.params)
  norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
  assert_allclose(metrics['loss'], loss, rtol=1e-5)
  assert_allclose(metrics['grad_norm'], norm, rtol=1e-4)
  assert set(metrics) == {'loss', 'grad_norm', 'learning_rate'}
  scale = min(1, config.optimizer.clip_norm / norm)
  decay = lambda path: 1e-4 * (path[-1].key == 'kernel')
  descend = lambda path, p, g: p - 0.1 * (scale * g + decay(path) * p)
  expected = jax.tree.map_with_path(descend, before.params, gradient)
  _assert_close(after.params, expected)


def test_weight_map_weighs_loss_and_gradient(whole):
  """A map of 0 and 1 is a mask that is ignored; a constant changes nothing.

  The training step takes the batch in parts; the evaluation has it as well.
  """
  config, batch, *_, step = whole
  chosen = np.random.default_rng(0).random(batch['mask'].shape) < 0.4
  ignored = {**batch, 'mask': np.where(chosen, batch['mask'], 255)}
  weighted = {**batch, 'weight_map': 3 * chosen.astype(np.float16)}
  expected, metrics = step(tiny.setup(config)[0], ignored, _KEY)
  state, _ = tiny.setup(config)
  actual, actual_metrics = _step_in_parts(2)(state, weighted, _KEY)
  assert_allclose(actual_metrics['loss'], metrics['loss'], rtol=1e-5)
  _assert_close(actual.params, expected.params)

  config = _plain()
  state, _ = tiny.setup(config)
  weight = np.ones(len(batch['mask']), np.float32)
  of_ignored, of_weighted = (
    tiny.evaluate(config, state, {**b, 'weight': weight})
    for b in (ignored, weighted)
  )
  for name in ('loss_total', 'loss_count'):
    a, b = (x[name]['cross_entropy'] for x in (of_weighted, of_ignored))
    assert_allclose(a, 3 * b, rtol=1e-5)
  # Scores count the pixels of the mask, however they weigh in the loss.
  pixels = np.asarray(of_weighted['confusion']).sum()
  assert pixels == np.sum(batch['mask'] != 255)


@pytest.mark.parametrize('parts', [2, 8])
def test_accumulated_parts_give_the_step_of_the_whole(parts, whole):
  """Though the ignored pixels are unevenly spread over the parts."""
  config, batch, _, after, metrics, _ = whole
  ignored = (batch['mask'] == 255).mean((1, 2))
  assert ignored[0] > 0.8 and ignored[-1] < 0.1
  state, _ = tiny.setup(config)
  actual, actual_metrics = _step_in_parts(parts)(state, batch, _KEY)
  _assert_close(actual.params, after.params)
  _assert_close(actual_metrics, metrics, rtol=1e-5, atol=0)
  assert int(actual.step) == 1


def test_terms_of_the_loss_are_logged_by_name():
  config = _config(model={'depth': 0}, optimizer={'accumulate_steps': 2})
  config.loss.update(label_smoothing=0.1, class_weights=(1.0, 2.0, 3.0))
  config.loss.weights.update(cross_entropy=0.5, dice=2.0)
  state, step = tiny.setup(config)
  _, metrics = step(state, tiny.make_batch(config), _KEY)
  entropy, dice = metrics.pop('loss/cross_entropy'), metrics.pop('loss/dice')
  assert set(metrics) == {'loss', 'grad_norm', 'learning_rate'}
  assert_allclose(metrics['loss'], 0.5 * entropy + 2 * dice, rtol=1e-6)
  assert 0 < dice < 1


def test_averages_follow_the_parameters():
  config = _config(
    model={'depth': 0}, optimizer={'ema_decay': 0.25, 'learning_rate': 1.0}
  )
  state, step = tiny.setup(config)
  batch = tiny.make_batch(config)
  average = _numpy((state.params, state.batch_stats))
  # (1 + step) / (10 + step): 0.1, 0.1818, then the decay of 0.25.
  for rate in (1 / 10, 2 / 11, 3 / 12, 1 / 4, 1 / 4):
    state, _ = step(state, batch, _KEY)
    follow = lambda a, x: rate * a + (1 - rate) * np.asarray(x)
    average = jax.tree.map(follow, average, (state.params, state.batch_stats))
    actual = state.ema_params, state.ema_batch_stats
    _assert_close(actual, average, rtol=1e-5)
  moved = jax.tree.map(lambda a, b: abs(a - b).max(), actual[0], state.params)
  assert max(jax.tree.leaves(moved)) > 1e-3
  raw, ema = state.variables('raw'), state.variables('ema')
  assert raw == {'params': state.params, 'batch_stats': state.batch_stats}
  assert ema['params'] is state.ema_params
  assert ema['batch_stats'] is state.ema_batch_stats


def test_state_without_average():
  config = _config(optimizer={'ema_decay': 0.0})
  state, _ = tiny.setup(config)
  assert state.ema_params is None and state.ema_batch_stats is None
  assert state.variables('ema') == state.variables('raw')


def test_what_is_random_depends_on_key_and_step_alone():
  # The state stands still; only what is random can change the loss.
  config = _plain({'dropout': 0.5}, optimizer={'learning_rate': 0.0})
  _, step = tiny.setup(config)
  batch = tiny.make_batch(config)

  def loss(key, number):
    state = _at(tiny.setup(config)[0], number)
    return float(step(state, batch, key)[1]['loss'])

  assert loss(_KEY, 3) == loss(_KEY, 3)
  others = [loss(_KEY, 4), loss(jax.random.key(8), 3)]
  assert len({loss(_KEY, 3), *others}) == 3


def test_augmentation_changes_with_the_step_and_has_its_own_key():
  config = _plain()
  model, tx = unet.create_model(config), optimizer.make_optimizer(config)
  seen = []

  def spy(key, batch):
    seen.append(key)
    return batch

  apply = update.make_update(config, tx)
  fixed = dict(model=model, update=apply, augmentation=spy)
  fixed |= dict(schedule=lambda step: 0.0, loss_spec=losses.make_spec(config))
  fixed |= dict(mean=config.data.mean, std=config.data.std)

  @jax.jit
  def run(*args):
    steps.train_step(*args, **fixed)
    return jax.random.key_data(seen.pop())

  state = tiny.make_state(config, model, tx, tiny.one_device())
  batch = tiny.make_batch(config)
  at = lambda n, key: tuple(np.asarray(run(_at(state, n), batch, key)))
  assert at(0, _KEY) == at(0, _KEY)
  drawn = [at(0, _KEY), at(1, _KEY), at(2, _KEY), at(0, jax.random.key(8))]
  assert len(set(drawn)) == 4


def _identity(config):
  """Parameters of a depth-0 network whose logits tell red from the rest."""
  model, tx = unet.create_model(config), optax.sgd(0.0)
  state = tiny.make_state(config, model, tx, tiny.one_device())
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), state.params)
  for conv in ('conv1', 'conv2'):
    params['bottleneck'][conv]['kernel'][1, 1, 0, 0] = 1
  # Red is (255 / 255 - 0.5) / 0.25 = 2, black is below 0 and cut off to 0.
  params['head']['kernel'][0, 0, 0] = (-50, 50)
  params['head']['bias'][:] = (50, -50)
  return state.replace(params=params), model, tx


@pytest.mark.parametrize('padding,kept', [('same', 9), ('valid', 5)])
def test_mask_is_cropped_to_the_centre_of_the_image(padding, kept):
  """Any other crop of this mask is wrong by some pixels, at 100 nats each."""
  config = _plain({'padding': padding}, augment=_NO_FLIPS)
  config.data.update(image_size=(9, 9), num_classes=2, batch_size=2)
  config.optimizer.ema_decay = 0.0
  state, model, tx = _identity(config)
  mask = np.random.default_rng(0).integers(0, 2, (2, 9, 9)).astype(np.uint8)
  image = np.zeros((2, 9, 9, 3), np.uint8)
  image[..., 0] = 255 * mask
  batch = {'image': image, 'mask': mask}
  weighted = {**batch, 'weight': np.ones(2, np.float32)}
  result = tiny.evaluate(config, state, weighted)
  assert result['prediction'].shape == (2, kept, kept)
  assert result['prediction'].dtype == np.uint8
  assert result['loss_count']['cross_entropy'] == 2 * kept**2
  assert result['loss_total']['cross_entropy'] < 1e-6
  first = (9 - kept) // 2
  middle = mask[:, first : first + kept, first : first + kept]
  assert_array_equal(result['prediction'], middle)
  confusion = np.asarray(result['confusion']).sum(0)
  assert_array_equal(confusion, np.diag(np.bincount(middle.ravel())))
  device = tiny.one_device()
  step = steps.make_train_step(config, model, tx, device, state)
  # Arrays on the device, which the step may give away.
  state = jax.device_put(state, mesh.replicated(device))
  _, metrics = step(state, batch, _KEY)
  assert metrics['loss'] < 1e-6


def test_deep_supervision_adds_the_losses_of_the_coarser_heads():
  """Of a batch in parts."""
  weights = (0.5, 0.25)
  fields = dict(depth=3, convs=1, norm='none', deep_supervision=weights)
  config = _config(model=fields, data={'image_size': (16, 24)})
  model = unet.create_model(config)
  batch = tiny.make_batch(config)
  image = steps.normalize(batch['image'], config.data.mean, config.data.std)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def by_hand(params):
    """By hand: each pixel of a mask alone, the heads one by one."""
    logits, coarse = model.apply({'params': params}, image, train=True)
    heads = [(1.0, logits, batch['mask'])]
    for edge, weight, out in zip((2, 4), weights, coarse):
      rows, columns = (np.arange(n) * edge + edge // 2 for n in out.shape[1:3])
      heads.append((weight, out, batch['mask'][:, rows][:, :, columns]))
    terms = []
    for weight, out, mask in heads:
      values, valid = _cross_entropies(out, mask)
      terms.append(weight * values.sum() / valid.sum())
    return sum(terms), terms

  config.optimizer.accumulate_steps = 2
  state, step = tiny.setup(config)
  (_, parts), grads = by_hand(state.params)
  old, norm = _numpy(state.params), optax.tree.norm(grads)
  state, metrics = step(state, batch, _KEY)
  coarser = parts[1] + parts[2]
  expected = {'loss': parts[0], 'loss/deep_supervision': coarser}
  for name, value in {**expected, 'grad_norm': norm}.items():
    assert_allclose(metrics[name], value, rtol=1e-5)
  for head in ('head_1', 'head_2'):
    assert np.any(state.params[head]['kernel'] != old[head]['kernel'])
