"""What is wrong with a data set, from the measurements of its examples.

An `error` makes a training or its evaluation fail or worthless, a `warning` is
very likely a mistake, a `note` is good to know.
"""

import collections
import dataclasses
from typing import Any

import numpy as np
from scipy import sparse

from unet_jax.config import fields
from unet_jax.data import examples
from unet_jax.data import masks as masks_lib
from unet_jax.inspection import alignment, scan

LEVELS = ('error', 'warning', 'note')
NEIGHBOURS = 'neighbours look alike'

# Below this standard deviation (of values in 0..1, in every channel) an image
# shows nothing: two of 255 levels.
_CONSTANT = 2 / 255
# Least correlation of the thumbnails of near duplicates.
_NEAR = 0.95
# Files of a kind of error, and values, that are told one by one.
_TOLD = 8
# Pairs of a prepared set whose fit is measured, unless they are so large (in
# pixels) that this would take long.
_FITTED = 64
_LARGE = 2**22
# Images from which on it can be told how alike two of a set usually are.
_FEW = 20
# A stack's or a video's neighbours are alike by this much more than others.
_ALIKE = 0.2


@dataclasses.dataclass(frozen=True)
class Finding:
  """Something that is wrong, or worth knowing.

  Attributes:
    level: one of LEVELS.
    kind: a few words that all findings of a kind share.
    split: where; '' for the whole set.
    message: one line: what, where, how to mend it.
    names: every file concerned.
  """

  level: str
  kind: str
  split: str
  message: str
  names: tuple[str, ...] = ()


def _fit_some(dataset, measurements) -> None:
  """Measures the fit of some pairs of a prepared set."""
  # Evenly spread, since neighbours may be alike.
  spread = np.linspace(0, len(dataset) - 1, _FITTED, dtype=int)
  for i in np.unique(spread).tolist():
    m = measurements[i]
    if m.image_size is None or np.prod(m.image_size) <= _LARGE:
      example = dataset[i]
      image, mask = example['image'], example['mask']
      if mask.ndim == 3:  # The middle slice of a volume.
        image, mask = image[len(image) // 2], mask[len(mask) // 2]
      m.fit = alignment.measure(image, mask)


def _some(names, limit: int = 3) -> str:
  """'a, b, c and 4 more'."""
  shown = ', '.join(names[:limit])
  more = len(names) - limit
  return f'{shown} and {more} more' if more > 0 else shown


def find(splits: dict[str, list[scan.Measurement]], config) -> list[Finding]:
  """Returns all findings, errors first.

  Args:
    splits: {name: measurements}; the first is the one to train on.
    config: of the run.
  """
  found = []
  for split, measurements in splits.items():
    found += _unusable(split, measurements, config)
    found += _files(split, measurements)
    found += _contents(split, measurements, config)
    found += _sizes(split, measurements, config)
    found += _classes(split, measurements, config, split == next(iter(splits)))
    found += _fit_of_the_set(split, measurements) or _fits(split, measurements)
  found += _same_files(splits)
  found += _exact_duplicates(splits)
  found += _near_duplicates(splits)
  found += _neighbours(splits, config)
  return sorted(found, key=lambda f: LEVELS.index(f.level))


def find_in_prepared(sets: dict[str, Any], config) -> list[Finding]:
  """The cheap part of `find`, from what is kept with prepared sets.

  Args:
    sets: {split: Prepared}; the first is the one to train on.
    config: of the run.
  """
  found, splits = [], {}
  for split, dataset in sets.items():
    stats = dataset.stats
    if stats is None:  # Nothing is known of what is decoded at each access.
      splits[split] = measurements = [
        scan.Measurement(split, i) for i in range(len(dataset))
      ]
      _fit_some(dataset, measurements)
      found += _fit_of_the_set(split, measurements)
      continue
    splits[split] = measurements = [
      scan.Measurement(
        split,
        i,
        name,
        f'the mask of {name}',
        image_size=tuple(stats.sizes[i].tolist()),
        digest=stats.digests[i].tobytes(),
        std=stats.stds[i : i + 1] / 255,
        class_pixels=stats.class_pixels[i],
      )
      for i, name in enumerate(stats.names)
    ]
    _fit_some(dataset, measurements)
    found += _contents(split, measurements, config)
    found += _classes(split, measurements, config, split == next(iter(sets)))
    found += _fit_of_the_set(split, measurements)
  found += _same_files(splits)
  found += _exact_duplicates(splits)
  return sorted(found, key=lambda f: LEVELS.index(f.level))


def _unusable(split: str, measurements, config) -> list[Finding]:
  """Broken files, unknown values, different sizes: all are errors."""
  skips = config.data.on_error == 'skip'
  by_kind = collections.defaultdict(list)
  for m in measurements:
    if m.error:
      by_kind[m.error[0]].append(m)
  found = []
  for kind, bad in by_kind.items():
    level = 'warning' if kind == 'broken' and skips else 'error'
    # The message starts with the file that is to blame.
    names = [
      m.name if m.error[1].startswith(f'{m.name} ') else m.mask_name
      for m in bad
    ]
    if kind == 'unknown values':
      message = _tell_values(bad, len(measurements), config)
      found.append(Finding(level, kind, split, message, tuple(names)))
      continue
    # Each has a reason of its own; of many, the rest is like the last.
    for i, (m, name) in enumerate(zip(bad, names)):
      message, rest = m.error[1], (name,)
      if i == _TOLD - 1 and len(bad) > _TOLD:
        message += f' (and {len(bad) - _TOLD} more files)'
        rest = tuple(names[i:])
      found.append(Finding(level, kind, split, message, rest))
      if len(rest) > 1:
        break
  return found


def _tell_values(bad, total: int, config) -> str:
  """Which values are unknown, how often, and where first."""
  pixels, masks, first = collections.Counter(), collections.Counter(), {}
  for m in bad:
    for value, count in masks_lib.unknown_values(m.values, config.data).items():
      pixels[value] += count
      masks[value] += 1
      first.setdefault(value, m.mask_name)
  listed = [
    f'{value}: {n} pixels of {masks[value]} mask(s), first {first[value]}'
    for value, n in pixels.most_common(_TOLD)
  ]
  if len(pixels) > _TOLD:
    listed.append(f'and {len(pixels) - _TOLD} more values')
  message = bad[0].error[1]
  if len(bad) > 1 or len(pixels) > 1:
    message += (
      f' ({len(bad)} of {total} masks hold values outside the table: '
      f'{"; ".join(listed)})'
    )
  return message


def _files(split: str, measurements) -> list[Finding]:
  """EXIF rotation, several pages, kinds of files that vary."""
  found = []
  lossy = [
    m.mask_name
    for m in measurements
    if m.mask_file and m.mask_file.kind.endswith('JPEG')
  ]
  if lossy:
    text = (
      f'{lossy[0]} is a JPEG, which changes the values of a mask along its '
      f'borders: {len(lossy)} mask(s); make them anew as PNG'
    )
    found.append(Finding('warning', 'JPEG masks', split, text, tuple(lossy)))
  read = [m for m in measurements if m.image_file]
  turned = collections.defaultdict(list)
  for m in read:
    if m.image_file.orientation != m.mask_file.orientation:
      turned[m.image_file.orientation, m.mask_file.orientation].append(m)
  for (image, mask), ms in turned.items():
    words = scan.ORIENTATIONS
    found.append(
      Finding(
        'warning',
        'EXIF rotation',
        split,
        f'{ms[0].name}: viewers show it {words[image]}, its mask '
        f'{words[mask]}; both are read as stored. If the mask was drawn on '
        f'what a viewer shows, store the image that way ({len(ms)} file(s))',
        tuple(m.name for m in ms),
      )
    )
  pages = [
    name
    for m in read
    for name, file in ((m.name, m.image_file), (m.mask_name, m.mask_file))
    if file.pages > 1
  ]
  if pages:
    text = (
      f'{pages[0]} has several pages, of which the first is read '
      f'({len(pages)} file(s)); store each page as a file'
    )
    found.append(Finding('warning', 'several pages', split, text, tuple(pages)))
  for what in ('image', 'mask'):
    kinds = collections.defaultdict(list)
    for m in read:
      file, name = (
        (m.image_file, m.name)
        if what == 'image'
        else (m.mask_file, m.mask_name)
      )
      kinds[file.kind].append(name)
    if len(kinds) > 1:
      ranked = sorted(kinds.items(), key=lambda item: -len(item[1]))
      counts = ', '.join(f'{len(names)} {kind}' for kind, names in ranked)
      odd = tuple(name for _, names in ranked[1:] for name in names)
      text = f'the {what}s are stored in {len(kinds)} ways: {counts}'
      level = 'note'
      if len({scan.FileInfo(kind).is_deep for kind in kinds}) > 1:
        text += '; the same value may mean another brightness in each'
        level = 'warning'
      found.append(Finding(level, f'kinds of {what}s', split, text, odd))
  return found


def _contents(split: str, measurements, config) -> list[Finding]:
  """Images that show nothing, and masks that say nothing."""
  found = []
  constant = [
    m for m in measurements if m.std is not None and m.std.max() < _CONSTANT
  ]
  if constant:
    text = f'{constant[0].name} is nearly one colour'
    deep = [m for m in constant if m.image_file and m.image_file.is_deep]
    if deep and config.data.intensity != 'image':
      text += (
        '; its values fill a small part of the range of their type: '
        '--config.data.intensity=image scales each image by its own'
      )
    else:
      text += '; remove such pairs, unless they are meant'
    text += f' ({len(constant)} of {len(measurements)} images)'
    names = tuple(m.name for m in constant)
    found.append(Finding('warning', 'constant image', split, text, names))
  mapped = [m for m in measurements if m.class_pixels is not None]
  ignored = [m for m in mapped if not m.class_pixels[:-1].any()]
  single = [m for m in mapped if np.count_nonzero(m.class_pixels[:-1]) == 1]
  if ignored:
    all_of_them = len(ignored) == len(measurements)
    text = (
      f'{ignored[0].mask_name} is ignored as a whole: {len(ignored)} of '
      f'{len(measurements)} masks have no pixel to learn from; look at '
      'data.mask_values'
    )
    names = tuple(m.mask_name for m in ignored)
    level = 'error' if all_of_them else 'warning'
    found.append(Finding(level, 'ignored mask', split, text, names))
  classes = fields.class_names(config)
  by_class = collections.defaultdict(list)
  for m in single:
    by_class[int(np.argmax(m.class_pixels[:-1]))].append(m)
  for c, ms in by_class.items():
    everything = len(ms) == len(measurements) and len(measurements) > 1
    text = (
      f'{ms[0].mask_name} has one class only, {classes[c]}: {len(ms)} of '
      f'{len(measurements)} masks'
    )
    names = tuple(m.mask_name for m in ms)
    # A few empty masks are usual, where an image shows none of the objects.
    level = 'error' if everything else 'warning' if c else 'note'
    kind = 'mask of one class' if c else 'empty mask'
    found.append(Finding(level, kind, split, text, names))
  return found


def _sizes(split: str, measurements, config) -> list[Finding]:
  """Images that data.image_size distorts or shrinks a lot."""
  sizes = np.array([m.image_size for m in measurements if m.image_size])
  if not len(sizes) or config.data.resize == 'patch':
    return []
  found = []
  target = np.array(config.data.image_size)
  ratio = (sizes[:, 1] / sizes[:, 0]) / (target[1] / target[0])
  distorted = np.mean(np.maximum(ratio, 1 / ratio) > 1.5)
  if config.data.resize == 'stretch' and distorted > 0.01:
    text = (
      f'{distorted:.0%} of the images have an aspect ratio that '
      f'data.image_size={tuple(target.tolist())} changes by more than half; '
      "data.resize='pad' or 'crop' keeps it"
    )
    found.append(Finding('note', 'aspect ratio', split, text))
  shrink = np.median(np.sqrt(sizes.prod(1) / target.prod()))
  if shrink > 4:
    text = (
      f'the images are shrunk {shrink:.1f} times on the median; small objects '
      "may vanish. data.resize='patch' trains on windows of full resolution"
    )
    found.append(Finding('note', 'shrunk images', split, text))
  return found


def _classes(split: str, measurements, config, is_first: bool):
  """Classes that do not occur."""
  mapped = [m.class_pixels for m in measurements if m.class_pixels is not None]
  if not mapped:
    return []
  pixels = np.sum(mapped, 0)
  names = fields.class_names(config)
  absent = [name for name, n in zip(names, pixels) if not n]
  if not absent:
    return []
  text = (
    f'no pixel of {split} is of class {_some(absent, 8)}; look at '
    'data.num_classes and data.mask_values'
  )
  level = 'error' if is_first and len(absent) >= len(names) - 1 else 'warning'
  return [Finding(level, 'absent class', split, text, tuple(absent))]


def _fit_of_the_set(split: str, measurements) -> list[Finding]:
  """Masks that fit better when all of them are flipped, moved or renumbered."""
  owners = {m.index: m.owner for m in measurements if m.owner is not None}
  verdicts = alignment.summarize([m.fit for m in measurements], owners)
  names = tuple(
    m.mask_name
    for m in measurements
    if m.fit and alignment.is_suspicious(m.fit)
  )
  return [
    # Masks may mean what has no edges: that is for a person to judge.
    Finding(
      'warning' if verdict.kind == 'no fit' else 'error',
      f'masks {verdict.kind}' if verdict.kind != 'no fit' else 'masks unfit',
      split,
      verdict.message,
      names,
    )
    for verdict in verdicts
  ]


def _fits(split: str, measurements) -> list[Finding]:
  """Single masks that fit their images badly."""
  fits = [m for m in measurements if m.fit is not None]
  odd = [m for m in fits if alignment.is_suspicious(m.fit)]
  if not odd:
    return []
  odd.sort(key=lambda m: -m.fit.suspicion)
  first = odd[0]
  scores = f'{first.fit.best_score:.2f} against {first.fit.score:.2f}'
  how = f'fits its image better {first.fit.best} ({scores})'
  if first.fit.best == alignment.OTHER:
    how = f'fits its image worse than the mask of another one ({scores})'
    if first.owner is not None and first.owner != first.index:
      how += f', such as {measurements[first.owner].mask_name}'
  elif first.fit.best_score <= first.fit.score:
    how = f'fits its image no better than chance ({first.fit.score:.2f})'
  text = (
    f'{first.mask_name} {how}; {len(odd)} of {len(fits)} masks do not lie on '
    'the edges of their images, or not well (about 1 in 100 right ones is '
    'among them): look at them in the report'
  )
  names = tuple(m.mask_name for m in odd)
  return [Finding('warning', 'mask beside the edges', split, text, names)]


def _same_files(splits) -> list[Finding]:
  """Files that are in two splits at once: of one name and one content."""
  found, where = [], {}
  for split, measurements in splits.items():
    files = {m.name: m.digest for m in measurements if m.digest}
    for other, others in where.items():
      both = [n for n, digest in files.items() if others.get(n, '') == digest]
      if both:
        text = (
          f'{both[0]} is in {other} and in {split}: {len(both)} file(s) are; '
          'what is trained on cannot be evaluated on. Remove them from one'
        )
        found.append(
          Finding('error', 'same files in two splits', '', text, tuple(both))
        )
    where[split] = files
  return found


def _exact_duplicates(splits) -> list[Finding]:
  """Images that are the same in every byte, and their masks."""
  by_digest = collections.defaultdict(list)
  for m in [m for ms in splits.values() for m in ms]:
    # Nearly constant images are told as such.
    if m.digest and m.std is not None and m.std.max() >= _CONSTANT:
      by_digest[m.digest].append(m)
  groups = [ms for ms in by_digest.values() if len(ms) > 1]
  found = _tell_duplicates('exact duplicates', groups)

  def differ(a, b):
    """Whether two masks of one image differ: in their counts or their place."""
    if a.fit is not None and b.fit is not None and a.fit.score != b.fit.score:
      return True
    return not np.array_equal(a.class_pixels, b.class_pixels)

  contradicting = [ms for ms in groups if any(differ(m, ms[0]) for m in ms)]
  if contradicting:
    a, b = contradicting[0][:2]
    text = (
      f'{a.name} and {b.name} are the same image with different masks: '
      f'{len(contradicting)} group(s) are like this'
    )
    names = tuple(m.name for ms in contradicting for m in ms)
    found.append(Finding('warning', 'contradicting masks', '', text, names))
  return found


def _near_duplicates(splits) -> list[Finding]:
  """Images that show the same, within and across splits."""
  groups = near_duplicates([m for ms in splits.values() for m in ms])
  groups = [ms for ms in groups if len({m.digest for m in ms}) > 1]
  return _tell_duplicates('near duplicates', groups)


def _tell_duplicates(kind: str, groups) -> list[Finding]:
  """One finding for the groups across splits, one for those within."""
  across = [g for g in groups if len({m.split for m in g}) > 1]
  within = [g for g in groups if len({m.split for m in g}) == 1]
  found = []
  for level, chosen, where in (
    ('warning', across, 'across splits: what is evaluated was trained on'),
    ('note', within, 'within a split'),
  ):
    if chosen:
      first = _some([f'{m.name} ({m.split})' for m in chosen[0]])
      text = f'{len(chosen)} group(s) of {kind} {where}; the first: {first}'
      if chosen is across:
        splits = collections.Counter(m.split for g in chosen for m in g)
        counts = ', '.join(f'{n} of {split}' for split, n in splits.items())
        text += f'; images concerned: {counts}. Take them out of one split'
      names = tuple(' = '.join(m.name for m in g) for g in chosen)
      kind_here = f'{kind}, leakage' if chosen is across else kind
      found.append(Finding(level, kind_here, '', text, names))
  return found


def near_duplicates(measurements) -> list[list[scan.Measurement]]:
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
  if len(shown) >= _FEW:  # Of fewer, the pair itself would be what is usual.
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, len(shown), (2, 20000))
    usual = np.sum(thumbs[a] * thumbs[b], 1)[a != b]
    threshold = max(_NEAR, 1 - 0.1 * (1 - np.median(usual)))
  labels = np.arange(len(shown))
  # In blocks, joined as they come: neither the whole matrix of a large set nor
  # all the pairs of a large group fit in memory.
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


def _neighbours(splits, config) -> list[Finding]:
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
    f'images whose names follow one another look alike (correlation {near:.2f} '
    f'against {usual:.2f} of any two), as in a stack or a video: a part held '
    'out at random leaks; use --config.data.holdout=last'
  )
  return [Finding('warning', NEIGHBOURS, '', text)]
