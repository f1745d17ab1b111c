"""Image files of known content, as many programs write them.

Each holds an array that is known, so that a reader can be asked what it makes
of it. Nothing here uses the reader of unet_jax.
"""

import dataclasses
import io
import pathlib
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import imageio.v3
import numpy as np
import skimage.io
import tifffile
from PIL import Image

_SIZE = (19, 37)
_rng = np.random.default_rng(0)


def _noise(high: int, dtype: Any, *channels: int, low: int = 0) -> np.ndarray:
  values = _rng.integers(low, high, (*_SIZE, *channels), np.int64)
  return values.astype(dtype)


_BITS = _noise(2, bool)
_FEW = _noise(4, np.uint8)
_LABELS = _noise(16, np.uint8)
_GREY = _noise(256, np.uint8)
_RGB = _noise(256, np.uint8, 3)
_FLAT = np.full((*_SIZE, 3), 130, np.uint8)
_OPAQUE = np.dstack([_RGB, np.full(_SIZE, 255, np.uint8)])
_DEEP = _noise(65536, np.uint16)
_DEEP_RGB = _noise(65536, np.uint16, 3)
_BANDS = _noise(65536, np.uint16, 5)
_FLOAT = _rng.random(_SIZE, np.float32)
_COLORS = _noise(256, np.uint8, 3).reshape(-1, 3)[:256]
_STACK = _noise(256, np.uint8, 3)


@dataclasses.dataclass(frozen=True)
class File:
  """A file, and what was written to it.

  Attributes:
    writer, format, kind: in words.
    data: its content.
    array: as it was written, [H, W] or [H, W, C]; of a stack the first image.
    pages: images in it.
    shown: the same as a viewer shows it, where that differs.
    ours: what the rule is, where it is not plain.
  """

  writer: str
  format: str
  kind: str
  data: bytes
  array: np.ndarray
  pages: int = 1
  shown: np.ndarray | None = None
  ours: str = ''


def files() -> Iterator[File]:
  """All of them, in the order of the table."""
  yield from _of_pillow()
  yield from _of_tifffile()
  yield from _of_stacks()
  yield from _of_others()
  yield from _of_pngs_by_hand()
  yield from _of_tiffs_by_hand()


def _pillow(image: Image.Image, format_: str, **options: Any) -> bytes:
  file = io.BytesIO()
  image.save(file, format_, **options)
  return file.getvalue()


def _palette(indices: np.ndarray, number: int) -> Image.Image:
  image = Image.fromarray(indices).convert('P')
  image.putpalette(_COLORS[:number].ravel().tolist())
  return image


def _of_pillow() -> Iterator[File]:
  grey_alpha = Image.fromarray(_GREY).convert('LA')
  grey_alpha.putalpha(255)
  lossless = {'lossless': True, 'exact': True}
  exif = Image.Exif()
  exif[274] = 6
  of = Image.fromarray
  black_white = _BITS * np.uint8(255)
  for format_, kind, image, array, options, shown in (
    ('PNG', '1 bit', of(_BITS), _BITS, {}, black_white),
    ('PNG', 'grey 8 bit', of(_GREY), _GREY, {}, None),
    ('PNG', 'grey with alpha, opaque', grey_alpha, _GREY, {}, None),
    ('PNG', 'grey 16 bit', of(_DEEP), _DEEP, {}, None),
    ('PNG', 'palette 8 bit', _palette(_GREY, 256), _GREY, {}, _COLORS[_GREY]),
    (
      'PNG',
      'palette 4 bit',
      _palette(_LABELS, 16),
      _LABELS,
      {'bits': 4},
      _COLORS[_LABELS],
    ),
    ('PNG', 'RGB', of(_RGB), _RGB, {}, None),
    ('PNG', 'RGB with alpha, opaque', of(_OPAQUE), _RGB, {}, None),
    ('PNG', 'RGB, orientation 6', of(_RGB), _RGB, {'exif': exif}, None),
    ('TIFF', '1 bit', of(_BITS), _BITS, {}, black_white),
    (
      'TIFF',
      '1 bit, CCITT group 3',
      of(_BITS),
      _BITS,
      {'compression': 'group3'},
      black_white,
    ),
    (
      'TIFF',
      '1 bit, CCITT group 4',
      of(_BITS),
      _BITS,
      {'compression': 'group4'},
      black_white,
    ),
    (
      'TIFF',
      'grey 8 bit, LZW',
      of(_GREY),
      _GREY,
      {'compression': 'tiff_lzw'},
      None,
    ),
    ('TIFF', 'palette', _palette(_GREY, 256), _GREY, {}, _COLORS[_GREY]),
    (
      'TIFF',
      'palette with alpha',
      _palette(_LABELS, 16).convert('PA'),
      _LABELS,
      {},
      _COLORS[_LABELS],
    ),
    (
      'TIFF',
      'RGB, deflate',
      of(_RGB),
      _RGB,
      {'compression': 'tiff_adobe_deflate'},
      None,
    ),
    (
      'TIFF',
      'RGB, orientation 6',
      of(_RGB),
      _RGB,
      {'tiffinfo': {274: 6}},
      None,
    ),
    ('TIFF', 'grey 16 bit', of(_DEEP), _DEEP, {}, None),
    (
      'TIFF',
      'grey int32',
      of(_DEEP.astype(np.int32)),
      _DEEP.astype(np.int32),
      {},
      None,
    ),
    ('TIFF', 'grey float32', of(_FLOAT), _FLOAT, {}, None),
    ('BMP', '1 bit', of(_BITS), _BITS, {}, black_white),
    ('BMP', 'grey', of(_GREY), _GREY, {}, None),
    ('BMP', 'palette', _palette(_LABELS, 16), _LABELS, {}, _COLORS[_LABELS]),
    ('BMP', 'RGB', of(_RGB), _RGB, {}, None),
    ('BMP', 'RGB with alpha, opaque', of(_OPAQUE), _RGB, {}, None),
    ('GIF', 'grey', of(_LABELS), _LABELS, {}, None),
    ('GIF', 'palette', _palette(_LABELS, 16), _COLORS[_LABELS], {}, None),
    ('WebP', 'RGB, lossless', of(_RGB), _RGB, lossless, None),
    ('WebP', 'RGB with alpha, opaque', of(_OPAQUE), _RGB, lossless, None),
    ('JPEG', 'RGB, of one colour', of(_FLAT), _FLAT, {}, None),
    ('JPEG', 'grey, of one value', of(_FLAT[..., 0]), _FLAT[..., 0], {}, None),
    ('JPEG', 'RGB, orientation 6', of(_FLAT), _FLAT, {'exif': exif}, None),
  ):
    ours = 'colours' if format_ == 'GIF' else ''
    data = _pillow(image, format_, **options)
    yield File('Pillow', format_, kind, data, array, shown=shown, ours=ours)


def tiff(array: np.ndarray, **options: Any) -> bytes:
  """A TIFF file by tifffile."""
  file = io.BytesIO()
  tifffile.imwrite(file, array, **options)
  return file.getvalue()


def _of_tifffile() -> Iterator[File]:
  ids = _noise(2**32, np.uint32, low=2**31)
  planes = np.moveaxis(_DEEP_RGB, -1, 0)
  contig = {'photometric': 'minisblack', 'planarconfig': 'contig'}
  separate = {'photometric': 'minisblack', 'planarconfig': 'separate'}
  white, rgb = {'photometric': 'miniswhite'}, {'photometric': 'rgb'}
  tiles = {'tile': (16, 16), 'compression': 'zlib'}
  table = (_COLORS.astype(np.uint16) * 257).T
  palette = {'photometric': 'palette', 'colormap': table}
  turned = {'extratags': [(274, 'H', 1, 6, True)]}
  for kind, array, options, want, shown in (
    ('bool', _BITS, {}, None, ~_BITS * np.uint8(255)),
    ('uint8', _GREY, {}, None, None),
    ('uint8, white is zero', _GREY, white, None, 255 - _GREY),
    ('uint16, white is zero', _DEEP, white, None, 65535 - _DEEP),
    ('int8', _noise(128, np.int8, low=-128), {}, None, None),
    ('int16', _noise(3000, np.int16, low=-1000), {}, None, None),
    ('uint16, big endian', _DEEP, {'byteorder': '>'}, None, None),
    ('uint32 from 2**31 up', ids, {}, None, None),
    ('int64', ids.astype(np.int64) - 2**31, {}, None, None),
    ('float16', _FLOAT.astype(np.float16), {}, None, None),
    (
      'float32, predictor, LZW',
      _FLOAT,
      {'compression': 'lzw', 'predictor': True},
      None,
      None,
    ),
    ('float64', _FLOAT.astype(np.float64), {}, None, None),
    ('2 bits', _FEW, {'bitspersample': 2}, None, _FEW * np.uint8(85)),
    ('4 bits', _LABELS, {'bitspersample': 4}, None, _LABELS * np.uint8(17)),
    ('12 bits', _DEEP >> 4, {'bitspersample': 12}, None, None),
    ('uint8, Zstandard', _GREY, {'compression': 'zstd'}, None, None),
    (
      'uint8, LZMA, BigTIFF',
      _GREY,
      {'compression': 'lzma', 'bigtiff': True},
      None,
      None,
    ),
    (
      'RGB 8 bit, predictor',
      _RGB,
      {**rgb, **tiles, 'predictor': True},
      None,
      None,
    ),
    (
      'uint8, JPEG, of one value',
      _FLAT[..., 0],
      {'compression': 'jpeg'},
      None,
      None,
    ),
    ('RGB 16 bit', _DEEP_RGB, rgb, None, None),
    (
      'RGB 16 bit, planes',
      planes,
      {**rgb, 'planarconfig': 'separate'},
      _DEEP_RGB,
      None,
    ),
    (
      'RGB 16 bit, tiles, big endian',
      _DEEP_RGB,
      {**rgb, **tiles, 'byteorder': '>'},
      None,
      None,
    ),
    ('RGB float32', _DEEP_RGB.astype(np.float32) / 65535, rgb, None, None),
    ('RGB with alpha, opaque', _OPAQUE, rgb, _RGB, None),
    ('2 bands', _BANDS[..., :2], contig, None, None),
    ('3 bands', _BANDS[..., :3], contig, None, None),
    ('5 bands', _BANDS, contig, None, None),
    ('5 bands, planes', np.moveaxis(_BANDS, -1, 0), separate, _BANDS, None),
    (
      '5 bands, planes in tiles',
      np.moveaxis(_BANDS, -1, 0),
      {**separate, **tiles},
      _BANDS,
      None,
    ),
    ('palette', _GREY, palette, None, _COLORS[_GREY]),
    ('uint8, orientation 6', _GREY, turned, None, None),
  ):
    want = array if want is None else want
    data = tiff(array, **options)
    yield File('tifffile', 'TIFF', kind, data, want, shown=shown)


def _of_stacks() -> Iterator[File]:
  slices = np.moveaxis(_STACK, -1, 0)
  grey = {'photometric': 'minisblack'}
  channels = {**grey, 'metadata': {'axes': 'CYX'}}
  hyperstack = np.stack([slices, slices // 2])
  axes = {'axes': 'ZCYX'}
  for kind, array, options, pages, want in (
    ('3 slices', slices, grey, 3, slices[0]),
    (
      '3 slices in one page',
      slices,
      {**grey, 'metadata': {'truncate': True}},
      3,
      slices[0],
    ),
    ('3 channels in pages', slices, channels, 1, _STACK),
    (
      'ImageJ, 3 slices',
      slices,
      {**grey, 'imagej': True, 'metadata': {'axes': 'ZYX'}},
      3,
      slices[0],
    ),
    ('ImageJ, 3 channels', slices, {**channels, 'imagej': True}, 1, _STACK),
    (
      'ImageJ, 2 slices of 3 channels',
      hyperstack,
      {**grey, 'imagej': True, 'metadata': axes},
      2,
      _STACK,
    ),
    (
      'OME, 3 slices',
      slices,
      {**grey, 'ome': True, 'metadata': {'axes': 'ZYX'}},
      3,
      slices[0],
    ),
    ('OME, 3 channels', slices, {**channels, 'ome': True}, 1, _STACK),
  ):
    ours = f'{pages} images' if pages > 1 else 'bands'
    data = tiff(np.ascontiguousarray(array), **options)
    yield File('tifffile', 'TIFF', kind, data, want, pages, ours=ours)
  frames = [Image.fromarray(_RGB), Image.fromarray(255 - _RGB)]
  more = {'save_all': True, 'append_images': frames[1:]}
  for format_, options in (
    ('TIFF', {}),
    ('PNG', {}),
    ('WebP', {'lossless': True, 'exact': True}),
  ):
    data = _pillow(frames[0], format_, **more, **options)
    kind = 'RGB, 2 pages' if format_ == 'TIFF' else 'RGB, 2 frames'
    yield File('Pillow', format_, kind, data, _RGB, 2, ours='2 images')
  frames = [_palette(_LABELS, 16), _palette(15 - _LABELS, 16)]
  data = _pillow(frames[0], 'GIF', save_all=True, append_images=frames[1:])
  want = _COLORS[_LABELS]
  yield File('Pillow', 'GIF', '2 frames', data, want, 2, ours='2 images')


def _opencv(array: np.ndarray, suffix: str) -> bytes:
  if array.ndim == 3:
    array = array[..., [2, 1, 0, 3][: array.shape[2]]]
  return cv2.imencode(suffix, array)[1].tobytes()


def _of_others() -> Iterator[File]:
  black_white = _BITS * np.uint8(255)
  rgb_float = _DEEP_RGB.astype(np.float32) / 65535
  deep_alpha = np.dstack([_DEEP_RGB, np.full(_SIZE, 65535, np.uint16)])
  for suffix, kind, array, want in (
    ('png', 'grey 8 bit', _GREY, _GREY),
    ('png', 'grey 16 bit', _DEEP, _DEEP),
    ('png', 'RGB 16 bit', _DEEP_RGB, _DEEP_RGB),
    ('png', 'RGB 16 bit with alpha, opaque', deep_alpha, _DEEP_RGB),
    ('tiff', 'RGB 8 bit', _RGB, _RGB),
    ('tiff', 'RGB 16 bit', _DEEP_RGB, _DEEP_RGB),
    ('tiff', 'RGB float32', rgb_float, rgb_float),
    (
      'tiff',
      'grey int32',
      _DEEP.astype(np.int32) - 9,
      _DEEP.astype(np.int32) - 9,
    ),
    ('bmp', 'RGB', _RGB, _RGB),
  ):
    data = _opencv(array, f'.{suffix}')
    yield File('OpenCV', suffix.upper(), kind, data, want)
  for suffix, kind, array, shown in (
    ('png', 'bool', _BITS, black_white),
    ('png', 'grey 16 bit', _DEEP, None),
    ('tiff', 'bool', _BITS, ~_BITS * np.uint8(255)),
    ('tiff', 'grey 16 bit', _DEEP, None),
    ('tiff', 'RGB 8 bit', _RGB, None),
  ):
    data = imageio.v3.imwrite('<bytes>', array, extension=f'.{suffix}')
    yield File('imageio', suffix.upper(), kind, data, array, shown=shown)
  for suffix, kind, array, want, shown in (
    ('png', 'uint8', _GREY, _GREY, None),
    ('png', 'uint16', _DEEP, _DEEP, None),
    ('tif', 'bool', _BITS, black_white, None),
    ('tif', 'float32', _FLOAT, _FLOAT, None),
    ('tif', 'RGB', _RGB, _RGB, None),
    ('tif', '3 slices [3, H, W]', np.moveaxis(_STACK, -1, 0), _STACK, None),
  ):
    with (
      tempfile.TemporaryDirectory() as folder,
      warnings.catch_warnings(action='ignore'),
    ):
      path = pathlib.Path(folder, f'a.{suffix}')
      skimage.io.imsave(path, array, check_contrast=False)
      data = path.read_bytes()
    ours = 'RGB, as its tags say' if 'slices' in kind else ''
    name = {'tif': 'TIFF', 'png': 'PNG'}[suffix]
    yield File('scikit-image', name, kind, data, want, shown=shown, ours=ours)


def png(
  array: np.ndarray,
  depth: int,
  color: int,
  chunks: tuple[tuple[bytes, bytes], ...] = (),
  interlaced: bool = False,
) -> bytes:
  """A PNG file of any depth and type of colour, without filters."""
  # Adam7: the first pixel and the step of each pass.
  passes = [(0, 0, 1, 1)]
  if interlaced:
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
    passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
  raw = b''
  for top, left, down, right in passes:
    part = array[top::down, left::right]
    part = part.reshape(len(part), -1)
    if depth < 8:
      bits = part[..., None] >> np.arange(depth - 1, -1, -1) & 1
      part = np.packbits(bits.reshape(len(part), -1).astype(np.uint8), axis=1)
    rows = part.astype('>u2' if depth == 16 else np.uint8)
    raw += b''.join(b'\0' + row.tobytes() for row in rows)
  height, width = array.shape[:2]
  header = struct.pack('>2I5B', width, height, depth, color, 0, 0, interlaced)
  content = b'\x89PNG\r\n\x1a\n'
  for code, body in (
    (b'IHDR', header),
    *chunks,
    (b'IDAT', zlib.compress(raw)),
    (b'IEND', b''),
  ):
    check = struct.pack('>I', zlib.crc32(code + body))
    content += struct.pack('>I', len(body)) + code + body + check
  return content


def _of_pngs_by_hand() -> Iterator[File]:
  grey_alpha = np.dstack([_DEEP, np.full(_SIZE, 65535, np.uint16)])
  table = (b'PLTE', _COLORS[:4].tobytes())
  key = ((b'tRNS', struct.pack('>H', 300)),)
  deep = _DEEP.copy()
  deep[deep == 300] = 0
  bits = (b'sBIT', b'\3')
  for kind, array, want, depth, color, chunks, shown in (
    ('grey 1 bit', _BITS, _BITS, 1, 0, (), _BITS * np.uint8(255)),
    ('grey 2 bit', _FEW, _FEW, 2, 0, (), _FEW * np.uint8(85)),
    ('grey 4 bit', _LABELS, _LABELS, 4, 0, (), _LABELS * np.uint8(17)),
    ('palette 2 bit', _FEW, _FEW, 2, 3, (table,), _COLORS[_FEW]),
    ('grey 16 bit, a transparent value', deep, deep, 16, 0, key, None),
    ('grey 16 bit with alpha, opaque', grey_alpha, _DEEP, 16, 4, (), None),
    ('grey 8 bit, 3 significant bits', _GREY, _GREY, 8, 0, (bits,), None),
  ):
    data = png(np.asarray(array, want.dtype), depth, color, chunks)
    yield File('by hand', 'PNG', kind, data, want, shown=shown)
  data = png(_LABELS, 4, 0, interlaced=True)
  shown = _LABELS * np.uint8(17)
  yield File(
    'by hand', 'PNG', 'grey 4 bit, interlaced', data, _LABELS, 1, shown
  )
  data = png(_DEEP_RGB, 16, 2, interlaced=True)
  yield File('by hand', 'PNG', 'RGB 16 bit, interlaced', data, _DEEP_RGB)


def tiff_by_hand(
  size: tuple[int, int], content: bytes, tags: dict[int, int | tuple]
) -> bytes:
  """A TIFF file of one strip, with any tags: {number: value or values}."""
  tags = {
    **{256: size[1], 257: size[0], 259: 1, 273: 8, 277: 1},
    **{278: size[0], 279: len(content), **tags},
  }
  start = 8 + len(content)
  entries, more = struct.pack('<H', len(tags)), b''
  end = start + 2 + 12 * len(tags) + 4
  for code, value in sorted(tags.items()):
    values = value if isinstance(value, tuple) else (value,)
    body = struct.pack(f'<{len(values)}H', *values)
    if code in (273, 279):
      body = struct.pack('<I', value)
    kind = 4 if code in (273, 279) else 3
    if len(body) > 4:
      more, body = more + body, struct.pack('<I', end + len(more))
    entries += struct.pack('<HHI', code, kind, len(values)) + body.ljust(
      4, b'\0'
    )
  return (
    struct.pack('<2sHI', b'II', 42, start) + content + entries + bytes(4) + more
  )


def _of_tiffs_by_hand() -> Iterator[File]:
  """Conventions of GDAL and others, by tags."""
  nodata = {'extratags': [(42113, 's', 0, '-9999', True)]}
  data = tiff(_FLOAT, **nodata)
  yield File('as GDAL', 'TIFF', 'float32, no-data tag', data, _FLOAT)
  many = {
    'photometric': 'minisblack',
    'planarconfig': 'contig',
    'tile': (16, 16),
  }
  data = tiff(_BANDS, **many, compression='deflate', predictor=True)
  yield File('as GDAL', 'TIFF', '5 bands, tiles, deflate', data, _BANDS)
  file = io.BytesIO()
  with tifffile.TiffWriter(file) as writer:
    options = {'photometric': 'rgb', 'metadata': None}
    writer.write(_RGB, **options)
    writer.write(
      np.ones(_SIZE, bool), photometric='mask', subfiletype=4, metadata=None
    )
    writer.write(_RGB[::2, ::2], **options, subfiletype=1)
  kind = 'RGB, internal mask, overview'
  yield File('as GDAL', 'TIFF', kind, file.getvalue(), _RGB)
  file = io.BytesIO()
  with tifffile.TiffWriter(file) as writer:
    writer.write(_GREY, subifds=1, tile=(16, 16), photometric='minisblack')
    writer.write(
      _GREY[::2, ::2], subfiletype=1, tile=(16, 16), photometric='minisblack'
    )
  kind = 'uint8, pyramid in SubIFDs'
  yield File('as OME', 'TIFF', kind, file.getvalue(), _GREY)
  reverse = np.packbits(np.unpackbits(_GREY).reshape(-1, 8)[:, ::-1])
  tags = {258: 8, 262: 1, 266: 2}
  data = tiff_by_hand(_SIZE, reverse.tobytes(), tags)
  yield File('by hand', 'TIFF', 'uint8, bits in reverse', data, _GREY)
