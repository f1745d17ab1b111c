"""The harness of experiments/faults: one fault of those it draws."""

import random

import pytest

from experiments.faults import __main__ as program

pytestmark = pytest.mark.whole_runs


def test_a_run_that_a_fault_disturbs_ends_as_if_undisturbed(tmp_path):
  # It comes after step 16 of 60.
  draws = [('checkpoint damaged', 'training', random.Random(8))]
  found = list(program.rows(draws, tmp_path, fresh=0))
  assert [line['fault'] for line in found] == [kind for kind, _, _ in draws]
  for line in found:
    assert line['equal'], line['different']
    assert not line['stack traces'] and not line['hung'], line['last line']
  text = program.table(found)
  assert '| all | 1 training | 1 | 1 | 0 | 0 |' in text
