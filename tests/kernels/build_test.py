"""Tests of unet_jax/kernels/build.py."""

import logging
import os
import pathlib
import platform
import socket
import time
import types

import jax
import numpy as np
import pytest

from tests import program
from tests.refusals import message_of
from unet_jax.config import default
from unet_jax.kernels import build
from unet_jax.models import unet
from unet_jax.runtime import errors, mesh, processes


@pytest.fixture
def config(tmp_path):
  config = default.get_config()
  config.data.cache_dir = str(tmp_path)
  config.data.batch_size = 8
  return config


@pytest.fixture(scope='module')
def library(native_cache):
  """The compiled library."""
  return build._library(native_cache)


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
  """Nothing is kept from another test; the log reaches pytest."""
  build._library.cache_clear()
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)


def _choose(config, kernels, trains=True):
  config.cpu.kernels = kernels
  return build.choose(config, mesh.make_mesh(config), trains)


def test_rows_that_are_split_are_left_to_xla(config, monkeypatch):
  """By `auto`: each device of `spatial` would compute all of them."""
  monkeypatch.setattr(build, 'load', lambda cache_dir: None)
  for spatial, taken in (1, True), (2, False):
    fake = types.SimpleNamespace(
      devices=np.array(jax.devices('cpu')[:1]),
      shape={'spatial': spatial},
      is_multi_process=False,
    )
    config.cpu.kernels = 'auto'
    assert build.choose(config, fake) == taken
    config.cpu.kernels = 'native'
    assert build.choose(config, fake)


def test_bfloat16_is_left_to_xla(config, monkeypatch):
  """The kernels are float32: `native` would be said of what is not."""
  monkeypatch.setattr(build, 'load', lambda cache_dir: None)
  config.model.dtype = 'bfloat16'
  assert not _choose(config, 'auto')
  assert not _choose(config, 'native', trains=False)
  assert message_of(_choose, config, 'native') == (
    '--config.cpu.kernels=native: they do not take model.dtype=bfloat16; or '
    'set it to auto'
  )


def test_xla_builds_nothing(config, tmp_path):
  assert not _choose(config, 'xla')
  assert not list(tmp_path.iterdir())


def test_the_library_is_built_once(
  config, tmp_path, monkeypatch, caplog, library
):
  caplog.set_level(logging.INFO)
  monkeypatch.setenv('CXX', _copier(tmp_path, library))
  config.data.cache_dir = str(tmp_path / 'cache')
  build._library.cache_clear()
  build.load(config.data.cache_dir)
  (built,) = (tmp_path / 'cache/kernels').iterdir()
  written = built.stat().st_mtime_ns
  build._library.cache_clear()
  assert _choose(config, 'native') and _choose(config, 'auto')
  assert [p.name for p in (tmp_path / 'cache/kernels').iterdir()] == [
    built.name
  ]
  assert built.stat().st_mtime_ns == written
  said = [r.message for r in caplog.records if 'compiling the' in r.message]
  assert len(said) == 1


@pytest.mark.parametrize(
  'compiler,message',
  [
    (None, 'no C++ compiler found; install one (apt-get install g++)'),
    (
      '#!/bin/sh\necho "x.cc:1: error: bad" >&2\nexit 1',
      'error: bad; install',
    ),
    ('#!/bin/sh\nexit 3', 'g++ failed: exit code 3; install'),
  ],
)
def test_without_a_compiler(
  config, tmp_path, monkeypatch, caplog, compiler, message
):
  """`auto` goes on with XLA and says so; `native` is refused."""
  caplog.set_level(logging.INFO)
  folder = tmp_path / 'bin'
  folder.mkdir()
  if compiler:
    (folder / 'g++').write_text(compiler)
    (folder / 'g++').chmod(0o755)
  monkeypatch.setenv('PATH', str(folder))
  monkeypatch.delenv('CXX', raising=False)
  assert not _choose(config, 'auto')
  assert any(
    "convolutions are XLA's" in r.message and message in r.message
    for r in caplog.records
  )
  with pytest.raises(errors.UserError) as e:
    _choose(config, 'native')
  assert str(e.value).startswith('--config.cpu.kernels=native: ')
  assert message in str(e.value)
  # A run that was trained with them is used without a compiler.
  assert not _choose(config, 'native', trains=False)
  assert not list(pathlib.Path(tmp_path).glob('kernels/*[!d]'))


def test_a_compiler_that_failed_is_not_tried_again(tmp_path, monkeypatch):
  """For a day, by its version; what it costs at each start is seconds."""
  count, compiler = tmp_path / 'count', tmp_path / 'compiler'

  def write(version):
    compiler.write_text(
      f'#!/bin/sh\n[ "$1" = --version ] && echo {version} && exit\n'
      f'echo x >> "{count}"; echo "error: bad" >&2; exit 1'
    )
    compiler.chmod(0o755)

  def tries():
    count.write_text('')
    build._library.cache_clear()
    with pytest.raises(build.BuildError, match='error: bad') as e:
      build._library(str(tmp_path / 'cache'))
    return bool(count.read_text()), str(e.value)

  monkeypatch.setenv('CXX', str(compiler))
  write(1)
  assert tries()[0]
  (failed,) = (tmp_path / 'cache/kernels').iterdir()
  again, message = tries()
  assert not again
  assert f'(not tried again for a day; remove {failed} to)' in message
  write(2)
  assert tries()[0]
  write(1)
  assert not tries()[0]
  yesterday = failed.stat().st_mtime - 25 * 3600
  os.utime(failed, (yesterday, yesterday))
  assert tries()[0]
  failed.unlink()
  assert tries()[0]


def test_folders_of_killed_builds_are_removed(tmp_path, monkeypatch, library):
  monkeypatch.setenv('CXX', _copier(tmp_path, library))
  folder = tmp_path / 'cache/kernels'
  for name, hours in ('tmpold', 2), ('tmpnew', 0.5):
    (folder / name).mkdir(parents=True)
    (folder / name / 'a.o').touch()
    then = time.time() - hours * 3600
    os.utime(folder / name, (then, then))
  path = build._library(str(tmp_path / 'cache'))
  assert {p.name for p in folder.iterdir()} == {'tmpnew', path.name}


def _copier(folder, library, at_once=1):
  """Returns a compiler that copies a library, once so many of it run."""
  (folder / 'running').mkdir()
  path = folder / 'compiler'
  path.write_text(f"""#!/bin/sh
[ "$1" = --version ] && exit
for output; do :; done
touch "{folder}/running/$$"
until [ $(ls "{folder}/running" | wc -l) -ge {at_once} ]; do sleep 0.01; done
cp "{library}" "$output"
""")
  path.chmod(0o755)
  return str(path)


def test_two_processes_build_at_once(tmp_path, library):
  """Into one empty folder, where one file is left."""
  compiler, cache = _copier(tmp_path, library, at_once=2), tmp_path / 'cache'
  pair = [program.fork(build.load, str(cache), CXX=compiler) for _ in range(2)]
  for process in pair:
    program.finish(process)
  (built,) = (cache / 'kernels').iterdir()
  assert built.read_bytes() == library.read_bytes()


def test_options_of_the_compiler_make_another_library(
  tmp_path, monkeypatch, library
):
  compiler = _copier(tmp_path, library)
  paths = set()
  for options in ('', ' -DX'):
    monkeypatch.setenv('CXX', compiler + options)
    build._library.cache_clear()
    paths.add(build._library(str(tmp_path / 'cache')))
  assert len(paths) == 2


def test_a_library_that_is_damaged_is_built_again(
  tmp_path, monkeypatch, library
):
  """It would crash the process; and a compiler that is not there is named."""
  monkeypatch.setenv('CXX', _copier(tmp_path, library))
  content = library.read_bytes()
  wrong_bit = bytes([content[0] ^ 1]) + content[1:]
  for bad in b'cut off', wrong_bit:
    build._library.cache_clear()
    path = build._library(str(tmp_path / 'cache'))
    assert path.read_bytes() == content
    path.write_bytes(bad)
  build._library.cache_clear()
  whole = build._library(str(tmp_path / 'cache'))
  assert whole.read_bytes() == library.read_bytes()
  monkeypatch.setenv('CXX', '/nowhere/g++ -O2')
  build._library.cache_clear()
  with pytest.raises(build.BuildError, match='CXX=/nowhere/g.+: not found'):
    build._library(str(tmp_path / 'cache'))


def _choose_in_two(cache_dir):
  """Called in two processes, of which one has a compiler."""
  processes.initialize_distributed()
  config = default.get_config()
  config.data.cache_dir = cache_dir
  print([_choose(config, kernels) for kernels in ('xla', 'auto')])
  with pytest.raises(errors.UserError) as e:
    _choose(config, 'native')
  print(e.value)


def test_all_processes_take_the_same(tmp_path, library):
  """None takes them where one has no compiler: they run one program."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  compilers = (
    {'CXX': _copier(tmp_path, library)},
    {'CXX': '', 'PATH': str(tmp_path / 'nothing')},
  )
  pair = [
    program.fork(
      _choose_in_two,
      str(tmp_path / f'cache{i}'),
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(i),
      **compiler,
    )
    for i, compiler in enumerate(compilers)
  ]
  chosen, flag = '[False, False]', '--config.cpu.kernels=native: '
  # Gloo prints a line of its own.
  outputs = [program.finish(process)[0].splitlines()[-2:] for process in pair]
  assert outputs == [
    [chosen, f'{flag}process 1 cannot build them; or set it to auto'],
    [
      chosen,
      f'{flag}no C++ compiler found; install one (apt-get install g++); or set '
      'it to auto',
    ],
  ]


def test_another_processor(config, monkeypatch, caplog):
  """The sources refuse to be compiled for what they are not written for."""
  caplog.set_level(logging.INFO)
  if platform.machine() not in ('x86_64', 'AMD64'):
    pytest.skip('its compiler makes vectors without being asked')
  try:
    build._compiler()
  except build.BuildError as e:
    pytest.skip(str(e))
  monkeypatch.setattr(platform, 'machine', lambda: 'riscv64')
  assert not _choose(config, 'auto')
  assert caplog.messages[-1] == (
    "convolutions are XLA's, which are slower: the processor has none of AVX2, "
    "AVX-512 and 64-bit Arm's NEON"
  )


@pytest.mark.parametrize('machine', ['x86_64', 'aarch64'])
def test_only_x86_names_its_processor(tmp_path, monkeypatch, machine):
  """clang++ refuses -march=native on Arm."""
  compiler = tmp_path / 'compiler'
  compiler.write_text('#!/bin/sh\necho "error: $*" >&2; exit 1')
  compiler.chmod(0o755)
  monkeypatch.setenv('CXX', str(compiler))
  monkeypatch.setattr(platform, 'machine', lambda: machine)
  with pytest.raises(build.BuildError, match='error: ') as e:
    build._library(str(tmp_path))
  assert ('native' in str(e.value)) == (machine == 'x86_64')


def test_the_network_takes_them(config, library):
  config.model.update(base_features=4, depth=1)
  x = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
  xla, native = (unet.create_model(config, b) for b in (False, True))
  variables = xla.init(jax.random.key(1), x, train=False)
  text = jax.jit(native.apply, static_argnames='train').lower(
    variables, x, train=False
  )
  assert 'UnetConvolution' in text.compile().as_text()
  a, b = (m.apply(variables, x, train=False) for m in (xla, native))
  assert abs(a - b).max() <= 1e-5 * abs(a).max()
