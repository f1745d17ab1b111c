"""The fit of masks to images: against brute force, and on real faults."""

import dataclasses

import cv2
import numpy as np
import pytest
import skimage.draw
from PIL import Image
from scipy import ndimage

from unet_jax.inspection import alignment


def _blob(seed: int, size=(96, 128)) -> np.ndarray:
  """A mask uint8 [H, W] of an object that no turn or flip maps to itself."""
  rng = np.random.default_rng(seed)
  angles = np.linspace(0, 2 * np.pi, 9)[:-1]
  radii = rng.uniform(0.25, 0.95, 8)
  center = np.array(size) * rng.uniform(0.42, 0.58, 2)
  rows = center[0] + size[0] * 0.42 * radii * np.sin(angles)
  columns = center[1] + size[1] * 0.42 * radii * np.cos(angles)
  mask = np.zeros(size, np.uint8)
  mask[skimage.draw.polygon(rows, columns, size)] = 1
  return mask


def _photo(mask: np.ndarray, seed: int, contrast=60) -> np.ndarray:
  """An image uint8 [H, W, 3] of the object, with texture and noise."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(-30, 30, (6, 8, 3)).astype(np.float32)
  texture = cv2.resize(coarse, mask.shape[::-1], interpolation=cv2.INTER_CUBIC)
  image = 120 + texture + contrast * mask[..., None]
  image += rng.normal(0, 6, image.shape)
  return np.clip(image, 0, 255).astype(np.uint8)


def _pairs(count: int, size=(96, 128)):
  masks = [_blob(seed, size) for seed in range(count)]
  return [(_photo(mask, seed), mask) for seed, mask in enumerate(masks)]


def _shift(mask, down, right):
  rows = np.clip(np.arange(mask.shape[0]) - down, 0, mask.shape[0] - 1)
  columns = np.clip(np.arange(mask.shape[1]) - right, 0, mask.shape[1] - 1)
  return mask[rows[:, None], columns]


# What is done to square masks, and what mends it.
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
    planes = [
      ndimage.uniform_filter(p.astype(np.float64), 3, mode='mirror')
      for p in planes
    ]
    x = np.stack([ndimage.sobel(p, 1, mode='mirror') for p in planes])
    y = np.stack([ndimage.sobel(p, 0, mode='mirror') for p in planes])
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
    mask = _blob(seed, (64, 64)) + 2 * _blob(seed + 50, (64, 64))
    image = _photo(mask > 0, seed)
    for tried in (mask, mask[::-1], mask.T):
      tried = np.ascontiguousarray(tried)
      fit = alignment.measure(image, tried)
      expected = _reference_score(image, tried)
      # Bytes are rounded, 500 of the places are taken.
      assert fit.score == pytest.approx(expected, rel=0.03)


def test_an_alternative_scores_what_the_mask_scores_when_changed_so():
  cure = alignment.measure
  for image, mask in _pairs(5, (64, 64)):
    fit = cure(image, mask)
    # Each undoes a turn, so that it is the other's alternative.
    undone = [_TURNS[name] for name in _TURNS]
    undone[5], undone[6] = undone[6], undone[5]
    turned = [cure(image, np.ascontiguousarray(t(mask))) for t in undone]
    moves = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0)]
    moves = [(right, down) for right, down in (*moves, (1, 1))]
    moved = [
      cure(image, _shift(mask, distance * down, distance * right))
      for distance, (right, down) in [
        (d if right * down == 0 else round(d / 2**0.5), (right, down))
        for d in (1, 3, 7)
        for right, down in moves
      ]
    ]
    expected = [fit.score, *(f.score for f in (*turned, *moved))]
    np.testing.assert_allclose(fit.scores, expected, rtol=0.03)


@pytest.mark.parametrize('name', _TURNS)
@pytest.mark.parametrize('size', [(32, 32), (128, 128)])
def test_a_turned_mask_is_suspicious_and_told_how_to_turn(name, size):
  for image, mask in _pairs(6, size):
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
def test_a_shifted_mask_is_suspicious_and_told_where_to_go(
  size, down, right, words
):
  for image, mask in _pairs(4, size):
    fit = alignment.measure(image, _shift(mask, down, right))
    assert fit.best == words
    assert alignment.is_suspicious(fit)


@pytest.mark.parametrize('size', [(32, 32), (96, 128), (128, 96), (301, 400)])
def test_a_right_mask_is_not_suspicious(size):
  pairs = _pairs(8, size)
  others = [alignment.border(mask) for _, mask in pairs]
  for image, mask in pairs:
    fit = alignment.measure(image, mask, [None, *others])
    assert fit.score > 1.5
    assert not alignment.is_suspicious(fit)


def test_grey_images_fit_as_well():
  for image, mask in _pairs(4):
    assert alignment.measure(image[..., :1].copy(), mask).score > 1.5


def test_the_mask_of_another_image_is_found():
  pairs = _pairs(12)
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
  image, mask = _pairs(1)[0]
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
  assert alignment.MaskFinder([None]).find(_pairs(1)[0][0]) is None


def test_suspicion_is_the_gain_less_for_short_borders():
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (96, 128, 3), np.uint8)
  image, mask = _pairs(1)[0]
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
  fit = alignment.measure(noise, _blob(3))
  assert fit.best_score < 1.1
  expected = (1.1 / fit.score - 1) * len(fit.border) / 500
  assert fit.suspicion == pytest.approx(expected)


@pytest.mark.parametrize('values', [(0,), (3,), (255,), (2, 255)])
def test_a_mask_of_one_class_has_no_border(values):
  mask = np.resize(np.uint8(values), (80, 90))
  image = _photo(mask, 0)
  assert alignment.border(mask) is None
  assert alignment.measure(image, mask) is None


def test_an_image_without_edges_is_not_suspicious():
  fit = alignment.measure(np.full((96, 128, 3), 90, np.uint8), _blob(0))
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
  mask = _blob(1) + 2 * _blob(2)
  table = np.arange(256, dtype=np.uint8)
  table[:4] = 3, 17, 90, 254
  np.testing.assert_array_equal(
    alignment.border(table[mask]), alignment.border(mask)
  )


def _fits(pairs):
  return [alignment.measure(image, mask) for image, mask in pairs]


def _verdict(pairs):
  """The only verdict on a set of pairs, with each image tried on all masks."""
  borders = [alignment.border(mask) for _, mask in pairs]
  finder = alignment.MaskFinder(borders)
  owners = {i: finder.find(image)[0] for i, (image, _) in enumerate(pairs)}
  verdicts = alignment.summarize(_fits(pairs), owners)
  return verdicts[0] if verdicts else None


def test_a_right_set_has_no_verdict():
  assert _verdict(_pairs(16)) is None


def test_a_set_of_flipped_masks_is_told_so():
  pairs = [(image, mask[:, ::-1].copy()) for image, mask in _pairs(16)]
  verdict = _verdict(pairs)
  assert verdict.kind == 'turned'
  assert verdict.message.startswith(
    '16 of 16 masks fit better when flipped left to right; on average they'
  )


def test_a_part_of_flipped_masks_is_told_so():
  pairs = _pairs(16)
  for i in (3, 7, 8, 13):
    pairs[i] = pairs[i][0], pairs[i][1][::-1].copy()
  verdict = _verdict(pairs)
  assert verdict.kind == 'turned'
  assert verdict.message.startswith(
    '4 of 16 masks fit clearly better when flipped upside down, the others do'
  )


@pytest.mark.parametrize('flipped, kind', [(5, 'turned'), (4, None)])
def test_a_turn_must_be_what_mends_most(flipped, kind):
  fits = _fits(_pairs(20))
  names = ['flipped upside down'] * flipped + ['transposed'] * 2
  names += ['moved 3 px left'] * (10 - len(names))
  for i, name in enumerate(names):
    fits[i] = dataclasses.replace(fits[i], suspicion=1.0, best=name)
  verdicts = alignment.summarize(fits)
  assert [verdict.kind for verdict in verdicts] == ([kind] if kind else [])


@pytest.mark.parametrize(
  'pixels, words',
  [
    (6, '16 of 16 masks fit better when moved 5 % of the side left (roughly)'),
    (1, 'the 16 masks would fit better, on average, when moved 0.'),
  ],
)
def test_a_set_of_shifted_masks_is_told_so(pixels, words):
  pairs = _pairs(16, (128, 128))
  pairs = [(image, _shift(mask, 0, pixels)) for image, mask in pairs]
  verdict = _verdict(pairs)
  assert verdict.kind == 'moved'
  assert verdict.message.startswith(words)
  assert ' left (roughly)' in verdict.message


def test_a_set_out_of_step_is_told_so():
  pairs = _pairs(16)
  shuffled = [(pairs[i][0], pairs[(i + 3) % 16][1]) for i in range(16)]
  verdict = _verdict(shuffled)
  assert verdict.kind == 'shuffled'
  assert verdict.message.startswith(
    '13 of 16 images that were tried are fitted best by the mask 3 before'
  )


def test_a_shuffled_set_is_told_so():
  pairs = _pairs(16)
  order = np.random.default_rng(0).permutation(16)
  verdict = _verdict([(pairs[i][0], pairs[j][1]) for i, j in enumerate(order)])
  assert verdict.kind == 'no fit'
  assert verdict.message.startswith('the 16 masks fit their images hardly')


def test_few_pairs_have_no_verdict():
  pairs = [(image, mask[:, ::-1].copy()) for image, mask in _pairs(7)]
  fits = _fits(pairs)
  assert alignment.summarize([*fits, None]) == []
  assert alignment.summarize([*fits, None, fits[0]])


def test_faults_of_real_photographs_are_found(shared_data):
  folder = shared_data('oxford_pets_600')
  masks = sorted(folder.glob('annotations/trimaps/[!.]*.png'))[::15]
  faulty = 0
  pairs = []
  for path in masks:
    mask = np.asarray(Image.open(path)) - 1
    image = Image.open(folder / 'images' / f'{path.stem}.jpg').convert('RGB')
    pairs.append((np.asarray(image), mask))
    flipped = alignment.measure(pairs[-1][0], mask[:, ::-1].copy())
    faulty += alignment.is_suspicious(flipped)
  assert faulty >= 0.95 * len(pairs)
  assert sum(map(alignment.is_suspicious, _fits(pairs))) <= 0.05 * len(pairs)
  assert _verdict(pairs) is None
