"""Rounds of contenders in turn, and the table of their times."""

import statistics
import time
from collections.abc import Callable

import jax


def in_turn(contenders: dict[str, Callable[[], float]], repeats: int):
  """Returns {name: [value of each round]}."""
  values = {name: [] for name in contenders}
  for _ in range(repeats):
    for name, contender in contenders.items():
      values[name].append(contender())
  return values


def report(title: str, values: dict[str, list[float]], images: int = 0):
  """Prints a table of seconds, and images/s where a value is of `images`.

  The ratio is to the first row, within each round, and then the median.

  Returns:
    {row: {'values', 'median', 'min', 'max', 'ratio'}}, seconds.
  """
  first = next(iter(values.values()))
  width = max(map(len, values))
  heads = ['median', 'min', 'max', 'ratio', *['images/s'] * bool(images)]
  print(f'\n{title}\n' + ' ' * width + ''.join(f'{h:>10}' for h in heads))
  rows = {}
  for name, row in values.items():
    rows[name] = measured = {
      'median': statistics.median(row),
      'min': min(row),
      'max': max(row),
      'ratio': statistics.median(a / b for a, b in zip(row, first)),
    }
    cells = [f'{v:10.4g}' for v in measured.values()]
    if images:
      measured['images_per_second'] = images / measured['median']
      cells.append(f'{measured["images_per_second"]:10.1f}')
    print(f'{name:<{width}}' + ''.join(cells), flush=True)
    measured['values'] = row
  return rows


def seconds(call, *args) -> float:
  start = time.perf_counter()
  call(*args)
  return time.perf_counter() - start


def per_batch(batches, warmup: int, count: int) -> float:
  """Seconds per batch of an iterator, which is closed at the end.

  Args:
    batches: an iterator with `close()`.
    warmup: batches before the clock: they start threads and fill buffers.
    count: batches that are timed.
  """

  def take(n):
    for _ in range(n):
      jax.block_until_ready(next(batches))

  try:
    take(warmup)
    return seconds(take, count) / count
  finally:
    batches.close()
