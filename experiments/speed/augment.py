"""Time that augmentation adds to the training step."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from experiments.speed import inputs, rounds, step
from unet_jax.config import checks
from unet_jax.data import augment
from unet_jax.runtime import mesh, program

# {row: transforms that are on}.
_Rows = Mapping[str, tuple[str, ...]]

_OFF = 'off'
_FLIPS = ('flip_horizontal', 'flip_vertical')
_GEOMETRY = (*_FLIPS, 'rotate_90', 'affine', 'crop', 'elastic')
_PHOTOMETRIC = tuple(
  'brightness contrast saturation hue gamma blur noise cutout'.split()
)
_BICUBIC = 'all geometry, bicubic'
# Measured in steps, and, since a step takes far longer than one of them, alone.
_IN_STEP: _Rows = {
  _OFF: (),
  'flips': _FLIPS,
  'all geometry': _GEOMETRY,
  _BICUBIC: _GEOMETRY,
  'all photometric': _PHOTOMETRIC,
  'everything': _GEOMETRY + _PHOTOMETRIC,
}
_ALONE: _Rows = {name: (name,) for name in _GEOMETRY[2:] + _PHOTOMETRIC}


def _configs(
  config: ml_collections.ConfigDict, rows: _Rows
) -> dict[str, ml_collections.ConfigDict]:
  """Returns {row: its config}, for transforms that suit the config's images.

  Flips and turns are of half of the images, the rest of all of them.
  """
  square = len(set(config.data.image_size)) == 1
  skipped = set() if square else {'rotate_90'}
  if config.data.num_channels == 1:
    skipped |= {'saturation', 'hue'}
  configs = {}
  for row, names in rows.items():
    kept = set(names) - skipped
    if not kept and row != _OFF:
      continue
    configs[row] = changed = config.copy_and_resolve_references()
    section = changed.augment
    for name in _GEOMETRY + _PHOTOMETRIC:
      value = float(name in kept)
      if isinstance(section[name], float):
        section[name] = value / 2
      else:
        section[name].probability = value
    if row == _BICUBIC:
      section.interpolation = 'bicubic'
    checks.validate(changed)
  return configs


def _call(augmentation: Callable[..., Any], batch: Any, count: int) -> None:
  key = jax.random.key(0)
  for _ in range(count):
    result = augmentation(key, batch)
  jax.block_until_ready(result)


def measure(
  config: ml_collections.ConfigDict, repeats: int, steps: int
) -> dict[str, Any]:
  """Times training steps, and the augmentation alone, on one random batch."""
  size = config.data.batch_size
  in_step, alone = {}, {}
  for row, changed in _configs(config, _IN_STEP).items():
    ours = step.Ours(changed)
    batch = mesh.to_devices(inputs.random_batch(changed), ours.mesh)
    train = functools.partial(ours.train, itertools.repeat(batch))
    in_step[row] = functools.partial(rounds.per_step, train, steps)
  for row, changed in _configs(config, {**_IN_STEP, **_ALONE}).items():
    if row != _OFF:
      jitted = jax.jit(
        augment.make_augmentation(changed),
        compiler_options=program.compiler_options(ours.mesh),
      )
      call = functools.partial(_call, jitted, batch)
      alone[row] = functools.partial(rounds.per_step, call, 5 * steps)
  for contender in (*in_step.values(), *alone.values()):
    contender()  # Compiles.
  title = f'training step of {size} images, s'
  results: dict[str, Any] = {
    'training': rounds.compare(title, in_step, repeats, size),
    'alone': rounds.compare(
      f'augmentation alone, {size} images, s', alone, repeats
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
