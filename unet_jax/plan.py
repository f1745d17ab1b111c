"""--mode=plan: what a run would take on a TPU slice that is not there."""

import importlib.metadata
import logging
import os
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from unet_jax.planning import chips, costs, programs, report
from unet_jax.runtime import errors, whole_files
from unet_jax.runtime import mesh as mesh_lib

_log = logging.getLogger(__name__)
# Programs that are compiled to find the largest batch.
_TRIES = 4


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Compiles the steps of a run for `plan.topology`; prints what they take.

  No data and no TPU are needed. The workdir, an absolute path, gets plan.txt
  and plan.json.

  Raises:
    UserError: libtpu is missing, there is no such slice, or the mesh does not
      fit it.
  """
  target = chips.make_slice(config.plan.topology)
  whole_files.make_workdir(workdir)
  sweep = _entries(config, len(target.devices))
  # A mistake in the mesh ends before minutes of work.
  steps = [
    programs.STEPS[name](config, target.devices)
    for name in ([] if sweep else config.plan.steps)
    if name != 'predict' or config.model.spatial_dims == 2
  ]
  plan: dict[str, Any] = {
    'slice': {
      'name': target.name,
      'chips': len(target.devices),
      'hosts': target.hosts,
      **target.chip._asdict() | {'chip': target.chip.name, 'name': target.name},
    },
    'compiler': f'libtpu {importlib.metadata.version("libtpu")}, jax '
    f'{jax.__version__}',
    'steps': [_describe(step, target, config) for step in steps],
    'sweep': [_compare(entry, target, config) for entry in sweep],
  }
  best = report.best_of(plan['sweep'])
  plan['best'] = best and best['entry']
  text = report.of_plan(plan)
  path = lambda name: os.path.join(workdir, name)
  with whole_files.replacing(path('plan.txt')) as f:
    f.write(text + '\n')
  whole_files.write_json(path('plan.json'), plan)
  print(text)
  _log.info('wrote plan.txt and plan.json into %s', workdir)


def _compile(step: programs.Step, target: chips.Slice) -> dict[str, Any]:
  """Returns what a step takes; of one that needs too much its memory alone."""
  mesh = ', '.join(f'{k}={n}' for k, n in step.mesh.shape.items())
  what = (
    f'the {step.name} step of {step.images} images for {target.name}, {mesh}'
  )
  done = programs.compile(step, what)
  about = {
    'name': step.name,
    'images': step.images,
    'images_per_host': step.images // len(mesh_lib.groups(step.mesh)),
    'mesh': dict(step.mesh.shape),
    'compile_seconds': done.seconds,
  }
  if done.compiled is None:
    used = {'total': done.needed, 'hbm': target.chip.hbm, 'fits': False}
    return about | {'memory': used}
  return about | costs.describe(
    done.compiled, target.chip, step.mesh, step.images
  )


def _describe(
  step: programs.Step, target: chips.Slice, config: ml_collections.ConfigDict
) -> dict[str, Any]:
  found = _compile(step, target)
  largest = None
  if step.name == 'train':
    largest = _largest_batch(found, target, config)
  return found | {'largest_batch': largest}


def _largest_batch(
  found: dict[str, Any],
  target: chips.Slice,
  config: ml_collections.ConfigDict,
) -> dict[str, Any]:
  """Returns the largest batch that fits; compiled where plan.largest_batch.

  Of the memory only the temporaries and the batch grow with the batch: from one
  batch in proportion to it, from two along the line through them.
  """
  mesh, hbm = found['mesh'], target.chip.hbm
  unit = mesh['data'] * mesh['fsdp'] * config.optimizer.accumulate_steps
  memory = found['memory']
  # All of a program may grow that does not fit, or has no temporaries.
  growing = memory.get('temporaries') or memory['total']
  slope, fixed = growing / found['images'], memory['total'] - growing
  totals = {found['images']: memory['total']}
  fits = {found['images']} if memory['total'] <= hbm else set()
  guess = max(int((hbm - fixed) / slope) // unit * unit, 0)
  if not config.plan.largest_batch:
    return {'images': guess, 'compiled': guess in totals}
  for _ in range(_TRIES):
    too_large = [n for n in totals if n not in fits]
    guess = min(guess, min(too_large, default=guess + unit) - unit)
    if guess in totals or guess < unit:
      break
    changed = config.copy_and_resolve_references()
    changed.data.batch_size = guess
    step = programs.STEPS['train'](changed, target.devices)
    totals[guess] = _compile(step, target)['memory']['total']
    if totals[guess] <= hbm:
      fits.add(guess)
    (a, low), (b, high) = sorted(totals.items())[-2:]
    # The compiler may put more into less; then, in proportion.
    slope = (high - low) / (b - a) if high > low else high / b
    guess = max(int(b + (hbm - high) / slope) // unit * unit, 0)
  return {'images': max(fits, default=0), 'compiled': True}


def _entries(config: ml_collections.ConfigDict, chips: int) -> list[str]:
  """Returns the meshes and batches of plan.sweep; `grid` stands for several.

  These are all chips along data, a half or all of them along fsdp, and pairs
  along spatial, each with one, two and four times the batch.
  """
  if 'grid' not in config.plan.sweep:
    return list(config.plan.sweep)
  meshes = dict.fromkeys([(chips, 1, 1), (1, chips, 1)])
  if chips % 2 == 0:
    meshes |= dict.fromkeys([(2, chips // 2, 1), (chips // 2, 1, 2)])
  if config.model.spatial_dims == 3:
    meshes = {m: None for m in meshes if m[2] == 1}
  return [
    f'{"x".join(map(str, mesh))}:{factor * config.data.batch_size}'
    for mesh in meshes
    for factor in (1, 2, 4)
  ]


def _compare(
  entry: str, target: chips.Slice, config: ml_collections.ConfigDict
) -> dict[str, Any]:
  """Returns what the train step takes with a mesh and batch of plan.sweep."""
  mesh, _, batch = entry.partition(':')
  changed = config.copy_and_resolve_references()
  names: Sequence[str] = ('data', 'fsdp', 'spatial')
  changed.mesh.update(dict(zip(names, map(int, mesh.split('x')))))
  if batch:
    changed.data.batch_size = int(batch)
  try:
    step = programs.STEPS['train'](changed, target.devices)
  except errors.UserError as e:
    return {'entry': entry, 'refused': str(e)}
  return {'entry': entry} | _compile(step, target)
