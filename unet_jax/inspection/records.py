"""Records of an inspection: files, measurements of examples, and findings."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from unet_jax.data import image_levels
from unet_jax.data import smoothed as smoothed_lib
from unet_jax.inspection import alignment, appearance
from unet_jax.runtime import errors

# Below this standard deviation (of values in 0..1, in every channel) an image
# shows nothing: two of 255 levels.
_CONSTANT = 2 / 255
LEVELS = ('error', 'warning', 'note')
# How a viewer shows an image, by its EXIF orientation.
ORIENTATIONS = {
  1: 'as stored',
  2: 'flipped left to right',
  3: 'turned by 180 degrees',
  4: 'flipped upside down',
  5: 'transposed',
  6: 'turned by 90 degrees clockwise',
  7: 'transposed along the other diagonal',
  8: 'turned by 90 degrees counter-clockwise',
}

# Of a mask as stored: a number or (r, g, b); {value: pixels}.
Value = Any
Values = dict[Value, int]


@dataclasses.dataclass(frozen=True)
class FileInfo:
  """The header of an image file.

  Attributes:
    kind: colours, bits and format, such as `RGB 8 bit JPEG`.
    orientation: EXIF's or TIFF's, see ORIENTATIONS.
    pages: images that it holds.
  """

  kind: str
  orientation: int = 1
  pages: int = 1

  @property
  def is_deep(self) -> bool:
    """Whether there are more than 8 bits in a channel."""
    return bool(re.search(r'\b(12|16|32|64) bit', self.kind))


@dataclasses.dataclass
class Measurement:
  """Measurements of one example; None where there could be none.

  Attributes:
    split: its name in the source.
    index: in the split.
    name, mask_name: for people.
    error: (kind, message) of the fault that makes it unusable.
    image_file, mask_file: headers, where there are files.
    image_size, mask_size: height and width in pixels.
    digest: of the image as it is prepared, `digests.digest`; of its file where
      a training prepares none.
    thumbnail: float32 [16 * 16], grey, without mean and slope, of norm 1 (0
      if nothing is left).
    detail: uint8 [64, 64], the middle channel.
    mean, std: per channel, of values in 0..1.
    levels: what the image stores, whatever data.intensity makes of it.
    values: pixels of each value of the mask as stored, at most 300 values.
    smoothed: what smoothing left in it, if it did; drawn: the values of areas
      of a mask that has three or more.
    palette: uint8 RGB [N, 3], where the values are indices of one.
    class_pixels: int64 [classes + 1], the last are ignored.
    instances: int64 [classes]: the objects of each class, from the instance
      mask where there is one, else connected (8 neighbours) parts.
    fit: how well the mask's borders lie on the image's edges.
    owner: index of the pair whose mask fits the image best.
    look: what the image's pixels say of the mask.
    is_suspicious: whether a person should look at how the mask fits: its
      borders do not, and its pixels are not like those of the other masks.
      This and the two above are filled in by `second_look.look_again`.
  """

  split: str
  index: int
  name: str = ''
  mask_name: str = ''
  # `| Any`: callers filter by `is not None`, which no type checker follows.
  error: tuple[str, str] | Any = None
  image_file: FileInfo | Any = None
  mask_file: FileInfo | Any = None
  image_size: tuple[int, int] | Any = None
  mask_size: tuple[int, int] | Any = None
  digest: bytes | Any = None
  thumbnail: np.ndarray | Any = None
  detail: np.ndarray | Any = None
  mean: np.ndarray | Any = None
  std: np.ndarray | Any = None
  levels: image_levels.Levels | Any = None
  values: Values | Any = None
  smoothed: smoothed_lib.Smoothed | Any = None
  drawn: tuple[int, ...] = ()
  palette: np.ndarray | Any = None
  class_pixels: np.ndarray | Any = None
  instances: np.ndarray | Any = None
  fit: alignment.Fit | Any = None
  owner: int | None = None
  look: appearance.Look | None = None
  is_suspicious: bool = False

  @property
  def is_constant(self) -> bool:
    """Whether the image is known to be nearly one colour."""
    return self.std is not None and bool(self.std.max() < _CONSTANT)


Measurements = Sequence[Measurement]


def of_prepared(split: str, dataset: Any) -> list[Measurement]:
  """Returns what a prepared set knows of its examples."""
  stats = dataset.stats
  if stats is None:  # Images that are decoded at each access have none.
    return [
      Measurement(split, i, m.name, digest=m.content.encode())
      for i, m in enumerate(dataset.images())
    ]
  return [
    Measurement(
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


def by_suspicion(measurements: Iterable[Measurement]) -> list[Measurement]:
  """Returns the measurements that have a fit, the most suspicious first."""
  fitted = [m for m in measurements if m.fit is not None]
  return sorted(fitted, key=lambda m: (not m.is_suspicious, -m.fit.suspicion))


def by_reason(
  bad: Iterable[tuple[Measurement, str, str]], most: int
) -> list[tuple[str, list[str]]]:
  """Joins faults of one reason: messages that differ by names and sizes.

  Args:
    bad: measurement, message and the file that has the fault.
    most: number of results; the last one stands for all other reasons.

  Returns:
    The first message of each reason with the number of the others, and files.
  """
  reasons: dict[str, list[tuple[str, str]]] = {}
  for m, message, name in bad:
    reason = message.replace(m.name, '').replace(m.mask_name, '')
    reason = re.sub(r'\d+ x \d+', '', reason)
    if reason not in reasons and len(reasons) == most:
      reason = next(reversed(reasons))
    reasons.setdefault(reason, []).append((message, name))
  found = []
  for same in reasons.values():
    message, names = same[0][0], [name for _, name in same]
    if names[1:]:
      message += f' (and {len(names) - 1} more: {errors.some(names[1:])})'
    found.append((message, names))
  return found


@dataclasses.dataclass(frozen=True)
class Finding:
  """A fault of a data set, or a fact worth knowing.

  Attributes:
    level: one of LEVELS.
    kind: a few words that all findings of a kind share.
    split: where; '' for the whole set.
    message: one line: what, where, how to fix it.
    names: all files concerned.
  """

  level: str
  kind: str
  split: str
  message: str
  names: tuple[str, ...] = ()


# The check, one of `fields.CHECKS`, that finds a kind of fault. Kinds that are
# not here (files that cannot be used) cannot be left out.
_CHECKS = {
  'masks turned': 'turned',
  'masks stretched': 'stretched',
  'masks moved': 'moved',
  'masks shuffled': 'shuffled',
  'masks unfit': 'unfit',
  'mask beside the edges': 'edges',
  'constant image': 'constant',
  'lost levels': 'levels',
  'stored values': 'levels',
  'ignored mask': 'ignored',
  'mask of one class': 'one_class',
  'empty mask': 'one_class',
  'absent class': 'absent',
  'same files in two splits': 'duplicates',
  'exact duplicates': 'duplicates',
  'exact duplicates, leakage': 'duplicates',
  'contradicting masks': 'duplicates',
  'near duplicates': 'near_duplicates',
  'near duplicates, leakage': 'near_duplicates',
  'turned copies': 'near_duplicates',
  'turned copies, leakage': 'near_duplicates',
  'neighbours look alike': 'neighbours',
  'smoothed masks': 'smoothed',
  'JPEG masks': 'files',
  'EXIF rotation': 'files',
  'kinds of images': 'files',
  'kinds of masks': 'files',
  'aspect ratio': 'sizes',
  'shrunk images': 'sizes',
}


def wanted(
  findings: Iterable[Finding], skipped: Sequence[str]
) -> list[Finding]:
  """Returns the findings of checks that are not skipped, errors first.

  Each that asks for an action names the switch of its check.
  """
  kept = []
  for f in findings:
    check = _CHECKS.get(f.kind)
    if check in skipped:
      continue
    if check and f.level != 'note':
      switch = f'; --config.data.skip_checks={check} leaves this check out'
      f = dataclasses.replace(f, message=f.message + switch)
    kept.append(f)
  return by_level(kept)


def by_level(findings: Iterable[Finding]) -> list[Finding]:
  """Returns the findings, errors first."""
  return sorted(findings, key=lambda f: LEVELS.index(f.level))
