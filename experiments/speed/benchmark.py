"""Measures training and inference against PyTorch, the pipeline, the start.

  python -m experiments.speed.benchmark [--config=configs/NAME.py[:arg]]
    [--what=step,pipeline,start,augment,loader] [--repeats=N]
    [--output=FILE.json]

Contenders run in turn, round after round, in one process (the starts:
in processes of their own). README.md says how to read the tables.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.speed import augment, loader, pipeline, start, step
from unet_jax.config import checks
from unet_jax.runtime import errors

_DEFAULT_CONFIG = pathlib.Path(__file__).parents[2] / 'configs/shapes.py'
_CONFIG = config_flags.DEFINE_config_file(
  'config', str(_DEFAULT_CONFIG), 'File with get_config().'
)
_WHAT = flags.DEFINE_list(
  'what',
  'step,pipeline,start',
  'What to measure, of step, pipeline, start, augment, loader.',
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Rounds.', lower_bound=1)
_STEPS = flags.DEFINE_integer(
  'steps', 10, 'Steps of each contender in a round.', lower_bound=1
)
_TORCH_COMPILE = flags.DEFINE_boolean(
  'torch_compile', False, 'Also measure torch.compile.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write.')


def _config_arguments() -> list[str]:
  """This command's --config flags, for a command that is started here."""
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  fields = [a for a in sys.argv[1:] if a.lstrip('-').startswith('config.')]
  return [f'--config={file}', *fields]


# Functions of the config, the rounds, and the steps of a round.
_MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
  'step': lambda config, repeats, steps: step.measure(
    config, repeats, steps, _TORCH_COMPILE.value
  ),
  'pipeline': pipeline.measure,
  'start': lambda config, repeats, _: start.measure(
    config, _config_arguments(), repeats
  ),
  'loader': loader.measure,
  'augment': augment.measure,
}


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


def main(_: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)
  config = _CONFIG.value
  try:
    checks.validate(config)
    for what in _WHAT.value:
      if what not in _MEASURES:
        raise errors.UserError(
          f'--what={what}: not one of {", ".join(_MEASURES)}'
        )
    # Read when PyTorch is imported. Its threads otherwise spin while they wait,
    # which beside any other work makes its steps several times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    # On a GPU, PyTorch needs a share of the memory that JAX would take.
    os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.5')
    # Compiled programs are not kept: the time of compilation is measured.
    jax.config.update('jax_enable_compilation_cache', False)
    machine = _machine()
    print('\n'.join(f'{name}: {value}' for name, value in machine.items()))
    arguments = {'repeats': _REPEATS.value, 'steps': _STEPS.value}
    results = {
      what: _MEASURES[what](config, *arguments.values()) for what in _WHAT.value
    }
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  if _OUTPUT.value:
    document = {
      'machine': machine,
      'arguments': arguments,
      'config': config.to_dict(),
      'results': results,
    }
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(document, indent=1))
    print(f'\nwrote {_OUTPUT.value}')


if __name__ == '__main__':
  app.run(main)
