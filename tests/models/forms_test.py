"""Every form of each row: the same function, gradient, and choice."""

import collections
import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import networks
from unet_jax.models import blocks, forms

_PLATFORMS = ('cpu', 'cuda', 'tpu')
_SETTINGS = {
  'bilinear': {},
  'bilinear_corners': {'align_corners': True},
  **{name: {} for name in forms.FORMS},
}


def _inputs(name, size):
  """With ties, which are many: small integers."""
  channels = 2 ** len(size) * 3 if name == 'depth_to_space' else 3
  rng = np.random.default_rng(0)
  inputs = [rng.integers(-2, 2, (2, *size, channels)).astype(np.float64)]
  if name.endswith('conv'):
    inputs.append(rng.normal(size=(*(2,) * len(size), channels, 4)))
  return inputs


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradient(form, weight, *inputs):
  value, pullback = jax.vjp(form, *inputs)
  return value, *pullback(weight.astype(value.dtype))


def _forms(name):
  """The forms of a row without repetitions, the CPU's first."""
  row = forms.FORMS[name.removesuffix('_corners')]
  settings = _SETTINGS[name]
  return [functools.partial(f, **settings) for f in dict.fromkeys(row)]


def _compare(name, inputs, dtype, expected_dtype, **tolerance):
  cast = lambda dtype: [jnp.asarray(x, dtype) for x in inputs]
  first, *others = _forms(name)
  shape = jax.eval_shape(first, *cast(dtype)).shape
  weight = np.random.default_rng(1).integers(1, 9, shape)
  expected = _value_and_gradient(first, weight, *cast(expected_dtype))
  for form in others if dtype == expected_dtype else [first, *others]:
    actual = _value_and_gradient(form, weight, *cast(dtype))
    for a, b in zip(actual, expected, strict=True):
      assert a.dtype == dtype
      scale = np.abs(b).max()
      np.testing.assert_allclose(a / scale, b / scale, **tolerance)


@pytest.mark.parametrize('size', [(5, 6), (2, 3), (4, 5, 3)], ids=str)
@pytest.mark.parametrize('name', _SETTINGS)
def test_forms_compute_the_same_value_and_gradient(name, size):
  with jax.enable_x64(True):
    _compare(name, _inputs(name, size), jnp.float64, jnp.float64, atol=1e-12)


@pytest.mark.parametrize('name', _SETTINGS)
def test_forms_in_bfloat16_are_right_to_its_rounding(name):
  inputs = _inputs(name, (5, 6))
  _compare(name, inputs, jnp.bfloat16, jnp.float32, rtol=0, atol=2**-6)


def test_equal_values_of_a_pool_are_as_in_torch():
  torch = pytest.importorskip('torch')
  x = np.random.default_rng(0).integers(0, 2, (3, 6, 8, 4)).astype(np.float32)
  theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
  weight = np.random.default_rng(1).normal(size=(3, 3, 4, 4))
  weight = weight.astype(np.float32)
  y = torch.nn.functional.max_pool2d(theirs, 2)
  y.backward(torch.tensor(weight.transpose(0, 3, 1, 2)))
  for form in _forms('max_pool'):
    _, gradient = _value_and_gradient(form, weight, x)
    np.testing.assert_array_equal(
      gradient, theirs.grad.numpy().transpose(0, 2, 3, 1)
    )


def test_a_pool_passes_nan_on():
  for position in np.ndindex(2, 2):
    x = np.zeros((1, 2, 2, 1), np.float32)
    x[0, *position] = np.nan
    for form in _forms('max_pool'):
      assert np.isnan(jax.jit(form)(x)).all()


@pytest.mark.parametrize('platform', _PLATFORMS)
@pytest.mark.parametrize('name', forms.FORMS)
def test_a_program_has_the_form_of_its_platform_alone(name, platform):
  inputs = [jnp.asarray(x, jnp.float32) for x in _inputs(name, (4, 6))]
  row = forms.FORMS[name]
  form = {'cpu': row.cpu, 'cuda': row.gpu, 'tpu': row.tpu}[platform]

  def operations(f):
    lowered = jax.jit(f).trace(*inputs).lower(lowering_platforms=(platform,))
    found = re.findall(r'\bstablehlo\.(\w+)', lowered.as_text())
    # Of the choice itself, which is made before the compiler runs.
    choice = {'case', 'return', 'constant'}
    return collections.Counter(name for name in found if name not in choice)

  assert operations(functools.partial(forms.apply, name)) == operations(form)
  assert operations(form)


def test_one_exported_program_holds_all_platforms():
  model = networks.small(depth=1)
  x = networks.random(1, 8, 8, 3)
  variables = networks.variables(model, x)
  apply = jax.jit(functools.partial(model.apply, train=False))
  exported = jax.export.export(apply, platforms=_PLATFORMS)(variables, x)
  assert exported.platforms == _PLATFORMS
  np.testing.assert_array_equal(
    jax.jit(exported.call)(variables, x), apply(variables, x)
  )


@pytest.mark.parametrize('kind', ['transpose', 'strided'])
def test_the_gradient_of_a_bias_is_summed_in_float32(kind):
  """4,000 times 1: a sum of bfloat16 ends at 256."""
  layer = {
    'transpose': blocks.ConvTranspose2x(2, jnp.bfloat16),
    'strided': blocks.Conv2x(2, dtype=jnp.bfloat16),
  }[kind]
  size = {'transpose': (20, 50), 'strided': (80, 200)}[kind]
  x = jnp.ones((1, *size, 1), jnp.bfloat16)
  params = networks.draw(layer.init, x)
  total = lambda p: layer.apply(p, x).astype(jnp.float32).sum()
  gradient = jax.jit(jax.grad(total))(params)['params']['bias']
  np.testing.assert_array_equal(gradient, [4000, 4000])
  assert gradient.dtype == jnp.float32
