"""Stored values to 0..255: ranges, levels, and pixels without data."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.data import helpers
from tests.refusals import message_of
from unet_jax.config import checks, values
from unet_jax.data import image_levels, intensity

_INTEGERS = (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32)


def _data(**fields):
  return helpers.make_config(**fields).data


def _of_range(low, high, **fields):
  return _data(intensity='range', intensity_range=(low, high), **fields)


def _follow(message, **fields):
  """The config with what a message says to set."""
  for name, value in re.findall(
    r'--config\.data\.(\w+)=([^\s;,]+(?:,[-\w.]+)*)', message
  ):
    fields[name] = values.parse(f'data.{name}', value)
  config = helpers.make_config(**fields)
  checks.validate(config)
  return config.data


@pytest.mark.parametrize('bits', [1, 2, 4, 8, 10, 12, 16])
def test_whole_types_of_so_many_bits(bits):
  dtype = np.uint8 if bits <= 8 else np.uint16
  values = np.arange(2**bits, dtype=dtype)[None]
  got = intensity.to_uint8(values, _data(), 'x', bits)
  assert got.dtype == np.uint8
  assert_array_equal(got, np.rint(values * (255 / (2**bits - 1))))


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_floats_of_0_to_1(dtype):
  values = np.linspace(0, 1, 1001, dtype=dtype).reshape(7, 143)
  got = intensity.to_uint8(values, _data(), 'x')
  assert_array_equal(got, np.rint(values.astype(np.float64) * 255))


@pytest.mark.parametrize('dtype', [*_INTEGERS, np.float32, np.float64])
def test_one_range_for_all_types(dtype):
  """Linear between its ends, cut off beyond; the same in each type."""
  values = np.array([[0, 5, 10, 17, 40, 100, 101, 127]], dtype)
  expected = np.rint(np.clip((np.arange(128) - 10) / 90, 0, 1) * 255)
  data = _of_range(10, 100)
  assert_array_equal(
    intensity.to_uint8(values, data, 'x'), expected[values.astype(int)]
  )
  if dtype not in (np.uint8, np.uint16, np.uint32):
    assert intensity.to_uint8(-values, data, 'x').max() == 0
  # Large images and small ones, whole and by rows, alike.
  large = np.tile(values, (50, 40))
  assert_array_equal(
    intensity.to_uint8(large, data, 'x')[:1, :8], expected[values.astype(int)]
  )


def test_values_far_apart():
  """70000 is not 0, and no image's own maximum chooses."""
  values = np.array([[0, 60000, 70000]], np.int32)
  data = _of_range(0, 70000)
  assert intensity.to_uint8(values, data, 'x').tolist() == [[0, 219, 255]]
  half = intensity.to_uint8(values[:, :2], data, 'x')
  assert half.tolist() == [[0, 219]]


@pytest.mark.parametrize(
  'dtype', [np.int8, np.int16, np.int32, np.uint32, np.int64]
)
def test_types_without_a_range(dtype):
  """Refused; the range that is asked for makes them right."""
  message = message_of(
    intensity.to_uint8, np.array([[3, 120]], dtype), _data(), 'a.tif'
  )
  assert message == (
    f'a.tif holds {np.dtype(dtype)} values from 3 to 120; data.intensity=dtype '
    'takes uint8, uint16 and floats of 0..1. Give one range for the whole set, '
    '--config.data.intensity=range --config.data.intensity_range=LOW,HIGH; '
    '--mode=inspect measures it'
  )
  data = _follow(message.replace('LOW,HIGH', '3,120'))
  got = intensity.to_uint8(np.array([[3, 120]], dtype), data, 'x')
  assert got.tolist() == [[0, 255]]


def test_floats_beyond_their_range():
  message = message_of(
    intensity.to_uint8, np.float32([[-0.5, 2]]), _data(), 'a'
  )
  assert message.startswith('a holds float32 values from -0.5 to 2; ')
  # Rows are judged by the whole image.
  rows = np.float32([[0.5]])
  wrong = intensity.to_uint8, rows, _data(), 'a', 0, None, (0.0, 7.0)
  assert 'a holds float32' in message_of(*wrong)


def test_each_image_by_its_own():
  values = np.array([[-100, 0, 300]], np.int16)
  data = _data(intensity='image')
  assert intensity.to_uint8(values, data, 'x').tolist() == [[0, 64, 255]]
  got = intensity.to_uint8(values[:, 1:2], data, 'x', limits=(-100, 300))
  assert got.tolist() == [[64]]
  assert intensity.to_uint8(values[:, :1], data, 'x').tolist() == [[0]]


@pytest.mark.parametrize(
  'dtype,value,entry',
  [
    (np.float32, -9999, -9999),
    (np.float32, np.nan, 'nan'),
    (np.float32, -3.4028234663852886e38, -3.4028234663852886e38),
    (np.float64, np.inf, 'inf'),
    (np.int16, -32768, -32768),
    (np.uint8, 0, 0.0),
    (np.uint16, 65535, '65535'),
  ],
)
@pytest.mark.parametrize('kind', ['dtype', 'range', 'image'])
def test_no_data(dtype, value, entry, kind):
  """Found, left out of limits, and filled with the mean."""
  is_float = np.dtype(dtype).kind == 'f'
  pixels = np.full((2, 3), 1, dtype)
  pixels[0] = [0.25, 1, 0.5] if is_float else 1
  pixels[1, ::2] = value
  fields = {'nodata': (entry,), 'intensity': kind}
  if kind == 'range':
    fields['intensity_range'] = (0, 1)
  if kind == 'dtype' and dtype == np.int16:
    pytest.skip('has no range of its own')
  data = _data(**fields, mean=(0.2, 0.4, 0.6))
  ignored = intensity.find_no_data(pixels, data)
  assert_array_equal(ignored, [[False] * 3, [True, False, True]])
  assert intensity.find_no_data(pixels[:1], data) is None
  got = intensity.to_uint8(pixels, data, 'x', ignored=ignored)
  alone = intensity.to_uint8(pixels[:1], data, 'x')
  assert_array_equal(got[0], alone[0])
  filled = intensity.fill(np.stack([got] * 3, -1), ignored, data)
  assert filled[1, 0].tolist() == filled[1, 2].tolist() == [51, 102, 153]
  assert_array_equal(filled[0, :, 0], got[0])


def test_no_data_of_several_channels():
  """Black in one channel is a colour; NaN in one is no number."""
  data = _data(nodata=(0, 'nan'))
  pixels = np.ones((1, 4, 3), np.float32)
  pixels[0, 0], pixels[0, 1, 0], pixels[0, 2, 1] = 0, 0, np.nan
  ignored = intensity.find_no_data(pixels, data)
  assert ignored.tolist() == [[True, False, True, False]]
  assert intensity.find_no_data(np.uint8([[[0, 1, 1]]]), data) is None


def test_what_stands_for_no_data_is_named():
  """By the file, or by its place far off all other values."""
  pixels = np.linspace(0, 0.45, 60, dtype=np.float32).reshape(6, 10)
  pixels[:, :2] = -9999
  message = message_of(intensity.to_uint8, pixels, _data(), 'a')
  assert (
    '. If -9999 stands for no data, set --config.data.nodata=-9999;' in message
  )
  tagged = message_of(intensity.to_uint8, pixels, _data(), 'a', tag=-9999.0)
  assert tagged.endswith(
    'The file names -9999 as its value of no data: set '
    '--config.data.nodata=-9999'
  )
  data = _follow(tagged)
  ignored = intensity.find_no_data(pixels, data)
  assert (
    len(np.unique(intensity.to_uint8(pixels, data, 'a', ignored=ignored))) > 40
  )
  pixels[:, :2] = np.nan
  message = message_of(intensity.to_uint8, pixels, _data(), 'a')
  assert message == (
    'a holds values that are not finite (NaN or infinity); if they are no '
    'data, --config.data.nodata=nan,inf,-inf ignores these pixels'
  )
  assert intensity.find_no_data(pixels, _follow(message)).sum() == 12
  pixels[:, :2] = [-np.inf, np.inf]
  message = message_of(intensity.to_uint8, pixels, _data(), 'a')
  assert intensity.find_no_data(pixels, _follow(message)).sum() == 12
  # NaN has no place in a range either.
  assert 'not finite' in message_of(
    intensity.to_uint8, pixels, _of_range(0, 1), 'a'
  )
  # A single bright pixel is none.
  pixels[:] = 0.5
  pixels[0, 0] = 900
  assert 'no data' not in message_of(intensity.to_uint8, pixels, _data(), 'a')


def _levels(values, data=None, **kwargs):
  return image_levels.measure(np.asarray(values), data or _data(), **kwargs)


def test_levels_that_are_left():
  twelve_bit = np.array([[300, 1500, 1590, 3700]] * 4, np.uint16)
  found = _levels(twelve_bit)
  assert (found.stored, found.left, found.are_few) == (4, 3, True)
  assert (found.kind, found.num_pixels) == ('uint16', 16)
  assert not _levels(twelve_bit, _of_range(300, 3700)).are_few
  assert not _levels(twelve_bit, bits=12).are_few
  # Of thousands of levels, 8 bits keep all that there can be.
  assert not _levels(
    np.arange(65536, dtype=np.uint16).reshape(256, 256)
  ).are_few
  assert _levels(np.arange(4096, dtype=np.uint16).reshape(64, 64)).are_few
  floats = np.random.default_rng(0).random((64, 64), np.float32)
  assert not _levels(floats).are_few
  assert _levels(floats / 10).are_few


def test_measured_pixels():
  """Without those that are no data; mean and deviation as stored."""
  pixels = np.zeros((8, 6, 3), np.float32)
  pixels[:, :, 1] = 5
  pixels[:, :3, 2] = 1
  pixels[2, 2] = np.nan
  data = _data(nodata=('nan',))
  ignored = intensity.find_no_data(pixels, data)
  found = _levels(pixels, data, ignored=ignored)
  assert found.num_pixels == 47
  assert_allclose(found.mean, [0, 5, 23 / 47])
  assert_allclose(found.std, [0, 0, (23 * 24) ** 0.5 / 47])
  assert (found.values[0], found.values[-1]) == (0, 5)
  nothing = _levels(pixels[2:3, 2:3], data, ignored=np.ones((1, 1), bool))
  assert nothing.num_pixels == 0 and not nothing.are_few
  assert image_levels.range_of_set([nothing]) is None


@pytest.mark.parametrize(
  'value,dtype', [(-9999, np.float32), (-32768, np.int16), (65535, np.uint16)]
)
def test_a_value_far_off_is_no_part_of_the_range(value, dtype):
  pixels = np.arange(90, dtype=dtype).reshape(9, 10) * 20
  pixels[:, 0] = value
  found = _levels(pixels)
  assert found.stray == value
  assert image_levels.range_of_set([found]) == (20, 1780)
  # Bright pixels are data, if no others are near.
  pixels[:, 0] = 3700
  found = _levels(pixels)
  assert found.stray is None and found.values[-1] == 3700


def test_range_of_a_set():
  """One for all images; a few outliers do not stretch it."""
  rng = np.random.default_rng(0)
  images = [rng.integers(100, 900, (64, 64), np.uint16) for _ in range(9)]
  images.append(rng.integers(2000, 3001, (64, 64), np.uint16))
  images[0][0, 0] = 65535
  low, high = image_levels.range_of_set([_levels(image) for image in images])
  every = np.concatenate([image.ravel() for image in images])
  expected = np.quantile(every, [0.001, 0.999])
  assert isinstance(low, int) and isinstance(high, int)
  assert_allclose((low, high), expected, atol=15)
  # Large images count for more.
  small = _levels(np.full((4, 4), 9999, np.uint16))
  assert image_levels.range_of_set([_levels(images[1])] * 50 + [small])[1] < 910
  floats = image_levels.range_of_set([_levels(np.float32([[0.1234567, 0.9]]))])
  assert floats == (0.1235, 0.9)
  assert image_levels.range_of_set([_levels(np.int16([[4, 4]]))]) == (4, 5)


def test_every_value_of_16_bits_is_rounded_exactly():
  values = np.arange(65536, dtype=np.uint16).reshape(64, -1, 2)
  got = intensity.to_uint8(values, _data(), 'x')
  assert_array_equal(got, np.rint(values * (255 / 65535)))


def test_lines_on_a_set():
  few = _levels(np.array([[300, 1500, 1590, 3700]] * 9, np.uint16))
  rich = _levels(np.arange(65536, dtype=np.uint16).reshape(256, 256))
  (line,) = image_levels.lines_on_set([few, few, rich], _data())
  assert line == (
    '2 of 3 images keep few of their levels with data.intensity=dtype, 3 of 4 '
    'on the median; --config.data.intensity=range '
    '--config.data.intensity_range=300,3700 keeps more'
  )
  (sampled,) = image_levels.lines_on_set([few, few], _data(), 90)
  assert sampled.startswith('2 of 2 images that were measured keep few of ')
  data = _follow(line)
  again = _levels(np.array([[300, 1500, 1590, 3700]] * 9, np.uint16), data)
  assert image_levels.lines_on_set([again] * 2, data) == []
  assert image_levels.lines_on_set([few, rich], _data()) == []
  assert image_levels.lines_on_set([None, None], _data()) == []


def test_a_range_is_not_advised_for_other_types():
  few = _levels(np.array([[300, 1500, 1590, 3700]] * 9, np.uint16))
  rich = _levels(np.uint8(np.arange(256).reshape(16, 16)))
  for others in ([None] * 2, [rich] * 2):
    (line,) = image_levels.lines_on_set([few, *others], _data())
    assert line == (
      '1 of 3 images keep few of their levels with data.intensity=dtype, 3 of '
      '4 on the median; others hold no uint16: store all in one type and unit'
    )


def test_values_of_no_data_that_are_not_listed():
  pixels = np.uint8([[0, 7], [9, 0]])
  found = _levels(pixels, tag=0.0)
  assert image_levels.lines_on_set([found, None], _data()) == [
    '1 of 2 images name 0 as their value of no data and have such pixels, '
    'which are taken as data; --config.data.nodata=0 ignores them'
  ]
  assert _levels(pixels, tag=5.0).unlisted is None
  assert _levels(pixels, _data(nodata=(0,)), tag=0.0).unlisted is None
