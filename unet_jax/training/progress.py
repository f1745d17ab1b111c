"""Progress of training: a bar in a terminal, plain lines in a log."""

import logging
import sys
import time

import jax
import tqdm

from unet_jax.runtime import progress

_log = logging.getLogger(__name__)


class Progress:
  """Progress of a training run in steps, of which `first` were done before."""

  def __init__(self, first: int, total: int, batch_size: int):
    self._total, self._batch_size = total, batch_size
    self._step = self._marked_step = first
    self._seconds = 0.0
    self._since: float | None = None
    # The last measured rate; None until a whole interval was measured.
    self.images_per_second: float | None = None
    self._bar = None
    if sys.stderr.isatty() and jax.process_index() == 0:
      self._bar = tqdm.tqdm(
        total=total, initial=first, unit='step', dynamic_ncols=True
      )

  def start(self) -> None:
    """Starts the clock; compilation, which comes before, does not count."""
    self._since = time.perf_counter()

  def pause(self) -> None:
    """Stops the clock for an evaluation or a checkpoint."""
    if self._since is not None:
      self._seconds += time.perf_counter() - self._since
      self._since = None

  def update(self, step: int) -> None:
    """Counts a step that was dispatched; the first one starts the clock."""
    if self._bar is not None:
      self._bar.update(step - self._step)
    self._step = step
    if self._since is None:
      self.start()
      self._marked_step += 1  # This step was not timed.

  def mark(self) -> None:
    """Ends an interval and measures its rate."""
    if self._since is None or self._step == self._marked_step:
      return
    self.pause()
    images = (self._step - self._marked_step) * self._batch_size
    self.images_per_second = images / self._seconds
    self._seconds, self._marked_step = 0.0, self._step
    self.start()

  def report(self, step: int, metrics: dict[str, float]) -> None:
    """Shows the loss, the rate and the time left."""
    shown = {'loss': f'{metrics["train/loss"]:.4f}'}
    if self.images_per_second:
      shown['images/s'] = f'{self.images_per_second:.1f}'
    if self._bar is not None:
      self._bar.set_postfix(shown)
      return
    line = ', '.join(f'{k} {v}' for k, v in shown.items())
    if self.images_per_second:
      rest = (self._total - step) * self._batch_size / self.images_per_second
      line += f', {progress.clock(rest)} left'
    _log.info('step %d/%d: %s', step, self._total, line)

  def write(self, text: str) -> None:
    """Logs a line without breaking the bar."""
    if self._bar is not None:
      self._bar.clear()
    _log.info('%s', text)
    if self._bar is not None:
      self._bar.refresh()

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
