"""Measures of a point, in as few processes as there are occasions.

  python -m experiments.sweep.measure network DIR --config=configs/NAME.py ...
  python -m experiments.sweep.measure run WORKDIR

`network` writes what --mode=summary does and DIR/costs.json. `run` evaluates
the network of a training run, as --mode=evaluate does, and writes
WORKDIR/checkerboard.json.
"""

import os
import pathlib
import sys

from experiments.sweep import checkerboard, costs, folder, points
from unet_jax import config as config_lib
from unet_jax import errors, evaluate, logs, summary


def network(directory: str, arguments: list[str]) -> None:
  """Writes summary.* and costs.json of the config that arguments give."""
  config = points.resolve(arguments)
  # What a step costs is in the tables.
  config.summary.compile = True
  config_lib.validate(config, 'summary')
  summary.run(config, directory)
  measured = costs.measure(config)
  folder.write_json(pathlib.Path(directory, 'costs.json'), measured)


def run(workdir: str) -> None:
  """Writes eval.* and checkerboard.json of a training run."""
  config = config_lib.read(workdir, {})
  if config is None:
    raise errors.UserError(f'{workdir} has no config.json; train first')
  config_lib.validate(config, 'evaluate')
  evaluate.run(config, workdir)
  path = pathlib.Path(workdir, 'checkerboard.json')
  folder.write_json(path, checkerboard.of_run(workdir))


def main(what: str, directory: str, *arguments: str) -> None:
  logs.set_up()
  # Names of files may be no text.
  sys.stdout.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
  directory = os.path.abspath(directory)
  try:
    if what == 'network':
      network(directory, list(arguments))
    else:
      run(directory)
  except (errors.UserError, OSError) as e:
    errors.leave(f'error: {errors.one_line(e, directory)}', 1)


if __name__ == '__main__':
  main(*sys.argv[1:])
