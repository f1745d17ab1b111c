"""The config that is suggested."""

import numpy as np
import pytest

from tests import folders
from tests.inspection import measured
from unet_jax.config import checks, fields
from unet_jax.inspection import records, suggest
from unet_jax.models import unet


def _values(measurements, config):
  """{field: value}"""
  return {s.field: s.value for s in suggest.suggest(measurements, config)}


def _measurements(*sizes, **known):
  known = {'mean': np.full(3, 0.5), 'std': np.full(3, 0.2), **known}
  return [
    records.Measurement('train', i, image_size=size, **known)
    for i, size in enumerate(sizes)
  ]


def test_normalization_is_that_of_all_pixels(tmp_path):
  pairs = folders.make_pairs(3)
  pairs['00'] = folders.make_pair(9, size=(60, 90))
  folders.write_pairs(tmp_path, pairs)
  measurements = measured.measure(tmp_path, val_fraction=0.01)[0]['train']
  assert len(measurements) == 2
  pixels = [pairs[m.name[-6:-4]][0].reshape(-1, 3) for m in measurements]
  pixels = np.concatenate(pixels) / 255
  mean, std = suggest.normalization(measurements)
  np.testing.assert_allclose(mean, pixels.mean(0), atol=6e-4)
  np.testing.assert_allclose(std, pixels.std(0), atol=6e-4)


def test_grey_files_have_one_channel(tmp_path):
  pairs = folders.make_pairs(3).items()
  folders.write_pairs(tmp_path, {k: (i[..., 0], m) for k, (i, m) in pairs})
  splits, config = measured.measure(tmp_path)
  got = _values(splits['train'], config)
  assert got['data.num_channels'] == 1 and len(got['data.mean']) == 1


@pytest.mark.parametrize(
  'sizes, size, resize, depth',
  [
    ([(128, 128)] * 3, (128, 128), 'stretch', 5),
    ([(96, 40)] * 3, (96, 40), 'stretch', 3),
    ([(500, 375), (480, 360)], (288, 224), 'stretch', 5),
    ([(500, 300), (300, 500)], (256, 256), 'pad', 6),
    ([(4000, 3000)] * 2, (256, 256), 'patch', 6),
  ],
)
def test_size_and_depth(sizes, size, resize, depth):
  got = _values(_measurements(*sizes), folders.make_config('unused'))
  assert got['data.image_size'] == size
  assert got['data.resize'] == resize
  assert got['model.depth'] == depth
  assert min(size) / 2**depth >= 4


@pytest.mark.parametrize('size', [(96, 96), (40, 70), (500, 375), (17, 500)])
def test_sizes_of_a_valid_network_fit(size):
  config = folders.make_config('unused')
  config.model.update(padding='valid', depth=4)
  got = _values(_measurements(size, size, size), config)
  config.model.depth = got['model.depth']
  output = unet.create_model(config).output_size(got['data.image_size'])
  assert all(2 * o >= n for o, n in zip(output, got['data.image_size']))
  assert got['data.resize'] == 'patch'


def test_what_depends_on_a_suggestion_follows():
  config = folders.make_config('unused', class_names=('a', 'b'), cache='none')
  config.data.num_classes = 2
  config.augment.rotate_90 = 0.5
  config.augment.hue.probability = 0.5
  config.eval.foreground = ('b',)
  config.checkpoint.best_metric = 'eval/dataset_iou/b'
  grey, values = records.FileInfo('grey 8 bit PNG'), {0: 5, 1: 4, 2: 3}
  sizes = [(3000, 2000)] * 3
  measurements = _measurements(*sizes, values=values, image_file=grey)
  changed = _values(measurements, config)
  assert changed['data.num_classes'] == 3
  assert changed['eval.foreground'] == ()
  assert changed['checkpoint.best_metric'] == 'eval/dataset_miou'
  assert changed['data.resize'] == 'patch' and changed['data.cache'] == 'disk'
  assert 'data.num_channels' not in changed  # hue needs colours.
  config.update_from_flattened_dict(changed)
  checks.validate(config)


def test_deep_images_that_are_nearly_black():
  deep = {'image_file': records.FileInfo('grey 16 bit PNG')}
  measurements = _measurements(*[(64, 64)] * 3, mean=np.full(3, 0.02), **deep)
  got = _values(measurements, folders.make_config('unused'))
  assert got['data.intensity'] == 'image' and got['data.mean'] == (0.5,)


def test_the_config_file_runs(tmp_path):
  pairs = folders.make_pairs(5)
  for _, mask in pairs.values():
    mask *= 4
    mask[:2] = 9
    mask[-1, 0] = 255
  folders.write_pairs(tmp_path, pairs)
  splits, config = measured.measure(tmp_path, class_names=('x', 'y'))
  config.optimizer.learning_rate = 0.5
  suggestions = suggest.suggest(splits['train'], config)
  text = suggest.config_text(suggestions, config, 'a """place\\')
  lines = text.replace(str(tmp_path), 'DIR').splitlines()
  assert max(map(len, lines)) <= 80
  namespace = {}
  exec(text, namespace)
  made = namespace['get_config']()
  checks.validate(made)
  assert made.data.mask_values == ((0, 0), (4, 1), (9, 2), (255, 255))
  assert made.data.class_names == ()
  assert made.data.dir == str(tmp_path)
  assert made.optimizer.learning_rate == 0.5
  for s in suggestions:
    assert fields.flatten(made)[s.field] == s.value
