"""Evaluation of a whole split, in a training run and as --mode=evaluate."""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unet_jax import (
  checkpoint,
  errors,
  losses,
  metric_writer,
  metrics,
  runtime,
  sharding,
  steps,
  train_state,
)
from unet_jax import config as config_lib
from unet_jax import optimizer as optimizer_lib
from unet_jax.data import pipeline, prepare
from unet_jax.models import unet

_log = logging.getLogger(__name__)


class Evaluator:
  """Evaluates the variables of one model on one prepared set.

  Args:
    config: of the run.
    model: see `unet.create_model`.
    dataset: see prepare.py.
    mesh: where it runs.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    model: unet.UNet,
    dataset: Any,
    mesh: Mesh,
  ):
    self._config, self._dataset, self._mesh = config, dataset, mesh
    self._loss_spec = losses.make_spec(config)
    everywhere = sharding.replicated(mesh)
    # What says which image a row of a batch belongs to.
    is_tiled = config.data.resize == 'patch'
    self._of_rows = ('weight', 'example') if is_tiled else ('weight',)
    self._step = jax.jit(
      functools.partial(
        steps.eval_step,
        model=model,
        loss_spec=self._loss_spec,
        mean=config.data.mean,
        std=config.data.std,
      ),
      out_shardings={
        'confusion': everywhere,
        **dict.fromkeys(self._of_rows, everywhere),
        'loss_total': everywhere,
        'loss_count': everywhere,
        # Stays where it is; only the first batch's is ever fetched.
        'prediction': None,
      },
      compiler_options=runtime.compiler_options(),
    )

  def run(
    self,
    variables: dict[str, Any],
    stop: Callable[[], bool] = lambda: False,
  ) -> tuple[dict[str, float], np.ndarray, list[dict[str, np.ndarray]]] | None:
    """Counts every example once, whole or in tiles.

    Args:
      variables: `params` and `batch_stats`.
      stop: asked between batches; the evaluation is given up once it is true.

    Returns:
      The figures `eval/...`, the confusion counts of all images together,
      int64 [C, C], and the first `log.num_figures` examples with `image`,
      `mask` and `prediction`; None if it was given up.
    """
    start = time.perf_counter()
    confusion, totals, counts, shown = [], {}, {}, []
    of_rows = {name: [] for name in self._of_rows}
    pending = None
    batches = pipeline.eval_batches(self._dataset, self._config, self._mesh)

    def add(result):
      result = jax.device_get(result)
      confusion.append(result['confusion'])
      for name, values in of_rows.items():
        values.append(result[name])
      for sums, name in ((totals, 'loss_total'), (counts, 'loss_count')):
        for term, value in result[name].items():
          sums[term] = sums.get(term, 0.0) + float(value)

    with contextlib.closing(batches):
      for batch in batches:
        if stop():
          return None
        result = self._step(variables, batch)
        if pending is None:
          shown = self._examples(batch, result['prediction'])
        else:
          add(pending)  # Of the batch before: the device is never waited for.
        # All but the predictions, which stay where they are.
        pending = {k: v for k, v in result.items() if k != 'prediction'}
    add(pending)
    # A mesh may order its devices, and so the rows of a batch, otherwise than
    # the processes are: the padding is not always at the end.
    of_rows = {name: np.concatenate(v) for name, v in of_rows.items()}
    real = of_rows['weight'] > 0
    per_image = np.concatenate(confusion)[real]
    if 'example' in of_rows:
      per_image = _sum_tiles(per_image, of_rows['example'][real])
    assert len(per_image) == len(self._dataset), 'an example was lost'
    figures = metrics.scores(
      per_image,
      config_lib.class_names(self._config),
      self._config.eval.foreground,
    )
    figures['loss'] = float(
      losses.weighted_sum(totals, counts, self._loss_spec)
    )
    figures['seconds'] = time.perf_counter() - start
    figures = {f'eval/{k}': v for k, v in figures.items()}
    return figures, per_image.sum(0, dtype=np.int64), shown

  @property
  def split(self) -> str:
    return self._dataset.split

  @property
  def num_examples(self) -> int:
    return len(self._dataset)

  def _examples(
    self, batch: dict[str, jax.Array], prediction: jax.Array
  ) -> list[dict[str, np.ndarray]]:
    """Some examples of a batch with their predictions, for a figure."""
    count = self._config.log.num_figures
    if not count:
      return []
    whole = multihost_utils.process_allgather(
      {**batch, 'prediction': prediction}, tiled=True
    )
    real = np.flatnonzero(whole.pop('weight'))[:count]
    return [{k: np.asarray(v[i]) for k, v in whole.items()} for i in real]


def _sum_tiles(confusion: np.ndarray, examples: np.ndarray) -> np.ndarray:
  """Adds the counts of each image's tiles.

  Args:
    confusion: int32 [T, C, C].
    examples: int32 [T]: the indices of the images.

  Returns:
    int64 [N, C, C] of the images that have tiles, in order.
  """
  images, rows = np.unique(examples, return_inverse=True)
  result = np.zeros((len(images), *confusion.shape[1:]), np.int64)
  np.add.at(result, rows, confusion)
  return result


def figure_names(config) -> list[str]:
  """Returns the names of the figures that an evaluation has."""
  names = config_lib.class_names(config)
  nothing = np.zeros((1, len(names), len(names)), np.int64)
  scores = metrics.scores(nothing, names, config.eval.foreground)
  return [f'eval/{name}' for name in (*scores, 'loss')]


def scored_names(figures, names: tuple[str, ...]) -> list[str]:
  """Returns the classes, and the foreground where the figures have it."""
  prefix = 'eval/dataset_iou/'
  scored = [k.removeprefix(prefix) for k in figures if k.startswith(prefix)]
  return [*names, *(name for name in scored if name not in names)]


def format_table(figures: dict[str, float], names: tuple[str, ...]) -> str:
  """Returns the scores of each class, and their means, as aligned text."""
  reductions = ('dataset_iou', 'image_iou', 'dataset_dice', 'image_dice')
  names = scored_names(figures, names)
  width = max(len(n) for n in (*names, 'mean'))
  lines = [' ' * width + ''.join(f'{r:>14}' for r in reductions)]

  def row(name, keys):
    cells = [figures.get(k) for k in keys]
    shown = ['-' if v is None or v != v else f'{v:.4f}' for v in cells]
    lines.append(f'{name:<{width}}' + ''.join(f'{s:>14}' for s in shown))

  for name in names:
    row(name, [f'eval/{r}/{name}' for r in reductions])
  means = [r.replace('_', '_m') for r in reductions]
  row('mean', [f'eval/{m}' for m in means])
  lines.append(
    f'pixel accuracy {figures["eval/pixel_accuracy"]:.4f}, '
    f'loss {figures["eval/loss"]:.4f}'
  )
  return '\n'.join(lines)


def write_results(
  workdir: str,
  config: ml_collections.ConfigDict,
  figures: dict[str, float],
  confusion: np.ndarray,
  examples: list[dict[str, np.ndarray]],
  **about: Any,
) -> None:
  """Writes eval.json and the figure of predictions."""
  if jax.process_index():
    return
  metric_writer.write_json(
    os.path.join(workdir, 'eval.json'),
    {**about, **figures, 'confusion': confusion.tolist()},
  )
  if examples:
    from unet_jax import figures as figures_lib  # matplotlib is slow to import.

    figures_lib.draw_predictions(
      os.path.join(workdir, 'figures', 'predictions.png'),
      examples,
      config_lib.class_names(config),
    )


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Evaluates a checkpoint of a workdir; writes eval.json, prints a table.

  Args:
    config: its `eval` and `checkpoint` sections say what is evaluated.
    workdir: absolute path of a training run.

  Raises:
    UserError: there is no such checkpoint, or it is of another network.
  """
  runtime.initialize(config)
  if not os.path.isdir(os.path.join(workdir, 'checkpoints')):
    raise errors.UserError(
      f'{workdir} has no checkpoints/; train first, or name the right --workdir'
    )
  mesh = sharding.make_mesh(config)
  with contextlib.closing(
    checkpoint.Checkpoints(workdir, config, read_only=True)
  ) as checkpoints:
    _evaluate(config, workdir, mesh, checkpoints)


def _evaluate(config, workdir: str, mesh, checkpoints) -> None:
  step = checkpoints.select(config.checkpoint.which, config.checkpoint.step)
  saved = checkpoints.saved_config(step)
  config_lib.check_evaluable(saved, config, workdir)
  split = config.eval.split or config.data.eval_split
  dataset = prepare.prepare(config, split)
  model = unet.create_model(config)
  # The optimiser's state has the shape that the checkpoint was saved with.
  abstract = train_state.abstract_train_state(
    saved, model, optimizer_lib.make_optimizer(saved), mesh
  )
  state, _ = checkpoints.restore(step, abstract)
  which = config.eval.params if state.ema_params is not None else 'raw'
  figures, confusion, examples = Evaluator(config, model, dataset, mesh).run(
    state.variables(which)
  )
  about = {
    'step': step,
    'split': dataset.split,
    'params': which,
    'num_examples': len(dataset),
  }
  write_results(workdir, config, figures, confusion, examples, **about)
  if jax.process_index() == 0:
    print(
      f'step {step}, {which} parameters, {len(dataset)} images of '
      f'{dataset.split}'
    )
    print(format_table(figures, config_lib.class_names(config)))
    _log.info('wrote %s', os.path.join(workdir, 'eval.json'))
