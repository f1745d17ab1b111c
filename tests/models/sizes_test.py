"""Sizes of logits, with and without padding, and their receptive fields."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import networks
from unet_jax.models import resample, sizes
from unet_jax.runtime import errors

_random, _small = networks.random, networks.small
_shape = networks.logits_shape


@pytest.mark.parametrize(
  'depth,stem,size',
  [
    (6, 'none', (64, 64)),
    *((depth, 'none', (67, 81)) for depth in range(7)),
    *((2, 'none', size) for size in ((9, 10, 11), (15, 8, 13))),
    *((2, 'space_to_depth', size) for size in ((9, 10, 11), (15, 8, 13))),
  ],
  ids=str,
)
def test_same_padding_takes_any_size(depth, stem, size):
  fields = dict(base_features=2, max_features=8, spatial_dims=len(size))
  model = _small(depth=depth, stem=stem, **fields)
  assert _shape(model, 1, *size, 3) == (1, *size, 3)


@pytest.mark.parametrize(
  'depth,stem,fields',
  [
    (4, 'none', 'model.depth=4'),
    (3, 'space_to_depth', 'model.depth=3, model.stem=space_to_depth'),
  ],
)
def test_image_too_small_for_the_depth_is_refused(depth, stem, fields):
  with pytest.raises(errors.UserError) as e:
    _small(depth=depth, stem=stem).output_size((64, 15))
  assert str(e.value) == (
    f'an image of 64 x 15 pixels cannot be halved 4 times ({fields}); use at '
    'least 16 pixels or a smaller depth'
  )


def test_other_number_of_axes_is_refused():
  with pytest.raises(errors.UserError) as e:
    _shape(_small(spatial_dims=3), 1, 16, 16, 3)
  assert str(e.value) == (
    'model.spatial_dims=3 takes a batch of 5 axes (the first of images, the '
    'last of channels), not one of shape (1, 16, 16, 3)'
  )


@pytest.mark.parametrize(
  'size,fields,expected',
  [
    (572, dict(depth=4), 388),
    (188, dict(depth=4), 4),
    (140, dict(depth=3), 52),
    (9, dict(depth=0), 5),
    (44, dict(convs=1, kernel_size=5), 4),
    (66, dict(convs=3), 6),
    (12, dict(kernel_size=1), 12),
    (88, dict(stem='space_to_depth'), 8),
    (44, dict(upsample='nearest', upsample_kernel=0), 4),
    (48, dict(upsample='nearest', upsample_kernel=3), 2),
    (52, dict(upsample='bilinear'), 6),
    (56, dict(upsample='bilinear', upsample_kernel=3), 4),
    (52, dict(block='residual', skip='attention', downsample='conv'), 8),
  ],
)
def test_valid_output_size(size, fields, expected):
  model = _small(padding='valid', base_features=2, **fields)
  assert model.output_size((size, size)) == (expected, expected)
  assert _shape(model, 1, size, size, 3) == (1, expected, expected, 3)


def test_valid_size_that_does_not_fit_names_the_nearest_two():
  model = _small(depth=4, padding='valid')
  for size, nearest in (512, '508 or 524'), (10, '188'), (570, '556 or 572'):
    with pytest.raises(errors.UserError, match=f'that do are {nearest} '):
      model.output_size((size, size))


@pytest.mark.parametrize(
  'fields',
  [
    dict(),
    dict(depth=0, convs=3),
    dict(depth=3),
    dict(downsample='max', convs=1, kernel_size=5, upsample='nearest'),
    dict(upsample='bilinear', upsample_kernel=2),
    dict(upsample='bilinear_corners', upsample_kernel=0),
    dict(upsample='pixel_shuffle', upsample_kernel=3),
    dict(skip='attention', block='residual', downsample='conv', convs=1),
    dict(stem='space_to_depth', convs=1),
  ],
  ids=str,
)
def test_receptive_field_is_what_has_a_gradient(fields):
  defaults = dict(norm='none', activation='gelu', downsample='average')
  model = _small(num_classes=1, **{**defaults, **fields})
  expected = sizes.receptive_field(model)
  period = 2 ** (model.depth + (model.stem == 'space_to_depth'))
  start = -(-expected // period) * period
  x = _random(1, 2 * start + period, period, 1)
  variables = networks.variables(model, x)
  # All positions in the grid of the coarsest stage: they see differently many.
  grid = np.s_[0, start : start + period, 0, 0]
  logits = lambda x: model.apply(variables, x, train=False)[grid]
  rows = jax.jit(jax.jacrev(logits))(x)[:, 0, :, :, 0]
  seen = [np.flatnonzero(np.any(r != 0, axis=1)) for r in rows]
  assert max(s[-1] - s[0] + 1 for s in seen) == expected
  # The image is large enough to tell.
  assert all(s[0] > 0 and s[-1] < x.shape[1] - 1 for s in seen)


@pytest.mark.parametrize('padding', ['same', 'valid'])
def test_receptive_field_of_the_plain_network(padding):
  for depth, pixels in enumerate((5, 18, 44, 100, 204)):
    model = _small(depth=depth, padding=padding)
    assert sizes.receptive_field(model) == pixels


@pytest.mark.parametrize(
  'fields',
  [
    dict(),
    dict(block='residual', skip='attention', downsample='conv', convs=3),
    dict(stem='space_to_depth', downsample='average', convs=1),
    dict(upsample='bilinear', convs=1),
  ],
  ids=str,
)
def test_valid_equals_the_inside_of_same(fields):
  """Away from borders the two paddings compute the same function."""
  valid = _small(norm='none', padding='valid', **fields)
  scale = 2 if valid.stem == 'space_to_depth' else 1
  # Each stage's unpadded convolutions move the grid of the next one's windows.
  shift = scale * 3 * valid.convs % (4 * scale)
  # The zeros around the image reach as far in as a logit sees.
  margin = sizes.receptive_field(valid) // 2 + 4 * scale
  size = _next_fit(valid, 2 * margin + 16 * scale)
  part = slice(shift, size - shift)
  whole, inner = _whole_and_inner(valid, size, of_same=part)
  _assert_same_middle(inner, whole, (8, 8))


def _next_fit(model, size):
  """The smallest size from `size` on that fits a network."""
  while not _fits(model, size):
    size += 1
  return size


def _fits(model, size):
  try:
    model.output_size((size, size))
  except errors.UserError:
    return False
  return True


def _whole_and_inner(valid, size, of_same=slice(None), of_valid=slice(None)):
  """Logits of a network with and without padding, for parts of an image."""
  same = valid.clone(padding='same')
  x = _random(1, size, size, 2)
  variables = networks.variables(same, x)
  part = x[:, of_valid, of_valid]
  inner = networks.apply(valid, variables, part)
  assert inner.shape[1:-1] == valid.output_size(part.shape[1:-1])
  return networks.apply(same, variables, x[:, of_same, of_same]), inner


def _assert_same_middle(inner, whole, size):
  a, b = (resample.center_crop(logits, *size) for logits in (inner, whole))
  assert np.ptp(b) > 0.1
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


_UPSAMPLINGS = [
  dict(upsample='transpose', upsample_kernel=2),
  *(dict(upsample='nearest', upsample_kernel=k) for k in (0, 1, 3)),
  *(dict(upsample='bilinear', upsample_kernel=k) for k in (0, 1, 3)),
  *(dict(upsample='pixel_shuffle', upsample_kernel=k) for k in (1, 3)),
]


@pytest.mark.parametrize(
  'fields',
  [
    *_UPSAMPLINGS,
    dict(skip='attention', block='residual'),
    dict(skip='attention', upsample='bilinear', upsample_kernel=3),
    dict(skip='add', upsample='bilinear', stem='space_to_depth'),
  ],
  ids=str,
)
def test_every_valid_logit_is_that_of_a_larger_image(fields):
  """Up to the outermost, no logit knows that the image ends there."""
  valid = _small(norm='none', convs=1, padding='valid', **fields)
  scale = 2 if valid.stem == 'space_to_depth' else 1
  # The zeros around the larger image reach as far in as a logit sees. Windows
  # start in the same places: a convolution takes a pixel on each side.
  margin = sizes.receptive_field(valid) // 2
  margin += (scale - margin) % (4 * scale)
  size = _next_fit(valid, 32 * scale) + 2 * margin
  whole, inner = _whole_and_inner(valid, size, of_valid=slice(margin, -margin))
  _assert_same_middle(inner, whole, inner.shape[1:-1])


@pytest.mark.parametrize('fields', _UPSAMPLINGS, ids=str)
def test_sizes_that_are_named_as_the_nearest_fit(fields):
  model = _small(padding='valid', **fields)
  refused = 0
  for size in range(1, 80):
    try:
      (height, _) = model.output_size((size, size))
      assert height > 0
      assert _shape(model, 1, size, size, 1) == (1, height, height, 3)
    except errors.UserError as e:
      refused += 1
      named = re.search(r'nearest that do are ([\d or]+) ', str(e))[1]
      assert all(_fits(model, int(n)) for n in named.split(' or ')), e
  assert refused


@pytest.mark.parametrize(
  'fields',
  [
    dict(),
    dict(upsample='bilinear', downsample='average'),
    dict(block='residual', skip='attention', stem='space_to_depth', convs=1),
    dict(spatial_dims=3, convs=1, downsample='conv'),
  ],
  ids=str,
)
def test_translation_by_the_stride_translates_the_output(fields):
  model = _small(norm='none', **fields)
  stride = 2 ** (model.depth + (model.stem == 'space_to_depth'))
  # Along the first axis; further than the zeros at its ends reach.
  length = -(-sizes.receptive_field(model) // stride) * stride + 4 * stride
  x = _random(1, length, *(stride,) * (model.spatial_dims - 1), 1)
  variables = networks.variables(model, x)
  a = networks.apply(model, variables, x)
  b = networks.apply(model, variables, jnp.roll(x, stride, axis=1))
  middle = slice(length // 2 - 1, length // 2 + 1)
  moved = jnp.roll(a, stride, axis=1)[:, middle]
  np.testing.assert_allclose(moved, b[:, middle], rtol=1e-4, atol=1e-5)
  assert np.any(np.abs(a[:, middle] - moved) > 1e-3)
