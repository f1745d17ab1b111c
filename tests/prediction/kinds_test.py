"""Images of another kind than those that were trained on."""

import cv2
import numpy as np
import pytest
import tifffile

from tests import tiny
from unet_jax.data import rasters
from unet_jax.prediction import kinds

_GREY = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
_RGB = np.repeat(_GREY[..., None] % 256, 3, -1).astype(np.uint8)


def _warning(check, arrays, data, tmp_path, ending):
  """The line on images that are files, or with ending '' arrays."""
  for i, array in enumerate(arrays):
    path = tmp_path / f'{i}{ending}'
    if not ending:
      raster = rasters.ArrayRaster(array, data)
    elif ending == '.tif':
      tifffile.imwrite(path, array, rowsperstrip=4, compression='zlib')
      raster = rasters.open_image(path, data)
      assert raster.streams
    else:
      cv2.imwrite(str(path), array)
      raster = rasters.open_image(path, data)
    with raster:
      for top in (0, 16):
        raster.read(top, top + 16)
    check.see(raster)
  return check.warning()


def _origins(arrays, known, tmp_path, ending='', **data):
  config = tiny.make_config(data=data)
  check = kinds.Origins(config, known)
  return _warning(check, arrays, config.data, tmp_path, ending)


@pytest.mark.parametrize('ending', ['', '.png', '.tif'])
def test_images_of_other_values_are_counted(ending, tmp_path):
  # 1 % of the first are below 10, 3 % of the second above.
  first = np.where(_GREY < 10, 0, 10).astype(np.uint16)
  second = np.where(_GREY < 0.97 * _GREY.size, 99, 101).astype(np.uint16)
  config = tiny.make_config(
    data={'intensity': 'range', 'intensity_range': (10, 100)}
  )
  see = lambda *arrays: _warning(
    kinds.Ranges(config), arrays, config.data, tmp_path, ending
  )
  assert not see(first, first)
  inside = np.full_like(first, 50)
  assert not see(*[inside] * 3, second)  # One may be bright by nature.
  assert see(*[inside] * 120, first + 95)  # Too much, for one alone too.
  line = see(first, second, first + 95)
  assert line.startswith('2 of 3 image(s)')
  assert f'{(0.03 + 0.99) / 2:.1%} on average' in line


@pytest.mark.parametrize('ending', ['', '.png', '.tif'])
def test_images_of_other_depth_or_channels_are_counted(ending, tmp_path):
  line = _origins([_RGB, _GREY], ('RGB of 8 bit',), tmp_path, ending)
  assert line.startswith('1 of 2 image(s) are grey of 16 bit, those trained')
  assert not _origins(
    [_RGB, _GREY], ('RGB of 8 bit', 'grey of 16 bit'), tmp_path, ending
  )
  assert _origins([_RGB[..., 0]], ('grey of 16 bit',), tmp_path, ending)
  assert not _origins([_GREY], (), tmp_path, ending)
  assert not _origins([_GREY], ('',), tmp_path, ending)


def test_types_of_no_depth_are_not_compared(tmp_path):
  floats = (_GREY / _GREY.max()).astype(np.float32)
  assert not _origins([floats], ('grey of 8 bit',), tmp_path)
  assert _origins([floats], ('RGB of 8 bit',), tmp_path)
  assert not _origins([_GREY], ('grey of 8 bit',), tmp_path, intensity='image')
  opaque = np.full_like(_RGB[..., :1], 255)
  rgba = np.concatenate([_RGB, opaque], -1)
  assert not _origins([rgba], ('RGB of 8 bit',), tmp_path, '.png')
