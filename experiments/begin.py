"""sweep.json: what a folder's sweep began with, which later calls keep to."""

import dataclasses
import json
import pathlib
from typing import Any

from experiments import files
from experiments.sweeps import Sweep
from unet_jax import config as config_lib
from unet_jax import errors, locks

# What may differ between calls: it changes no figure but those of the clock.
_FREE = ('data.cache', 'data.cache_dir', 'data.num_workers', 'log')


def _begun(sweep: Sweep) -> dict[str, Any]:
  """What must be the same in each call, {name: value}, as in JSON."""
  flat = {
    f: v
    for f, v in config_lib.flatten(sweep.config).items()
    if not any(f == free or f.startswith(free + '.') for free in _FREE)
  }
  tune = sweep.tune and dataclasses.asdict(sweep.tune)
  about = {'BUDGET': sweep.budget, 'TUNE': tune, **flat}
  return json.loads(json.dumps(about))


def begin(sweep: Sweep, directory: pathlib.Path) -> None:
  """Writes sweep.json, or checks it against that of an earlier call.

  Raises:
    UserError: the folder's sweep has another base, tuning or budget. Points may
      be added.
  """
  directory.mkdir(parents=True, exist_ok=True)
  # Jobs of a cluster begin at the same time.
  with locks.lock(directory / '.begin', f'beginning the sweep of {directory}'):
    _begin(sweep, directory)


def _begin(sweep: Sweep, directory: pathlib.Path) -> None:
  path, now = directory / 'sweep.json', _begun(sweep)
  before = files.read_json(path)
  if before:
    was = before['begun']
    differences = [
      f'{name} was {was.get(name)!r}, now {now.get(name)!r}'
      for name in sorted({*was, *now})
      if was.get(name) != now.get(name)
    ]
    if differences:
      raise errors.UserError(
        f'{directory} holds a sweep with another base: '
        f'{"; ".join(differences)}. Choose another --workdir, or undo the '
        'change'
      )
  about = {
    'question': sweep.question,
    'file': sweep.path,
    'size': sweep.size,
    'fields': sweep.fields,
    'points': [point.name for point in sweep.points],
    'begun': now,
  }
  if about != before:
    files.write_json(path, about)
