"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
  """A mistake that a user can mend; its text is one line: what, where, fix.

  `main.py` prints the text and exits with code 1. Everything else that is
  raised is a bug of ours and keeps its stack trace.
  """


class DecodeError(UserError):
  """A file that no decoder can read (left out with `data.on_error = skip`)."""
