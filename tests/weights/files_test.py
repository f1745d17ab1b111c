"""Files of weights that this program writes."""

import numpy as np
import pytest

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
