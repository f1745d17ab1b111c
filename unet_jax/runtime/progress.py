"""Progress of work on a known number of items, from any thread."""

import logging
import sys
import threading
import time
from typing import Self

import tqdm

_log = logging.getLogger(__name__)

# Seconds between lines: a tenth of the time so far, within these.
_INTERVAL = (10.0, 60.0)


def clock(seconds: float) -> str:
  """Returns minutes and seconds, `1:05`, after hours, if any, `20:01:05`."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  short = f'{minutes}:{seconds:02d}'
  return f'{hours}:{short:0>5}' if hours else short


class Progress:
  """A bar in a terminal; elsewhere a plain line at each interval.

  Work that is done within the first interval logs nothing. A context manager.
  """

  def __init__(self, what: str, total: int, unit: str = 'image'):
    """Begins.

    Args:
      what: the work, such as `predicting`.
      total: number of items.
      unit: name of one item.
    """
    self._what, self._total, self._unit = what, total, unit
    self._lock, self._done = threading.Lock(), 0.0
    self._start = time.monotonic()
    self._next = self._start + _INTERVAL[0]
    # When the first update came, and what was done then: what comes before,
    # such as a compilation, is not in the rate.
    self._first: tuple[float, float] | None = None
    # Inside another bar it leaves no line.
    self._bar = tqdm.tqdm(
      total=total,
      desc=what,
      unit=unit,
      leave=None,
      disable=not sys.stderr.isatty(),
    )

  def update(self, count: float = 1) -> None:
    """Counts items, or a part of one, that were done."""
    with self._lock:
      now, self._done = time.monotonic(), self._done + count
      # Parts of an item do not add up exactly.
      whole = min(int(self._done + 1e-6), self._total)
      self._bar.update(whole - self._bar.n)
      if self._first is None:
        self._first = now, self._done
      if now < self._next or whole == self._total:
        return
      least, most = _INTERVAL
      self._next = now + min(max((now - self._start) / 10, least), most)
      if self._bar.disable:
        _log.info('%s', self._line(now, whole))

  def _line(self, now: float, whole: int) -> str:
    line = f'{self._what}: {whole} of {self._total} {self._unit}s'
    if whole < self._done - 1e-6:
      line += f' and {self._done - whole:.0%} of the next'
    assert self._first is not None
    since, before = self._first
    if now > since and self._done > before:
      rate = (self._done - before) / (now - since)
      left = max(self._total - self._done, 0) / rate
      line += f', {rate:.3g} {self._unit}s/s, {clock(left)} left'
    return line

  def close(self) -> None:
    self._bar.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()
