"""Joins the processes of a run on several hosts."""

import os
import urllib.request

from unet_jax.runtime import errors


def is_first() -> bool:
  """Whether this process is the first of a run, or the only one."""
  import jax  # Slow, and an inspection does without.

  return jax.process_index() == 0


def initialize_distributed() -> None:
  """Joins the other processes where this one is one of many.

  They are found by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID; in a Slurm step or Open MPI job of several tasks; and on a TPU
  slice of several hosts.

  Raises:
    UserError: the variables contradict one another, or no process answers.
  """
  import jax  # Slow, and an inspection does without.

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
      )
    elif _num_tasks() > 1:
      jax.distributed.initialize()
  except (KeyError, ValueError, RuntimeError) as e:
    raise errors.UserError(
      f'cannot join the other processes ({e}); set JAX_COORDINATOR_ADDRESS='
      'HOST:PORT, JAX_NUM_PROCESSES=N and JAX_PROCESS_ID=0..N-1 in each'
    ) from e


def refuse_several(mode: str) -> None:
  """Raises UserError where this process is one of many; does not ask JAX."""
  by_hand = os.environ.get('JAX_COORDINATOR_ADDRESS')
  number = os.environ.get('JAX_NUM_PROCESSES', '1') if by_hand else '1'
  if number != '1' or _num_tasks() > 1:
    raise errors.UserError(
      f'--mode={mode} runs in one process; start it on one machine, without '
      'JAX_NUM_PROCESSES or srun'
    )


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
  if hosts is None:
    request = urllib.request.Request(
      'http://metadata.google.internal/computeMetadata/v1/instance/'
      'attributes/worker-network-endpoints',
      headers={'Metadata-Flavor': 'Google'},
    )
    try:
      with urllib.request.urlopen(request, timeout=5) as answer:
        hosts = answer.read().decode()
    except OSError:
      return 1
  return len(hosts.split(',')) * int(env.get('MEGASCALE_NUM_SLICES') or 1)
