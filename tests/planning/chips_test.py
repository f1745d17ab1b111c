"""Names of slices and chips; libtpu itself is asked in tests/plan_test.py."""

import importlib.util

from tests import refusals
from unet_jax.config import fields
from unet_jax.planning import chips


def test_every_kind_has_a_chip():
  assert set(chips.CHIPS) == set(fields.SLICES)
  for chip in chips.CHIPS.values():
    # FLOP of a cycle: whole multiply units of lanes x lanes.
    units = chip.flops / chip.clock / (2 * chip.lanes**2)
    assert abs(units - round(units)) < 0.02 and round(units) in (4, 8)


def test_without_libtpu(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert refusals.message_of(chips.make_slice, 'v5e:2x2') == (
    '--mode=plan compiles with libtpu, which is not installed: '
    'pip install libtpu (in a checkout: pip install ".[plan]")'
  )
