"""Ends of a process that neither Python nor JAX may hold up, or foresee."""

import atexit
import os
import subprocess
import sys
from typing import NoReturn

_watches: list[subprocess.Popen] = []


def leave(code: int) -> NoReturn:
  """Ends this process at once, without waiting for others."""
  sys.stdout.flush()
  sys.stderr.flush()
  _end_watch()
  os._exit(code)


def watch(line: str) -> None:
  """Has a line printed if this process is aborted, when no Python runs.

  A shell waits beside it for a sign that it ends by itself.
  """
  script = 'read -r sign || echo "$0" >&2'
  _watches.append(
    subprocess.Popen(
      ['sh', '-c', script, line],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      start_new_session=True,  # Ctrl-C and SIGTERM are not for it.
    )
  )
  atexit.register(_end_watch)


def _end_watch() -> None:
  while _watches:
    _watches.pop().communicate(b'\n')
