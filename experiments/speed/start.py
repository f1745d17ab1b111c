"""Program starts, up to the end of the first training step."""

import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import ml_collections

from experiments.speed import rounds, step

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _seconds_to_first_step(command: list[str]) -> float:
  """Runs a command until it reports its first step, and ends it there."""
  name = 'JAX_COMPILATION_CACHE_DIR'
  environment = {k: v for k, v in os.environ.items() if k != name}
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
    for line in process.stdout or ():
      if 'first step done' in line:
        seconds = time.perf_counter() - start
        process.kill()
        return seconds
      lines.append(line)
  raise RuntimeError(f'{command} made no step:\n' + ''.join(lines[-20:]))


def measure(
  config: ml_collections.ConfigDict, arguments: list[str], repeats: int
) -> dict[str, Any]:
  """Times program starts up to the end of the first training step.

  The programs get the arguments, flags that give this config.
  """
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    cache, number = folder / 'cache', itertools.count()
    # The last flag of a name counts.
    arguments = [*arguments, f'--config.data.cache_dir={cache}']

    def ours(*forgotten: pathlib.Path) -> float:
      for path in forgotten:
        shutil.rmtree(path, ignore_errors=True)
      workdir = f'--workdir={folder / str(next(number))}'
      return _seconds_to_first_step(['main.py', workdir, *arguments])

    def but_kernels() -> list[pathlib.Path]:
      return [p for p in cache.glob('*') if p.name != 'kernels']

    contenders = {
      'nothing kept': lambda: ours(cache),
      'native kernels kept': lambda: ours(*but_kernels()),
      'arrays kept, compiles': lambda: ours(cache / 'xla', cache / 'programs'),
      'arrays and programs kept': ours,
    }
    if step.torch_skipped(config) is None:
      contenders['PyTorch, arrays kept'] = lambda: _seconds_to_first_step(
        ['-m', 'experiments.speed.torch_train', *arguments]
      )
    title = 'process start to end of first step, s'
    return rounds.compare(title, contenders, repeats)
