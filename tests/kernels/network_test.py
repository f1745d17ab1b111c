"""A network with native convolutions is the one that has those of XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unet_jax
from tests import runs, tiny
from unet_jax.config import default
from unet_jax.models import unet
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import steps


@pytest.fixture(autouse=True)
def cache_dir(native_cache):
  return native_cache


def _step(config, native):
  """The state, the step of training and the other arguments of it."""
  model = unet.create_model(config, native)
  optimizer, mesh = optimizer_lib.make_optimizer(config), tiny.one_device()
  state = tiny.make_state(config, model, optimizer, mesh)
  step = steps.make_train_step(config, model, optimizer, mesh, state)
  return step, (state, tiny.make_batch(config), jax.random.key(7))


@pytest.fixture(scope='module')
def expected():
  """The state and metrics that a step with XLA's convolutions ends in."""
  step, args = _step(_config(), False)
  return step(*args)


def _config(**sections):
  """Of 16 features, as Winograd takes; without norm, rounding stays small."""
  sections['model'] = {'base_features': 16, 'norm': 'none'} | sections.get(
    'model', {}
  )
  return tiny.make_config(
    augment={'flip_horizontal': 0.0, 'flip_vertical': 0.0}, **sections
  )


@pytest.mark.parametrize(
  'sections',
  [
    {},
    {'model': {'remat': True}},
    {'optimizer': {'accumulate_steps': 2}},
    {'model': {'remat': True}, 'optimizer': {'accumulate_steps': 4}},
  ],
  ids=['plain', 'remat', 'accumulate', 'both'],
)
def test_a_step(sections, expected):
  step, args = _step(_config(**sections), True)
  text = step.lower(*args).as_text()
  for name in ('UnetConvolution', 'UnetConvolutionKernelGradient'):
    assert f'@{name}(' in text
  state, metrics = step(*args)
  for a, b in zip(
    jax.tree.leaves((state.params, metrics)),
    jax.tree.leaves((expected[0].params, expected[1])),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  'fields',
  [
    {'activation': 'elu', 'features': (16, 24, 32)},
    {'block': 'residual', 'squeeze_excite': 2, 'norm': 'batch'},
    {'upsample': 'bilinear', 'skip': 'attention', 'downsample': 'conv'},
    {'upsample': 'nearest', 'upsample_kernel': 2, 'norm': 'group'},
    {'upsample': 'bilinear', 'upsample_kernel': 0, 'kernel_size': 5},
    {
      'padding': 'valid',
      'stem': 'space_to_depth',
      'deep_supervision': (0.5,),
      'convs': 2,
    },
    {'spatial_dims': 3, 'norm': 'instance', 'features': (16, 24, 32)},
  ],
  ids=lambda fields: next(iter(fields)),
)
def test_variants_of_the_network(fields):
  """Value and gradient in training, and the value in prediction."""
  config = default.get_config()
  config.model.update(
    {'depth': 2, 'convs': 1, 'base_features': 16, 'norm': 'none', **fields}
  )
  size = {'spatial_dims': (8, 12, 12), 'padding': (88, 88)}.get(
    next(iter(fields)), (44, 44)
  )
  x = jax.random.normal(jax.random.key(0), (2, *size, 3))
  xla, native = (unet.create_model(config, n) for n in (False, True))
  variables = jax.jit(lambda x: xla.init(jax.random.key(1), x, train=False))(x)
  stats = variables.get('batch_stats', {})

  def loss(model, params):
    logits, _ = model.apply(
      {'params': params, 'batch_stats': stats},
      x,
      train=True,
      mutable=['batch_stats'],
    )
    return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(logits))

  results = []
  for model in (xla, native):

    @jax.jit
    def both(params, model=model):
      gradient = jax.value_and_grad(functools.partial(loss, model))(params)
      return gradient, model.apply(variables, x, train=False)

    results.append(jax.tree.leaves(both(variables['params'])))
  for a, b in zip(*results, strict=True):
    scale = np.abs(a).max() + 1e-3
    np.testing.assert_allclose(a / scale, b / scale, atol=1e-3)


def test_bfloat16_is_left_to_xla():
  """But for the head, which is float32."""
  step, args = _step(_config(model={'dtype': 'bfloat16'}), True)
  text = step.lower(*args).as_text()
  calls = [line for line in text.splitlines() if '@Unet' in line]
  assert len(calls) == 3 and not any('bf16' in line for line in calls)


def test_a_loaded_network(tmp_path, cache_dir):
  config = _config(data={'cache_dir': cache_dir})
  runs.save(tmp_path, config)
  image = tiny.make_examples(config, 1)[0]['image']
  a, b = (
    unet_jax.load(tmp_path, {'cpu.kernels': kernels})(image)
    for kernels in ('xla', 'native')
  )
  assert not np.array_equal(a, b)
  np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_exported_program_has_none_of_them():
  """One program for all platforms, which runs where there are no kernels.

  JAX keeps no program with calls that it does not know.
  """
  config = _config()
  x = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
  xla, native = (unet.create_model(config, n) for n in (False, True))
  variables = xla.init(jax.random.key(1), x, train=False)
  export = lambda model: jax.export.export(
    jax.jit(lambda x: model.apply(variables, x, train=False)),
    platforms=('cpu', 'cuda', 'tpu'),
  )(x)
  with pytest.raises(ValueError, match='UnetConvolution'):
    export(native)
  exported = export(xla)
  assert 'UnetConvolution' not in exported.mlir_module()
  wanted = native.apply(variables, x, train=False)
  np.testing.assert_allclose(exported.call(x), wanted, rtol=1e-4, atol=1e-5)
