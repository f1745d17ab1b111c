"""What a run that goes on may not, and what it does otherwise than before."""

import logging

import jax
import ml_collections

from unet_jax.config import saved as saved_lib
from unet_jax.data import identity
from unet_jax.training import checkpoint, optimizer

_log = logging.getLogger(__name__)


def check_saved(
  config: ml_collections.ConfigDict,
  workdir: str,
  checkpoints: checkpoint.Checkpoints,
) -> identity.Record | None:
  """Refuses to continue from a checkpoint of another config.

  Damaged checkpoints are set aside first.

  Returns:
    The record of the run's images.
  """
  checkpoints.set_aside_damaged()
  if not checkpoints.steps:
    return None
  step = checkpoints.steps[-1]
  saved = checkpoints.saved_config(step)
  record = None
  if step:
    record = identity.continued(workdir, config, saved)
    saved_lib.check_resumable(saved, config, workdir)
    change = rate_change(saved, config, step)
    if change and jax.process_index() == 0:
      _log.warning('warning: %s', change)
  else:
    fix = 'Choose another --workdir, or undo the change'
    saved_lib.check_evaluable(saved, config, workdir, fix)
  return record


def rate_change(
  old: ml_collections.ConfigDict, new: ml_collections.ConfigDict, step: int
) -> str:
  """Returns one line where a run goes on at another learning rate; else ''.

  Args:
    old: the config that the checkpoint was saved with.
    new: the config that continues it.
    step: number of updates done, 1 or more.
  """
  length, new_length = map(optimizer.schedule_length, (old, new))
  # Asked first: a schedule takes the device.
  if old.optimizer == new.optimizer and length == new_length:
    return ''
  before, now = optimizer.make_schedule(old), optimizer.make_schedule(new)
  planned, next_rate = float(before(step)), float(now(step))
  if abs(planned - next_rate) <= 1e-6 * abs(planned):
    return ''
  last = float(before(step - 1))
  times = f', {next_rate / last:.2g} times as high' if last else ''
  text = (
    f'the learning rate of step {step} was {last:.2g}, that of step {step + 1} '
    f'is {next_rate:.2g}{times}: the {new.optimizer.schedule} schedule came '
    f'down at step {length}, now at {new_length}'
  )
  if new_length <= length:
    return text
  keep = f'--config.optimizer.decay_steps={length}'
  if not new.optimizer.end_factor:
    # Otherwise nothing would be learned from there on.
    keep += ' --config.optimizer.end_factor=0.01'
  return f'{text}. {keep} keeps the old schedule, and stays at its end'
