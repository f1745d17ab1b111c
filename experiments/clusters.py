"""A sweep as jobs of a cluster: one index is one point.

Queues, retries and preemption are the engine's own. A job that is stopped by
SIGTERM has saved its state and goes on when the engine starts it again; a point
that is done ends at once, so that all can be submitted again at any time. The
workdir is a folder that all jobs and the one who gathers see, on a file system
with locks (NFS 4, Filestore, Lustre; a bucket only through one of these): the
points of a variant share its tuning.
"""

import dataclasses
import json
import shlex

from unet_jax import errors

# What a job has left after SIGTERM, in seconds: a step, and a save.
_NOTICE = 120
# How often an index is tried again after a failure of its own.
_RETRIES = 2


@dataclasses.dataclass(frozen=True)
class Job:
  """What is submitted.

  Attributes:
    arguments: of experiments.run, without --point.
    count: of points.
    jobs: at most so many at once; 1: as many as the engine will.
    gpus: of each.
    image: of the container, which has this code as its working directory.
    queue: of Kueue, in the namespace of the job.
    claim: name of the PersistentVolumeClaim that is mounted at the workdir.
    directory: the workdir, absolute.
  """

  arguments: tuple[str, ...]
  count: int
  jobs: int
  gpus: int
  image: str
  queue: str
  claim: str
  directory: str

  @property
  def command(self) -> str:
    """For a shell, up to the number of the point."""
    run = ['python', '-m', 'experiments.run', *self.arguments]
    return shlex.join(run) + ' --point='


def _gather(job: Job) -> str:
  return job.command.removesuffix(' --point=') + ' --gather'


def slurm(job: Job) -> str:
  """Returns a script for `sbatch`: an array (slurm.schedmd.com/sbatch.html).

  Options of sbatch on the command line (--partition, --time) come before those
  in the script.
  """
  limit = f'%{job.jobs}' if job.jobs > 1 else ''
  gpus = f'\n#SBATCH --gpus={job.gpus}' if job.gpus else ''
  return f"""#!/bin/bash
# From the repository's root: sbatch [--partition=NAME] THIS_FILE
# Tables of what is done: {_gather(job)}
#SBATCH --job-name=sweep
#SBATCH --array=0-{job.count - 1}{limit}
#SBATCH --nodes=1 --ntasks=1{gpus}
#SBATCH --time=04:00:00 --signal=TERM@{_NOTICE}
#SBATCH --requeue --open-mode=append
srun {job.command}"$SLURM_ARRAY_TASK_ID"
code=$?
# Saved after SIGTERM, at the time limit: go on later.
if [ "$code" -eq 143 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def kubernetes(job: Job) -> str:
  """Returns an Indexed Job as JSON, for `kubectl create -f`, queued by Kueue.

  A pod that is preempted or drained counts as no failure and is made again;
  failures of its own are tried again a few times, index by index, and do not
  stop the others (kubernetes.io/docs/tasks/job/backoff-limit-per-index).

  Raises:
    UserError: no image or no claim is named.
  """
  for name in ('image', 'claim'):
    if not getattr(job, name):
      raise errors.UserError(f'--kubernetes needs --{name}=NAME')
  container = {
    'name': 'point',
    'image': job.image,
    # Replaced by Python, which so gets the signal.
    'command': [
      '/bin/sh',
      '-c',
      f'exec {job.command}"$JOB_COMPLETION_INDEX"',
    ],
    'volumeMounts': [{'name': 'sweep', 'mountPath': job.directory}],
  }
  if job.gpus:
    limits = {'nvidia.com/gpu': str(job.gpus)}
    container['resources'] = {'limits': limits}
  pod = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': _NOTICE,
    'containers': [container],
    'volumes': [
      {'name': 'sweep', 'persistentVolumeClaim': {'claimName': job.claim}}
    ],
  }
  manifest = {
    'apiVersion': 'batch/v1',
    'kind': 'Job',
    'metadata': {
      'generateName': 'sweep-',
      'labels': {'kueue.x-k8s.io/queue-name': job.queue},
    },
    'spec': {
      # Kueue starts it when its turn comes.
      'suspend': True,
      'completionMode': 'Indexed',
      'completions': job.count,
      'parallelism': job.jobs if job.jobs > 1 else job.count,
      'backoffLimitPerIndex': _RETRIES,
      'maxFailedIndexes': job.count,
      'podReplacementPolicy': 'Failed',
      'podFailurePolicy': {
        'rules': [
          {
            'action': 'Ignore',
            'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
          }
        ]
      },
      'template': {'spec': pod},
    },
  }
  return json.dumps(manifest, indent=2) + '\n'


def xpk(job: Job) -> str:
  """Returns a script that submits a workload for each point to a TPU queue.

  XPK's workloads are JobSets that Kueue queues, restarts and preempts
  (github.com/AI-Hypercomputer/xpk). One host for each: processes of several
  would wait for one another's tuning.
  """
  command = shlex.quote(job.command)
  return f"""#!/bin/bash
# bash THIS_FILE, with the variables below; IMAGE has this code and jax[tpu].
# Tables of what is done: {_gather(job)}
set -euo pipefail
: "${{CLUSTER:?}}" "${{PROJECT:?}}" "${{ZONE:?}}"
: "${{IMAGE:?}}" "${{STORAGE:?}}"
for point in $(seq 0 {job.count - 1}); do
  xpk workload create --workload="${{NAME:-sweep}}-$point" \\
    --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" \\
    --tpu-type="${{TPU_TYPE:-v5litepod-4}}" --num-slices=1 \\
    --docker-image="$IMAGE" --storage="$STORAGE" \\
    --priority="${{PRIORITY:-medium}}" --max-restarts=50 \\
    --termination-grace-period-seconds={_NOTICE} \\
    --command={command}"$point"
done
"""


ENGINES = {'slurm': slurm, 'kubernetes': kubernetes, 'xpk': xpk}
