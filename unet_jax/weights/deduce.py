"""The network that a file of weights belongs to, as far as the file shows."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from unet_jax.weights import files, keras_graph, naming

Fields = dict[str, Any]

# Fields that change the output but cannot be recovered from parameter names or
# shapes.
UNRECOVERABLE = (
  'data.mean',
  'data.std',
  'model.downsample',
  'model.norm_epsilon',
  'model.activation',
  'model.padding',
)
# The fields of github.com/milesial/Pytorch-UNet, with their values.
MILESIAL = {
  'model.spatial_dims': (2,),
  'model.upsample': ('transpose', 'bilinear_corners'),
  'model.downsample': ('max',),
  'model.stem': ('none',),
  'model.block': ('plain',),
  'model.convs': (2,),
  'model.kernel_size': (3,),
  'model.squeeze_excite': (0,),
  'model.deep_supervision': ((),),
  'model.skip': ('concat',),
  'model.norm': ('batch',),
  'model.norm_epsilon': (1e-5,),
  'model.activation': ('relu',),
  'model.padding': ('same',),
}


def fields_of_arrays(arrays: dict[str, np.ndarray]) -> tuple[Fields, list[str]]:
  """Returns the fields that our names, and shapes in our layout, show.

  Returns:
    {'section.field': value}, {} for another network; and a line for each choice
    that names and shapes leave open.
  """
  stages = {m[1] for k in arrays if (m := re.match(r'down_(\d+)/', k))}
  depth = len(stages)
  blocks = [f'down_{i}' for i in range(depth)] + ['bottleneck']
  needed = [*(f'{block}/conv1/kernel' for block in blocks), 'head/kernel']
  if not set(needed) <= set(arrays):
    return {}, []
  *kernels, head = (arrays[name] for name in needed)
  widths = [kernel.shape[-1] for kernel in kernels]
  fields: Fields = {
    'data.num_channels': kernels[0].shape[-2],
    'data.num_classes': head.shape[-1],
    'model.depth': depth,
    'model.base_features': widths[0],
    'model.max_features': max(widths),
    'model.convs': sum(
      bool(re.fullmatch(r'bottleneck/conv\d+/kernel', k)) for k in arrays
    ),
    'model.kernel_size': kernels[0].shape[0],
  }
  doubled = [min(widths[0] * 2**i, max(widths)) for i in range(depth + 1)]
  if widths != doubled:
    fields['model.features'] = tuple(widths)
  fields['model.norm'], unsure = _norm(arrays)
  if depth:
    found, lines = _upsampling(arrays, widths)
    fields |= found
    unsure += lines
  return fields, unsure


def _norm(arrays: dict[str, np.ndarray]) -> tuple[str, list[str]]:
  if 'bottleneck/norm1/mean' in arrays:
    return 'batch', []
  if not any(k.startswith('bottleneck/norm1/') for k in arrays):
    return 'none', []
  # Only before instance norm do our convolutions have no bias.
  if 'bottleneck/conv1/bias' not in arrays:
    return 'instance', [
      'the file leaves open whether model.norm is instance, group or layer'
    ]
  return 'group', [
    'the file leaves open whether model.norm is group, instance or layer, and '
    'model.norm_groups'
  ]


def _upsampling(
  arrays: dict[str, np.ndarray], widths: list[int]
) -> tuple[Fields, list[str]]:
  kernel = arrays.get('upsample_0/conv/kernel')
  size = 0 if kernel is None else kernel.shape[0]
  fields: Fields
  unsure = []
  if kernel is not None and 4 * kernel.shape[-2] == widths[1]:
    fields = {'model.upsample': 'pixel_shuffle', 'model.upsample_kernel': size}
  elif size == 2:
    fields = {'model.upsample': 'transpose'}
  else:
    # Only PyTorch's twin is known to align corners; see `of_milesial`.
    fields = {'model.upsample': 'nearest', 'model.upsample_kernel': size}
    unsure.append(
      'the file leaves open whether model.upsample is nearest or bilinear'
    )
  joined = arrays.get('up_0/conv1/kernel')
  if joined is not None:
    is_concat = joined.shape[-2] == 2 * widths[0]
    fields['model.skip'] = 'concat' if is_concat else 'add'
    if not is_concat:
      unsure.append('the file leaves open whether model.skip is add or none')
  return fields, unsure


def of_milesial(file: files.WeightFile) -> tuple[Fields, list[str]]:
  """Returns the fields of a network that has milesial's names.

  Its images are RGB or grey in 0..1, without a mean taken off.
  """
  weights = naming.from_milesial(file)
  fields, unsure = fields_of_arrays(weights.arrays)
  if not fields:
    return {}, []
  if fields.get('model.upsample') == 'nearest':
    fields['model.upsample'] = 'bilinear_corners'
  unsure = [line for line in unsure if 'model.upsample' not in line]
  fields |= {f: MILESIAL[f][0] for f in UNRECOVERABLE if f in MILESIAL}
  channels = fields['data.num_channels']
  fields |= {'data.mean': (0.0,) * channels, 'data.std': (1.0,) * channels}
  values = file.others.get('mask_values')
  if values:
    # The n-th value that its masks have is class n.
    fields['data.mask_values'] = tuple(
      (tuple(v) if isinstance(v, list | tuple) else v, i)
      for i, v in enumerate(values)
    )
  return fields, unsure


def of_keras(
  file: files.WeightFile, order_of: Callable[[Fields], list[tuple[str, str]]]
) -> tuple[Fields, list[str]]:
  """Returns the fields of a Keras network.

  `order_of` gives `modules_in_order` of the network with some fields changed.
  """
  for structure in _structures(file):
    weights = naming.from_keras(file, order_of(structure))
    fields, unsure = fields_of_arrays(weights.arrays)
    # The numbers of layers may fit where their order does not.
    if weights.rest or not fields or not _chains(weights.arrays):
      continue
    if file.graph is None:
      unsure.append(
        'a file of weights alone leaves open model.norm_epsilon (1e-3 unless '
        "set, in Keras) and the order of Concatenate's inputs (weights.concat)"
      )
      return fields, unsure
    described = keras_graph.fields(file.graph)
    unsure = [x for x in unsure if not any(field in x for field in described)]
    return fields | described, unsure
  return {}, []


def _structures(file: files.WeightFile) -> Iterator[Fields]:
  """Yields plain U-Nets that have as many layers of each kind as a file."""
  kinds = [naming.keras_kind(layer) for layer in file.layers]
  convs, transposed = kinds.count('conv'), kinds.count('transpose')
  norms = {layer.kind for layer in file.layers if 'norm' in layer.kind}
  norm = {'batch_normalization': 'batch', 'group_normalization': 'group'}
  fields: Fields = {
    'model.norm': norm.get(norms.pop(), 'none') if norms else 'none'
  }
  for depth in range(7):
    fields['model.depth'] = depth
    if transposed == depth and convs == 4 * depth + 3:
      yield {**fields, 'model.upsample': 'transpose'}
    elif not transposed and convs == 4 * depth + 3:
      yield {**fields, 'model.upsample': 'nearest', 'model.upsample_kernel': 0}
    elif not transposed and convs == 5 * depth + 3:
      yield {**fields, 'model.upsample': 'nearest', 'model.upsample_kernel': 1}


def _chains(arrays: dict[str, np.ndarray]) -> bool:
  """Whether each convolution of the encoder takes what the one before gives."""
  kernels = [
    array
    for name, array in arrays.items()
    if re.match(r'(down_\d+|bottleneck)/conv\d/kernel', name)
  ]
  return all(a.shape[-1] == b.shape[-2] for a, b in zip(kernels, kernels[1:]))
