"""Losses of the coarser decoder stages (model.deep_supervision).

Lee et al. 2015, https://arxiv.org/abs/1409.5185; as in nnU-Net, each stage has
a head, and its loss is added with a weight.
"""

from collections.abc import Iterable, Iterator

import jax

from unet_jax.training import losses

Array = jax.Array
# Mask and weight map (or None), [B, H, W].
Target = tuple[Array, Array | None]


def stage_losses(
  weighted_logits: Iterable[tuple[float, Array]],
  target: Target,
  batch_target: Target,
  spec: losses.LossSpec,
) -> Iterator[Array]:
  """Yields the weighted losses of stages 1, 2, ... on a part of a batch.

  Args:
    weighted_logits: of each stage, its weight and the part's logits.
    target: the part's.
    batch_target: the batch's, over whose pixels the losses are means.
    spec: which losses.
  """
  for stage, (weight, logits) in enumerate(weighted_logits, 1):
    size = logits.shape[1:-1]
    mask, weight_map = _coarse(*target, stage, size)
    batch_mask, batch_map = _coarse(*batch_target, stage, size)
    yield weight * losses.weighted_sum(
      losses.totals(logits, mask, spec, weight_map),
      losses.counts(batch_mask, spec, batch_map),
      spec,
    )


def _coarse(
  mask: Array, weight_map: Array | None, stage: int, size: tuple[int, ...]
) -> Target:
  """Returns mask and weight map for the logits of a coarser decoder stage.

  Args:
    mask: [B, H, W].
    weight_map: [B, H, W] or None.
    stage: 1, 2, ...; a pixel of its logits covers 2**stage x 2**stage pixels.
    size: of its logits.

  Returns:
    [B, *size]: of each square, the pixel nearest to its middle.
  """
  edge = 2**stage
  rest = (slice(edge // 2, edge // 2 + n * edge, edge) for n in size)
  index = (slice(None), *rest)
  return mask[index], None if weight_map is None else weight_map[index]
