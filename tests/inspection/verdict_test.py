"""The verdict on a set of pairs that all, or in part, have one fault."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from tests.inspection import objects
from unet_jax.inspection import alignment, verdict


def _fits(pairs):
  return [alignment.measure(image, mask) for image, mask in pairs]


def _judge(pairs) -> verdict.Verdict | None:
  """The verdict on a set of pairs, with each image tried on all masks."""
  finder = alignment.MaskFinder([alignment.border(mask) for _, mask in pairs])
  owners = {i: finder.find(image)[0] for i, (image, _) in enumerate(pairs)}
  return verdict.summarize(_fits(pairs), owners)


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


_LATE = [(i + 3) % 16 for i in range(16)]
_SHUFFLED = np.random.default_rng(0).permutation(16)
# Kind and message of the verdict.
_FAULTS = {
  'turned: 16 of 16 masks fit better when flipped left to right; on average '
  'they': _flip,
  'turned: 4 of 16 masks fit clearly better when flipped upside down, the '
  'others do': _flip_some,
  'moved: 16 of 16 masks fit better when moved 5 % of the side left '
  r'\(roughly\)': _shift(6),
  'moved: the 16 masks would fit better, on average, when moved 0.* left '
  r'\(roughly\)': _shift(1),
  'shuffled: 13 of 16 images that were tried are fitted best by the mask 3 '
  'before': _reorder(_LATE),
  'no fit: the 16 masks fit their images hardly': _reorder(_SHUFFLED),
}


@pytest.mark.parametrize('message', _FAULTS)
def test_a_faulty_set(message):
  size = (128, 128) if message.startswith('moved') else (96, 128)
  found = _judge(_FAULTS[message](objects.make_pairs(16, size)))
  assert re.match(message, f'{found.kind}: {found.message}')


def test_a_right_set_has_no_verdict():
  assert _judge(objects.make_pairs(16)) is None


@pytest.mark.parametrize('flipped, kind', [(5, 'turned'), (4, None)])
def test_a_turn_must_be_what_fixes_most(flipped, kind):
  fits = _fits(objects.make_pairs(20))
  names = ['flipped upside down'] * flipped + ['transposed'] * 2
  names += ['moved 3 px left'] * (10 - len(names))
  for i, name in enumerate(names):
    fits[i] = dataclasses.replace(fits[i], suspicion=1.0, best=name)
  found = verdict.summarize(fits)
  assert (found and found.kind) == kind


def test_few_pairs_have_no_verdict():
  fits = _fits(_flip(objects.make_pairs(7)))
  assert verdict.summarize([*fits, None]) is None
  assert verdict.summarize([*fits, None, fits[0]])


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
