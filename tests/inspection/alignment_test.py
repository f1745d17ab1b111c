"""The fit of a mask to its image, against brute force."""

import itertools

import cv2
import numpy as np
import pytest
from scipy import ndimage

from tests.inspection import objects
from unet_jax.inspection import alignment

# What is done to square masks, and what fixes it.
_TURNS = {
  'flipped left to right': lambda m: m[:, ::-1],
  'flipped upside down': lambda m: m[::-1],
  'turned by 180 degrees': lambda m: m[::-1, ::-1],
  'transposed': lambda m: m.T,
  'transposed and turned by 180 degrees': lambda m: m.T[::-1, ::-1],
  'turned by 90 degrees clockwise': lambda m: np.rot90(m),
  'turned by 90 degrees counter-clockwise': lambda m: np.rot90(m, -1),
}


def _reference_score(image: np.ndarray, mask: np.ndarray) -> float:
  """The score of a pair of 64 x 64, in floats and with SciPy."""

  def directions(planes):
    mean = lambda p: ndimage.uniform_filter(p * 1.0, 3, mode='mirror')
    sobel = lambda p, axis: ndimage.sobel(mean(p), axis, mode='mirror')
    y, x = (np.stack([sobel(p, axis) for p in planes]) for axis in (0, 1))
    angles = np.deg2rad([0, 45, 90, 135])
    along = [np.abs(np.cos(a) * x + np.sin(a) * y).max(0) for a in angles]
    along = np.stack(along)
    along[:, [0, -1]] = 0
    return along

  edges = 0.5 * directions(np.moveaxis(image, -1, 0))
  strongest = edges.max(0)
  around = ndimage.uniform_filter(strongest, 9, mode='mirror')
  edges *= 64 / (around + 0.25 * strongest.mean() + 2)
  edges = np.stack([ndimage.maximum_filter(e, 3) for e in edges])
  border = directions([mask == c for c in np.unique(mask)])
  y, x = np.nonzero(border.max(0) > 0.55 * border.max())
  return edges[border[:, y, x].argmax(0), y, x].mean() / edges.mean()


def test_the_score_is_that_of_the_reference():
  for seed in range(5):
    mask = objects.blob(seed, (64, 64)) + 2 * objects.blob(seed + 50, (64, 64))
    image = objects.photo(mask > 0, seed)
    for tried in (mask, mask[::-1], mask.T):
      tried = np.ascontiguousarray(tried)
      fit = alignment.measure(image, tried)
      expected = _reference_score(image, tried)
      # Bytes are rounded, 500 of the places are taken.
      assert fit.score == pytest.approx(expected, rel=0.03)


def test_an_alternative_scores_what_the_mask_scores_when_changed_so():
  measure = alignment.measure
  for image, mask in objects.make_pairs(5, (64, 64)):
    fit = measure(image, mask)
    # Each undoes a turn, so that it is the other's alternative.
    undone = [_TURNS[name] for name in _TURNS]
    undone[5], undone[6] = undone[6], undone[5]
    turned = [measure(image, np.ascontiguousarray(t(mask))) for t in undone]
    moved = []
    for distance in (1, 3, 7):
      for right, down in itertools.product((-1, 0, 1), repeat=2):
        if right or down:
          d = round(distance / 2**0.5) if right and down else distance
          shifted = objects.shift(mask, d * down, d * right)
          moved.append(measure(image, shifted))
    expected = [fit.score, *(f.score for f in (*turned, *moved))]
    np.testing.assert_allclose(fit.scores, expected, rtol=0.03)


@pytest.mark.parametrize('name', _TURNS)
@pytest.mark.parametrize('size', [(32, 32), (128, 128)])
def test_a_turned_mask_is_suspicious_and_says_how_to_turn(name, size):
  for image, mask in objects.make_pairs(6, size):
    fit = alignment.measure(image, np.ascontiguousarray(_TURNS[name](mask)))
    assert fit.best == name
    assert fit.best_score > 1.2 * fit.score
    assert alignment.is_suspicious(fit)


@pytest.mark.parametrize(
  'size, down, right, words',
  [
    # Cells of 2 px, distances of 1, 3 and 7 cells.
    ((128, 128), 0, 6, 'moved 6 px left'),
    ((128, 128), 14, 0, 'moved 14 px up'),
    ((128, 128), 4, -4, 'moved 4 px right and 4 px up'),
    ((192, 128), -9, 0, 'moved 9 px down'),
  ],
)
def test_a_shifted_mask_says_where_to_go(size, down, right, words):
  for image, mask in objects.make_pairs(4, size):
    fit = alignment.measure(image, objects.shift(mask, down, right))
    assert fit.best == words
    assert alignment.is_suspicious(fit)


@pytest.mark.parametrize('size', [(32, 32), (96, 128), (128, 96), (301, 400)])
def test_a_right_mask_is_not_suspicious(size):
  pairs = objects.make_pairs(8, size)
  others = [alignment.border(mask) for _, mask in pairs]
  for image, mask in pairs:
    fit = alignment.measure(image, mask, [None, *others])
    assert fit.score > 1.5
    assert not alignment.is_suspicious(fit)


def test_grey_images_fit_as_well():
  for image, mask in objects.make_pairs(4):
    assert alignment.measure(image[..., :1].copy(), mask).score > 1.5


def test_the_mask_of_another_image_is_found():
  pairs = objects.make_pairs(12)
  borders = [alignment.border(mask) for _, mask in pairs]
  finder = alignment.MaskFinder([None, *borders])
  for i, (image, mask) in enumerate(pairs):
    other = pairs[i - 1][1]
    fit = alignment.measure(image, other, borders)
    assert fit.best == 'replaced by the mask of another image'
    right = alignment.measure(image, mask)
    assert fit.best_score == pytest.approx(right.score)
    assert alignment.is_suspicious(fit)
    index, score = finder.find(image)
    assert index == i + 1
    assert score == pytest.approx(right.score)


def test_a_mask_is_found_by_its_score_and_its_length():
  image, mask = objects.make_pairs(1)[0]
  whole = alignment.border(mask)
  grid = (np.add.outer(np.arange(96) // 9, np.arange(128) // 9) % 2) * 1
  grid = alignment.border(grid.astype(np.uint8))
  assert len(grid) > 1.7 * len(whole)

  def find(*borders):
    return alignment.MaskFinder(borders).find(image)

  # A part scores more, by accident; a long border is at chance.
  parts = [whole[i : i + 20] for i in range(0, len(whole) - 20, 5)]
  part = max(parts, key=lambda p: find(p)[1])
  assert find(part)[1] > 1.02 * find(whole)[1]
  assert find(grid, whole, part)[0] == 1
  assert find(grid, whole[::3])[0] == 1


def test_no_mask_is_found_among_none():
  assert alignment.MaskFinder([None]).find(objects.make_pairs(1)[0][0]) is None


def test_suspicion_is_the_gain_less_for_short_borders():
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (96, 128, 3), np.uint8)
  image, mask = objects.make_pairs(1)[0]
  tiny = np.zeros_like(mask)
  tiny[60:72, 30:48] = 1
  for tried, changed in ((image, mask[::-1].copy()), (image, tiny)):
    fit = alignment.measure(tried, changed)
    assert fit.best_score > 1.1
    gain = fit.best_score / fit.score - 1
    expected = gain * min(len(fit.border), 500) / 500
    assert fit.suspicion == pytest.approx(expected)
  assert len(fit.border) < 100
  # Nothing fits noise, which is suspicious as well.
  fit = alignment.measure(noise, objects.blob(3))
  assert fit.best_score < 1.1
  expected = (1.1 / fit.score - 1) * len(fit.border) / 500
  assert fit.suspicion == pytest.approx(expected)


@pytest.mark.parametrize('values', [(0,), (3,), (255,), (2, 255)])
def test_a_mask_of_one_class_has_no_border(values):
  mask = np.resize(np.uint8(values), (80, 90))
  image = objects.photo(mask, 0)
  assert alignment.border(mask) is None
  assert alignment.measure(image, mask) is None


def test_an_image_without_edges_is_not_suspicious():
  fit = alignment.measure(np.full((96, 128, 3), 90, np.uint8), objects.blob(0))
  assert fit.score == 0
  assert not alignment.is_suspicious(fit)


def test_an_ignored_band_is_a_border_and_an_ignored_region_is_none():
  mask = np.zeros((64, 64), np.uint8)
  mask[20:40, 20:40] = 1
  whole = set(alignment.border(mask).tolist())
  band = mask.copy()
  kernel = np.ones((5, 5), np.uint8)
  band[cv2.dilate(mask, kernel) != cv2.erode(mask, kernel)] = 255
  assert set(alignment.border(band).tolist()) == whole
  half = mask.copy()
  half[:, 30:] = 255
  left = set(alignment.border(half).tolist())
  assert {place for place in whole if place // 4 % 64 < 29} <= left
  assert max(place // 4 % 64 for place in left) < 30 + 4


def test_the_numbers_of_classes_do_not_matter():
  mask = objects.blob(1) + 2 * objects.blob(2)
  table = np.arange(256, dtype=np.uint8)
  table[:4] = 3, 17, 90, 254
  borders = [alignment.border(m) for m in (table[mask], mask)]
  np.testing.assert_array_equal(*borders)
