"""What all tests share: devices, and a cache of compiled programs."""

import importlib.metadata
import os
import pathlib
import pickle
import tempfile

# Before anything imports jax, and for all processes that tests start.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests compile much and run little. This compiles in a third of the time; later
# versions of jaxlib know no such flags.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  os.environ['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} --xla_cpu_use_fusion_emitters=false '
    '--xla_cpu_parallel_codegen_split_count=1'
  )
# Processes share what they compile. Each worker of xdist has a cache of its
# own, since JAX reads entries that another process is writing.
_PROGRAMS = tempfile.TemporaryDirectory(prefix='programs-')
os.environ['JAX_COMPILATION_CACHE_DIR'] = _PROGRAMS.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

import jax  # noqa: E402
import pytest  # noqa: E402

from tests import program  # noqa: E402

# Files whose tests start whole runs, or compile many steps.
_LONG = (
  'whole_sweep_test.py',
  'train_test.py',
  'main_test.py',
  'steps_test.py',
  'keras_parity_test.py',
  'unet_test.py',
  'evaluate_test.py',
  'volumes_test.py',
  'speed_test.py',
)


def pytest_collection_modifyitems(items):
  """The long files first, so that no core waits for the last of them."""
  order = {name: i for i, name in enumerate(_LONG)}
  items.sort(key=lambda item: order.get(item.path.name, len(_LONG)))


# With eight devices all that is compiled is compiled for eight. So only the
# tests that ask for them have them, those of a file in a process of their own.
_EIGHT = pytest.StashKey()


class _Reporter:
  """Writes the reports of tests for another process."""

  def __init__(self, path):
    self._path = path

  def pytest_runtest_logreport(self, report):
    with open(self._path, 'ab') as file:
      pickle.dump(report._to_json(), file)


def _run_on_eight_devices(ids, path):
  """Runs tests; called in a process that has not asked for devices."""
  os.environ['JAX_NUM_CPU_DEVICES'] = '8'
  jax.config.update('jax_num_cpu_devices', 8)
  options = ('-n', '0', '-p', 'no:cacheprovider', '-q', '-m', '')
  pytest.main([*options, *ids], plugins=[_Reporter(path)])


def _reports(session, file):
  """{id: reports} of all tests of a file that ask for eight devices."""
  items = [
    item
    for item in session.items
    if item.path == file and item.get_closest_marker('eight_devices')
  ]
  ids = [item.nodeid for item in items]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'reports')
    path.touch()
    process = program.fork(
      _run_on_eight_devices, ids, path, cwd=session.config.rootpath
    )
    printed = '\n'.join(program.finish(process, code=None))
    reports = {name: [] for name in ids}
    with open(path, 'rb') as file:
      while file.peek():
        report = pytest.TestReport._from_json(pickle.load(file))
        reports[report.nodeid].append(report)
  for item in items:
    if 'teardown' not in [report.when for report in reports[item.nodeid]]:
      about = (item.nodeid, item.location, {}, 'failed', printed, 'call')
      reports[item.nodeid].append(pytest.TestReport(*about))
  return reports


def pytest_runtest_protocol(item, nextitem):
  if os.environ.get('JAX_NUM_CPU_DEVICES') == '8':
    return None
  if not item.get_closest_marker('eight_devices'):
    return None
  stash = item.session.stash.setdefault(_EIGHT, {})
  if item.nodeid not in stash:
    stash.update(_reports(item.session, item.path))
  about = {'nodeid': item.nodeid, 'location': item.location}
  item.ihook.pytest_runtest_logstart(**about)
  for report in stash[item.nodeid]:
    item.ihook.pytest_runtest_logreport(report=report)
  # What the test before has left set up for this one.
  item.session._setupstate.teardown_exact(nextitem)
  item.ihook.pytest_runtest_logfinish(**about)
  return True


@pytest.fixture(scope='session')
def native_cache(tmp_path_factory):
  """A cache folder in which the native kernels lie, compiled and loaded."""
  from unet_jax.kernels import build

  # One for all processes of the tests: a library is named after its sources.
  folder = str(tmp_path_factory.getbasetemp().parent / 'kernels')
  try:
    build.load(folder)
  except build.BuildError as e:
    pytest.skip(str(e))
  return folder


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
