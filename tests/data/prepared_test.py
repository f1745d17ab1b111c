"""Tests of unet_jax/data/prepared.py: one example, and sampled pixels."""

import io

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from tests.data import helpers
from tests.refusals import message_of
from unet_jax.data import array_files, examples, masks, prepared


def _data(**fields):
  return helpers.make_config(num_classes=3, **fields).data


def _example(image_size, mask_size):
  return {
    'image': np.zeros((*image_size, 3), np.uint8),
    'mask': np.zeros(mask_size, np.uint8),
    'name': 'images/a.jpg',
    'mask_name': 'masks/a.png',
  }


_TURNED = '; one is the other turned: an EXIF rotation, applied to one?'
_RESIZE = ', or resize it by the nearest pixel if it shows the whole image'


@pytest.mark.parametrize(
  'mask_size, shown, hint',
  [((3, 4), '4 x 3', _RESIZE), ((5, 2), '2 x 5', _TURNED)],
)
def test_sizes_that_differ(mask_size, shown, hint):
  example = _example((2, 5), mask_size)
  assert message_of(prepared.prepare_example, example, _data()) == (
    f'images/a.jpg is 5 x 2 pixels, masks/a.png {shown} (width x height); make '
    f'the mask of the image as it is stored{hint}'
  )


def test_a_tag_that_was_applied_to_one():
  """The setting that the line names pairs them."""
  mask, tag = np.zeros((4, 6), np.uint8), Image.Exif()
  mask[0] = 1
  tag[0x112] = 6
  example = {'name': 'a.png', 'mask_name': 'm.png'}
  turned = mask.T[:, ::-1]
  for key, array, exif in (('image', mask, tag), ('mask', turned, None)):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PNG', exif=exif)
    example[key] = file.getvalue()
  data = _data(orientation='stored')
  decoded = examples.decode_example(example, data)
  message = message_of(prepared.check_sizes, decoded, data)
  assert message.startswith(
    'a.png is 6 x 4 pixels, m.png 4 x 6 (width x height); the tags that turn '
    'them for display are 6 and 1'
  )
  assert 'set --config.data.orientation=upright, or' in message
  data = _data(orientation='upright')
  decoded = examples.decode_example(example, data)
  prepared.check_sizes(decoded, data)
  assert_array_equal(decoded['image'][..., 0] > 0, decoded['mask'] == 1)


def test_instances_of_another_size():
  example = _example((19, 31), (19, 31))
  example['instances'] = np.zeros((19, 30), int)
  message = message_of(prepared.prepare_example, example, _data())
  assert message.startswith(
    'images/a.jpg is 31 x 19 pixels, the instance mask of images/a.jpg 30 x 19 '
  )


def test_values_are_mapped_before_they_are_resized():
  """So that values of any size survive, and padding is not mapped."""
  example = _example((4, 4), (4, 4))
  example['mask'] = np.full((4, 4), 40000, np.uint16)
  data = _data(
    image_size=(4, 8), resize='pad', mask_values=((40000, 1), (255, 2))
  )
  got = prepared.prepare_example(example, data)
  assert got['mask'].dtype == np.uint8
  expected = np.full((4, 8), 255)
  expected[:, 2:6] = 1
  assert_array_equal(got['mask'], expected)


@pytest.mark.parametrize('resize', ['stretch', 'pad', 'crop'])
def test_instances_are_resized_with_the_mask(resize):
  seen = []
  example = _example((19, 31), (19, 31))
  example['mask'] = np.arange(19 * 31).reshape(19, 31) % 3
  # The number of an instance holds its value of the mask.
  example['instances'] = 1000 * (example['mask'] + 1)
  data = _data(image_size=(12, 12), resize=resize)
  spy = lambda mask, instances: seen.append(instances)
  mask = prepared.prepare_example(example, data, spy)['mask']
  expected = np.where(mask == 255, 0, 1000 * (mask.astype(int) + 1))
  assert_array_equal(seen[0], expected)


def test_sampled_pixels_are_spread_over_a_large_image():
  """The same each time."""
  mask = np.zeros((3, 2**16), np.uint8)
  mask[0, ::4] = mask[2] = 1
  sample = lambda index: prepared._sample_pixels(
    mask, masks.histogram(mask)[:2], index
  )
  background, points = sample(5)
  assert len(background) == len(points) == 1000
  assert np.all(mask[tuple(points.T)] == 1)
  assert len(np.unique(points, axis=0)) == 1000
  # Rows 0 and 2 have a fifth and four fifths of the pixels.
  in_rows = np.bincount(points[:, 0], minlength=3)
  assert in_rows[1] == 0 and abs(in_rows[0] - 200) < 65
  assert abs(points[:, 1].mean() / 2**16 - 0.5) < 0.05
  assert_array_equal(sample(5)[1], points)
  assert not np.array_equal(sample(6)[1], points)


def test_files_keep_any_array(tmp_path):
  """Of any order in memory, which files of NumPy keep."""
  rng, files = np.random.default_rng(0), array_files.Files(tmp_path)
  image = rng.integers(256, size=(5, 7, 3), dtype=np.uint8)
  arrays = [image, image.transpose(1, 0, 2), image[:, :, 0].T, image[::2]]
  arrays += [rng.random((1, 9)).astype(np.float16), image[:4], image + 1]
  arrays.append(np.asfortranarray(image))
  for row, array in enumerate(arrays):
    files[row] = array
  for row, array in enumerate(arrays):
    got = files[row]
    assert got.dtype == array.dtype and not got.flags.writeable
    assert_array_equal(got, array)
    assert_array_equal(got, np.load(tmp_path / f'{row:06d}.npy'))
