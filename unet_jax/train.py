"""Training: build, restore, loop, close."""

import functools
import logging
import math
import os
import sys

import jax
import ml_collections

from unet_jax import (
  checkpoint,
  errors,
  evaluate,
  losses,
  metric_writer,
  runtime,
  sharding,
  steps,
  train_state,
)
from unet_jax import config as config_lib
from unet_jax import optimizer as optimizer_lib
from unet_jax import progress as progress_lib
from unet_jax.data import augment, pipeline, prepare
from unet_jax.models import unet

_log = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Trains, or continues to train, and evaluates at the end.

  Args:
    config: a valid config.
    workdir: absolute path; gets what DESIGN's section Workdir lists.

  Raises:
    UserError: something that the user can mend.
    SystemExit: 128 + the signal's number, after SIGTERM or Ctrl-C; the state
      is saved.
  """
  runtime.initialize(config)
  mesh = sharding.make_mesh(config)
  sharding.log_devices(mesh)
  model = unet.create_model(config)
  unet.output_size(config.data.image_size, model.depth, model.padding)
  _make_workdir(workdir)
  checkpoints = checkpoint.Checkpoints(workdir, config)
  if checkpoints.steps:
    config_lib.check_resumable(
      checkpoints.saved_config(checkpoints.steps[-1]), config, workdir
    )
  metric_writer.write_json(
    os.path.join(workdir, 'config.json'), config.to_dict()
  )
  train_set = prepare.prepare(config, config.data.train_split)
  eval_set = prepare.prepare(config, config.data.eval_split)
  optimizer = optimizer_lib.make_optimizer(config)
  batches = pipeline.train_batches(train_set, config, mesh)
  root = jax.random.key(config.seed)

  # Where a run starts from: the newest whole checkpoint of its workdir; without
  # one, a new state from the seed.
  if checkpoints.steps:
    abstract = train_state.abstract_train_state(config, model, optimizer, mesh)
    state, position = checkpoints.restore(checkpoints.steps[-1], abstract)
    batches.set_state(position)
  else:
    state = train_state.create_train_state(
      jax.random.fold_in(root, 0), config, model, optimizer, mesh
    )
  first = int(state.step)
  loop = _Loop(
    config=config,
    workdir=workdir,
    checkpoints=checkpoints,
    evaluator=evaluate.Evaluator(config, model, eval_set, mesh),
    writer=metric_writer.MetricWriter(workdir, first, config.log.tensorboard),
    progress=progress_lib.Progress(
      first, config.train.num_steps, config.data.batch_size
    ),
    schedule=optimizer_lib.make_schedule(config),
  )
  _log.info(
    '%d images to train on, %d to evaluate, %.2f M parameters, from step %d',
    len(train_set),
    len(eval_set),
    sum(x.size for x in jax.tree.leaves(state.params)) / 1e6,
    first,
  )
  train_step = make_train_step(config, model, optimizer, mesh, state)
  # The key of the steps, apart from the key of the parameters.
  key = jax.random.fold_in(root, 1)
  try:
    with runtime.Interrupt() as interrupt:
      for step in range(first + 1, config.train.num_steps + 1):
        state, figures = train_step(state, next(batches), key)
        loop.after_step(step, figures)
        stop = interrupt.requested(step)
        loop.evaluate_and_save(step, state, batches, stop)
        if stop:
          _stop(interrupt.signal, step, workdir)
    loop.finish(config.train.num_steps, state)
  finally:
    batches.close()
    loop.close()


def _make_workdir(workdir: str) -> None:
  try:
    os.makedirs(workdir, exist_ok=True)
    if not os.access(workdir, os.W_OK):
      raise PermissionError(None, 'Permission denied')
  except OSError as e:
    raise errors.UserError(
      f'--workdir={workdir}: cannot be written ({e.strerror}); choose another'
    ) from e


def make_train_step(config, model, optimizer, mesh, state):
  """Returns `steps.train_step` of a config, jitted; it donates the state."""
  shardings = sharding.state_sharding(mesh, state)
  return jax.jit(
    functools.partial(
      steps.train_step,
      model=model,
      optimizer=optimizer,
      augmentation=augment.make_augmentation(config),
      loss_spec=losses.make_spec(config),
      mean=config.data.mean,
      std=config.data.std,
      ema_decay=config.optimizer.ema_decay,
      accumulate_steps=config.optimizer.accumulate_steps,
    ),
    out_shardings=(shardings, sharding.replicated(mesh)),
    donate_argnums=0,
    compiler_options=runtime.compiler_options(),
  )


def _stop(signal_number: int, step: int, workdir: str) -> None:
  """Leaves the program after a signal, once all is saved."""
  if jax.process_index() == 0:
    print(
      f'stopped at step {step} by signal {signal_number}; saved in '
      f'{workdir}. Run the same command again to continue',
      file=sys.stderr,
    )
  sys.exit(128 + signal_number)


class _Loop:
  """What happens between the steps; it never waits for the step in flight."""

  def __init__(
    self, config, workdir, checkpoints, evaluator, writer, progress, schedule
  ):
    self._config, self._workdir = config, workdir
    self._checkpoints, self._evaluator = checkpoints, evaluator
    self._writer, self._progress = writer, progress
    self._schedule = schedule
    # The figures of the last step that was dispatched, not yet read.
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self._saved_step = max(checkpoints.steps, default=None)
    self._evaluated: tuple[int, dict[str, float]] | None = None

  def after_step(self, step: int, figures: dict[str, jax.Array]) -> None:
    """Takes a dispatched step's figures and reads those of the one before."""
    pending, self._pending = self._pending, (step, figures)
    if pending is not None:
      self._read(*pending)
    self._progress.update(step)

  def _flush(self) -> None:
    """Waits for the step in flight."""
    if self._pending is not None:
      self._read(*self._pending)
      self._pending = None

  def _read(self, step: int, figures: dict[str, jax.Array]) -> None:
    """Checks a step's figures, and logs them at the interval."""
    values = {f'train/{k}': float(v) for k, v in figures.items()}
    if not all(math.isfinite(v) for v in values.values()):
      kept = self._saved_step
      raise errors.UserError(
        f'step {step}: loss {values["train/loss"]}, gradient norm '
        f'{values["train/grad_norm"]}: not finite. The last checkpoint, '
        f'{"none" if kept is None else f"step {kept}"}, is kept. Lower '
        'optimizer.learning_rate or clip_norm, or lengthen warmup_steps'
      )
    if step % self._config.log.every and step != self._config.train.num_steps:
      return
    # The rate that this step used; the schedule counts from 0.
    values['train/learning_rate'] = float(self._schedule(step - 1))
    self._progress.mark()
    if self._progress.images_per_second is not None:
      values['train/images_per_second'] = self._progress.images_per_second
    self._writer.write(step, values)
    self._progress.report(step, values)

  def evaluate_and_save(self, step: int, state, batches, stop: bool) -> None:
    """Evaluates and saves where it is time to.

    The state, its data position and the config are saved together, before the
    next batch is drawn.
    """
    c, last = self._config, step == self._config.train.num_steps
    evaluates = last or (c.eval.every and step % c.eval.every == 0)
    if stop and not last:
      evaluates = False
    if not (evaluates or stop or step % c.checkpoint.every == 0):
      return
    self._flush()
    self._progress.pause()
    figures = self._evaluate(step, state) if evaluates else None
    self._checkpoints.save(state, step, batches.get_state(), figures)
    self._saved_step = step
    if stop or last:
      self._checkpoints.wait()

  def _evaluate(self, step: int, state) -> dict[str, float]:
    which = self._config.eval.params if state.ema_params is not None else 'raw'
    figures, examples = self._evaluator.run(state.variables(which))
    self._writer.write(step, figures)
    evaluate.write_results(
      self._workdir,
      self._config,
      figures,
      examples,
      step=step,
      split=self._config.data.eval_split,
      params=which,
      num_examples=self._evaluator.num_examples,
    )
    self._progress.write(
      f'step {step}: eval loss {figures["eval/loss"]:.4f}, dataset mIoU '
      f'{figures["eval/dataset_miou"]:.4f} in {figures["eval/seconds"]:.1f} s'
    )
    self._evaluated = (step, figures)
    return figures

  def finish(self, step: int, state) -> None:
    """Prints the table of the last evaluation and draws the curves."""
    self._progress.close()
    if self._evaluated is None:  # The run was finished before it started.
      self._evaluate(step, state)
    if jax.process_index():
      return
    if self._config.log.num_figures:
      from unet_jax import figures as figures_lib  # Slow to import.

      figures_lib.draw_curves(
        os.path.join(self._workdir, 'figures', 'curves.png'),
        metric_writer.read_metrics(self._workdir),
        self._config.checkpoint.best_metric,
      )
    print(
      evaluate.format_table(
        self._evaluated[1], config_lib.class_names(self._config)
      )
    )
    _log.info('wrote %s', self._workdir)

  def close(self) -> None:
    self._progress.close()
    self._checkpoints.close()
    self._writer.close()
