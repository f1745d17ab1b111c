"""The steps that run on the device: pure functions, jitted by their callers.

Batches are dicts with `image` uint8 [B, H, W, C], `mask` uint8 [B, H, W] and,
where the config asks for one, `weight_map` float16 [B, H, W]; normalising,
augmenting and cropping masks to the logits happen in here. Of volumes, there is
an axis D before H.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from unet_jax.data import augment
from unet_jax.models import blocks, unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.runtime import program
from unet_jax.training import losses
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training.state import TrainState

Array = jax.Array
Batch = dict[str, Array]


def normalize(image: Array, mean, std) -> Array:
  """uint8 [B, H, W, C] to float32 (value / 255 - mean) / std, per channel."""
  mean, std = jnp.asarray(mean), jnp.asarray(std)
  return image.astype(jnp.float32) * (1 / (255 * std)) - mean / std


def augment_batch(
  batch: Batch, key: Array, step: Array, augmentation: augment.Augmentation
) -> tuple[Batch, Array]:
  """Returns the batch that a step trains on, and the key of its dropout.

  Args:
    batch: as in `train_step`.
    key: root key of the run.
    step: number of updates done.
    augmentation: applied to all entries of the batch together.
  """
  augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, step))
  return augmentation(augment_key, batch), dropout_key


def train_step(
  state: TrainState,
  batch: Batch,
  key: Array,
  *,
  model: unet.UNet,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  augmentation: augment.Augmentation,
  loss_spec: losses.LossSpec,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  ema_decay: float = 0.0,
  accumulate_steps: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
  """One update of the parameters.

  Args:
    state: is donated by the caller.
    batch: `image` uint8 [B, H, W, C], `mask` uint8 [B, H, W] and perhaps
      `weight_map` float16 [B, H, W], which weighs the loss.
    key: root key of the run; what is random depends on it and on the step only.
    model: its logits are trained.
    optimizer: applied to the gradient of the mean loss of the batch.
    schedule: the optimiser's, to report its learning rate.
    augmentation: applied to image and mask together.
    loss_spec: see losses.py.
    mean: per channel, of values in 0..1; likewise std.
    std: see mean.
    ema_decay: 0 where the state keeps no average.
    accumulate_steps: parts that the batch is run in, one after the other.

  Returns:
    The new state, and float32 scalars: `loss`, `grad_norm` (before clipping),
    `learning_rate`, `loss/TERM` where there are several terms, and
    `loss/deep_supervision`, what the heads of the coarser stages add to `loss`
    for the gradient.
  """
  batch, dropout_key = augment_batch(batch, key, state.step, augmentation)
  image = batch['image']
  target = targets(batch, model.output_size(image.shape[1:-1]))
  count = losses.counts(target[0], loss_spec, target[1])

  def loss_fn(params, batch_stats, inputs, key):
    image, mask, weight_map = inputs
    logits, updates = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      normalize(image, mean, std),
      train=True,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )
    coarse_logits = ()
    if model.deep_supervision:
      logits, coarse_logits = logits
    total = losses.totals(logits, mask, loss_spec, weight_map)
    loss = losses.weighted_sum(total, count, loss_spec)
    for i, coarse in enumerate(coarse_logits):
      size, weight = coarse.shape[1:-1], model.deep_supervision[i]
      part = coarse_targets(mask, weight_map, i + 1, size)
      # Of the whole batch, as `count` is.
      whole = coarse_targets(*target, i + 1, size)
      more = weight * losses.weighted_sum(
        losses.totals(coarse, part[0], loss_spec, part[1]),
        losses.counts(whole[0], loss_spec, whole[1]),
        loss_spec,
      )
      loss += more
      total['deep_supervision'] = total.get('deep_supervision', 0.0) + more
    return loss, (total, updates.get('batch_stats', {}))

  grads, total, batch_stats = _accumulated_gradients(
    loss_fn, state, (image, *target), dropout_key, accumulate_steps
  )
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  new_state = state.replace(
    step=state.step + 1,
    params=params,
    batch_stats=batch_stats,
    opt_state=opt_state,
  )
  if ema_decay:
    new_state = _update_ema(new_state, state.step, ema_decay)
  figures = {
    'loss': losses.weighted_sum(total, count, loss_spec),
    'grad_norm': optax.tree.norm(grads),
    'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
  }
  if len(loss_spec.weights) > 1:
    for name, _ in loss_spec.weights:
      alone = loss_spec._replace(weights=((name, 1.0),))
      figures[f'loss/{name}'] = losses.weighted_sum(total, count, alone)
  if model.deep_supervision:
    figures['loss/deep_supervision'] = total['deep_supervision']
  return new_state, figures


def targets(batch: Batch, shape) -> tuple[Array, Array | None]:
  """A batch's mask and weight map (or None), cropped to the logits' size."""
  crop = lambda x: blocks.center_crop(x, *shape)
  weight_map = crop(batch['weight_map']) if 'weight_map' in batch else None
  return crop(batch['mask']), weight_map


def coarse_targets(
  mask: Array, weight_map: Array | None, stage: int, size: tuple[int, ...]
) -> tuple[Array, Array | None]:
  """A mask and weight map as the head of a decoder stage is compared with them.

  Args:
    mask: [B, H, W].
    weight_map: [B, H, W] or None.
    stage: 1, 2, ...; a pixel of its logits covers 2**stage x 2**stage pixels.
    size: of its logits.

  Returns:
    [B, *size]: of each square, the pixel nearest to its middle.
  """
  edge = 2**stage
  index = tuple(slice(edge // 2, edge // 2 + n * edge, edge) for n in size)
  take = lambda x: None if x is None else x[(slice(None), *index)]
  return take(mask), take(weight_map)


def _accumulated_gradients(loss_fn, state, inputs, key, parts):
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


def _update_ema(state: TrainState, step: Array, decay: float) -> TrainState:
  """Moves the averages towards the state's new values.

  The rate grows with the step, so that the initial values are soon forgotten.
  """
  step = step.astype(jnp.float32)
  rate = jnp.minimum(decay, (1 + step) / (10 + step))
  average = lambda old, new: jax.tree.map(
    lambda a, b: a + (1 - rate) * (b - a), old, new
  )
  return state.replace(
    ema_params=average(state.ema_params, state.params),
    ema_batch_stats=average(state.ema_batch_stats, state.batch_stats),
  )


def make_train_step(config, model, optimizer, mesh, state):
  """Returns `steps.train_step` of a config, jitted; it donates the state."""
  shardings = mesh_lib.state_sharding(mesh, state)
  return jax.jit(
    functools.partial(
      train_step,
      model=model,
      optimizer=optimizer,
      schedule=optimizer_lib.make_schedule(config),
      augmentation=augment.make_augmentation(config),
      loss_spec=losses.make_spec(config),
      mean=config.data.mean,
      std=config.data.std,
      ema_decay=config.optimizer.ema_decay,
      accumulate_steps=config.optimizer.accumulate_steps,
    ),
    out_shardings=(shardings, mesh_lib.replicated(mesh)),
    donate_argnums=0,
    compiler_options=program.compiler_options(mesh),
  )
