"""Locks between runs that build the same thing."""

import contextlib
import fcntl
import logging
import pathlib
from collections.abc import Iterator

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def lock(path: pathlib.Path, what: str) -> Iterator[None]:
  """Holds a lock that the system lets go of when the process dies.

  Args:
    path: of a file beside what is built; it is created and stays.
    what: is built, for the log line of a run that has to wait.
  """
  with open(path, 'w') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      _log.info('%s: waiting for another run that does it', what)
      fcntl.flock(f, fcntl.LOCK_EX)
    yield
