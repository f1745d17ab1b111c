"""The config that is suggested."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import folders, tiny
from tests.inspection import measured
from unet_jax.config import checks, fields
from unet_jax.inspection import plan, records, samples, suggest
from unet_jax.models import unet


def _values(measurements, config, sampled=()):
  """{field: value}"""
  suggestions = suggest.suggest({'train': measurements}, sampled, config)
  return {s.field: s.value for s in suggestions}


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
    # Few images, whatever their size.
    ([(128, 128)] * 3, (128, 128), 'stretch', 3),
    ([(512, 512)] * 24, (256, 256), 'patch', 3),
    ([(128, 128)] * 100, (128, 128), 'stretch', 4),
    ([(96, 40)] * 3, (96, 40), 'stretch', 2),
    ([(20, 37), (18, 40)], (32, 48), 'stretch', 2),
    ([(128, 128)] * 2000, (128, 128), 'stretch', 4),
    ([(256, 256)] * 2000, (256, 256), 'stretch', 5),
  ],
)
def test_size_and_depth(sizes, size, resize, depth):
  got = _values(_measurements(*sizes), folders.make_config('unused'))
  assert got['data.image_size'] == size
  assert got['data.resize'] == resize
  assert got['model.depth'] == depth


def _stripes(width, size=(480, 640)):
  """A mask of stripes of so many pixels."""
  return np.broadcast_to(np.arange(size[1]) // width % 2, size).astype(np.uint8)


@pytest.mark.parametrize(
  'width, size, resize',
  [
    (64, (112, 144), 'stretch'),
    (12, (224, 288), 'stretch'),
    # Thin structures: no smaller size keeps them.
    (2, (256, 256), 'patch'),
  ],
)
def test_the_size_is_what_the_masks_need(width, size, resize):
  measurements = _measurements(*[(480, 640)] * 4)
  config = folders.make_config('unused')
  mask = _stripes(width)
  suggestions = suggest.suggest({'train': measurements}, [mask], config)
  found = {s.field: s for s in suggestions}
  assert found['data.image_size'].value == size
  assert found['data.resize'].value == resize
  assert 'the right masks themselves still reach an IoU of' in (
    found['data.image_size'].why
  )
  if resize == 'stretch':
    kept = samples.kept_iou([mask], size, config.data)
    assert np.mean(list(kept.values())) > 0.9


def test_images_whose_aspect_varies_are_padded():
  sizes = [(500, 300), (300, 500)] * 3
  got = _values(_measurements(*sizes), folders.make_config('unused'))
  assert got['data.resize'] in ('pad', 'patch')


def test_the_network_fits_the_number_of_images_and_the_machine():
  """No network of 82 million parameters for 30 images."""
  for number in (30, 3000):
    measurements = _measurements(*[(128, 128)] * number)
    config = folders.make_config('unused')
    on_cpu = suggest.suggest({'train': measurements}, [], config)
    on_cpu = {s.field: s.value for s in on_cpu}
    other = suggest.suggest({'train': measurements}, [], config, on_cpu=False)
    other = {s.field: s.value for s in other}
    assert on_cpu['model.base_features'] == 16
    assert other['model.base_features'] == (32 if number == 30 else 64)
    assert on_cpu['data.batch_size'] <= other['data.batch_size'] <= number / 2


@pytest.mark.parametrize(
  'size, batch', [((128, 128), 16), ((112, 160), 16), ((256, 256), 4)]
)
def test_the_batch_is_the_nearest_power_of_two(size, batch):
  """A little more than a batch's pixels does not halve it; few images do."""
  assert plan.choose_width(size, 300, True) == (16, batch)
  assert plan.choose_width(size, 60, True) == (16, batch // 2)


@pytest.mark.parametrize(
  'num_steps, rate', [(100, 5e-3), (500, 4e-3), (2000, 2e-3), (50_000, 2e-3)]
)
def test_the_learning_rate_fits_the_run(num_steps, rate):
  config = folders.make_config('unused')
  config.train.num_steps = num_steps
  got = _values(_measurements((64, 64), (64, 64)), config)
  assert got['optimizer.learning_rate'] == rate
  # Another than the default was chosen by somebody.
  config.optimizer.learning_rate = 0.1
  got = _values(_measurements((64, 64), (64, 64)), config)
  assert 'optimizer.learning_rate' not in got


def test_flop_of_a_step_are_those_that_the_compiler_counts():
  config = tiny.make_config(data={'image_size': (64, 64), 'batch_size': 2})
  config.model.update(depth=3, base_features=16)
  model = unet.create_model(config)
  image = jnp.zeros((2, 64, 64, config.data.num_channels))
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )
  apply = lambda p, x: model.apply(p, x, train=False)
  lowered = jax.jit(apply).lower(params, image)
  forward = lowered.cost_analysis()['flops']
  assert plan.step_flop(config) == pytest.approx(3 * forward, rel=0.1)


def _oriented(image, mask, *orientations):
  files = [records.FileInfo('RGB 8 bit PNG', o, 1) for o in orientations]
  return records.Measurement(
    'train',
    0,
    'a.png',
    image_size=image,
    mask_size=mask,
    image_file=files[0],
    mask_file=files[1],
  )


def test_orientation_is_applied_where_sizes_fit_only_then():
  turned = _oriented((4, 6), (6, 4), 6, 1)
  plain = _oriented((4, 6), (4, 6), 1, 1)
  other = _oriented((4, 6), (4, 9), 6, 1)
  as_stored = _oriented((4, 6), (4, 6), 6, 1)
  both = _oriented((4, 6), (4, 6), 6, 8)
  data = tiny.make_config().data
  choose = lambda *found: suggest.choose_orientation(
    {'train': found[:1], 'val': found[1:]}, data
  )[0]
  upright = {'orientation': 'upright'}
  for found in ((turned,), (plain, turned), (turned, other, both)):
    assert choose(*found) == upright
  for found in ((plain, other), (as_stored, both), (turned, as_stored)):
    assert not choose(*found)
  data.orientation = 'upright'
  assert not choose(turned)


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
  sizes = [(600, 400)] * 3
  measurements = _measurements(*sizes, values=values, image_file=grey)
  changed = _values(measurements, config, [_stripes(2, (600, 400))])
  assert changed['data.num_classes'] == 3
  assert changed['eval.foreground'] == ()
  assert changed['checkpoint.best_metric'] == 'eval/dataset_miou'
  assert changed['data.resize'] == 'patch' and changed['data.cache'] == 'disk'
  assert 'data.num_channels' not in changed  # hue needs colours.
  config.update_from_flattened_dict(changed)
  checks.validate(config)


def test_the_config_file_runs(tmp_path):
  pairs = folders.make_pairs(5)
  for _, mask in pairs.values():
    mask *= 4
    mask[:2] = 9
    mask[-1, 0] = 255
  folders.write_pairs(tmp_path, pairs)
  splits, config = measured.measure(tmp_path, class_names=('x', 'y'))
  config.optimizer.learning_rate = 0.5
  suggestions = suggest.suggest(splits, [], config)
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


@pytest.mark.parametrize(
  'count, table',
  [
    (3, '((0, 0), (1, 1), (2, 2), (255, 255))'),
    (60, '((0, 0), (1, 1), ..., (59, 59), (255, 255))'),
  ],
)
def test_the_default_table_is_written_out(count, table):
  values = {**dict.fromkeys(range(count), 100), 255: 7}
  config = folders.make_config('unused', num_classes=count)
  found = suggest.suggest(
    {'train': _measurements((40, 40), values=values)}, (), config
  )
  (s,) = (s for s in found if s.field == 'data.mask_values')
  assert s.value == ()
  assert s.why.endswith(f'; () stands for {table}, where 255 is ignored')
