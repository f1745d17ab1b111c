"""Random networks on random meshes against one device, in float64.

python -m experiments.meshes --minutes=10 --seed=0

Each line of the output is one network, image and mesh: the largest difference
of a parameter's update by the train step, relative to the largest update of
that parameter, and of the loss. Eight virtual CPU devices.
"""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_ENABLE_X64'] = '1'
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
# It compiles much and runs little.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

import argparse
import time

import jax.numpy as jnp
import numpy as np

# Parameters, statistics and logits too.
jnp.float32 = jnp.float64

from tests import step_difference, tiny  # noqa: E402
from unet_jax.config import checks  # noqa: E402
from unet_jax.models import unet  # noqa: E402
from unet_jax.runtime import errors  # noqa: E402
from unet_jax.runtime import mesh as mesh_lib  # noqa: E402

TOLERANCE = 1e-12
MESHES = (
  {'data': 1, 'spatial': 8},
  {'data': 2, 'spatial': 4},
  {'data': 4, 'spatial': 2},
  {'data': 1, 'fsdp': 2, 'spatial': 4},
  {'data': 1, 'fsdp': 4, 'spatial': 2},
  {'data': 2, 'fsdp': 2, 'spatial': 2},
)
CHOICES = {
  'depth': (1, 1, 2, 2, 3, 4),
  'base_features': (2, 4),
  'convs': (1, 1, 2),
  'kernel_size': (1, 3, 3, 5, 7),
  'block': ('plain', 'residual'),
  'squeeze_excite': (0, 2),
  'stem': ('none', 'none', 'space_to_depth'),
  'downsample': ('max', 'average', 'conv'),
  'upsample': (
    *('transpose', 'nearest', 'pixel_shuffle'),
    *('bilinear', 'bilinear_corners'),
  ),
  'upsample_kernel': (0, 1, 2, 3),
  'skip': ('concat', 'add', 'attention', 'none'),
  'norm': ('none', 'batch', 'group', 'instance', 'layer'),
  'deep_supervision': ((), (), (0.5,)),
  'dropout': (0.0, 0.3),
  'remat': (False, True),
  'activation': ('relu', 'silu'),
}

# Of images; volumes take the flips alone.
AUGMENT = (
  {},
  {'blur': {'probability': 0.7}},
  {'affine': {'probability': 0.7}},
  {'elastic': {'probability': 0.7}},
  {'crop': {'probability': 0.7}},
  {'contrast': {'probability': 0.7}},
)


def draw_config(rng):
  """Returns a config, valid or not, and the mesh that it is for."""
  mesh = MESHES[rng.integers(len(MESHES))]
  model = {k: v[rng.integers(len(v))] for k, v in CHOICES.items()}
  dims = int(rng.choice([2, 2, 3]))
  height = mesh['spatial'] * int(rng.integers(1, 13 if dims == 2 else 7))
  rest = [int(n) for n in rng.integers(4, 20, dims - 1)]
  data = {'image_size': (height, *rest), 'num_classes': 4, 'batch_size': 8}
  augment = AUGMENT[rng.integers(len(AUGMENT))] if dims == 2 else {}
  config = tiny.make_config(
    data=data,
    model={**model, 'spatial_dims': dims},
    mesh=mesh,
    optimizer={'momentum': 0.0, 'accumulate_steps': int(rng.choice([1, 1, 2]))},
    augment={'flip_vertical': 0.5, **augment},
    loss={'weights': {'cross_entropy': 1.0, 'dice': 1.0}},
  )
  return config


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--minutes', type=float, default=10)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  rng, end = np.random.default_rng(args.seed), time.time() + 60 * args.minutes
  count, worst, wrong = 0, 0.0, 0
  while time.time() < end:
    config = draw_config(rng)
    try:
      checks.validate(config, 'train')
      mesh_lib.make_mesh(config)
      unet.create_model(config).output_size(config.data.image_size)
    except errors.UserError:
      continue
    largest, where = step_difference.difference(config)
    count, worst = count + 1, max(worst, largest)
    if largest > TOLERANCE:
      wrong += 1
      model = {k: config.model[k] for k in CHOICES}
      print('WRONG', config.data.image_size, dict(config.mesh), model)
      print(config.augment)
    print(f'{count}: {largest:.1e} {where}', flush=True)
  print(f'{count} combinations, {wrong} wrong, largest difference {worst:.1e}')


if __name__ == '__main__':
  main()
