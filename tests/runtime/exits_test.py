"""Ends of a process, said by another where it cannot."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
  'end,said',
  [
    ('os.abort()', 'all again\n'),
    ('exits.leave(1)', ''),
    ('sys.exit(1)', ''),
  ],
)
def test_a_process_that_is_aborted_says_so(end, said):
  code = 'import os, sys\nfrom unet_jax.runtime import exits\n'
  code += f'exits.watch("all again")\n{end}'
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.stderr == said
