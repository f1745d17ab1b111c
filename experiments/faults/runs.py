"""A small training as its user runs it: started, watched, compared."""

import json
import pathlib
import shutil
import signal
import time
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests import folders, program

STEPS, _SAVED, _EVALUATED = 60, 4, 12
_FLAGS = (
  '--config=configs/folder.py',
  '--config.data.image_size=16,16',
  '--config.data.batch_size=8',
  '--config.data.check=False',
  '--config.model.depth=1',
  '--config.model.base_features=4',
  '--config.model.dropout=0.1',
  f'--config.train.num_steps={STEPS}',
  '--config.optimizer.warmup_steps=4',
  f'--config.eval.every={_EVALUATED}',
  f'--config.checkpoint.every={_SAVED}',
  '--config.checkpoint.keep_latest=3',
  '--config.log.every=1',
  '--config.log.num_examples=0',
  '--config.log.tensorboard=False',
)
_IMAGES = 300
# Seconds after which a run that still goes on counts as hung.
_HUNG = 240
# What is a matter of time.
_TIMED = ('train/images_per_second', 'eval/seconds')


def write_data(folder: pathlib.Path) -> None:
  """Writes the images that are trained on, once."""
  pairs = folders.make_pairs(_IMAGES)
  folders.write_pairs(
    folder, {s: (i[::2, ::2], m[::2, ::2]) for s, (i, m) in pairs.items()}
  )


class Job:
  """A command, and the workdir and caches that it uses.

  Args:
    folder: its own; gets `run` and `cache`.
    data: of `write_data`.
    fresh: start Python anew each time, and not from a process that has
      imported all.
  """

  def __init__(self, folder: pathlib.Path, data: pathlib.Path, fresh: bool):
    self.workdir, self.cache = folder / 'run', folder / 'cache'
    self._data, self.is_fresh = data, fresh
    self.env: dict[str, str] = {}

  def start(self) -> 'Run':
    """Starts the command."""
    flags = (
      *(*_FLAGS, f'--config.data.dir={self._data}'),
      *(f'--config.data.cache_dir={self.cache}', f'--workdir={self.workdir}'),
    )
    process = program.start(*flags, fresh=self.is_fresh, **self.env)
    return Run(self, process)

  def checkpoints(self) -> list[pathlib.Path]:
    """Folders of whole ones, by step."""
    return sorted((self.workdir / 'checkpoints').glob('[0-9]' * 8))

  def metrics(self) -> dict[int, dict[str, float]]:
    """{step: metrics} of whole lines, without what is a matter of time.

    A run drops the lines after the checkpoint that it goes on from, so that no
    step has two values of a metric.
    """
    path = self.workdir / 'metrics.jsonl'
    found: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
      try:
        values = json.loads(line)
      except ValueError:
        continue  # Being written, or cut off.
      step = found.setdefault(values.pop('step'), {})
      for name in values.keys() - _TIMED:
        step[name] = values[name] if name not in step else float('nan')
    return found

  def last_step(self) -> int:
    return max(self.metrics(), default=0)

  def is_compiling(self) -> bool:
    return (self.workdir / 'config.json').exists() and not self.metrics()

  def is_preparing(self) -> bool:
    return any((self.cache / 'prepared').glob('*.tmp-*'))

  def is_saving(self) -> bool:
    return any((self.workdir / 'checkpoints').glob('*tmp*'))

  def is_evaluating(self) -> bool:
    metrics, saved = self.metrics(), self.checkpoints()
    step = int(saved[-1].name) if saved else 1
    is_due = step % _EVALUATED == 0
    return is_due and 'eval/loss' not in metrics.get(step, {})


class Run:
  """A process of the command."""

  def __init__(self, job: Job, process):
    self._job, self._process = job, process
    self.pid = process.pid
    self.code: int | None = None
    self.said = ''

  def send(self, number: int) -> None:
    if self._process.poll() is None:
      self._process.send_signal(number)

  def wait_for(self, condition: Callable[[], bool]) -> bool:
    """Waits for something that the run does; False if it ended before."""
    while not condition():
      if self._process.poll() is not None:
        return False
      time.sleep(0.002)
    return True

  def end(self) -> int:
    """Waits for the end; returns the exit code, and keeps what was said."""
    end = time.monotonic() + _HUNG
    while self._process.poll() is None and time.monotonic() < end:
      time.sleep(0.01)
    hangs = self._process.poll() is None
    if hangs:
      self._process.send_signal(signal.SIGKILL)
    _, self.said = self._process.communicate(timeout=60)
    self.code = self._process.returncode
    if hangs:
      self.said += '\nit hung, and was killed'
    return self.code

  @property
  def last_line(self) -> str:
    lines = self.said.strip().splitlines()
    return lines[-1] if lines else ''

  def seconds_to_first_step(self) -> float | None:
    """As it says itself, from its start; None of one that was forked."""
    for line in self.said.splitlines() if self._job.is_fresh else ():
      if 'first step done ' in line:
        return float(line.partition('first step done ')[2].split()[0])
    return None


def _arrays(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
  tree = ocp.StandardCheckpointer().restore(checkpoint / 'state')
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves}


def differences(job: Job, other: Job) -> list[str]:
  """Returns in what two finished runs differ, bit for bit."""
  last = [j.workdir / f'checkpoints/{STEPS:08d}' for j in (job, other)]
  if not all(path.exists() for path in last):
    return ['no checkpoint of the last step']
  found = []
  a, b = map(_arrays, last)
  if a.keys() != b.keys():
    found.append('names of arrays')
  found += [
    name
    for name in a.keys() & b.keys()
    if a[name].tobytes() != b[name].tobytes()
  ]
  read = lambda path: json.loads(path.read_text())
  a, b = (read(path / 'data/metadata') for path in last)
  if a != b:
    found.append('position in the data')
  if job.metrics() != other.metrics():
    found.append('metrics.jsonl')
  a, b = (read(j.workdir / 'eval.json') for j in (job, other))
  if {**a, 'eval/seconds': 0} != {**b, 'eval/seconds': 0}:
    found.append('eval.json')
  found += [str(path) for path in job.workdir.rglob('*tmp*')]
  return found


def copy_cache(job: Job, other: Job, without: tuple[str, ...] = ()) -> None:
  """Gives a job the caches of another, but for some folders of them."""
  ignored = lambda folder, names: [
    name for name in names if folder == str(other.cache) and name in without
  ]
  shutil.copytree(other.cache, job.cache, ignore=ignored)
