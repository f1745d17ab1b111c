"""Batch norms of a trained network as parts of its convolutions."""

from typing import Any

import jax

from unet_jax.models import unet

PyTree = Any


def fold_batch_norm(
  model: unet.UNet, variables: dict[str, PyTree]
) -> tuple[unet.UNet, dict[str, PyTree]]:
  """Returns a network without norms that computes the same.

  In prediction a batch norm is a factor and a shift of each channel. With the
  factor in the kernel and the shift as bias, a convolution is one pass.

  Args:
    model: is returned as it is, unless its norm is `batch`.
    variables: `params` and `batch_stats`.
  """
  if model.norm != 'batch':
    return model, variables
  params = _fold(
    variables['params'], variables['batch_stats'], model.norm_epsilon
  )
  return model.clone(norm='none'), {'params': params}


def _fold(params: PyTree, stats: PyTree, epsilon: float) -> PyTree:
  folded = {}
  for name, layer in params.items():
    # Of a layer `conv1` or `shortcut`; a layer `norm1` has no norm.
    norm = name.replace('conv', 'norm') if 'conv' in name else f'{name}_norm'
    if norm in stats:
      scale, shift = params[norm]['scale'], params[norm]['bias']
      factor = scale * jax.lax.rsqrt(stats[norm]['var'] + epsilon)
      folded[name] = {
        'kernel': layer['kernel'] * factor,
        'bias': shift - stats[norm]['mean'] * factor,
      }
    elif name in stats and 'mean' not in stats[name]:
      folded[name] = _fold(layer, stats[name], epsilon)
    elif name not in stats:
      folded[name] = layer
  return folded
