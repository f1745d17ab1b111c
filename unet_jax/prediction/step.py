"""The prediction step: a pure function, jitted by its callers."""

from typing import Any

from unet_jax.models import averaging as averaging_lib
from unet_jax.models import unet
from unet_jax.training import steps


def predict_step(
  variables: dict[str, Any],
  image: steps.Array,
  *,
  model: unet.UNet,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  averaging: averaging_lib.Averaging = averaging_lib.NONE,
) -> steps.Array:
  """Returns float32 logits [B, H', W', classes] of uint8 images.

  With `averaging` they are those of averaged probabilities, see averaging.py.
  """
  apply = lambda variables, image: model.apply(variables, image, train=False)
  image = steps.normalize(image, mean, std)
  return averaging_lib.averaged_logits(apply, variables, image, averaging)
