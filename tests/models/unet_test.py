"""The network: shapes, wiring, and its fast forms against the stock layers."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from unet_jax import errors
from unet_jax.models import unet


def _random(*shape, seed=0):
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=shape), jnp.float32
  )


def _small(**fields):
  defaults = dict(num_classes=3, depth=2, base_features=4, norm='batch')
  return unet.UNet(**{**defaults, **fields})


def _init(model, x):
  """Variables drawn by NumPy: compiling `model.init` takes seconds."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'kernel':
      scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      return jnp.asarray(rng.normal(size=leaf.shape) * scale, leaf.dtype)
    center = 1 if name in ('scale', 'var') else 0
    noise = rng.uniform(-0.1, 0.1, leaf.shape)
    return jnp.asarray(center + noise, leaf.dtype)

  shapes = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), x
  )
  return jax.tree.map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, variables, x):
  """Logits in evaluation mode, compiled: op by op is slower by far."""
  return model.apply(variables, x, train=False)


def _assert_same_value_and_gradient(ours, stock, *args):
  np.testing.assert_allclose(ours(*args), stock(*args), rtol=1e-5, atol=1e-5)
  weight = _random(*stock(*args).shape, seed=9)
  argnums = tuple(range(len(args)))
  gradient = lambda f: jax.jit(
    jax.grad(lambda *a: jnp.sum(f(*a) * weight), argnums)
  )
  for a, b in zip(gradient(ours)(*args), gradient(stock)(*args), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [(8, 8), (7, 10), (2, 3)])
def test_max_pool_equals_the_stock_layer(size):
  _assert_same_value_and_gradient(
    unet.max_pool_2x,
    lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    _random(2, *size, 3),
  )


@pytest.mark.parametrize('size', [(8, 8), (5, 6), (1, 1), (1, 4)])
def test_bilinear_equals_image_resize(size):
  h, w = size
  _assert_same_value_and_gradient(
    unet.bilinear_2x,
    lambda x: jax.image.resize(x, (2, 2 * h, 2 * w, 3), 'bilinear'),
    _random(2, h, w, 3),
  )


def test_bilinear_equals_scipy_zoom():
  x = _random(1, 6, 5, 1)
  expected = scipy.ndimage.zoom(
    x[0, ..., 0], 2, order=1, mode='nearest', grid_mode=True
  )
  np.testing.assert_allclose(
    unet.bilinear_2x(x)[0, ..., 0], expected, rtol=1e-5, atol=1e-6
  )


def test_nearest_repeats_pixels():
  x = _random(2, 3, 4, 5)
  expected = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)
  np.testing.assert_array_equal(unet.nearest_2x(x), expected)


def test_transposed_convolution_equals_the_stock_layer_with_its_parameters():
  x = _random(2, 5, 6, 7)
  ours = unet.ConvTranspose2x(4)
  stock = nn.ConvTranspose(4, (2, 2), (2, 2))
  params = stock.init(jax.random.key(0), x)['params']
  params['bias'] = _random(4)
  shapes = jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)['params'])
  assert shapes == jax.tree.map(jnp.shape, params)
  _assert_same_value_and_gradient(
    lambda x, k, b: ours.apply({'params': {'kernel': k, 'bias': b}}, x),
    lambda x, k, b: stock.apply({'params': {'kernel': k, 'bias': b}}, x),
    x,
    params['kernel'],
    params['bias'],
  )


@pytest.mark.parametrize('kind', ['bilinear', 'nearest'])
def test_1x1_convolution_before_interpolating_equals_after(kind):
  x = _random(2, 4, 5, 8)
  up = unet.Upsample(4, kind, 1, functools.partial(nn.Conv), jnp.float32)
  variables = up.init(jax.random.key(0), x)
  variables['params']['conv']['bias'] = _random(4)
  resize = {'bilinear': unet.bilinear_2x, 'nearest': unet.nearest_2x}[kind]
  expected = nn.Conv(4, (1, 1)).apply(
    {'params': variables['params']['conv']}, resize(x)
  )
  np.testing.assert_allclose(
    up.apply(variables, x), expected, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize('depth', range(7))
@pytest.mark.parametrize('size', [(64, 64), (67, 81)])
def test_same_padding_takes_any_size(depth, size):
  model = _small(depth=depth, base_features=2, max_features=8)
  shape = jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((1, *size, 3)), train=False
    )[0]
  )
  assert shape.shape == (1, *size, 3)
  assert shape.dtype == jnp.float32


def test_image_too_small_for_the_depth_is_refused():
  with pytest.raises(errors.UserError) as e:
    unet.output_size((64, 15), 4, 'same')
  assert str(e.value) == (
    'an image of 64 x 15 pixels cannot be halved 4 times (model.depth=4); use'
    ' at least 16 pixels or a smaller depth'
  )


@pytest.mark.parametrize(
  'size,depth,expected', [(572, 4, 388), (188, 4, 4), (140, 3, 52), (9, 0, 5)]
)
def test_valid_output_size(size, depth, expected):
  model = _small(depth=depth, padding='valid', base_features=2)
  assert unet.output_size((size, size), depth, 'valid') == (expected, expected)
  shape = jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False
    )[0]
  ).shape
  assert shape == (1, expected, expected, 3)


@pytest.mark.parametrize(
  'size,nearest', [(512, '508 or 524'), (10, '188'), (570, '556 or 572')]
)
def test_valid_size_that_does_not_fit_names_the_nearest_two(size, nearest):
  with pytest.raises(errors.UserError, match=f'nearest that do are {nearest} '):
    unet.output_size((size, size), 4, 'valid')


def test_paper_network_has_its_number_of_parameters():
  # Counted from figure 1 of arXiv 1505.04597, one input channel, two classes.
  total, channels = 0, 1
  for width in (64, 128, 256, 512, 1024):
    total += 9 * channels * width + width + 9 * width * width + width
    channels = width
  for width in (512, 256, 128, 64):
    total += 4 * 2 * width * width + width
    total += 9 * 2 * width * width + width + 9 * width * width + width
  total += 64 * 2 + 2
  model = unet.UNet(num_classes=2, padding='valid')
  variables = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 572, 572, 1)), train=False
    )
  )
  assert sum(x.size for x in jax.tree.leaves(variables)) == total == 31030658


_AXES = dict(
  upsample=['transpose', 'bilinear', 'nearest', 'pixel_shuffle'],
  skip=['concat', 'add', 'none'],
  norm=['none', 'batch', 'group', 'instance', 'layer'],
  activation=list(unet.ACTIVATIONS),
  padding=['same', 'valid'],
  dtype=[jnp.float32, jnp.bfloat16],
  upsample_kernel=[1, 2, 3],
  remat=[False, True],
)
_VARIANTS = [{}] + [
  {axis: value} for axis, values in _AXES.items() for value in values[1:]
]


@pytest.mark.parametrize('fields', _VARIANTS, ids=str)
def test_every_parameter_of_every_variant_is_used(fields):
  if 'upsample_kernel' in fields:
    fields = {**fields, 'upsample': 'bilinear'}
  size = (44, 44) if fields.get('padding') == 'valid' else (13, 18)
  model = _small(**fields)
  x = _random(2, *size, 3)
  variables = _init(model, x)
  assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype('float32')}

  def loss(params):
    logits, _ = model.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
    )
    assert logits.dtype == jnp.float32
    assert logits.shape[1:3] == unet.output_size(size, 2, model.padding)
    return jnp.mean(
      jax.nn.log_softmax(logits)[..., 0] * _random(*logits.shape[:3])
    )

  grads = jax.jit(jax.grad(loss))(variables['params'])
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(g)), path
    assert np.any(g != 0), f'{path} has no influence'


@pytest.mark.parametrize('skip', ['concat', 'add', 'none'])
def test_each_skip_and_stage_is_wired(skip):
  """Zeroing a skip changes the output, unless there are to be none."""
  model = _small(depth=3, skip=skip, norm='none')
  x = _random(1, 16, 16, 3)
  variables = _init(model, x)
  plain = _apply(model, variables, x)

  def run_without(level):
    joined = itertools.count()

    def interceptor(next_fun, args, kwargs, context):
      if context.method_name == '_join':
        # Joins run from the deepest level up.
        if next(joined) == model.depth - 1 - level:
          args = (args[0], jnp.zeros_like(args[1]))
      return next_fun(*args, **kwargs)

    with nn.intercept_methods(interceptor):
      apply = jax.jit(functools.partial(model.apply, train=False))
      return apply(variables, x)

  for level in range(3):
    changed = np.any(run_without(level) != plain)
    assert changed == (skip != 'none'), f'skip {level}'
  for name in variables['params']:
    zeroed = {
      k: jax.tree.map(jnp.zeros_like, v) if k == name else v
      for k, v in variables['params'].items()
    }
    output = _apply(model, {'params': zeroed}, x)
    assert np.any(output != plain), name


def test_valid_equals_the_inside_of_same():
  """Away from borders the two paddings compute the same function."""
  x = _random(1, 76, 76, 2)
  same = _small(norm='none')
  valid = _small(norm='none', padding='valid')
  variables = _init(same, x)
  # The first two convolutions move the grid of the 4x4 windows by 2 pixels.
  whole = _apply(same, variables, x[:, 2:-2, 2:-2])
  inner = _apply(valid, variables, x)
  assert inner.shape[1] == 36
  # The zeros around the image reach somewhat further in than 20 pixels.
  a = unet.center_crop(inner, 24, 24)
  b = unet.center_crop(whole, 24, 24)
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['transpose', 'bilinear'])
def test_translation_by_the_stride_translates_the_output(kind):
  model = _small(norm='none', upsample=kind)
  x = _random(1, 96, 96, 1)
  variables = _init(model, x)
  shifted = jnp.roll(x, 4, axis=1)
  a = _apply(model, variables, x)
  b = _apply(model, variables, shifted)
  inside = (slice(None), slice(40, 56), slice(40, 56))
  np.testing.assert_allclose(
    jnp.roll(a, 4, axis=1)[inside], b[inside], rtol=1e-4, atol=1e-5
  )


def test_remat_changes_no_number_but_saves_less():
  x = _random(1, 16, 16, 3)
  plain, remat = _small(), _small(remat=True)
  variables = _init(plain, x)

  def gradient(model):
    def loss(params):
      logits, _ = model.apply(
        {**variables, 'params': params},
        x,
        train=True,
        mutable=['batch_stats'],
      )
      return jnp.sum(logits**2)

    return jax.grad(loss)

  a = jax.jit(gradient(plain))(variables['params'])
  b = jax.jit(gradient(remat))(variables['params'])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), a, b
  )
  count = lambda m: str(jax.make_jaxpr(gradient(m))(variables['params'])).count(
    'conv_general_dilated'
  )
  assert count(remat) > count(plain)


def test_dropout_acts_in_training_only():
  model = _small(dropout=0.5, norm='none')
  x = _random(1, 16, 16, 3)
  variables = _init(model, x)
  apply = jax.jit(
    lambda seed: model.apply(
      variables, x, train=True, rngs={'dropout': jax.random.key(seed)}
    )
  )
  evaluated = _apply(model, variables, x)
  np.testing.assert_array_equal(apply(1), apply(1))
  assert np.any(apply(1) != apply(2))
  assert np.any(apply(1) != evaluated)
