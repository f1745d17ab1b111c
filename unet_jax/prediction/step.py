"""The prediction step: a pure function, and that of windows, jitted."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from unet_jax.models import fold, unet
from unet_jax.models.ensemble import Ensemble, ensemble_logits, SINGLE
from unet_jax.runtime import program
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


def make_window_step(
  config: ml_collections.ConfigDict,
  model: unet.UNet,
  ensemble: Ensemble,
  mesh: Mesh,
) -> jax.stages.Wrapped:
  """Returns `step(variables, image, weights)`, jitted, see `_window_step`.

  It takes the variables of `fold`.
  """
  return jax.jit(
    functools.partial(
      _window_step,
      model=fold.without_norms(model),
      mean=config.data.mean,
      std=config.data.std,
      ensemble=ensemble,
    ),
    compiler_options=program.compiler_options(mesh),
  )


def _window_step(
  variables: Any, image: jax.Array, weights: jax.Array | None, **kwargs: Any
) -> jax.Array:
  """Logits of windows, float32 [B, H', W', K], times their weights."""
  logits = predict_step(variables, image, **kwargs)
  return logits if weights is None else logits * weights
