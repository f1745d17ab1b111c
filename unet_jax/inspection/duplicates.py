"""Findings across the splits: images that occur twice, or look alike."""

import collections
import heapq
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import ml_collections
import numpy as np

from unet_jax.data import examples, lists, stored
from unet_jax.inspection import records, scan
from unet_jax.runtime import errors

NEIGHBOURS = 'neighbours look alike'

_REMEDY = 'Remove them from one split'
# How often images that are alike are called so by chance, and copies are:
# experiments/data_faults/copies.py.
_ODDS = {
  'near duplicates': '0 of 1,050 right images are called so, 801 of 875 copies '
  'that are brighter, smaller, cropped, noisy or JPEGs are',
  'turned copies': '0 of 1,050 right images are called so, 523 of 525 copies '
  'that are mirrored or turned are',
}

# Least correlation of the thumbnails of near duplicates.
_NEAR = 0.95
# Fewest images needed to estimate typical similarity, and the common layout.
_FEW = 20
# Least correlation of the details of near duplicates, less what is common to
# the set; experiments/data_faults has what copies and other images reach.
_SAME_DETAILS = 0.6
# Side of the neighbourhood that details stand out from, in cells of 64; what is
# added to its standard deviation, in grey levels; at most this many pairs of
# images are compared in detail, so many at a time.
_AROUND, _FLOOR = 9, 2.0
_MOST_PAIRS, _AT_ONCE = 200_000, 1024
# Waves of a thumbnail along each axis that find pairs, from 0; how much
# rounding may take from a product; and of how many pairs in a block one must be
# left, for the products of these alone to be quicker than all.
_WAVES, _ROUNDING, _FEWER = 8, 1e-4, 30
# Neighbours of a stack or a video correlate by this much more than others.
_ALIKE = 0.2
# Images of prepared sets that are looked at for this.
_FIRST = 256

_Splits = Mapping[str, records.Measurements]
_Groups = list[list[records.Measurement]]


def find_exact(splits: _Splits) -> list[records.Finding]:
  """Files in two splits, and images that are the same in every pixel."""
  return _same_files(splits) + _exact_duplicates(splits)


def find_similar(
  splits: _Splits, config: ml_collections.ConfigDict, held_out: bool
) -> list[records.Finding]:
  """Images that look the same, and stacks that were held out at random.

  Args:
    splits: measurements of each.
    config: its `data.holdout` chooses what is held out.
    held_out: whether the program chose the examples not trained on: where they
      are a folder or a list of their own, `data.holdout` changes nothing.
  """
  found = []
  alike = near_duplicates([m for ms in splits.values() for m in ms])
  for kind, groups in alike.items():
    groups = [ms for ms in groups if len({m.digest for m in ms}) > 1]
    found += _duplicates(kind, groups)
  if held_out:
    found += _similar_neighbours(splits, config)
  return found


def find_series(
  splits: _Splits, sets: Mapping[str, Any], config: ml_collections.ConfigDict
) -> list[records.Finding]:
  """Looks for stacks that were held out at random, in prepared sets.

  Args:
    splits: measurements of each; the first by name get their thumbnail.
    sets: of the same splits, and in the same order.
    config: see `find_similar`.
  """
  folders = [{os.path.dirname(m.name) for m in ms} for ms in splits.values()]
  if (
    any(dataset.stats is None for dataset in sets.values())
    or config.data.source != 'folder'
    or not set.intersection(*folders)  # Each split has a folder of its own.
    or lists.find(os.path.expanduser(config.data.dir))
  ):
    return []
  first = heapq.nsmallest(
    _FIRST,
    (m for ms in splits.values() for m in ms),
    key=lambda m: examples.natural_key(m.name),
  )
  for m in first:
    scan.shrink(m, sets[m.split][m.index]['image'])
  return _similar_neighbours(splits, config)


def _same_files(splits: _Splits) -> list[records.Finding]:
  """Files that are in two splits at once: of one name and one content."""
  found: list[records.Finding] = []
  earlier: dict[str, dict[str, bytes]] = {}
  for split, measurements in splits.items():
    files = {m.name: m.digest for m in measurements if m.digest}
    for other, others in earlier.items():
      both = [n for n, digest in files.items() if others.get(n, '') == digest]
      if both:
        text = (
          f'{both[0]} is in {other} and in {split}: {len(both)} file(s) are; '
          'data used for training cannot be used for evaluation. ' + _REMEDY
        )
        kind = 'same files in two splits'
        found.append(records.Finding('error', kind, '', text, tuple(both)))
    earlier[split] = files
  return found


def _exact_duplicates(splits: _Splits) -> list[records.Finding]:
  by_digest = collections.defaultdict(list)
  for m in (m for ms in splits.values() for m in ms):
    # Nearly constant images have a finding of their own.
    if m.digest and not m.is_constant:
      by_digest[m.digest].append(m)
  groups = [ms for ms in by_digest.values() if len(ms) > 1]
  found = _duplicates('exact duplicates', groups, 'error')
  contradicting = [
    ms for ms in groups if any(_masks_differ(m, ms[0]) for m in ms)
  ]
  if contradicting:
    a, b = contradicting[0][:2]
    text = (
      f'{a.name} and {b.name} are the same image with different masks: '
      f'{len(contradicting)} group(s) are like this'
    )
    names = tuple(m.name for ms in contradicting for m in ms)
    kind = 'contradicting masks'
    found.append(records.Finding('warning', kind, '', text, names))
  return found


def _masks_differ(a: records.Measurement, b: records.Measurement) -> bool:
  """Whether two masks of one image differ: in their counts or their place."""
  if a.image_size != b.image_size:
    return False  # Of one picture in two sizes.
  if a.fit is not None and b.fit is not None and a.fit.score != b.fit.score:
    return True
  return not np.array_equal(a.class_pixels, b.class_pixels)


def _duplicates(
  kind: str, groups: _Groups, leak_level: str = 'warning'
) -> list[records.Finding]:
  """One finding for the groups across splits, one for those within."""
  across = [g for g in groups if len({m.split for m in g}) > 1]
  within = [g for g in groups if len({m.split for m in g}) == 1]
  found = []
  leaks = 'across splits: images of the evaluation are trained on'
  for level, name, chosen, where in (
    (leak_level, f'{kind}, leakage', across, leaks),
    ('note', kind, within, 'within a split'),
  ):
    if not chosen:
      continue
    first = errors.some([f'{m.name} ({m.split})' for m in chosen[0]])
    text = f'{len(chosen)} group(s) of {kind} {where}; the first: {first}'
    if chosen is across:
      splits = collections.Counter(m.split for g in chosen for m in g)
      counts = ', '.join(f'{n} of {split}' for split, n in splits.items())
      text += f'; images concerned: {counts}. {_REMEDY}'
      if kind in _ODDS:
        text += f' ({_ODDS[kind]})'
    names = tuple(' = '.join(m.name for m in g) for g in chosen)
    found.append(records.Finding(level, name, '', text, names))
  return found


def near_duplicates(
  measurements: Iterable[records.Measurement],
) -> dict[str, _Groups]:
  """Groups images that are nearly the same, perhaps mirrored or turned.

  The correlation of two thumbnails must exceed 0.95, and in a series come ten
  times closer to 1 than the median of neighbours. And those fine details must
  be the same that are not common to the set: different eyes are round and
  bright alike. Where no details are known, thumbnails must come ten times
  closer to 1 than the median of all pairs.

  Returns:
    {kind: groups}: those that are alike as they are, and those of which some
    are so only mirrored or turned by a multiple of 90 degrees.
  """
  groups: dict[str, _Groups] = {'near duplicates': [], 'turned copies': []}
  shown = sorted(
    (m for m in measurements if m.thumbnail is not None and m.thumbnail.any()),
    key=lambda m: examples.natural_key(m.name),
  )
  if len(shown) < 2:
    return groups
  thumbs = np.stack([m.thumbnail for m in shown])
  pairs = _alike(thumbs, _threshold(thumbs, shown[0].detail is not None))
  pairs = pairs[_have_same_details(shown, pairs)]
  # Of each pair, the orientation in which it is the most alike.
  pairs = pairs[np.unique(pairs[:, :2], axis=0, return_index=True)[1]]
  if not len(pairs):
    return groups
  from scipy import sparse  # Slow to import; training does without.

  graph = sparse.coo_matrix(
    (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (len(shown),) * 2
  )
  _, labels = sparse.csgraph.connected_components(graph, directed=False)
  turned_labels = set(labels[pairs[pairs[:, 2] > 1, 0]].tolist())
  by_label = collections.defaultdict(list)
  for m, label in zip(shown, labels.tolist()):
    by_label[label].append(m)
  near, copies = groups.values()
  for label, members in by_label.items():
    if len(members) > 1:
      (copies if label in turned_labels else near).append(members)
  return groups


def _alike(thumbs: np.ndarray, threshold: float) -> np.ndarray:
  """Returns pairs of thumbnails [n, k] that correlate, the most alike first.

  Returns:
    int [m, 3]: two images, and the orientation that makes the first one like
    the second.
  """
  pairs, strengths = np.zeros((0, 3), int), np.zeros(0, thumbs.dtype)
  keys, side = _keys(thumbs), int(thumbs.shape[1] ** 0.5)
  # In blocks: neither all products nor all pairs of a large set fit in memory.
  for start in range(0, len(thumbs), 1024):
    block, others = thumbs[start : start + 1024], thumbs[start:]
    # Keys are shorter, and one product with them stands for eight.
    bounds = keys[start : start + 1024] @ keys[start:].T
    near = np.flatnonzero(bounds > threshold - _ROUNDING)
    near = near[near // len(others) < near % len(others)]
    is_few = len(near) < bounds.size / _FEWER
    for turn in records.ORIENTATIONS if len(near) else ():
      turned = _turned(block.reshape(-1, side, side), turn)
      turned = turned.reshape(block.shape)
      if is_few:
        alike = _products(turned, others, *divmod(near, len(others)))
      else:
        alike = np.take(turned @ others.T, near)
      strengths = np.append(strengths, alike[alike > threshold])
      i, j = divmod(near[alike > threshold], len(others))
      more = np.stack([i + start, j + start, np.full(len(i), turn)], 1)
      pairs = np.concatenate([pairs, more])
    best = np.argsort(-strengths, kind='stable')[:_MOST_PAIRS]
    pairs, strengths = pairs[best], strengths[best]
  return pairs


def _keys(thumbs: np.ndarray) -> np.ndarray:
  """Returns what a turn does not change of thumbnails [n, S * S] of norm 1.

  Turns of a picture swap and negate the coefficients of its cosine transform
  (DCT-II). The products of two keys, which are of norm 1 too, are never less
  than the correlation of the thumbnails in any orientation: sorting what is
  swapped, and leaving out signs, brings no two vectors further apart, and nor
  does the norm in place of the finer part.
  """
  side = int(thumbs.shape[1] ** 0.5)
  at, waves = np.arange(side) + 0.5, np.arange(_WAVES)
  basis = np.cos(np.pi / side * np.outer(waves, at)) * (2 / side) ** 0.5
  basis[0] *= 0.5**0.5
  basis = basis.astype(thumbs.dtype)
  found = np.abs(basis @ thumbs.reshape(-1, side, side) @ basis.T)
  swapped = found.swapaxes(1, 2)
  is_first = waves[:, None] >= waves
  keys = np.where(
    is_first, np.maximum(found, swapped), np.minimum(found, swapped)
  ).reshape(len(thumbs), -1)
  finer = np.maximum(1 - np.square(keys).sum(1, keepdims=True), 0)
  return np.concatenate([keys, np.sqrt(finer)], 1)


def _products(
  a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray
) -> np.ndarray:
  """Returns the products of the rows a[i] and b[j], [len(i)]."""
  found = [
    np.einsum('nk,nk->n', a[i[k : k + _AT_ONCE]], b[j[k : k + _AT_ONCE]])
    for k in range(0, len(i), _AT_ONCE)
  ]
  return np.concatenate([np.zeros(0, a.dtype), *found])


def _turned(images: np.ndarray, orientation: int) -> np.ndarray:
  """Turns images [n, S, S], see `stored.turn`."""
  return stored.turn(images.transpose(1, 2, 0), orientation).transpose(2, 0, 1)


def _threshold(thumbs: np.ndarray, with_details: bool) -> float:
  """Least correlation of near duplicates; thumbnails [n, k], by name."""
  if len(thumbs) < _FEW:  # In fewer, the duplicates themselves are typical.
    return _NEAR
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, len(thumbs), (2, 20000))
  alike = np.sum(thumbs[a] * thumbs[b], 1)[a != b]
  typical = float(np.median(alike))
  near = float(np.median(np.sum(thumbs[1:] * thumbs[:-1], 1)))
  if near - typical >= _ALIKE:
    return max(_NEAR, 1 - 0.1 * (1 - near))
  if not with_details:
    return max(_NEAR, 1 - 0.1 * (1 - typical))
  # Details decide, of as many pairs as can be compared.
  share = min(2 * _MOST_PAIRS / len(thumbs) ** 2, 1)
  return max(_NEAR, float(np.quantile(alike, 1 - share)))


def _have_same_details(
  shown: records.Measurements, pairs: np.ndarray
) -> np.ndarray:
  """Whether images have the same details; pairs: see `_alike`."""
  concerned = np.unique(pairs[:, :2])
  if not len(concerned) or shown[0].detail is None:
    return np.ones(len(pairs), bool)
  common = 0.0
  if len(shown) >= _FEW:
    some = np.linspace(0, len(shown) - 1, 200, dtype=int)
    common = np.mean(
      [_details(shown[i].detail) for i in np.unique(some).tolist()], 0
    )
  details = np.stack([_details(shown[i].detail) for i in concerned.tolist()])
  where = np.searchsorted(concerned, pairs[:, :2])
  same, as_stored = np.zeros(len(pairs), bool), _unit(details - common)
  for turn in np.unique(pairs[:, 2]).tolist():
    mine = np.flatnonzero(pairs[:, 2] == turn)
    turned = _unit(_turned(details, turn) - common)
    i, j = where[mine].T
    same[mine] = _products(turned, as_stored, i, j) > _SAME_DETAILS
  return same


def _unit(values: np.ndarray) -> np.ndarray:
  """Scales each of [n, S, S] to norm 1: [n, S * S]."""
  values = values.reshape(len(values), -1)
  norm = np.linalg.norm(values, axis=1, keepdims=True)
  return values / np.maximum(norm, 1e-6)


def _details(grey: np.ndarray) -> np.ndarray:
  """What stands out from its surroundings: uint8 [S, S] to float32 [S, S]."""
  values = grey.astype(np.float32)
  around = (_AROUND, _AROUND)
  mean = cv2.blur(values, around)
  spread = cv2.blur(values * values, around) - mean * mean
  return (values - mean) / (np.sqrt(np.maximum(spread, 0)) + _FLOOR)


def _similar_neighbours(
  splits: _Splits, config: ml_collections.ConfigDict
) -> list[records.Finding]:
  """A stack or a video, held out at random: neighbours leak."""
  if config.data.source != 'folder' or config.data.holdout != 'random':
    return []
  everything = sorted(
    (m for ms in splits.values() for m in ms if m.thumbnail is not None),
    key=lambda m: examples.natural_key(m.name),
  )
  # Pages of a file, FILE[PAGE], stay on one side: one stands for all.
  files = {re.sub(r'\[\d+\]$', '', m.name): m for m in everything}
  everything = list(files.values())
  if len(everything) < 8:
    return []
  thumbs = np.stack([m.thumbnail for m in everything[:2000]])
  alike = thumbs @ thumbs.T
  near = np.mean(np.diagonal(alike, 1))
  usual = np.mean(alike[np.triu_indices(len(thumbs), 2)])
  if near - usual < _ALIKE:
    return []
  text = (
    f'images with consecutive names look alike (correlation {near:.2f} against '
    f'{usual:.2f} of any two), as in a stack or a video: a part held out at '
    'random leaks; use --config.data.holdout=last'
  )
  return [records.Finding('warning', NEIGHBOURS, '', text)]
