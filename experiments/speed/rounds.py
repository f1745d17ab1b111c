"""Rounds of contenders in turn, and the table of their times."""

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from unet_jax.data import prepared

# {row: {'values', 'median', 'min', 'max', 'ratio'}}, and perhaps
# 'images_per_second', and 'processor', a row of the same kind.
Table = dict[str, dict[str, Any]]


class Seconds(NamedTuple):
  """By the clock, and of this process on all cores, added up."""

  wall: float
  processor: float


def compare(
  title: str,
  contenders: Mapping[str, Callable[[], float | Seconds]],
  repeats: int,
  images: int = 0,
) -> Table:
  """Runs contenders in turn, round after round; prints and returns `report`."""
  values: dict[str, list[float | Seconds]] = {name: [] for name in contenders}
  for _ in range(repeats):
    for name, contender in contenders.items():
      values[name].append(contender())
  return report(title, values, images)


def report(
  title: str, values: Mapping[str, Sequence[float | Seconds]], images: int = 0
) -> Table:
  """Prints a table, with images/s where a value is the seconds of `images`.

  The ratio is to the first row, within each round, and then the median. The
  processor's share of `Seconds` has a table of its own.
  """
  wall: dict[str, list[float]] = {}
  processor: dict[str, list[float]] = {}
  for name, row in values.items():
    pairs = [v for v in row if isinstance(v, Seconds)]
    if pairs:
      processor[name] = [v.processor for v in pairs]
    wall[name] = [v.wall if isinstance(v, Seconds) else v for v in row]
  rows = _report(title, wall, images)
  if processor:
    title = f'{title} of all processors'
    for name, measured in _report(title, processor).items():
      rows[name]['processor'] = measured
  return rows


def _report(
  title: str, values: Mapping[str, list[float]], images: int = 0
) -> Table:
  first = next(iter(values.values()))
  width = max(map(len, values))
  heads = ['median', 'min', 'max', 'ratio', *['images/s'] * bool(images)]
  print(f'\n{title}\n' + ' ' * width + ''.join(f'{h:>10}' for h in heads))
  rows: Table = {}
  for name, row in values.items():
    measured: dict[str, Any] = {
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
    rows[name] = {**measured, 'values': row}
  return rows


def clocks(call: Callable[..., Any], *args: Any) -> Seconds:
  start, processor = time.perf_counter(), time.process_time()
  call(*args)
  return Seconds(time.perf_counter() - start, time.process_time() - processor)


def seconds(call: Callable[..., Any], *args: Any) -> float:
  return clocks(call, *args).wall


def per_step(
  call: Callable[[int], Any], steps: int, warmup: int = 1
) -> Seconds:
  """Returns the seconds per step of `call(number of steps)`.

  The warm-up compiles in the first round, and brings threads and caches back
  in the others.
  """
  call(warmup)
  both = clocks(call, steps)
  return Seconds(both.wall / steps, both.processor / steps)


def per_batch(
  batches: Any, config: ml_collections.ConfigDict, count: int
) -> Seconds:
  """Returns the seconds per batch of a generator, which is closed at the end.

  The batches before the clock start the threads, and use up what is read
  ahead.
  """

  def take(n: int) -> None:
    for _ in range(n):
      jax.block_until_ready(next(batches))

  with contextlib.closing(batches):
    return per_step(take, count, 2 * prepared.num_workers(config) + 4)
