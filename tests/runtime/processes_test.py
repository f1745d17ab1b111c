"""How processes are found and joined."""

import io
import os
import urllib.request

import jax
import pytest

from tests.refusals import message_of
from unet_jax.runtime import processes

_VARIABLES = (
  'JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID '
  'SLURM_STEP_NUM_TASKS SLURM_NTASKS OMPI_COMM_WORLD_SIZE TPU_ML_PLATFORM '
  'TPU_SKIP_MDS_QUERY TPU_PROCESS_ADDRESSES TPU_WORKER_HOSTNAMES '
  'MEGASCALE_NUM_SLICES'
).split()
_WAIT = {'heartbeat_timeout_seconds': 30}
_HOSTS = 'TPU_ML_PLATFORM=JAX TPU_WORKER_HOSTNAMES='


@pytest.fixture
def environment(monkeypatch):
  """Sets `NAME=value NAME=value` of a cluster; the other names are unset."""
  for name in _VARIABLES:
    monkeypatch.delenv(name, raising=False)

  def no_network(*unused, **unused_too):
    raise AssertionError('asks the metadata server')

  monkeypatch.setattr(urllib.request, 'urlopen', no_network)
  processes._hosts_of_the_machine.cache_clear()

  def set_variables(text):
    for part in text.split():
      name, _, value = part.partition('=')
      assert name in _VARIABLES
      monkeypatch.setenv(name, value)

  return set_variables


@pytest.mark.parametrize(
  'variables,tasks',
  [
    ('', 1),
    ('SLURM_STEP_NUM_TASKS=3', 3),
    ('SLURM_STEP_NUM_TASKS=1', 1),
    # The batch script around the steps is one process.
    ('SLURM_NTASKS=3', 1),
    ('OMPI_COMM_WORLD_SIZE=4', 4),
    ('TPU_WORKER_HOSTNAMES=a,b', 1),
    (f'{_HOSTS}a,b', 2),
    (f'{_HOSTS}localhost', 1),
    (f'{_HOSTS}a,b TPU_PROCESS_ADDRESSES=a:1,a:2,b:1,b:2', 4),
    (f'{_HOSTS}a,b MEGASCALE_NUM_SLICES=3', 6),
    (f'{_HOSTS}a,b TPU_SKIP_MDS_QUERY=1', 1),
  ],
)
def test_number_of_processes(variables, tasks, environment):
  environment(variables)
  assert processes._num_tasks() == tasks


def test_number_of_tpu_hosts_from_the_metadata_server(environment, monkeypatch):
  environment('TPU_ML_PLATFORM=JAX')
  asked = []

  def answer(request, timeout):
    asked.append((request.full_url, dict(request.header_items()), timeout))
    return io.BytesIO(b'u:0:10.0.0.1,u:1:10.0.0.2,u:2:10.0.0.3')

  monkeypatch.setattr(urllib.request, 'urlopen', answer)
  assert processes._num_tasks() == 3
  ((url, headers, timeout),) = asked
  assert url.endswith('/instance/attributes/worker-network-endpoints')
  assert headers == {'Metadata-flavor': 'Google'} and timeout == 5

  def nobody(request, timeout):
    raise OSError('no route to host')

  processes._hosts_of_the_machine.cache_clear()
  monkeypatch.setattr(urllib.request, 'urlopen', nobody)
  assert processes._num_tasks() == 1


@pytest.mark.parametrize(
  'variables,is_alone',
  [
    ('', True),
    ('JAX_COORDINATOR_ADDRESS=host:1 JAX_NUM_PROCESSES=1', True),
    (
      'JAX_COORDINATOR_ADDRESS=host:1 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0',
      False,
    ),
    ('SLURM_STEP_NUM_TASKS=2', False),
  ],
)
def test_whether_a_process_is_alone(variables, is_alone, environment):
  environment(variables)
  assert processes.is_alone() == is_alone


@pytest.mark.parametrize('count', [1, 2])
def test_a_program_that_joins_its_processes_itself(
  count, environment, monkeypatch
):
  environment('')
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(jax, 'process_count', lambda: count)
  monkeypatch.setattr(jax, 'process_index', lambda: count - 1)
  assert processes.is_alone() == processes.is_first() == (count == 1)
  assert processes.share(range(4)) == (
    range(4) if count == 1 else range(1, 4, 2)
  )


def test_one_process_does_all_the_work():
  assert processes.share(range(3)) == range(3)
  assert processes.together(lambda: 'all') == ['all']


@pytest.mark.parametrize('kind', [jax.errors.JaxRuntimeError, ValueError])
def test_a_lost_process_ends_the_others(kind, environment, monkeypatch, capsys):
  environment(
    'JAX_COORDINATOR_ADDRESS=host:1 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0'
  )
  ended = []
  monkeypatch.setattr(os, '_exit', ended.append)
  with processes.end_with_others():
    raise kind('UNKNOWN: Gloo all-reduce failed\nmore')
  assert ended == [1]
  assert capsys.readouterr().err == (
    'error: process 0 lost another one (UNKNOWN: Gloo all-reduce failed); '
    'start all again with the same command, which goes on from what is saved\n'
  )
  full = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
  with pytest.raises(jax.errors.JaxRuntimeError, match='out of memory'):
    with processes.end_with_others():
      raise full


@pytest.fixture
def joined(monkeypatch):
  """The calls of jax.distributed.initialize."""
  calls = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *a, **k: calls.append((a, k))
  )
  return calls


@pytest.mark.parametrize(
  'variables,calls',
  [
    ('', []),
    ('SLURM_STEP_NUM_TASKS=2', [((), _WAIT)]),
    # By hand goes before the cluster.
    (
      'JAX_COORDINATOR_ADDRESS=host:1234 JAX_NUM_PROCESSES=4 JAX_PROCESS_ID=2 '
      'SLURM_STEP_NUM_TASKS=9',
      [
        (
          ('host:1234', 4, 2),
          {'cluster_detection_method': 'deactivate', **_WAIT},
        )
      ],
    ),
  ],
  ids=['alone', 'cluster', 'by hand'],
)
def test_processes_are_joined(variables, calls, environment, joined):
  environment(variables)
  processes.initialize_distributed()
  assert joined == calls


def test_processes_are_joined_once(environment, joined, monkeypatch):
  """A program may have several runs."""
  environment('SLURM_STEP_NUM_TASKS=2')
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  processes.initialize_distributed()
  assert joined == []


@pytest.mark.parametrize(
  'variables,what',
  [
    ('JAX_NUM_PROCESSES=2', "'JAX_PROCESS_ID'"),
    (
      'JAX_NUM_PROCESSES=two JAX_PROCESS_ID=0',
      "invalid literal for int() with base 10: 'two'",
    ),
  ],
)
def test_variables_that_are_missing_or_wrong(
  variables, what, environment, joined
):
  environment(f'JAX_COORDINATOR_ADDRESS=host:1234 {variables}')
  assert message_of(processes.initialize_distributed) == (
    f'cannot join the other processes ({what}); set JAX_COORDINATOR_ADDRESS='
    'HOST:PORT, JAX_NUM_PROCESSES=N and JAX_PROCESS_ID=0..N-1 in each'
  )
  assert not joined
