"""Measures time and memory of training and inference, ours and PyTorch's.

  python -m experiments.speed.benchmark [--config=configs/NAME.py[:arg]]
    [--what=step,pipeline,start,memory,augment,loader,sizes]
    [--repeats=N] [--output=FILE.json]

Contenders run in turn, round after round, in one process (`start` and `memory`:
in processes of their own). README.md says how to read the tables.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from typing import Any

import jax
import ml_collections

from experiments.speed import (
  augment,
  loader,
  memory,
  pipeline,
  sizes,
  start,
  step,
)
from experiments.sweep import points
from unet_jax.config import checks
from unet_jax.runtime import errors

_WHAT = (
  'step',
  'pipeline',
  'start',
  'memory',
  'augment',
  'loader',
  'sizes',
)


def _parse() -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags, and those of the config."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--what', default='step,pipeline,start', help='measured')
  add('--repeats', type=int, default=5, help='rounds')
  add('--steps', type=int, default=10, help='of each contender in a round')
  add('--torch_compile', action='store_true', help='measure torch.compile too')
  add('--output', help='JSON file to write')
  return parser.parse_known_args()


def _measure(
  what: str,
  config: ml_collections.ConfigDict,
  arguments: list[str],
  args: argparse.Namespace,
) -> dict[str, Any]:
  repeats, steps = args.repeats, args.steps
  if what == 'step':
    return step.measure(config, repeats, steps, args.torch_compile)
  if what == 'start':
    return start.measure(config, arguments, repeats)
  if what == 'memory':
    return memory.measure(config, arguments, repeats, steps)
  by_name = {
    'pipeline': pipeline.measure,
    'augment': augment.measure,
    'loader': loader.measure,
    'sizes': sizes.measure,
  }
  return by_name[what](config, repeats, steps)


def _processor() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  names = [s.partition(':')[2].strip() for s in lines if 'model name' in s]
  return names[0] if names else platform.processor()


def _machine() -> dict[str, Any]:
  """The machine of the measurements."""
  packages = ['jax', 'jaxlib', 'flax']
  devices = [d.device_kind for d in jax.devices()]
  if step.HAS_TORCH:
    import torch

    packages.append('torch')
    if torch.cuda.is_available():
      devices.append(f'PyTorch: {torch.cuda.get_device_name()}')
  return {
    'date': datetime.datetime.now().isoformat(timespec='seconds'),
    'processor': _processor(),
    'cores': len(os.sched_getaffinity(0)),
    'load_at_start': os.getloadavg()[0],
    'omp_wait_policy': os.environ['OMP_WAIT_POLICY'],
    'devices': devices,
    'python': platform.python_version(),
    'versions': {name: importlib.metadata.version(name) for name in packages},
  }


def main() -> None:
  args, rest = _parse()
  arguments = ['--config=configs/shapes.py', *rest]
  try:
    config = points.resolve(arguments)
    checks.validate(config)
    for what in args.what.split(','):
      if what not in _WHAT:
        raise errors.UserError(f'--what={what}: not one of {", ".join(_WHAT)}')
    for name in ('repeats', 'steps'):
      if getattr(args, name) < 1:
        raise errors.UserError(f'--{name}: takes 1 or more')
    # Read when PyTorch is imported. Its threads otherwise spin while they wait,
    # which beside any other work makes its steps several times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    # On a GPU, PyTorch needs a share of the memory that JAX would take.
    os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.5')
    # Compiled programs are not kept: the time of compilation is measured.
    jax.config.update('jax_enable_compilation_cache', False)
    machine = _machine()
    print('\n'.join(f'{name}: {value}' for name, value in machine.items()))
    results = {
      what: _measure(what, config, arguments, args)
      for what in args.what.split(',')
    }
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  if args.output:
    document = {
      'machine': machine,
      'arguments': {'repeats': args.repeats, 'steps': args.steps},
      'config': config.to_dict(),
      'results': results,
    }
    pathlib.Path(args.output).write_text(json.dumps(document, indent=1))
    print(f'\nwrote {args.output}')


if __name__ == '__main__':
  main()
