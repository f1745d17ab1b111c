"""Counts of a whole split, in a training run and in --mode=evaluate."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unet_jax.config import fields
from unet_jax.data import pipeline
from unet_jax.evaluation import confusion as confusion_lib
from unet_jax.evaluation import step
from unet_jax.models import averaging as averaging_lib
from unet_jax.models import unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.runtime import program
from unet_jax.training import losses

_log = logging.getLogger(__name__)


class Evaluator:
  """Evaluates the variables of one model on one prepared set.

  Args:
    config: of the run.
    model: see `unet.create_model`.
    dataset: see prepare.py.
    mesh: where it runs.
    averaging: of views and of several networks.
    returns_logits: whether `run` can hand them on; in one process only.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    model: unet.UNet,
    dataset: Any,
    mesh: Mesh,
    averaging: averaging_lib.Averaging = averaging_lib.NONE,
    returns_logits: bool = False,
  ):
    self._config, self._dataset, self._mesh = config, dataset, mesh
    self._loss_spec = losses.make_spec(config)
    everywhere = mesh_lib.replicated(mesh)
    # What says which image a row of a batch belongs to.
    is_tiled = config.data.resize == 'patch'
    self._of_rows = ('weight', 'example') if is_tiled else ('weight',)
    self._step = jax.jit(
      functools.partial(
        step.eval_step,
        model=model,
        loss_spec=self._loss_spec,
        mean=config.data.mean,
        std=config.data.std,
        averaging=averaging,
        returns_logits=returns_logits,
      ),
      out_shardings={
        'confusion': everywhere,
        **dict.fromkeys(self._of_rows, everywhere),
        'loss_total': everywhere,
        'loss_count': everywhere,
        # Stays where it is; only the first batch's is ever fetched.
        'prediction': None,
        **({'logits': None} if returns_logits else {}),
      },
      compiler_options=program.compiler_options(mesh),
    )

  def run(
    self,
    variables: dict[str, Any],
    stop: Callable[[], bool] = lambda: False,
    take_logits: Callable[[int, np.ndarray], None] | None = None,
  ) -> tuple[dict[str, float], np.ndarray, list[dict[str, np.ndarray]]] | None:
    """Counts every example once, whole or in tiles.

    Args:
      variables: `params` and `batch_stats`.
      stop: asked between batches; the evaluation is given up once it is true.
      take_logits: called with the index of each example in the set and its
        logits, float32 [H', W', K].

    Returns:
      The figures `eval/...`, the confusion counts of all images together,
      int64 [C, C], and the first `log.num_examples` examples with `image`,
      `mask` and `prediction`; None if it was given up.
    """
    start, self.seconds_waiting = time.perf_counter(), 0.0
    confusion, totals, counts, shown = [], {}, {}, []
    of_rows = {name: [] for name in self._of_rows}
    pending = None
    batches = pipeline.eval_batches(self._dataset, self._config, self._mesh)

    def add(result):
      waited = time.perf_counter()
      result = jax.device_get(result)
      self.seconds_waiting += time.perf_counter() - waited
      if take_logits is not None:
        first = len(confusion) * self._config.data.batch_size
        for i in np.flatnonzero(result['weight']):
          take_logits(first + int(i), result['logits'][i])
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
    figures = confusion_lib.scores(
      per_image,
      fields.class_names(self._config),
      self._config.eval.foreground,
    )
    figures['loss'] = float(
      losses.weighted_sum(totals, counts, self._loss_spec)
    )
    figures['seconds'] = time.perf_counter() - start
    figures = {f'eval/{k}': v for k, v in figures.items()}
    return figures, per_image.sum(0, dtype=np.int64), shown

  def predict(
    self, variables: dict[str, Any], examples: list[dict[str, np.ndarray]]
  ) -> list[np.ndarray]:
    """Returns the predicted classes, uint8 [H', W'], of prepared examples."""
    size, predictions = self._config.data.batch_size, []
    for start in range(0, len(examples), size):
      part = examples[start : start + size]
      rows = [*part, *part[:1] * (size - len(part))]
      batch = {k: np.stack([row[k] for row in rows]) for k in part[0]}
      batch['weight'] = np.ones(size, np.float32)
      batch = mesh_lib.to_devices(batch, self._mesh)
      result = self._step(variables, batch)['prediction']
      predictions += list(np.asarray(result)[: len(part)])
    return predictions

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
    count = self._config.log.num_examples
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
