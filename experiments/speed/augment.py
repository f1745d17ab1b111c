"""Time that augmentation adds to the training step."""

import functools
import itertools

import jax

from experiments.speed import rounds, step
from unet_jax.config import checks
from unet_jax.data import augment
from unet_jax.runtime import mesh, program

_OFF = 'off'
_GEOMETRY = (
  'flip_horizontal',
  'flip_vertical',
  'rotate_90',
  'affine',
  'crop',
  'elastic',
)
_PHOTOMETRIC = (
  'brightness',
  'contrast',
  'saturation',
  'hue',
  'gamma',
  'blur',
  'noise',
  'cutout',
)
# {row: transforms that are on, other fields of the section}: measured in steps,
# and, since a step takes far longer than one of them, alone.
_IN_STEP = {
  _OFF: ((), {}),
  'flips': (('flip_horizontal', 'flip_vertical'), {}),
  'all geometry': (_GEOMETRY, {}),
  'all geometry, bicubic': (_GEOMETRY, {'interpolation': 'bicubic'}),
  'all photometric': (_PHOTOMETRIC, {}),
  'everything': (_GEOMETRY + _PHOTOMETRIC, {}),
}
_ALONE = {name: ((name,), {}) for name in _GEOMETRY[2:] + _PHOTOMETRIC}


def _config(config, names, fields):
  """The config with these on: flips and turns of half of the images, the rest
  of all of them."""
  config = config.copy_and_resolve_references()
  section = config.augment
  for name in _GEOMETRY + _PHOTOMETRIC:
    value = float(name in names)
    if isinstance(section[name], float):
      section[name] = value / 2
    else:
      section[name].probability = value
  section.update(fields)
  checks.validate(config)
  return config


def _configs(config, groups):
  """{row: its config}, for the transforms that suit the config's images."""
  square = len(set(config.data.image_size)) == 1
  skipped = set() if square else {'rotate_90'}
  if config.data.num_channels == 1:
    skipped |= {'saturation', 'hue'}
  configs = {}
  for row, (names, fields) in groups.items():
    kept = tuple(n for n in names if n not in skipped)
    if kept or row == _OFF:
      configs[row] = _config(config, kept, fields)
  return configs


def _step_round(ours, batch, steps: int) -> float:
  """Seconds per training step."""
  batches = itertools.repeat(batch)
  ours.train(batches, 1)  # Compiles, and brings threads and caches back.
  return rounds.seconds(ours.train, batches, steps) / steps


def _alone_round(augmentation, batch, calls: int) -> float:
  """Seconds per call of the augmentation by itself."""
  key = jax.random.key(0)

  def call(count):
    for _ in range(count):
      result = augmentation(key, batch)
    jax.block_until_ready(result)

  call(1)
  return rounds.seconds(call, calls) / calls


def measure(config, repeats: int, steps: int) -> dict:
  """Times training steps, and the augmentation alone, on one random batch."""
  size = config.data.batch_size
  in_step, alone = {}, {}
  for row, changed in _configs(config, _IN_STEP).items():
    ours = step.Ours(changed)
    batch = mesh.to_devices(step.random_batch(changed), ours.mesh)
    in_step[row] = functools.partial(_step_round, ours, batch, steps)
  for row, changed in _configs(config, _IN_STEP | _ALONE).items():
    if row != _OFF:
      jitted = jax.jit(
        augment.make_augmentation(changed),
        compiler_options=program.compiler_options(ours.mesh),
      )
      alone[row] = functools.partial(_alone_round, jitted, batch, 5 * steps)
  for contender in (*in_step.values(), *alone.values()):
    contender()  # Compiles.
  results = {
    'training': rounds.report(
      f'training step of {size} images, s',
      rounds.in_turn(in_step, repeats),
      size,
    ),
    'alone': rounds.report(
      f'augmentation alone, {size} images, s', rounds.in_turn(alone, repeats)
    ),
  }
  off = results['training'][_OFF]['median']
  results['share'] = shares = {}
  print('share of the step in %: alone, and by the difference of steps')
  for row, measured in results['alone'].items():
    # Of the step that it is a part of.
    shares[row] = {'alone': measured['median'] / (off + measured['median'])}
    if row in in_step:
      difference = 1 - 1 / results['training'][row]['ratio']
      shares[row]['difference'] = difference
    cells = ''.join(f'{100 * share:8.1f}' for share in shares[row].values())
    print(f'{row:<24}' + cells)
  return results
