"""Logging to stderr."""

import logging
import sys


def set_up() -> None:
  """Logs our lines at INFO and those of the libraries at WARNING."""
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  log = logging.getLogger('unet_jax')
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  log.propagate = False
  absl = logging.getLogger('absl')
  absl.setLevel(logging.WARNING)
  # At INFO they log missing backends and the fonts that were found.
  for name in ('jax', 'matplotlib'):
    logging.getLogger(name).setLevel(logging.WARNING)
  # Orbax and its tasks log a stack trace for each failure; we report it once.
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  absl.addFilter(lambda r: not r.exc_info and 'Traceback' not in r.getMessage())
  # TensorStore gives the hook an error for each array whose write fails after
  # the one at which Orbax stopped waiting.
  before = sys.excepthook

  def hook(kind, e, trace) -> None:
    if not (kind is RuntimeError and str(e) == 'Event loop is closed'):
      before(kind, e, trace)

  sys.excepthook = hook
