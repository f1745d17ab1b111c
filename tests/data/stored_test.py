"""Tests of unet_jax/data/stored.py and of the readers of TIFF.

Files of many writers, of experiments/formats/files.py, and of all types of
values, layouts and compressions: each reads back as it was written, as an image
and as a mask, whole and by rows.
"""

import functools
import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_array_equal
from PIL import Image, ImageOps, PngImagePlugin

from experiments.formats import files
from tests import folders
from tests.data import helpers
from tests.refusals import message_of
from unet_jax.data import decode, rasters, stored, tiff_image
from unet_jax.runtime import errors

_FILES = list(files.files())
_NAMES = [f'{f.writer} {f.format} {f.kind}' for f in _FILES]


@functools.cache
def _data(channels=1, **fields):
  fields = {'intensity': 'image', 'num_workers': 1, **fields}
  return helpers.make_config(num_channels=channels, **fields).data


def _expected_image(shown: np.ndarray) -> np.ndarray:
  """uint8 [H, W, C], where other types are scaled by their range."""
  shown = shown if shown.ndim == 3 else shown[..., None]
  if shown.dtype != np.uint8:
    values = shown.astype(np.float64)
    low, high = values.min(), values.max()
    shown = np.rint((values - low) * (255 / (high - low))).astype(np.uint8)
  return shown


def _by_rows(path, data, page=0) -> np.ndarray:
  with rasters.open_image(path, data, page) as raster:
    cuts = [0, 5, 6, raster.size[0]]
    parts = [raster.read(a, b) for a, b in itertools.pairwise(cuts)]
  return np.concatenate(parts)


def _check(content, array, path, shown=None, **fields):
  """That a file reads back as image and mask, whole and by rows."""
  found = stored.read(content, 'x')
  assert_array_equal(found.pixels, array, strict=array.dtype != bool)
  assert found.pixels.dtype.isnative

  expected = _expected_image(array if shown is None else shown)
  channels = expected.shape[2]
  if channels not in (1, 3):
    fields['bands'], channels = (2,), 1
    expected = _expected_image(array[..., 1])
  data = _data(channels, **fields)
  image = decode.decode_image(content, 'x', data)
  assert_array_equal(image.array, expected)
  path.write_bytes(content)
  assert_array_equal(_by_rows(path, data), expected)

  if (
    array.dtype.kind == 'f'
    or array.ndim == 3
    and (array.shape[2] != 3 or array.min() < 0 or array.max() > 65535)
  ):
    return
  mask = decode.decode_mask(content, 'x', data).array
  if mask.ndim < array.ndim:
    mask = mask[..., None]
  assert_array_equal(*np.broadcast_arrays(mask, array))


def test_there_are_many_files():
  assert len(_FILES) == len(set(_NAMES)) >= 100
  assert len({(f.writer, f.format) for f in _FILES}) >= 18


@pytest.mark.parametrize('file', _FILES, ids=_NAMES)
def test_files_of_many_writers(file, tmp_path):
  found = stored.read(file.data, 'x')
  (tmp_path / 'x').write_bytes(file.data)
  assert found.pages == stored.count_pages(tmp_path / 'x') == file.pages
  pages = 'one' if file.pages == 1 else 'images'
  shown = file.shown
  _check(file.data, file.array, tmp_path / 'a', shown, pages=pages)


_TYPES = [
  f'{k}{n}'
  for k, sizes in {'u': '1248', 'i': '1248', 'f': '248'}.items()
  for n in sizes
]
_LAYOUTS = {
  'strips': {'rowsperstrip': 3},
  'one strip': {},
  'tiles': {'tile': (16, 32)},
}
_WAYS = {
  'none': {},
  'lzw': {'compression': 'lzw'},
  'deflate': {'compression': 'zlib', 'predictor': True},
  'packbits': {'compression': 'packbits'},
  'zstd': {'compression': 'zstd', 'byteorder': '>', 'predictor': True},
  'big endian': {'byteorder': '>'},
  'BigTIFF': {'bigtiff': True},
}


def _values(dtype: str, *channels: int) -> np.ndarray:
  rng, shape = np.random.default_rng(1), (21, 45, *channels)
  if dtype[0] == 'f':
    return rng.normal(0, 100, shape).astype(dtype)
  info = np.iinfo(dtype)
  # Beyond 2**53 no image can be scaled by floats to the last bit.
  low, high = max(info.min, -(2**52)), min(info.max, 2**52)
  return rng.integers(low, high, shape, np.int64).astype(dtype)


@pytest.mark.parametrize('way', _WAYS)
@pytest.mark.parametrize('dtype', _TYPES)
def test_types_of_tiff(dtype, way, tmp_path):
  options = dict(_WAYS[way])
  if dtype in ('u8', 'i8'):
    options.pop('predictor', None)
  for layout, channels in itertools.product(_LAYOUTS, (1, 3, 4)):
    array = _values(dtype, *([channels] if channels > 1 else []))
    written = {**options, **_LAYOUTS[layout], 'photometric': 'minisblack'}
    separate = np.moveaxis(array, -1, 0) if channels > 1 else array
    for planar in ('contig', 'separate')[: min(channels, 2)]:
      content = files.tiff(
        separate if planar == 'separate' else array,
        **written,
        planarconfig=planar if channels > 1 else None,
      )
      _check(content, array, tmp_path / 'a.tif')


@pytest.mark.parametrize('predictor', [False, True])
def test_whole_lzw_is_decoded_at_once_and_damage_is_refused(
  predictor, monkeypatch
):
  """Calls for each strip took longer than its pixels."""
  options = {'compression': 'lzw', 'predictor': predictor, 'rowsperstrip': 2}
  content = files.tiff(_RGB, photometric='rgb', **options)
  with tifffile.TiffFile(io.BytesIO(content)) as file:
    start, size = file.pages[0].dataoffsets[7], file.pages[0].databytecounts[7]
  damaged = bytearray(content)
  damaged[start + size // 2 : start + size] = b'\xff' * (size - size // 2)
  kind = errors.DecodeError
  message = message_of(stored.read, bytes(damaged), 'x', kind=kind)
  assert message.startswith('x cannot be decoded (')

  monkeypatch.delattr(tiff_image, '_decode')
  assert_array_equal(stored.read(content, 'x').pixels, _RGB)


@pytest.mark.parametrize('compression', [None, 'zlib', 'packbits', 'zstd'])
@pytest.mark.parametrize('dtype', ['u1', '>u2', '<f4'])
def test_small_strips_are_decoded_in_one_piece(compression, dtype, monkeypatch):
  """To look at the tags for each took longer than the pixels."""
  array = (_RGB[..., 0].repeat(3, 1) // 4).astype(dtype)
  options = {'compression': compression, 'rowsperstrip': 3}
  content = files.tiff(array, byteorder=dtype[0].replace('u', '<'), **options)
  with monkeypatch.context() as without:
    without.delattr(tiff_image, '_decode')
    joined = stored.read(content, 'x').pixels
  assert_array_equal(joined, array)
  joined[0] = 0  # As other arrays, it may be written to.
  found = []
  for one_by_one in (False, True):
    if one_by_one:
      monkeypatch.setattr(tiff_image, '_PLAIN', ())
    rng, results = np.random.default_rng(0), []
    with tifffile.TiffFile(io.BytesIO(content)) as file:
      strips = list(
        zip(file.pages[0].dataoffsets, file.pages[0].databytecounts)
      )
    for _ in range(60):
      damaged = bytearray(content)
      start, size = strips[rng.integers(len(strips))]
      damaged[start + rng.integers(size)] ^= 1 << int(rng.integers(8))
      try:
        results.append(stored.read(bytes(damaged), 'x').pixels.tobytes())
      except errors.DecodeError as e:
        results.append(str(e))
    found.append(results)
  assert found[0] == found[1]


@pytest.mark.parametrize('bits', range(1, 17))
def test_bits_of_tiff(bits, tmp_path):
  dtype = bool if bits == 1 else 'u1' if bits <= 8 else 'u2'
  array = (
    np.random.default_rng(bits).integers(0, 2**bits, (21, 45)).astype(dtype)
  )
  shown = array
  if bits < 8:
    shown = np.rint(array.astype(int) * 255 / (2**bits - 1)).astype(np.uint8)
  content = files.tiff(
    array, bitspersample=bits, photometric='minisblack', rowsperstrip=4
  )
  assert stored.read(content, 'x').bits == bits
  _check(content, array, tmp_path / 'a.tif', shown)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('format_', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_orientation(format_, orientation):
  """Not applied, or applied as Pillow does, to images and masks."""
  array = np.zeros((16, 24, 3), np.uint8)
  array[:8, :8] = 255
  exif, file = Image.Exif(), io.BytesIO()
  exif[274] = orientation
  lossless = {'lossless': True} if format_ == 'WEBP' else {}
  Image.fromarray(array).save(file, format_, exif=exif, **lossless)
  content = file.getvalue()
  with Image.open(file) as image:
    turned = np.asarray(ImageOps.exif_transpose(image))
  for field, expected in (('stored', array), ('upright', turned)):
    data = _data(3, orientation=field)
    image = decode.decode_image(content, 'x', data)
    assert image.orientation == orientation
    assert_array_equal(image.array, expected)
    mask = decode.decode_mask(content, 'x', data).array
    assert_array_equal(mask, expected[..., 0])
  assert_array_equal(stored.turn_back(turned, orientation), array)


def _pages(*pages, **options) -> bytes:
  file = io.BytesIO()
  with tifffile.TiffWriter(file) as writer:
    for array, more in pages:
      writer.write(array, **{'metadata': None, **options, **more})
  return file.getvalue()


_GREY = np.random.default_rng(3).integers(0, 256, (48, 64), np.uint8)
_RGB = np.stack([_GREY, _GREY[::-1], _GREY[:, ::-1]], -1)
_ANY_TAGS = {258: 8, 262: 1}


def test_what_is_no_page():
  """Reduced copies, marked or not, masks and thumbnails."""
  tiled = {'tile': (16, 16)}
  mask = _GREY > 40
  content = _pages(
    (_GREY, {}),
    (_GREY[::2, ::2], {'subfiletype': 1}),
    (mask, {'subfiletype': 4, 'photometric': 'mask'}),
    (_GREY[::4, ::4], tiled),
    (255 - _GREY, {}),
    photometric='minisblack',
  )
  found = stored.read(content, 'x')
  assert found.pages == 2
  assert_array_equal(found.pixels, _GREY)
  assert_array_equal(found.alpha, mask * np.uint8(255))
  second = stored.read(content, 'x', 1)
  assert_array_equal(second.pixels, 255 - _GREY)
  assert second.alpha is None


@pytest.mark.parametrize('metadata', [None, {}])
@pytest.mark.parametrize('marked', [0, 1])
def test_pyramids(metadata, marked):
  """In SubIFDs, or tiled at the top, by tifffile's description or without."""
  for subifds in (0, 1):
    file = io.BytesIO()
    options = {'metadata': metadata, 'tile': (16, 16), 'photometric': 1}
    with tifffile.TiffWriter(file) as writer:
      writer.write(_GREY, subifds=subifds, **options)
      writer.write(_GREY[::2, ::2], subfiletype=marked, **options)
      if not subifds:
        mask = {**options, 'photometric': 'mask', 'subfiletype': 4}
        writer.write(_GREY > 9, **mask)
    found = stored.read(file.getvalue(), 'x')
    assert found.pages == 1
    assert_array_equal(found.pixels, _GREY)
    assert (found.alpha is None) == bool(subifds)


def test_pictures_in_a_photograph_that_are_none(tmp_path):
  large, small = Image.fromarray(_RGB), Image.fromarray(_RGB[::2, ::2])
  for others, pages in (([small], 1), ([small, large], 2)):
    file = io.BytesIO()
    large.save(file, 'MPO', save_all=True, append_images=others)
    (tmp_path / 'x').write_bytes(file.getvalue())
    assert stored.count_pages(tmp_path / 'x') == pages
    assert stored.read(file.getvalue(), 'x', pages - 1).pages == pages
    alone = file.getvalue()[: file.getvalue().index(b'\xff\xd9\xff\xd8') + 2]
    assert stored.read(alone, 'x').pages == 1


def test_tags_are_told():
  nodata = [(42113, 's', 0, 'nan', True), (274, 'H', 1, 8, True)]
  found = stored.read(files.tiff(_GREY, extratags=nodata), 'x')
  assert np.isnan(found.nodata) and found.orientation == 8
  white = files.tiff(_GREY, photometric='miniswhite')
  assert stored.read(white, 'x').white_is_zero
  assert not stored.read(files.tiff(_GREY), 'x').white_is_zero


_OPAQUE = np.dstack([_RGB, np.full(_GREY.shape, 255, np.uint8)])
_CLEAR = np.dstack([_RGB, np.where(_GREY > 99, 0, 255).astype(np.uint8)])
_KEYED = np.where(_GREY > 99, 7, 3).astype(np.uint8)
_ALPHA = {
  'PNG': files.png(_CLEAR, 8, 6),
  '16 bit PNG': files.png(_CLEAR * np.uint16(257), 16, 6),
  'PNG, grey': files.png(_CLEAR[..., [0, 3]], 8, 4),
  'PNG, a colour': files.png(_KEYED, 8, 0, ((b'tRNS', b'\0\7'),)),
  'PNG, a colour of 1 bit': files.png(
    (_KEYED == 7).astype(np.uint8), 1, 0, ((b'tRNS', b'\0\1'),)
  ),
  'PNG, palette': files.png(
    _KEYED, 8, 3, ((b'PLTE', bytes(range(30))), (b'tRNS', b'\xff' * 7 + b'\0'))
  ),
  'TIFF': files.tiff(_CLEAR, photometric='rgb'),
  'TIFF, planes': files.tiff(
    np.moveaxis(_CLEAR, -1, 0), photometric='rgb', planarconfig='separate'
  ),
  'TIFF, premultiplied': files.tiff(
    _CLEAR, photometric='rgb', extrasamples=['assocalpha']
  ),
  "GDAL's mask": _pages(
    (_RGB, {'photometric': 'rgb'}),
    (_GREY <= 99, {'subfiletype': 4, 'photometric': 'mask'}),
  ),
}


@pytest.mark.parametrize('kind', _ALPHA)
def test_alpha(kind):
  """Refused, dropped, or ignored where it is 0; as a band it is read."""
  content, count = _ALPHA[kind], np.count_nonzero(_GREY > 99)
  data = _data(1 if 'grey' in kind or 'colour' in kind else 3)
  message = message_of(decode.decode_image, content, 'a.png', data)
  assert message.startswith(
    f'a.png has alpha that is not opaque in {count} of {48 * 64} pixels; '
  )
  image = decode.decode_image(content, 'x', _data(3, alpha='nodata'))
  assert_array_equal(image.ignored, _GREY > 99)
  assert (
    decode.decode_image(content, 'x', _data(3, alpha='drop')).ignored is None
  )
  bands = (2,) if data.num_channels == 1 else (4,)
  band = decode.decode_image(content, 'x', _data(1, bands=bands)).array
  assert_array_equal(band[..., 0], np.where(_GREY > 99, 0, 255))

  if kind == 'PNG, palette':  # Labels, whatever their colours.
    mask = decode.decode_mask(content, 'x', _data())
    assert_array_equal(mask.array, _KEYED)
    assert mask.ignored is None
  else:
    assert 'alpha' in message_of(decode.decode_mask, content, 'x', _data())
    mask = decode.decode_mask(content, 'x', _data(alpha='nodata'))
    assert_array_equal(mask.ignored, _GREY > 99)


def test_bands():
  content = files.tiff(
    np.dstack([_RGB, _RGB]), photometric='minisblack', planarconfig='contig'
  )
  image = decode.decode_image(content, 'x', _data(3, bands=(6, 2, 2))).array
  assert_array_equal(image, _RGB[..., [2, 1, 1]])
  message = message_of(decode.decode_image, content, 'a.tif', _data(3))
  assert message == (
    'a.tif has 6 bands, the network 3 channel(s), of at most 3; choose those '
    'it sees with --config.data.bands=1,2,3'
  )
  message = message_of(decode.decode_image, content, 'x', _data(1))
  assert message.endswith('--config.data.bands=1,')
  two = files.tiff(
    _RGB[..., :2], photometric='minisblack', planarconfig='contig'
  )
  message = message_of(decode.decode_image, two, 'x', _data(3))
  assert message.endswith('--config.data.bands=1,2,2')
  for bad in (7, 0):
    data = _data(1, bands=(bad,))
    assert message_of(decode.decode_image, content, 'a.tif', data) == (
      'a.tif has 6 band(s), numbered from 1, and data.bands='
      f'({bad},) asks for number {bad}; choose others'
    )
  two = files.tiff(
    _RGB[..., :2], photometric='minisblack', planarconfig='contig'
  )
  for channels, bands in ((1, (1,)), (3, (1, 2, 2))):
    message = message_of(decode.decode_image, two, 'x', _data(channels))
    assert '2 bands' in message
    # What is advised is taken.
    assert message.rpartition('=')[2].strip(',') == ','.join(map(str, bands))
    image = decode.decode_image(two, 'x', _data(channels, bands=bands)).array
    assert_array_equal(image, _RGB[..., [band - 1 for band in bands]])


def test_planes_are_no_mask():
  classes = (_GREY % 3)[..., None] == np.arange(3)
  planes = {'photometric': 'minisblack', 'planarconfig': 'contig'}
  for highest in (1, 255):
    content = files.tiff((classes * highest).astype(np.uint8), **planes)
    assert message_of(decode.decode_mask, content, 'a.tif', _data()) == (
      'a.tif: the mask has a plane for each class; store one value a pixel, '
      'such as planes.argmax(-1), or an RGB image of one colour a class'
    )
  content = files.tiff(_RGB[..., :2], **planes)
  assert 'the mask has 2 channels' in message_of(
    decode.decode_mask, content, 'x', _data()
  )


def test_palette_masks():
  """Indices, or colours where the table has some."""
  palette = ((b'PLTE', bytes(range(48))),)
  content = files.png(_GREY % 16, 4, 3, palette)
  assert_array_equal(
    decode.decode_mask(content, 'x', _data()).array, _GREY % 16
  )
  table = (((0, 1, 2), 0), ((3, 4, 5), 1))
  colors = decode.decode_mask(content, 'x', _data(mask_values=table)).array
  index = (_GREY % 16).astype(int)
  assert_array_equal(colors, np.stack([3 * index + i for i in range(3)], -1))


_COMPLEX = np.ones((4, 5), np.complex64)
_REFUSED = {
  'complex': (
    files.tiff(_COMPLEX),
    'a TIFF of 64 bits of complexieeefp values',
  ),
  'inks, 16 bit': (
    files.tiff(np.zeros((4, 5, 4), np.uint16), photometric='separated'),
    'a TIFF of inks (4 channels of 16 bits)',
  ),
  'Lab': (
    files.tiff_by_hand((4, 5), bytes(60), {258: (8, 8, 8), 262: 8, 277: 3}),
    'a TIFF of Lab colours',
  ),
  'raw': (
    files.tiff_by_hand((4, 5), bytes(20), {258: 8, 262: 32803}),
    "a TIFF of a camera's raw pattern",
  ),
  '5+6+5 bits': (
    files.tiff_by_hand((4, 5), bytes(40), {258: (5, 6, 5), 262: 2, 277: 3}),
    'a TIFF whose channels have 5+6+5 bits',
  ),
  'YCbCr': (
    files.tiff_by_hand((4, 5), bytes(60), {258: (8, 8, 8), 262: 6, 277: 3}),
    'a TIFF of YCbCr colours without JPEG',
  ),
  'old JPEG': (
    files.tiff_by_hand((4, 5), bytes(20), {**_ANY_TAGS, 259: 6}),
    'a TIFF compressed by OJPEG (tag 6)',
  ),
  'volume': (
    files.tiff(
      np.zeros((5, 16, 16), np.uint8), volumetric=True, photometric='minisblack'
    ),
    'a TIFF volume of 5 slices in one page',
  ),
  'animated, 16 bit': (
    files.png(_RGB * np.uint16(257), 16, 2, ((b'acTL', b'\0\0\0\2\0\0\0\0'),)),
    'an animated PNG of 16 bits',
  ),
}


@pytest.mark.parametrize('kind', _REFUSED)
def test_kinds_that_are_refused_by_name(kind, tmp_path):
  content, what = _REFUSED[kind]
  path = tmp_path / 'a.tif'
  path.write_bytes(content)
  expected = (
    f'{path} is {what}, which is not read; store it as PNG, or as TIFF of grey,'
    ' RGB or bands, or skip such files with --config.data.on_error=skip'
  )
  for read in (
    lambda: decode.decode_image(content, str(path), _data(3)),
    lambda: decode.decode_mask(content, str(path), _data(3)),
    lambda: rasters.open_image(path, _data(3)),
  ):
    assert message_of(read, kind=errors.DecodeError) == expected


def test_other_formats_are_named():
  file = io.BytesIO()
  Image.fromarray(_GREY).save(file, 'ICO')
  message = message_of(
    stored.read, file.getvalue(), 'a.png', kind=errors.DecodeError
  )
  assert message.startswith('a.png is ICO, which is not read; ')


def _written(array, **options) -> bytes:
  content = io.BytesIO()
  tifffile.imwrite(content, array, photometric='minisblack', **options)
  return content.getvalue()


@pytest.mark.parametrize(
  'options',
  [{'imagej': True}, {'ome': True}, {'metadata': None}, {'compression': 'lzw'}],
)
@pytest.mark.parametrize('part', [0.4, 0.6])
def test_a_stack_that_is_cut_is_damage(options, part):
  """Also where its first slice is whole."""
  stack = np.random.default_rng(0).integers(0, 256, (7, 40, 50), np.uint8)
  whole = _written(stack, **options)
  assert stored.read(whole, 'x').pages in (1, 7)  # Channels, or slices.
  with pytest.raises(errors.DecodeError, match='cannot be decoded'):
    stored.read(whole[: int(part * len(whole))], 'x')


@pytest.mark.parametrize('compression', [None, 'zlib'])
@pytest.mark.parametrize('writer', ['imagej', 'ome'])
@pytest.mark.parametrize('told, held', [(2, 4), (3, 2), (3, 1)])
def test_pages_count_where_a_description_is_of_another_file(
  told, held, writer, compression
):
  """Of the stack that an image was cut from, or of a set of files."""
  stack = np.random.default_rng(0).integers(0, 256, (4, 20, 30), np.uint8)
  of_another = _written(stack[:told], **{writer: True})
  with tifffile.TiffFile(io.BytesIO(of_another)) as file:
    description = file.pages.first.description
  content = _written(
    stack[:held],
    metadata=None,
    description=description,
    compression=compression,
  )
  for page in range(held):
    found = stored.read(content, 'x', page)
    assert found.pages == held
    assert_array_equal(found.pixels, stack[page])


@pytest.mark.parametrize(
  'depth, color', [(8, 0), (1, 0), (8, 3), (8, 2), (16, 0), (8, 6)]
)
def test_a_png_without_all_rows_is_damage(depth, color, capfd):
  """Its checksums are right; Pillow and OpenCV leave the rest black."""
  channels = {2: (3,), 6: (4,)}.get(color, ())
  array = np.zeros((6, 16, *channels), np.uint8)
  whole = files.png(array, depth, color, ((b'PLTE', bytes(6)),) * (color == 3))
  assert stored.read(whole, 'x').pixels.shape[:2] == (6, 16)
  header = whole[12:20] + struct.pack('>I', 9) + whole[24:29]
  checksum = struct.pack('>I', zlib.crc32(header))
  with pytest.raises(errors.DecodeError, match='Not enough image data'):
    stored.read(whole[:12] + header + checksum + whole[33:], 'x')
  assert capfd.readouterr() == ('', '')


def test_a_png_may_hold_much_text():
  """Programs keep their settings in it; Pillow takes it for an attack."""
  text = PngImagePlugin.PngInfo()
  text.add_text('workflow', 'x' * 2**21, zip=True)
  content = io.BytesIO()
  Image.new('RGB', (5, 4), (1, 2, 3)).save(
    content, 'PNG', pnginfo=text, icc_profile=bytes(2**21)
  )
  assert_array_equal(
    stored.read(content.getvalue(), 'x').pixels[0, 0], 1 + np.arange(3)
  )


def _jpeg(array: np.ndarray, **options) -> bytes:
  content = io.BytesIO()
  Image.fromarray(array).save(content, 'JPEG', **options)
  return content.getvalue()


@pytest.mark.parametrize('channels', [1, 3])
def test_a_jpeg_that_lost_pixels_is_damage(channels):
  """libjpeg warns of these, and gives noise or grey."""
  array = np.random.default_rng(0).integers(0, 256, (90, 120, channels))
  whole = _jpeg(array.astype(np.uint8).squeeze())
  half = len(whole) // 2
  end = b'\xff\xd9'
  for damaged in (
    whole[:half] + end,
    whole[:half] + bytes(len(whole) - half),
    whole[:half] + bytes(len(whole) - half - 2) + end,
    whole[:half] + bytes(100) + whole[half + 100 :],
  ):
    with pytest.raises(errors.DecodeError, match='cannot be decoded'):
      stored.read(damaged, 'x')
  stored.read(whole + bytes(100), 'x')  # What follows the end is no pixel.


@pytest.mark.parametrize('value', [0, 128])
@pytest.mark.parametrize('shape', [(90, 120), (90, 120, 3)])
@pytest.mark.parametrize(
  'options', [{}, {'optimize': True}, {'progressive': True}, {'quality': 100}]
)
def test_a_flat_jpeg_is_whole(value, shape, options):
  array = np.full(shape, value, np.uint8)
  found = stored.read(_jpeg(array, **options), 'x')
  assert_array_equal(found.pixels, array)


@pytest.mark.parametrize(
  'content, what',
  [
    (b'', 'it is empty'),
    (b'\0\0\0\x18ftypheic\0\0\0\0mif1', 'x is HEIC, which is not read'),
    (b'\n<!DOCTYPE html><html>', 'a web page'),
  ],
)
def test_what_is_no_image_is_named(content, what):
  with pytest.raises(errors.DecodeError, match=what):
    stored.read(content, 'x')


def test_a_tag_that_is_cut_off_is_damage():
  """Its default would give other pixels."""
  tags = {258: (8, 8, 8), 262: 2, 277: 3}
  content = files.tiff_by_hand(_GREY.shape, _RGB.tobytes(), tags)
  assert_array_equal(stored.read(content, 'x').pixels, _RGB)
  assert message_of(
    stored.read, content[:-2], 'x', kind=errors.DecodeError
  ) == helpers.cannot_decode('x', 'tag 258 cannot be read')


@pytest.mark.parametrize('array', [_GREY, _GREY * np.uint16(257)], ids=len)
@pytest.mark.parametrize(
  'chunk',
  [
    # Significant bits: fewer than stored, none, too many, of another image.
    *((b'sBIT', bits) for bits in (b'\5', b'\0', b'\x99', b'\5\6\5')),
    (b'gAMA', bytes(4)),
    (b'cHRM', bytes(32)),
    (b'bKGD', b''),
    (b'pHYs', bytes(9)),
  ],
  ids=str,
)
def test_chunks_of_display_say_nothing_of_pixels(array, chunk, capfd):
  content = files.png(array, 8 * array.itemsize, 0, (chunk,))
  assert_array_equal(stored.read(content, 'x').pixels, array)
  assert capfd.readouterr() == ('', '')


# Ignored in a program; here every warning is an error.
@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
def test_nothing_is_printed(capfd, tmp_path):
  """No line of a library, nor its error, of sound and of damaged files."""
  path, rng, photo = tmp_path / 'a', np.random.default_rng(0), io.BytesIO()
  Image.fromarray(_RGB).save(photo, 'JPEG')
  several = [f.data for f in _FILES] + list(_ALPHA.values())
  for content in [*several, *[photo.getvalue()] * 9]:
    size = len(content)
    # Tags and headers are near the start and the end.
    tags = bytearray(content)
    for place in rng.integers(min(size // 2, 300), size=2):
      tags[place] = tags[-place - 1] = rng.integers(256)
    scan = bytearray(content)
    scan[rng.integers(size // 2, size)] = rng.integers(255)
    half = bytearray(content)
    half[size // 2 : size // 2 + 9] = b'\xff\xd7 no data'[:9]
    cuts = content, content[:-9], content[: size // 2]
    for data in (*cuts, bytes(half), bytes(tags), bytes(scan)):
      path.write_bytes(data)
      for read in (
        lambda: stored.read(path.read_bytes(), 'x'),
        lambda: rasters.open_image(path, _data(3, pages='images')).close(),
      ):
        try:
          read()
        except errors.UserError as e:
          assert '\n' not in str(e)
  assert capfd.readouterr() == ('', '')


def test_a_jpeg_of_one_scan_a_component_may_have_flat_zeros():
  """Flat chroma is four bits of zero a block by the usual tables."""
  rng = np.random.default_rng(0)
  grey = rng.integers(0, 256, (128, 128), np.uint8)
  options = {'quality': 90, 'subsampling': 0}
  color = folders.encode(np.dstack([grey] * 3), 'JPEG', **options)
  alone = folders.encode(grey, 'JPEG', **options)

  def split(data):
    """What comes before the scan, and the scan."""
    position = 2
    while data[position + 1] != 0xDA:
      position += 2 + int.from_bytes(data[position + 2 : position + 4], 'big')
    length = int.from_bytes(data[position + 2 : position + 4], 'big')
    return data[:position], data[position + 2 + length : -2]

  def scan(component, tables, content):
    header = bytes([0xFF, 0xDA, 0, 8, 1, component, tables, 0, 63, 0])
    return header + content

  flat = bytes(128 // 8 * (128 // 8) // 2)
  data = (
    split(color)[0]
    + scan(1, 0x00, split(alone)[1])
    + scan(2, 0x11, flat)
    + scan(3, 0x11, flat)
    + b'\xff\xd9'
  )
  with Image.open(io.BytesIO(data)) as image:
    expected = np.asarray(image)
  assert np.ptp(expected) > 200
  assert_array_equal(stored.read(data, 'a.jpg').pixels, expected)
