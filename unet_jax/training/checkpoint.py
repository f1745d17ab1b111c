"""Checkpoints in a workdir: state, data position and config together.

With them is kept which convolutions (`native` or `xla`, see `cpu.kernels`) and
which versions of the libraries made the steps since the one before.

Orbax writes them asynchronously into a temporary folder and renames it once all
is on disk, so that a run that dies meanwhile leaves the earlier ones whole. One
that is damaged later is known by the digests of its files (whole_checkpoint).
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from unet_jax.config import saved
from unet_jax.data import digests
from unet_jax.runtime import errors, processes
from unet_jax.training import made_by, metric_writer, whole_checkpoint
from unet_jax.training.state import TrainState

_log = logging.getLogger(__name__)

# Parts of messages of the system and of Orbax, with the fix.
_FIXES = {
  'no space': 'free space there',
  'resource_exhausted': 'free space there',
  'are free': 'free space there',
  'quota': 'free space there',
  'permission denied': 'make it writable',
  'read-only': 'make it writable',
  'file too large': 'raise the limit on the size of files',
}


def best_scores(workdir: str, best_metric: str) -> dict[int, float]:
  """Returns {step: score} of a run's evaluations; larger is better.

  Of the metric '-name', smaller is better.
  """
  sign = -1 if best_metric.startswith('-') else 1
  name = best_metric.removeprefix('-')
  return {
    m['step']: sign * m[name]
    for m in metric_writer.read_metrics(workdir)
    # A NaN would be the best of all, or of none.
    if m.get(name) is not None and not math.isnan(m[name])
  }


@dataclasses.dataclass
class _Best(policies.PreservationPolicy):
  """Keeps the n best of the checkpoints whose evaluation is known by now."""

  n: int
  workdir: str
  best_metric: str

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    scores = best_scores(self.workdir, self.best_metric)
    known = [c.step for c in checkpoints if c.step in scores]
    best = (
      sorted(known, key=lambda step: scores[step])[-self.n :] if self.n else []
    )
    return [c.step in best for c in checkpoints]


class Checkpoints:
  """The checkpoints of a workdir.

  Args:
    workdir: absolute path; they are in `workdir/checkpoints/STEP`.
    config: of the run; saved with each checkpoint.
    read_only: write nothing and clean nothing up.
    native: whether this run's convolutions are those of unet_jax/kernels.

  Attributes:
    edges: the smallest, median and largest edge, in pixels, of the images that
      are trained on, as they are stored; () where it is not known.
    origins: of these images, see `stored.Stored`; () where none is known.
  """

  def __init__(
    self,
    workdir: str,
    config: ml_collections.ConfigDict,
    read_only: bool = False,
    native: bool = False,
  ):
    self._config, self._workdir = config, workdir
    self._read_only, self._kernels = read_only, 'native' if native else 'xla'
    self._directory = os.path.join(workdir, 'checkpoints')
    self._saving = ''
    self.edges: tuple[float, ...] = ()
    self.origins: tuple[str, ...] = ()
    c = config.checkpoint
    keep = [
      policies.LatestN(c.keep_latest),
      _Best(c.keep_best, workdir, c.best_metric),
    ]
    with whole_checkpoint.listing(self._directory):
      self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(
          save_decision_policy=policies.FixedIntervalPolicy(1),
          preservation_policy=policies.AnyPreservationPolicy(keep),
          # Not orbax's read_only, which says so in two warnings: without a
          # save, nothing else is written.
          create=not read_only,
          cleanup_tmp_directories=not read_only,
          step_format_fixed_length=8,
          # Hosts may list a shared folder that was just changed otherwise.
          single_host_load_and_broadcast=True,
          async_options=ocp.AsyncOptions(
            # In the first process, once all is written, before it is renamed.
            post_finalization_callback=lambda: whole_checkpoint.write_digests(
              self._saving
            )
          ),
        ),
      )

  @property
  def steps(self) -> list[int]:
    """The steps that have a whole checkpoint, ascending."""
    return sorted(map(int, self._manager.all_steps()))  # A broadcast's: NumPy.

  def save(
    self,
    state: TrainState,
    step: int,
    data_position: dict[str, Any],
  ) -> None:
    """Starts saving; returns when the arrays may be overwritten.

    Args:
      state: after update number `step`.
      step: number of updates done.
      data_position: `get_state()` of the training data's iterator.

    Raises:
      UserError: the disk is full or not writable.
    """
    if step in self._manager.all_steps():
      return
    with self._one_line_errors():
      self._check_space(state)
      self._manager.wait_until_finished()  # As `save` would.
      self._saving = self._path(step) + ocp.path.step.TMP_DIR_SUFFIX
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          data=ocp.args.JsonSave(data_position),
          config=ocp.args.JsonSave(json.loads(saved.to_json(self._config))),
          meta=ocp.args.JsonSave(
            {
              'kernels': self._kernels,
              'versions': made_by.versions(),
              'edges': list(self.edges),
              'origins': list(self.origins),
            }
          ),
        ),
        force=True,
      )

  def _path(self, step: int) -> str:
    return os.path.join(self._directory, f'{step:08d}')

  def wait(self) -> None:
    """Returns once all saved checkpoints are on disk; raises like `save`."""
    with self._one_line_errors():
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def check(self) -> None:
    """Raises like `save` if a save in progress has failed by now."""
    with self._one_line_errors():
      self._manager.check_for_errors()

  def close(self) -> None:
    """Ends Orbax's threads; raises like `save` if a save has failed."""
    with self._one_line_errors():
      self._manager.close()

  def _check_space(self, state: TrainState) -> None:
    """Raises OSError if the disk is too full, before anything is written."""
    needed = sum(x.nbytes for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self._directory).free
    if free < needed:
      raise OSError(
        f'it needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free'
      )

  @contextlib.contextmanager
  def _one_line_errors(self) -> Iterator[None]:
    """Reports in one line what a user can fix; raises other errors as is."""
    try:
      yield
    except Exception as e:
      text = ' '.join(str(e).split())
      known = (fix for key, fix in _FIXES.items() if key in text.lower())
      fix = next(known, 'fix that' if isinstance(e, OSError) else None)
      if fix is None:
        raise
      whole = ', '.join(map(str, self.steps)) or 'none'
      raise errors.UserError(
        f'{self._directory}: the checkpoint could not be saved '
        f'({text[:200]}); {fix} and run the same command again. '
        f'Whole checkpoints: {whole}'
      ) from e

  @contextlib.contextmanager
  def _whole(self, step: int) -> Iterator[None]:
    """Reports damaged files of a checkpoint; raises other errors as is."""
    try:
      yield
    except Exception as e:
      if not whole_checkpoint.is_of_damage(e):
        raise
      whole_checkpoint.check_steps(self._directory, self.steps)
      text = ' '.join(str(e).split())
      others = ', '.join(str(s) for s in self.steps if s != step) or 'none'
      raise errors.UserError(
        f'{self._directory}: the checkpoint of step {step} is damaged '
        f'({text[:100]}); restore its folder, or move it away to go on from '
        f'another. Other checkpoints: {others}'
      ) from e

  def saved_config(self, step: int) -> ml_collections.ConfigDict:
    """Returns the config that a checkpoint was saved with."""
    with self._whole(step):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
      )
    return saved.from_json(json.dumps(restored.config))

  def restore(
    self, step: int, abstract_state: TrainState
  ) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state and the data position of a checkpoint.

    Args:
      abstract_state: shapes, types and shardings to restore into.
    """
    try:
      with self._whole(step):
        restored = self._manager.restore(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state),
            data=ocp.args.JsonRestore(),
          ),
        )
    except errors.UserError:
      raise
    except ValueError as e:
      if 'tree structure' not in str(e):
        raise
      raise errors.UserError(
        f'{self._directory}: step {step} has other arrays than its config '
        'makes in this version; evaluate it with the version that made it, or '
        'export it there and import it here'
      ) from e
    if int(restored.state.step) != step:
      raise errors.UserError(
        f'{self._path(step)} holds step {restored.state.step}; rename it to '
        f'{restored.state.step:08d}, or move it away'
      )
    _log.info('restored step %d from %s', step, self._directory)
    if step and not self._read_only:
      made_by.say_others(step, self._meta(step), self._kernels)
    return restored.state, restored.data

  def _meta(self, step: int) -> dict[str, Any] | None:
    """Returns the record of a step: {} of older ones, None if damaged."""
    if not os.path.isdir(f'{self._path(step)}/meta'):
      return {}
    try:
      return self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
      ).meta
    except Exception:  # Nothing else depends on it.
      return None

  def trained(self, step: int) -> dict[str, tuple]:
    """Returns `edges` and `origins` that a checkpoint was saved with."""
    meta = self._meta(step) or {}
    return {name: tuple(meta.get(name, ())) for name in ('edges', 'origins')}

  def fingerprint(self, step: int) -> str:
    """Changes with the arrays of a checkpoint, which are not read."""
    # Its files have random names, which this one lists.
    return digests.of_file(f'{self._path(step)}/state/manifest.ocdbt')

  def _whole_ones(self, steps: Sequence[int]) -> Iterator[int]:
    """Yields the steps that are not damaged; warns of the others.

    Raises:
      UserError: all of these are damaged.
    """
    found = {}
    for step in steps:
      path = self._path(step)
      look = lambda path=path: whole_checkpoint.damage(path)
      found[step] = processes.of_first(look)
      if not found[step]:
        yield step
        continue
      check = lambda: whole_checkpoint.check_steps(self._directory, self.steps)
      processes.of_first(check)
      if processes.is_first() and len(steps) > 1:
        say = 'warning: %s is damaged (%s): it is passed over'
        _log.warning(say, path, found[step])
    if all(found.values()):
      what = ', '.join(f'step {step} ({why})' for step, why in found.items())
      others = ', '.join(str(s) for s in self.steps if s not in found)
      fix = f'take another with --config.checkpoint.step, of {others}'
      if not others:
        fix = 'move them away to start anew'
      raise errors.UserError(
        f'{self._directory}: damaged: {what}; restore the folder of one, or '
        f'{fix}'
      )

  def set_aside_damaged(self) -> None:
    """Renames the damaged checkpoints that come after the newest whole one.

    A run then goes on from that one, and saves these steps again.

    Raises:
      UserError: all are damaged.
    """
    if not self.steps:
      return
    [whole] = self.select('latest', -1)
    damaged = [step for step in self.steps if step > whole]

    def rename() -> None:
      for step in damaged:
        names = (f'damaged_{step:08d}_{i}' for i in itertools.count())
        paths = (os.path.join(self._directory, name) for name in names)
        path = next(path for path in paths if not os.path.exists(path))
        os.rename(self._path(step), path)
        _log.info('kept as %s; the run goes on from step %d', path, whole)

    if damaged:
      processes.of_first(rename)
      self._manager.reload()

  def select(self, which: str, step: int) -> list[int]:
    """Returns the steps to predict with; damaged ones are passed over.

    Args:
      which: `latest`, `best` or `all`.
      step: taken where it is not -1.

    Raises:
      UserError: there is none.
    """
    steps = self.steps
    if not steps:
      raise errors.UserError(
        f'{self._workdir} has no checkpoint; train first, or name the right '
        '--workdir'
      )
    if step != -1:
      if step not in steps:
        raise errors.UserError(
          f'--config.checkpoint.step={step}: {self._workdir} has checkpoints '
          f'of the steps {", ".join(map(str, steps))}'
        )
      return list(self._whole_ones([step]))
    if which == 'all':
      return list(self._whole_ones(steps))
    if which == 'latest':
      return [next(self._whole_ones(steps[::-1]))]
    scores = best_scores(self._workdir, self._config.checkpoint.best_metric)
    known = [s for s in steps if s in scores]
    if not known:
      raise errors.UserError(
        f'{self._workdir} has no checkpoint with the metric '
        f'{self._config.checkpoint.best_metric} in metrics.jsonl; use '
        '--config.checkpoint.which=latest'
      )
    known.sort(key=lambda step: -scores[step])
    return [next(self._whole_ones(known))]
