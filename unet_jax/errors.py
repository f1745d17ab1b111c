"""Mistakes that a user can mend, and how they are told."""

import errno
import re
import sys
from typing import NoReturn


class UserError(ValueError):
  """A mistake that a user can mend; its text is one line: what, where, fix.

  `main.py` prints the text and exits with code 1. Everything else that is
  raised is a bug of ours and keeps its stack trace.
  """


class DecodeError(UserError):
  """A file that no decoder can read (left out with `data.on_error = skip`)."""


def one_line(e: UserError | OSError, where: str) -> str:
  """Returns what to print for an error.

  Args:
    e: raised by a run.
    where: named for a full disk or a missing permission, unless `e` names it.

  Raises:
    e: if it is none that a user can mend.
  """
  if isinstance(e, UserError):
    return str(e)
  if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
    return (
      f'{e.filename or where}: {e.strerror}; mend it and run the same command '
      'again'
    )
  raise e


def line_of_flags(e: Exception) -> str:
  """Returns what to print for a mistake on the command line.

  config_flags wraps one inside get_config() in a whole trace.
  """
  trace = re.findall(r'^ *\w+Error: (.+)$', str(e), re.MULTILINE)
  line = trace[-1] if trace else str(e).splitlines()[0]
  return line.removeprefix('flag ')


def leave(line: str, code: int) -> NoReturn:
  """Prints a line and ends the program.

  Args:
    line: for stderr.
    code: for the shell.
  """
  print(line, file=sys.stderr)
  # Importing jax takes seconds; without it there are no other processes.
  if 'jax' in sys.modules:
    from unet_jax import runtime

    runtime.leave(code)
  sys.exit(code)
