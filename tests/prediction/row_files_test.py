"""Files written by rows, read back by other programs."""

from unittest import mock

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_jax.prediction import kept_tags, row_files

_SHAPES = [(1, 1), (300, 517), (256, 512), (257, 40, 3)]


def _array(shape, dtype) -> np.ndarray:
  """Few values in blocks, over the whole range."""
  small = np.random.default_rng(0).random(shape)
  small = small[: -(-shape[0] // 3), : -(-shape[1] // 5)]
  array = small.repeat(3, 0).repeat(5, 1)[: shape[0], : shape[1]]
  return (array * np.iinfo(dtype).max).astype(dtype)


def _write(file, array: np.ndarray, seed=0) -> None:
  """In bands of any height."""
  rng, start = np.random.default_rng(seed), 0
  while start < len(array):
    stop = start + int(rng.integers(1, 300))
    file.write(array[start:stop])
    start = stop
  file.close()


def _opencv(path) -> np.ndarray:
  array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
  return array if array.ndim == 2 else array[..., ::-1]


def _assert_holds(path, array) -> None:
  """Whatever reads the file."""
  with Image.open(path) as image:
    found = [np.asarray(image), _opencv(path)]
  if path.suffix == '.tif':
    found.append(tifffile.imread(path))
  for one in found:
    assert one.dtype == array.dtype
    np.testing.assert_array_equal(one, array)


@pytest.mark.parametrize(
  'shape,dtype',
  # Colours are 8 bit.
  [*((s, np.uint8) for s in _SHAPES), *((s, np.uint16) for s in _SHAPES[:3])],
)
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_masks(suffix, shape, dtype, tmp_path):
  kind = {'png': row_files.PngFile, 'tif': row_files.TiffFile}[suffix]
  array, path = _array(shape, dtype), tmp_path / f'new/a.{suffix}'
  _write(kind(path, shape, dtype), array)
  _assert_holds(path, array)
  assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('channels', [1, 2, 3, 5])
def test_tiff_of_probabilities(channels, tmp_path):
  array = np.random.default_rng(0).random((270, 300, channels), np.float32)
  array, path = array.astype(np.float16), tmp_path / 'a.tif'
  _write(row_files.TiffFile(path, array.shape, np.float16, 'a, b'), array)
  with tifffile.TiffFile(path) as tiff:
    page = tiff.pages.first
    assert page.is_tiled and page.description == 'a, b'
    found = page.asarray()
  assert found.dtype == np.float16
  np.testing.assert_array_equal(found.reshape(array.shape), array)


def test_tiff_of_more_than_4_gib(tmp_path, monkeypatch):
  huge = row_files.TiffFile(tmp_path / 'b.tif', (70000, 70000), np.uint8)
  huge.abort()
  assert huge._is_big
  # The same file in small.
  monkeypatch.setattr(row_files, '_BIG', 0)
  array, path = _array((300, 517), np.uint8), tmp_path / 'a.tif'
  _write(row_files.TiffFile(path, array.shape, np.uint8), array)
  assert path.read_bytes()[:4] == b'II+\0'
  _assert_holds(path, array)
  with tifffile.TiffFile(path) as tiff:
    assert tiff.is_bigtiff


def test_npz(tmp_path):
  array = np.random.default_rng(0).random((400, 30, 4)).astype(np.float16)
  path, about = tmp_path / 'a.npz', ('probabilities', array.shape, np.float16)
  _write(row_files.NpzFile(path, *about, class_names=('a', 'bc')), array)
  with np.load(path) as found:
    assert sorted(found) == ['class_names', 'probabilities']
    assert found['probabilities'].dtype == np.float16
    np.testing.assert_array_equal(found['probabilities'], array)
    assert found['class_names'].tolist() == ['a', 'bc']


_KINDS = {
  'png': lambda p: row_files.PngFile(p, (9, 8), np.uint8),
  'tif': lambda p: row_files.TiffFile(p, (9, 8), np.uint8),
  'npz': lambda p: row_files.NpzFile(p, 'a', (9, 8), np.uint8, b=(1, 2)),
}


@pytest.mark.parametrize('kind', _KINDS)
def test_aborted_files_leave_what_was_there(kind, tmp_path):
  path = tmp_path / f'a.{kind}'
  rows = np.zeros((9, 8), np.uint8)
  for count in (0, 4, 9):
    file = _KINDS[kind](path)
    file.write(rows[: max(count, 1)])
    assert not path.exists()
    file.abort()
    assert not list(tmp_path.iterdir())
  path.write_text('before')
  file = _KINDS[kind](path)
  file.write(rows)
  assert path.read_text() == 'before'
  file.abort()
  assert path.read_text() == 'before'
  _write(_KINDS[kind](path), rows)
  assert path.read_bytes() != b'before'
  file.abort()  # Too late: nothing happens.
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_at_the_first_tags_leaves_nothing(tmp_path, monkeypatch):
  fails = mock.Mock(side_effect=OSError(28, 'No space left on device'))
  monkeypatch.setattr(tifffile.TiffWriter, 'write', fails)
  with pytest.raises(OSError, match='No space'):
    row_files.TiffFile(tmp_path / 'a.tif', (9, 8), np.uint8)
  assert not list(tmp_path.iterdir())


# The place in UTM zone 33 north, rotated; a tie point and a scale say it too.
_TAGS = kept_tags.Tags(
  (
    (34264, 12, 16, (0.5, 0.1, 0, 4e5, 0.1, -0.5, 0, 5e6, *[0.0] * 7, 1), True),
    (34735, 3, 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633), True),
    (34736, 12, 2, (6378137.0, 298.257223563), True),
    (34737, 2, 0, 'WGS 84 / UTM, gr\xfcn|'.encode(), True),
  ),
  (2.5, 300.0),
  3,
)


@pytest.mark.parametrize('big', [False, True])
def test_tags_of_place_and_size(big, tmp_path, monkeypatch):
  monkeypatch.setattr(row_files, '_BIG', 0 if big else 2**32)
  array, path = _array((300, 517), np.uint8), tmp_path / 'a.tif'
  tags = _TAGS.of_orientation(6).of_nodata(255)
  _write(row_files.TiffFile(path, array.shape, np.uint8, tags=tags), array)
  np.testing.assert_array_equal(tifffile.imread(path), array)
  with tifffile.TiffFile(path) as tiff:
    found = tiff.pages.first.tags
    for code, kind, _, value, _ in _TAGS.extra:
      assert found[code].dtype == kind
      text = isinstance(value, bytes)
      assert found[code].value == (value.decode() if text else value)
    assert found['XResolution'].value == (5, 2)
    assert found['YResolution'].value == (300, 1)
    assert found['ResolutionUnit'].value == 3
    assert found['Orientation'].value == 6
    assert found['GDAL_NODATA'].value == '255'
  # Read and written again they are the same.
  (tags,) = kept_tags.read(path)
  again = tmp_path / 'b.tif'
  _write(row_files.TiffFile(again, array.shape, np.uint8, tags=tags), array)
  assert kept_tags.read(again) == [tags]
  # Nodata is that of the values of the image, not of others.
  with tifffile.TiffFile(again) as tiff:
    assert 'GDAL_NODATA' not in tiff.pages.first.tags


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_no_tags_of_other_files(suffix, tmp_path):
  path = tmp_path / f'a.{suffix}'
  path.write_bytes(b'II*\0' if suffix == 'tif' else b'\x89PNG')
  assert kept_tags.read(path) == []
  assert kept_tags.read(tmp_path / 'none.tif') == []


@pytest.mark.parametrize('orientation', range(1, 9))
def test_png_with_an_orientation(orientation, tmp_path):
  array, path = _array((30, 51), np.uint8), tmp_path / 'a.png'
  _write(row_files.PngFile(path, array.shape, np.uint8, orientation), array)
  with Image.open(path) as image:
    assert image.getexif().get(0x112, 1) == orientation
    np.testing.assert_array_equal(np.asarray(image), array)
  assert (b'eXIf' in path.read_bytes()) == (orientation != 1)


def test_pages_are_joined(tmp_path):
  arrays, parts = [], []
  for i, size in enumerate([(300, 517), (20, 30), (256, 257)]):
    arrays.append(_array(size, np.uint16))
    parts.append(tmp_path / f'.{i}.tif')
    tags = _TAGS if i == 1 else kept_tags.Tags()
    file = row_files.TiffFile(parts[i], size, np.uint16, tags=tags)
    _write(file, arrays[i])
  row_files.join_pages(parts, tmp_path / 'a.tif')
  assert [p.name for p in tmp_path.iterdir()] == ['a.tif']
  with tifffile.TiffFile(tmp_path / 'a.tif') as tiff:
    assert len(tiff.pages) == 3
    for i, page in enumerate(tiff.pages):
      np.testing.assert_array_equal(page.asarray(), arrays[i])
      assert ('GeoKeyDirectoryTag' in page.tags) == (i == 1)
  with Image.open(tmp_path / 'a.tif') as image:
    image.seek(2)
    np.testing.assert_array_equal(np.asarray(image), arrays[2])
