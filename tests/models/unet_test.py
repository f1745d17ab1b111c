"""The network and its variants: parameters, wiring, training."""

import functools
import math
import re

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import isbi_2012, keras_lesson
from tests.models import networks
from unet_jax.config import fields as fields_lib
from unet_jax.models import graph, resample, unet

_random, _small = networks.random, networks.small
_shape = networks.logits_shape


def _count(widths, channels, classes):
  """Parameters of a U-Net, counted from figure 1 of arXiv 1505.04597."""
  total = 0
  for width in widths:
    total += 9 * channels * width + width + 9 * width * width + width
    channels = width
  for width in widths[-2::-1]:
    total += 4 * 2 * width * width + width
    total += 9 * 2 * width * width + width + 9 * width * width + width
  return total + widths[0] * classes + classes


# Image, output, stages, parameters.
_PAPER = ((572, 572, 1), (388, 388, 2), 5, 31030658)
_LESSON = ((256, 256, 1), (256, 256, 1), 4, 7696193)


@pytest.mark.parametrize(
  'config,upsample,image,output,stages,parameters',
  [
    (isbi_2012.get_config(), 'transpose', *_PAPER),
    (keras_lesson.get_config(), 'transpose', *_LESSON),
    (keras_lesson.get_config('bilinear'), 'bilinear', *_LESSON),
  ],
  ids=['paper', 'lesson', 'lesson_bilinear'],
)
def test_published(config, upsample, image, output, stages, parameters):
  model = unet.create_model(config)
  assert model.upsample == upsample
  assert (*config.data.image_size, config.data.num_channels) == image
  assert _shape(model, 1, *image) == (1, *output)
  widths = [64 * 2**i for i in range(stages)]
  assert _count(widths, image[-1], output[-1]) == parameters
  leaves = jax.tree.leaves(networks.shapes(model, 1, *image)['params'])
  assert sum(x.size for x in leaves) == parameters
  network = graph.read(model, image)
  assert network.parameters == parameters
  assert network.heads[-1].output == output


def test_widths_one_by_one():
  params = networks.shapes(_small(features=(3, 5, 4)), 1, 8, 8, 2)['params']
  for stage, layer, *shape in (
    ('down_0', 'conv2', 3, 3, 3, 3),
    ('down_1', 'conv1', 3, 3, 3, 5),
    ('bottleneck', 'conv2', 3, 3, 4, 4),
    ('upsample_1', 'conv', 2, 2, 4, 5),
    ('up_0', 'conv1', 3, 3, 6, 3),
  ):
    assert params[stage][layer]['kernel'].shape == tuple(shape)


def _deviations(model):
  """Standard deviation of each kernel as drawn, over what the paper asks."""
  size = (4,) * model.spatial_dims
  init = jax.jit(functools.partial(model.init, train=False))
  params = init(jax.random.key(0), jnp.zeros((1, *size, 24)))['params']
  ratios = {}
  for path, kernel in jax.tree.leaves_with_path(params):
    names = [k.key for k in path]
    if names[-1] == 'kernel':
      # Inputs of one output: all of the kernel; of a transposed convolution of
      # stride 2 the channels alone.
      inputs = math.prod(kernel.shape[:-1])
      if names[0].startswith('upsample'):
        inputs = kernel.shape[-2]
      ratios['/'.join(names[:-1])] = np.std(kernel) / np.sqrt(2 / inputs)
  return ratios


@pytest.mark.parametrize('dims', [2, 3])
def test_weights_are_drawn_as_the_paper_asks(dims):
  """Section 3: a Gaussian of standard deviation sqrt(2 / N)."""
  fields = dict(num_classes=32, base_features=24, downsample='conv')
  model = _small(spatial_dims=dims, depth=1, convs=1, norm='none', **fields)
  ratios = _deviations(model)
  assert {'upsample_0/conv', 'downsample_0', 'head'} < set(ratios)
  # Of 768 draws the head has, the standard error is 2.5 %.
  assert all(abs(r - 1) < 0.1 for r in ratios.values()), ratios


@pytest.mark.parametrize('norm', ['none', 'batch', 'group', 'layer'])
def test_biases_stand_where_they_change_the_output(norm):
  x = _random(2, 8, 8, 3)
  model = _small(depth=1, norm=norm, norm_groups=2)
  variables = networks.variables(model, x)
  has_bias = 'bias' in variables['params']['down_0']['conv1']
  assert has_bias == (norm != 'batch')
  if has_bias:
    changed = jax.tree.map(jnp.copy, variables)
    changed['params']['down_0']['conv1']['bias'] += jnp.arange(4.0)
    a, b = (networks.apply(model, v, x) for v in (variables, changed))
    assert np.abs(a - b).max() > 0.01


# Each value of each field; what can be is together, for a compilation takes
# longer than all the steps.
_TOGETHER = [
  dict(features=(4, 6), kernel_size=5, convs=1, downsample='average'),
  dict(block='residual', convs=3, norm='batch'),
  dict(depth=2, convs=1, skip='attention', deep_supervision=(0.5,)),
  dict(squeeze_excite=1, stem='space_to_depth', downsample='conv'),
  dict(spatial_dims=3, base_features=2, upsample='bilinear', norm='batch'),
]
_REST = dict(downsample='conv', stem='space_to_depth')
_MOST = dict(_REST, block='residual', squeeze_excite=2, skip='attention')
_DEEP = dict(_MOST, depth=2, convs=1, squeeze_excite=1)
_VARIANTS = [
  dict(),
  dict(upsample='bilinear', upsample_kernel=2, skip='add'),
  dict(upsample='nearest', upsample_kernel=3, skip='none'),
  dict(upsample='bilinear_corners', upsample_kernel=0, norm_epsilon=1e-3),
  dict(upsample='pixel_shuffle', norm='group', activation='leaky_relu'),
  dict(norm='batch', activation='elu', precision='high'),
  dict(norm='instance', activation='gelu', precision='highest'),
  dict(norm='layer', activation='silu', padding='valid'),
  *_TOGETHER,
  *(dict(fields, dtype=jnp.bfloat16, remat=True) for fields in _TOGETHER),
  dict(_DEEP, padding='valid'),
  dict(_DEEP, spatial_dims=3, deep_supervision=(0.5,)),
]


def _train(model, variables, x):
  """What the network returns in training mode."""
  return model.apply(variables, x, train=True, mutable=['batch_stats'])[0]


def test_variants_have_every_value_of_every_field():
  fields = unet.UNet.__dataclass_fields__
  default = {name: fields[name].default for name in fields}
  for name, choices in fields_lib.CHOICES.items():
    name = name.removeprefix('model.')
    if name in fields and name not in ('depth', 'upsample_kernel', 'dtype'):
      tried = {variant.get(name, default[name]) for variant in _VARIANTS}
      assert tried == set(choices), name


@pytest.mark.parametrize('fields', _VARIANTS, ids=str)
def test_every_variant_trains_and_uses_every_parameter(fields):
  """A few steps of plain SGD on noise, on odd sizes where they are allowed."""
  model = _small(**{'depth': 1, 'norm': 'none', **fields})
  size = (13, 18) if model.spatial_dims == 2 else (9, 11, 8)
  if model.padding == 'valid':
    size = (52, 52)
  x = _random(2, *size, 3)
  variables = networks.variables(model, x)
  assert {p.dtype for p in jax.tree.leaves(variables)} == {np.dtype('float32')}
  mask = np.random.default_rng(1).integers(0, 3, (2, *size)).astype(np.uint8)

  def loss_of(params):
    logits = _train(model, {**variables, 'params': params}, x)
    heads = [logits]
    if model.deep_supervision:
      heads = [logits[0], *logits[1]]
    assert heads[0].shape[1:-1] == model.output_size(size)
    whole, total = resample.center_crop(mask, *heads[0].shape[1:-1]), 0.0
    for i, one in enumerate(heads):
      assert one.dtype == jnp.float32
      s = 2**i
      target = whole[(slice(None), *(slice(s // 2, None, s) for _ in size))]
      target = target[(slice(None), *(slice(n) for n in one.shape[1:-1]))]
      values = optax.softmax_cross_entropy_with_integer_labels(one, target)
      total += (1, *model.deep_supervision)[i] * jnp.mean(values)
    return total

  @jax.jit
  def step(params):
    loss, grads = jax.value_and_grad(loss_of)(params)
    norm = optax.tree.norm(grads)
    params = jax.tree.map(lambda p, g: p - 0.05 * g / norm, params, grads)
    return params, loss, grads

  params, loss, grads = step(variables['params'])
  for path, g in jax.tree_util.tree_leaves_with_path(jax.device_get(grads)):
    assert np.all(np.isfinite(g)), path
    assert np.any(g != 0), f'{path} has no influence'
  for _ in range(3):
    params, last, _ = step(params)
  assert np.isfinite(last) and last < loss - 0.01

  stored = flax.serialization.to_bytes(params)
  again = flax.serialization.from_bytes(variables['params'], stored)
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize('stem', ['none', 'space_to_depth'])
@pytest.mark.parametrize('size', range(16, 24))
def test_logits_of_decoder_stages_have_a_pixel_of_the_mask_each(size, stem):
  """As the docstring says how they are to be compared."""
  weights = (0.5, 0.25, 0.125)
  model = _small(depth=4 - (stem != 'none'), base_features=1, stem=stem)
  model = model.clone(deep_supervision=weights[: model.depth - 1])
  logits, others = _shape(model, 1, size, 47 - size, 3, train=True)
  assert logits == (1, size, 47 - size, 3)
  assert len(others) == model.depth - 1
  for i, shape in enumerate(others, 1):
    s = 2**i
    # The sizes of both axes together are all those from 16 to 31.
    for n, m in zip(logits[1:-1], shape[1:-1]):
      target = np.arange(n)[s // 2 :: s][:m]
      np.testing.assert_array_equal(target // s, np.arange(m))
      assert n // s - 1 <= m <= n // s


def _differs(output, other):
  """Whether two outputs differ: in nothing, or by far more than rounding."""
  change = np.abs(output - other).max() / np.abs(other).max()
  assert change == 0 or change > 1e-3
  return change > 0


@pytest.mark.parametrize(
  'fields',
  [
    dict(skip='concat'),
    dict(skip='add'),
    dict(skip='none'),
    dict(_MOST, deep_supervision=(0.5, 0.25)),
  ],
  ids=str,
)
def test_each_skip_stage_and_head_is_wired(fields):
  """Zeroing a skip changes the output, unless there are to be none."""
  model = _small(depth=3, norm='none', **fields)
  x = _random(1, 16, 16, 3)
  variables = networks.variables(model, x)
  for name, params in variables['params'].items():
    if name.startswith('gate'):
      # As drawn, gates are shut up to 1e-9. These are neither shut nor open.
      params['psi']['kernel'] *= 0.05
      params['psi']['bias'] += 1
  zeros = jax.tree.map(np.zeros_like, variables['params'])

  @jax.jit
  def run(variables, factors):
    factors = list(factors)

    def interceptor(next_fun, args, kwargs, context):
      if context.method_name == '_join':
        # Joins run from the deepest level up.
        args = (args[0], args[1] * factors.pop())
      return next_fun(*args, **kwargs)

    with nn.intercept_methods(interceptor):
      logits = model.apply(variables, x, train=True)
    assert not factors
    return logits if model.deep_supervision else (logits, ())

  ones = np.ones(3, np.float32)
  plain, others = run(variables, ones)
  # With train=False the logits are the same, and alone.
  evaluated = networks.apply(model, variables, x)
  np.testing.assert_allclose(evaluated, plain, rtol=1e-5, atol=1e-5)
  for level in range(3):
    output, _ = run(variables, ones - np.eye(3, dtype=np.float32)[level])
    changed = _differs(output, plain)
    assert changed == (model.skip != 'none'), f'skip {level}'
  gates = {name for name in variables['params'] if name.startswith('gate')}
  assert gates == ({'gate_1', 'gate_2'} if model.skip == 'attention' else set())
  aux_heads = {f'head_{i + 1}': i for i in range(len(others))}
  assert aux_heads.keys() <= variables['params'].keys()
  for name in variables['params']:
    zeroed = {**variables['params'], name: zeros[name]}
    output, without = run({'params': zeroed}, ones)
    changed = [_differs(a, b) for a, b in zip(without, others)]
    if name in aux_heads:
      assert changed == [i == aux_heads[name] for i in range(len(others))]
    assert _differs(output, plain) == (name not in aux_heads), name


def test_remat_changes_no_number_but_saves_less():
  x = _random(1, 16, 16, 3)
  plain, remat = _small(depth=1), _small(depth=1, remat=True)
  variables = networks.variables(plain, x)

  params, gradients, convolutions = variables['params'], [], []
  for model in (plain, remat):
    loss = lambda params: jnp.sum(
      _train(model, {**variables, 'params': params}, x) ** 2
    )
    traced = jax.jit(jax.grad(loss)).trace(params)
    gradients.append(traced.lower().compile()(params))
    convolutions.append(str(traced.jaxpr).count('conv_general_dilated'))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
  jax.tree.map(close, *gradients)
  assert convolutions[1] > convolutions[0]


# Without zeros of their own, but for dropout.
_NO_ZEROS = dict(norm='none', activation='gelu')


def _run_dropout(model, train=True):
  """Outputs of dropout layers that have many zeros, and of `_join`."""
  x, skips = _random(1, 16, 16, 3), []
  variables = networks.variables(model, x)

  def interceptor(next_fun, args, kwargs, context):
    if context.method_name == '_join':
      skips.append(np.asarray(args[1]))
    return next_fun(*args, **kwargs)

  is_dropout = lambda module, _: isinstance(module, nn.Dropout)
  options = dict(train=train, capture_intermediates=is_dropout)
  with nn.intercept_methods(interceptor):
    _, state = model.apply(
      variables, x, rngs={'dropout': jax.random.key(0)}, **options
    )
  outputs = jax.tree.leaves_with_path(state['intermediates'])
  dropped = {p[0].key: x for p, x in outputs if np.mean(x == 0) > 0}
  return dropped, skips


@pytest.mark.parametrize('widths', [{16}, {16, 8}, {16, 8, 4}])
def test_the_deepest_stages_end_in_dropout(widths):
  fields = dict(_NO_ZEROS, skip='add')
  model = _small(dropout=0.5, dropout_stages=len(widths), **fields)
  dropped, skips = _run_dropout(model)
  assert {x.shape[-1] for x in dropped.values()} == widths
  assert len(dropped) == len(widths)
  if len(widths) > 1:
    # The skip comes from the dropped features.
    np.testing.assert_array_equal(skips[0], dropped['dropout_1'])
    assert np.any(skips[0] == 0)
  assert not _run_dropout(model, train=False)[0]
  x = _random(1, 16, 16, 3)
  variables = networks.variables(model, x)
  with_dropout, without = (
    networks.apply(m, variables, x) for m in (model, _small(**fields))
  )
  np.testing.assert_array_equal(with_dropout, without)


def test_dropout_acts_in_training_only():
  model = _small(dropout=0.5, norm='none')
  x = _random(1, 16, 16, 3)
  variables = networks.variables(model, x)
  rngs = lambda seed: {'dropout': jax.random.key(seed)}
  apply = jax.jit(
    lambda seed: model.apply(variables, x, train=True, rngs=rngs(seed))
  )
  evaluated = networks.apply(model, variables, x)
  np.testing.assert_array_equal(apply(1), apply(1))
  assert np.any(apply(1) != apply(2))
  assert np.any(apply(1) != evaluated)


@pytest.mark.parametrize('precision', ['default', 'highest'])
def test_precision_is_that_of_all_products(precision):
  fields = {'skip': 'attention', 'squeeze_excite': 2, 'downsample': 'conv'}
  model = _small(depth=2, precision=precision, **fields)
  image = jnp.ones((1, 8, 8, 3))
  variables = networks.shapes(model, 1, 8, 8, 3)

  def loss(variables):
    logits = model.apply(variables, image, train=False)
    return jnp.sum(logits**2)

  text = str(jax.make_jaxpr(jax.grad(loss))(variables))
  found = set(re.findall(r'precision=(.*)', text))
  if precision == 'default':
    assert 'None' in found
  else:
    assert found == {'(Precision.HIGHEST, Precision.HIGHEST)'}
