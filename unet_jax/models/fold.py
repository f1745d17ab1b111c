"""Batch norms of a trained network as parts of its convolutions.

In prediction a batch norm is a factor and a shift of each channel. With the
factor in the kernel and the shift as bias, a native convolution is one pass;
elsewhere the compiler joins a norm and its activation anyhow.
"""

import functools
from typing import Any

import jax

from unet_jax.models import unet

PyTree = Any


def without_norms(model: unet.UNet) -> unet.UNet:
  """Returns the network that predicts with the variables of `fold`."""
  return model.clone(norm='none') if _folds(model) else model


def fold(
  model: unet.UNet, variables: dict[str, PyTree], members: int = 1
) -> dict[str, PyTree]:
  """Returns the variables with which `without_norms` predicts the same.

  Args:
    model: if it is not native or its norm not `batch`, nothing changes.
    variables: `params` and `batch_stats`; of several members, stacked.
  """
  return _fold(model, variables, members) if _folds(model) else variables


def _folds(model: unet.UNet) -> bool:
  return model.native and model.norm == 'batch'


@functools.partial(jax.jit, static_argnums=(0, 2))
def _fold(
  model: unet.UNet, variables: dict[str, PyTree], members: int
) -> dict[str, PyTree]:
  layers = functools.partial(_fold_layers, epsilon=model.norm_epsilon)
  if members > 1:
    layers = jax.vmap(layers)
  return {'params': layers(variables['params'], variables['batch_stats'])}


def _fold_layers(params: PyTree, stats: PyTree, epsilon: float) -> PyTree:
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
      folded[name] = _fold_layers(layer, stats[name], epsilon)
    elif name not in stats:
      folded[name] = layer
  return folded
