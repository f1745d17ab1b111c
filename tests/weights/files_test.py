"""Files of weights that this program writes."""

import numpy as np
import pytest

from tests.refusals import message_of
from unet_jax.weights import files


def test_transposed_arrays_are_written_as_they_are(tmp_path):
  """safetensors itself takes the buffer as it lies in memory."""
  pytest.importorskip('safetensors')
  arrays = {
    'turned': np.arange(24, dtype=np.float32)
    .reshape(2, 3, 4)
    .transpose(2, 0, 1),
    'every second': np.arange(12, dtype=np.float32)[::2],
    'backwards': np.arange(5, dtype=np.float32)[::-1],
  }
  path = str(tmp_path / 'a.safetensors')
  files.write_safetensors(path, arrays, {})
  read = files.read(path).arrays
  assert set(read) == set(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(read[name], array)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
  pytest.importorskip('safetensors')
  (tmp_path / 'a').mkdir()
  for name in 'a', 'none/a':
    path = str(tmp_path / name)
    message = message_of(files.write_safetensors, path, {'x': np.ones(2)}, {})
    assert message.startswith(f'{path} cannot be written (')
    assert message.endswith('); fix that, or choose another')
