"""The network that Keras' description (`config.json` of a file) stands for."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from unet_jax.config.fields import CHOICES
from unet_jax.runtime import errors

_ACTIVATIONS = tuple(map(str, CHOICES['model.activation']))
_OUTPUTS = ('linear', 'sigmoid', 'softmax')
_ACTIVATION_LAYERS = {'ReLU': 'relu', 'LeakyReLU': 'leaky_relu', 'ELU': 'elu'}
_NORMS = ('BatchNormalization', 'GroupNormalization')
# Activations that are another function here under the same name.
_OTHER_FUNCTIONS = {
  'leaky_relu': 'whose slope is 0.2 in Keras and 0.01 here',
  'gelu': 'which is exact in Keras and approximated by tanh here',
}
_CONV = {'dilation_rate': (1, 1), 'groups': 1}
# Layers that our network has, and the only values of their settings.
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
  # Not active in an evaluation; model.dropout sets our own.
  'Dropout': {},
  'SpatialDropout2D': {},
}


@dataclasses.dataclass(frozen=True)
class _Layer:
  """A layer of the description.

  Attributes:
    config: its settings.
    sources: names of the layers that it takes.
  """

  name: str
  kind: str
  config: dict[str, Any]
  sources: list[str]

  @property
  def activation(self) -> str:
    """The name of the activation, which may be stored as a dictionary."""
    value = self.config.get('activation')
    if isinstance(value, dict):
      value = value.get('config', value.get('class_name'))
      value = value if isinstance(value, str) else 'unknown'
    return value or 'linear'

  @property
  def is_pointwise(self) -> bool:
    return tuple(self.config['kernel_size']) == (1, 1)

  @property
  def image_shape(self) -> list[Any]:
    """[B, H, W, C] of an input; axes of any size are None."""
    config = self.config
    return config.get('batch_shape') or config.get('batch_input_shape') or []


class _Graph(dict[str, _Layer]):
  """The layers by name."""

  def __init__(self, description: dict[str, Any]):
    super().__init__()
    for x in description['config']['layers']:
      name, sources = x['config']['name'], _sources(x['inbound_nodes'])
      self[name] = _Layer(name, x['class_name'], x['config'], sources)

  def of(self, *kinds: str) -> list[_Layer]:
    return [layer for layer in self.values() if layer.kind in kinds]

  def before(self, layer: _Layer) -> list[_Layer]:
    return [self[name] for name in layer.sources]


def _sources(inbound: Any) -> list[str]:
  """Names of the layers that a layer takes, in Keras 3's and 2's form."""
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


def fields(description: dict[str, Any]) -> dict[str, Any]:
  """Returns {'section.field': value} of a described network.

  Raises:
    UserError: it has what our network has not; otherwise its weights would be
      taken for another function.
  """
  graph = _Graph(description)
  for text in _differences(graph):
    raise _differs(text)
  found: dict[str, Any] = {}
  if activations := set(_activations(graph)):
    found['model.activation'] = activations.pop()
  if graph.of('MaxPooling2D'):
    found['model.downsample'] = 'max'
  for layer in graph.of('Conv2D')[:1]:
    found['model.padding'] = layer.config['padding']
  if graph.of('Add'):
    found['model.skip'] = 'add'
  found |= _norm(graph) | _rescaling(graph)
  for layer in graph.of('UpSampling2D'):
    found['model.upsample'] = layer.config['interpolation']
  for layer in graph.of('InputLayer'):
    if layer.image_shape and None not in layer.image_shape[1:3]:
      found['data.image_size'] = tuple(layer.image_shape[1:3])
  return found


def _differs(how: str) -> errors.UserError:
  return errors.UserError(f"the file's network is not one of ours: {how}")


def _activations(graph: _Graph) -> list[str]:
  """Names of the activations inside the network, in our words."""
  names = [x.activation for x in graph.of('Conv2D', 'Activation')]
  names += [_ACTIVATION_LAYERS[x.kind] for x in graph.of(*_ACTIVATION_LAYERS)]
  return [
    'silu' if name == 'swish' else name
    for name in names
    if name not in _OUTPUTS
  ]


def _differences(graph: _Graph) -> Iterator[str]:
  """Yields how the network differs from each that we have."""
  for layer in graph.values():
    yield from _differences_of_layer(layer)
  activations = _activations(graph)
  if len(set(activations)) > 1 or not set(activations) <= set(_ACTIVATIONS):
    yield (
      f'its activations are {", ".join(sorted(set(activations)))}; ours has '
      f'one of {", ".join(_ACTIVATIONS)}'
    )
  for layer in graph.values():
    for source in graph.before(layer):
      yield from _differences_of_pair(layer, source)
  if graph.of('AveragePooling2D'):
    yield 'it pools averages, not maxima'
  convs = [x for x in graph.of('Conv2D') if not x.is_pointwise]
  staged = [
    layer
    for layer in convs
    if not any(x.kind.startswith('UpSampling') for x in graph.before(layer))
  ]
  if len(activations) != len(staged):
    yield (
      f'it has {len(activations)} activations behind {len(staged)} '
      'convolutions of its stages; ours has one behind each'
    )
  if len({layer.config['padding'] for layer in convs}) > 1:
    yield 'some of its convolutions are padded, some are not'


def _differences_of_layer(layer: _Layer) -> Iterator[str]:
  """Yields how a layer differs from ours of its kind."""
  if layer.kind not in _KNOWN_LAYERS:
    yield (
      f'the layer {layer.name} is a {layer.kind}; known are '
      + ', '.join(_KNOWN_LAYERS)
    )
  for field, allowed in _KNOWN_LAYERS[layer.kind].items():
    value = layer.config.get(field, allowed)
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(allowed, float) and isinstance(value, float | int):
      same = abs(value - allowed) < 1e-6
    else:
      same = value == allowed
    if not same:
      yield f'the layer {layer.name} has {field}={value}; ours is {allowed}'
  if layer.activation in _OTHER_FUNCTIONS:
    yield (
      f'the layer {layer.name} has the activation {layer.activation}, '
      f'{_OTHER_FUNCTIONS[layer.activation]}'
    )


def _differences_of_pair(layer: _Layer, source: _Layer) -> Iterator[str]:
  """Yields where an activation stands elsewhere than in our network."""
  is_active = source.activation not in _OUTPUTS
  activates = is_active or source.kind in ('Activation', 'ReLU', 'LeakyReLU')
  if layer.kind in _NORMS and activates:
    yield (
      f'the layer {layer.name} normalises what an activation gives; ours has '
      'the norm before the activation'
    )
  upsamples = layer.kind == 'Conv2DTranspose' or (
    layer.kind == 'Conv2D' and source.kind.startswith('UpSampling')
  )
  if upsamples and layer.activation not in _OUTPUTS:
    yield (
      f'the layer {layer.name} has an activation; ours has none behind the '
      'upsampling'
    )


def _norm(graph: _Graph) -> dict[str, Any]:
  """Returns the fields of the norms; raises where ours has no such norms."""
  epsilons = [layer.config['epsilon'] for layer in graph.of(*_NORMS)]
  if len(set(epsilons)) > 1:
    raise _differs(
      f'its norms have the epsilons {sorted(set(epsilons))}; ours one'
    )
  found = {'model.norm_epsilon': epsilons[0]} if epsilons else {}
  groups, channels = {}, {}
  for layer in graph.of('GroupNormalization'):
    (source,) = graph.before(layer)
    if source.kind != 'Conv2D':
      raise _differs(f'the layer {layer.name} does not normalise a convolution')
    channels[layer.name] = source.config['filters']
    groups[layer.name] = layer.config['groups']
    if groups[layer.name] == -1:  # Keras: a group per channel.
      groups[layer.name] = channels[layer.name]
  if not groups:
    return found
  if groups == channels:
    return {**found, 'model.norm': 'instance'}
  most = max(groups.values())
  if most == 1:
    return {**found, 'model.norm': 'layer'}
  for name, count in groups.items():
    if count != math.gcd(most, channels[name]):
      raise _differs(
        f'the layer {name} has {count} groups of {channels[name]} channels, '
        f'others {most}; ours has one number of groups'
      )
  return {**found, 'model.norm': 'group', 'model.norm_groups': most}


def _rescaling(graph: _Graph) -> dict[str, Any]:
  """Returns the mean and deviation that are a `Rescaling` of the image.

  Keras' layer gives scale * v + offset of the stored values v, 0 to 255; our
  network sees (v / 255 - mean) / std.
  """
  for layer in graph.of('Rescaling')[:1]:
    (image,) = graph.before(layer)
    takers = [x for x in graph.values() if image.name in x.sources]
    if image.kind != 'InputLayer' or len(takers) > 1:
      raise _differs(
        f'the layer {layer.name} is a Rescaling that does not stand between '
        'the image and all that follows; ours has data.mean and data.std there'
      )
    try:
      scale, offset = (
        np.broadcast_to(
          np.asarray(layer.config[key], float), image.image_shape[-1:]
        )
        for key in ('scale', 'offset')
      )
    except (TypeError, ValueError) as e:
      raise _differs(
        f'the layer {layer.name} has a scale or offset that is no number per '
        'channel'
      ) from e
    if not np.all(scale > 0):
      raise _differs(f'the layer {layer.name} has a scale that is not above 0')
    return {
      'data.mean': tuple((-offset / (255 * scale)).tolist()),
      'data.std': tuple((1 / (255 * scale)).tolist()),
    }
  return {}


def concat_has_up_first(description: dict[str, Any]) -> bool | None:
  """Whether `Concatenate` takes the features from below before the skip.

  None where there is no such layer or the order cannot be seen.

  Raises:
    UserError: the order differs between stages.
  """
  graph = _Graph(description)

  def is_from_below(layer: _Layer) -> bool:
    while True:
      if layer.kind.startswith('UpSampling') or layer.kind.endswith(
        'Transpose'
      ):
        return True
      if len(layer.sources) != 1 or 'Pooling' in layer.kind:
        return False
      layer = graph[layer.sources[0]]

  found = {
    tuple(map(is_from_below, graph.before(layer)))
    for layer in graph.of('Concatenate')
    if len(layer.sources) == 2
  }
  if len(found) > 1:
    raise errors.UserError(
      "the file's network joins skips in different orders at different stages; "
      'ours has the skip first in all of them'
    )
  if found == {(True, False)}:
    return True
  return False if found == {(False, True)} else None
