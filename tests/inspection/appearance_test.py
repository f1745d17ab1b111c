"""What pixels say of masks, against least squares in NumPy."""

import numpy as np
import pytest

from tests.inspection import objects
from unet_jax.inspection import alignment, appearance

_TURNS = {
  'flipped left to right': lambda m: m[:, ::-1],
  'flipped upside down': lambda m: m[::-1],
  'turned by 180 degrees': lambda m: m[::-1, ::-1],
  'transposed': lambda m: m.T,
  'transposed and turned by 180 degrees': lambda m: m.T[::-1, ::-1],
  'turned by 90 degrees clockwise': lambda m: np.rot90(m),
  'turned by 90 degrees counter-clockwise': lambda m: np.rot90(m, -1),
}
_SIZE = (128, 128)


def _looks(pairs):
  cells = [appearance.to_cells(image, mask) for image, mask in pairs]
  n = len(cells)
  others = [[cells[(i + k) % n].mask for k in (2, 3)] for i in range(n)]
  return appearance.measure(cells, others, [None] * n)


def _means(looks, name):
  return np.mean([getattr(look, name) for look in looks], 0)


def test_scores_are_those_of_least_squares():
  pairs = objects.make_pairs(5, _SIZE)
  features, targets = [], []
  for image, mask in pairs:
    cells = appearance.to_cells(image, mask)
    x = appearance._features(cells.image).reshape(-1, appearance.SIDE**2).T
    features.append(x - x.mean(0))
    targets.append(cells.mask.ravel() - cells.mask.mean())
  looks = _looks(pairs)
  scale = np.mean([t @ t for t in targets])
  square = sum(x.T.astype(np.float64) @ x for x in features)
  square += np.diag(appearance._RIDGE * np.diag(square))
  for i, look in enumerate(looks):
    others = [k for k in range(5) if k != i]
    weights = np.linalg.solve(
      square, sum(features[k].T @ targets[k] for k in others)
    )
    expected = (features[i] @ weights) @ targets[i] / scale
    assert look.alone[0] == pytest.approx(expected, rel=0.02)
    assert look.turned[0] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize('name', _TURNS)
def test_turned_masks_are_predicted_when_turned_back(name):
  pairs = [
    (image, np.ascontiguousarray(_TURNS[name](mask)))
    for image, mask in objects.make_pairs(8, _SIZE)
  ]
  turned = _means(_looks(pairs), 'turned')
  assert appearance.TURNED[turned.argmax()] == name
  assert turned.max() > 2 * turned[0]


def test_moved_masks_are_predicted_when_moved_back():
  pairs = objects.make_pairs(8, _SIZE)
  right = _looks(pairs)
  moved = _looks([(i, objects.shift(m, 9, -5)) for i, m in pairs])
  reach = appearance.REACH
  for looks, place in ((right, (0, 0)), (moved, (-9, 5))):
    found = _means(looks, 'moved')
    peak = np.unravel_index(found.argmax(), found.shape)
    assert tuple(np.array(peak) - reach) == place
  at_rest = [look.moved[reach, reach] for look in right]
  np.testing.assert_allclose(at_rest, [k.turned[0] for k in right], rtol=1e-3)


def test_the_map_of_moves_is_read_from_no_move():
  reach = appearance.REACH
  y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
  hill = lambda down, right: np.exp(-(np.hypot(y - down, x - right) ** 2) / 8)
  mean = hill(2.3, -1.8) + 2 * hill(12, 8)
  near = appearance.climb(mean)
  assert near == (reach + 2, reach - 2)
  np.testing.assert_allclose(appearance.top(mean, near), (2.3, -1.8), atol=0.05)
  highest = reach + 12, reach + 8
  lowest = np.subtract(appearance.lowest_on_way(mean, highest), reach)
  assert tuple(lowest) == (6, 4)
  # To the border of the map, of which no parabola is known.
  slope = x + 0.5 * y
  assert appearance.climb(slope) == (2 * reach, 2 * reach)
  assert appearance.top(slope, (2 * reach, 2 * reach)) == [reach, reach]
  assert appearance.climb(0.0 * slope) == (0, 0)


def test_masks_of_others_say_nothing():
  looks = _looks(objects.make_pairs(8, _SIZE))
  assert _means(looks, 'others').max() < 0.4 * _means(looks, 'turned')[0]
  assert min(look.edges for look in looks) > 0
  assert all(np.isnan(look.stepped) for look in looks)


def test_large_images_are_kept_small():
  image, mask = (
    np.repeat(np.repeat(a, 14, 0), 20, 1) for a in objects.make_pairs(1)[0]
  )
  cells = appearance.to_cells(image, mask)
  assert cells.image.shape == (128, 128, 3) and cells.size == (1344, 2560)
  assert max(cells.mask.shape) < 1024
  assert cells.mask.mean() == pytest.approx(mask.mean(), rel=0.01)


def test_one_class_or_one_pair_says_nothing():
  image, mask = objects.make_pairs(1)[0]
  assert _looks([(image, mask)] * 3)
  assert _looks([(image, np.full_like(mask, 3))] * 3) == []
  cells = appearance.to_cells(image, mask)
  assert appearance.measure([cells], [[mask]], [None]) == []
  ids = (np.arange(mask.size).reshape(mask.shape) // 50 % 200).astype(np.uint8)
  # Of many ids, one plane: the commonest against the others.
  assert len(appearance._classes([appearance.to_cells(image, ids)])) == 1
  assert len(alignment.TURNS) == len(_TURNS)
