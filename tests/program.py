"""main.py as its user runs it, for the tests of whole runs."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*flags, code=0, cwd=None, **env):
  """Runs main.py; returns stdout and stderr."""
  process = subprocess.run(
    [sys.executable, str(ROOT / 'main.py'), *map(str, flags)],
    cwd=cwd or ROOT,
    # Compiling takes longer than what is compiled.
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      **env,
    },
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert process.returncode == code, process.stderr
  return process.stdout, process.stderr
