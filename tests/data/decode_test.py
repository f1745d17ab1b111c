"""Tests of unet_jax/data/decode.py."""

import functools
import io

import cv2
import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageFile

from tests.data import helpers
from tests.refusals import message_of
from unet_jax.data import decode
from unet_jax.runtime import errors

# Blocks of 8 x 8 pixels, so that JPEG keeps them too; 16 rows, 24 columns.
_INDICES = np.kron([[0, 1, 2], [3, 0, 1]], np.ones((8, 8))).astype(np.uint8)
_COLORS = np.array(
  [[10, 20, 30], [250, 40, 90], [0, 255, 0], [128, 7, 200]], np.uint8
)
_RGB = _COLORS[_INDICES]
_GREY = np.array([0, 60, 130, 255], np.uint8)[_INDICES]
_BITS = _INDICES >= 2
_DEEP = np.array([3, 700, 40000, 65535], np.uint16)[_INDICES]
_DEEP_RGB = np.stack([_DEEP, _DEEP[::-1], _DEEP[:, ::-1]], -1)

_FORMATS = {
  'PNG': {},
  'TIFF': {'compression': 'tiff_lzw'},
  'BMP': {},
  'GIF': {},
  'WEBP': {'lossless': True, 'exact': True},
  'JPEG': {'quality': 100, 'subsampling': 0},
}


def _palette() -> Image.Image:
  image = Image.fromarray(_INDICES).convert('P')
  image.putpalette(_COLORS.ravel().tolist())
  return image


def _rgba(rgb=_RGB) -> Image.Image:
  alpha = np.linspace(0, 255, _GREY.size).reshape(*_GREY.shape, 1)
  return Image.fromarray(np.concatenate([rgb, alpha.astype(np.uint8)], -1))


# Each kind's image and the RGB that it shows.
_KINDS = {
  'grey': (lambda: Image.fromarray(_GREY), np.stack([_GREY] * 3, -1)),
  'rgb': (lambda: Image.fromarray(_RGB), _RGB),
  'rgba': (_rgba, _RGB),
  'palette': (_palette, _RGB),
  'bit': (lambda: Image.fromarray(_BITS), np.stack([_BITS * 255] * 3, -1)),
}


def _save(image: Image.Image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **{**_FORMATS[kind], **options})
  return file.getvalue()


def _tiff(array: np.ndarray, **options) -> bytes:
  file = io.BytesIO()
  if array.ndim == 3:
    options = {'photometric': 'rgb', **options}
  tifffile.imwrite(file, array, **options)
  return file.getvalue()


def _png(array: np.ndarray) -> bytes:
  """By OpenCV, since Pillow writes no 16-bit RGB."""
  if array.ndim == 3:
    array = array[..., [2, 1, 0, 3][: array.shape[2]]]
  return cv2.imencode('.png', array)[1].tobytes()


@functools.cache
def _config(**fields):
  return helpers.make_config(**fields).data


def _image(data, channels=3, intensity='dtype', name='x', **fields):
  fields = {'num_channels': channels, 'intensity': intensity, **fields}
  return decode.decode_image(data, name, _config(**fields)).array


def _mask(data, name='m.tif', **fields):
  return decode.decode_mask(data, name, _config(**fields)).array


def _error(data, name='x', kind=errors.UserError, **fields):
  return message_of(_image, data, name=name, kind=kind, **fields)


def _stack(grey):
  return np.stack([grey] * 3, -1)


def _assert_shows(data, expected, intensity='dtype'):
  """That a file decodes to these values, a grey one also to one channel."""
  if expected.ndim == 2:
    got = _image(data, 1, intensity, alpha='drop')
    assert_array_equal(got[..., 0], expected)
    expected = _stack(expected)
  got = _image(data, 3, intensity, alpha='drop')
  assert_array_equal(got, expected)


@pytest.mark.parametrize('kind', _KINDS)
@pytest.mark.parametrize('format_', _FORMATS)
def test_every_format_and_kind(format_, kind):
  make, rgb = _KINDS[kind]
  image = make()
  if format_ == 'JPEG' and kind in ('rgba', 'palette'):
    image = image.convert('RGB')  # JPEG knows neither.
  if format_ == 'GIF' and kind == 'rgba':
    image.putalpha(255)  # GIF has no colour where all is transparent.
  data = _save(image, format_)
  tolerance = 2 if format_ == 'JPEG' else 0

  got = _image(data, alpha='drop')
  assert got.dtype == np.uint8
  assert_allclose(got.astype(int), rgb, atol=tolerance)

  grey = _image(data, 1, alpha='drop')
  assert grey.dtype == np.uint8
  # ITU-R BT.601 luma.
  luma = rgb @ np.array([0.299, 0.587, 0.114])
  assert grey.shape == (16, 24, 1)
  assert_allclose(grey[..., 0], luma, atol=tolerance + 0.51)


_TURN = Image.Exif()
_TURN[0x0112] = 6  # By 90 degrees.
_GREY_ALPHA = Image.fromarray(_GREY).convert('LA')
_GREY_ALPHA.putalpha(77)
_DEEP_RGBA = np.concatenate([_DEEP_RGB, _DEEP[..., None] // 2], -1)
_DEEP_GREY_8, _DEEP_RGB_8 = np.rint(_DEEP / 257), np.rint(_DEEP_RGB / 257)
_DARK = _GREY // 3 + 10
# Files, and the values that they show.
_EXACT = {
  'palette, alpha': (
    _save(_palette(), 'PNG', transparency=bytes([0, 100, 255])),
    _RGB,
  ),
  'palette, transparent': (_save(_palette(), 'PNG', transparency=1), _RGB),
  'grey with alpha': (_save(_GREY_ALPHA, 'PNG'), _GREY),
  'to be turned': (_save(Image.fromarray(_RGB), 'PNG', exif=_TURN), _RGB),
  'deep grey png': (_png(_DEEP), _DEEP_GREY_8),
  'deep grey tiff': (_tiff(_DEEP), _DEEP_GREY_8),
  'deep grey tiff, big endian': (_tiff(_DEEP, byteorder='>'), _DEEP_GREY_8),
  'deep rgb png': (_png(_DEEP_RGB), _DEEP_RGB_8),
  'deep rgb png, alpha': (_png(_DEEP_RGBA), _DEEP_RGB_8),
  'deep rgb tiff': (_tiff(_DEEP_RGB), _DEEP_RGB_8),
  'deep rgb tiff, tiles': (
    _tiff(_DEEP_RGB, compression='zlib', tile=(16, 16)),
    _DEEP_RGB_8,
  ),
  'deep rgb tiff, big endian': (_tiff(_DEEP_RGB, byteorder='>'), _DEEP_RGB_8),
  'deep rgb tiff, planes': (
    _tiff(np.moveaxis(_DEEP_RGB, 2, 0), planarconfig='separate'),
    _DEEP_RGB_8,
  ),
  'deep rgb tiff, alpha': (
    _tiff(_DEEP_RGBA, extrasamples=['unassalpha']),
    _DEEP_RGB_8,
  ),
}


@pytest.mark.parametrize('kind', _EXACT)
def test_other_files(kind):
  _assert_shows(*_EXACT[kind])


@pytest.mark.parametrize('shape', [(16, 24), (16, 24, 3)])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_float_tiff(shape, dtype):
  values = np.random.default_rng(0).random(shape).astype(dtype)
  got = _image(_tiff(values))
  expected = np.rint(values.astype(np.float64) * 255)
  expected = _stack(expected) if len(shape) == 2 else expected
  assert_allclose(got.astype(int), expected, atol=1)
  assert np.mean(got != expected) < 0.01


@pytest.mark.parametrize(
  'values',
  [
    _DEEP // 16 + 5,
    _DEEP_RGB // 16 + 5,
    (_DEEP / 100).astype(np.float32) - 200,
    _DEEP.astype(np.int32) - 30000,
  ],
  ids=['12bit', '12bit-rgb', 'float', 'negative'],
)
def test_intensity_image_takes_the_range_of_the_image(values):
  low, high = float(values.min()), float(values.max())
  expected = np.rint((values - low) / (high - low) * 255)
  assert expected.min() == 0 and expected.max() == 255
  _assert_shows(_tiff(values), expected, 'image')


def test_intensity_image_of_special_images():
  # 8 bit are left alone, a constant is black.
  _assert_shows(_save(Image.fromarray(_DARK), 'PNG'), _DARK, 'image')
  constant = np.full((3, 4), 900, np.uint16)
  _assert_shows(_tiff(constant), np.zeros((3, 4)), 'image')


@pytest.mark.parametrize(
  'values, low, high',
  [
    (np.float32([[0, 1.5]]), '0', '1.5'),
    (np.float32([[-0.25, 1]]), '-0.25', '1'),
    (np.int32([[-7, 300]]), '-7', '300'),
    (np.int32([[0, 65535]]), '0', '65535'),
    (np.uint32([[0, 2**31]]), '0', '2147483648'),
  ],
)
def test_values_without_a_range(values, low, high):
  message = _error(_tiff(values), 'a/x.tif')
  assert message.startswith(
    f'a/x.tif holds {values.dtype} values from {low} to {high}; '
  )
  stated = {'intensity': 'range', 'intensity_range': (float(low), float(high))}
  assert _image(_tiff(values), 1, **stated).ravel().tolist() == [0, 255]


@pytest.mark.parametrize('intensity', ['dtype', 'image', 'range'])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_values_that_are_not_finite(bad, intensity):
  data = _tiff(np.float32([[0, bad]]))
  limits = (0, 1) if intensity == 'range' else ()
  message = _error(data, intensity=intensity, intensity_range=limits)
  assert message.startswith('x holds values that are not finite (NaN or ')
  found = decode.decode_image(data, 'x', _config(nodata=('nan', 'inf')))
  assert found.ignored.tolist() == [[False, True]]
  # Filled with the mean.
  assert found.array[0].tolist() == [[0] * 3, [128] * 3]


def _gdal(array, nodata, **options):
  return _tiff(array, extratags=[(42113, 's', 0, str(nodata), True)], **options)


@pytest.mark.parametrize('shape', [(9, 8), (9, 8, 3)])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_no_data(dtype, shape):
  """In all channels; the file's own tag is a hint and nothing else."""
  values = np.ones(shape, dtype)
  values[2:4] = 0
  data = _gdal(values, 0)
  found = decode.decode_image(data, 'x', _config())
  assert found.ignored is None and found.levels.unlisted == 0
  found = decode.decode_image(data, 'x', _config(nodata=(0,)))
  expected = np.zeros((9, 8), bool)
  expected[2:4] = True
  assert_array_equal(found.ignored, expected)
  assert found.levels.unlisted is None
  assert found.array[2:4].min() == found.array[2:4].max() == 128
  assert found.levels.num_pixels == 7 * 8


def test_no_data_of_what_is_shown_otherwise():
  """It is the stored value, of palettes and of white-is-zero as well."""
  index = np.uint8([[0, 1], [1, 2]])
  image = Image.fromarray(index, 'P')
  image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
  found = decode.decode_image(_save(image, 'PNG'), 'x', _config(nodata=(1,)))
  assert_array_equal(found.ignored, index == 1)
  data = _tiff(index, photometric='miniswhite')
  found = decode.decode_image(data, 'x', _config(nodata=(1,)))
  assert_array_equal(found.ignored, index == 1)
  # And of the bands that are chosen.
  bands = np.stack([index] * 5, -1)
  bands[..., 4] = [[1, 7], [7, 7]]
  data = _tiff(bands, photometric='minisblack', planarconfig='contig')
  config = _config(nodata=(1,), bands=(5,), num_channels=1)
  found = decode.decode_image(data, 'x', config)
  assert found.ignored.tolist() == [[True, False], [False, False]]
  # Masks have none of this.
  mask = decode.decode_mask(_gdal(index, 1), 'x', _config(nodata=(1,)))
  assert mask.ignored is None


def test_levels_of_files():
  """Of those that are not plain 8 bit."""
  deep = np.array([[300, 1500], [1590, 3700]], np.uint16)
  levels = decode.decode_image(_tiff(deep), 'x', _config()).levels
  assert (levels.stored, levels.left) == (4, 3)
  plain = _tiff(deep.astype(np.uint8))
  assert decode.decode_image(plain, 'x', _config()).levels is None
  stated = _config(intensity='range', intensity_range=(0, 9))
  assert decode.decode_image(plain, 'x', stated).levels.kind == 'uint8'


def test_palettes_of_masks():
  image = Image.fromarray(np.uint8([[0, 1], [1, 2]]), 'P')
  image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
  data = _save(image, 'PNG')
  found = decode.decode_mask(data, 'x', _config())
  assert found.array.tolist() == [[0, 1], [1, 2]]
  assert found.palette[2].tolist() == [0, 200, 0]
  others = _config(mask_values=((0, 0), ('others', 1)))
  assert decode.decode_mask(data, 'x', others).palette is not None
  colors = _config(mask_values=(((0, 0, 0), 0), ('others', 1)))
  found = decode.decode_mask(data, 'x', colors)
  assert found.palette is None
  assert found.array[1].tolist() == [[200, 0, 0], [0, 200, 0]]


# Pillow warns of a damaged TIFF besides refusing it.
@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
@pytest.mark.parametrize(
  'data',
  [b'a list of names\n', b'II*\0', b'MM\0*' + bytes(30), b'II+\0'],
  ids=['text', 'tiff-start', 'tiff-zeros', 'bigtiff-start'],
)
def test_files_that_are_no_images(data):
  expected = helpers.cannot_decode('a/x.png', 'cannot identify image file')
  kind = errors.DecodeError
  assert _error(data, 'a/x.png', kind) == expected
  assert expected == message_of(_mask, data, 'a/x.png', kind=kind)


def test_pointers_in_place_of_images():
  text = 'version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n'
  reason = 'a pointer of Git LFS; `git lfs pull` gets the file'
  for read in (_image, _mask):
    message = message_of(
      read, text.encode(), name='x.tif', kind=errors.DecodeError
    )
    assert message == helpers.cannot_decode('x.tif', reason)


_NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
_NOISE_FILES = {
  **{kind: _save(Image.fromarray(_NOISE), kind) for kind in _FORMATS},
  'deep PNG': _png(_NOISE * np.uint16(257)),
  'deep TIFF': _tiff(_NOISE * np.uint16(257), compression='zlib'),
}


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
@pytest.mark.parametrize('kind', _NOISE_FILES)
def test_truncated_files(kind):
  """Refused, unless all of the pixels are there."""
  data = _NOISE_FILES[kind]
  whole = _image(data, alpha='drop')
  before, after = helpers.cannot_decode('x', '\0').split('\0')
  for share in np.linspace(0.02, 0.98, 25):
    message = _error(data[: int(len(data) * share)], kind=errors.DecodeError)
    assert message.startswith(before) and message.endswith(after)
  for cut in range(1, 20):
    try:
      got = _image(data[:-cut])
    except errors.DecodeError:
      continue
    assert_array_equal(got, whole)


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'deep PNG', 'deep TIFF'])
def test_damaged_data(kind):
  """A checksum or a code that is wrong is not decoded to noise."""
  data = bytearray(_NOISE_FILES[kind])
  if kind == 'TIFF':
    options = {'compression': 'tiff_adobe_deflate'}
    data = bytearray(_save(Image.fromarray(_NOISE), kind, **options))
  data[len(data) // 2] ^= 0x5A
  _error(bytes(data), kind=errors.DecodeError)


def _pillow(data: bytes) -> np.ndarray | None:
  """A file as Pillow alone decodes it, None if it refuses it."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      return np.array(image.convert('RGB'))
  except (OSError, SyntaxError):
    return None


def _photo(grey: bool) -> np.ndarray:
  """Smooth colours with noise, of odd sizes, so that rounding shows."""
  rows, columns = np.mgrid[:61, :77]
  waves = [128 + 90 * np.sin((rows + k * columns) / 9) for k in (1, 2, 3)]
  noise = np.random.default_rng(0).normal(0, 20, (61, 77, 3))
  image = np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)
  return image[..., 0] if grey else image


_PLAIN_FILES = {
  'jpeg': ('JPEG', {'subsampling': 2}),
  'jpeg, poor': ('JPEG', {'quality': 10}),
  'jpeg, halved in x': ('JPEG', {'subsampling': 1}),
  'jpeg, restarts': ('JPEG', {'restart_marker_rows': 1}),
  'jpeg, stored as RGB': ('JPEG', {'keep_rgb': True}),
  'jpeg, to be turned': ('JPEG', {'exif': _TURN}),
  'png': ('PNG', {}),
  'png, to be turned': ('PNG', {'exif': _TURN}),
}


@pytest.mark.parametrize('grey', [False, True], ids=['rgb', 'grey'])
@pytest.mark.parametrize('kind', _PLAIN_FILES)
def test_plain_files_are_as_pillow_decodes_them(kind, grey, monkeypatch):
  format_, options = _PLAIN_FILES[kind]
  if format_ == 'JPEG':
    options = {'quality': 90, **options}
  data = _save(Image.fromarray(_photo(grey)), format_, **options)
  expected = _pillow(data)
  # The pixels, which take the time, are not loaded by Pillow.
  monkeypatch.setattr(Image.Image, 'load', None)
  monkeypatch.setattr(ImageFile.ImageFile, 'load', None)
  channels = slice(1 if grey else 3)
  got = _image(data, channels.stop)
  assert_array_equal(got, expected[..., channels])
  if grey:
    got = _mask(data, alpha='drop')
    assert_array_equal(got, expected[..., 0])


@pytest.mark.parametrize('kind', ['JPEG', 'progressive JPEG', 'PNG'])
def test_damage_is_judged_at_least_as_strictly_as_by_pillow(kind):
  """Bytes that are changed, lost or zeroed: the same pixels, or refused."""
  format_ = kind.split()[-1]
  options = {'quality': 75, 'progressive': kind != format_}
  whole = _save(Image.fromarray(_photo(grey=False)), format_, **options)
  rng = np.random.default_rng(0)
  refused = stricter = 0
  # Without its last byte a JPEG file has all of its pixels, but no end.
  for data in [whole[:-1] + b'\0', *(_damaged(whole, rng) for _ in range(200))]:
    expected = _pillow(data)
    if expected is None:
      refused += 1
      _error(data, kind=errors.DecodeError)
    else:
      try:
        got = _image(data, alpha='drop')
      except errors.DecodeError:
        stricter += 1
        continue
      assert_array_equal(got, expected)
  assert 5 < refused
  assert stricter < 20


def _damaged(data: bytes, rng) -> bytes:
  start, length = rng.integers(len(data)), rng.integers(1, 40)
  cut = data[start : start + length]
  other = [b'', bytes(len(cut)), rng.bytes(len(cut))][rng.integers(3)]
  return data[:start] + other + data[start + length :]


_BIG = np.array([0, 1, 255, 40000], np.uint16)[_INDICES]
_MASKS = {
  f'{name} {format_}': (_save(image, format_), expected)
  for name, image, expected, formats in (
    ('palette', _palette(), _INDICES, 'PNG TIFF BMP'),
    # Writers of GIF number the colours anew.
    ('palette', _palette(), _RGB, 'GIF'),
    ('grey', Image.fromarray(_INDICES), _INDICES, 'PNG TIFF BMP WEBP'),
    ('bit', Image.fromarray(_BITS), _BITS, 'PNG TIFF BMP'),
    ('palette, alpha channel', _palette().convert('PA'), _INDICES, 'TIFF'),
    ('grey, alpha', Image.fromarray(_INDICES).convert('LA'), _INDICES, 'PNG'),
    (
      'equal RGB',
      Image.fromarray(_stack(_INDICES)),
      _INDICES,
      'PNG TIFF BMP WEBP',
    ),
    ('RGB', Image.fromarray(_RGB), _RGB, 'PNG TIFF BMP WEBP'),
    ('RGBA', _rgba(), _RGB, 'PNG TIFF BMP WEBP'),
    ('equal RGBA', _rgba(_stack(_INDICES)), _INDICES, 'PNG'),
  )
  for format_ in formats.split()
} | {
  'palette with alpha': (_EXACT['palette, alpha'][0], _INDICES),
  '16 bit PNG': (_png(_BIG), _BIG),
  '16 bit TIFF': (_tiff(_BIG), _BIG),
  '16 bit TIFF, big endian': (_tiff(_BIG, byteorder='>'), _BIG),
  '32 bit TIFF': (_tiff(_BIG.astype(np.int32)), _BIG),
  'bool TIFF': (_tiff(_BITS, photometric='minisblack'), _BITS),
  'float TIFF': (_tiff(_BIG.astype(np.float32)), _BIG),
  'equal 16 bit RGB': (_png(_stack(_BIG)), _BIG),
  '16 bit RGB': (_png(_RGB * np.uint16(257)), _RGB * np.uint16(257)),
  'float RGB': (_tiff(_RGB.astype(np.float32)), _RGB),
}


@pytest.mark.parametrize('kind', _MASKS)
def test_masks(kind):
  data, expected = _MASKS[kind]
  got = _mask(data, alpha='drop')
  assert got.dtype.kind in 'iu'
  assert_array_equal(got, expected)


@pytest.mark.parametrize('bad', [0.5, np.nan, np.inf])
def test_mask_of_floats(bad):
  data = _tiff(np.float32([[0, 1, bad]]))
  assert message_of(_mask, data) == (
    'm.tif: the mask holds floats that are no integers, such as '
    f'{np.float32(bad)} (1 of 3 values); store classes as integers, and 255 '
    'where there is no label'
  )


def test_files_that_change_values():
  image, alpha, options = Image.fromarray(_RGB), _rgba(), {'lossless': False}
  for expected, files in (
    (True, (_save(im, 'WEBP', **options) for im in (image, alpha))),
    (True, (_save(image, 'JPEG'), _save(image, 'TIFF', compression='jpeg'))),
    (False, (_save(image, 'WEBP'), _save(image, 'PNG'))),
    (False, (_save(alpha, 'WEBP'), _save(image, 'TIFF'))),
  ):
    for data in files:
      data = decode.decode_mask(data, 'm', _config(alpha='drop'))
      assert decode.is_lossy(data.kind) == expected, data.kind
