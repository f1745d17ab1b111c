"""The harness of experiments/faults: two faults of those it draws."""

import random

import pytest

from experiments.faults import __main__ as program

pytestmark = pytest.mark.whole_runs


def test_runs_that_faults_disturb_end_as_if_undisturbed(tmp_path):
  draws = [
    # They come after step 16 of 60.
    ('checkpoint damaged', 'training', random.Random(8)),
    ('cache damaged', 'training', random.Random(9)),
  ]
  found = list(program.rows(draws, tmp_path, fresh=0))
  assert [line['fault'] for line in found] == [kind for kind, _, _ in draws]
  for line in found:
    assert line['equal'], line['different']
    assert not line['stack traces'] and not line['hung'], line['last line']
  text = program.table(found)
  assert '| all | 2 training | 2 | 2 | 0 | 0 |' in text
