"""Logits at another size: against torch, in bands and whole."""

import numpy as np
import pytest
from scipy import ndimage

from unet_jax.data import resize
from unet_jax.prediction import resampling


def torch_resize(logits, size):
  torch = pytest.importorskip('torch', reason='resizes with torch')
  x = torch.from_numpy(logits.transpose(2, 0, 1)[None].copy())
  x = torch.nn.functional.interpolate(x, size, mode='bilinear')
  return x.numpy()[0].transpose(1, 2, 0)


@pytest.mark.parametrize('size', [(1, 1), (7, 40), (64, 3), (16, 12), (33, 33)])
@pytest.mark.parametrize('classes', [1, 3, 6, 150])
def test_logits_are_resized_as_images_are(size, classes, monkeypatch):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(16, 12, classes)).astype(np.float32)
  whole = np.concatenate(list(resampling.resize_logits(logits, size)))
  monkeypatch.setattr(resampling, '_BAND', 1)
  bands = list(resampling.resize_logits(logits, size))
  assert [len(b) for b in bands] == [1] * size[0]
  np.testing.assert_allclose(np.concatenate(bands), whole, rtol=1e-5, atol=1e-5)
  # Where both sides grow, it is the interpolation of any library.
  if size[0] >= 16 and size[1] >= 12:
    want = torch_resize(logits, size)
    np.testing.assert_allclose(whole, want, rtol=0, atol=1e-5 * abs(want).max())
  # A constant stays what it is, along sides that shrink as well.
  flat = np.full((16, 12, 1), 2.5, np.float32)
  got = np.concatenate(list(resampling.resize_logits(flat, size)))
  np.testing.assert_allclose(got, np.full((*size, 1), 2.5), rtol=1e-6)


@pytest.mark.parametrize('kind', ['stretch', 'pad', 'crop'])
@pytest.mark.parametrize('old, new', [(64, 32), (96, 32), (48, 72), (40, 64)])
def test_what_was_resized_comes_back_to_its_place(old, new, kind):
  rows, columns = np.indices((old, old))
  disc = np.hypot(rows - 0.43 * old, columns - 0.56 * old) < 0.3 * old
  image = np.uint8(disc)[..., None] * np.uint8(200)
  scaled, box = resize.scale_image(image, (new, new), kind)
  bands = resampling.resize_logits(np.float32(scaled[box]), (old, old))
  back = np.concatenate(list(bands))[..., 0]
  np.testing.assert_allclose(
    ndimage.center_of_mass(back), ndimage.center_of_mass(disc), atol=0.01
  )
