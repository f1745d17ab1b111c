"""Joins the processes of a run on several hosts, and shares work among them.

JAX is imported where there are several: an inspection in one does without.
"""

import contextlib
import faulthandler
import functools
import logging
import os
import pickle
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from unet_jax.runtime import errors

T = TypeVar('T')
# Seconds without a sign of life after which a process is given up: those that
# wait for it end then.
_TIMEOUT = 30
_AGAIN = (
  'start all again with the same command, which goes on from what is saved'
)
# In errors of collectives (Gloo's on CPUs) and of JAX's coordination service.
_OF_OTHERS = ('Gloo', 'gloo', 'UNAVAILABLE', 'coordination', 'heartbeat')


def is_alone() -> bool:
  """Whether a run has this process only; does not import JAX."""
  jax = sys.modules.get('jax')
  if jax is not None and jax.distributed.is_initialized():
    return jax.process_count() == 1
  by_hand = os.environ.get('JAX_COORDINATOR_ADDRESS')
  number = os.environ.get('JAX_NUM_PROCESSES', '1') if by_hand else '1'
  return number == '1' and _num_tasks() == 1


def is_first() -> bool:
  """Whether this process is the first of a run, or the only one."""
  if is_alone():
    return True
  import jax

  return jax.process_index() == 0


def share(items: Sequence[T]) -> Sequence[T]:
  """Returns this process's part of a sequence: every n-th of n processes."""
  if is_alone():
    return items
  import jax

  return items[jax.process_index() :: jax.process_count()]


def together(work: Callable[[], T]) -> list[T]:
  """Does this process's part of a work that all processes call at once.

  Returns:
    What `work` returned in each process, in their order, in all of them.

  Raises:
    UserError, OSError: of the first process in which `work` raised one, in all.
  """
  if is_alone():
    return [work()]
  from jax.experimental import multihost_utils

  result: Any = None
  error: Exception | None = None
  try:
    result = work()
  except (errors.UserError, OSError) as e:
    error = e
  data = np.frombuffer(pickle.dumps((result, error)), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded)
  found = [pickle.loads(row[:n].tobytes()) for row, n in zip(rows, sizes)]
  for _, error in found:
    if error is not None:
      raise error
  return [result for result, _ in found]


def of_first(work: Callable[[], T]) -> T:
  """As `together`, of a work that the first process alone does."""
  return together(lambda: work() if is_first() else None)[0]  # type: ignore


@contextlib.contextmanager
def end_with_others() -> Iterator[None]:
  """Ends this process, with one line, where another one of the run is gone.

  At once: what waits for the others at its end would do so for minutes. For
  `with`, and as a decorator.
  """
  try:
    yield
  except Exception as e:
    if is_alone():
      raise
    import jax

    # Where a result is awaited, and where a collective is dispatched.
    is_jax = isinstance(e, jax.errors.JaxRuntimeError | ValueError)
    text = str(e)
    if not (is_jax and any(word in text for word in _OF_OTHERS)):
      raise
    line = text.splitlines()[0]
    print(
      f'error: process {jax.process_index()} lost another one ({line}); '
      f'{_AGAIN}',
      file=sys.stderr,
    )
    errors.leave(1)


def initialize_distributed() -> None:
  """Joins the other processes where this one is one of many.

  They are found by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID; in a Slurm step or Open MPI job of several tasks; and on a TPU
  slice of several hosts.

  Raises:
    UserError: the variables contradict one another, or no process answers.
  """
  import jax

  if jax.distributed.is_initialized():
    return  # By a run before this one, in the same program.
  env = os.environ
  by_hand = bool(env.get('JAX_COORDINATOR_ADDRESS'))
  try:
    if by_hand:
      jax.distributed.initialize(
        env['JAX_COORDINATOR_ADDRESS'],
        int(env['JAX_NUM_PROCESSES']),
        int(env['JAX_PROCESS_ID']),
        # Otherwise a Slurm step around it would pick the devices.
        cluster_detection_method='deactivate',
        heartbeat_timeout_seconds=_TIMEOUT,
      )
    elif _num_tasks() > 1:
      jax.distributed.initialize(heartbeat_timeout_seconds=_TIMEOUT)
  except (KeyError, ValueError, RuntimeError) as e:
    raise errors.UserError(
      f'cannot join the other processes ({e}); set JAX_COORDINATOR_ADDRESS='
      'HOST:PORT, JAX_NUM_PROCESSES=N and JAX_PROCESS_ID=0..N-1 in each'
    ) from e
  if not is_alone():
    # JAX says why it aborts a process that lost another one; the stacks of all
    # threads after it would hide that.
    faulthandler.disable()
    errors.if_aborted(
      f'error: process {jax.process_index()} was aborted by JAX, which lost '
      f'another process (reason above), or killed; {_AGAIN}'
    )
  if jax.process_index():
    # The first one logs what all would log alike.
    logging.getLogger('unet_jax').setLevel(logging.WARNING)


def _num_tasks() -> int:
  """Processes that the cluster says this run has."""
  env = os.environ
  # Slurm sets these for a step of srun, not for the batch script around it.
  counts = [env.get('SLURM_STEP_NUM_TASKS'), env.get('OMPI_COMM_WORLD_SIZE')]
  return max(*(int(n or 1) for n in counts), _num_tpu_hosts())


def _num_tpu_hosts() -> int:
  """Hosts of the TPU slice that this host is part of; 1 without a TPU."""
  env = os.environ
  # Importing jax sets the first on a TPU machine, the second on others.
  if env.get('TPU_ML_PLATFORM') != 'JAX' or env.get('TPU_SKIP_MDS_QUERY'):
    return 1
  hosts = env.get('TPU_PROCESS_ADDRESSES') or env.get('TPU_WORKER_HOSTNAMES')
  if hosts is None and not (hosts := _hosts_of_the_machine()):
    return 1
  return len(hosts.split(',')) * int(env.get('MEGASCALE_NUM_SLICES') or 1)


@functools.cache
def _hosts_of_the_machine() -> str:
  """What the metadata server says of a TPU slice; '' without one."""
  request = urllib.request.Request(
    'http://metadata.google.internal/computeMetadata/v1/instance/'
    'attributes/worker-network-endpoints',
    headers={'Metadata-Flavor': 'Google'},
  )
  try:
    with urllib.request.urlopen(request, timeout=5) as answer:
      return answer.read().decode()
  except OSError:
    return ''
