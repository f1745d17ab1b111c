"""Names that are derived from a config; allowed values stand once."""

import numpy as np
import pytest

from unet_jax.config import default, fields
from unet_jax.data import augment_geometry, sources
from unet_jax.evaluation import confusion
from unet_jax.models import blocks, resample
from unet_jax.training import losses
from unet_jax.weights import match


def test_tables_of_functions_have_the_allowed_values():
  choices = fields.CHOICES
  assert set(sources.SOURCES) == set(choices['data.source'])
  assert set(blocks.ACTIVATIONS) == set(choices['model.activation'])
  # `conv` has parameters.
  assert {*resample.POOLINGS, 'conv'} == set(choices['model.downsample'])
  assert set(match.UP_FIRST) == set(choices['weights.concat'])
  interpolations = augment_geometry.INTERPOLATIONS
  assert set(interpolations) == set(choices['augment.interpolation'])
  terms = default.get_config().loss.weights
  assert set(losses.LOSSES) == set(terms)


def test_class_names():
  config = default.get_config()
  numbered = ('class_0', 'class_1', 'class_2', 'class_3')
  assert fields.class_names(config) == numbered
  config.data.num_classes = 1
  assert fields.class_names(config) == ('background', 'foreground')
  config.data.class_names = ('sky', 'bird')
  assert fields.class_names(config) == ('sky', 'bird')


@pytest.mark.parametrize(
  'foreground', [(), ('class_1',), ('class_1', 'class_3')]
)
def test_metric_names_are_those_of_an_evaluation(foreground):
  config = default.get_config()
  config.eval.foreground = foreground
  counts = np.zeros((1, 4, 4), np.int64)
  scores = confusion.scores(counts, fields.class_names(config), foreground)
  names = fields.metric_names(config)
  assert set(names) == {f'eval/{name}' for name in (*scores, 'loss')}
  assert len(names) == len(set(names))


def test_cache_dir(monkeypatch):
  config = default.get_config()
  monkeypatch.setenv('HOME', '/home/ada')
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  assert fields.cache_dir(config) == '/home/ada/.cache/unet_jax'
  monkeypatch.setenv('XDG_CACHE_HOME', '/cache')
  assert fields.cache_dir(config) == '/cache/unet_jax'
  config.data.cache_dir = '~/mine'
  assert fields.cache_dir(config) == '/home/ada/mine'
