"""The evaluation step: a pure function, jitted by its callers."""

from typing import Any

import jax.numpy as jnp

from unet_jax.config import fields
from unet_jax.evaluation import confusion
from unet_jax.prediction import probabilities, step
from unet_jax.training import losses, steps


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
