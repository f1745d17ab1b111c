"""Locks between runs that build the same thing."""

import contextlib
import errno
import fcntl
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import TextIO

from unet_jax.runtime import errors

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def lock(
  path: pathlib.Path,
  what: str,
  wait: bool = True,
  pause: Callable[[], None] | None = None,
) -> Iterator[None]:
  """Holds a lock that the system releases when the process dies.

  Args:
    path: of a file beside the guarded files; it is created and stays.
    what: the work under the lock, named in the message of a run that finds it
      locked.
    wait: wait for the other run, or raise at once.
    pause: called between two attempts; it takes some time, or raises to give
      up. Without it the wait ends with the other run.

  Raises:
    UserError: another run holds the lock and `wait` is false; or the file
      system has no locks.
  """
  with open(path, 'a') as f:
    if not _take(f):
      if not wait:
        raise errors.UserError(
          f'{what}: another run does it; wait for it, or stop it'
        )
      _log.info('%s: waiting for another run that does it', what)
      if pause is None:
        fcntl.flock(f, fcntl.LOCK_EX)
      else:
        while not _take(f):
          pause()
    yield


def is_free(path: pathlib.Path) -> bool:
  """Whether no run holds a lock."""
  with open(path, 'a') as f:
    return _take(f)


def _take(f: TextIO) -> bool:
  """Takes the lock if it is free; returns whether it was."""
  try:
    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as e:
    if e.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
      raise
    raise errors.UserError(
      f'{f.name}: its file system has no locks ({e.strerror}); mount it with '
      'them (Lustre: -o flock), or choose a folder of another'
    ) from e
  return True
