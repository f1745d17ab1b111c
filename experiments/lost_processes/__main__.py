"""Small trainings by 1, 2 and 4 processes that lose a process or their folder.

python -m experiments.lost_processes --folder=DIR --seed=0

Each line of the output is one case: how long after the fault the first and the
last of the rest ended, their exit codes, and whether the same command, run
again, ends with the same bits as a run that nothing disturbed. What they print
is in DIR.
Cut networks and bad folders need root: the program then runs in namespaces of
its own, so that the machine keeps its network and mounts.
"""

import argparse
import dataclasses
import pathlib
import random
import re
import shutil
import signal
import time
from collections.abc import Callable

from experiments.lost_processes import hosts, trainings
from experiments.lost_processes.trainings import Training


def _stop(number: int) -> Callable[[Training, int], None]:
  return lambda training, victim: training.send(victim, number)


@dataclasses.dataclass
class Case:
  """A fault.

  Attributes:
    counts: numbers of processes.
    fault: is given the running training and the number of its victim.
    victim: the `first` process, any `other`, which do not count among the rest;
      or `any`.
    when: `step`: at a random one; `save`: while a checkpoint is written;
      `start`: before the first step.
    disk: what kind of folder the run is in, see `hosts.Disk`.
  """

  counts: tuple[int, ...]
  fault: Callable[[Training, int], None]
  victim: str = 'any'
  when: str = 'step'
  disk: str = ''


def _hold(seconds: float) -> Callable[[Training, int], None]:
  def fault(training: Training, victim: int) -> None:
    del victim
    training.disk.freeze(True)
    time.sleep(seconds)
    training.disk.freeze(False)

  return fault


_NONE: Callable[[Training, int], None] = lambda training, victim: None
CASES = {
  'SIGKILL, first': Case((1, 2, 4), _stop(signal.SIGKILL), 'first'),
  'SIGKILL, other': Case((2, 4), _stop(signal.SIGKILL), 'other'),
  'frozen (SIGSTOP), first': Case((2,), Training.freeze, 'first'),
  'frozen (SIGSTOP), other': Case((2, 4), Training.freeze, 'other'),
  'network cut, first': Case((2, 4), lambda t, i: t.hosts.cut(i), 'first'),
  'network cut, other': Case((2, 4), lambda t, i: t.hosts.cut(i), 'other'),
  'folder slow (30 kB/s)': Case((2,), _NONE, disk='slow'),
  'folder away for 40 s': Case((2,), _hold(40), disk='ext4'),
  'folder full': Case((1, 2, 4), lambda t, i: t.disk.fill(), disk='tmpfs'),
  'folder read-only': Case(
    (1, 2, 4), lambda t, i: t.disk.make_read_only(), disk='ext4'
  ),
  'SIGTERM to one': Case((1, 2, 4), _stop(signal.SIGTERM)),
  'SIGTERM at the start': Case((1, 2), _stop(signal.SIGTERM), when='start'),
  'SIGKILL in a save, first': Case(
    (2,), _stop(signal.SIGKILL), 'first', 'save'
  ),
  'SIGKILL in a save, other': Case(
    (2, 4), _stop(signal.SIGKILL), 'other', 'save'
  ),
  'SIGKILL at the start, first': Case(
    (2,), _stop(signal.SIGKILL), 'first', 'start'
  ),
  'SIGKILL at the start, other': Case(
    (2, 4), _stop(signal.SIGKILL), 'other', 'start'
  ),
}


def _wait_for_moment(
  case: Case, training: Training, rng: random.Random
) -> None:
  if case.when == 'start':
    time.sleep(rng.uniform(0, trainings.START))
    return
  step = rng.randint(1, trainings.STEPS * 3 // 4)
  training.wait_for(lambda: training.last_step() >= step)
  if case.when == 'save':
    training.wait_for(training.is_saving)
  else:
    time.sleep(rng.uniform(0, 0.3))


def _victim(case: Case, count: int, rng: random.Random) -> int:
  least = 1 if case.victim == 'other' else 0
  return 0 if case.victim == 'first' else rng.randrange(least, count)


def run_case(
  name: str,
  count: int,
  folder: pathlib.Path,
  reference: Training,
  rng: random.Random,
) -> str:
  """Returns a row of the table."""
  case = CASES[name]
  own = folder / re.sub(r'\W+', '_', f'{name} {count}')
  shutil.rmtree(own, ignore_errors=True)
  with hosts.Disk(own, case.disk) as disk:
    training = Training(own, folder, count, reference.hosts, disk)
    victim = _victim(case, count, rng)
    training.start()
    _wait_for_moment(case, training, rng)
    fault_at = training.last_step()
    since = time.monotonic()
    case.fault(training, victim)
    ended = training.end(since)
    reference.hosts.mend()
    disk.mend()
    saved = training.newest()
    again = []
    if any(code != 0 for _, code in ended):
      training.start()
      again = [code for _, code in training.end(time.monotonic()) if code]
    same = ', '.join(training.differences(reference)) or 'same bits'
    if again:
      same = f'again: exit codes {again}; {same}'
  is_lost = case.victim != 'any' and count > 1
  rest = [e for i, e in enumerate(ended) if not (is_lost and i == victim)]
  seconds = sorted(s for s, _ in rest)
  codes = ','.join(str(c) for _, c in rest)
  times = f'{seconds[0]:.1f} to {seconds[-1]:.1f}'
  return (
    f'| {name} | {count} | step {fault_at} | {times} | {codes} | {saved} | '
    f'{same} |'
  )


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--folder', required=True, type=pathlib.Path)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--cases', default='', help='regular expression')
  parser.add_argument('--counts', default='1,2,4')
  args = parser.parse_args()
  hosts.enter_namespaces()
  rng = random.Random(args.seed)
  folder = args.folder.absolute()
  trainings.write_data(folder / 'data')
  counts = [int(n) for n in args.counts.split(',')]
  with hosts.Hosts(folder, max(counts)) as net:
    references: dict[int, Training] = {}
    for name, case in CASES.items():
      if not re.search(args.cases, name):
        continue
      if not hosts.is_root() and name.startswith(('network', 'folder')):
        print(f'| {name} | | needs root |', flush=True)
        continue
      for count in case.counts:
        if count not in counts:
          continue
        if count not in references:
          own = folder / f'undisturbed_{count}'
          references[count] = Training(
            own, folder, count, net, hosts.Disk(own, '')
          )
          if not references[count].is_complete():
            since = time.monotonic()
            references[count].start()
            ended = references[count].end(since)
            print(f'undisturbed, {count} processes: {ended}', flush=True)
        print(run_case(name, count, folder, references[count], rng), flush=True)


if __name__ == '__main__':
  main()
