"""Rows that are collected in memory."""

import numpy as np
import pytest

from unet_jax.prediction import sinks


@pytest.mark.parametrize('heights', [(), (2, 3), (1, 1, 4)])
def test_an_array_of_rows(heights):
  array = np.random.default_rng(0).random((7, 4, 3), np.float32)
  taken = []
  sink = sinks.ArraySink((7, 4), taken.append)
  for rows in np.split(array, np.cumsum(heights, dtype=int)):
    sink.write(rows)
  np.testing.assert_array_equal(sink.array, array)
  assert not taken
  sink.close()
  assert taken[0] is sink.array and len(taken) == 1


def test_an_aborted_array_is_not_taken():
  sink = sinks.ArraySink((2, 4), lambda array: pytest.fail('taken'))
  sink.write(np.zeros((1, 4, 3), np.float32))
  sink.abort()


def test_a_sink_has_all_methods_of_the_protocol():
  class Half(sinks.RowSink):
    def write(self, rows):
      pass

  with pytest.raises(TypeError, match="abort'?, '?close"):
    Half()
