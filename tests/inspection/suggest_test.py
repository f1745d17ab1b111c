"""Tests of unet_jax/data/suggest.py."""

import numpy as np
import pytest

from tests import folders
from unet_jax.config import checks
from unet_jax.config import fields as fields_lib
from unet_jax.data import sources
from unet_jax.inspection import records, scan, suggest
from unet_jax.models import unet


def measure(root, **data):
  config = folders.make_config(root, **data)
  source = sources.make_source(config, 'train')
  return scan.scan(source, config)[0], config


def suggested(root, **data):
  """{field: value}"""
  measurements, config = measure(root, **data)
  found = suggest.suggest(measurements, config)
  return {s.field: s.value for s in found}


def with_masks(root, make_mask):
  pairs = folders.make_pairs(5)
  folders.write_pairs(
    root, {k: (image, make_mask(mask)) for k, (image, mask) in pairs.items()}
  )


def _gray_255(mask):
  return mask * np.uint8(255)


def _three_values(mask):
  mask = mask * np.uint8(4)
  mask[:2] = 9
  mask[-1, 0] = 255
  return mask


def _colors(mask):
  colors = np.array([[10, 20, 30], [200, 0, 0]], np.uint8)
  return colors[mask]


@pytest.mark.parametrize(
  'make_mask, table, num_classes',
  [
    (lambda mask: mask, (), 2),
    (_gray_255, ((0, 0), (255, 1)), 2),
    (_three_values, ((0, 0), (4, 1), (9, 2), (255, 255)), 3),
    (_colors, (((10, 20, 30), 0), ((200, 0, 0), 1)), 2),
  ],
)
def test_table_of_values(tmp_path, make_mask, table, num_classes):
  with_masks(tmp_path, make_mask)
  got = suggested(tmp_path)
  assert got['data.mask_values'] == table
  assert got['data.num_classes'] == num_classes


def test_a_table_that_fits_stays(tmp_path):
  with_masks(tmp_path, lambda mask: mask)
  table = ((0, 1), (1, 0), (7, 255))
  got = suggested(tmp_path, mask_values=table)
  assert got['data.mask_values'] == table
  # More classes than there are do not stay.
  measurements, config = measure(tmp_path)
  config.data.num_classes = 4
  for m in measurements:
    m.class_pixels = np.append(m.class_pixels[:2], [0, 0, 0])
  found = {s.field: s for s in suggest.suggest(measurements, config)}
  assert found['data.num_classes'].now == 4
  assert found['data.num_classes'].value == 2


def test_normalization_is_that_of_all_pixels(tmp_path):
  pairs = folders.make_pairs(3)
  pairs['00'] = folders.make_pair(9, size=(60, 90))
  folders.write_pairs(tmp_path, pairs)
  measurements, _ = measure(tmp_path, val_fraction=0.01)
  assert len(measurements) == 2
  pixels = [pairs[m.name[-6:-4]][0].reshape(-1, 3) for m in measurements]
  pixels = np.concatenate(pixels) / 255
  mean, std = suggest.normalization(measurements)
  np.testing.assert_allclose(mean, pixels.mean(0), atol=6e-4)
  np.testing.assert_allclose(std, pixels.std(0), atol=6e-4)


def test_grey_files_have_one_channel(tmp_path):
  pairs = folders.make_pairs(3)
  folders.write_pairs(
    tmp_path, {k: (i[..., 0], m) for k, (i, m) in pairs.items()}
  )
  got = suggested(tmp_path)
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
  config = folders.make_config('unused')
  measurements = [
    records.Measurement(
      'train', i, image_size=s, mean=np.full(3, 0.5), std=np.full(3, 0.2)
    )
    for i, s in enumerate(sizes)
  ]
  got = {s.field: s.value for s in suggest.suggest(measurements, config)}
  assert got['data.image_size'] == size
  assert got['data.resize'] == resize
  assert got['model.depth'] == depth
  assert min(size) / 2**depth >= 4


def test_class_weights_are_median_frequencies():
  config = folders.make_config('unused', class_names=())
  config.data.num_classes = 3
  values = [{0: 900, 1: 100}, {0: 880, 1: 100, 2: 20}]
  measurements = [
    records.Measurement(
      'train',
      i,
      values=v,
      class_pixels=np.array([v.get(c, 0) for c in (0, 1, 2, 255)]),
    )
    for i, v in enumerate(values)
  ]
  got = {s.field: s.value for s in suggest.suggest(measurements, config)}
  # Frequencies 0.89, 0.1 and 20 of the 1000 pixels of the one mask that has it.
  expected = 0.1 / np.array([0.89, 0.1, 0.02])
  np.testing.assert_allclose(got['loss.class_weights'], expected, rtol=5e-3)


def test_the_config_file_runs(tmp_path):
  with_masks(tmp_path, _three_values)
  measurements, config = measure(tmp_path, class_names=('x', 'y'))
  config.optimizer.learning_rate = 0.5
  suggestions = suggest.suggest(measurements, config)
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
    assert fields_lib.flatten(made)[s.field] == s.value


def test_black_masks_among_colors(tmp_path):
  """A mask of one grey comes as one channel: it is the colour (0, 0, 0)."""
  pairs = folders.make_pairs(6)
  colors = np.array([[0, 0, 0], [200, 0, 0]], np.uint8)
  pairs = {k: (image, colors[mask]) for k, (image, mask) in pairs.items()}
  pairs['01'] = pairs['01'][0], 0 * pairs['01'][1]
  folders.write_pairs(tmp_path, pairs)
  got = suggested(tmp_path, val_fraction=0.01)
  assert got['data.mask_values'] == (((0, 0, 0), 0), ((200, 0, 0), 1))
  assert got['data.num_classes'] == 2
  # All pixels are counted, those of the black mask too.
  shares = np.mean([m[..., 0] > 0 for _, m in pairs.values() if m.ndim == 3])
  weights = got['loss.class_weights']
  assert weights == () or weights[1] / weights[0] > (1 - shares) / shares


def _measurements(size, **fields):
  return [
    records.Measurement(
      'train',
      i,
      image_size=size,
      mean=np.full(3, 0.5),
      std=np.full(3, 0.2),
      **fields,
    )
    for i in range(3)
  ]


@pytest.mark.parametrize('size', [(96, 96), (40, 70), (500, 375), (17, 500)])
def test_sizes_of_a_valid_network_fit(size):
  config = folders.make_config('unused')
  config.model.update(padding='valid', depth=4)
  found = suggest.suggest(_measurements(size), config)
  got = {s.field: s.value for s in found}
  config.model.depth = got['model.depth']
  model = unet.create_model(config)
  output = model.output_size(got['data.image_size'])
  assert all(2 * o >= n for o, n in zip(output, got['data.image_size']))
  assert got['data.resize'] == 'patch'


def test_what_depends_on_a_suggestion_follows():
  config = folders.make_config('unused', class_names=('a', 'b'), cache='none')
  config.data.num_classes = 2
  config.augment.rotate_90 = 0.5
  config.augment.hue.probability = 0.5
  config.eval.foreground = ('b',)
  config.checkpoint.best_metric = 'eval/dataset_iou/b'
  found = suggest.suggest(
    _measurements(
      (3000, 2000),
      values={0: 5, 1: 4, 2: 3},
      image_file=records.FileInfo('grey 8 bit PNG'),
    ),
    config,
  )
  changed = {s.field: s.value for s in found}
  assert changed['data.num_classes'] == 3
  assert changed['eval.foreground'] == ()
  assert changed['checkpoint.best_metric'] == 'eval/dataset_miou'
  assert changed['data.resize'] == 'patch' and changed['data.cache'] == 'disk'
  assert 'data.num_channels' not in changed  # hue needs colours.
  config.update_from_flattened_dict(changed)
  checks.validate(config)


def _of_values(*masks, **fields):
  """Measurements of masks {value: pixels}."""
  return [
    records.Measurement('train', i, values=dict(values), **fields)
    for i, values in enumerate(masks)
  ]


def test_slips_of_the_pen_are_no_classes():
  config = folders.make_config('unused')
  plain = [{0: 5000, 255: 4000}] * 20
  slip = {0: 5000, 255: 3991, 128: 9}
  found = suggest.suggest(_of_values(*plain, slip), config)
  got = {s.field: s for s in found}
  assert got['data.mask_values'].value == ((0, 0), (255, 1))
  assert 'skipped' in got['data.mask_values'].why
  assert '128' in got['data.mask_values'].why
  # A rare class is in many masks, or large in a few.
  for rare in ([{0: 9000, 1: 5}] * 21, [{0: 9000}] * 20 + [{0: 8000, 1: 999}]):
    found = suggest.suggest(_of_values(*rare), config)
    assert {s.field: s.value for s in found}['data.num_classes'] == 2
  # A table that explains nearly all masks stays.
  config.data.mask_values = ((0, 0), (255, 1))
  measurements = _of_values(*plain, slip)
  for m in measurements[:-1]:
    m.class_pixels = np.array([5000, 4000, 0])
  found = {s.field: s for s in suggest.suggest(measurements, config)}
  assert found['data.mask_values'].value == ((0, 0), (255, 1))
  assert (
    found['data.mask_values'].why == 'fits all masks but 1, which need fixing'
  )


def test_jpeg_masks_suggest_no_table():
  config = folders.make_config('unused')
  masks = [{v: 100 for v in (*range(9), *range(246, 256))}] * 4
  jpeg = records.FileInfo('grey 8 bit JPEG')
  found = suggest.suggest(_of_values(*masks, mask_file=jpeg), config)
  got = {s.field: s.value for s in found}
  assert got['data.mask_values'] == () and got['data.num_classes'] == 2


def test_deep_images_that_are_nearly_black():
  config = folders.make_config('unused')
  measurements = _measurements(
    (64, 64), image_file=records.FileInfo('grey 16 bit PNG')
  )
  for m in measurements:
    m.mean = np.full(3, 0.02)
  got = {s.field: s.value for s in suggest.suggest(measurements, config)}
  assert got['data.intensity'] == 'image' and got['data.mean'] == (0.5,)


def test_no_weight_is_huge():
  config = folders.make_config('unused')
  measurements = _of_values({0: 10**7, 1: 100}, {0: 10**7, 1: 100})
  got = {s.field: s.value for s in suggest.suggest(measurements, config)}
  assert got['loss.class_weights'] == (0.5, 10.0)
