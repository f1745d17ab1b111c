"""Faults of a data set, from the measurements of its examples.

An `error` makes a training or its evaluation fail or worthless, a `warning` is
very likely a mistake, a `note` is good to know.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import decode, image_levels, intensity, mask_advice, masks
from unet_jax.inspection import (
  alignment,
  classes,
  duplicates,
  records,
  second_look,
  verdict,
)
from unet_jax.runtime import errors

# Share of the masks of three or more values that must look smoothed.
_SMOOTHED = 0.1
# Files of a kind of error, and values, that are listed one by one.
_LISTED = 8


def find(
  splits: Mapping[str, list[records.Measurement]],
  config: ml_collections.ConfigDict,
  held_out: bool = True,
) -> list[records.Finding]:
  """Returns all findings, errors first; the first split is trained on.

  Args:
    splits: measurements of each.
    config: its `data.skip_checks` are left out.
    held_out: whether the program chose the examples not trained on.
  """
  found = []
  every = [m for measurements in splits.values() for m in measurements]
  for split, measurements in splits.items():
    checks = _Checks(split, measurements, config, every)
    checks.unusable()
    checks.levels()
    checks.files()
    checks.contents()
    checks.sizes()
    checks.classes(is_first=split == next(iter(splits)))
    checks.fits()
    found += checks.found
  found += duplicates.find_exact(splits)
  found += duplicates.find_similar(splits, config, held_out)
  return records.wanted(found, config.data.skip_checks)


def find_in_prepared(
  sets: Mapping[str, Any], config: ml_collections.ConfigDict
) -> list[records.Finding]:
  """The cheap part of `find`, from the statistics of prepared sets."""
  found, splits = [], {}
  for split, dataset in sets.items():
    splits[split] = measurements = records.of_prepared(split, dataset)
    second_look.fit_prepared(dataset, measurements)
    checks = _Checks(split, measurements, config)
    if dataset.stats is not None:
      checks.contents()
      checks.classes(is_first=split == next(iter(sets)))
    checks.fit_of_the_set()
    found += checks.found
  found += duplicates.find_exact(splits)
  found += duplicates.find_series(splits, sets, config)
  found += _palettes(sets, config)
  return records.wanted(found, config.data.skip_checks)


def _palettes(
  sets: Mapping[str, Any], config: ml_collections.ConfigDict
) -> list[records.Finding]:
  """Palettes that differ from set to set; within one, preparing finds it."""
  palettes = masks.Palettes(config.data)
  try:
    for dataset in sets.values():
      palettes.update(dataset.palette)
  except errors.UserError as e:
    return [records.Finding('error', 'palettes differ', '', str(e))]
  return []


@dataclasses.dataclass
class _Checks:
  """Checks of one split, which collect their findings."""

  _split: str
  _measurements: records.Measurements
  _config: ml_collections.ConfigDict
  # Of all splits, which must have one range and one table.
  _every: records.Measurements = ()
  found: list[records.Finding] = dataclasses.field(default_factory=list)

  @property
  def _levels(self) -> list[image_levels.Levels]:
    return [m.levels for m in self._every if m.levels]

  def _add(
    self, level: str, kind: str, message: str, names: Iterable[str] = ()
  ) -> None:
    finding = records.Finding(level, kind, self._split, message, tuple(names))
    self.found.append(finding)

  def unusable(self) -> None:
    """Broken files, unknown values, different sizes: all are errors."""
    by_kind = collections.defaultdict(list)
    for m in self._measurements:
      if m.error:
        kind, message = m.error
        # The message starts with the file that has the fault.
        name = m.name if message.startswith(f'{m.name} ') else m.mask_name
        by_kind[kind].append((m, message, name))
    for kind, bad in by_kind.items():
      skips = kind == 'broken' and self._config.data.on_error == 'skip'
      level = 'warning' if skips else 'error'
      reasons = records.by_reason(bad, _LISTED)
      names = [name for *_, name in bad]
      if kind == 'unknown values':
        text = classes.describe_unknown(
          [m for m, *_ in bad], self._measurements, self._every, self._config
        )
        reasons = [(text, names)]
      elif kind == 'palettes differ':
        reasons = [(f'{bad[0][1]} ({len(bad)} masks with palettes)', names)]
      elif kind == 'range of values':
        reasons = [(self._with_range(bad[0][1], len(bad)), names)]
      for message, names in reasons:
        self._add(level, kind, message, names)

  def _with_range(self, message: str, count: int) -> str:
    """Puts the range that was measured in a message that asks for one."""
    text = image_levels.range_text(self._levels)
    message = message.replace(intensity.MEASURE, '')
    message = message.replace(intensity.LOW_HIGH, text)
    return f'{message} ({count} of {len(self._measurements)} images)'

  def levels(self) -> None:
    """Values of images, and what is lost of them."""
    levels = [m.levels for m in self._measurements if m.levels]
    read = [m.levels for m in self._measurements if m.levels and not m.error]
    data = self._config.data
    for line in image_levels.lines_on_set(read, data, of_all=self._levels):
      self._add('warning', 'lost levels', line)
    kinds = sorted({image.kind for image in levels} - {'uint8'})
    if kinds:
      share = f'all but {image_levels.TAIL:.1%} of the pixels at each end'
      text = f'the images hold {", ".join(kinds)}; {share} are in the range '
      text += image_levels.range_text(levels)
      self._add('note', 'stored values', text)

  def files(self) -> None:
    """Kinds of files that lose something, or that vary."""
    read = [m for m in self._measurements if m.image_file]
    images = [(m.name, m.image_file) for m in read]
    mask_files = [(m.mask_name, m.mask_file) for m in read]
    if lossy := [n for n, file in mask_files if decode.is_lossy(file.kind)]:
      text = mask_advice.line_on_loss(lossy, len(read))
      self._add('warning', 'JPEG masks', text, lossy)
    else:
      self._smoothed()
    if self._config.data.orientation == 'stored':
      self._orientations(read)
    self._kinds('image', images)
    self._kinds('mask', mask_files)

  def _smoothed(self) -> None:
    """Masks with values that smoothing left and that are classes."""
    data, measured = self._config.data, self._measurements
    is_bad = lambda m: mask_advice.learns_smoothed(m.smoothed, data)
    bad = [m for m in measured if is_bad(m) and not m.error]
    count = sum(bool(m.drawn) for m in measured)
    if not bad or len(bad) < _SMOOTHED * count:
      return
    names, left = zip(*((m.mask_name, m.smoothed) for m in bad))
    drawn = classes.drawn_values(measured)
    text = mask_advice.line_on_smoothing(names, left, count, drawn, data)
    self._add('warning', 'smoothed masks', text, names)

  def _orientations(self, read: records.Measurements) -> None:
    """Images and masks that viewers rotate differently."""
    by_orientations = collections.defaultdict(list)
    for m in read:
      orientations = m.image_file.orientation, m.mask_file.orientation
      by_orientations[orientations].append(m.name)
    for (image, mask), names in by_orientations.items():
      if image != mask:
        words = records.ORIENTATIONS
        text = (
          f'{names[0]}: viewers show it {words[image]}, its mask '
          f'{words[mask]}; both are read as stored. If the mask was drawn on '
          'what a viewer shows, set --config.data.orientation=upright '
          f'({len(names)} file(s))'
        )
        self._add('warning', 'EXIF rotation', text, names)

  def _kinds(
    self, what: str, files: Sequence[tuple[str, records.FileInfo]]
  ) -> None:
    """Images, or masks, that are stored in different ways."""
    kinds = collections.defaultdict(list)
    for name, file in files:
      kinds[file.kind].append(name)
    if len(kinds) < 2:
      return
    ranked = sorted(kinds.items(), key=lambda item: -len(item[1]))
    counts = ', '.join(f'{len(names)} {kind}' for kind, names in ranked)
    odd = [name for _, names in ranked[1:] for name in names]
    text = f'the {what}s are stored in {len(kinds)} ways: {counts}'
    level = 'note'
    if len({file.is_deep for _, file in files}) > 1:
      text += '; the same value may mean another brightness in each'
      level = 'warning'
    self._add(level, f'kinds of {what}s', text, odd)

  def contents(self) -> None:
    """Images of one colour, and masks of one class or none."""
    self._constant_images()
    total = len(self._measurements)
    mapped = [m for m in self._measurements if m.class_pixels is not None]
    ignored = [m.mask_name for m in mapped if not m.class_pixels[:-1].any()]
    if ignored:
      text = (
        f'{ignored[0]} is ignored as a whole: {len(ignored)} of {total} masks '
        'have no pixel to learn from; look at data.mask_values'
      )
      level = 'error' if len(ignored) == total else 'warning'
      self._add(level, 'ignored mask', text, ignored)
    by_class = collections.defaultdict(list)
    for m in mapped:
      present = np.flatnonzero(m.class_pixels[:-1]).tolist()
      if len(present) == 1:
        by_class[present[0]].append(m.mask_name)
    classes = fields.class_names(self._config)
    for c, names in by_class.items():
      text = (
        f'{names[0]} has one class only, {classes[c]}: {len(names)} of '
        f'{total} masks'
      )
      # A few empty masks are usual, where an image shows none of the objects;
      # and tiles of a map often show one of many classes.
      level = 'warning' if c and len(classes) == 2 else 'note'
      if len(names) == total and total > 1:
        level = 'error'
      kind = 'mask of one class' if c else 'empty mask'
      self._add(level, kind, text, names)

  def _constant_images(self) -> None:
    """Where masks show objects; empty ground may well be of one colour."""
    constant = [m for m in self._measurements if m.is_constant]
    shown = [
      m
      for m in constant
      if m.class_pixels is None or np.count_nonzero(m.class_pixels[:-1]) > 1
    ]
    if not constant:
      return
    listed = shown or constant
    text = (
      f'{listed[0].name} is nearly one colour as it is read: {len(listed)} of '
      f'{len(self._measurements)} images'
    )
    if shown:
      text += ', whose masks show several classes'
    is_deep = any(m.image_file and m.image_file.is_deep for m in listed)
    if is_deep and self._config.data.intensity == 'dtype':
      text += (
        '; their values fill a small part of the range of their type: '
        + image_levels.range_flags(self._levels)
      )
    elif shown:
      text += '; look at these files'
    level = 'warning' if shown else 'note'
    self._add(level, 'constant image', text, [m.name for m in listed])

  def sizes(self) -> None:
    """Images that data.image_size distorts or shrinks a lot."""
    data = self._config.data
    sizes = np.array([m.image_size for m in self._measurements if m.image_size])
    if not len(sizes) or data.resize == 'patch':
      return
    target = np.array(data.image_size)
    ratio = (sizes[:, 1] / sizes[:, 0]) / (target[1] / target[0])
    distorted = np.mean(np.maximum(ratio, 1 / ratio) > 1.5)
    if data.resize == 'stretch' and distorted > 0.01:
      text = (
        f'{distorted:.0%} of the images have an aspect ratio that '
        f'data.image_size={tuple(target.tolist())} changes by more than half; '
        "data.resize='pad' or 'crop' keeps it"
      )
      self._add('note', 'aspect ratio', text)
    shrink = np.median(np.sqrt(sizes.prod(1) / target.prod()))
    if shrink > 4:
      text = (
        f'the images are shrunk {shrink:.1f} times on the median; small '
        "objects may vanish. data.resize='patch' trains on windows of full "
        'resolution'
      )
      self._add('note', 'shrunk images', text)

  def classes(self, is_first: bool) -> None:
    """Classes that do not occur."""
    pixels = [
      m.class_pixels for m in self._measurements if m.class_pixels is not None
    ]
    if not pixels:
      return
    names = fields.class_names(self._config)
    absent = [name for name, n in zip(names, np.sum(pixels, 0)) if not n]
    if absent:
      text = (
        f'no pixel of {self._split} is of class {errors.some(absent, 8)}; '
        'look at data.num_classes and data.mask_values'
      )
      fails = is_first and len(absent) >= len(names) - 1
      self._add('error' if fails else 'warning', 'absent class', text, absent)

  def fit_of_the_set(self) -> bool:
    """Masks that fit better if all of them are flipped, moved or renumbered."""
    measurements = self._measurements
    owners = {m.index: m.owner for m in measurements if m.owner is not None}
    fits = [m.fit for m in measurements]
    if not verdict.is_suspected(fits, owners):
      return False
    fault = verdict.summarize(fits, [m.look for m in measurements], owners)
    if fault is None:
      return False
    # Masks may mean things that no pixel shows: a person must judge.
    level, kind = 'warning', f'masks {fault.kind}'
    names = [m.mask_name for m in measurements if m.is_suspicious]
    self._add(level, kind, fault.with_odds(), names)
    return True

  def fits(self) -> None:
    """All masks that fit badly, or else single ones."""
    if self.fit_of_the_set():
      return
    fitted = records.by_suspicion(self._measurements)
    odd = [m for m in fitted if m.is_suspicious]
    if not odd:
      return
    first, fit = odd[0], odd[0].fit
    scores = f'{fit.best_score:.2f} against {fit.score:.2f}'
    how = f'fits its image better {fit.best} ({scores})'
    if fit.best == alignment.OTHER:
      how = f'fits its image worse than the mask of another one ({scores})'
      if first.owner is not None and first.owner != first.index:
        how += f', such as {self._measurements[first.owner].mask_name}'
    elif fit.best_score <= fit.score:
      how = f'fits its image no better than chance ({fit.score:.2f})'
    text = (
      f'{first.mask_name} {how}; {len(odd)} of {len(fitted)} masks neither lie '
      'on the edges of their images nor on pixels like those under the other '
      f'masks: look at them in the report ({verdict.ODDS_OF_PAIRS})'
    )
    names = [m.mask_name for m in odd]
    self._add('warning', 'mask beside the edges', text, names)
