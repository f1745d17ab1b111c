"""Training: build, restore, loop, close."""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import sys
import time
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

import unet_jax
from unet_jax.config import fields
from unet_jax.data import identity, pipeline, prepare, sources
from unet_jax.evaluation import counting, files
from unet_jax.inspection import before_training
from unet_jax.kernels import build
from unet_jax.models import unet
from unet_jax.runtime import errors, locks, processes, program, whole_files
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import checkpoint, continuing, metric_writer, programs
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import progress as progress_lib
from unet_jax.training import state as state_lib

_log = logging.getLogger(__name__)
# Folded into the root key of a run, to draw parameters and for its steps.
_PARAMETER_KEY, _STEP_KEY = 0, 1


def run(
  config: ml_collections.ConfigDict,
  workdir: str,
  cut: identity.Record | None = None,
) -> None:
  """Trains, or continues to train, and evaluates at the end.

  Args:
    workdir: absolute path; gets config.json, metrics.jsonl, tensorboard/,
      figures/, checkpoints/, split.json and eval.json.
    cut: for a new run, the record of another fold of the same images.

  Raises:
    UserError: something that the user can fix.
    SystemExit: 128 + the signal's number, after SIGTERM or Ctrl-C; the state
      is saved.
  """
  program.initialize(fields.cache_dir(config))
  mesh = mesh_lib.make_mesh(config)
  native = build.choose(config, mesh, trains=True)
  mesh_lib.log_devices(mesh, native)
  model = unet.create_model(config, native)
  whole_files.make_workdir(workdir)
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      path = pathlib.Path(workdir, '.lock')
      lock = locks.lock(path, f'training in {workdir}', wait=False)
      stack.enter_context(lock)
      whole_files.remove_parts(workdir)
    checkpoints = checkpoint.Checkpoints(workdir, config, native=native)
    # Closed in any case: orbax's threads must not outlive the interpreter.
    stack.enter_context(contextlib.closing(checkpoints))
    stack.enter_context(processes.end_with_others())
    _train(config, workdir, mesh, model, checkpoints, cut)


def _train(
  config: ml_collections.ConfigDict,
  workdir: str,
  mesh: Mesh,
  model: unet.UNet,
  checkpoints: checkpoint.Checkpoints,
  cut: identity.Record | None,
) -> None:
  """Trains while no other run has the workdir."""
  record = continuing.check_saved(config, workdir, checkpoints) or cut
  path = os.path.join(workdir, 'config.json')
  whole_files.write_json(path, config.to_dict())
  names = config.data.train_split, config.data.eval_split
  splits = [sources.make_source(config, s, record=record) for s in names]
  optimizer = optimizer_lib.make_optimizer(config)
  key = jax.random.fold_in(jax.random.key(config.seed), _STEP_KEY)
  total = config.train.num_steps
  done = max(checkpoints.steps, default=None)
  # First, since programs are compiled while the data are prepared.
  run = programs.start(
    *(config, model, optimizer, mesh, key, unet_jax.STARTED),
    steps_left=(done or 0) < total,
    draws=done is None,
  )
  train_set, eval_set = (prepare.prepare_source(s, config) for s in splits)
  if config.data.check:
    before_training.check(train_set, eval_set, config)
  _note_kinds(train_set, checkpoints)
  sources.keep_record(workdir, splits, record, train_set)
  batches = pipeline.train_batches(train_set, config, mesh)
  state = _first_state(
    config, run, model, optimizer, mesh, checkpoints, batches
  )
  first = int(state.step)
  interrupt = program.Interrupt()
  loop = _Loop(
    config=config,
    workdir=workdir,
    interrupt=interrupt,
    checkpoints=checkpoints,
    evaluator=counting.Evaluator(config, model, eval_set, mesh),
    writer=metric_writer.MetricWriter(workdir, first, config.log.tensorboard),
    progress=progress_lib.Progress(first, total, config.data.batch_size),
    saved_step=max(checkpoints.steps, default=None),
  )
  _log_start(len(train_set), len(eval_set), state, total)
  try:
    if first < total:
      train_step = run.step.result()
    with interrupt:
      step, stopped = first, loop.catch_up(first, state)
      while step < total and not stopped:
        step += 1
        state, metrics = train_step(state, next(batches), key)
        loop.after_step(step, metrics)
        stop = interrupt.requested(step)
        stopped = loop.save_and_evaluate(step, state, batches, stop)
      if stopped:
        interrupt.exit(f'stopped at step {step}', workdir)
    loop.finish()
  finally:
    batches.close()
    loop.close()
  if interrupt.signal is not None:
    # It came in the last evaluation: this run is complete, but the program must
    # not start anything after it.
    sys.exit(128 + interrupt.signal)


def _note_kinds(train_set: Any, checkpoints: checkpoint.Checkpoints) -> None:
  """Makes the checkpoints say which images the network is trained on."""
  if train_set.stats is not None:
    edges = np.percentile(train_set.stats.edges, (0, 50, 100))
    checkpoints.edges = tuple(edges.round(1).tolist())
    checkpoints.origins = tuple(np.unique(train_set.stats.origins).tolist())


def _first_state(
  config: ml_collections.ConfigDict,
  run: programs.Programs,
  model: unet.UNet,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  checkpoints: checkpoint.Checkpoints,
  batches: Any,
) -> state_lib.TrainState:
  """Returns the state from which a run starts, and sets its data position.

  It is the newest whole checkpoint of the workdir (of an imported one, which
  has step 0, the parameters alone); without one, a new state from the seed.
  """
  step = max(checkpoints.steps, default=None)
  if step is None:
    key = jax.random.fold_in(jax.random.key(config.seed), _PARAMETER_KEY)
    return run.draw(key)
  if step:
    state, position = checkpoints.restore(step, run.abstract)
    batches.set_state(position)
    return state
  saved = checkpoints.saved_config(step)
  abstract = state_lib.abstract_train_state(
    saved, model, optimizer_lib.make_optimizer(saved), mesh
  )
  state, _ = checkpoints.restore(step, abstract)
  return state_lib.state_of_variables(
    state.variables(), config, model, optimizer, mesh
  )


def _log_start(
  num_train: int, num_eval: int, state: state_lib.TrainState, total: int
) -> None:
  first = int(state.step)
  _log.info(
    '%d images to train on, %d to evaluate, %.2f M parameters, from step %d',
    num_train,
    num_eval,
    sum(x.size for x in jax.tree.leaves(state.params)) / 1e6,
    first,
  )
  if first == total:
    _log.info('all %d steps are done; a larger train.num_steps goes on', total)


@dataclasses.dataclass
class _Loop:
  """The work between the steps; it never waits for the step in flight."""

  config: ml_collections.ConfigDict
  workdir: str
  interrupt: program.Interrupt
  checkpoints: checkpoint.Checkpoints
  evaluator: counting.Evaluator
  writer: metric_writer.MetricWriter
  progress: progress_lib.Progress
  # The last step that was dispatched, with its metrics, which are not yet read.
  pending: tuple[int, dict[str, jax.Array]] | None = None
  saved_step: int | None = None
  read_any: bool = False

  def after_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes a dispatched step's metrics and reads those of the one before."""
    pending, self.pending = self.pending, (step, metrics)
    if pending is not None:
      self._read(*pending)
    self.progress.update(step)

  def _flush(self) -> None:
    """Waits for the step in flight."""
    if self.pending is not None:
      self._read(*self.pending)
      self.pending = None

  def _read(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Checks a step's metrics, and logs them at the interval."""
    values = {
      f'train/{k}': float(v) for k, v in jax.device_get(metrics).items()
    }
    if not all(math.isfinite(v) for v in values.values()):
      kept = self.saved_step
      raise errors.UserError(
        f'step {step}: loss {values["train/loss"]}, gradient norm '
        f'{values["train/grad_norm"]}: not finite. The last checkpoint, '
        f'{"none" if kept is None else f"step {kept}"}, is kept. Lower '
        'optimizer.learning_rate or clip_norm, or lengthen warmup_steps'
      )
    if not self.read_any:
      self.read_any = True
      seconds = time.perf_counter() - unet_jax.STARTED
      self.progress.write(
        f'first step done {seconds:.1f} s after the program started'
      )
    if step % self.config.log.every and step != self.config.train.num_steps:
      return
    self.checkpoints.check()
    self.progress.mark()
    if self.progress.images_per_second is not None:
      values['train/images_per_second'] = self.progress.images_per_second
    self.writer.write(step, values)
    self.progress.report(step, values)

  def save_and_evaluate(
    self, step: int, state: state_lib.TrainState, batches: Any, stop: bool
  ) -> bool:
    """Saves and evaluates after the steps at which these are due.

    The state, its data position and the config are saved together, before the
    next batch is drawn; and before an evaluation, which may take long.

    Args:
      step: number of updates done.
      state: after them.
      batches: the training data's iterator.
      stop: save in any case, and leave an evaluation to the continued run.

    Returns:
      Whether the run must end here: `stop`, or a signal during the evaluation.
    """
    evaluates = self._evaluates(step) and not stop
    if not (evaluates or stop or step % self.config.checkpoint.every == 0):
      return False
    self._flush()
    self.progress.pause()
    self.checkpoints.save(state, step, batches.get_state())
    self.saved_step = step
    if evaluates:
      stop = not self._evaluate(step, state)
    if stop or step == self.config.train.num_steps:
      self.checkpoints.wait()
    return stop

  def _evaluates(self, step: int) -> bool:
    every = self.config.eval.every
    last = step == self.config.train.num_steps
    return last or bool(every and step % every == 0)

  def catch_up(self, step: int, state: state_lib.TrainState) -> bool:
    """Makes the evaluation that a stop right after saving `step` skipped.

    Returns:
      Whether a signal ended it.
    """
    if step and self._evaluates(step):
      if metric_writer.read_evaluation(self.workdir, step) is None:
        return not self._evaluate(step, state)
    return False

  def _evaluate(self, step: int, state: state_lib.TrainState) -> bool:
    """Evaluates and writes the results; returns False if a signal came."""
    which = self.config.eval.params if state.ema_params is not None else 'raw'
    result = self.evaluator.run(
      state.variables(which), lambda: self.interrupt.signal is not None
    )
    if result is None:
      return False
    metrics, confusion, examples = result
    files.write(
      self.workdir,
      self.config,
      metrics,
      confusion,
      examples,
      step=step,
      split=self.evaluator.split,
      params=which,
      num_examples=self.evaluator.num_examples,
    )
    # The line comes last: a step with a line was evaluated completely.
    self.writer.write(step, metrics)
    self.progress.write(
      f'step {step}: eval loss {metrics["eval/loss"]:.4f}, dataset mIoU '
      f'{metrics["eval/dataset_miou"]:.4f} in {metrics["eval/seconds"]:.1f} s'
    )
    return True

  def finish(self) -> None:
    """Prints the table of the last evaluation and draws the curves."""
    self.progress.close()
    if jax.process_index():
      return
    if self.config.log.num_examples:
      from unet_jax.reports import plots  # Slow to import.

      plots.draw_curves(
        os.path.join(self.workdir, 'figures', 'curves.png'),
        metric_writer.read_metrics(self.workdir),
        self.config.checkpoint.best_metric,
      )
    last = self.config.train.num_steps
    metrics = metric_writer.read_evaluation(self.workdir, last)
    assert metrics is not None, 'the last step was not evaluated'
    print(files.format_table(metrics, fields.class_names(self.config)))
    _log.info('wrote %s', self.workdir)

  def close(self) -> None:
    self.progress.close()
    self.writer.close()
