"""Trainings under random faults against one that was never disturbed.

python -m experiments.faults --count=100 --seed=0 --output=DIR

Each fault comes to a small training at a random moment. The same command is
then run again until it ends, and the run is compared bit for bit with the one
never disturbed. Writes DIR/faults.csv, a line for each fault, and prints a
table.
"""

import argparse
import collections
import contextlib
import csv
import itertools
import pathlib
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

from experiments.faults import faults, runs

# Runs of the command after the fault, of which one is needed.
_ATTEMPTS = 4


def _again(job: runs.Job) -> Iterator[runs.Run]:
  """Runs the command until it ends well, as its user would."""
  for _ in range(_ATTEMPTS):
    run = job.start()
    run.end()
    yield run
    if not run.code:
      return
    if ': damaged: ' in run.last_line:  # All are: its advice is followed.
      faults.remove(job.workdir / 'checkpoints')


def one_fault(
  kind: str,
  moment: faults.Moment,
  rng: random.Random,
  job: runs.Job,
  expected: runs.Job,
) -> dict[str, Any] | None:
  """Returns a line of the table; None if the run ended before the moment."""
  runs.copy_cache(job, expected, moment.without)
  hit = faults.KINDS[kind](job, moment, rng)
  if hit is None:
    return None
  run, detail = hit
  step, saved = job.last_step(), [int(p.name) for p in job.checkpoints()]
  start = time.perf_counter()
  after = list(_again(job))
  different = runs.differences(job, expected)
  texts = [r.said for r in (run, *after)]
  return {
    'fault': kind,
    'moment': moment.name,
    'detail': detail,
    'step': step,
    'newest checkpoint': max(saved, default=''),
    'exit code': run.code,
    'last line': run.last_line[:300],
    'runs after it': len(after),
    'equal': not different,
    'different': ', '.join(different),
    'stack traces': sum('Traceback (most recent' in text for text in texts),
    'hung': sum('it hung' in text for text in texts),
    'first step after s': after[-1].seconds_to_first_step(),
    'all after s': round(time.perf_counter() - start, 1),
  }


def rows(
  draws: Iterable[tuple[str, str, random.Random]],
  folder: pathlib.Path,
  fresh: float,
) -> Iterator[dict[str, Any]]:
  """Yields a line for each fault that came before its run ended.

  Args:
    draws: see `faults.draw`.
    folder: for runs; a run that differs is kept there.
    fresh: part of the faults whose runs start Python anew, see `runs.Job`.
  """
  data = folder / 'data'
  runs.write_data(data)
  expected = runs.Job(folder / 'undisturbed', data, bool(fresh))
  first = expected.start()
  assert first.end() == 0, first.said
  start = time.perf_counter()
  again = runs.Job(folder / 'again', data, fresh=False)
  runs.copy_cache(again, expected)
  assert again.start().end() == 0
  seconds = time.perf_counter() - start
  assert not runs.differences(again, expected), 'two runs differ without faults'
  number = 0
  for kind, moment, rng in draws:
    place = folder / f'fault_{number}'
    place.mkdir()
    is_fresh = rng.random() < fresh or kind == 'clock set back'
    job = runs.Job(place, data, is_fresh)
    when = faults.Moment(moment, rng, seconds)
    full = kind == 'disk full'
    with faults.disk(place) if full else contextlib.nullcontext():
      row = one_fault(kind, when, rng, job, expected)
    if row is None or row['equal']:
      faults.remove(place)
    if row is not None:
      yield {'number': number, **row}
      number += 1


def table(lines: list[dict[str, Any]]) -> str:
  """A line for each kind of fault."""
  groups = collections.defaultdict(list)
  for line in lines:
    groups[line['fault']].append(line)
  groups['all'] = lines
  out = [
    '| fault | moments | count | equal | stack traces | hung | to the end |',
    '|---|---|---|---|---|---|---|',
  ]
  for kind, found in groups.items():
    moments = collections.Counter(line['moment'] for line in found)
    seconds = [line['all after s'] for line in found]
    times = f'{statistics.median(seconds):.0f} s, {max(seconds):.0f} s'
    what = ', '.join(f'{n} {name}' for name, n in moments.most_common())
    out.append(
      f'| {kind} | {what} | {len(found)} | {sum(r["equal"] for r in found)} | '
      f'{sum(r["stack traces"] for r in found)} | '
      f'{sum(r["hung"] for r in found)} | {times} |'
    )
  return '\n'.join(out)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--count', type=int, default=100)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--fresh', type=float, default=0.2)
  parser.add_argument('--output', type=pathlib.Path, default='runs/faults')
  args = parser.parse_args()
  args.output.mkdir(parents=True, exist_ok=True)
  lines = []
  folder = pathlib.Path(tempfile.mkdtemp(dir=args.output)).resolve()
  with open(args.output / 'faults.csv', 'w', newline='') as f:
    found = rows(faults.draw(args.seed), folder, args.fresh)
    for line in itertools.islice(found, args.count):
      if not lines:
        writer = csv.DictWriter(f, line)
        writer.writeheader()
      writer.writerow(line)
      f.flush()
      lines.append(line)
      print(
        *(line[k] for k in ('number', 'fault', 'moment', 'equal')), flush=True
      )
  print(table(lines))


if __name__ == '__main__':
  main()
