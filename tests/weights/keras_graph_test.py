"""Descriptions of networks that must not pass for ours."""

import pytest

from tests.refusals import message_of
from unet_jax.weights import keras_graph


def _description(*layers):
  """Keras' of layers, each with its class, config and the names of inputs."""
  return {
    'config': {
      'layers': [
        {
          'class_name': kind,
          'config': config,
          'inbound_nodes': [[[n, 0, 0, {}] for n in inputs]] if inputs else [],
        }
        for kind, config, inputs in layers
      ]
    }
  }


def _graph(*extra, **conv):
  """A convolution with ReLU, and at most one more layer (class, config)."""
  config = {'name': 'conv', 'kernel_size': [3, 3], 'strides': [1, 1]}
  config |= {'dilation_rate': [1, 1], 'groups': 1, 'padding': 'same'}
  config |= {'activation': 'relu', **conv}
  image = {'name': 'image', 'batch_shape': [None, 8, 8, 1]}
  return _description(
    ('InputLayer', image, []),
    ('Conv2D', config, ['image']),
    *((kind, config, ['conv']) for kind, config in extra),
  )


def test_a_plain_convolution_passes():
  fields = keras_graph.fields(_graph())
  assert fields['model.activation'] == 'relu'
  assert fields['model.padding'] == 'same'
  assert fields['data.image_size'] == (8, 8)


@pytest.mark.parametrize(
  'graph, message',
  [
    (_graph(dilation_rate=[2, 2]), 'conv has dilation_rate=(2, 2); ours is'),
    (_graph(strides=[2, 2]), 'conv has strides=(2, 2)'),
    (_graph(groups=2), 'conv has groups=2'),
    (_graph(activation='linear'), '0 activations behind 1 convolutions'),
    (_graph(activation='leaky_relu'), 'whose slope is 0.2 in Keras'),
    (_graph(activation='gelu'), 'exact in Keras'),
    (
      _graph(('Rescaling', {'name': 'scale', 'scale': 0.1})),
      'the layer scale is a Rescaling that does not stand between the image',
    ),
    (
      _graph(('LeakyReLU', {'name': 'act', 'negative_slope': 0.3})),
      'act has negative_slope=0.3; ours is 0.01',
    ),
    (
      _graph(('ReLU', {'name': 'act', 'max_value': 6.0})),
      'act has max_value=6.0',
    ),
    (
      _graph(
        ('MaxPooling2D', {'name': 'pool', 'pool_size': 3, 'strides': [2, 2]})
      ),
      'pool has pool_size=3',
    ),
  ],
)
def test_another_function_is_refused(graph, message):
  assert message in message_of(keras_graph.fields, graph)


def test_the_order_of_inputs_in_descriptions_of_keras_2():
  for inputs, up_first in ((['up', 'in'], True), (['in', 'up'], False)):
    graph = _description(
      ('InputLayer', {'name': 'in'}, []),
      ('Conv2DTranspose', {'name': 'up'}, ['in']),
      ('Concatenate', {'name': 'join'}, inputs),
    )
    assert keras_graph.concat_has_up_first(graph) is up_first
