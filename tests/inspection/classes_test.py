"""The table of mask values and the class weights that are suggested."""

import numpy as np
import pytest

from tests import folders
from tests.inspection import measured
from unet_jax.inspection import records, suggest


def _suggest(measurements, config):
  """{field: suggestion}"""
  return {s.field: s for s in suggest.suggest(measurements, config)}


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
  # All pixels are counted, those of the black mask too.
  shares = np.mean([m[..., 0] > 0 for _, m in pairs.values() if m.ndim == 3])
  weights = got['loss.class_weights']
  assert weights == () or weights[1] / weights[0] > (1 - shares) / shares


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


def test_jpeg_masks_suggest_no_table():
  masks = [{v: 100 for v in (*range(9), *range(246, 256))}] * 4
  jpeg = records.FileInfo('grey 8 bit JPEG')
  measurements = _of_values(*masks, mask_file=jpeg)
  got = _values(measurements, folders.make_config('unused'))
  assert got['data.mask_values'] == () and got['data.num_classes'] == 2


def test_class_weights_are_median_frequencies():
  config = folders.make_config('unused', class_names=())
  config.data.num_classes = 3
  measurements = _of_values({0: 900, 1: 100}, {0: 880, 1: 100, 2: 20})
  for m in measurements:
    m.class_pixels = np.array([m.values.get(c, 0) for c in (0, 1, 2, 255)])
  weights = _values(measurements, config)['loss.class_weights']
  # Frequencies 0.89, 0.1 and 20 of the 1000 pixels of the one mask that has it.
  expected = 0.1 / np.array([0.89, 0.1, 0.02])
  np.testing.assert_allclose(weights, expected, rtol=5e-3)


def test_no_weight_is_huge():
  measurements = _of_values({0: 10**7, 1: 100}, {0: 10**7, 1: 100})
  got = _values(measurements, folders.make_config('unused'))
  assert got['loss.class_weights'] == (0.5, 10.0)
