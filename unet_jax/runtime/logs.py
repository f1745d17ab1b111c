"""What a run says on stderr."""

import logging


def set_up() -> None:
  """Our lines at INFO; those of the libraries (absl's) at WARNING."""
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  log = logging.getLogger('unet_jax')
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  log.propagate = False
  absl = logging.getLogger('absl')
  absl.setLevel(logging.WARNING)
  # Which backends there are not, and which fonts were found, is no news.
  for name in ('jax', 'matplotlib'):
    logging.getLogger(name).setLevel(logging.WARNING)
  # Orbax and its tasks log a stack trace for each that fails; we tell it once.
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  absl.addFilter(lambda r: not r.exc_info and 'Traceback' not in r.getMessage())
