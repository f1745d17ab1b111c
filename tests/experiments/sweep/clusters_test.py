"""Scripts and manifests for clusters, run with stand-ins for the engines."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import pytest

from experiments.sweep import clusters
from experiments.sweep import folder as folders
from unet_jax.runtime import errors

_SWEEP = ('sweep.py', '--workdir=/a b', '--config.data.image_size=(8, 8)')
_RUN = ['python', '-m', 'experiments.sweep', *_SWEEP]
_JOB = clusters.Job(
  arguments=_SWEEP,
  unit='point',
  points=(('depth=1,seed=0',), ('depth=1,seed=1',), ('depth=2,seed=0',)),
  jobs=2,
  cpus=6,
  gpus=1,
  tpu='',
  image='registry/unet:1',
  queue='team',
  claim='disk',
  directory='/a b',
)


def _kubernetes(**changes):
  """Returns the manifest of a job with changes."""
  return json.loads(clusters.kubernetes(dataclasses.replace(_JOB, **changes)))


def _run(script, tmp_path, programs, code=0, **env):
  """Runs a script with stand-ins; returns the argument lists that they got.

  It also fails at anything that shellcheck would have otherwise.
  """
  for name, exit_code in programs.items():
    path = tmp_path / name
    path.write_text(
      '#!/bin/bash\n'
      f'printf "%s\\0" {name} "$@" >> {tmp_path}/calls\n'
      f'printf "\\n" >> {tmp_path}/calls\nexit {exit_code}\n'
    )
    path.chmod(0o755)
  file = tmp_path / 'script.sh'
  file.write_text(script)
  program = pathlib.Path(sys.executable).with_name('shellcheck')
  process = subprocess.run([program, file], capture_output=True, text=True)
  assert process.returncode == 0, process.stdout
  process = subprocess.run(
    ['bash', file],
    env={'PATH': f'{tmp_path}:{os.environ["PATH"]}', **env},
    capture_output=True,
    text=True,
  )
  assert process.returncode == code, process.stderr
  lines = (tmp_path / 'calls').read_text().splitlines()
  return [line.split('\0')[:-1] for line in lines]


def test_slurm_runs_the_point_of_its_index(tmp_path):
  script = clusters.slurm(_JOB)
  assert '\n#SBATCH --array=0-2%2\n' in script
  assert ' --cpus-per-task=6\n#SBATCH --gpus=1\n' in script
  assert '\n#SBATCH --requeue' in script
  programs = {'srun': 1, 'scontrol': 0}
  env = {'SLURM_ARRAY_TASK_ID': '2', 'SLURM_CPUS_PER_TASK': '6'}
  calls = _run(script, tmp_path, programs, code=1, **env)
  assert calls == [['srun', '--cpus-per-task=6', *_RUN, '--point=2']]


def test_slurm_goes_on_after_the_time_limit(tmp_path):
  programs = {'srun': 143, 'scontrol': 0}
  env = {'SLURM_ARRAY_TASK_ID': '1', 'SLURM_ARRAY_JOB_ID': '77'}
  calls = _run(clusters.slurm(_JOB), tmp_path, programs, code=143, **env)
  assert calls[1:] == [['scontrol', 'requeue', '77_1']]


_VARIABLES = ('CLUSTER', 'PROJECT', 'ZONE', 'IMAGE', 'STORAGE')
_XPK = {name: f'my {name}' for name in _VARIABLES}


def _xpk(tmp_path, job=_JOB, exit_code=0, **env):
  """Runs xpk's script; returns the options of each workload."""
  script, programs = clusters.xpk(job), {'xpk': exit_code}
  calls = _run(script, tmp_path, programs, exit_code, **_XPK, **env)
  assert all(call[:3] == ['xpk', 'workload', 'create'] for call in calls)
  return [dict(a.split('=', 1) for a in call[3:]) for call in calls]


def test_xpk_submits_a_workload_for_each_point(tmp_path):
  workloads = _xpk(tmp_path)
  assert len(workloads) == 3
  for i, options in enumerate(workloads):
    # XPK takes no more than 40 characters.
    assert re.fullmatch(rf'sweep-\d{{8}}-\d{{6}}-{i}', options['--workload'])
    assert options['--docker-image'] == 'my IMAGE'
    # What a shell in the container makes of it.
    printed = subprocess.run(
      ['bash', '-c', f'printf "%s\\0" {options["--command"]}'],
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    assert printed.split('\0')[:-1] == [*_RUN, f'--point={i}']


def test_xpk_goes_on_after_a_refusal(tmp_path):
  workloads = _xpk(tmp_path, exit_code=1, NAME='mine')
  names = [options['--workload'] for options in workloads]
  assert names == ['mine-0', 'mine-1', 'mine-2']


def _record(directory, point, **record):
  folder = directory / 'points' / point
  folder.mkdir(parents=True)
  folders.write_json(folder / 'point.json', record)


@pytest.mark.parametrize(
  'unit, jobs, left',
  [
    ('point', [['depth=1'], ['depth=2'], ['depth=3'], ['depth=4']], [1, 2, 3]),
    ('variant', [['depth=1', 'depth=2'], ['depth=1']], [0]),
  ],
)
def test_xpk_skips_what_is_done(tmp_path, unit, jobs, left):
  directory = tmp_path / 'a b'
  _record(directory, 'depth=1', status='done', fields={'seed': 0})
  _record(directory, 'depth=2', status='failed', fields={'status': 'done'})
  _record(directory, 'depth=3', status='stopped')
  job = dataclasses.replace(
    _JOB, unit=unit, points=jobs, directory=str(directory)
  )
  workloads = _xpk(tmp_path, job)
  for i, options in zip(left, workloads, strict=True):
    assert options['--workload'].endswith(f'-{i}')
    assert options['--command'].endswith(f' --{unit}={i}')


def test_xpk_names_the_variable_that_is_missing(tmp_path):
  file = tmp_path / 'script.sh'
  file.write_text(clusters.xpk(_JOB))
  process = subprocess.run(['bash', file], env={}, capture_output=True)
  assert process.returncode and b'CLUSTER' in process.stderr


def test_kubernetes_runs_the_point_of_its_index(tmp_path):
  # The fields: kubernetes.io/docs/reference/kubernetes-api/workload-resources.
  manifest = _kubernetes()
  assert (manifest['apiVersion'], manifest['kind']) == ('batch/v1', 'Job')
  assert manifest['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'team'}
  spec = manifest['spec']
  assert spec['completionMode'] == 'Indexed' and spec['suspend'] is True
  assert (spec['completions'], spec['parallelism']) == (3, 2)
  assert spec['backoffLimitPerIndex'] == 2
  # One more than may fail would end the others.
  assert spec['maxFailedIndexes'] == 3
  (rule,) = spec['podFailurePolicy']['rules']
  assert rule == {
    'action': 'Ignore',
    'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
  }
  pod = spec['template']['spec']
  # What a policy on failures of pods asks for.
  assert pod['restartPolicy'] == 'Never'
  (container,) = pod['containers']
  assert container['resources'] == {
    'requests': {'cpu': '6'},
    'limits': {'nvidia.com/gpu': '1'},
  }
  (mount,), (volume,) = container['volumeMounts'], pod['volumes']
  assert mount == {'name': volume['name'], 'mountPath': '/a b'}
  assert volume['persistentVolumeClaim'] == {'claimName': 'disk'}
  shell, option, line = container['command']
  assert (shell, option) == ('/bin/sh', '-c')
  line = f'#!{shell}\n{line}'
  calls = _run(line, tmp_path, {'python': 0}, JOB_COMPLETION_INDEX='2')
  assert calls == [[*_RUN, '--point=2']]


def test_kubernetes_asks_for_tpus():
  # docs.cloud.google.com/kubernetes-engine/docs/how-to/tpus
  manifest = _kubernetes(tpu='tpu-v5-lite-podslice:2x4')
  pod = manifest['spec']['template']['spec']
  assert pod['containers'][0]['resources']['limits'] == {'google.com/tpu': '8'}
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '2x4',
  }


@pytest.mark.parametrize('tpu', ['v5litepod-4', ':2x2', 'v5:2x', 'v5:0x2'])
def test_kubernetes_names_the_tpu_that_cannot_be(tpu):
  with pytest.raises(errors.UserError) as e:
    _kubernetes(tpu=tpu)
  assert str(e.value) == (
    f'--tpu={tpu}: takes TYPE:TOPOLOGY of one host, such as '
    'tpu-v5-lite-podslice:2x2'
  )


def test_kubernetes_mounts_a_bucket_where_there_are_no_locks():
  # docs.cloud.google.com/kubernetes-engine/docs/how-to/
  # cloud-storage-fuse-csi-driver-pv
  template = _kubernetes(unit='variant')['spec']['template']
  assert template['metadata']['annotations'] == {'gke-gcsfuse/volumes': 'true'}
  (container,) = template['spec']['containers']
  assert container['command'][-1].endswith(' --variant="$JOB_COMPLETION_INDEX"')


@pytest.mark.parametrize(
  'changes',
  [{'gpus': 0}, {'gpus': 2, 'unit': 'variant'}, {'tpu': 'v5:2x2'}],
)
@pytest.mark.parametrize('version', ['1.29', '1.33', '1.37'])
def test_kubernetes_takes_the_manifest(version, changes):
  # The server's own schema; `strict` refuses fields that it does not know.
  kubernetes_validate.validate(_kubernetes(**changes), version, strict=True)


def test_the_schema_refuses_what_kubernetes_would():
  manifest = _kubernetes()
  manifest['spec']['backoffLimitPerIndices'] = 2
  with pytest.raises(kubernetes_validate.ValidationError, match='Indices'):
    kubernetes_validate.validate(manifest, '1.33', strict=True)


def test_kubernetes_needs_image_and_claim():
  for name in ('image', 'claim'):
    with pytest.raises(errors.UserError) as e:
      _kubernetes(**{name: ''})
    assert str(e.value) == f'--kubernetes needs --{name}=NAME'
