"""Findings across the splits: images that occur twice, or look alike."""

import collections
from collections.abc import Iterable, Mapping

import ml_collections
import numpy as np

from unet_jax.data import examples
from unet_jax.inspection import records

NEIGHBOURS = 'neighbours look alike'

_REMEDY = (
  'Remove them from one split, or allow them with '
  '--config.data.skip_checks=duplicates'
)

# Least correlation of the thumbnails of near duplicates.
_NEAR = 0.95
# Fewest images needed to estimate typical similarity.
_FEW = 20
# Neighbours of a stack or a video correlate by this much more than others.
_ALIKE = 0.2

_Splits = Mapping[str, records.Measurements]
_Groups = list[list[records.Measurement]]


def find_exact(
  splits: _Splits, config: ml_collections.ConfigDict
) -> list[records.Finding]:
  """Files in two splits, and images that are the same in every byte."""
  allowed = 'duplicates' in config.data.skip_checks
  level = 'warning' if allowed else 'error'
  return _same_files(splits, level) + _exact_duplicates(splits, level)


def find_similar(
  splits: _Splits, config: ml_collections.ConfigDict
) -> list[records.Finding]:
  """Images that look the same, and stacks that were held out at random."""
  groups = near_duplicates([m for ms in splits.values() for m in ms])
  groups = [ms for ms in groups if len({m.digest for m in ms}) > 1]
  return [
    *_duplicates('near duplicates', groups),
    *_similar_neighbours(splits, config),
  ]


def _same_files(splits: _Splits, level: str) -> list[records.Finding]:
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
        found.append(records.Finding(level, kind, '', text, tuple(both)))
    earlier[split] = files
  return found


def _exact_duplicates(
  splits: _Splits, leak_level: str
) -> list[records.Finding]:
  by_digest = collections.defaultdict(list)
  for m in (m for ms in splits.values() for m in ms):
    # Nearly constant images have a finding of their own.
    if m.digest and not m.is_constant:
      by_digest[m.digest].append(m)
  groups = [ms for ms in by_digest.values() if len(ms) > 1]
  found = _duplicates('exact duplicates', groups, leak_level)
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
    first = records.some([f'{m.name} ({m.split})' for m in chosen[0]])
    text = f'{len(chosen)} group(s) of {kind} {where}; the first: {first}'
    if chosen is across:
      splits = collections.Counter(m.split for g in chosen for m in g)
      counts = ', '.join(f'{n} of {split}' for split, n in splits.items())
      remedy = _REMEDY if level == 'error' else 'Remove them from one split'
      text += f'; images concerned: {counts}. {remedy}'
    names = tuple(' = '.join(m.name for m in g) for g in chosen)
    found.append(records.Finding(level, name, '', text, names))
  return found


def near_duplicates(measurements: Iterable[records.Measurement]) -> _Groups:
  """Groups images whose thumbnails, also mirrored, are nearly the same.

  The correlation of two thumbnails must exceed 0.95, or, in a set whose images
  all look alike, come ten times closer to 1 than the median of all pairs.
  """
  shown = [
    m for m in measurements if m.thumbnail is not None and m.thumbnail.any()
  ]
  if len(shown) < 2:
    return []
  thumbs = np.stack([m.thumbnail for m in shown])
  edge = int(thumbs.shape[1] ** 0.5)
  mirrored = thumbs.reshape(-1, edge, edge)[:, :, ::-1].reshape(thumbs.shape)
  threshold = _NEAR
  if len(shown) >= _FEW:  # In fewer, the duplicates themselves are typical.
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, len(shown), (2, 20000))
    typical = np.median(np.sum(thumbs[a] * thumbs[b], 1)[a != b])
    threshold = max(_NEAR, 1 - 0.1 * (1 - typical))
  from scipy import sparse  # Slow to import; training does without.

  labels = np.arange(len(shown))
  # In blocks that are joined one by one: neither the whole matrix of a large
  # set nor all the pairs of a large group fit in memory.
  for start in range(0, len(shown), 1024):
    block = thumbs[start : start + 1024]
    for others in (thumbs, mirrored):
      i, j = np.nonzero(block @ others[start:].T > threshold)
      ends = (labels[i + start], labels[j + start])
      graph = sparse.coo_matrix(
        (np.ones(len(i), bool), ends), (len(shown),) * 2
      )
      _, joined = sparse.csgraph.connected_components(graph, directed=False)
      labels = joined[labels]
  groups = collections.defaultdict(list)
  for m, label in zip(shown, labels.tolist()):
    groups[label].append(m)
  return [g for g in groups.values() if len(g) > 1]


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
