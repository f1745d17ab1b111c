"""The lesson's network, built by Keras on its JAX backend, against ours.

The description: 3x3 `same` convolutions with ReLU, two a stage; 2x2 max
pooling; depth 3; a 2x2 transposed convolution of stride 2, or bilinear
upsampling; concatenation; a 1x1 convolution with a sigmoid.
"""

import os

os.environ['KERAS_BACKEND'] = 'jax'

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.weights import parity
from unet_jax import import_weights
from unet_jax.models import unet
from unet_jax.runtime import errors
from unet_jax.training import steps
from unet_jax.weights import files, keras_graph, match, naming

keras = pytest.importorskip('keras', reason='needs Keras')
pytest.importorskip('h5py', reason="Keras' files need h5py")

pytestmark = [
  # Keras 3.15 asks NumPy for a view of what JAX gives as a copy.
  pytest.mark.filterwarnings('ignore:__array__ implementation'),
  # It says so of .h5, which older files are.
  pytest.mark.filterwarnings('ignore:You are saving your model as an HDF5'),
]

_FEATURES = (4, 8, 16, 32)
_SIZE = 32
_BATCH_NORM = {'norm': True, 'features': _FEATURES[:3]}
_OUR_BATCH_NORM = {'depth': 2, 'norm': 'batch', 'norm_epsilon': 1e-3}


def _network(
  size=_SIZE,
  features=_FEATURES,
  upsample='transpose',
  norm=False,
  up_first=False,
  initializer='he_normal',
  groups=None,
  rescaling=None,
):
  layers = keras.layers
  keras.utils.set_random_seed(0)

  def stage(x, channels):
    for _ in range(2):
      x = layers.Conv2D(
        channels,
        3,
        padding='same',
        activation=None if norm else 'relu',
        kernel_initializer=initializer,
      )(x)
      if groups is not None:
        x = layers.GroupNormalization(groups)(x)
      elif norm:
        x = layers.BatchNormalization(momentum=0.9)(x)
      if norm:
        x = layers.ReLU()(x)
    return x

  x = images = keras.Input((size, size, 1))
  if rescaling is not None:
    x = layers.Rescaling(*rescaling)(x)
  skips = []
  for channels in features[:-1]:
    x = stage(x, channels)
    skips.append(x)
    x = layers.MaxPooling2D(2)(x)
  x = stage(x, features[-1])
  for channels, skip in zip(features[-2::-1], skips[::-1]):
    if upsample == 'transpose':
      x = layers.Conv2DTranspose(
        channels, 2, strides=2, kernel_initializer=initializer
      )(x)
    else:
      x = layers.UpSampling2D(2, interpolation=upsample)(x)
      x = layers.Conv2D(channels, 2, padding='same')(x)
    x = layers.Concatenate()([x, skip] if up_first else [skip, x])
    x = stage(x, channels)
  x = layers.Conv2D(1, 1, activation='sigmoid', kernel_initializer=initializer)(
    x
  )
  return keras.Model(images, x)


def _fill(network):
  """Draws biases, means and variances too, which Keras starts at 0 and 1."""
  rng = np.random.default_rng(0)
  for layer in network.layers:
    if layer.weights:
      layer.set_weights(
        [
          np.asarray(w)
          if w.ndim > 1
          else np.asarray(w) + rng.uniform(-0.2, 0.2, w.shape)
          for w in layer.get_weights()
        ]
      )


def _config(**model):
  fields = {'depth': 3, 'base_features': 4, 'norm': 'none', **model}
  return parity.make_config(
    {
      'data.image_size': (_SIZE, _SIZE),
      'data.num_channels': 1,
      'data.num_classes': 1,
      **{f'model.{k}': v for k, v in fields.items()},
    }
  )


def _theirs(network, images, weight, train):
  """Outputs and gradients; the network takes the new running statistics."""

  @jax.jit
  def run(trainable, others):
    def loss(trainable):
      outputs, changed = network.stateless_call(
        trainable, others, images, training=train
      )
      return jnp.sum(outputs * weight), (outputs, changed)

    gradients, aux = jax.grad(loss, has_aux=True)(trainable)
    return gradients, *aux

  values = lambda variables: [v.value for v in variables]
  gradients, outputs, changed = run(
    values(network.trainable_variables), values(network.non_trainable_variables)
  )
  for variable, value in zip(network.non_trainable_variables, changed):
    variable.assign(value)
  return np.asarray(outputs), gradients


@pytest.mark.parametrize(
  'network,fields,train',
  [
    ({}, {}, False),
    (
      {'upsample': 'bilinear', 'up_first': True},
      {'upsample': 'bilinear', 'upsample_kernel': 2},
      False,
    ),
    (_BATCH_NORM, _OUR_BATCH_NORM, False),
    (_BATCH_NORM, _OUR_BATCH_NORM, True),
    (
      {**_BATCH_NORM, 'groups': 2},
      {**_OUR_BATCH_NORM, 'norm': 'group', 'norm_groups': 2},
      True,
    ),
    # One group of all channels.
    ({**_BATCH_NORM, 'groups': 1}, {**_OUR_BATCH_NORM, 'norm': 'layer'}, True),
    # A group per channel, which ours has without biases.
    (
      {**_BATCH_NORM, 'groups': -1},
      {**_OUR_BATCH_NORM, 'norm': 'instance'},
      False,
    ),
  ],
  ids=[
    'lesson',
    'bilinear',
    'batch_norm',
    'batch_norm_training',
    'group_norm',
    'layer_norm',
    'instance_norm',
  ],
)
def test_outputs_and_gradients_equal_keras(network, fields, train, tmp_path):
  config = _config(**fields)
  network = _network(**network)
  _fill(network)
  images = parity.draw(2, _SIZE, _SIZE, 1)
  weight = parity.draw(2, _SIZE, _SIZE, 1, seed=1)
  path = tmp_path / 'network.keras'
  network.save(path)
  variables = parity.load(path, config)
  outputs, gradients, stats = parity.ours(
    config, variables, images, weight, train, sigmoid=True
  )

  expected, expected_gradients = _theirs(network, images, weight, train)
  network.save(path)
  after = parity.load(path, config)
  for variable, gradient in zip(
    network.trainable_variables, expected_gradients
  ):
    variable.assign(gradient)
  network.save(path)
  expected_gradients = parity.load(path, config)['params']
  differences = {
    'outputs': parity.difference(outputs, expected),
    'gradients': parity.difference(gradients, expected_gradients),
  }
  if stats:
    differences['statistics'] = parity.difference(stats, after['batch_stats'])
  parity.check(differences)


def test_the_lesson_has_7_696_193_parameters():
  features = (64, 128, 256, 512)
  network = _network(256, features, initializer='zeros')
  config = _config(base_features=features[0])
  wanted = naming.abstract_variables(unet.create_model(config), (256, 256, 1))
  count = sum(x.size for x in jax.tree.leaves(wanted['params']))
  assert count == network.count_params() == 7_696_193


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder with one network in each of Keras' formats."""
  folder = tmp_path_factory.mktemp('keras')
  network = _network(16, (4, 8), norm=True, up_first=True)
  _fill(network)
  for name in ('network.keras', 'network.h5', 'network.weights.h5'):
    save = network.save_weights if 'weights' in name else network.save
    save(folder / name)
  return folder


def _small_config(**model):
  return _config(**{**_OUR_BATCH_NORM, 'depth': 1, **model})


def test_each_format_gives_the_same_weights(saved):
  config = _small_config()
  expected = parity.load(saved / 'network.keras', config)
  actual = parity.load(saved / 'network.h5', config)
  assert parity.difference(actual, expected) == 0
  # Weights alone leave open the order of the inputs of Concatenate.
  of_weights = lambda: parity.load(saved / 'network.weights.h5', config)
  kernel = lambda variables: variables['params']['up_0']['conv1']['kernel']
  assert_array_equal(np.roll(kernel(of_weights()), 4, axis=2), kernel(expected))
  config.weights.concat = 'up_first'
  assert parity.difference(of_weights(), expected) == 0


def test_the_network_is_deduced_from_the_description(saved):
  config = match.deduced_config(
    {'weights.path': str(saved / 'network.keras'), 'data.std': (0.5,)}
  )
  changed = {
    k: v
    for k, v in import_weights._network(config).items()
    if k.startswith('model.')
  }
  assert changed == {
    'model.depth': 1,
    'model.base_features': 4,
    'model.norm_epsilon': 1e-3,
  }
  assert (config.data.num_channels, config.data.num_classes) == (1, 1)
  assert (config.data.mean, config.data.std) == ((0.5,), (0.5,))
  assert config.data.image_size == (16, 16)


@pytest.mark.parametrize(
  'groups,norm',
  [
    (2, {'model.norm': 'group', 'model.norm_groups': 2}),
    (1, {'model.norm': 'layer'}),
    (-1, {'model.norm': 'instance'}),
  ],
)
@pytest.mark.parametrize('suffix', ['keras', 'weights.h5', 'h5'])
def test_group_norm_is_deduced(groups, norm, suffix, tmp_path):
  network = _network(16, (4, 8), norm=True, groups=groups)
  path = tmp_path / f'network.{suffix}'
  save = network.save_weights if 'weights' in suffix else network.save
  save(path)
  config = match.deduced_config({'weights.path': str(path)})
  changed = import_weights._network(config)
  if 'weights' in suffix:
    # With biases, it is not taken for instance norm.
    assert changed['model.norm'] == 'group'
  else:
    assert norm.items() <= changed.items()
    assert changed['model.norm_epsilon'] == 1e-3
  parity.load(path, config)


@pytest.mark.parametrize('scale,offset', [(1 / 255, 0.0), (1 / 127.5, -1.0)])
def test_rescaling_becomes_mean_and_std(scale, offset, tmp_path):
  network = _network(16, (4, 8), rescaling=(scale, offset))
  _fill(network)
  path = tmp_path / 'network.keras'
  network.save(path)
  config = match.deduced_config({'weights.path': str(path)})
  images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)
  variables = parity.load(path, config)
  seen = steps.normalize(images, config.data.mean, config.data.std)
  actual = unet.create_model(config).apply(variables, seen, train=False)
  expected = network(images.astype(np.float32))
  actual = np.asarray(jax.nn.sigmoid(actual))
  assert parity.difference({'': actual}, {'': np.asarray(expected)}) < 1e-5
  config.data.mean = (0.25,)
  with pytest.raises(errors.UserError, match='it fits with --config.data.mean'):
    parity.load(path, config)


def test_a_description_that_differs_is_refused(saved):
  config = _small_config(activation='elu')
  with pytest.raises(errors.UserError) as e:
    parity.load(saved / 'network.keras', config)
  assert str(e.value) == (
    f"{saved / 'network.keras'}: the file's network is another one than the "
    "config's; it fits with --config.model.activation=relu"
  )


def _rescaled_features(layers, x):
  x = layers.Conv2D(4, 3, activation='relu')(x)
  return layers.Rescaling(0.5, name='wrong')(x)


def _rescaled_beside_the_image(layers, x):
  return layers.Concatenate()([layers.Rescaling(0.5, name='wrong')(x), x])


def _differing_groups(layers, x):
  for groups, channels in ((2, 4), (8, 32)):
    x = layers.Conv2D(channels, 3)(x)
    x = layers.ReLU()(layers.GroupNormalization(groups, name=f'of_{groups}')(x))
  return x


def _norm_after_activation(layers, x):
  x = layers.Conv2D(4, 3, activation='relu')(x)
  return layers.BatchNormalization(name='wrong')(x)


def _activation_after_upsampling(layers, x):
  x = layers.UpSampling2D()(x)
  return layers.Conv2D(4, 2, activation='relu', name='wrong')(x)


def _active_transpose(layers, x):
  return layers.Conv2DTranspose(4, 2, 2, activation='relu', name='wrong')(x)


@pytest.mark.parametrize(
  'make,message',
  [
    (_rescaled_features, 'wrong is a Rescaling that does not stand between'),
    (_rescaled_beside_the_image, 'wrong is a Rescaling that does not stand'),
    (
      lambda layers, x: layers.Rescaling(-1.0, name='wrong')(x),
      'wrong has a scale that is not above 0',
    ),
    (
      lambda layers, x: layers.Rescaling(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], name='wrong'
      )(x),
      'wrong has a scale or offset that is no number per channel',
    ),
    (_differing_groups, 'of_2 has 2 groups of 4 channels, others 8'),
    (_norm_after_activation, 'normalises what an activation gives'),
    (_activation_after_upsampling, 'has an activation; ours has none behind'),
    (_active_transpose, 'has an activation; ours has none behind'),
    (
      lambda layers, x: layers.AveragePooling2D(2)(x),
      'it pools averages, not maxima',
    ),
    (
      lambda layers, x: layers.Conv2D(4, 3, activation='tanh')(x),
      'its activations are tanh; ours has one of relu, ',
    ),
  ],
)
def test_a_network_that_is_not_ours_is_refused(make, message, tmp_path):
  image = keras.Input((8, 8, 1))
  network = keras.Model(image, make(keras.layers, image))
  network.save(tmp_path / 'network.keras')
  graph = files.read(str(tmp_path / 'network.keras')).graph
  with pytest.raises(errors.UserError, match=message):
    keras_graph.fields(graph)


def test_the_order_of_inputs_in_descriptions_of_keras_2():
  kinds = {'in': 'InputLayer', 'up': 'Conv2DTranspose', 'join': 'Concatenate'}
  node = lambda *names: [[[name, 0, 0, {}] for name in names]]
  inbound = {'in': [], 'up': node('in'), 'join': node('up', 'in')}
  graph = {
    'config': {
      'layers': [
        {
          'class_name': kinds[name],
          'config': {'name': name},
          'inbound_nodes': inbound[name],
        }
        for name in kinds
      ]
    }
  }
  assert keras_graph.concat_has_up_first(graph) is True
  graph['config']['layers'][-1]['inbound_nodes'] = node('in', 'up')
  assert keras_graph.concat_has_up_first(graph) is False


def test_a_network_written_as_a_class_is_refused(tmp_path):
  class Network(keras.Model):
    def __init__(self):
      super().__init__()
      self.first = keras.layers.Conv2D(4, 3)

    def call(self, x):
      return self.first(x)

  network = Network()
  network(jnp.zeros((1, 8, 8, 1)))
  path = tmp_path / 'network.keras'
  network.save(path)
  with pytest.raises(errors.UserError, match='that is a class of its own'):
    files.read(str(path))
