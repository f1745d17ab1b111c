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

from tests.refusals import message_of
from tests.weights import parity
from unet_jax import import_weights
from unet_jax.models import unet
from unet_jax.training import steps
from unet_jax.weights import files, keras_graph, match, naming

keras = pytest.importorskip('keras', reason='needs Keras')
pytest.importorskip('h5py', reason="Keras' files need h5py")
layers = keras.layers

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
  keras.utils.set_random_seed(0)
  conv = lambda channels, size, **options: layers.Conv2D(
    channels, size, padding='same', kernel_initializer=initializer, **options
  )

  def stage(x, channels):
    for _ in range(2):
      if not norm:
        x = conv(channels, 3, activation='relu')(x)
        continue
      x = conv(channels, 3)(x)
      if groups is None:
        x = layers.BatchNormalization(momentum=0.9)(x)
      else:
        x = layers.GroupNormalization(groups)(x)
      x = layers.ReLU()(x)
    return x

  x = images = keras.Input((size, size, 1))
  if rescaling is not None:
    x = layers.Rescaling(*rescaling)(x)
  skips = []
  for channels in features[:-1]:
    skips.append(stage(x, channels))
    x = layers.MaxPooling2D(2)(skips[-1])
  x = stage(x, features[-1])
  for channels, skip in zip(features[-2::-1], skips[::-1]):
    if upsample == 'transpose':
      x = layers.Conv2DTranspose(
        channels, 2, strides=2, kernel_initializer=initializer
      )(x)
    else:
      x = layers.UpSampling2D(2, interpolation=upsample)(x)
      x = conv(channels, 2)(x)
    x = layers.Concatenate()([x, skip] if up_first else [skip, x])
    x = stage(x, channels)
  return keras.Model(images, conv(1, 1, activation='sigmoid')(x))


def _fill(network):
  """Draws biases, means and variances too, which Keras starts at 0 and 1."""
  rng = np.random.default_rng(0)
  for layer in network.layers:
    arrays = map(np.asarray, layer.get_weights())
    drawn = lambda w: w if w.ndim > 1 else w + rng.uniform(-0.2, 0.2, w.shape)
    layer.set_weights([drawn(w) for w in arrays])


def _save(network, path):
  save = network.save_weights if 'weights' in path.name else network.save
  save(path)
  return path


def _config(**model):
  fields = {'depth': 3, 'base_features': 4, 'norm': 'none', **model}
  data = {'image_size': (_SIZE, _SIZE), 'num_channels': 1, 'num_classes': 1}
  return parity.make_config(
    {f'data.{k}': v for k, v in data.items()}
    | {f'model.{k}': v for k, v in fields.items()}
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


# Keras' network, fields of ours, training; norms beside _BATCH_NORM.
_NETWORKS = {
  'lesson': ({}, {}, False),
  'bilinear': (
    {'upsample': 'bilinear', 'up_first': True},
    {'upsample': 'bilinear', 'upsample_kernel': 2},
    False,
  ),
  'batch_norm': ({}, {}, False),
  'batch_norm_training': ({}, {}, True),
  'group_norm': ({'groups': 2}, {'norm': 'group', 'norm_groups': 2}, True),
  # One group of all channels.
  'layer_norm': ({'groups': 1}, {'norm': 'layer'}, True),
  # A group per channel, which ours has without biases.
  'instance_norm': ({'groups': -1}, {'norm': 'instance'}, False),
}


@pytest.mark.parametrize('name', _NETWORKS)
def test_outputs_and_gradients_equal_keras(name, tmp_path):
  network, fields, train = _NETWORKS[name]
  if 'norm' in name:
    network, fields = _BATCH_NORM | network, _OUR_BATCH_NORM | fields
  config = _config(**fields)
  network = _network(**network)
  _fill(network)
  images = parity.draw(2, _SIZE, _SIZE, 1)
  weight = parity.draw(2, _SIZE, _SIZE, 1, seed=1)
  path = _save(network, tmp_path / 'network.keras')
  variables = parity.load(path, config)
  outputs, gradients, stats = parity.ours(
    config, variables, images, weight, train, sigmoid=True
  )

  expected, their_gradients = _theirs(network, images, weight, train)
  after = parity.load(_save(network, path), config)
  for variable, gradient in zip(network.trainable_variables, their_gradients):
    variable.assign(gradient)
  expected_gradients = parity.load(_save(network, path), config)['params']
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
    _save(network, folder / name)
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
  network = import_weights._network(config)
  assert {k: v for k, v in network.items() if k.startswith('model.')} == {
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
  path = _save(network, tmp_path / f'network.{suffix}')
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
  path = _save(network, tmp_path / 'network.keras')
  config = match.deduced_config({'weights.path': str(path)})
  images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)
  variables = parity.load(path, config)
  seen = steps.normalize(images, config.data.mean, config.data.std)
  actual = unet.create_model(config).apply(variables, seen, train=False)
  expected = network(images.astype(np.float32))
  actual = np.asarray(jax.nn.sigmoid(actual))
  assert parity.difference({'': actual}, {'': np.asarray(expected)}) < 1e-5
  config.data.mean = (0.25,)
  message = message_of(parity.load, path, config)
  assert 'it fits with --config.data.mean' in message


def test_a_description_that_differs_is_refused(saved):
  config = _small_config(activation='elu')
  path = saved / 'network.keras'
  assert message_of(parity.load, path, config) == (
    f"{path}: the file's network is another one than the config's; it fits "
    'with --config.model.activation=relu'
  )


def _wrong(kind, *args, **options):
  return kind(*args, **options, name='wrong')


# What follows the image, and a part of the message.
_REFUSED = [
  (
    [layers.Conv2D(4, 3, activation='relu'), _wrong(layers.Rescaling, 0.5)],
    'wrong is a Rescaling that does not stand between',
  ),
  (
    [lambda x: layers.Concatenate()([_wrong(layers.Rescaling, 0.5)(x), x])],
    'wrong is a Rescaling that does not stand',
  ),
  ([_wrong(layers.Rescaling, -1.0)], 'wrong has a scale that is not above 0'),
  (
    [_wrong(layers.Rescaling, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])],
    'wrong has a scale or offset that is no number per channel',
  ),
  (
    [
      *(layers.Conv2D(4, 3), layers.GroupNormalization(2, name='of_2')),
      *(layers.ReLU(), layers.Conv2D(32, 3)),
      *(layers.GroupNormalization(8, name='of_8'), layers.ReLU()),
    ],
    'of_2 has 2 groups of 4 channels, others 8',
  ),
  (
    [layers.Conv2D(4, 3, activation='relu'), _wrong(layers.BatchNormalization)],
    'normalises what an activation gives',
  ),
  (
    [layers.UpSampling2D(), _wrong(layers.Conv2D, 4, 2, activation='relu')],
    'has an activation; ours has none behind',
  ),
  (
    [_wrong(layers.Conv2DTranspose, 4, 2, 2, activation='relu')],
    'has an activation; ours has none behind',
  ),
  ([layers.AveragePooling2D(2)], 'it pools averages, not maxima'),
  (
    [layers.Conv2D(4, 3, activation='tanh')],
    'its activations are tanh; ours has one of relu, ',
  ),
]


@pytest.mark.parametrize('network,message', _REFUSED)
def test_a_network_that_is_not_ours_is_refused(network, message, tmp_path):
  x = image = keras.Input((8, 8, 1))
  for layer in network:
    x = layer(x)
  path = _save(keras.Model(image, x), tmp_path / 'network.keras')
  graph = files.read(str(path)).graph
  assert message in message_of(keras_graph.fields, graph)


def test_a_network_written_as_a_class_is_refused(tmp_path):
  class Network(keras.Model):
    def __init__(self):
      super().__init__()
      self.first = keras.layers.Conv2D(4, 3)

    def call(self, x):
      return self.first(x)

  network = Network()
  network(jnp.zeros((1, 8, 8, 1)))
  path = _save(network, tmp_path / 'network.keras')
  assert 'that is a class of its own' in message_of(files.read, str(path))
