"""Start and stop of a run: processes, the compilation cache, signals."""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import signal
import sys
import warnings
from collections.abc import Callable
from concurrent import futures
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from unet_jax.runtime import errors, processes


def initialize(cache_dir: str) -> None:
  """Joins the other processes; call it before anything asks for a device.

  The absolute path is that of the folder that keeps compiled programs.
  """
  processes.initialize_distributed()
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    folder = os.path.join(cache_dir, 'xla', machine())
    jax.config.update('jax_compilation_cache_dir', folder)
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


# It costs time alone where the folder cannot be written, such as a shared one.
warnings.filterwarnings(
  'ignore', r'Error (reading|writing) persistent compilation cache entry'
)

# XLA's CPU compiler gives convolutions to YNNPACK, which is the slower one at
# the widths of a U-Net; sums stay with it. Measured: 9 % of a training step.
# LLVM's higher levels take a third longer, for the same speed and numbers.
_CPU_STEP: dict[str, str | int] = {
  'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE',
  'xla_backend_optimization_level': 1,
}
# Initialisation runs once: a sixth of the time to compile, the same numbers.
# Level 0 takes half of level 1's again, but 0.25 s of a core to draw a million
# parameters, five times as long; it rounds in other places.
_CPU_INIT: dict[str, str | int] = {
  'xla_backend_optimization_level': 1,
  'xla_cpu_use_fusion_emitters': False,
}
_CPU_SMALL_INIT = _CPU_INIT | {'xla_backend_optimization_level': 0}
_SMALL = 4_000_000


@functools.cache
def compiler_options(
  mesh: jax.sharding.Mesh, num_drawn: int = 0
) -> dict[str, str | int] | None:
  """Returns options of `jax.jit` for steps, or to draw so many parameters.

  Other devices than CPUs take the defaults. An option that this jaxlib does not
  know is left out: they are not part of its stable interface.
  """
  if mesh.devices.flat[0].platform != 'cpu':
    return None
  options = _CPU_STEP
  if num_drawn:
    options = _CPU_INIT if num_drawn > _SMALL else _CPU_SMALL_INIT

  def knows(options: dict[str, str | int]) -> bool:
    try:
      with jax.default_device(mesh.local_devices[0]):
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except (jax.errors.JaxRuntimeError, ValueError):
      return False
    return True

  if knows(options):
    return options
  return {k: v for k, v in options.items() if knows({k: v})}


def in_thread(compile: Callable[[], Any]) -> futures.Future:
  """Compiles in a thread.

  Long parts of the compiler run on one core, and the others are free meanwhile.
  """

  def work() -> Any:
    result = compile()
    if platform.libc_ver()[0] == 'glibc':
      # Hundreds of MB that the compiler took go back to the system.
      ctypes.CDLL(None).malloc_trim(0)
    return result

  pool = futures.ThreadPoolExecutor(1, errors.COMPILING)
  compiled = pool.submit(work)
  pool.shutdown(wait=False)  # The thread ends when it is done.
  return compiled


def machine() -> str:
  """Returns a name for the processor's features.

  Compiled CPU code depends on them, and a home folder is often shared by
  machines that differ in them.
  """
  info = pathlib.Path('/proc/cpuinfo')
  features = platform.processor()
  if info.exists():
    lines = info.read_text().splitlines()
    features = next(
      (s for s in lines if s.startswith(('flags', 'Features'))), features
    )
  digest = hashlib.sha256(features.encode()).hexdigest()[:8]
  return f'{platform.machine()}-{digest}'


class Interrupt:
  """Turns the first SIGTERM or Ctrl-C into a request to stop at a step's end.

  A second Ctrl-C stops at once. In a run of many processes JAX's preemption
  service receives SIGTERM and makes all of them stop at the same step; Ctrl-C
  is passed on as SIGTERM.
  """

  def __init__(self):
    self.signal: int | None = None
    self._previous = {}

  def __enter__(self) -> 'Interrupt':
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._receive)
    else:
      forward = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
      self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, forward)
    return self

  def __exit__(self, *unused) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _receive(self, number, frame) -> None:
    del frame
    if self.signal is None:
      self.signal = number
    elif number == signal.SIGINT:
      raise KeyboardInterrupt

  def requested(self, step: int) -> bool:
    """Whether to save and stop after `step`; the same in every process."""
    if jax.process_count() == 1:
      return self.signal is not None
    if multihost_utils.reached_preemption_sync_point(step):
      self.signal = signal.SIGTERM
    return self.signal is not None

  def exit(self, what: str, workdir: str) -> NoReturn:
    """Exits after a signal, once all is saved; `what` says what it ended."""
    assert self.signal is not None
    if jax.process_index() == 0:
      print(
        f'{what} by signal {self.signal}; saved in {workdir}. Run the same '
        'command again to continue',
        file=sys.stderr,
      )
    sys.exit(128 + self.signal)
