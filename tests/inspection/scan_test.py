"""Measurements, against NumPy and scikit-image."""

import io

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose
from PIL import Image
from skimage import measure

from tests import folders
from tests.inspection import measured
from unet_jax.config import default
from unet_jax.data import image_levels, sources
from unet_jax.inspection import records, scan, second_look


def scan_folder(root, **data):
  return measured.measure(root, **data)[0]['train']


def test_measures_what_numpy_and_skimage_measure(tmp_path):
  image, mask = folders.make_pair()
  mask[0:2, 0:2] = 1  # A second part.
  mask[30, 30] = 255
  folders.write_pairs(tmp_path, {'a': (image, mask), 'b': folders.make_pair(1)})
  first, second = scan_folder(tmp_path, val_fraction=0.01)[:1] * 2
  assert first.error is None
  assert first.split == 'train' and first.name.endswith('a.png')
  assert first.image_size == first.mask_size == (40, 48)
  assert first.image_file == records.FileInfo('RGB 8 bit PNG')
  assert first.mask_file == records.FileInfo('grey 8 bit PNG')
  np.testing.assert_allclose(first.mean, image.mean((0, 1)) / 255, rtol=1e-6)
  np.testing.assert_allclose(first.std, image.std((0, 1)) / 255, rtol=1e-6)
  values, counts = np.unique(mask, return_counts=True)
  assert first.values == dict(zip(values.tolist(), counts.tolist()))
  np.testing.assert_array_equal(first.class_pixels, counts)
  expected = [measure.label(mask == c, connectivity=2).max() for c in (0, 1)]
  np.testing.assert_array_equal(first.instances, expected)
  assert first.fit is not None
  assert abs(np.linalg.norm(second.thumbnail) - 1) < 1e-5


def test_pages_of_a_file_are_no_duplicates(tmp_path):
  pairs = [folders.make_pair(seed) for seed in (0, 1, 0)]
  for folder, arrays in zip(('images', 'masks'), zip(*pairs)):
    (tmp_path / folder).mkdir()
    pages = [Image.fromarray(array) for array in arrays]
    for stem in 'ab':
      path = tmp_path / folder / f'{stem}.tif'
      pages[0].save(path, save_all=True, append_images=pages[1:])
  first, second, third = scan_folder(tmp_path, pages='images')
  assert first.digest == third.digest != second.digest


@pytest.mark.parametrize(
  'image, mask, kind, message',
  [
    (b'no image', None, 'broken', 'cannot identify'),
    (None, np.full((40, 48), 7, np.uint8), 'unknown values', 'value 7 in 1920'),
    (None, np.zeros((48, 40), np.uint8), 'different sizes', 'EXIF rotation'),
    (None, np.full((40, 48), 0.5, np.float32), 'unusable values', 'floats'),
  ],
)
def test_a_bad_pair_has_a_reason(tmp_path, image, mask, kind, message):
  good = folders.make_pair()
  if mask is not None and mask.dtype == np.float32:
    mask = folders.encode(mask, 'TIFF')
  image = good[0] if image is None else image
  mask = good[1] if mask is None else mask
  folders.write_pairs(tmp_path, {'a': (image, mask), 'b': good})
  bad = scan_folder(tmp_path, val_fraction=0.01)[0]
  assert bad.error[0] == kind
  assert message in bad.error[1]
  if kind == 'unknown values':
    assert bad.values == {7: 1920} and bad.class_pixels is None


def test_files_are_told(tmp_path):
  rgb, exif = np.zeros((4, 6, 3), np.uint8), Image.Exif()
  exif[0x0112] = 6
  files = {
    'images/a.jpg': folders.encode(rgb, 'JPEG', exif=exif),
    'masks/a.png': folders.encode(np.zeros((4, 6), np.uint16)),
    'images/b.png': folders.encode(rgb),
    'masks/b.png': folders.encode(rgb),
  }
  for name, content in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
  first, _ = scan_folder(tmp_path, val_fraction=0.01)[:1] * 2
  assert first.image_file == records.FileInfo('RGB 8 bit JPEG', orientation=6)
  assert first.mask_file == records.FileInfo('grey 16 bit PNG')
  assert first.mask_file.is_deep and not first.image_file.is_deep


def test_count_values():
  rgb = np.zeros((2, 3, 3), np.uint8)
  rgb[0, 0] = 1, 2, 3
  assert scan.count_values(rgb) == {(0, 0, 0): 5, (1, 2, 3): 1}
  rgb = rgb.astype(np.uint16) * 300
  assert scan.count_values(rgb) == {(0, 0, 0): 5, (300, 600, 900): 1}
  deep = np.array([[1000, 1000, 3]], np.int32)
  assert scan.count_values(deep) == {3: 1, 1000: 2}


def test_shapes_have_no_files():
  config = default.get_config()
  config.data.update(num_train=3, image_size=(32, 32))
  source = sources.make_source(config, 'train')
  measurements, seconds = scan.scan(source, config)
  assert [m.index for m in measurements] == [0, 1, 2]
  assert measurements[0].image_file is None
  assert all(m.error is None for m in measurements)
  assert set(seconds) == {'decode', 'measure', 'wall'}


def _tiff(array):
  file = io.BytesIO()
  tifffile.imwrite(file, array)
  return file.getvalue()


def test_values_without_a_range_are_measured(tmp_path):
  """Although no training could read them: the message has what can."""
  image, mask = folders.make_pair()
  values = image[..., 0].astype(np.int16) * 10 - 500
  pairs = {k: (_tiff(values + 20 * i), mask) for i, k in enumerate('abc')}
  folders.write_pairs(tmp_path, pairs)
  found = scan_folder(tmp_path, val_fraction=0.01)
  assert {m.error[0] for m in found} == {'range of values'}
  assert all(m.fit is not None and m.mean is not None for m in found)
  config = folders.make_config(tmp_path, val_fraction=0.01)
  config.data.holdout = 'last'
  source = sources.make_source(config, 'train')
  readable = scan.Readable(source, config.data)
  assert (len(readable), readable.split) == (2, 'train')
  assert readable[0]['image'].max() == 255
  second_look.look_again(readable, found, config)
  low, high = image_levels.range_of_set([m.levels for m in found])
  assert_allclose((low, high), (values.min(), values.max() + 20), atol=60)
  # What stands for no data does not hide the rest.
  values[:, :9] = -9999
  folders.write_pairs(tmp_path, {k: (_tiff(values), mask) for k in 'abc'})
  found = scan_folder(tmp_path, val_fraction=0.01)
  assert found[0].levels.stray == -9999 and found[0].std.max() > 0.1
  values[:, :9] = 0
  folders.write_pairs(tmp_path, {k: (_tiff(values), mask) for k in 'abc'})
  fields = {'intensity': 'range', 'intensity_range': (low, high)}
  found = scan_folder(tmp_path, val_fraction=0.01, **fields)
  assert {m.error for m in found} == {None}
  assert all(m.std.max() > 0.1 for m in found)


def test_pixels_without_data_have_no_part(tmp_path):
  image, mask = folders.make_pair()
  values = image[..., 0].copy()
  values[values == 0] = 1
  values[:, :11] = 0
  folders.write_pairs(tmp_path, {'a': (values, mask), 'b': (image, mask)})
  first = scan_folder(tmp_path, val_fraction=0.01, nodata=(0,))[0]
  valid = np.s_[:, 11:]
  assert_allclose(first.mean, values[valid].mean() / 255, rtol=1e-6)
  assert_allclose(first.std, values[valid].std() / 255, rtol=1e-6)
  expected = [*np.bincount(mask[valid].ravel(), minlength=2), 40 * 11]
  assert first.class_pixels.tolist() == expected
  assert first.levels.values[0] > 0


def test_colors_are_counted_where_palettes_differ(tmp_path):
  image, mask = folders.make_pair()
  pairs = {}
  for stem, color in (('a', (255, 0, 0)), ('b', (0, 255, 0))):
    indices = Image.fromarray(mask, 'P')
    indices.putpalette([0, 0, 0, *color])
    file = io.BytesIO()
    indices.save(file, 'PNG')
    pairs[stem] = image, file.getvalue()
  folders.write_pairs(tmp_path, pairs | {'c': (image, mask)})
  config = folders.make_config(tmp_path, holdout='last')
  source = sources.make_source(config, 'train')
  found = scan.scan(source, config)[0]
  scan.use_colors(found, config)
  assert found[0].error[0] == 'palettes differ' and found[1].error
  share = int(mask.sum())
  expected = {(0, 0, 0): mask.size - share, (0, 255, 0): share}
  assert found[1].values == expected
  config.data.mask_values = ((0, 0), ('others', 1))
  found = scan.scan(source, config)[0]
  scan.use_colors(found, config)
  assert not found[0].error and found[1].values == {
    0: mask.size - share,
    1: share,
  }
