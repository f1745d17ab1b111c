"""Mistakes that a user can fix, and how they are reported."""

import atexit
import contextlib
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

# Threads that compile have names that begin so.
COMPILING = 'compile'

# What the system says about a path or a disk that a user can change.
_OF_USERS = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR),
  *(errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG),
)
# Of errors where memory is used up: of XLA, of C++ and of threads.
_NO_MEMORY = ('RESOURCE_EXHAUSTED', 'bad_alloc', "can't start new thread")


class UserError(ValueError):
  """A mistake that a user can fix; its text is one line: what, where, fix.

  The program prints the text and exits with code 1. Every other exception is a
  bug of ours and keeps its stack trace.
  """


class DecodeError(UserError):
  """A file that no decoder can read (skipped with `data.on_error = skip`)."""


def some(names: Sequence[str], limit: int = 3) -> str:
  """Returns the first names, as in `a, b, c and 4 more`."""
  shown = ', '.join(names[:limit])
  more = len(names) - limit
  return f'{shown} and {more} more' if more > 0 else shown


def one_line(e: UserError | OSError, where: str) -> str:
  """Returns what to print for an error.

  Args:
    where: named for a full disk or a missing permission, unless `e` names it.

  Raises:
    e: if a user cannot fix it.
  """
  if isinstance(e, UserError):
    return str(e)
  if e.errno in _OF_USERS:
    return (
      f'{e.filename or where}: {e.strerror}; fix this and run the same command '
      'again'
    )
  raise e


def no_memory(e: BaseException | None) -> str:
  """Returns one line if an error, or one before it, is of memory; else ''."""
  while e is not None:
    text = ' '.join(str(e).split())
    if isinstance(e, MemoryError) or any(part in text for part in _NO_MEMORY):
      return (
        f'out of memory ({text[:200] or "MemoryError"}); make '
        'data.batch_size or data.image_size smaller (to predict, '
        'inference.batch_size), or free memory, and run the same command again'
      )
    e = e.__cause__ or e.__context__
  return ''


def end_if_of_memory(e: BaseException | None) -> None:
  """Ends the program with one line if an error is of memory.

  At once: what waits for a thread that had no memory may do so for ever.
  """
  if line := no_memory(e):
    print(f'error: {line}', file=sys.stderr)
    leave(1)


def watch_memory() -> None:
  """Ends the program where a thread has no memory, which others wait for.

  Not in every one: TensorStore's own threads may print the error alone, and the
  save then never ends (experiments/faults/README.md).
  """
  usual = threading.excepthook

  def hook(args: Any) -> None:
    end_if_of_memory(args.exc_value)
    usual(args)

  threading.excepthook = hook


@contextlib.contextmanager
def reported(where: str) -> Iterator[None]:
  """Ends the program with one line for what is no bug; see `one_line`."""
  watch_memory()
  try:
    yield
  except (UserError, OSError) as e:
    exit_with(f'error: {one_line(e, where)}', 1)
  except Exception as e:
    end_if_of_memory(e)
    raise
  except KeyboardInterrupt:
    exit_with('interrupted; run the same command again to continue', 130)


def exit_with(line: str, code: int) -> NoReturn:
  """Prints a line to stderr and ends the program.

  One of many processes does not wait for the others, which may be waiting for
  this one; the coordinator ends them once it is gone. None waits for the
  compiler, whose threads Python cannot stop.
  """
  # A value or a name of a file may hold line breaks.
  print(' '.join(line.splitlines()), file=sys.stderr)
  compiles = any(t.name.startswith(COMPILING) for t in threading.enumerate())
  # Without jax, whose import takes seconds, there are no other processes.
  jax = sys.modules.get('jax')
  if compiles or (jax is not None and jax.process_count() > 1):
    leave(code)
  sys.exit(code)


def leave(code: int) -> NoReturn:
  """Ends this process at once, without waiting for others."""
  sys.stdout.flush()
  sys.stderr.flush()
  _end_watch()
  os._exit(code)


_watches: list[subprocess.Popen] = []


def if_aborted(line: str) -> None:
  """Has a line printed if this process is aborted, when no Python runs.

  A shell waits beside it for a sign that it ends by itself.
  """
  script = 'read -r sign || echo "$0" >&2'
  try:
    shell = subprocess.Popen(
      ['/bin/sh', '-c', script, line],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      start_new_session=True,  # Ctrl-C and SIGTERM are not for it.
    )
  except OSError:  # No shell, or no more processes: JAX's own lines stay.
    return
  _watches.append(shell)
  atexit.register(_end_watch)


def _end_watch() -> None:
  while _watches:
    _watches.pop().communicate(b'\n')
