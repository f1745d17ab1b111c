"""The table of mask values and the class weights that are suggested."""

import numpy as np
import pytest

from tests import folders
from tests.inspection import measured
from unet_jax.inspection import records, samples, scan, suggest


def _suggest(measurements, config, sampled=()):
  """{field: suggestion}"""
  suggestions = suggest.suggest({'train': measurements}, sampled, config)
  return {s.field: s for s in suggestions}


def _values(measurements, config):
  return {field: s.value for field, s in _suggest(measurements, config).items()}


def _suggest_for(root, make_mask, **data):
  pairs = folders.make_pairs(5).items()
  folders.write_pairs(root, {k: (i, make_mask(m)) for k, (i, m) in pairs})
  splits, config = measured.measure(root, **data)
  return _values(splits['train'], config)


def _three_values(mask):
  mask = mask * np.uint8(4)
  mask[:2] = 9
  mask[-1, 0] = 255
  return mask


_COLORS = np.array([[10, 20, 30], [200, 0, 0]], np.uint8)


@pytest.mark.parametrize(
  'make_mask, table, num_classes',
  [
    (lambda mask: mask, (), 2),
    (lambda mask: mask * np.uint8(255), ((0, 0), (255, 1)), 2),
    (_three_values, ((0, 0), (4, 1), (9, 2), (255, 255)), 3),
    (lambda mask: _COLORS[mask], (((10, 20, 30), 0), ((200, 0, 0), 1)), 2),
  ],
)
def test_table_of_values(tmp_path, make_mask, table, num_classes):
  got = _suggest_for(tmp_path, make_mask)
  assert got['data.mask_values'] == table
  assert got['data.num_classes'] == num_classes


def test_a_table_that_fits_stays(tmp_path):
  table = ((0, 1), (1, 0), (7, 255))
  got = _suggest_for(tmp_path, lambda mask: mask, mask_values=table)
  assert got['data.mask_values'] == table
  # More classes than there are do not stay.
  splits, config = measured.measure(tmp_path)
  config.data.num_classes = 4
  for m in splits['train']:
    m.class_pixels = np.append(m.class_pixels[:2], [0, 0, 0])
  found = _suggest(splits['train'], config)['data.num_classes']
  assert (found.now, found.value) == (4, 2)


def test_black_masks_among_colors(tmp_path):
  """A mask of one grey comes as one channel: it is the colour (0, 0, 0)."""
  pairs = folders.make_pairs(6)
  colors = np.array([[0, 0, 0], [200, 0, 0]], np.uint8)
  pairs = {k: (image, colors[mask]) for k, (image, mask) in pairs.items()}
  pairs['01'] = pairs['01'][0], 0 * pairs['01'][1]
  folders.write_pairs(tmp_path, pairs)
  splits, config = measured.measure(tmp_path, val_fraction=0.01)
  got = _values(splits['train'], config)
  assert got['data.mask_values'] == (((0, 0, 0), 0), ((200, 0, 0), 1))
  assert got['data.num_classes'] == 2


def _of_values(*masks, **known):
  """Measurements of masks {value: pixels}."""
  return [
    records.Measurement('train', i, values=dict(values), **known)
    for i, values in enumerate(masks)
  ]


def test_slips_of_the_pen_are_no_classes():
  config = folders.make_config('unused')
  plain = [{0: 5000, 255: 4000}] * 20
  slip = {0: 5000, 255: 3991, 128: 9}
  table = _suggest(_of_values(*plain, slip), config)['data.mask_values']
  assert table.value == ((0, 0), (255, 1))
  assert 'skipped' in table.why and '128' in table.why
  # A rare class is in many masks, or large in a few.
  for rare in ([{0: 9000, 1: 5}] * 21, [{0: 9000}] * 20 + [{0: 8000, 1: 999}]):
    assert _values(_of_values(*rare), config)['data.num_classes'] == 2
  # A table that explains nearly all masks stays.
  config.data.mask_values = ((0, 0), (255, 1))
  measurements = _of_values(*plain, slip)
  for m in measurements[:-1]:
    m.class_pixels = np.array([5000, 4000, 0])
  table = _suggest(measurements, config)['data.mask_values']
  assert table.value == ((0, 0), (255, 1))
  assert table.why == 'fits all masks but 1, which need fixing'


def test_what_alone_is_drawn_is_no_slip():
  config = folders.make_config('unused')
  empty = [{0: 99_999}] * 30
  found = _suggest(_of_values(*empty, {0: 99_900, 7: 99}), config)
  assert found['data.mask_values'].value == ((0, 0), (7, 1))


def test_jpeg_masks_suggest_no_table():
  masks = [{v: 100 for v in (*range(9), *range(246, 256))}] * 4
  jpeg = records.FileInfo('grey 8 bit JPEG')
  measurements = _of_values(*masks, mask_file=jpeg)
  got = _values(measurements, folders.make_config('unused'))
  assert got['data.mask_values'] == () and got['data.num_classes'] == 2


def test_a_class_of_another_split_counts(tmp_path):
  """Otherwise its evaluation would fail."""
  pairs = folders.make_pairs(4)
  val = {k: (i, 2 * m) for k, (i, m) in folders.make_pairs(2, 50).items()}
  measured.write(tmp_path, val, train=pairs)
  splits, config = measured.measure(tmp_path, 'train', 'val')
  found = {s.field: s.value for s in suggest.suggest(splits, [], config)}
  assert found['data.num_classes'] == 3


def _of_masks(*sampled):
  """Measurements of masks."""
  return [
    records.Measurement('train', i, values=scan.count_values(mask))
    for i, mask in enumerate(sampled)
  ]


def _draw_objects(number, ids, dtype=np.uint16):
  """Squares that have numbers of their own; some touch."""
  mask = np.zeros((64, 64), dtype)
  for k in range(number):
    y, x = k // 10 * 6, k % 10 * 6
    mask[y : y + 6, x : x + 5 + k % 2] = ids[k]
  return mask


_SPREAD = np.random.default_rng(0).permutation(60000)[:1000] + 1


@pytest.mark.parametrize(
  'sampled',
  [
    [_draw_objects(n, range(1, 61)) for n in (5, 23, 40, 12, 31, 9)],
    [_draw_objects(n, range(1, 61), np.uint8) for n in (5, 23, 40, 12, 31, 9)],
    # Few in an image, and ids that go on through the set.
    [_draw_objects(9, range(9 * i + 1, 9 * i + 10)) for i in range(20)],
    [_draw_objects(20, _SPREAD[20 * i :]) for i in range(6)],
    # One in an image, with a number of its own.
    [_draw_objects(1, [i]) for i in range(1, 25)],
    [_draw_objects(1 + i % 3, range(2 * i, 2 * i + 3)) for i in range(1, 13)],
    # Hundreds, of which each is in several parts.
    [np.arange(64 * 64).reshape(64, 64) // (9 + i) for i in range(4)],
  ],
  ids='from 1,bytes,through the set,spread,one each,few each,hundreds'.split(
    ','
  ),
)
def test_objects_are_one_class(sampled):
  config = folders.make_config('unused')
  table = _suggest(_of_masks(*sampled), config, sampled)['data.mask_values']
  assert table.value == ((0, 0), ('others', 1))
  assert 'number objects' in table.why
  is_large = max(mask.max() for mask in sampled) > 255
  assert (samples.OBJECT_ODDS in table.why) != is_large


def test_random_colors_are_objects():
  rng = np.random.default_rng(0)
  sampled = []
  for _ in range(12):
    table = rng.integers(1, 256, (31, 3)).astype(np.uint8)
    table[0] = 0
    sampled.append(table[_draw_objects(20, range(1, 31))])
  table = _suggest(_of_masks(*sampled), folders.make_config('unused'))
  assert table['data.mask_values'].value == (((0, 0, 0), 0), ('others', 1))


def _draw_classes(seed, number, present):
  """A map of patches of classes, each of several parts."""
  rng = np.random.default_rng(seed)
  chosen = np.append(0, 1 + rng.permutation(number - 1)[: present - 1])
  return rng.choice(chosen, (16, 16)).repeat(4, 0).repeat(4, 1).astype(np.uint8)


@pytest.mark.parametrize(
  'sampled, num_classes',
  [
    ([_draw_classes(i, 20, 20) for i in range(8)], 20),
    # Scenes show some of many classes.
    ([_draw_classes(i, 100, 12) for i in range(60)], 100),
    # Organs: each is one part, and all are in each image.
    ([_draw_objects(12, range(1, 13)) for _ in range(6)], 13),
    ([_draw_objects(24, range(1, 25)) for _ in range(6)], 25),
    # Of each image, most of them.
    ([_draw_objects(20, range(1 + i % 4, 25)) for i in range(12)], 24),
    # Breeds: each image shows one animal.
    ([_draw_objects(1, [1 + i % 24])[:9, :9] for i in range(96)], 25),
    # Few objects are told from few classes by nobody.
    ([_draw_objects(n, range(1, 4)) for n in (1, 2, 3)], 4),
  ],
  ids='patches,scenes,organs,many organs,most organs,breeds,few'.split(','),
)
def test_classes_are_no_objects(sampled, num_classes):
  config = folders.make_config('unused')
  found = _suggest(_of_masks(*sampled), config, sampled)
  assert found['data.num_classes'].value == num_classes


def test_rare_classes_take_dice_and_no_large_weights():
  config = folders.make_config('unused')
  found = _values(
    _of_values(
      {0: 9000, 1: 100}, mean=np.zeros(3), std=np.ones(3), image_size=(64, 64)
    ),
    config,
  )
  assert found['loss.weights.dice'] == 1
  assert 'loss.class_weights' not in found
  balanced = _of_values(
    {0: 90, 1: 60}, mean=np.zeros(3), std=np.ones(3), image_size=(64, 64)
  )
  assert 'loss.weights.dice' not in _values(balanced, config)
