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
from unet_jax.evaluation import confusion, step
from unet_jax.models import fold, unet
from unet_jax.models.ensemble import Ensemble, SINGLE
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.runtime import progress
from unet_jax.training import losses

_log = logging.getLogger(__name__)


class Evaluator:
  """Evaluates the variables of one model on one prepared set.

  Args:
    returns_logits: whether `run` can return them.

  Attributes:
    seconds_waiting: of the last run, time spent only waiting for the device.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    model: unet.UNet,
    dataset: Any,
    mesh: Mesh,
    ensemble: Ensemble = SINGLE,
    returns_logits: bool = False,
  ):
    self._config, self._dataset, self._mesh = config, dataset, mesh
    self._loss_spec = losses.make_spec(config)
    self.seconds_waiting = 0.0
    self._row_keys = step.row_keys(config)
    self._pixel_keys = step.pixel_keys(returns_logits)
    self._fold = functools.partial(fold.fold, model, members=ensemble.members)
    self._step = step.make_eval_step(
      config, model, mesh, ensemble, returns_logits
    )

  def run(
    self,
    variables: dict[str, Any],
    stop: Callable[[], bool] = lambda: False,
    take: Callable[[int, dict[str, np.ndarray]], None] | None = None,
  ) -> tuple[dict[str, float], np.ndarray, list[dict[str, np.ndarray]]] | None:
    """Counts every example once, whole or in tiles.

    Args:
      variables: `params` and `batch_stats`.
      stop: asked between batches; the evaluation ends early once it is true.
      take: called with the index of each example in the set and its `logits`,
        `prediction` and `mask`, see `eval_step`; needs `returns_logits`. Of
        many processes, each example is one's alone, which read it.

    Returns:
      The metrics `eval/...`, the confusion counts of all images together,
      int64 [C, C], and `log.num_examples` examples, evenly spread, with
      `image`, `mask` and `prediction`; None if it ended early.
    """
    start, self.seconds_waiting = time.perf_counter(), 0.0
    variables = self._fold(variables)
    results: list[dict[str, Any]] = []
    shown: list[dict[str, np.ndarray]] = []
    pending = None
    batches = pipeline.eval_batches(self._dataset, self._config, self._mesh)
    total = len(pipeline.eval_examples(self._dataset, self._config))
    # Of a stack, the first slices show little.
    spread = np.linspace(0, total - 1, self._config.log.num_examples, dtype=int)
    unit = 'tile' if 'example' in self._row_keys else 'image'
    with (
      contextlib.closing(batches),
      progress.Progress(f'evaluating {self.split}', total, unit) as bar,
    ):

      def fetch(batch: dict[str, jax.Array], result: dict[str, Any]) -> None:
        first = len(batch['weight']) * len(results)
        rows = np.unique(spread[spread >= first] - first)
        shown.extend(self._examples(batch, result['prediction'], rows))
        results.append(self._fetch(result, len(results), take))
        bar.update(int(results[-1]['weight'].sum()))

      for batch in batches:
        if stop():
          return None
        result = self._step(variables, batch)
        if pending is not None:
          # Of the batch before: the device never waits for the host.
          fetch(*pending)
        pending = batch, result
      assert pending is not None, 'a split has examples'
      fetch(*pending)
    metrics, counts = self._summarize(results)
    metrics['seconds'] = time.perf_counter() - start
    return {f'eval/{k}': v for k, v in metrics.items()}, counts, shown

  def _fetch(
    self,
    result: dict[str, Any],
    number: int,
    take: Callable[[int, dict[str, np.ndarray]], None] | None,
  ) -> dict[str, Any]:
    """Returns the counts of batch `number`, and passes its pixels to `take`."""
    pixels = {k: result.pop(k) for k in self._pixel_keys}
    start = time.perf_counter()
    result = jax.device_get(result)
    if take is not None:
      mine = mesh_lib.local_images(pixels)
    self.seconds_waiting += time.perf_counter() - start
    if take is not None:
      count, part = len(mine['mask']), mesh_lib.part(self._mesh)
      first = number * self._config.data.batch_size + count * part.place
      left = min(count, len(self._dataset) - first)
      for i in range(part.member, left, part.members):
        take(first + i, {k: v[i] for k, v in mine.items()})
    return result

  def _summarize(
    self, results: list[dict[str, Any]]
  ) -> tuple[dict[str, float], np.ndarray]:
    """Returns the metrics and the confusion counts of all batches."""
    rows = {
      k: np.concatenate([result[k] for result in results])
      for k in ('confusion', *self._row_keys)
    }
    # A mesh may order its devices, and so the rows of a batch, otherwise than
    # the processes are: the padding is not always at the end.
    real = rows['weight'] > 0
    per_image = rows['confusion'][real]
    if 'example' in rows:
      # The counts of an image are those of its tiles.
      images, of_tiles = np.unique(rows['example'][real], return_inverse=True)
      whole = np.zeros((len(images), *per_image.shape[1:]), np.int64)
      np.add.at(whole, of_tiles, per_image)
      per_image = whole
    assert len(per_image) == len(self._dataset), 'an example was lost'
    metrics = confusion.scores(
      per_image, fields.class_names(self._config), self._config.eval.foreground
    )
    totals, counts = (
      {
        term: sum(float(r[key][term]) for r in results)
        for term in results[0][key]
      }
      for key in ('loss_total', 'loss_count')
    )
    metrics['loss'] = float(
      losses.weighted_sum(totals, counts, self._loss_spec)
    )
    return metrics, per_image.sum(0, dtype=np.int64)

  @property
  def split(self) -> str:
    return self._dataset.split

  @property
  def num_examples(self) -> int:
    return len(self._dataset)

  def _examples(
    self, batch: dict[str, jax.Array], prediction: jax.Array, rows: np.ndarray
  ) -> list[dict[str, np.ndarray]]:
    """Returns examples of a batch with their predictions, for a plot.

    Args:
      rows: ascending; those beyond the batch are left out.
    """
    rows = rows[rows < len(batch['weight'])]
    if not len(rows):
      return []
    whole = multihost_utils.process_allgather(
      {**batch, 'prediction': prediction}, tiled=True
    )
    real = np.flatnonzero(whole.pop('weight'))[rows]
    return [{k: np.asarray(v[i]) for k, v in whole.items()} for i in real]
