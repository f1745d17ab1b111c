"""The prediction step: a pure function, jitted by its callers."""

from collections.abc import Callable
from typing import Any

from unet_jax.models import unet
from unet_jax.models.ensemble import Ensemble, ensemble_logits, SINGLE
from unet_jax.training import steps


def predict_step(
  variables: dict[str, Any],
  image: steps.Array,
  *,
  model: unet.UNet,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  ensemble: Ensemble = SINGLE,
) -> steps.Array:
  """Predicts a batch.

  Args:
    variables: `params` and `batch_stats`; of several networks, stacked.
    image: uint8 [B, H, W, C], or [B, D, H, W, C] of volumes.
    model: applied with its running statistics, without dropout.
    mean, std: per channel, of values in 0..1.

  Returns:
    Logits, float32 [B, H', W', K] with one channel per class, or K = 1 for a
    sigmoid; with `ensemble`, logits of the averaged probabilities.
  """
  apply: Callable[..., Any] = lambda variables, image: model.apply(
    variables, image, train=False
  )
  image = steps.normalize(image, mean, std)
  return ensemble_logits(apply, variables, image, ensemble)
