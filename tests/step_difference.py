"""How far a train step on a mesh is from the same step on one device.

In float64, for whoever sets `jax_enable_x64` and `jnp.float32 = jnp.float64`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny
from unet_jax.models import unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import steps


def update(config, mesh):
  """Returns the updates of a step by name, and its metrics."""
  model = unet.create_model(config).clone(dtype=jnp.float64)
  optimizer = optimizer_lib.make_optimizer(config)
  state = tiny.make_state(config, model, optimizer, mesh)
  rng = np.random.default_rng(1)
  # Means that are 0 up to rounding would turn at the kink of a ReLU.
  move = lambda x: jax.device_put(x + rng.normal(0, 0.1, x.shape), x.sharding)
  state = state.replace(params=jax.tree.map(move, state.params))
  before = jax.tree.map(np.asarray, state.params)
  step = steps.make_train_step(config, model, optimizer, mesh, state)
  shape = (config.data.batch_size, *config.data.image_size)
  batch = {
    'image': rng.integers(0, 256, (*shape, 3), np.uint8),
    'mask': rng.integers(0, config.data.num_classes, shape, np.uint8),
  }
  batch = mesh_lib.to_devices(batch, mesh)
  state, metrics = step(state, batch, jax.random.key(3))
  after = jax.tree.map(np.asarray, state.params)
  moved = jax.tree.map(lambda a, b: a - b, after, before)
  stats = jax.tree.map(np.asarray, state.batch_stats)
  flat = jax.tree.leaves_with_path((moved, stats))
  return {jax.tree_util.keystr(k): v for k, v in flat}, float(metrics['loss'])


def difference(config):
  """Returns the largest relative difference to one device, and where."""
  expected, loss = update(config, tiny.one_device())
  found, found_loss = update(config, mesh_lib.make_mesh(config))
  # An update that is 0 up to rounding is compared with the others.
  least = 1e-3 * max(np.abs(v).max() for v in expected.values())
  differences = {
    k: np.abs(found[k] - v).max() / max(np.abs(v).max(), least)
    for k, v in expected.items()
  }
  differences['loss'] = abs(found_loss / loss - 1)
  where = max(differences, key=lambda k: differences[k])
  return differences[where], where
