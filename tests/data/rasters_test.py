"""Rows of images are those of the whole, from as little as they need."""

import concurrent.futures
import pathlib
import time
import tracemalloc

import cv2
import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from tests.data import helpers
from tests.refusals import message_of
from unet_jax.data import decode, rasters
from unet_jax.runtime import errors

_SIZE = (83, 117)


def _data(num_channels=3, intensity='dtype', **fields):
  fields = {'alpha': 'drop', 'num_workers': 2, **fields}
  return helpers.make_config(
    num_channels=num_channels, intensity=intensity, **fields
  ).data


def _smooth(channels: int) -> np.ndarray:
  """uint8 [83, 117(, channels)] over the whole range, which JPEG keeps well."""
  noise = np.random.default_rng(0).random((*_SIZE, channels), np.float32)
  image = cv2.GaussianBlur(noise, (0, 0), 3).reshape(*_SIZE, channels)
  image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
  return np.rint(image).astype(np.uint8).reshape(*_SIZE, channels).squeeze()


_GREY, _RGB, _RGBA = _smooth(1), _smooth(3), _smooth(4)
_KINDS = {
  'grey': _GREY,
  'rgb': _RGB,
  'rgba': _RGBA,
  'grey16': _GREY.astype(np.uint16) * 200 + 77,
  'rgb16': _RGB.astype(np.uint16) * 250,
  'rgba16': _RGBA.astype(np.uint16) * 250,
  'float': _GREY.astype(np.float32) / 255,
  'float_rgb': _RGB.astype(np.float32) / 255,
}
_LAYOUTS = {'tiles': {'tile': (32, 48)}, 'strips': {'rowsperstrip': 7}}
# Those that Pillow's libtiff has for all kinds.
_COMPRESSIONS = [
  {},
  {'compression': 'lzw'},
  {'compression': 'lzw', 'predictor': True},
  {'compression': 'zlib'},
  {'compression': 'zlib', 'predictor': True},
  {'compression': 'packbits'},
  {'compression': 'jpeg', 'compressionargs': {'level': 80}},
]


def _write(path, array: np.ndarray, **options) -> pathlib.Path:
  options.setdefault('photometric', 'rgb' if array.ndim == 3 else 'minisblack')
  if array.ndim == 3 and array.shape[2] == 4:
    options.setdefault('extrasamples', ['unassalpha'])
  tifffile.imwrite(path, array, **options)
  return path


def _whole(path, data) -> np.ndarray:
  return decode.decode_image(path.read_bytes(), str(path), data).array


def _in_bands(raster, seed=0) -> np.ndarray:
  """All rows, of bands that overlap by none to all."""
  rng, height = np.random.default_rng(seed), raster.size[0]
  image = np.zeros((*raster.size, raster.num_channels), np.uint8)
  stop = 0
  while stop < height:
    start = rng.integers(0, stop + 1)
    stop = min(stop + rng.integers(1, 40), height)
    image[start:stop] = raster.read(start, stop)
  return image


def _assert_by_rows(path, data=None):
  """That rows are decoded on demand, to the values of the whole image."""
  data = data or _data()
  with rasters.open_image(path, data) as raster:
    assert raster.streams
    assert raster.num_channels == data.num_channels
    found = _in_bands(raster)
  assert found.dtype == np.uint8
  assert_array_equal(found, _whole(path, data))
  return found


@pytest.mark.parametrize('layout', _LAYOUTS)
@pytest.mark.parametrize('kind', _KINDS)
def test_tiff_rows_are_those_of_the_whole(kind, layout, tmp_path):
  array = _KINDS[kind]
  for options in _COMPRESSIONS:
    if options.get('compression') == 'jpeg' and kind not in ('grey', 'rgb'):
      continue
    path = _write(tmp_path / 'a.tif', array, **options, **_LAYOUTS[layout])
    for num_channels in (1, 3):
      assert _assert_by_rows(path, _data(num_channels)).shape[:2] == _SIZE


_DEEP_OR_RGB = ('grey16', 'rgb')


@pytest.mark.parametrize(
  'options, kinds',
  [
    ({'bigtiff': True, 'compression': 'lzw', 'tile': (16, 16)}, _DEEP_OR_RGB),
    ({'byteorder': '>', 'compression': 'zlib', 'tile': (16, 16)}, _DEEP_OR_RGB),
    ({'byteorder': '>', 'rowsperstrip': 5}, _DEEP_OR_RGB),
    ({'rowsperstrip': 1000}, _DEEP_OR_RGB),
    # JPEG with coarser colours.
    *(
      ({'compression': 'jpeg', 'subsampling': s, 'tile': (32, 48)}, ('rgb',))
      for s in ((1, 1), (2, 1), (2, 2))
    ),
  ],
)
def test_other_tiffs_by_rows(options, kinds, tmp_path):
  for kind in kinds:
    _assert_by_rows(_write(tmp_path / f'{kind}.tif', _KINDS[kind], **options))


@pytest.mark.parametrize('kind', ['grey16', 'rgb16', 'float'])
@pytest.mark.parametrize(
  'options', [{'tile': (32, 48), 'compression': 'zlib'}, {'rowsperstrip': 9}]
)
def test_intensity_is_scaled_by_the_whole_image(kind, options, tmp_path):
  array = (_KINDS[kind] * 0.5 + 1).astype(_KINDS[kind].dtype)
  path = _write(tmp_path / 'a.tif', array, **options)
  data = _data(1 if array.ndim == 2 else 3, 'image')
  found = _assert_by_rows(path, data)
  span = float(array.max()) - float(array.min())
  expected = (array.astype(float) - array.min()) / span * 255
  assert_allclose(found.reshape(expected.shape), expected, atol=0.5001)


def test_float_tiff_out_of_range_is_refused_at_once(tmp_path):
  array = _KINDS['float'].copy()
  array[80, 3] = 1.5
  path = _write(tmp_path / 'a.tif', array, tile=(16, 16), compression='zlib')
  with rasters.open_image(path, _data(1)) as raster:
    by_rows = message_of(raster.read, 0, 4)
  assert by_rows == message_of(_whole, path, _data(1))
  array[3, 80] = np.nan
  _write(path, array, tile=(16, 16), compression='zlib')
  with rasters.open_image(path, _data(1)) as raster:
    assert 'not finite' in message_of(raster.read, 50, 60)


_PLANES = np.moveaxis(_RGB, -1, 0)
_TILED = {'tile': (16, 16)}
# Kinds that are no plain grey or RGB, by rows all the same.
_BY_ROWS = {
  'palette': lambda p: Image.fromarray(_RGB).quantize(9).save(p, 'TIFF'),
  'turned': lambda p: Image.fromarray(_RGB).save(p, 'TIFF', tiffinfo={274: 6}),
  'inverted': lambda p: _write(p, _GREY, photometric='miniswhite', **_TILED),
  'bits': lambda p: _write(p, _GREY > 99, **_TILED),
  'planes': lambda p: _write(p, _PLANES, planarconfig='separate', **_TILED),
  'mapped planes': lambda p: _write(p, _PLANES, planarconfig='separate'),
  'premultiplied': lambda p: _write(
    p, _RGBA, extrasamples=['assocalpha'], **_TILED
  ),
  'stack': lambda p: tifffile.imwrite(
    p, _PLANES, imagej=True, metadata={'axes': 'CYX'}
  ),
}


@pytest.mark.parametrize('kind', _BY_ROWS)
def test_other_kinds_by_rows(kind, tmp_path):
  path = tmp_path / 'a.tif'
  _BY_ROWS[kind](path)
  _assert_by_rows(path)


@pytest.mark.parametrize('dtype', [np.int16, np.int32, np.uint32, np.float32])
def test_one_range_by_rows(dtype, tmp_path, monkeypatch):
  """Stated: the file is not looked through beforehand."""
  values = _GREY.astype(dtype) * 7 - (0 if dtype == np.uint32 else 300)
  path = _write(tmp_path / 'a.tif', values, compression='zlib', **_TILED)
  assert 'Give one range' in _refusal(path)
  reads = []
  inner = rasters.TiffRaster._decode
  monkeypatch.setattr(
    rasters.TiffRaster,
    '_decode',
    lambda self, *rows: reads.append(rows) or inner(self, *rows),
  )
  data = _data(1, intensity='range', intensity_range=(0, 1000))
  with rasters.open_image(path, data) as raster:
    assert raster.streams and not reads
    expected = np.rint((values.astype(float) / 1000).clip(0, 1) * 255)
    assert_array_equal(_in_bands(raster)[..., 0], expected)
  assert_array_equal(
    rasters.ArrayRaster(values, data).read(0, 10**6)[..., 0], expected
  )


def _refusal(path):
  def read():
    with rasters.open_image(path, _data(1)) as raster:
      raster.read(0, 1)

  return message_of(read)


@pytest.mark.parametrize('kind', ['mapped', 'tiles', 'whole', 'array'])
@pytest.mark.parametrize('intensity', ['dtype', 'image'])
def test_rows_without_data(kind, intensity, tmp_path):
  """Filled, told, and left out of an image's own range."""
  values = _GREY / np.float32(300)
  values[9:14, 3:40] = np.nan
  values[-6:] = -9999
  ignored = np.isnan(values) | (values == -9999)
  fields = {'nodata': ('nan', -9999), 'mean': (0.5,)}
  data = _data(1, intensity, **fields)
  options = {'compression': 'zlib', **_TILED} if kind == 'tiles' else {}
  if kind == 'whole':
    options = {'compression': 'zlib'}
  path = _write(tmp_path / 'a.tif', values, **options)
  raster = (
    rasters.ArrayRaster(values, data)
    if kind == 'array'
    else rasters.open_image(path, data)
  )
  with raster:
    assert raster.streams == (kind in ('mapped', 'tiles'))
    found = _in_bands(raster)
    for start, stop in ((0, 5), (7, 30), (0, raster.size[0])):
      assert_array_equal(raster.ignored(start, stop), ignored[start:stop])
  whole = decode.decode_image(path.read_bytes(), 'x', data)
  assert_array_equal(found, whole.array)
  assert_array_equal(whole.ignored, ignored)
  assert (found[ignored] == 128).all() and found[~ignored].max() > 150
  if intensity == 'image':
    assert found[~ignored].min() == 0 and found[~ignored].max() == 255
  with rasters.ArrayRaster(_GREY, data) as raster:
    assert raster.ignored(0, 4) is None


def test_transparent_rows(tmp_path):
  alpha = np.full(_SIZE, 255, np.uint8)
  alpha[5:9] = 0
  alpha[20] = 70
  image = np.dstack([_RGB, alpha])
  path = _write(tmp_path / 'a.tif', image, **_TILED)
  with rasters.open_image(path, _data(alpha='nodata')) as raster:
    assert raster.streams
    assert_array_equal(raster.ignored(0, _SIZE[0]), alpha == 0)
    assert (raster.read(5, 9) == 128).all()
  chosen = _data(alpha='nodata', bands=(3, 1, 2))
  with rasters.open_image(path, chosen) as raster:
    assert_array_equal(raster.ignored(0, _SIZE[0]), alpha == 0)
    assert_array_equal(raster.read(9, 20), _RGB[9:20][..., [2, 0, 1]])
  with rasters.open_image(path, _data(alpha='drop')) as raster:
    assert raster.ignored(0, _SIZE[0]) is None
    assert_array_equal(raster.read(5, 9), _RGB[5:9])


_WHOLE = {
  'png': lambda p: Image.fromarray(_RGB).save(p, 'PNG'),
  'jpeg': lambda p: Image.fromarray(_RGB).save(p, 'JPEG'),
  'bits': lambda p: Image.fromarray(_GREY > 99).save(p, 'TIFF'),
  'one strip': lambda p: _write(p, _RGB, compression='zlib'),
}


@pytest.mark.parametrize('kind', _WHOLE)
def test_other_files_are_decoded_whole(kind, tmp_path):
  path = tmp_path / 'image'
  _WHOLE[kind](path)
  with rasters.open_image(path, _data()) as raster:
    assert not raster.streams
    found = _in_bands(raster)
  assert_array_equal(found, _whole(path, _data()))


@pytest.mark.parametrize('kind', ['TIFF', 'PNG'])
def test_upright(kind, tmp_path):
  """Turned as viewers do, whole; the tag tells how to turn back."""
  path, exif = tmp_path / 'a', Image.Exif()
  exif[274] = 6
  Image.fromarray(_RGB).save(path, kind, exif=exif)
  with rasters.open_image(path, _data()) as raster:
    assert raster.turned == 1
    assert_array_equal(_in_bands(raster), _RGB)
  with rasters.open_image(path, _data(orientation='upright')) as raster:
    assert raster.turned == 6 and not raster.streams
    assert raster.size == _SIZE[::-1]
    assert_array_equal(_in_bands(raster), np.rot90(_RGB, -1))


def test_each_page(tmp_path):
  path = tmp_path / 'a.tif'
  pages = (_RGB, _RGB[::-1, ::2])
  with tifffile.TiffWriter(path) as tiff:
    for array in pages:
      tiff.write(array, photometric='rgb', tile=(32, 32), compression='lzw')
  assert message_of(rasters.open_image, path, _data()) == (
    f'{path} holds 2 images (pages or frames); make each an image of its own '
    'with --config.data.pages=images, or, where they are channels, store them '
    'as channels of one page'
  )
  for i, array in enumerate(pages):
    with rasters.open_image(path, _data(pages='images'), i) as raster:
      assert raster.streams
      assert_array_equal(_in_bands(raster), array)


def test_alpha_of_rows(tmp_path):
  """Judged by the whole image; as a band it is read."""
  path = _write(tmp_path / 'a.tif', _RGBA, **_TILED)
  whole, by_rows = [
    message_of(read, path, _data(alpha='refuse'))
    for read in (_whole, rasters.open_image)
  ]
  count = np.count_nonzero(_RGBA[..., 3] != 255)
  assert (
    whole
    == by_rows
    == (
      f'{path} has alpha that is not opaque in {count} of {83 * 117} pixels; '
      'leave it out with --config.data.alpha=drop, or ignore fully transparent '
      'pixels with --config.data.alpha=nodata; as a channel it is number 4 of '
      '--config.data.bands'
    )
  )
  for alpha in ('drop', 'nodata'):
    assert_array_equal(
      _assert_by_rows(path, _data(alpha=alpha)), _RGBA[..., :3]
    )
  data = _data(alpha='refuse', bands=(4, 1, 2))
  assert_array_equal(_assert_by_rows(path, data), _RGBA[..., [3, 0, 1]])


def test_tiles_that_are_skipped_are_black(tmp_path):
  path = tmp_path / 'a.tif'
  tiles = iter([np.full((16, 16), 7, np.uint8), None])
  shape = {'shape': (16, 32), 'dtype': np.uint8, 'tile': (16, 16)}
  tifffile.imwrite(
    path, tiles, **shape, compression='zlib', photometric='minisblack'
  )
  with rasters.open_image(path, _data(1)) as raster:
    found = raster.read(0, 16)[..., 0]
  assert_array_equal(found, np.repeat([7, 0], 16)[None].repeat(16, 0))


def test_overlapping_bands_decode_once(tmp_path, monkeypatch):
  path = _write(tmp_path / 'a.tif', _RGB, tile=(16, 32), compression='zlib')
  decoded, inner = [], rasters.TiffRaster._decode
  spy = lambda self, *rows: decoded.append(rows[0] // 16) or inner(self, *rows)
  monkeypatch.setattr(rasters.TiffRaster, '_decode', spy)
  with rasters.open_image(path, _data()) as raster:
    for start in range(0, 80, 8):
      raster.read(start, min(start + 24, 83))
      raster.read(start, start + 8)  # Predicted rows, for an overlay.
  assert decoded == list(range(6))


def test_threads_take_turns(tmp_path, monkeypatch):
  path = _write(tmp_path / 'a.tif', _RGB, tile=(16, 16), compression='zlib')
  inner, inside = rasters.TiffRaster._decode, []

  def decode_slowly(self, *rows):
    inside.append(rows)
    time.sleep(0.002)  # Another thread would come in meanwhile.
    assert inside == [rows]
    inside.clear()
    return inner(self, *rows)

  monkeypatch.setattr(rasters.TiffRaster, '_decode', decode_slowly)
  with rasters.open_image(path, _data()) as raster:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      for found in pool.map(lambda seed: _in_bands(raster, seed), range(4)):
        assert_array_equal(found, _RGB)


@pytest.mark.parametrize('compressed', [True, False])
def test_memory_of_wide_images(compressed, tmp_path):
  rows = np.arange(512 * 20000, dtype=np.uint32).reshape(512, 20000)
  array = (rows >> 7).astype(np.uint8)
  options = {'compression': 'zlib', 'tile': (64, 512)} if compressed else {}
  path = _write(tmp_path / 'a.tif', array, **options)
  tracemalloc.start()
  try:
    with rasters.open_image(path, _data(1)) as raster:
      for start in range(0, 512, 32):
        band = raster.read(start, start + 32)
        assert np.array_equal(band[..., 0], array[start : start + 32])
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  # Two rows of tiles and bands, 64 x 20,000 each, of an image of 10 MB.
  assert peak < 5e6


@pytest.mark.parametrize(
  'array,expected',
  [
    (_GREY, _GREY),
    (_GREY[..., None], _GREY),
    (_GREY.astype(np.uint16) * 257, _GREY),
    (_GREY / 255, _GREY),
    (np.repeat(_GREY[..., None], 3, -1), _GREY),
  ],
)
def test_arrays(array, expected):
  for num_channels in (1, 3):
    raster = rasters.ArrayRaster(array, _data(num_channels))
    assert raster.size == _SIZE and not raster.streams
    found = _in_bands(raster)
    assert found.dtype == np.uint8
    assert_array_equal(found, np.repeat(expected[..., None], num_channels, -1))


def test_array_of_another_shape():
  array = np.zeros((4, 5, 6), np.uint8)
  assert message_of(rasters.ArrayRaster, array, _data()) == (
    'the array has the shape (4, 5, 6); an image is [H, W], [H, W, 1] or '
    '[H, W, 3], with alpha [H, W, 4]; of others, data.bands chooses, and '
    'of a stack, list(stack) is its images'
  )


@pytest.mark.parametrize('channels', [2, 4])
def test_alpha_of_an_array_is_that_of_a_file(channels, tmp_path):
  array = np.random.default_rng(0).integers(0, 9, (7, 8, channels), np.uint8)
  path = tmp_path / 'a.png'
  Image.fromarray(array).save(path)
  for alpha in ('refuse', 'drop', 'nodata'):
    data = _data()
    data.alpha = alpha
    opened = lambda: rasters.open_image(path, data)
    made = lambda: rasters.ArrayRaster(array, data, str(path))
    if alpha == 'refuse':
      assert message_of(opened) == message_of(made)
      continue
    for read in (lambda r: r.read(0, 7), lambda r: r.ignored(0, 7)):
      np.testing.assert_array_equal(read(opened()), read(made()))


def _error(path):
  def read():
    with rasters.open_image(path, _data()) as raster:
      return raster.read(0, raster.size[0])

  return message_of(read, kind=errors.DecodeError)


def test_files_that_are_no_whole_tiff(tmp_path):
  path = tmp_path / 'a.tif'
  truncated = [
    _write(path, _RGB, **options).read_bytes()[:-200]
    for options in (
      {'tile': (16, 16), 'compression': 'zlib'},
      {'rowsperstrip': 7},
    )
  ]
  for content in (*truncated, b'', b'II*\0', b'no image'):
    path.write_bytes(content)
    assert str(path) in _error(path)


@pytest.mark.parametrize('compression', ['zlib', 'lzw', 'jpeg'])
def test_damaged_tile(compression, tmp_path):
  path = _write(
    tmp_path / 'a.tif', _RGB, tile=(32, 32), compression=compression
  )
  with tifffile.TiffFile(path) as tiff:
    offset = tiff.pages.first.dataoffsets[5]
  content = bytearray(path.read_bytes())
  content[offset : offset + 60] = b'\xff' * 60
  path.write_bytes(content)
  with rasters.open_image(path, _data()) as raster:
    assert_allclose(raster.read(0, 32), _RGB[:32], atol=99)
    message = message_of(raster.read, 32, 64, kind=errors.DecodeError)
  assert message.startswith(f'{path} cannot be decoded (')


def test_no_file(tmp_path):
  assert _error(tmp_path / 'a.tif') == (
    f'{tmp_path}/a.tif cannot be read (No such file or directory); fix it or '
    'remove it'
  )


def test_pillow_writes_and_rows_are_read(tmp_path):
  path = tmp_path / 'a.tif'
  image = Image.fromarray(_RGB).resize((640, 480))
  image.save(path, 'TIFF', compression='tiff_lzw')
  _assert_by_rows(path)
