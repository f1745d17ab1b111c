"""Images of another scale than those that were trained on."""

import types

import pytest

from tests import tiny
from unet_jax.prediction import scale


def _warning(sizes, edges=(200.0, 256.0, 300.0), **data):
  config = tiny.make_config(data={'image_size': (128, 128), **data})
  scales = scale.Scales(config, edges)
  for size in sizes:
    scales.see(types.SimpleNamespace(size=size))
  return scales.warning()


@pytest.mark.parametrize(
  'size, times',
  [((3000, 3000), '11.7 times as small'), ((90, 64), '3.4 times as large')],
)
def test_the_most_different_image_is_named(size, times):
  line = _warning([(256, 256), (101, 590), size, (700, 520)])
  assert line.startswith('2 image(s)')
  assert f'one of {size[0]} x {size[1]} pixels' in line and times in line
  assert line.endswith('inference.window=256,256 --config.inference.scales=0.5')


def test_usual_and_unknown_sizes_are_not_warned_of():
  assert not _warning([(101, 101), (590, 590)])
  assert not _warning([(3000, 3000)], edges=())
  assert not _warning([(3000, 3000)], resize='patch')
