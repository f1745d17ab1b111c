"""Small networks with parameters drawn by NumPy, for the tests of models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from unet_jax.models import unet


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def small(**fields):
  defaults = dict(num_classes=3, depth=2, base_features=4, norm='batch')
  return unet.UNet(**{**defaults, **fields})


def logits_shape(model, *shape, train=False):
  """Shapes of the logits for images of a shape, without a computation."""
  output = jax.eval_shape(
    lambda: model.init_with_output(
      {'params': jax.random.key(0), 'dropout': jax.random.key(1)},
      jnp.zeros(shape),
      train=train,
    )[0]
  )
  return jax.tree.map(jnp.shape, output)


def draw(init, *args):
  """`init(key, *args)` with values drawn by NumPy: compiling takes seconds."""
  rng = np.random.default_rng(0)

  def leaf_value(path, leaf):
    name = path[-1].key
    if name == 'kernel':
      scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      return (rng.normal(size=leaf.shape) * scale).astype(leaf.dtype)
    center = 1 if name in ('scale', 'var') else 0
    noise = rng.uniform(-0.1, 0.1, leaf.shape)
    return (center + noise).astype(leaf.dtype)

  shapes = jax.eval_shape(init, jax.random.key(0), *args)
  return jax.tree.map_with_path(leaf_value, shapes)


def shapes(model, *shape):
  """Shapes of the variables for images of a shape, without a computation."""
  x = jax.ShapeDtypeStruct(shape, np.float32)
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), x)


def variables(model, x):
  """Variables of a network for images `x`."""
  return draw(functools.partial(model.init, train=False), x)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, x):
  """Logits in evaluation mode, compiled: op by op is slower by far."""
  return model.apply(variables, x, train=False)


def assert_same_value_and_gradient(ours, stock, *args):
  """Compares two functions, and their gradients by all arguments."""

  @functools.partial(jax.jit, static_argnums=0)
  def both(f, weight, *args):
    value, pullback = jax.vjp(f, *args)
    return value, pullback(weight)

  weight = random(*jax.eval_shape(stock, *args).shape, seed=9)
  value, gradient = both(ours, weight, *args)
  expected_value, expected_gradient = both(stock, weight, *args)
  np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-5)
  for a, b in zip(gradient, expected_gradient, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
