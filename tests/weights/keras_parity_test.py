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
import parity
import pytest

from unet_jax import errors, import_weights
from unet_jax.models import unet
from unet_jax.weights import deduce, files, naming

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


def _network(
  size=_SIZE,
  features=_FEATURES,
  upsample='transpose',
  norm=False,
  up_first=False,
  initializer='he_normal',
):
  layers = keras.layers

  def stage(x, channels):
    for _ in range(2):
      x = layers.Conv2D(
        channels,
        3,
        padding='same',
        activation=None if norm else 'relu',
        kernel_initializer=initializer,
      )(x)
      if norm:
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    return x

  x = images = keras.Input((size, size, 1))
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


def _config(**fields):
  return parity.make_config(
    data__image_size=(_SIZE, _SIZE),
    data__num_channels=1,
    data__num_classes=1,
    model__depth=3,
    model__base_features=4,
    **{'model__norm': 'none', **fields},
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
      {'model__upsample': 'bilinear', 'model__upsample_kernel': 2},
      False,
    ),
    (
      {'norm': True},
      {'model__norm': 'batch', 'model__norm_epsilon': 1e-3},
      False,
    ),
    (
      {'norm': True},
      {'model__norm': 'batch', 'model__norm_epsilon': 1e-3},
      True,
    ),
  ],
  ids=['lesson', 'bilinear', 'batch_norm', 'batch_norm_training'],
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
  if train:
    differences['statistics'] = parity.difference(stats, after['batch_stats'])
  parity.check(differences)
