"""Schedules against formulas, updates against PyTorch's optimisers."""

import math

import jax
import numpy as np
import optax
import pytest

from tests.models import networks
from unet_jax.config import default
from unet_jax.models import unet
from unet_jax.training import optimizer


def _config(num_steps=100, **fields):
  config = default.get_config()
  config.train.num_steps = num_steps
  defaults = dict(learning_rate=0.5, warmup_steps=0, clip_norm=0.0)
  config.optimizer.update(schedule='constant', **defaults)
  config.optimizer.update(fields)
  return config


def _params(seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  return {
    'conv1': {'kernel': normal(3, 2), 'bias': normal(2)},
    'norm1': {'scale': normal(2), 'bias': normal(2)},
  }


def _gradients(steps):
  return [_params(seed) for seed in range(1, steps + 1)]


def _train(config, gradients):
  """Parameters after one update for each gradient."""
  tx = optimizer.make_optimizer(config)
  params = _params()
  state = tx.init(params)

  @jax.jit
  def update(params, state, gradient):
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  for gradient in gradients:
    params, state = update(params, state, gradient)
  return params


def _train_torch(make_optimizer, gradients, rates):
  """The same with an optimiser of PyTorch; decay on the kernel alone."""
  torch = pytest.importorskip('torch', reason='compares with PyTorch')
  leaves, tree = jax.tree.flatten_with_path(_params())
  tensors = [torch.nn.Parameter(torch.tensor(x)) for _, x in leaves]
  kernels = [path[-1].key == 'kernel' for path, _ in leaves]
  of = lambda kind: [t for t, k in zip(tensors, kernels) if k == kind]
  tx = make_optimizer(torch, of(True), of(False))
  for gradient, rate in zip(gradients, rates):
    for tensor, g in zip(tensors, jax.tree.leaves(gradient)):
      tensor.grad = torch.tensor(g)
    for group in tx.param_groups:
      group['lr'] = rate
    tx.step()
  return jax.tree.unflatten(tree, [t.detach().numpy() for t in tensors])


def _assert_close(actual, expected):
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
  jax.tree.map(close, actual, expected)


@pytest.mark.parametrize(
  'schedule,middle',
  [
    # Half-way from peak 0.5 to end 0.1 in both; a quarter tells them apart.
    ('cosine', lambda t: 0.1 + 0.4 * (1 + math.cos(math.pi * t)) / 2),
    ('linear', lambda t: 0.5 - 0.4 * t),
    ('constant', lambda t: 0.5),
  ],
)
def test_schedule(schedule, middle):
  fields = dict(warmup_steps=10, schedule=schedule, end_factor=0.2)
  rate = optimizer.make_schedule(_config(num_steps=90, **fields))
  for step in range(10):
    assert rate(step) == pytest.approx(0.05 * (step + 1)), step
  for step in (10, 30, 50, 70, 89, 90):
    assert rate(step) == pytest.approx(middle((step - 10) / 80)), step
  # A run that goes on for longer stays at the end.
  assert rate(200) == pytest.approx(middle(1))


@pytest.mark.parametrize('schedule', ['cosine', 'linear', 'constant'])
@pytest.mark.parametrize('warmup_steps', [0, 1])
def test_schedule_without_warmup_starts_at_the_peak(schedule, warmup_steps):
  config = _config(warmup_steps=warmup_steps, schedule=schedule)
  assert optimizer.make_schedule(config)(0) == pytest.approx(0.5)


def test_run_shorter_than_its_warmup_only_warms_up():
  config = _config(num_steps=5, warmup_steps=10, schedule='cosine')
  rate = optimizer.make_schedule(config)
  for step in range(5):
    assert rate(step) == pytest.approx(0.05 * (step + 1))


@pytest.mark.parametrize('schedule', ['cosine', 'linear'])
def test_schedule_that_ends_before_or_after_the_run(schedule):
  fields = dict(warmup_steps=10, schedule=schedule, end_factor=0.2)
  whole = optimizer.make_schedule(_config(num_steps=90, **fields))
  for num_steps in (30, 300):
    rate = optimizer.make_schedule(
      _config(num_steps=num_steps, decay_steps=90, **fields)
    )
    for step in (0, 9, 10, 25, 89, 90, 250):
      assert rate(step) == whole(step), step


def test_adamw_is_that_of_torch():
  fields = dict(learning_rate=0.1, warmup_steps=4, weight_decay=0.3)
  config = _config(name='adamw', b1=0.8, b2=0.95, eps=1e-4, **fields)
  gradients = _gradients(6)

  def make(torch, kernels, others):
    decayed = {'params': kernels, 'weight_decay': 0.3}
    groups = [decayed, {'params': others, 'weight_decay': 0.0}]
    return torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-4)

  rates = [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
  _assert_close(_train(config, gradients), _train_torch(make, gradients, rates))


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_without_decay_is_that_of_torch(nesterov):
  fields = dict(momentum=0.8, nesterov=nesterov, weight_decay=0.0)
  gradients = _gradients(5)
  make = lambda torch, a, b: torch.optim.SGD(a + b, lr=1.0, **fields)
  expected = _train_torch(make, gradients, [0.5] * 5)
  _assert_close(_train(_config(name='sgd', **fields), gradients), expected)


def test_decay_of_sgd_is_decoupled():
  """PyTorch's goes through the momentum; ours, as AdamW's, does not."""
  config = _config(name='sgd', momentum=0.8, weight_decay=0.2)
  gradients = _gradients(3)
  expected = _params()
  buffers = jax.tree.map(np.zeros_like, expected)
  for gradient in gradients:
    for layer, names in gradient.items():
      for name, g in names.items():
        buffers[layer][name] = 0.8 * buffers[layer][name] + g
        p = expected[layer][name]
        decay = 0.2 * p if name == 'kernel' else 0
        expected[layer][name] = p - 0.5 * (buffers[layer][name] + decay)
  _assert_close(_train(config, gradients), expected)


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_decay_is_on_kernels_alone(name):
  config = _config(name=name, weight_decay=0.1)
  before = _params()
  zeros = jax.tree.map(np.zeros_like, before)
  after = _train(config, [zeros])
  kernel, old = (params['conv1'].pop('kernel') for params in (after, before))
  np.testing.assert_allclose(kernel, old * 0.95)
  jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize('norm', ['batch', 'group', 'none'])
def test_every_kernel_of_the_network_is_decayed_and_nothing_else(norm):
  model = unet.UNet(num_classes=3, depth=1, base_features=2, norm=norm)
  params = networks.shapes(model, 1, 8, 8, 3)['params']
  decayed = jax.tree.leaves(optimizer.decays(params, 1))
  ranks = [len(x.shape) for x in jax.tree.leaves(params)]
  # Kernels are [H, W, C, F]; all else is a vector.
  assert decayed == [r == 4 for r in ranks]
  assert set(ranks) == {1, 4}


@pytest.mark.parametrize(
  'clip_norm,norm,factor', [(1.0, 10.0, 0.1), (1.0, 0.5, 1.0), (0.0, 10.0, 1.0)]
)
def test_clipping_is_by_the_global_norm(clip_norm, norm, factor):
  fields = dict(momentum=0.0, weight_decay=0.0, clip_norm=clip_norm)
  (gradient,) = _gradients(1)
  size = math.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
  gradient = jax.tree.map(lambda g: g * np.float32(norm / size), gradient)
  descend = lambda p, g: p - 0.5 * factor * g
  expected = jax.tree.map(descend, _params(), gradient)
  _assert_close(_train(_config(name='sgd', **fields), [gradient]), expected)


def test_moments_of_a_bfloat16_network_are_float32():
  """In bfloat16, Adam's second moment would stand still (b2 is 0.999)."""
  model = unet.UNet(
    num_classes=3, depth=1, base_features=2, dtype='bfloat16', norm='batch'
  )
  params = networks.shapes(model, 1, 8, 8, 3)['params']
  state = jax.eval_shape(optimizer.make_optimizer(_config()).init, params)
  types = {x.dtype for x in jax.tree.leaves(state) if x.shape}
  assert types == {np.dtype('float32')}


@pytest.mark.parametrize(
  'num_steps, warmup_steps',
  # Those of the published configs are as they were with 50.
  [(1, 0), (8, 1), (150, 18), (399, 49), (400, 50), (1000, 50), (10**5, 50)],
)
def test_warmup_in_proportion_to_the_run(num_steps, warmup_steps):
  fields = dict(num_steps=num_steps, schedule='constant')
  found = optimizer.make_schedule(_config(warmup_steps=-1, **fields))
  expected = optimizer.make_schedule(
    _config(warmup_steps=warmup_steps, **fields)
  )
  steps = np.arange(min(num_steps, 60))
  np.testing.assert_array_equal(found(steps), expected(steps))


@pytest.mark.parametrize('warmup_steps, warns', [(150, 1), (20, 0), (-1, 0)])
def test_a_warmup_of_a_longer_run_is_said(warmup_steps, warns, caplog):
  optimizer.make_optimizer(_config(num_steps=150, warmup_steps=warmup_steps))
  assert len(caplog.records) == warns
  if warns:
    assert '--config.optimizer.warmup_steps=-1 takes 18' in caplog.text
