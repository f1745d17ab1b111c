"""Errors of the system that a user can fix, and others."""

import errno
import os
import subprocess
import sys

import pytest

from unet_jax.runtime import errors


def _error(code, path=None):
  return OSError(code, os.strerror(code), path)


@pytest.mark.parametrize(
  'code',
  [
    *(errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
    *(errno.EISDIR, errno.ENAMETOOLONG),
  ],
)
def test_a_path_that_a_user_can_fix(code):
  text = f'{os.strerror(code)}; fix this and run the same command again'
  assert errors.one_line(_error(code, 'a/b'), 'run') == f'a/b: {text}'
  assert errors.one_line(_error(code), 'run') == f'run: {text}'


def test_other_errors_are_raised():
  with pytest.raises(OSError, match='Bad file'):
    errors.one_line(_error(errno.EBADF), 'run')


def test_a_mistake_is_one_line_whatever_it_names(capsys):
  with pytest.raises(SystemExit):
    errors.exit_with('error: a\nb.png: no such file', 1)
  assert capsys.readouterr().err == 'error: a b.png: no such file\n'


def test_leaving_waits_for_no_compiler():
  """Whose threads are joined at the end of a program otherwise."""
  code = """
import time
from concurrent import futures
from unet_jax.runtime import errors
pool = futures.ThreadPoolExecutor(1, errors.COMPILING)
pool.submit(time.sleep, 60)
print('kept')
errors.exit_with('why', 130)
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, timeout=30
  )
  assert (done.returncode, done.stdout, done.stderr) == (130, 'kept\n', 'why\n')


@pytest.mark.parametrize(
  'end,said',
  [
    ('os.abort()', 'all again\n'),
    ('errors.leave(1)', ''),
    ('sys.exit(1)', ''),
  ],
)
def test_a_process_that_is_aborted_says_so(end, said):
  code = 'import os, sys\nfrom unet_jax.runtime import errors\n'
  code += f'errors.if_aborted("all again")\n{end}'
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.stderr == said


@pytest.mark.parametrize(
  'error,said',
  [
    ('MemoryError()', 'MemoryError'),
    ('RuntimeError("RESOURCE_EXHAUSTED: Out of\\n1 GiB")', 'Out of 1 GiB'),
    ('RuntimeError("can\'t start new thread")', 'new thread'),
    ('ValueError("a bug")', ''),
  ],
)
def test_without_memory_a_run_ends_in_one_line(error, said):
  """Where closing files fails for the same reason, too."""
  e = eval(error)
  try:
    try:
      raise e
    finally:
      raise RuntimeError('cannot join thread')
  except RuntimeError as last:
    line = errors.no_memory(last)
  assert line.startswith('out of memory (') == bool(said)
  assert said in line and '\n' not in line


_FAILS = """
import sys, threading
forever = threading.Event().wait
def fail(*_):
  raise MemoryError
"""


@pytest.mark.parametrize(
  'code',
  [
    """
from unet_jax import __main__ as program
threading.Thread(target=forever).start()
program.checks.validate = fail
program.main()
""",
    """
from unet_jax.runtime import errors
errors.watch_memory()
threading.Thread(target=fail).start()
forever()
""",
  ],
)
def test_a_program_without_memory_does_not_wait_for_its_threads(code):
  done = subprocess.run(
    [sys.executable, '-c', _FAILS + code, '--mode=summary'],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 1
  assert done.stderr.startswith('error: out of memory (MemoryError); ')
  assert done.stderr.count('\n') == 1
