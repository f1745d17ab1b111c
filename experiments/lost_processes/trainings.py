"""A small training by several processes: started, watched, compared."""

import contextlib
import functools
import json
import pathlib
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

from experiments.lost_processes import hosts as hosts_lib
from tests import program
from unet_jax.data import shapes

STEPS, _SAVED = 100, 10
# Seconds in which a process starts, about.
START = 12.0
# Seconds after which a process that still runs counts as hung.
_HUNG = 300
_FLAGS = (
  '--config=configs/folder.py',
  '--config.data.image_size=32,32',
  '--config.data.batch_size=8',
  '--config.data.num_classes=4',
  '--config.data.class_names=a,b,c,d',
  '--config.data.val_fraction=0.2',
  '--config.data.check=False',
  '--config.model.depth=1',
  '--config.model.base_features=4',
  '--config.model.dropout=0.1',
  f'--config.train.num_steps={STEPS}',
  '--config.eval.every=0',
  f'--config.checkpoint.every={_SAVED}',
  '--config.log.every=1',
  '--config.log.num_examples=0',
  '--config.log.tensorboard=False',
)
_TIMED = ('train/images_per_second', 'eval/seconds')


def write_data(folder: pathlib.Path) -> None:
  """Writes the images that are trained on, once."""
  for name in ('images', 'masks'):
    (folder / name).mkdir(parents=True, exist_ok=True)
  for i in range(100):
    pair = shapes.draw((5, i), (40, 48))
    for name, array in zip(('images', 'masks'), pair):
      Image.fromarray(array).save(folder / name / f's{i:02}.png')


class Training:
  """A command in several processes, and its workdir.

  Args:
    folder: its own; gets `run`.
    root: has the data and the common cache of compiled programs; gets what the
      processes print, as NAME.PROCESS.txt.
    count: of processes.
    hosts: that they run on.
    disk: that `folder` is.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    root: pathlib.Path,
    count: int,
    hosts: hosts_lib.Hosts,
    disk: hosts_lib.Disk,
  ):
    self._workdir, self._root, self._count = folder / 'run', root, count
    self._name, self.hosts, self.disk = folder.name, hosts, disk
    self._processes: list[Any] = []
    self._attempt = 0

  def start(self) -> None:
    with socket.socket() as s:
      s.bind(('', 0))
      address = f'{self.hosts.address()}:{s.getsockname()[1]}'
    self._processes = []
    self._attempt += 1
    self._frozen: int | None = None
    flags = (
      *(*_FLAGS, f'--config.data.dir={self._root / "data"}'),
      f'--config.data.cache_dir={self._root / "cache"}',
      f'--workdir={self._workdir}',
    )
    env = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    for i in range(self._count):
      enter = functools.partial(self.hosts.enter, i)
      if self._count > 1:
        env['JAX_COORDINATOR_ADDRESS'] = address
        env['JAX_NUM_PROCESSES'] = str(self._count)
        env['JAX_PROCESS_ID'] = str(i)
      self._processes.append(program.start(*flags, before=enter, **env))

  def _printed(self, i: int) -> pathlib.Path:
    return self._root / f'{self._name}.{self._attempt}.{i}.txt'

  def send(self, i: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # It has ended.
      self._processes[i].send_signal(number)

  def wait_for(self, condition: Callable[[], bool]) -> None:
    while not condition() and all(p.poll() is None for p in self._processes):
      time.sleep(0.002)

  def freeze(self, i: int) -> None:
    """Stops a process until the others have ended, and kills it then."""
    self.send(i, signal.SIGSTOP)
    self._frozen = i

  def end(self, since: float) -> list[tuple[float, int | None]]:
    """Waits for the end of all processes; kills who hangs.

    Args:
      since: a moment, of time.monotonic.

    Returns:
      Seconds after that moment, and the exit code, of each; None of who hung.
    """
    ended: dict[int, tuple[float, int | None]] = {}
    last = time.monotonic()
    while len(ended) < self._count:
      now = time.monotonic()
      for i, process in enumerate(self._processes):
        if i not in ended and process.poll() is not None:
          ended[i] = now - since, process.returncode
          last = now
      rest = set(range(self._count)) - ended.keys()
      if self._frozen is not None:
        # Again and again: something else may continue it.
        is_last = rest == {self._frozen}
        self.send(self._frozen, signal.SIGKILL if is_last else signal.SIGSTOP)
      if rest and now - max(last, since) > _HUNG:
        for i in rest:
          self.send(i, signal.SIGKILL)
          ended[i] = now - since, None
      time.sleep(0.02)
    for i, process in enumerate(self._processes):
      self._printed(i).write_text('\n'.join(process.communicate(timeout=60)))
    return [ended[i] for i in range(self._count)]

  def newest(self) -> int | None:
    """The step of the newest whole checkpoint."""
    return max(map(int, (p.name for p in self._checkpoints())), default=None)

  def _checkpoints(self) -> list[pathlib.Path]:
    return sorted((self._workdir / 'checkpoints').glob('[0-9]' * 8))

  def is_saving(self) -> bool:
    return any((self._workdir / 'checkpoints').glob('*tmp*'))

  def is_complete(self) -> bool:
    return (self._workdir / 'eval.json').exists()

  def last_step(self) -> int:
    return max(self._metrics(), default=0)

  def _metrics(self) -> dict[int, dict[str, float]]:
    path = self._workdir / 'metrics.jsonl'
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

  def _arrays(self) -> dict[str, np.ndarray]:
    path = self._checkpoints()[-1]
    checkpointer = ocp.PyTreeCheckpointer()
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
      checkpointer.metadata(path / 'state').item_metadata.tree,
    )
    tree = checkpointer.restore(path / 'state', restore_args=as_numpy)
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves}

  def differences(self, other: 'Training') -> list[str]:
    """Returns in what two finished trainings differ, bit for bit."""
    if not (self.newest() == other.newest() == STEPS):
      return [f'ended at step {self.newest()}, not {STEPS}']
    a, b = self._arrays(), other._arrays()
    found = [k for k in b if k not in a or a[k].tobytes() != b[k].tobytes()]
    paths = [t._checkpoints()[-1] / 'data/metadata' for t in (self, other)]
    if paths[0].read_text() != paths[1].read_text():
      found.append('data position')
    if self._metrics() != other._metrics():
      found.append('metrics')
    return found
