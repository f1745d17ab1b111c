"""A sweep as jobs of a cluster: one index is one point.

The engine queues, retries and preempts. A job that is stopped by SIGTERM saves
its state and goes on when the engine starts it again; a point that is done ends
at once, so that all can be submitted again at any time. All jobs and --gather
see the workdir, on a file system with locks (NFS 4, Filestore, Lustre with
-o flock): the points of a variant share its tuning.
A bucket that is mounted has no locks: there one index is a whole variant, and
no two jobs write into the same folder. Only the costs of the base, for a budget
of FLOP, are then written by each, with the same content.
"""

import dataclasses
import json
import math
import re
import shlex
from typing import Any

from unet_jax.runtime import errors

# Seconds between SIGTERM and the end of a job, for a step and a save.
_NOTICE = 120
# How often an index is tried again after a failure of its own.
_RETRIES = 2
# The fields of `Job` that are flags of the command.
FLAGS = ('jobs', 'cpus', 'gpus', 'tpu', 'image', 'queue', 'claim')


@dataclasses.dataclass(frozen=True)
class Job:
  """A sweep to submit."""

  # Of experiments.sweep, for all jobs.
  arguments: tuple[str, ...]
  # `point` or `variant`, of which each job runs one; and its points' names.
  unit: str
  points: tuple[tuple[str, ...], ...]
  # The workdir, absolute.
  directory: str
  # At most so many at once; 1: no limit.
  jobs: int
  # Of each job; TYPE:TOPOLOGY takes the place of GPUs.
  cpus: int
  gpus: int
  tpu: str
  # Of the container, which has this code as its working directory.
  image: str
  # Of Kueue, in the namespace of the job.
  queue: str
  # The PersistentVolumeClaim that is mounted at the workdir.
  claim: str

  @property
  def command(self) -> str:
    return shlex.join(['python', '-m', 'experiments.sweep', *self.arguments])

  @property
  def run(self) -> str:
    """For a shell, up to the number of the point or variant."""
    return f'{self.command} --{self.unit}='


def slurm(job: Job) -> str:
  """Returns a script for `sbatch`: an array (slurm.schedmd.com/sbatch.html).

  Options on sbatch's command line (--partition, --time) override the script's.
  """
  limit = f'%{job.jobs}' if job.jobs > 1 else ''
  gpus = f'\n#SBATCH --gpus={job.gpus}' if job.gpus else ''
  return f"""#!/bin/bash
# From the repository's root: sbatch [--partition=NAME] THIS_FILE
# Tables of the points that are done: {job.command} --gather
# Data is kept under ~/.cache/unet_jax, or XDG_CACHE_HOME/unet_jax: let all
# nodes see it, or each downloads its own.
#SBATCH --job-name=sweep
#SBATCH --array=0-{len(job.points) - 1}{limit}
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task={job.cpus}{gpus}
#SBATCH --time=04:00:00 --signal=TERM@{_NOTICE}
#SBATCH --requeue --open-mode=append
# Since Slurm 22.05 a step does not take its CPUs from the job.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" {job.run}"$SLURM_ARRAY_TASK_ID"
code=$?
# Saved after SIGTERM, at the time limit: go on later.
if [ "$code" -eq 143 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def kubernetes(job: Job) -> str:
  """Returns an Indexed Job as JSON, for `kubectl create -f`, queued by Kueue.

  A pod that is preempted or drained does not count as a failure and is made
  again; a pod that fails is tried again a few times and does not stop the
  others (kubernetes.io/docs/tasks/job/backoff-limit-per-index).

  Raises:
    UserError: image or claim are missing, or the TPU cannot exist.
  """
  for name in ('image', 'claim'):
    if not getattr(job, name):
      raise errors.UserError(f'--kubernetes needs --{name}=NAME')
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
      'completions': len(job.points),
      'parallelism': job.jobs if job.jobs > 1 else len(job.points),
      'backoffLimitPerIndex': _RETRIES,
      'maxFailedIndexes': len(job.points),
      'podReplacementPolicy': 'Failed',
      'podFailurePolicy': {
        'rules': [
          {
            'action': 'Ignore',
            'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
          }
        ]
      },
      'template': _pod_template(job),
    },
  }
  return json.dumps(manifest, indent=2) + '\n'


def _pod_template(job: Job) -> dict[str, Any]:
  container: dict[str, Any] = {
    'name': 'point',
    'image': job.image,
    # exec: Python itself gets the signal.
    'command': ['/bin/sh', '-c', f'exec {job.run}"$JOB_COMPLETION_INDEX"'],
    'resources': {'requests': {'cpu': str(job.cpus)}},
    'volumeMounts': [{'name': 'sweep', 'mountPath': job.directory}],
  }
  pod: dict[str, Any] = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': _NOTICE,
    'containers': [container],
    'volumes': [
      {'name': 'sweep', 'persistentVolumeClaim': {'claimName': job.claim}}
    ],
  }
  limits = {'nvidia.com/gpu': str(job.gpus)} if job.gpus else {}
  if job.tpu:
    limits, pod['nodeSelector'] = _tpu(job.tpu)
  if limits:
    container['resources']['limits'] = limits
  template: dict[str, Any] = {'spec': pod}
  if job.unit == 'variant':
    # How GKE mounts a bucket; others ignore it.
    template['metadata'] = {'annotations': {'gke-gcsfuse/volumes': 'true'}}
  return template


def _tpu(tpu: str) -> tuple[dict[str, str], dict[str, str]]:
  """Returns a container's limits, and the labels of a node that has them.

  See docs.cloud.google.com/kubernetes-engine/docs/how-to/tpus.
  """
  kind, _, topology = tpu.partition(':')
  if not kind or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)+', topology):
    raise errors.UserError(
      f'--tpu={tpu}: takes TYPE:TOPOLOGY of one host, such as '
      'tpu-v5-lite-podslice:2x2'
    )
  chips = math.prod(map(int, topology.split('x')))
  labels = {
    'cloud.google.com/gke-tpu-accelerator': kind,
    'cloud.google.com/gke-tpu-topology': topology,
  }
  return {'google.com/tpu': str(chips)}, labels


# A comment on STORAGE in xpk's script, for each `Job.unit`.
_STORAGE = {
  'point': 'which has locks (Filestore, Lustre); for a bucket see --nolocks.',
  'variant': 'which may be a bucket that can rename folders.',
}


def xpk(job: Job) -> str:
  """Returns a script that submits a workload for each point to a TPU queue.

  XPK's workloads are JobSets that Kueue queues, restarts and preempts
  (github.com/AI-Hypercomputer/xpk). One host for each: processes of several
  would wait for one another's tuning.
  """
  command = shlex.quote(job.run)
  # Names of points have no character that is special in a shell.
  points = '\n'.join(f"  '{' '.join(names)}'" for names in job.points)
  return f"""#!/bin/bash
# bash THIS_FILE, with the variables below; IMAGE has this code and jax[tpu].
# Tables of the points that are done: {job.command} --gather
# The workdir lies under the mount point of STORAGE,
# {_STORAGE[job.unit]}
# Data is kept in the container, and downloaded by each job, unless
# --config.data.cache_dir names a folder of a STORAGE with locks.
# XPK starts again what was preempted or killed (exit codes 42, 127 to 255), no
# point that failed (1): run this file again when its workloads have ended. It
# skips points that are done, where it sees the workdir; elsewhere their jobs
# end at once.
set -euo pipefail
: "${{CLUSTER:?}}" "${{PROJECT:?}}" "${{ZONE:?}}"
: "${{IMAGE:?}}" "${{STORAGE:?}}"
# XPK refuses a name that exists, and one of more than 40 characters.
NAME="${{NAME:-sweep-$(date +%Y%m%d-%H%M%S)}}"
points={shlex.quote(job.directory)}/points
jobs=(
{points}
)
refused=0
for i in "${{!jobs[@]}}"; do
  left=0
  for point in ${{jobs[i]}}; do
    grep -qsE '^  "status": "done",?$' "$points/$point/point.json" || left=1
  done
  [ "$left" -eq 1 ] || continue
  xpk workload create --workload="$NAME-$i" \\
    --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" \\
    --tpu-type="${{TPU_TYPE:-v5litepod-4}}" --num-slices=1 \\
    --docker-image="$IMAGE" --storage="$STORAGE" \\
    --priority="${{PRIORITY:-medium}}" --max-restarts=50 \\
    --termination-grace-period-seconds={_NOTICE} \\
    --command={command}"$i" || refused=$((refused + 1))
done
if [ "$refused" -gt 0 ]; then
  echo "$refused jobs were not submitted, see above" >&2
  exit 1
fi
"""


ENGINES = {'slurm': slurm, 'kubernetes': kubernetes, 'xpk': xpk}
