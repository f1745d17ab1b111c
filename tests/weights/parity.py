"""Our network and another one, on the same images, weights and loss."""

import jax
import jax.numpy as jnp
import numpy as np

from unet_jax.config import default
from unet_jax.models import unet
from unet_jax.weights import files, match, naming


def make_config(fields):
  """The default config with {'section.field': value}."""
  config = default.get_config()
  config.update_from_flattened_dict(fields)
  channels = config.data.num_channels
  config.data.update(mean=(0.0,) * channels, std=(1.0,) * channels)
  return config


def load(path, config):
  """Variables of a file, as `--mode=import` takes them."""
  return match.variables_of_file(files.read(str(path)), config)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ours(config, variables, images, weight, train=False, sigmoid=False):
  """Returns outputs, gradients of sum(outputs * weight), new batch_stats."""
  model = unet.create_model(config)

  @jax.jit
  def run(variables):
    def loss(params):
      outputs, changed = model.apply(
        {**variables, 'params': params},
        images,
        train=train,
        mutable=['batch_stats'],
      )
      outputs = jax.nn.sigmoid(outputs) if sigmoid else outputs
      stats = changed.get('batch_stats', {})
      return jnp.sum(outputs * weight), (outputs, stats)

    gradients, aux = jax.grad(loss, has_aux=True)(variables['params'])
    return gradients, *aux

  gradients, outputs, stats = jax.device_get(run(variables))
  return outputs, gradients, stats


def difference(ours, theirs) -> float:
  """The largest |a - b| / max |b| of any array of two trees."""
  leaves = lambda tree: naming.flatten({'': {'': tree}})
  ours, theirs = leaves(ours), leaves(theirs)
  assert set(ours) == set(theirs)
  worst = 0.0
  for name, a in ours.items():
    b = np.asarray(theirs[name])
    assert a.shape == b.shape and np.abs(b).max() > 0, name
    worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
  return worst


def check(differences: dict[str, float]) -> None:
  """Checks that float32's rounding alone is left; `pytest -s` shows it."""
  print({k: f'{v:.1e}' for k, v in differences.items()})
  # A value at the edge of a ReLU may fall on either side, which shows in the
  # gradients first; a wrong connection or layout gives 0.1 and more.
  assert differences['outputs'] < 1e-5, differences
  assert max(differences.values()) < 5e-5, differences
