"""A tiny network, its state and its data, for the tests of steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from unet_jax.config import default
from unet_jax.evaluation import step as step_lib
from unet_jax.models import unet
from unet_jax.training import losses, state, steps
from unet_jax.training import optimizer as optimizer_lib


def make_config(**sections):
  """The default config at a tiny size, then {section: {field: value}}."""
  config = default.get_config()
  config.data.update(image_size=(16, 16), num_classes=3, batch_size=8)
  config.model.update(depth=1, base_features=4)
  config.cpu.kernels = 'xla'  # To compile native ones takes seconds.
  config.optimizer.update(
    # Without Adam's division, rounding stays as small as it is.
    name='sgd',
    learning_rate=0.1,
    warmup_steps=0,
    schedule='constant',
  )
  for section, fields in sections.items():
    config[section].update(fields)
  return config


def make_state(config, model, optimizer, mesh):
  """A state at step 0 without compiling an initialisation, which is slow."""
  rng = np.random.default_rng(0)

  def leaf(path, x):
    name = getattr(path[-1], 'key', '')
    if name == 'kernel':
      fan_in = np.prod(x.shape[:-1])
      value = rng.normal(0, (2 / fan_in) ** 0.5, x.shape)
    else:
      value = np.full(x.shape, name in ('scale', 'var'))
    return value.astype(x.dtype)

  abstract = state.abstract_train_state(config, model, optimizer, mesh)
  values = jax.tree.map_with_path(leaf, abstract)
  if config.optimizer.ema_decay:
    values = values.replace(
      ema_params=values.params, ema_batch_stats=values.batch_stats
    )
  values = values.replace(opt_state=jax.tree.map(_zeros, abstract.opt_state))
  # Copies: the step gives the buffers of its state away.
  return jax.tree.map(
    lambda v, x: jax.device_put(jnp.array(v), x.sharding), values, abstract
  )


def _zeros(x):
  return np.zeros(x.shape, x.dtype)


def make_examples(config, count, seed=0):
  """Examples whose classes differ in colour, a part of them ignored."""
  rng = np.random.default_rng(seed)
  shape = (count, *config.data.image_size)
  mask = rng.integers(0, config.data.num_classes, shape).astype(np.uint8)
  noise = rng.integers(0, 100, (*shape, config.data.num_channels))
  image = (noise + 70 * mask[..., None]).astype(np.uint8)
  # The first images are ignored more than the last.
  ignored = np.linspace(0.9, 0, count)[:, None, None]
  mask[rng.random(shape) < ignored] = 255
  return [{'image': i, 'mask': m} for i, m in zip(image, mask)]


class Examples(list):
  """A set that is read as prepared ones are."""

  split = 'test'

  def read_batch(self, indices):
    examples = [self[i] for i in indices]
    return {k: np.stack([e[k] for e in examples]) for k in examples[0]}


def make_batch(config, seed=0):
  examples = make_examples(config, config.data.batch_size, seed)
  return {k: np.stack([e[k] for e in examples]) for k in ('image', 'mask')}


def one_device():
  """A mesh of one device, on which a batch may have any size."""
  return jax.make_mesh(
    (1, 1, 1),
    ('data', 'fsdp', 'spatial'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[:1],
  )


def setup(config):
  """Returns a fresh state and the jitted step of a config."""
  model = unet.create_model(config)
  optimizer = optimizer_lib.make_optimizer(config)
  state = make_state(config, model, optimizer, one_device())
  return state, steps.make_train_step(
    config, model, optimizer, one_device(), state
  )


def evaluate(config, state, batch, which='raw'):
  """Runs the evaluation step with variables of a state."""
  step = functools.partial(
    step_lib.eval_step,
    model=unet.create_model(config),
    loss_spec=losses.make_spec(config),
    mean=config.data.mean,
    std=config.data.std,
  )
  return jax.jit(step)(state.variables(which), batch)
