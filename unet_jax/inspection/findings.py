"""Faults of a data set, from the measurements of its examples.

An `error` makes a training or its evaluation fail or worthless, a `warning` is
very likely a mistake, a `note` is good to know.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import masks
from unet_jax.inspection import alignment, duplicates, records, verdict

# Files of a kind of error, and values, that are listed one by one.
_LISTED = 8
# Pairs of a prepared set whose fit is measured, unless they are so large (in
# pixels) that this would take long.
_FITTED = 64
_LARGE = 2**22

_Measurements = Sequence[records.Measurement]


def find(
  splits: Mapping[str, list[records.Measurement]],
  config: ml_collections.ConfigDict,
) -> list[records.Finding]:
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
  found += duplicates.find_exact(splits)
  found += duplicates.find_similar(splits, config)
  return records.by_level(found)


def find_in_prepared(
  sets: Mapping[str, Any], config: ml_collections.ConfigDict
) -> list[records.Finding]:
  """The cheap part of `find`, from the statistics of prepared sets.

  Args:
    sets: {split: Prepared}; the first is the one to train on.
    config: of the run.
  """
  found, splits = [], {}
  for split, dataset in sets.items():
    splits[split] = measurements = _prepared_measurements(split, dataset)
    _fit_some(dataset, measurements)
    if dataset.stats is not None:
      found += _contents(split, measurements, config)
      found += _classes(split, measurements, config, split == next(iter(sets)))
    found += _fit_of_the_set(split, measurements)
  found += duplicates.find_exact(splits)
  return records.by_level(found)


def _prepared_measurements(
  split: str, dataset: Any
) -> list[records.Measurement]:
  stats = dataset.stats
  if stats is None:  # Images that are decoded at each access have none.
    return [records.Measurement(split, i) for i in range(len(dataset))]
  return [
    records.Measurement(
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


def _fit_some(dataset: Any, measurements: _Measurements) -> None:
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


def _unusable(
  split: str, measurements: _Measurements, config: ml_collections.ConfigDict
) -> list[records.Finding]:
  """Broken files, unknown values, different sizes: all are errors."""
  skips = config.data.on_error == 'skip'
  by_kind = collections.defaultdict(list)
  for m in measurements:
    if m.error:
      kind, message = m.error
      # The message starts with the file that has the fault.
      name = m.name if message.startswith(f'{m.name} ') else m.mask_name
      by_kind[kind].append((m, message, name))
  found = []
  for kind, bad in by_kind.items():
    level = 'warning' if kind == 'broken' and skips else 'error'
    names = tuple(name for _, _, name in bad)
    if kind == 'unknown values':
      message = _unknown_values([m for m, *_ in bad], len(measurements), config)
      found.append(records.Finding(level, kind, split, message, names))
      continue
    # Each has its own reason; the last finding listed stands for the rest.
    listed = bad[:_LISTED]
    found += [
      records.Finding(level, kind, split, message, (name,))
      for _, message, name in listed
    ]
    if len(bad) > _LISTED:
      message = f'{listed[-1][1]} (and {len(bad) - _LISTED} more files)'
      rest = names[_LISTED - 1 :]
      found[-1] = records.Finding(level, kind, split, message, rest)
  return found


def _unknown_values(
  bad: _Measurements, total: int, config: ml_collections.ConfigDict
) -> str:
  """Returns the unknown values, how often they occur, and where first."""
  pixels: collections.Counter = collections.Counter()
  in_masks: collections.Counter = collections.Counter()
  first: dict[records.Value, str] = {}
  for m in bad:
    for value, count in masks.unknown_values(m.values, config.data).items():
      pixels[value] += count
      in_masks[value] += 1
      first.setdefault(value, m.mask_name)
  listed = [
    f'{value}: {n} pixels of {in_masks[value]} mask(s), first {first[value]}'
    for value, n in pixels.most_common(_LISTED)
  ]
  if len(pixels) > _LISTED:
    listed.append(f'and {len(pixels) - _LISTED} more values')
  message = bad[0].error[1]
  if len(bad) > 1 or len(pixels) > 1:
    message += (
      f' ({len(bad)} of {total} masks hold values outside the table: '
      f'{"; ".join(listed)})'
    )
  return message


def _files(split: str, measurements: _Measurements) -> list[records.Finding]:
  """Kinds of files that lose something, or that vary."""
  read = [m for m in measurements if m.image_file]
  images = [(m.name, m.image_file) for m in read]
  mask_files = [(m.mask_name, m.mask_file) for m in read]
  found = []

  def warn(kind: str, names: Sequence[str], text: str) -> None:
    if names:
      text = f'{names[0]} {text.format(count=len(names))}'
      found.append(records.Finding('warning', kind, split, text, tuple(names)))

  warn(
    'JPEG masks',
    [name for name, file in mask_files if file.kind.endswith('JPEG')],
    'is a JPEG, which changes the values of a mask along its borders: {count} '
    'mask(s); make them anew as PNG',
  )
  found += _rotated(split, read)
  pairs = [file for pair in zip(images, mask_files) for file in pair]
  warn(
    'several pages',
    [name for name, file in pairs if file.pages > 1],
    'has several pages, of which the first is read ({count} file(s)); store '
    'each page as a file',
  )
  found += _kinds(split, 'image', images) + _kinds(split, 'mask', mask_files)
  return found


def _rotated(split: str, read: _Measurements) -> list[records.Finding]:
  """Images and masks that viewers rotate differently."""
  turned = collections.defaultdict(list)
  for m in read:
    orientations = m.image_file.orientation, m.mask_file.orientation
    if orientations[0] != orientations[1]:
      turned[orientations].append(m.name)
  found = []
  for orientations, names in turned.items():
    image, mask = (records.ORIENTATIONS[n] for n in orientations)
    text = (
      f'{names[0]}: viewers show it {image}, its mask {mask}; both are read as '
      'stored. If the mask was drawn on what a viewer shows, store the image '
      f'that way ({len(names)} file(s))'
    )
    kind = 'EXIF rotation'
    found.append(records.Finding('warning', kind, split, text, tuple(names)))
  return found


def _kinds(
  split: str, what: str, files: Sequence[tuple[str, records.FileInfo]]
) -> list[records.Finding]:
  """Images, or masks, that are stored in different ways."""
  kinds = collections.defaultdict(list)
  for name, file in files:
    kinds[file.kind].append(name)
  if len(kinds) < 2:
    return []
  ranked = sorted(kinds.items(), key=lambda item: -len(item[1]))
  counts = ', '.join(f'{len(names)} {kind}' for kind, names in ranked)
  odd = tuple(name for _, names in ranked[1:] for name in names)
  text = f'the {what}s are stored in {len(kinds)} ways: {counts}'
  level = 'note'
  if len({file.is_deep for _, file in files}) > 1:
    text += '; the same value may mean another brightness in each'
    level = 'warning'
  return [records.Finding(level, f'kinds of {what}s', split, text, odd)]


def _contents(
  split: str, measurements: _Measurements, config: ml_collections.ConfigDict
) -> list[records.Finding]:
  """Images of one colour, and masks of one class or none."""
  found = _constant_images(split, measurements, config)
  total = len(measurements)
  mapped = [m for m in measurements if m.class_pixels is not None]
  ignored = [m.mask_name for m in mapped if not m.class_pixels[:-1].any()]
  if ignored:
    text = (
      f'{ignored[0]} is ignored as a whole: {len(ignored)} of {total} masks '
      'have no pixel to learn from; look at data.mask_values'
    )
    level = 'error' if len(ignored) == total else 'warning'
    kind = 'ignored mask'
    found.append(records.Finding(level, kind, split, text, tuple(ignored)))
  by_class = collections.defaultdict(list)
  for m in mapped:
    present = np.flatnonzero(m.class_pixels[:-1]).tolist()
    if len(present) == 1:
      by_class[present[0]].append(m.mask_name)
  classes = fields.class_names(config)
  for c, names in by_class.items():
    text = (
      f'{names[0]} has one class only, {classes[c]}: {len(names)} of {total} '
      'masks'
    )
    # A few empty masks are usual, where an image shows none of the objects.
    level = 'warning' if c else 'note'
    if len(names) == total and total > 1:
      level = 'error'
    kind = 'mask of one class' if c else 'empty mask'
    found.append(records.Finding(level, kind, split, text, tuple(names)))
  return found


def _constant_images(
  split: str, measurements: _Measurements, config: ml_collections.ConfigDict
) -> list[records.Finding]:
  constant = [m for m in measurements if m.is_constant]
  if not constant:
    return []
  text = f'{constant[0].name} is nearly one colour'
  is_deep = any(m.image_file and m.image_file.is_deep for m in constant)
  if is_deep and config.data.intensity != 'image':
    text += (
      '; its values fill a small part of the range of their type: '
      '--config.data.intensity=image scales each image by its own'
    )
  else:
    text += '; remove these pairs unless they are intended'
  text += f' ({len(constant)} of {len(measurements)} images)'
  names = tuple(m.name for m in constant)
  return [records.Finding('warning', 'constant image', split, text, names)]


def _sizes(
  split: str, measurements: _Measurements, config: ml_collections.ConfigDict
) -> list[records.Finding]:
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
    found.append(records.Finding('note', 'aspect ratio', split, text))
  shrink = np.median(np.sqrt(sizes.prod(1) / target.prod()))
  if shrink > 4:
    text = (
      f'the images are shrunk {shrink:.1f} times on the median; small objects '
      "may vanish. data.resize='patch' trains on windows of full resolution"
    )
    found.append(records.Finding('note', 'shrunk images', split, text))
  return found


def _classes(
  split: str,
  measurements: _Measurements,
  config: ml_collections.ConfigDict,
  is_first: bool,
) -> list[records.Finding]:
  """Classes that do not occur."""
  mapped = [m.class_pixels for m in measurements if m.class_pixels is not None]
  if not mapped:
    return []
  names = fields.class_names(config)
  absent = [name for name, n in zip(names, np.sum(mapped, 0)) if not n]
  if not absent:
    return []
  text = (
    f'no pixel of {split} is of class {records.some(absent, 8)}; look at '
    'data.num_classes and data.mask_values'
  )
  level = 'error' if is_first and len(absent) >= len(names) - 1 else 'warning'
  return [records.Finding(level, 'absent class', split, text, tuple(absent))]


def _fit_of_the_set(
  split: str, measurements: _Measurements
) -> list[records.Finding]:
  """Masks that fit better when all of them are flipped, moved or renumbered."""
  owners = {m.index: m.owner for m in measurements if m.owner is not None}
  fault = verdict.summarize([m.fit for m in measurements], owners)
  if fault is None:
    return []
  # Masks may mean things without edges: a person must judge.
  level, kind = 'error', f'masks {fault.kind}'
  if fault.kind == 'no fit':
    level, kind = 'warning', 'masks unfit'
  names = tuple(
    m.mask_name
    for m in measurements
    if m.fit and alignment.is_suspicious(m.fit)
  )
  return [records.Finding(level, kind, split, fault.message, names)]


def _fits(split: str, measurements: _Measurements) -> list[records.Finding]:
  """Single masks that fit their images badly."""
  fits = records.by_suspicion(measurements)
  odd = [m for m in fits if alignment.is_suspicious(m.fit)]
  if not odd:
    return []
  first, fit = odd[0], odd[0].fit
  scores = f'{fit.best_score:.2f} against {fit.score:.2f}'
  how = f'fits its image better {fit.best} ({scores})'
  if fit.best == alignment.OTHER:
    how = f'fits its image worse than the mask of another one ({scores})'
    if first.owner is not None and first.owner != first.index:
      how += f', such as {measurements[first.owner].mask_name}'
  elif fit.best_score <= fit.score:
    how = f'fits its image no better than chance ({fit.score:.2f})'
  text = (
    f'{first.mask_name} {how}; {len(odd)} of {len(fits)} masks do not lie on '
    'the edges of their images, or not well (about 1 in 100 right ones is '
    'among them): look at them in the report'
  )
  names = tuple(m.mask_name for m in odd)
  kind = 'mask beside the edges'
  return [records.Finding('warning', kind, split, text, names)]
