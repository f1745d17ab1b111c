"""The faults, and the moments at which they come."""

import contextlib
import itertools
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

from experiments.faults import runs

# (what a run must be doing, what its cache is without, longest delay in s).
MOMENTS: dict[str, tuple[Callable | None, tuple[str, ...], float]] = {
  'any': (None, (), 0),
  'starting': (None, ('programs', 'xla', 'prepared', 'digests'), 1.5),
  'preparing': (runs.Job.is_preparing, ('prepared', 'digests'), 0.1),
  'compiling': (runs.Job.is_compiling, ('programs', 'xla'), 1.5),
  'training': (lambda job: True, (), 0.02),
  'saving': (runs.Job.is_saving, (), 0.02),
  'evaluating': (runs.Job.is_evaluating, (), 0.02),
}
# In what is kept with digests, a wrong bit is found; not in JAX's own cache.
_WITH_DIGESTS = ('programs', 'kernels')


class Moment:
  """A moment in a run.

  Args:
    name: in MOMENTS.
    rng: draws the step from which it may come, and a delay.
    seconds: how long a run takes.
  """

  def __init__(self, name: str, rng: random.Random, seconds: float):
    self.name, (self._is_now, self.without, delay) = name, MOMENTS[name]
    self._delay = rng.uniform(0, delay or seconds)
    after_start = name in ('training', 'saving', 'evaluating')
    self._step = rng.randrange(8, runs.STEPS) if after_start else 0

  def wait(self, job: runs.Job, run: runs.Run) -> bool:
    """Waits for it; returns False if the run ended before."""
    is_now = lambda: self._is_now is None or self._is_now(job)
    if not run.wait_for(lambda: job.last_step() >= self._step and is_now()):
      return False
    end = time.monotonic() + self._delay
    return run.wait_for(lambda: time.monotonic() >= end)


# What a fault does: (job, moment, rng) -> the run that it came to, and how.
Hit = tuple[runs.Run, str]


def _signal(number: int) -> Callable[..., Hit | None]:
  def fault(job: runs.Job, moment: Moment, rng: random.Random) -> Hit | None:
    del rng
    run = job.start()
    came = moment.wait(job, run)
    run.send(number)
    run.end()
    return (run, '') if came else None

  return fault


def _stop_and_continue(
  job: runs.Job, moment: Moment, rng: random.Random
) -> Hit | None:
  run, seconds = job.start(), rng.uniform(0.1, 2)
  came = moment.wait(job, run)
  run.send(signal.SIGSTOP)
  time.sleep(seconds)
  run.send(signal.SIGCONT)
  run.end()
  return (run, f'for {seconds:.1f} s') if came else None


def _fill_disk(job: runs.Job, moment: Moment, rng: random.Random) -> Hit | None:
  """Where a file system of its own could be mounted; else a limit of files."""
  run, left = job.start(), rng.choice((0, 0, 4096, rng.randrange(100_000)))
  came = moment.wait(job, run)
  root = job.workdir.parent
  if root.is_mount():
    filler = root / 'filler'
    with open(filler, 'wb', buffering=0) as f, contextlib.suppress(OSError):
      while True:
        f.write(bytes(1 << 16))
    with open(filler, 'ab') as f, contextlib.suppress(OSError):
      f.truncate(max(filler.stat().st_size - left, 0))
    run.end()
    filler.unlink()
    return (run, f'{left} bytes left') if came else None
  with contextlib.suppress(ProcessLookupError):
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (left, left))
  run.end()
  return (run, f'files of at most {left} bytes') if came else None


def _damage(file: pathlib.Path, how: str, rng: random.Random) -> None:
  content = bytearray(file.read_bytes())
  if how == 'removed':
    file.unlink()
  elif how == 'cut off':
    file.write_bytes(content[: rng.randrange(len(content))])
  else:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _damage_checkpoint(
  job: runs.Job, moment: Moment, rng: random.Random
) -> Hit | None:
  hit = KINDS['SIGKILL'](job, moment, rng)
  saved = job.checkpoints()
  if hit is None or not saved:
    return None
  # Files of items; those of Orbax's own beside them are not needed.
  files = [p for p in saved[-1].rglob('*') if p.is_file() and p.stat().st_size]
  file = rng.choice(
    sorted(p for p in files if p.parent != saved[-1] or 'digests' in p.name)
  )
  how = rng.choice(('removed', 'cut off', 'a wrong bit'))
  _damage(file, how, rng)
  name = file.relative_to(saved[-1].parent)
  return hit[0], f'{name}: {how}, {len(saved)} checkpoints'


def _damage_cache(
  job: runs.Job, moment: Moment, rng: random.Random
) -> Hit | None:
  hit = KINDS['SIGKILL'](job, moment, rng)
  files = sorted(
    p for p in job.cache.rglob('*') if p.is_file() and p.stat().st_size
  )
  if hit is None or not files:
    return None
  done = []
  for file in rng.sample(files, min(len(files), rng.randrange(1, 5))):
    name = file.relative_to(job.cache)
    ways = ['removed', 'cut off']
    ways += ['a wrong bit'] * (name.parts[0] in _WITH_DIGESTS)
    how = rng.choice(ways)
    _damage(file, how, rng)
    done.append(f'{name.parts[0]}/…/{name.name[:12]}: {how}')
  return hit[0], ', '.join(done)


_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long back(void) {
  const char* file = getenv("CLOCK_IS_BACK");
  return file && access(file, F_OK) == 0 ? 24 * 3600 : 0;
}
int clock_gettime(clockid_t id, struct timespec* t) {
  static int (*real)(clockid_t, struct timespec*);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(id, t);
  if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) t->tv_sec -= back();
  return result;
}
int gettimeofday(struct timeval* t, void* zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec;
  t->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t* t) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}
"""


def _set_clock_back(
  job: runs.Job, moment: Moment, rng: random.Random
) -> Hit | None:
  """By a day, in the run and in those after it, which end within it.

  What asks the C library for the time gets it; times of files stay.
  """
  root = job.workdir.parent
  (root / 'clock.c').write_text(_CLOCK)
  library, file = root / 'clock.so', root / 'clock_is_back'
  subprocess.run(
    ['cc', '-shared', '-fPIC', '-o', library, root / 'clock.c', '-ldl'],
    check=True,
  )
  job.env = {'LD_PRELOAD': str(library), 'CLOCK_IS_BACK': str(file)}
  run = job.start()
  came = moment.wait(job, run)
  file.touch()
  seconds = rng.uniform(0, 1)
  time.sleep(seconds)
  run.send(signal.SIGKILL)
  run.end()
  return (run, f'killed after {seconds:.1f} s') if came else None


def _start_two(job: runs.Job, moment: Moment, rng: random.Random) -> Hit | None:
  both = [job.start()]
  if not moment.wait(job, both[0]):
    both[0].end()
    return None
  both.append(job.start())
  codes = [run.end() for run in both]
  refused = [run for run in both if 'another run does it' in run.last_line]
  return (refused or both)[0], f'exit codes {codes}'


def _limit_memory(
  job: runs.Job, moment: Moment, rng: random.Random
) -> Hit | None:
  """To what it has at that moment and up to 100 MB more."""
  run, more = job.start(), rng.choice((0, rng.randrange(100 << 20)))
  came = moment.wait(job, run)
  with contextlib.suppress(OSError, ProcessLookupError, StopIteration):
    status = pathlib.Path(f'/proc/{run.pid}/status').read_text().splitlines()
    line = next(s for s in status if s.startswith('VmSize'))
    limit = int(line.split()[1]) * 1024 + more
    resource.prlimit(run.pid, resource.RLIMIT_AS, (limit, limit))
  run.end()
  return (run, f'{more >> 20} MB more') if came else None


KINDS: dict[str, Callable[..., Hit | None]] = {
  'SIGKILL': _signal(signal.SIGKILL),
  'SIGTERM': _signal(signal.SIGTERM),
  'SIGSTOP, SIGCONT': _stop_and_continue,
  'disk full': _fill_disk,
  'checkpoint damaged': _damage_checkpoint,
  'cache damaged': _damage_cache,
  'clock set back': _set_clock_back,
  'two at once': _start_two,
  'memory limit': _limit_memory,
}


@contextlib.contextmanager
def disk(folder: pathlib.Path) -> Iterator[None]:
  """Mounts a small file system on a folder, where that is allowed."""
  command = ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs']
  mounted = not subprocess.run(
    [*command, folder], capture_output=True
  ).returncode
  try:
    yield
  finally:
    if mounted:
      subprocess.run(['umount', '-l', folder], check=True)


def draw(seed: int) -> Iterator[tuple[str, str, random.Random]]:
  """Yields kinds of fault with their moments, each kind as often."""
  rng = random.Random(seed)
  for number in itertools.count():
    kinds = list(KINDS)
    rng.shuffle(kinds)
    for kind in kinds:
      moments = list(MOMENTS)
      if kind == 'checkpoint damaged':
        moments = ['training', 'saving', 'evaluating']
      elif kind == 'two at once':
        moments = ['starting']
      yield kind, rng.choice(moments), random.Random(f'{seed} {number} {kind}')


def remove(folder: pathlib.Path) -> None:
  shutil.rmtree(folder, ignore_errors=True)
