"""The verdict on a set of pairs that all, or in part, have one fault."""

import dataclasses
import re
import types

import cv2
import numpy as np
import pytest
from PIL import Image

from experiments.data_faults import kinds
from tests.inspection import objects
from unet_jax.inspection import alignment, verdict


def _fits(pairs):
  return [alignment.measure(image, mask) for image, mask in pairs]


def _judge(pairs) -> verdict.Verdict | None:
  """The verdict on a set of pairs, with each image tried on all masks."""
  finder = alignment.MaskFinder([alignment.border(mask) for _, mask in pairs])
  owners = {}
  for i, (image, _) in enumerate(pairs):
    found = finder.find(image)
    owners |= {i: found[0]} if found else {}
  fits = _fits(pairs)
  if not verdict.is_suspected(fits, owners):
    return None
  looks = verdict.look_again(fits, lambda i: pairs[i], owners)
  return verdict.summarize(fits, looks, owners)


def _flip(pairs):
  return [(image, mask[:, ::-1].copy()) for image, mask in pairs]


def _flip_some(pairs):
  for i in (3, 7, 8, 13):
    pairs[i] = pairs[i][0], pairs[i][1][::-1].copy()
  return pairs


def _shift(pixels):
  return lambda pairs: [
    (image, objects.shift(mask, 0, pixels)) for image, mask in pairs
  ]


def _reorder(order):
  return lambda pairs: [(pairs[i][0], pairs[j][1]) for i, j in enumerate(order)]


def _cut(pairs):
  """Masks of pictures that were cut to the middle 3/4 of their width."""
  return [
    (image, cv2.resize(mask[:, 12:-12], mask.shape[::-1], interpolation=0))
    for image, mask in pairs
  ]


_LATE = [(i + 3) % 16 for i in range(16)]
_SHUFFLED = np.random.default_rng(0).permutation(16)
# Kind and message of the verdict.
_FAULTS = {
  'turned: 16 of 16 masks fit better when flipped left to right; on average '
  'they': _flip,
  'turned: 4 of 16 masks fit clearly better when flipped upside down, the '
  'others do': _flip_some,
  'moved: the 16 masks that were tried would fit better, on average, when '
  r'moved 4.7 % of the side left \(roughly\)': _shift(6),
  'moved: the 16 masks that were tried would fit better, on average, when '
  r'moved 1.6 % of the side left \(roughly\)': _shift(2),
  'stretched: 1. of 16 masks that were tried fit better when squeezed to 3/4 '
  'of the width': _cut,
  'shuffled: 13 of 16 images that were tried are fitted best by the mask 3 '
  'before': _reorder(_LATE),
  'unfit: the 16 masks that were tried fit their images hardly': _reorder(
    _SHUFFLED
  ),
}


@pytest.mark.parametrize(
  'kind, down, right',
  [
    # A pixel is 1.6 % of the side.
    ('discs', 0, 1),
    # Beside a band that stands out more, as right masks lie.
    ('layers', 4, 4),
    # Edges that are no class's, and values that change by a hundredth.
    ('stripes', 3, 0),
  ],
)
def test_a_small_move(kind, down, right):
  pairs = kinds.draw(kind, 16, seed=3)
  assert _judge(pairs) is None
  found = _judge([(i, objects.shift(mask, down, right)) for i, mask in pairs])
  assert found.kind == 'moved'


@pytest.mark.parametrize(
  'peaks, words',
  [
    # The place that the way up leads to, not the best one beside.
    ([(3, 0, 0.2), (12, 8, 0.5)], 'moved 2.3 % of the side down (roughly)'),
    # Where that is no move, the best, but not from a place of its own.
    (
      [(12, 8, 0.5)],
      'moved 6.2 % of the side right and 9.4 % of the side down',
    ),
    ([(0, 0, 0.3), (12, 8, 0.5)], None),
    # Less than a pixel and more, and a share of the side.
    ([(0, 1.4, 0.3)], None),
    ([(0, 2, 0.3)], 'moved 1.6 % of the side right'),
  ],
)
def test_a_map_of_moves(peaks, words):
  rng = np.random.default_rng(0)
  y, x = np.mgrid[-16:17, -16:17]
  mean = sum(
    height * np.exp(-(np.hypot(y - down, x - right) ** 2) / 18)
    for down, right, height in peaks
  )
  looks = [
    types.SimpleNamespace(moved=mean * rng.uniform(0.9, 1.1), size=(80, 80))
    for _ in range(12)
  ]
  found = verdict._moved(looks)
  assert (words in found.message) if words else found is None


@pytest.mark.parametrize('message', _FAULTS)
def test_a_faulty_set(message):
  size = (128, 128) if message.startswith('moved') else (96, 96)
  found = _judge(_FAULTS[message](objects.make_pairs(16, size)))
  assert re.match(message, f'{found.kind}: {found.message}')
  assert ' of ' in found.with_odds().removeprefix(found.message)


def test_a_right_set_has_no_verdict():
  assert _judge(objects.make_pairs(16)) is None


@pytest.mark.parametrize('name', kinds.TUNED | kinds.HELD_OUT)
def test_right_masks_of_many_kinds_are_not_accused(name):
  """Bands beside brighter bands, thin lines, a bright field on black, ..."""
  pairs = kinds.draw(name, 16, seed=900)
  assert _judge(pairs) is None
  fits = _fits(pairs)
  looks = verdict.look_again(fits, lambda i: pairs[i])
  seen = [look for look in looks if look]
  odd = [
    i
    for i, (fit, look) in enumerate(zip(fits, looks))
    if look and alignment.is_suspicious(fit) and verdict.is_odd(fit, look, seen)
  ]
  assert len(odd) <= 1


@pytest.mark.parametrize('name', ['cord', 'vessels', 'layers', 'series'])
def test_borders_of_these_kinds_seem_to_fit_better_elsewhere(name):
  """Otherwise the test above would say nothing about the second witness."""
  assert verdict.is_suspected(_fits(kinds.draw(name, 16, seed=900)))


def test_half_a_pixel_is_no_fault():
  """Masks resized with the nearest pixel lie so; nobody draws better."""
  pairs = []
  for image, mask in objects.make_pairs(16, (128, 128)):
    pairs.append((cv2.resize(image, (64, 64), interpolation=3), mask[::2, ::2]))
  assert _judge(pairs) is None


@pytest.mark.parametrize('flipped, kind', [(5, 'turned'), (4, None)])
def test_a_turn_must_be_what_fixes_most(flipped, kind):
  pairs = objects.make_pairs(20)
  fits = _fits(pairs)
  names = ['flipped upside down'] * flipped + ['transposed'] * 2
  names += ['moved 3 px left'] * (10 - len(names))
  looks = verdict.look_again(fits, lambda i: pairs[i])
  for i, name in enumerate(names):
    # The best of the scores is what the look is asked about.
    scores = fits[i].scores[np.r_[1, 0, 2:32]] * 1.0
    fits[i] = dataclasses.replace(
      fits[i], suspicion=1.0, best=name, scores=scores
    )
    alone = looks[i].alone[np.r_[1, 0, 2:8]]
    looks[i] = dataclasses.replace(looks[i], alone=alone)
  found = verdict.summarize(fits, looks)
  assert (found and found.kind) == kind


def test_few_pairs_have_no_verdict():
  pairs = _flip(objects.make_pairs(7))
  assert _judge(pairs) is None
  assert verdict.look_again(_fits(pairs), lambda i: pairs[i]) == [None] * 7
  empty = (pairs[0][0], np.zeros_like(pairs[0][1]))
  assert _judge([*pairs, empty]) is None
  assert _judge([*pairs, pairs[0]])


def test_faults_of_real_photographs_are_found(shared_data):
  folder = shared_data('oxford_pets_600')
  pairs = []
  for path in sorted(folder.glob('annotations/trimaps/[!.]*.png'))[::15]:
    image = Image.open(folder / 'images' / f'{path.stem}.jpg').convert('RGB')
    pairs.append((np.asarray(image), np.asarray(Image.open(path)) - 1))
  suspicious = lambda pairs: sum(map(alignment.is_suspicious, _fits(pairs)))
  assert suspicious(_flip(pairs)) >= 0.95 * len(pairs)
  assert suspicious(pairs) <= 0.05 * len(pairs)
  assert _judge(pairs) is None
