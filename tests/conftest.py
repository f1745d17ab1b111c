"""Eight virtual CPU devices, before anything asks for a device."""

import pathlib

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
# Tests compile much and run little. Runs of main.py are not affected.
jax.config.update('jax_disable_most_optimizations', True)

# Files whose tests start whole runs, or compile many steps.
_LONG = (
  'train_test.py',
  'main_test.py',
  'speed_test.py',
  'steps_test.py',
  'whole_sweep_test.py',
)


def pytest_collection_modifyitems(items):
  """The long files first, so that no core waits for the last of them."""
  order = {name: i for i, name in enumerate(_LONG)}
  items.sort(key=lambda item: order.get(item.path.name, len(_LONG)))


_SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'


@pytest.fixture
def shared_data():
  """A function that returns the path of a real data set, or skips the test."""

  def find(name: str) -> pathlib.Path:
    path = _SHARED_DATA / name
    if not path.is_dir():
      pytest.skip(f'the real data set {path} is not on this machine')
    return path

  return find
