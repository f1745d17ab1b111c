"""Peak memory of a process that trains, ours and PyTorch's.

  python -m experiments.speed.memory WHO STEPS [FLAGS of the config]

is such a process; it prints its peak. WHO is `unet_jax`, or a layout of
PyTorch's.
"""

import functools
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import ml_collections

from experiments.speed import inputs
from experiments.sweep import points

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_OURS = 'unet_jax'


def _train(config: ml_collections.ConfigDict, steps: int) -> None:
  from experiments.speed import step
  from unet_jax.runtime import mesh

  ours = step.Ours(config)
  batch = mesh.to_devices(inputs.random_batch(config), ours.mesh)
  ours.compile(batch)
  ours.train(itertools.repeat(batch), steps)


def _train_torch(
  config: ml_collections.ConfigDict, steps: int, layout: str
) -> None:
  from experiments.speed import torch_unet

  device = torch_unet.set_up()
  model, optimizer = torch_unet.create(config, device, layout)
  batch = torch_unet.to_device(inputs.random_batch(config), device, layout)
  for _ in range(steps):
    loss = torch_unet.train_step(model, optimizer, batch, config)
  float(loss)  # Waits for a GPU.


def peak_megabytes() -> float:
  """Returns the most memory of the host that this process has had, in MB.

  As Linux counts it since the start of the program; `ru_maxrss` begins with
  that of the process that started it.
  """
  status = pathlib.Path('/proc/self/status').read_text()
  found = re.search(r'VmHWM:\s*(\d+) kB', status)
  assert found, status
  return int(found[1]) * 1024 / 1e6


def _peak(command: list[str], who: str, cache: str = '') -> float:
  """Runs a process, which keeps compiled programs in the folder `cache`."""
  command = ['-m', 'experiments.speed.memory', who, *command]
  done = subprocess.run(
    [sys.executable, *command],
    cwd=_ROOT,
    env={
      **os.environ,
      'JAX_ENABLE_COMPILATION_CACHE': str(bool(cache)),
      'JAX_COMPILATION_CACHE_DIR': cache,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    },
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(f'{command} failed:\n{done.stderr[-2000:]}')
  return float(done.stdout.split()[-1])


def measure(
  config: ml_collections.ConfigDict,
  arguments: list[str],
  repeats: int,
  steps: int,
) -> dict[str, Any]:
  """Measures processes that get the arguments, flags that give this config."""
  # Both import JAX, which PyTorch's process does without.
  from experiments.speed import rounds, step

  peak = functools.partial(_peak, [str(steps), *arguments])
  with tempfile.TemporaryDirectory() as cache:
    peak(_OURS, cache)
    contenders = {
      'unet_jax, compiles': functools.partial(peak, _OURS),
      'unet_jax, programs kept': functools.partial(peak, _OURS, cache),
    }
    if reason := step.torch_skipped(config):
      print(f'PyTorch is skipped: {reason}')
    else:
      for layout in step.LAYOUTS:
        contenders[f'PyTorch, {layout}'] = functools.partial(peak, layout)
    title = f'peak memory of a process that trains {steps} steps, MB'
    return rounds.compare(title, contenders, repeats)


def main() -> None:
  who, steps, *arguments = sys.argv[1:]
  config = points.resolve(arguments)
  if who == _OURS:
    _train(config, int(steps))
  else:
    _train_torch(config, int(steps), who)
  print(f'{peak_megabytes():.1f}')


if __name__ == '__main__':
  main()
