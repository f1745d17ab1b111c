"""The training step: a pure function, and its jitted form for a config.

Batches are dicts with `image` uint8 [B, H, W, C], `mask` uint8 [B, H, W] and,
where the config asks for one, `weight_map` float16 [B, H, W]. Normalising,
augmenting and cropping masks to the logits are part of the step. Volumes have
an axis D before H.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from unet_jax.data import augment
from unet_jax.models import resample, rows, unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.runtime import program
from unet_jax.training import deep_supervision, losses
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import update as update_lib
from unet_jax.training.deep_supervision import Target
from unet_jax.training.state import PyTree, TrainState

Array = jax.Array
Batch = dict[str, Array]


def make_train_step(
  config: ml_collections.ConfigDict,
  model: unet.UNet,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  state: TrainState,
) -> jax.stages.Wrapped:
  """Returns `step(state, batch, key)`, jitted, which donates the state.

  The state here has arrays or their shapes.
  """
  shardings = mesh_lib.state_sharding(mesh, state)
  return jax.jit(
    functools.partial(
      rows.split(mesh, train_step),
      model=model,
      update=update_lib.make_update(
        config, optimizer, model.native and mesh.size == 1
      ),
      schedule=optimizer_lib.make_schedule(config),
      augmentation=augment.make_augmentation(config),
      loss_spec=losses.make_spec(config),
      mean=config.data.mean,
      std=config.data.std,
      accumulate_steps=config.optimizer.accumulate_steps,
      gather=functools.partial(mesh_lib.gather, mesh),
    ),
    out_shardings=(shardings, mesh_lib.replicated(mesh)),
    donate_argnums=0,
    compiler_options=program.compiler_options(mesh),
  )


def train_step(
  state: TrainState,
  batch: Batch,
  key: Array,
  *,
  model: unet.UNet,
  update: update_lib.Update,
  schedule: optax.Schedule,
  augmentation: augment.Augmentation,
  loss_spec: losses.LossSpec,
  mean: Sequence[float],
  std: Sequence[float],
  accumulate_steps: int = 1,
  gather: Callable[[PyTree], PyTree] = lambda params: params,
) -> tuple[TrainState, dict[str, Array]]:
  """Updates the parameters once.

  Args:
    state: is donated by the caller.
    batch: `image`, `mask` and perhaps `weight_map`, which weighs the loss.
    key: root key of the run; all randomness depends on it and the step alone.
    model: its logits are trained.
    update: applies the gradient of the mean loss of the batch.
    schedule: the optimiser's, to report its learning rate.
    augmentation: applied to image and mask together.
    mean, std: per channel, of values in 0..1.
    accumulate_steps: parts of the batch, run one after the other.
    gather: makes parameters that are split over devices whole.

  Returns:
    The new state, and float32 scalars: `loss`, `grad_norm` (before clipping),
    `learning_rate` and those of `_loss_terms`.
  """
  batch, dropout_key = augment_batch(batch, key, state.step, augmentation)
  image = batch['image']
  target = targets(batch, model.output_size(image.shape[1:-1]))
  count = losses.counts(target[0], loss_spec, target[1])
  loss_fn = _make_loss(model, loss_spec, mean, std, target, count, gather)
  grads, total, batch_stats = _accumulated_gradients(
    loss_fn, state, (image, *target), dropout_key, accumulate_steps
  )
  new_state, norm = update(state, grads, batch_stats)
  metrics = {
    'loss': losses.weighted_sum(total, count, loss_spec),
    'grad_norm': norm,
    'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
    **_loss_terms(total, count, loss_spec),
  }
  return new_state, metrics


def normalize(
  image: Array, mean: Sequence[float], std: Sequence[float]
) -> Array:
  """uint8 [B, H, W, C] to float32 (value / 255 - mean) / std, per channel."""
  center, scale = jnp.asarray(mean), jnp.asarray(std)
  return image.astype(jnp.float32) * (1 / (255 * scale)) - center / scale


def augment_batch(
  batch: Batch, key: Array, step: Array, augmentation: augment.Augmentation
) -> tuple[Batch, Array]:
  """Returns the batch that a step trains on, and the key of its dropout.

  Args:
    batch: as in `train_step`.
    step: number of updates done.
    augmentation: applied to all entries of the batch together.
  """
  augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, step))
  return augmentation(augment_key, batch), dropout_key


def targets(batch: Batch, size: Sequence[int]) -> Target:
  """Returns a batch's mask and weight map, cropped to the logits' size."""
  crop = lambda x: resample.center_crop(x, *size)
  weight_map = crop(batch['weight_map']) if 'weight_map' in batch else None
  return crop(batch['mask']), weight_map


def _make_loss(
  model: unet.UNet,
  spec: losses.LossSpec,
  mean: Sequence[float],
  std: Sequence[float],
  batch_target: Target,
  count: dict[str, Array],
  gather: Callable[[PyTree], PyTree],
) -> Callable[..., tuple[Array, tuple[dict[str, Array], PyTree]]]:
  """Returns the loss of a part of a batch, divided by the whole batch's count.

  It takes `params`, `batch_stats`, the part's (image, mask, weight map) and a
  key of dropout, and returns the loss and, besides, {term: total} and the batch
  statistics after the part.
  """

  def loss_fn(params, batch_stats, inputs, key):
    image, mask, weight_map = inputs
    logits, updates = model.apply(
      {'params': gather(params), 'batch_stats': batch_stats},
      normalize(image, mean, std),
      train=True,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )
    coarse_logits: tuple[Array, ...] = ()
    if model.deep_supervision:
      logits, coarse_logits = logits
    total = losses.totals(logits, mask, spec, weight_map)
    loss = losses.weighted_sum(total, count, spec)
    weighted = zip(model.deep_supervision, coarse_logits)
    for more in deep_supervision.stage_losses(
      weighted, (mask, weight_map), batch_target, spec
    ):
      loss += more
      total['deep_supervision'] = total.get('deep_supervision', 0.0) + more
    return loss, (total, updates.get('batch_stats', {}))

  return loss_fn


def _accumulated_gradients(
  loss_fn: Callable[..., Any],
  state: TrainState,
  inputs: tuple[Array, Array, Array | None],
  key: Array,
  parts: int,
) -> tuple[PyTree, dict[str, Array], PyTree]:
  """Sums gradients and loss totals over equal parts of the batch.

  Since every part is divided by the whole batch's count, the sum is the
  gradient of the whole batch's loss, ignored pixels or not. Part j takes images
  j, j + parts, ..., so that each device keeps the images that it has.

  Returns:
    Gradients, {term: total}, and the batch statistics after the last part.
  """
  gradient = jax.grad(loss_fn, has_aux=True)
  if parts == 1:
    grads, (total, stats) = gradient(
      state.params, state.batch_stats, inputs, key
    )
    return grads, total, stats
  split = lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

  def body(carry, part):
    grads, total, stats = carry
    more_grads, (more_total, stats) = gradient(state.params, stats, *part)
    add = lambda a, b: jax.tree.map(jnp.add, a, b)
    return (add(grads, more_grads), add(total, more_total), stats), None

  part = (jax.tree.map(split, inputs), jax.random.split(key, parts))
  first = jax.tree.map(lambda x: x[0], part)
  _, (total, _) = jax.eval_shape(
    gradient, state.params, state.batch_stats, *first
  )
  zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
  carry = (zeros(state.params), zeros(total), state.batch_stats)
  carry, _ = jax.lax.scan(body, carry, part)
  return carry


def _loss_terms(
  total: dict[str, Array], count: dict[str, Array], spec: losses.LossSpec
) -> dict[str, Array]:
  """Returns `loss/TERM`, where there are several terms.

  And `loss/deep_supervision`, which the coarser heads add to the loss for the
  gradient.
  """
  terms = {}
  if len(spec.weights) > 1:
    for name, _ in spec.weights:
      alone = spec._replace(weights=((name, 1.0),))
      terms[f'loss/{name}'] = losses.weighted_sum(total, count, alone)
  if 'deep_supervision' in total:
    terms['loss/deep_supervision'] = total['deep_supervision']
  return terms
