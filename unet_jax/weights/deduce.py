"""The network that a file of weights belongs to, as far as the file tells."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from unet_jax.runtime import errors
from unet_jax.weights import files, naming

Fields = dict[str, Any]

# What changes the function of a network but neither names nor shapes.
UNTOLD = (
  'data.mean',
  'data.std',
  'model.downsample',
  'model.norm_epsilon',
  'model.activation',
  'model.padding',
)
# What github.com/milesial/Pytorch-UNet computes, field by field.
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


def fields_of_arrays(
  arrays: dict[str, np.ndarray],
) -> tuple[Fields, list[str]]:
  """Returns what names and shapes tell.

  Args:
    arrays: by our name, in our layout.

  Returns:
    {'section.field': value}, and a line for each choice that they leave open.
  """
  first = arrays.get(
    'down_0/conv1/kernel', arrays.get('bottleneck/conv1/kernel')
  )
  head = arrays.get('head/kernel')
  if first is None or head is None:
    return {}, []
  stages = {m[1] for k in arrays if (m := re.match(r'down_(\d+)/', k))}
  depth = len(stages)
  blocks = [f'down_{i}' for i in range(depth)] + ['bottleneck']
  kernels = [arrays.get(f'{block}/conv1/kernel') for block in blocks]
  if any(kernel is None for kernel in kernels):
    return {}, []
  widths = [kernel.shape[-1] for kernel in kernels]
  fields: Fields = {
    'data.num_channels': first.shape[-2],
    'data.num_classes': head.shape[-1],
    'model.depth': depth,
    'model.base_features': widths[0],
    'model.max_features': max(widths),
    'model.convs': sum(
      bool(re.fullmatch(r'bottleneck/conv\d+/kernel', k)) for k in arrays
    ),
    'model.kernel_size': first.shape[0],
  }
  doubled = [min(widths[0] * 2**i, max(widths)) for i in range(depth + 1)]
  if widths != doubled:
    fields['model.features'] = tuple(widths)
  unsure = []
  norm, line = _norm(arrays)
  fields['model.norm'] = norm
  unsure += line
  if depth:
    found, line = _upsampling(arrays, widths)
    fields |= found
    unsure += line
  return fields, unsure


def _norm(arrays: dict[str, np.ndarray]) -> tuple[str, list[str]]:
  if 'bottleneck/norm1/mean' in arrays:
    return 'batch', []
  if any(k.startswith('bottleneck/norm1/') for k in arrays):
    if 'bottleneck/conv1/bias' not in arrays:
      # Which ours has beside the other two.
      return 'instance', [
        'the file does not tell model.norm instance from group and layer'
      ]
    return 'group', [
      'the file does not tell model.norm group from instance and layer, nor '
      'model.norm_groups'
    ]
  return 'none', []


def _upsampling(
  arrays: dict[str, np.ndarray], widths: list[int]
) -> tuple[Fields, list[str]]:
  fields, unsure = {}, []
  kernel = arrays.get('upsample_0/conv/kernel')
  if kernel is None:
    # Only PyTorch's twin is known to align corners; see `fields_of_milesial`.
    fields |= {'model.upsample': 'nearest', 'model.upsample_kernel': 0}
  elif 4 * kernel.shape[-2] == widths[1]:
    fields |= {
      'model.upsample': 'pixel_shuffle',
      'model.upsample_kernel': kernel.shape[0],
    }
  elif kernel.shape[0] == 2:
    fields['model.upsample'] = 'transpose'
  else:
    fields |= {
      'model.upsample': 'nearest',
      'model.upsample_kernel': kernel.shape[0],
    }
  if fields['model.upsample'] == 'nearest':
    unsure.append('the file does not tell model.upsample nearest from bilinear')
  joined = arrays.get('up_0/conv1/kernel')
  if joined is not None:
    is_concat = joined.shape[-2] == 2 * widths[0]
    fields['model.skip'] = 'concat' if is_concat else 'add'
    if not is_concat:
      unsure.append('the file does not tell model.skip add from none')
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
  fields |= {f: MILESIAL[f][0] for f in UNTOLD if f in MILESIAL}
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

  Args:
    file: of Keras.
    order_of: `modules_in_order` of the network with some fields changed.
  """
  for structure in _structures(file):
    weights = naming.from_keras(file, order_of(structure))
    fields, unsure = fields_of_arrays(weights.arrays)
    # The numbers of layers may fit where their order does not.
    if weights.rest or not fields or not _chains(weights.arrays):
      continue
    if file.graph is None:
      unsure.append(
        'a file of weights alone does not tell model.norm_epsilon (1e-3 unless '
        "set, in Keras), nor the order of Concatenate's inputs (weights.concat)"
      )
      return fields, unsure
    told = fields_of_graph(file.graph)
    unsure = [x for x in unsure if not any(field in x for field in told)]
    return fields | told, unsure
  return {}, []


def _structures(file: files.WeightFile) -> Iterator[Fields]:
  """Yields plain U-Nets that have as many layers of each kind as a file."""
  kinds = [naming.keras_kind(layer) for layer in file.layers]
  convs, transposed = kinds.count('conv'), kinds.count('transpose')
  norms = {layer.kind for layer in file.layers if 'norm' in layer.kind}
  norm = {'batch_normalization': 'batch', 'group_normalization': 'group'}
  fields = {'model.norm': norm.get(norms.pop(), 'none') if norms else 'none'}
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


_ACTIVATIONS = ('relu', 'leaky_relu', 'elu', 'gelu', 'silu', 'swish')
_OUTPUTS = ('linear', 'sigmoid', 'softmax')
_ACTIVATION_LAYERS = {'ReLU': 'relu', 'LeakyReLU': 'leaky_relu', 'ELU': 'elu'}
# Keras' names of what is another function here.
_OTHER_FUNCTIONS = {
  'leaky_relu': 'whose slope is 0.2 in Keras and 0.01 here',
  'gelu': 'which is exact in Keras and approximated by tanh here',
}
_CONV = {'dilation_rate': (1, 1), 'groups': 1}
# Layers that our network has, and what their fields must be.
_KNOWN_LAYERS: dict[str, dict[str, Any]] = {
  'InputLayer': {},
  'Rescaling': {},
  'Conv2D': {**_CONV, 'strides': (1, 1)},
  'Conv2DTranspose': {
    'dilation_rate': (1, 1),
    'strides': (2, 2),
    'kernel_size': (2, 2),
  },
  'MaxPooling2D': {'pool_size': (2, 2), 'strides': (2, 2)},
  'AveragePooling2D': {},
  'UpSampling2D': {'size': (2, 2)},
  'Concatenate': {},
  'Add': {},
  'BatchNormalization': {},
  'GroupNormalization': {},
  'Activation': {},
  'ReLU': {'max_value': None, 'negative_slope': 0.0, 'threshold': 0.0},
  'LeakyReLU': {'negative_slope': 0.01, 'alpha': 0.01},
  'ELU': {'alpha': 1.0},
  # Nothing in an evaluation; of our own, model.dropout says.
  'Dropout': {},
  'SpatialDropout2D': {},
}


def fields_of_graph(graph: dict[str, Any]) -> Fields:
  """Returns what Keras' description of a network tells.

  Raises:
    UserError: it has what our network has not; otherwise its weights would be
      taken for another function.
  """
  layers = {x['config']['name']: x for x in graph['config']['layers']}
  of = lambda *kinds: [
    x['config'] for x in layers.values() if x['class_name'] in kinds
  ]
  fields: Fields = {}
  for layer in layers.values():
    _check_layer(layer)
  listed = [_activation(c) for c in of('Conv2D', 'Activation')]
  for kind, name in _ACTIVATION_LAYERS.items():
    listed += [name for _ in of(kind)]
  listed = [name for name in listed if name not in _OUTPUTS]
  acts = set(listed)
  if len(acts) > 1 or not acts <= set(_ACTIVATIONS):
    raise _differs(
      f'its activations are {", ".join(sorted(acts))}; ours has one of '
      + ', '.join(_ACTIVATIONS[:-1])
    )
  if acts:
    fields['model.activation'] = acts.pop().replace('swish', 'silu')
  for layer in layers.values():
    for source in map(layers.get, _sources(layer['inbound_nodes'])):
      _check_pair(layer, source)
  if of('AveragePooling2D'):
    raise _differs('it pools averages, not maxima')
  if of('MaxPooling2D'):
    fields['model.downsample'] = 'max'
  convs, joins = of('Conv2D'), of('Add')
  _check_activations(layers, len(listed))
  paddings = {c['padding'] for c in convs if tuple(c['kernel_size']) != (1, 1)}
  if len(paddings) > 1:
    raise _differs('some of its convolutions are padded, some are not')
  if convs:
    fields['model.padding'] = convs[0]['padding']
  if joins:
    fields['model.skip'] = 'add'
  fields |= _norm_of_graph(layers) | _rescaling(layers)
  for config in of('UpSampling2D'):
    fields['model.upsample'] = config['interpolation']
  for config in of('InputLayer'):
    shape = config.get('batch_shape') or config.get('batch_input_shape')
    if shape and None not in shape[1:3]:
      fields['data.image_size'] = tuple(shape[1:3])
  return fields


def _norm_of_graph(layers: dict[str, Any]) -> Fields:
  """Returns the fields of the norms; raises where ours has none such."""
  norms = {
    name: layer
    for name, layer in layers.items()
    if layer['class_name'] in ('BatchNormalization', 'GroupNormalization')
  }
  if not norms:
    return {}
  epsilons = {x['config']['epsilon'] for x in norms.values()}
  if len(epsilons) > 1:
    raise _differs(f'its norms have the epsilons {sorted(epsilons)}; ours one')
  fields: Fields = {'model.norm_epsilon': epsilons.pop()}
  groups, channels = {}, {}
  for name, layer in norms.items():
    if layer['class_name'] == 'GroupNormalization':
      (source,) = _sources(layer['inbound_nodes'])
      if layers[source]['class_name'] != 'Conv2D':
        raise _differs(f'the layer {name} does not normalise a convolution')
      channels[name] = layers[source]['config']['filters']
      groups[name] = layer['config']['groups']
      if groups[name] == -1:  # Keras: a group per channel.
        groups[name] = channels[name]
  if not groups:
    return fields
  if groups == channels:
    return {**fields, 'model.norm': 'instance'}
  most = max(groups.values())
  if most == 1:
    return {**fields, 'model.norm': 'layer'}
  for name, count in groups.items():
    if count != math.gcd(most, channels[name]):
      raise _differs(
        f'the layer {name} has {count} groups of {channels[name]} channels, '
        f'others {most}; ours has one number of groups'
      )
  return {**fields, 'model.norm': 'group', 'model.norm_groups': most}


def _rescaling(layers: dict[str, Any]) -> Fields:
  """Returns the mean and deviation that are a `Rescaling` of the image.

  Keras' layer gives scale * v + offset of the stored values v, 0 to 255; our
  network sees (v / 255 - mean) / std.
  """
  for name, layer in layers.items():
    if layer['class_name'] != 'Rescaling':
      continue
    (source,) = _sources(layer['inbound_nodes'])
    takers = [
      x for x in layers.values() if source in _sources(x['inbound_nodes'])
    ]
    image = layers[source]
    if image['class_name'] != 'InputLayer' or len(takers) > 1:
      raise _differs(
        f'the layer {name} is a Rescaling that does not stand between the '
        'image and all that follows; ours has data.mean and data.std there'
      )
    config = image['config']
    shape = config.get('batch_shape') or config['batch_input_shape']
    try:
      scale, offset = (
        np.broadcast_to(np.asarray(layer['config'][key], float), shape[-1:])
        for key in ('scale', 'offset')
      )
    except (TypeError, ValueError) as e:
      raise _differs(
        f'the layer {name} has a scale or offset that is no number per channel'
      ) from e
    if not np.all(scale > 0):
      raise _differs(f'the layer {name} has a scale that is not above 0')
    return {
      'data.mean': tuple((-offset / (255 * scale)).tolist()),
      'data.std': tuple((1 / (255 * scale)).tolist()),
    }
  return {}


def _check_layer(layer: dict[str, Any]) -> None:
  """Raises for a layer that ours does not have, or has otherwise."""
  config, kind = layer['config'], layer['class_name']
  if kind not in _KNOWN_LAYERS:
    raise _differs(
      f'the layer {config["name"]} is a {kind}; known are '
      + ', '.join(_KNOWN_LAYERS)
    )
  for field, allowed in _KNOWN_LAYERS[kind].items():
    value = config.get(field, allowed)
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(allowed, float) and value is not None:
      same = abs(value - allowed) < 1e-6
    else:
      same = value == allowed
    if not same:
      raise _differs(
        f'the layer {config["name"]} has {field}={value}; ours is {allowed}'
      )
  if _activation(config) in _OTHER_FUNCTIONS:
    raise _differs(
      f'the layer {config["name"]} has the activation {_activation(config)}, '
      f'{_OTHER_FUNCTIONS[_activation(config)]}'
    )


def _check_activations(layers: dict[str, Any], count: int) -> None:
  """Raises unless each convolution of a stage has an activation behind it."""
  convs = [
    name
    for name, layer in layers.items()
    if layer['class_name'] == 'Conv2D'
    and tuple(layer['config']['kernel_size']) != (1, 1)
    and not any(
      layers[source]['class_name'].startswith('UpSampling')
      for source in _sources(layer['inbound_nodes'])
    )
  ]
  if count != len(convs):
    raise _differs(
      f'it has {count} activations behind {len(convs)} convolutions of its '
      'stages; ours has one behind each'
    )


def _check_pair(layer: dict[str, Any], source: dict[str, Any]) -> None:
  """Raises where an activation stands elsewhere than in our network."""
  name, kind = layer['config']['name'], layer['class_name']
  is_active = _activation(source['config']) not in _OUTPUTS
  if kind.endswith('Normalization') and (
    is_active or source['class_name'] in ('Activation', 'ReLU', 'LeakyReLU')
  ):
    raise _differs(
      f'the layer {name} normalises what an activation gives; ours has the '
      'norm before the activation'
    )
  upsamples = kind.endswith('Transpose') or (
    kind == 'Conv2D' and source['class_name'].startswith('UpSampling')
  )
  if upsamples and _activation(layer['config']) not in _OUTPUTS:
    raise _differs(
      f'the layer {name} has an activation; ours has none behind the upsampling'
    )


def _differs(how: str) -> errors.UserError:
  return errors.UserError(f"the file's network is not one of ours: {how}")


def _activation(config: dict[str, Any]) -> str:
  """The name of a layer's activation, which may be stored as a dictionary."""
  value = config.get('activation')
  if isinstance(value, dict):
    value = value.get('config', value.get('class_name'))
    value = value if isinstance(value, str) else 'unknown'
  return value or 'linear'


def concat_has_up_first(graph: dict[str, Any]) -> bool | None:
  """Whether `Concatenate` takes the features from below before the skip.

  Args:
    graph: Keras' description of a network.

  Returns:
    None where there is no such layer or it cannot be told.

  Raises:
    UserError: it is so at some stages and otherwise at others.
  """
  layers = {x['config']['name']: x for x in graph['config']['layers']}
  sources = {name: _sources(x['inbound_nodes']) for name, x in layers.items()}

  def is_from_below(name: str) -> bool:
    while True:
      kind = layers[name]['class_name']
      if kind.startswith('UpSampling') or kind.endswith('Transpose'):
        return True
      if len(sources[name]) != 1 or 'Pooling' in kind:
        return False
      name = sources[name][0]

  found = set()
  for name, layer in layers.items():
    if layer['class_name'] == 'Concatenate' and len(sources[name]) == 2:
      found.add(tuple(map(is_from_below, sources[name])))
  if len(found) > 1:
    raise errors.UserError(
      "the file's network joins skips in different orders at different stages; "
      'ours has the skip first in all of them'
    )
  return {(True, False): True, (False, True): False}.get(
    found.pop() if found else None
  )


def _sources(inbound: Any) -> list[str]:
  """Names of the layers that a layer takes, of Keras 3's and 2's form."""
  if isinstance(inbound, dict):
    history = inbound.get('config', {}).get('keras_history')
    if history:
      return [history[0]]
    return [n for v in inbound.values() for n in _sources(v)]
  if isinstance(inbound, list | tuple):
    if len(inbound) >= 3 and isinstance(inbound[0], str):
      return [inbound[0]]
    return [n for v in inbound for n in _sources(v)]
  return []
