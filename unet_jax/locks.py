"""Locks between runs that build the same thing."""

import contextlib
import fcntl
import logging
import pathlib
from collections.abc import Iterator

from unet_jax import errors

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def lock(path: pathlib.Path, what: str, wait: bool = True) -> Iterator[None]:
  """Holds a lock that the system lets go of when the process dies.

  Args:
    path: of a file beside what is guarded; it is created and stays.
    what: is done, for the line that a run which finds it locked tells.
    wait: for the other run to let go, or raise at once.

  Raises:
    UserError: another run holds the lock and `wait` is false.
  """
  with open(path, 'a') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      if not wait:
        raise errors.UserError(
          f'{what}: another run does it; wait for it, or stop it'
        ) from e
      _log.info('%s: waiting for another run that does it', what)
      fcntl.flock(f, fcntl.LOCK_EX)
    yield
