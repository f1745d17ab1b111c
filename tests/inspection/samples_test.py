"""What some files of a set say for the config that is suggested."""

import numpy as np
import pytest
import tifffile

from tests import folders
from unet_jax.data import sources
from unet_jax.inspection import samples

_RNG = np.random.default_rng(0)


def _choose(root, images, **data):
  """What is chosen for images of a folder."""
  for folder in ('images', 'masks'):
    (root / folder).mkdir()
  for i, image in enumerate(images):
    tifffile.imwrite(root / f'images/{i}.tif', image)
    tifffile.imwrite(root / f'masks/{i}.tif', np.zeros(image.shape, np.uint8))
  config = folders.make_config(root, val_fraction=0.1, **data)
  source = sources.make_source(config, 'train', [])
  return samples.choose_intensity(source, config.data)[0]


def _noise(low, high, dtype, size=(40, 50)):
  return _RNG.uniform(low, high, size).astype(dtype)


@pytest.mark.parametrize(
  'images, chosen',
  [
    ([_noise(0, 255, np.uint8)] * 9, None),
    ([_noise(0, 60000, np.uint16)] * 9, None),
    ([_noise(0, 1, np.float32)] * 9, None),
    # 12 bits in 16.
    ([_noise(0, 4095, np.uint16)] * 9, (0, 4095)),
    ([_noise(-1000, 900, np.int16)] * 9, (-1000, 900)),
    ([_noise(0, 0.02, np.float32)] * 9, (0, 0.02)),
    ([_noise(0, 3000, np.int32) for _ in range(9)], (0, 3000)),
    # Units of their own, as of magnetic resonance.
    ([_noise(0, 90 * 2**i, np.int16) for i in range(8)], 'image'),
    (
      [_noise(0, 2000, np.float32)] * 6 + [_noise(0, 99, np.uint8)] * 4,
      'image',
    ),
  ],
  ids=(
    'bytes, 16 bits, floats, 12 bits, int16, reflectances, int32, units, mixed'
  ).split(', '),
)
def test_intensity_follows_from_the_values(tmp_path, images, chosen):
  found = _choose(tmp_path, images)
  if chosen is None:
    assert found == {}
  elif chosen == 'image':
    assert found == {'intensity': 'image'}
  else:
    assert found['intensity'] == 'range'
    np.testing.assert_allclose(
      found['intensity_range'], chosen, atol=0.01 * (chosen[1] - chosen[0])
    )


def test_no_data_is_no_end_of_the_range(tmp_path):
  images = [_noise(0, 0.2, np.float32) for _ in range(9)]
  for i, image in enumerate(images):
    image[:, : 4 + i] = -9999
  found = _choose(tmp_path, images)
  assert found['nodata'] == (-9999,)
  low, high = found['intensity_range']
  assert -0.01 < low < 0.01 and 0.19 < high < 0.21


def test_of_stacks_no_page_stands_for_the_others(tmp_path):
  stack = np.stack(
    [_noise(-1000, top, np.int16) for top in (96, 50, 900, 60, 3000)]
  )
  (tmp_path / 'a').mkdir()
  assert _choose(tmp_path / 'a', [stack] * 4) == {}  # It is refused as yet.
  (tmp_path / 'b').mkdir()
  found = _choose(tmp_path / 'b', [stack] * 4, pages='images')
  assert found['intensity_range'][1] > 2000


def test_what_was_chosen_by_somebody_stays(tmp_path):
  images = [_noise(0, 4095, np.uint16)] * 4
  assert _choose(tmp_path, images, intensity='image') == {}


def test_iou_that_resized_masks_keep():
  data = folders.make_config('unused').data
  mask = np.zeros((8, 8), np.uint8)
  mask[2:6, 2:6] = 1
  mask[0, 0] = 255
  assert samples.kept_iou([mask], (4, 4), data) == {0: 1.0, 1: 1.0}
  # A line of one pixel becomes two, or nothing.
  mask = np.zeros((8, 8), np.uint8)
  mask[3] = 1
  kept = samples.kept_iou([mask], (4, 4), data)
  assert kept[1] <= 0.5 and kept[0] >= 48 / 56
