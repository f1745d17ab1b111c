"""The configured network on a real batch, before a training is started."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import augment, examples, pipeline, prepare, sources
from unet_jax.inspection import records
from unet_jax.kernels import build
from unet_jax.models import unet
from unet_jax.runtime import errors
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import losses, steps
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import state as state_lib

# Images of the batch that the page shows.
_SHOWN = 16


def try_step(
  source: examples.Source,
  measurements: records.Measurements,
  config: ml_collections.ConfigDict,
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
  """Does one training step.

  Args:
    source: of the split to train on.
    measurements: of all its examples.

  Returns:
    Metrics and sizes of the step, or the `error` that prevents it; and images
    of the batch as the network gets them, see `page.write`.
  """
  usable = [m.index for m in measurements if m.error is None]
  if not usable:
    return {'error': f'no pair of {source.split} can be used'}, []
  spread = np.linspace(0, len(usable) - 1, config.data.batch_size, dtype=int)
  chosen = np.unique(np.array(usable)[spread])
  try:
    return _step(sources.Subset(source, chosen, source.split), config)
  except errors.UserError as e:
    return {'error': str(e)}, []
  except jax.errors.JaxRuntimeError as e:
    reason = str(e).splitlines()[0]
    return {
      'error': f'the step cannot run ({reason}); lower data.batch_size, '
      'data.image_size or model.base_features'
    }, []


def _step(
  source: examples.Source, config: ml_collections.ConfigDict
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
  config = config.copy_and_resolve_references()
  config.data.cache = 'memory'
  mesh = mesh_lib.make_mesh(config)
  model = unet.create_model(config, build.choose(config, mesh))
  size = tuple(config.data.image_size)
  output = model.output_size(size)
  batches = pipeline.train_batches(
    prepare.prepare_source(source, config), config, mesh
  )
  try:
    batch = next(batches)
  finally:
    batches.close()
  optimizer = optimizer_lib.make_optimizer(config)
  # The keys of a training's first step.
  root = jax.random.key(config.seed)
  key = jax.random.fold_in(root, 1)
  augmentation = augment.make_augmentation(config)
  augmented, _ = jax.jit(
    functools.partial(steps.augment_batch, augmentation=augmentation)
  )(batch, key, 0)
  state = state_lib.create_train_state(
    jax.random.fold_in(root, 0), config, model, optimizer, mesh
  )
  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  train_step = steps.make_train_step(config, model, optimizer, mesh, state)
  _, on_device = train_step(state, batch, key)
  metrics = {k: float(v) for k, v in jax.device_get(on_device).items()}
  augmented = jax.device_get(augmented)
  masks, weight_map = jax.device_get(steps.targets(augmented, output))
  normalized = np.asarray(
    steps.normalize(augmented['image'], config.data.mean, config.data.std)
  )
  described = {
    'input': [*size, config.data.num_channels],
    'output': list(output),
    'mask': list(masks.shape[1:]),
    'parameters': parameters,
    'loss': metrics['loss'],
    'expected_loss': _expected_loss(masks, weight_map, config),
    'terms': {k: v for k, v in metrics.items() if k.startswith('loss/')},
    'grad_norm': metrics['grad_norm'],
    'input_mean': normalized.mean((0, 1, 2), np.float64).tolist(),
    'input_std': normalized.std((0, 1, 2), np.float64).tolist(),
    'error': None,
  }
  return described, _pictures(augmented['image'], masks, weight_map)


def _pictures(
  images: np.ndarray, masks: np.ndarray, weight_map: np.ndarray | None
) -> list[dict[str, np.ndarray]]:
  pictures = [
    {
      'image': np.clip(np.rint(image), 0, 255).astype(np.uint8),
      'mask': np.asarray(mask),
    }
    for image, mask in zip(images[:_SHOWN], masks)
  ]
  if weight_map is not None:
    for picture, w in zip(pictures, weight_map):
      ignored = picture['mask'] == fields.IGNORE_LABEL
      picture['weight_map'] = np.where(ignored, 0, w).astype(np.float32)
  return pictures


def _expected_loss(
  masks: jax.Array,
  weight_map: jax.Array | None,
  config: ml_collections.ConfigDict,
) -> float:
  """The loss of a network that finds all classes equally likely.

  The cross-entropy's is the log of the number of classes.
  """
  spec = losses.make_spec(config)
  logits = jnp.zeros((*masks.shape, config.data.num_classes))
  total = losses.totals(logits, masks, spec, weight_map)
  count = losses.counts(masks, spec, weight_map)
  return float(losses.weighted_sum(total, count, spec))


def find(network: Mapping[str, Any]) -> list[records.Finding]:
  """Returns the findings on a step, see `try_step`."""
  if network['error']:
    return [records.Finding('error', 'no batch', '', network['error'])]
  loss, expected = network['loss'], network['expected_loss']
  if not np.isfinite([loss, network['grad_norm']]).all():
    text = (
      f'the first loss is {loss} and the gradient norm {network["grad_norm"]}; '
      'look at data.mean, data.std and the loss weights'
    )
    return [records.Finding('error', 'loss not finite', '', text)]
  found = []
  if not network['grad_norm']:
    text = (
      'the gradient of the first batch is 0: nothing to learn from; are all '
      'masks ignored?'
    )
    found.append(records.Finding('error', 'no gradient', '', text))
  if loss > 3 * expected or loss < expected / 3:
    text = (
      f'the first loss, {loss:.3f}, is far from that of equally likely '
      f'classes, {expected:.3f}; look at data.mean and data.std'
    )
    found.append(records.Finding('warning', 'loss at start', '', text))
  mean, std = np.array(network['input_mean']), np.array(network['input_std'])
  if np.any(np.abs(mean) > 1.5) or np.any((std < 0.3) | (std > 3)):
    text = (
      f'the network sees mean {np.round(mean, 2).tolist()} and standard '
      f'deviation {np.round(std, 2).tolist()} per channel, expected about 0 '
      'and 1; set data.mean and data.std'
    )
    found.append(records.Finding('warning', 'normalisation', '', text))
  return found
