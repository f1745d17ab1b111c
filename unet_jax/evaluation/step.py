"""The evaluation step: a pure function, and its jitted form for a config."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from unet_jax.config import fields
from unet_jax.evaluation import confusion
from unet_jax.models import fold, rows, unet
from unet_jax.models.ensemble import Ensemble, SINGLE
from unet_jax.prediction import probabilities, step
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.runtime import program
from unet_jax.training import losses, programs, steps


def make_eval_step(
  config: ml_collections.ConfigDict,
  model: unet.UNet,
  mesh: Mesh,
  ensemble: Ensemble = SINGLE,
  returns_logits: bool = False,
) -> jax.stages.Wrapped:
  """Returns `step(variables, batch)`, jitted, for the variables of `fold`."""
  counts = ('confusion', 'loss_total', 'loss_count')
  return jax.jit(
    functools.partial(
      rows.split(mesh, eval_step),
      model=fold.without_norms(model),
      loss_spec=losses.make_spec(config),
      mean=config.data.mean,
      std=config.data.std,
      ensemble=ensemble,
      returns_logits=returns_logits,
    ),
    out_shardings={
      **dict.fromkeys((*counts, *row_keys(config)), mesh_lib.replicated(mesh)),
      **dict.fromkeys(pixel_keys(returns_logits), mesh_lib.of_images(mesh)),
    },
    compiler_options=program.compiler_options(mesh),
  )


def row_keys(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Returns what a batch has for each example, see `pipeline.eval_batches`."""
  is_tiled = config.data.resize == 'patch'
  return ('weight', 'example') if is_tiled else ('weight',)


def abstract_batch(
  config: ml_collections.ConfigDict, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes, types and shardings of a batch, no arrays."""
  size, shardings = config.data.batch_size, mesh_lib.batch_sharding(mesh)
  dtypes = {'weight': jnp.float32, 'example': jnp.int32}
  rows = {
    name: jax.ShapeDtypeStruct((size,), dtypes[name], sharding=shardings[name])
    for name in row_keys(config)
  }
  return programs.abstract_batch(config, mesh) | rows


def pixel_keys(returns_logits: bool) -> list[str]:
  """Returns the results per pixel, which stay where they are computed."""
  return ['prediction'] + ['logits', 'mask'] * returns_logits


def eval_step(
  variables: dict[str, Any],
  batch: steps.Batch,
  *,
  loss_spec: losses.LossSpec,
  returns_logits: bool = False,
  **network: Any,
) -> dict[str, Any]:
  """Predicts a batch and returns the counts that are summed over a split.

  Args:
    variables: `params` and `batch_stats`; of several networks, stacked.
    batch: as in `train_step`, and `weight` [B], 0 for padding, which counts
      nowhere; of tiles also `example` [B], see pipeline.py.
    returns_logits: whether to return `logits` and `mask`.
    **network: the further arguments of `predict_step`.

  Returns:
    `confusion` int32 [B, C, C]; `weight` and `example` [B] as given;
    `loss_total` and `loss_count` {term: scalar}; `prediction` uint8
    [B, H', W']; perhaps `logits` float32 [B, H', W', K] and `mask` uint8
    [B, H', W'].
  """
  logits = step.predict_step(variables, batch['image'], **network)
  size = logits.shape[1:-1]
  mask, weight_map = steps.targets(batch, size)
  padding = (batch['weight'] == 0)[:, *(None for _ in size)]
  mask = jnp.where(padding, fields.IGNORE_LABEL, mask)
  prediction = probabilities.predict(logits)
  return {
    'confusion': confusion.confusion_counts(
      mask, prediction, max(logits.shape[-1], 2)
    ),
    **{k: batch[k] for k in ('weight', 'example') if k in batch},
    'loss_total': losses.totals(logits, mask, loss_spec, weight_map),
    'loss_count': losses.counts(mask, loss_spec, weight_map),
    'prediction': prediction,
    **({'logits': logits, 'mask': mask} if returns_logits else {}),
  }
