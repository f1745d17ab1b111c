"""Compiles the C++ files with the machine's own compiler, once.

The library lies in the cache folder, named after all that it depends on: the
source, the compiler, its flags, the processor and jaxlib, with whose headers it
is compiled (a handler carries the FFI version of its headers, and a runtime
takes no newer one).
"""

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent import futures

import jax
import jaxlib
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from unet_jax.config import fields
from unet_jax.runtime import errors, program

_log = logging.getLogger(__name__)

_FOLDER = pathlib.Path(__file__).parent
SOURCES = sorted([*_FOLDER.glob('*.cc'), *_FOLDER.glob('*.h')])
# The FFI's targets, by what they are called there and in the sources.
TARGETS = (
  'UnetConvolution',
  'UnetConvolutionKernelGradient',
  'UnetMoments',
  'UnetNormGradientSums',
  'UnetMaxPoolGradient',
  'UnetAdamW',
)
_COMPILERS = ('c++', 'g++', 'clang++')
# Roots are not to be calls that may set an error number.
_FLAGS = ('-std=c++17', '-O3', '-fPIC', '-w', '-fno-math-errno')
_SECONDS = 120
# How long a compiler that failed is not tried again, and after which a folder
# that a killed build left is removed.
_FAILED_SECONDS, _LEFT_SECONDS = 24 * 3600, 3600
# The library of this process, once there is one.
_LOADED: list[pathlib.Path] = []


class BuildError(Exception):
  """Why there is no library, and what to install: one line."""


class _CompilerError(BuildError):
  """The compiler fails on the sources, as it would again."""


def load(cache_dir: str) -> None:
  """Registers the FFI's targets, building the library where it is not there.

  Args:
    cache_dir: absolute path of the folder that is kept between runs.

  Raises:
    BuildError: there is no compiler, or it failed.
  """
  path = _library(cache_dir)
  # Once a process: XLA takes no second handler of a name.
  if not _LOADED:
    _register(path)
    _LOADED.append(path)


@functools.cache
def _library(cache_dir: str) -> pathlib.Path:
  """Returns the path of the compiled library."""
  compiler, flags = _compiler(), (*_FLAGS, *_processor_flags())
  command = [*compiler, *flags, '-isystem', jax.ffi.include_dir()]
  try:
    version = subprocess.run(
      [*compiler, '--version'], capture_output=True, timeout=_SECONDS
    ).stdout
  except (OSError, subprocess.SubprocessError) as e:
    raise BuildError(f'{compiler[0]} cannot be run ({e})') from e
  depends_on = (
    *(source.read_bytes() for source in SOURCES),
    version,
    ' '.join((*compiler, *flags)).encode(),
    program.machine().encode(),
    jaxlib.__version__.encode(),
  )
  key = hashlib.sha256(b'\0'.join(depends_on)).hexdigest()[:16]
  folder = pathlib.Path(cache_dir, 'kernels')
  try:
    # Its digest is part of the name: a damaged library crashes, or computes
    # other numbers.
    for path in folder.glob(f'kernels-{key}-*.so'):
      if path.stem == f'kernels-{key}-{_digest(path)}':
        return path
    folder.mkdir(parents=True, exist_ok=True)
    return _compile_unless_failed(command, folder, f'kernels-{key}')
  except (OSError, subprocess.SubprocessError) as e:
    raise BuildError(f'{folder}: cannot be built in ({e})') from e


def _processor_flags() -> tuple[str, ...]:
  # All 64-bit Arm processors have NEON. clang++ 14 refuses -march=native there,
  # and by -mcpu=native it takes SVE where the system does not give it.
  is_x86 = platform.machine() in ('x86_64', 'AMD64')
  return ('-march=native',) if is_x86 else ()


def _digest(path: str | pathlib.Path) -> str:
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()[:16]


def _compiler() -> list[str]:
  names = os.environ.get('CXX', '').split()
  if names:
    if not shutil.which(names[0]):
      raise BuildError(f'CXX={names[0]}: not found; name another, or unset it')
    return names
  found = next(filter(shutil.which, _COMPILERS), None)
  if found is None:
    raise BuildError('no C++ compiler found; install one (apt-get install g++)')
  return [found]


def _compile_unless_failed(
  command: list[str], folder: pathlib.Path, name: str
) -> pathlib.Path:
  """Compiles; a failure, which takes seconds, is not repeated for a day."""
  failed = folder / f'{name}.failed'
  if failed.exists() and _age(failed) < _FAILED_SECONDS:
    raise BuildError(
      f'{failed.read_text()} (not tried again for a day; remove {failed} to)'
    )
  for left in folder.glob('tmp*'):
    if _age(left) > _LEFT_SECONDS:
      shutil.rmtree(left, ignore_errors=True)
  try:
    return _compile(command, folder, name)
  except _CompilerError as e:
    failed.write_text(str(e))
    raise


def _age(path: pathlib.Path) -> float:
  return time.time() - path.stat().st_mtime


def _compile(
  command: list[str], folder: pathlib.Path, name: str
) -> pathlib.Path:
  """Compiles to files of its own and renames one: others may do the same."""
  _log.info('compiling the native kernels with %s, once', command[0])
  start = time.perf_counter()
  with tempfile.TemporaryDirectory(dir=folder) as mine:
    objects = {
      source: os.path.join(mine, f'{source.stem}.o')
      for source in SOURCES
      if source.suffix == '.cc'
    }
    with futures.ThreadPoolExecutor() as pool:
      compile_one = lambda item: _run([*command, '-c', item[0], '-o', item[1]])
      list(pool.map(compile_one, objects.items()))
    built = os.path.join(mine, name)
    _run([*command, '-shared', *objects.values(), '-o', built])
    path = folder / f'{name}-{_digest(built)}.so'
    os.rename(built, path)
  _log.info('compiled them in %.1f s', time.perf_counter() - start)
  return path


def _run(command: list[str | pathlib.Path]) -> None:
  try:
    done = subprocess.run(
      command, capture_output=True, text=True, timeout=_SECONDS
    )
  except subprocess.TimeoutExpired as e:
    raise _CompilerError(
      f'{command[0]} took more than {_SECONDS} s; name another by CXX'
    ) from e
  if done.returncode:
    lines = done.stderr.splitlines()
    reasons = [*(s for s in lines if 'error' in s), *lines]
    reason = next(iter(reasons), f'exit code {done.returncode}')
    if 'No space left' in reason:
      raise BuildError(f'{reason}; free some')
    if 'the processor has' in reason:  # Of the sources' own #error.
      raise _CompilerError(reason[reason.index('the processor') :].strip('"'))
    raise _CompilerError(
      f'{command[0]} failed: {reason}; install a newer compiler (g++ 9, '
      'clang++ 10), or name another by CXX'
    )


def _register(path: pathlib.Path) -> None:
  try:
    library = ctypes.CDLL(str(path))
  except OSError as e:
    raise BuildError(
      f'{path}: cannot be loaded ({e}); choose another data.cache_dir, or C++ '
      'compiler by CXX'
    ) from e
  for name in TARGETS:
    jax.ffi.register_ffi_target(
      name, jax.ffi.pycapsule(getattr(library, name)), platform='cpu'
    )


def choose(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  trains: bool = False,
) -> bool:
  """Whether the network takes native kernels; builds them if so.

  Args:
    config: its `cpu.kernels` says which are wanted.
    mesh: where the network runs.
    trains: `native` is then an order. Elsewhere it may be the run's, made on
      another machine, and XLA's take their place.

  Raises:
    UserError: `native` is wanted for a training and cannot be had.
  """
  wanted, device = config.cpu.kernels, mesh.devices.flat[0].platform
  # Their calls gather the rows that are split over `spatial`.
  is_float32 = config.model.dtype == 'float32'
  suits = device == 'cpu' and mesh.shape['spatial'] == 1 and is_float32
  if wanted == 'xla' or (wanted == 'auto' and not suits):
    return False
  problem = ''
  try:
    if device != 'cpu':
      raise BuildError(f'the devices of the mesh are {device}s')
    if not is_float32:
      raise BuildError(f'they do not take model.dtype={config.model.dtype}')
    load(fields.cache_dir(config))
  except BuildError as e:
    problem = str(e)
  if mesh.is_multi_process:
    # All processes must run the same program.
    failed = multihost_utils.process_allgather(np.array(bool(problem)))
    if failed.any():
      problem = problem or f'process {failed.argmax()} cannot build them'
  if problem and wanted == 'native' and trains:
    raise errors.UserError(
      f'--config.cpu.kernels=native: {problem}; or set it to auto'
    )
  if problem:
    _log.warning("convolutions are XLA's, which are slower: %s", problem)
  return not problem
