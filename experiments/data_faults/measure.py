"""How often right masks are accused, and how often faulty ones are found.

  python -m experiments.data_faults.measure [--data=../shared/data]
    [--pairs=24] [--sets=2] [--right_sets=2] [--kinds=cord,isbi2012]

Sets of right pairs are drawn or read (`kinds`), each fault is injected into
all masks of a set (`faults`), and the set is judged as --mode=inspect does.
Prints a table of kinds without a fault, and one of faults.
"""

import argparse
import collections
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.data_faults import faults, kinds
from unet_jax.inspection import alignment, verdict

# Masks of other images that each pair is compared with, as `scan` does.
_OTHERS = 4
# The real sets, and pairs of each that are used at most.
REAL = {'oxford_pets_128': 1500, 'isbi2012': 30, 'hippocampus': 260}
# Kinds of verdicts that name a fault: the others are noticed only.
_NAMES = {
  'moved': ('moved',),
  'shuffled': ('unfit', 'shuffled'),
  'the next': ('unfit', 'shuffled'),
  'cut': ('stretched',),
}


def judge(pairs: Sequence[kinds.Pair]) -> tuple[str, list[bool]]:
  """Returns the kind of the verdict ('' for none), and which pairs are odd."""
  borders = [alignment.border(mask) for _, mask in pairs]
  spread = np.linspace(0, len(pairs) - 1, _OTHERS + 1, dtype=int).tolist()
  fits = []
  for i, (image, mask) in enumerate(pairs):
    others = [borders[k] for k in spread if k != i][:_OTHERS]
    fits.append(alignment.measure(image, mask, others))
  odd = [fit is not None and alignment.is_suspicious(fit) for fit in fits]
  if not any(odd) and not verdict.is_suspected(fits):
    return '', odd
  finder = alignment.MaskFinder(borders)
  found = {
    i: finder.find(pairs[i][0])
    for i in range(0, len(pairs), max(1, len(pairs) // 32))
  }
  owners = {i: owner[0] for i, owner in found.items() if owner}
  looks = verdict.look_again(fits, lambda i: pairs[i], owners)
  seen = [look for look in looks if look is not None]
  for i, (fit, look) in enumerate(zip(fits, looks)):
    odd[i] = bool(odd[i] and fit and look and verdict.is_odd(fit, look, seen))
  fault = None
  if verdict.is_suspected(fits, owners):
    fault = verdict.summarize(fits, looks, owners)
  return fault.kind if fault else '', odd


def _sets(
  kind: str, data: pathlib.Path, size: int, count: int
) -> list[list[kinds.Pair]]:
  """Sets of a kind; fewer than `count` where a real set has no more pairs."""
  if kind not in REAL:
    return [kinds.draw(kind, size, 100 + k) for k in range(count)]
  pairs = kinds.read(kind, data, min(REAL[kind], size * count))
  size = min(size, len(pairs))
  return [
    pairs[k * size : (k + 1) * size]
    for k in range(min(count, len(pairs) // size))
  ]


def _is_named(fault: str, found: str) -> bool:
  names = next((v for k, v in _NAMES.items() if fault.startswith(k)), None)
  return found in (names or ('turned',))


def _print_table(title: str, columns: Mapping[str, Mapping[str, str]]) -> None:
  rows = list(dict.fromkeys(row for c in columns.values() for row in c))
  print(f'\n| {title} | ' + ' | '.join(columns) + ' |')
  print('|---' * (len(columns) + 1) + '|')
  for row in rows:
    cells = ' | '.join(column.get(row, '') for column in columns.values())
    print(f'| {row} | {cells} |', flush=True)


def _right(sets: Sequence[list[kinds.Pair]]) -> tuple[str, str]:
  """Judges sets without a fault: accused sets and pairs, in words."""
  accused, pairs = collections.Counter[str](), []
  for chosen in sets:
    found, odd = judge(chosen)
    accused[found] += 1
    pairs += odd
  wrong = ', '.join(f'{n} {k}' for k, n in accused.items() if k) or '0'
  return f'{wrong} of {len(sets)}', f'{sum(pairs)} of {len(pairs)}'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, default='../shared/data')
  parser.add_argument('--pairs', type=int, default=24)
  parser.add_argument('--sets', type=int, default=2)
  parser.add_argument('--right_sets', type=int, default=2)
  every = [*kinds.TUNED, *kinds.HELD_OUT, *REAL]
  parser.add_argument('--kinds', default=','.join(every))
  args = parser.parse_args()
  right: dict[str, dict[str, str]] = {'sets accused': {}, 'pairs accused': {}}
  rates: dict[str, dict[str, list]] = {}
  start = time.process_time()
  for kind in args.kinds.split(','):
    sets = _sets(kind, args.data, args.pairs, max(args.sets, args.right_sets))
    row = _right(sets[: args.right_sets])
    right['sets accused'][kind], right['pairs accused'][kind] = row
    group = 'tuned' if kind in kinds.TUNED else 'held out'
    column: dict[str, list] = {}
    if args.sets:
      column = rates.setdefault(kind if kind in REAL else group, {})
    for k, chosen in enumerate(sets[: args.sets]):
      made = faults.make(len(chosen), np.random.default_rng(k))
      for name, fault in made.items():
        found, _ = judge(faults.inject(chosen, fault))
        rate = column.setdefault(name, [])
        rate.append((bool(found), _is_named(name, found)))
    print(f'{kind}: {time.process_time() - start:.0f} s', flush=True)
  _print_table('kind, no fault', right)
  columns = {}
  for group, column in rates.items():
    sizes = {len(rate) for rate in column.values()}
    columns[f'{group} ({max(sizes)} sets)'] = {
      fault: '{:.0%} ({:.0%})'.format(*np.mean(rate, 0))
      for fault, rate in column.items()
    }
  _print_table('fault of all masks, sets noticed (named)', columns)


if __name__ == '__main__':
  main()
