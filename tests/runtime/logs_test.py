"""What is printed of errors that we report ourselves."""

import logging
import sys

from unet_jax.runtime import logs


def test_late_writes_of_a_failed_save_print_nothing(monkeypatch):
  printed = []
  monkeypatch.setattr(sys, 'excepthook', lambda *error: printed.append(error))
  for name in ('unet_jax', 'absl'):
    monkeypatch.setitem(
      logging.Logger.manager.loggerDict, name, logging.Logger(name)
    )
  logs.set_up()
  late, other = RuntimeError('Event loop is closed'), RuntimeError('other')
  sys.excepthook(RuntimeError, late, None)
  sys.excepthook(RuntimeError, other, None)
  assert printed == [(RuntimeError, other, None)]
