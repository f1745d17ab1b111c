"""Masks with alpha: what errors advise gives the classes that were drawn."""

import ast
import io
import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests import folders
from tests.data import helpers
from tests.refusals import message_of
from unet_jax.data import decode, examples, masks

_SIZE = 24
_COLORS = np.uint8([(90, 0, 0), (255, 0, 0), (0, 0, 255)])


def _classes():
  mask = np.zeros((_SIZE, _SIZE), np.uint8)
  mask[3:12, 3:15], mask[14:21, 6:18] = 1, 2
  return mask


def _config(**data):
  return helpers.make_config(num_classes=3, **data).data


def _save(*channels):
  return folders.encode(np.dstack(channels).astype(np.uint8))


def _decoded(content, data):
  found = decode.decode_mask(content, 'm.png', data)
  got = masks.map_mask(found.array, data.mask_values, data.num_classes, 'm.png')
  if found.ignored is not None:
    got[found.ignored] = 255
  return got


def _followed(content, **data):
  """The classes, once what the error says is done."""
  message = message_of(decode.decode_mask, content, 'm.png', _config(**data))
  table = re.search('mask_values="(.*?)"', message)
  field = {'mask_values': ast.literal_eval(table[1])} if table else {}
  if not table:
    assert '--config.data.alpha=drop' in message
    field = {'alpha': 'drop'}
  assert 'alpha=nodata' not in message  # It would ignore the background.
  return _decoded(content, _config(**{**data, **field})), message


# What is stored where a mask is transparent is up to the program.
_UNDER = {
  'black': lambda rgb: 0 * rgb,
  'white': lambda rgb: 0 * rgb + 255,
  'a class': lambda rgb: 0 * rgb + _COLORS[1],
  'anything': lambda rgb: np.random.default_rng(0).integers(0, 256, rgb.shape),
}


@pytest.mark.parametrize('under', _UNDER)
@pytest.mark.parametrize('opaque', [255, 90])
def test_transparent_background(under, opaque):
  mask = _classes()
  shown = mask[..., None] > 0
  rgb = np.where(shown, _COLORS[mask], _UNDER[under](_COLORS[mask]))
  content = _save(rgb, opaque * shown)
  got, message = _followed(content)
  # Blue has the lower number; colours are numbered in their order.
  np.testing.assert_array_equal(got, np.uint8([0, 2, 1])[mask])
  assert 'is arbitrary: if that is the background' in message
  # The table that was there stays, and other files may have no alpha.
  table = (((255, 0, 0), 1), ((0, 0, 255), 2), ((0, 0, 0), 0))
  got, message = _followed(content, mask_values=table)
  np.testing.assert_array_equal(got, mask)
  full = ast.literal_eval(re.search('mask_values="(.*?)"', message)[1])
  assert full == (('transparent', 0), *table)
  plain = folders.encode(np.where(shown, _COLORS[mask], 0).astype(np.uint8))
  np.testing.assert_array_equal(
    _decoded(plain, _config(mask_values=full)), mask
  )


@pytest.mark.parametrize('mode', ['LA', 'RGBA'])
@pytest.mark.parametrize('value', [0, 255])
def test_alpha_alone_is_the_mask(mode, value):
  """One value everywhere, drawn or not."""
  mask = (_classes() > 0).astype(np.uint8)
  grey = [np.full_like(mask, value)] * (len(mode) - 1)
  got, _ = _followed(_save(*grey, 255 * mask))
  np.testing.assert_array_equal(got, mask)


def test_smoothed_alpha():
  """Edges are cut in their middle."""
  large = np.kron(_classes(), np.ones((4, 4), np.uint8))
  rgba = np.dstack([_COLORS[large], 255 * (large > 0)]).astype(np.uint8)
  small = np.asarray(
    Image.fromarray(rgba).resize((40, 40), Image.Resampling.BILINEAR)
  )
  right = np.asarray(
    Image.fromarray(large).resize((40, 40), Image.Resampling.NEAREST)
  )
  assert len(np.unique(small[..., 3])) > 4
  got, _ = _followed(folders.encode(small), mask_values=_TABLE)
  assert np.mean(got == right) > 0.97
  assert set(np.unique(got)) == {0, 1, 2}


_TABLE = (((255, 0, 0), 1), ((0, 0, 255), 2), ('others', 'nearest'))


@pytest.mark.parametrize('alpha', [255, 128, 1, 0])
def test_alpha_that_is_the_same_everywhere(alpha):
  mask = _classes()
  content = _save(mask, mask, mask, np.full_like(mask, alpha))
  if alpha == 255:
    got = _decoded(content, _config())
  else:
    got, message = _followed(content)
    assert 'tells no pixels apart' in message
  np.testing.assert_array_equal(got, mask)


@pytest.mark.parametrize('listed', [(), ((255, 1),)])
def test_advice_on_colours_keeps_the_transparent_class(listed):
  """A first mask, which is empty, shows no colour."""
  empty, mask = np.zeros((_SIZE, _SIZE, 4), np.uint8), _classes()
  content = _save(_COLORS[mask], 255 * (mask > 0))
  _, message = _followed(folders.encode(empty))
  assert message.endswith(
    '"((\'transparent\',0),)" (255 in place of 0 ignores it)'
  )
  data = _config(mask_values=(('transparent', 0), *listed))
  message = message_of(_decoded, content, data)
  assert 'the mask is an RGB image of 2 colours' in message
  table = ast.literal_eval(re.search('mask_values="(.*?)"', message)[1])
  assert table == (('transparent', 0), ((0, 0, 255), 1), ((255, 0, 0), 2))


def test_an_empty_mask_is_background():
  empty = np.zeros((_SIZE, _SIZE), np.uint8)
  got, _ = _followed(_save(empty, empty, empty, empty), mask_values=_TABLE)
  assert not got.any()


def test_transparent_pixels_may_be_ignored():
  mask = _classes()
  content = _save(mask, mask, mask, 255 * (mask != 1))
  table = (('transparent', 255), (0, 0), (2, 1))
  got = _decoded(content, _config(mask_values=table))
  np.testing.assert_array_equal(got, np.uint8([0, 255, 1])[mask])


def test_a_palette_has_its_own_alpha():
  """Indices are what is stored; colours that are looked up may be clear."""
  mask = _classes()
  image = Image.fromarray(mask, 'P')
  image.putpalette(_COLORS.tobytes())
  content = folders.encode_image(image, transparency=0)
  np.testing.assert_array_equal(_decoded(content, _config()), mask)
  table = (('transparent', 0), ((255, 0, 0), 1), ((0, 0, 255), 2))
  got = _decoded(content, _config(mask_values=table))
  np.testing.assert_array_equal(got, mask)


def test_transparent_pixels_are_no_object():
  mask = _classes()
  table = (('transparent', 0), (1, 1), (2, 2))
  content = _save(mask, mask, mask, 255 * (mask > 0))
  image = folders.encode(np.dstack([mask] * 3))
  files = {'image': image, 'mask': content, 'instances': content}
  files |= {'name': 'i', 'mask_name': 'm'}
  found = examples.decode_example(files, _config(mask_values=table))
  np.testing.assert_array_equal(found['instances'], mask)


def test_floats_under_alpha_must_be_integers():
  data = _config(mask_values=(('transparent', 0), (1, 1)))

  def save(value):
    pixels = np.full((4, 4, 2), value, np.float32)
    pixels[..., 1] = np.eye(4)
    file = io.BytesIO()
    options = {'photometric': 'minisblack', 'extrasamples': ['unassalpha']}
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()

  np.testing.assert_array_equal(_decoded(save(1), data), np.eye(4))
  message = message_of(decode.decode_mask, save(1.5), 'm.tif', data)
  assert 'floats that are no integers, such as 1.5 (4 of 16' in message
