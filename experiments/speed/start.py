"""Program starts, up to the end of the first training step."""

import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from experiments.speed import rounds, step

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _seconds_to_first_step(command: list[str]) -> float:
  """Runs a command until it reports its first step, and ends it there."""
  environment = dict(os.environ)
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  lines = []
  start = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, *command],
    cwd=_ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  with process:
    for line in process.stdout:
      if 'first step done' in line:
        seconds = time.perf_counter() - start
        process.kill()
        return seconds
      lines.append(line)
  raise RuntimeError(f'{command} made no step:\n' + ''.join(lines[-20:]))


def measure(config, arguments: list[str], repeats: int) -> dict:
  """Times program starts up to the end of the first training step.

  Args:
    config: what `arguments` say.
    arguments: --config flags for the programs that are started.
    repeats: rounds.
  """
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    cache, number = folder / 'cache', itertools.count()
    # The last flag of a name counts.
    arguments = [*arguments, f'--config.data.cache_dir={cache}']

    def ours(*forgotten):
      for path in forgotten:
        shutil.rmtree(path, ignore_errors=True)
      workdir = f'--workdir={folder / str(next(number))}'
      return _seconds_to_first_step(['main.py', workdir, *arguments])

    contenders = {
      'nothing kept': lambda: ours(cache),
      'arrays kept, compiles': lambda: ours(cache / 'xla'),
      'arrays and programs kept': ours,
    }
    if step.HAS_TORCH:
      from experiments.speed import torch_unet

      if torch_unet.unsupported(config) is None:
        contenders['PyTorch, arrays kept'] = lambda: _seconds_to_first_step(
          ['-m', 'experiments.speed.torch_train', *arguments]
        )
    return rounds.report(
      'process start to end of first step, s',
      rounds.in_turn(contenders, repeats),
    )
