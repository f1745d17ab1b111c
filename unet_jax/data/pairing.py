"""Which mask belongs to which image, by their names alone.

A key is the path of a file below its folder, without the ending and in one
Unicode form: `p2/scan_01`. A pattern says which part of a file's stem an image
and its mask share: `{stem}_mask` of `a0_mask` is `a0`.
"""

import collections
import difflib
import heapq
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from unet_jax.data import decode, examples

STEM = '{stem}'
# Of images and of masks.
Patterns = tuple[str, str]
# Numbers, words, and the characters between them.
_WORDS = re.compile(r'\d+|[^\W\d_]+|[\W_]')
_ZEROS = re.compile(r'(?<!\d)0+(?=\d)')
# Words by which files in one folder are taken for masks.
_MASK_WORDS = frozenset(
  'mask masks label labels seg segm segmentation segmentations gt groundtruth '
  'annotation annotations annot manual matte'.split()
)
# Files whose parts of names are compared, patterns that are tried on all files,
# and names that are compared letter by letter.
_SAMPLE, _TRIED, _COMPARED = 50, 4, 2000


class Pairing(NamedTuple):
  """How images and masks belong together.

  Attributes:
    masks: {key of an image: key of its mask}.
    patterns: of the images and of the masks.
    is_exact: whether what they share is equal to the letter.
  """

  masks: dict[str, str]
  patterns: Patterns
  is_exact: bool


def normal_form(name: str) -> str:
  """Returns the one form (NFC) of a name that can be coded in several."""
  return name if name.isascii() else unicodedata.normalize('NFC', name)


def core(key: str, pattern: str) -> str | None:
  """Returns what a pattern leaves of a key; None where it does not fit."""
  folder, slash, stem = key.rpartition('/')
  prefix, _, suffix = pattern.partition(STEM)
  if not (stem.startswith(prefix) and stem.endswith(suffix)):
    return None
  rest = stem[len(prefix) : len(stem) - len(suffix)]
  return folder + slash + rest if rest else None


def is_mask_name(key: str) -> bool:
  """Whether a word of the stem says that the file is a mask."""
  words = _WORDS.findall(key.rpartition('/')[2])
  return any(word.casefold() in _MASK_WORDS for word in words)


def pair(
  images: Sequence[str],
  masks: Sequence[str],
  patterns: Patterns | None = None,
  are_listed: bool = False,
) -> Pairing:
  """Pairs the keys of images with those of masks.

  Names that are equal to the letter pair. Without patterns, others (numbers
  with other zeros in front, other case, one prefix or suffix for all, endings
  that were kept in some) do if this is the only way to pair all files one to
  one.

  Args:
    images, masks: keys, each once.
    patterns: of images and masks, where they are given.
    are_listed: whether images are chosen, so that masks may remain.

  Returns:
    All pairs, or those of equal names, if not every file has a partner.
  """
  tried = patterns or (STEM, STEM)
  exact = _match(images, masks, tried, str) or {}
  found = Pairing(exact, tried, True)
  if len(exact) == len(images if are_listed else masks):
    return found

  def is_whole(found: dict[str, str] | None) -> bool:
    whole = found is not None and len(found) == len(images) > 0
    return whole and (are_listed or len(images) == len(masks))

  numbered = _match(images, masks, tried, _simple)
  if is_whole(numbered):
    return Pairing(numbered or {}, tried, False)
  if patterns:
    return found
  # Prefixes and suffixes that pair all files pair them in one way only.
  for other in _likely_patterns(images, masks):
    for simplify in (str, _simple):
      matched = _match(images, masks, other, simplify)
      if is_whole(matched):
        return Pairing(matched or {}, other, simplify is str)
  named = _match(images, masks, tried, _without_endings)
  return Pairing(named or {}, tried, False) if is_whole(named) else found


def likely_patterns(
  images: Sequence[str], masks: Sequence[str]
) -> Patterns | None:
  """Returns the patterns that pair more files than equal names; or None."""
  # What pairs less than half of the files is chance, as among random names.
  best = None
  count = max(
    len(set(images) & set(masks)), (min(len(images), len(masks)) - 1) // 2
  )
  for patterns in _likely_patterns(images, masks):
    matched = len(_match(images, masks, patterns, _simple) or ())
    if matched > count:
      best, count = patterns, matched
  return best


def likely_mask_pattern(keys: Sequence[str]) -> str:
  """Returns how masks may be named among images, by names within names."""
  known, votes = set(keys), collections.Counter({f'{STEM}_mask': 0})
  for key in keys[:_COMPARED]:
    folder, slash, stem = key.rpartition('/')
    words = _WORDS.findall(stem)
    for i in range(1, len(words)):
      start, end = ''.join(words[:i]), ''.join(words[i:])
      votes[STEM + end] += folder + slash + start in known
      votes[start + STEM] += folder + slash + end in known
  return votes.most_common(1)[0][0]


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns ' (did you mean X?)' for the most similar name, or ''.

  The numbers in it count first: `img_000` is like `img_0`, not `img_100`.
  """
  numbers = _numbers(name)
  near, names = [], list(names)
  if numbers:
    near = [n for n in names if _numbers(n) == numbers]
  simple = {_simple(n): n for n in near or names[:_COMPARED]}
  # `case_1` is more like `case_1_0000` than like `case_2`.
  wanted = _simple(name)
  begins = re.compile(re.escape(wanted) + r'(?!\d)')
  near = sorted(filter(begins.match, simple), key=len)
  near = near or difflib.get_close_matches(wanted, simple, 1, 0.5)
  return f' (did you mean {simple[near[0]]}?)' if near else ''


def _numbers(name: str) -> list[int]:
  return [int(n) for n in re.findall(r'\d+', name)]


def _simple(name: str) -> str:
  """A name without zeros in front of numbers and without case."""
  return _ZEROS.sub('', name).casefold()


def _without_endings(name: str) -> str:
  """As `_simple`, without the endings that are left: `a.jpg` of `a.jpg.png`."""
  stem, ending = os.path.splitext(_simple(name))
  return (
    _without_endings(stem) if ending in decode.EXTENSIONS else stem + ending
  )


def _match(
  images: Sequence[str],
  masks: Sequence[str],
  patterns: Patterns,
  simplify: Callable[[str], str],
) -> dict[str, str] | None:
  """Pairs keys whose cores are equal; None where two of a kind are."""
  by_core: list[dict[str, str]] = []
  for keys, pattern in zip((images, masks), patterns):
    is_plain = pattern == STEM
    cores: dict[str, str] = {}
    for key in keys:
      rest = key if is_plain else core(key, pattern)
      if rest is not None and cores.setdefault(simplify(rest), key) != key:
        return None
    by_core.append(cores)
  of_masks = by_core[1]
  return {
    key: of_masks[rest] for rest, key in by_core[0].items() if rest in of_masks
  }


def _likely_patterns(
  images: Sequence[str], masks: Sequence[str]
) -> list[Patterns]:
  """Patterns by what some images and masks share, the most frequent first."""
  kinds: list[dict[str, list]] = []
  for keys in (images, masks):
    parts = collections.defaultdict(list)
    for key in heapq.nsmallest(_SAMPLE, keys, examples.natural_key):
      folder, _, stem = key.rpartition('/')
      words = _WORDS.findall(stem)
      for i in range(len(words)):
        for j in range(i + 1, len(words) + 1):
          pattern = ''.join((*words[:i], STEM, *words[j:]))
          part = _simple(f'{folder}/{"".join(words[i:j])}')
          parts[part].append((key, pattern))
    kinds.append(parts)
  votes = collections.defaultdict(set)
  cut = set()  # Patterns that leave a separator at an end.
  for part, found in kinds[0].items():
    others = kinds[1].get(part, [])
    if len(found) == len(others) == 1:
      (image, image_pattern), (mask, mask_pattern) = found[0], others[0]
      patterns = image_pattern, mask_pattern
      votes[patterns].add((image, mask))
      stem = part.rpartition('/')[2]
      if not (stem[0].isalnum() and stem[-1].isalnum()):
        cut.add(patterns)

  def order(p: Patterns) -> tuple:
    return STEM not in p, p in cut, len(p[0]) + len(p[1]), p

  # Of patterns that pair the same files, the plainest.
  ways: dict[frozenset, Patterns] = {}
  for patterns in sorted(votes, key=order):
    ways.setdefault(frozenset(votes[patterns]), patterns)
  ranked = sorted(ways, key=len, reverse=True)
  return [ways[pairs] for pairs in ranked[:_TRIED]]
