"""Some files of a set as they are stored, for the config that is suggested.

Do masks number objects, what do they lose when they are resized, and which
values do images use that have more than 0..255.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import (
  decode,
  examples,
  image_levels,
  intensity,
  masks,
  resize,
  sources,
  stored,
)
from unet_jax.inspection import records
from unet_jax.runtime import errors

# What a type's values are scaled from; others have no range of their own.
_TYPE_LIMITS = {
  'uint8': (0, 255),
  'uint16': (0, 65535),
  'float32': (0, 1),
  'float64': (0, 1),
}
# Share of the type's range that images should use, and the ratio of the spans
# of images above which they have no unit in common.
_FILLS, _SAME_UNITS = 0.25, 4
# Places in `image_levels.Levels.values`: near the darkest and the brightest.
_LOW, _HIGH = 3, -4
# Share of the images that must have the value that stands for no data.
_NO_DATA = 0.3
# Masks that are looked at, evenly spread over a split.
_SAMPLES = 24
# Fewer values than this are classes; a class mask has no values above a byte's.
_FEW_VALUES, _LARGEST_CLASS = 8, 255
# Grey values are objects where nearly all are one connected part in each mask.
# And most masks must count from 1 on, with varied ends; or values must be in
# few masks: in two, or, where most masks have several, in the second share.
_ONE_PART, _MOST = 0.85, 0.8
_FEW_MASKS, _RARE, _TINY_SET = 2, 0.1, 0.25
# Fewest colours that may be objects' own.
_MANY_COLORS = 20
# How often that is wrong and right: experiments/data_faults/ids.py.
OBJECT_ODDS = (
  '0 of 400 sets of classes are taken for objects, 399 of 400 of objects are'
)


def read_masks(
  source: examples.Source, data: ml_collections.ConfigDict
) -> list[np.ndarray]:
  """Returns some masks, as stored, of the pairs of a split that can be read."""

  def read(example: examples.Example) -> np.ndarray:
    content, name = example['mask'], example['mask_name']
    if isinstance(content, np.ndarray):
      return content
    return decode.decode_mask(content, name, data, example.get('page', 0)).array

  return _read_some(source, read)


def _read_some(
  source: examples.Source, read: Callable[[examples.Example], Any]
) -> list[Any]:
  """Calls a function with some files; those that it refuses are left out."""
  found = []
  spread = np.linspace(0, len(source) - 1, _SAMPLES, dtype=int)
  for index in np.unique(spread).tolist():
    try:
      found.append(read(source.read(index)))
    except errors.UserError:
      continue  # The scan reports it.
  return found


def choose_pages(
  config: ml_collections.ConfigDict,
) -> tuple[dict[str, Any], str]:
  """Returns data.pages for files of several images, and why.

  Their masks hold as many; pairs of which that is not true stay errors.
  """
  if config.data.source != 'folder' or config.data.pages != 'one':
    return {}, ''
  config = config.copy_and_resolve_references()
  config.data.update(pages='images', holdout='random')
  try:
    source = sources.make_source(config, config.data.train_split, [])
  except errors.UserError:
    return {}, ''  # The scan reports it.
  groups = source.groups
  files = len(source) if groups is None else len(np.unique(groups))
  if files == len(source):
    return {}, ''
  return {'pages': 'images'}, (
    f'{files} files hold {len(source)} images, and their masks as many'
  )


def choose_intensity(
  source: examples.Source, data: ml_collections.ConfigDict
) -> tuple[dict[str, Any], str]:
  """Returns {field of `data`: value} for images of other values than 0..255.

  Returns:
    Nothing where the present fields are right or are not the defaults; and why.
  """

  def read(example: examples.Example) -> image_levels.Levels | None:
    content, name = example['image'], example['name']
    if isinstance(content, np.ndarray):
      return None
    found = stored.read(content, name, example.get('page', 0))
    # Of files that are refused, the first page says little of the others.
    decode.check_pages(found.pages, name, data)
    return decode.measure(found, name, data)

  if data.intensity != 'dtype':
    return {}, ''
  levels = [x for x in _read_some(source, read) if x and x.num_pixels]
  deep = [x for x in levels if x.kind != 'uint8']
  if 2 * len(deep) <= len(levels):
    return {}, ''
  nodata = _find_no_data(deep)
  if nodata and not data.nodata:
    data = data.copy_and_resolve_references()
    data.nodata = nodata
    fields, why = choose_intensity(source, data)
    listed = ', '.join(map(str, nodata))
    why = f'{why}{"; " if why else ""}{listed} is far off all other values'
    return {**fields, 'nodata': nodata}, f'{why}: no data'
  low, high = image_levels.range_of_set(deep) or (0, 1)
  limits = [_TYPE_LIMITS.get(x.kind, (0, 0)) for x in deep]
  fills = all(
    a <= low and high <= b and high - low >= _FILLS * (b - a) for a, b in limits
  )
  if fills:
    return {}, ''
  spans = [x.values[_HIGH] - x.values[_LOW] for x in levels]
  least, most = np.percentile(spans, (10, 90))
  ends = f'{intensity.text_of(low)} to {intensity.text_of(high)}'
  kinds = ', '.join(sorted({x.kind for x in levels}))
  if most > _SAME_UNITS * least or 'uint8' in kinds.split(', '):
    return {'intensity': 'image'}, (
      f'the values ({kinds}, {ends}) of some images span {most:.4g}, of others '
      f'{least:.4g}: they have no unit in common'
    )
  return {'intensity': 'range', 'intensity_range': (low, high)}, (
    f'all but a thousandth of the values ({kinds}) at each end are in {ends}'
  )


def _find_no_data(levels: Sequence[image_levels.Levels]) -> tuple:
  """Returns the value that stands for no data, or ()."""
  named = [x.stray if x.unlisted is None else x.unlisted for x in levels]
  found = [value for value in named if value is not None]
  top = collections.Counter(found).most_common(1)
  if not top or top[0][1] < _NO_DATA * len(levels):
    return ()
  value = top[0][0]
  return (int(value) if value == int(value) else value,)


def are_objects(
  values: Mapping[records.Value, int],
  in_masks: Mapping[records.Value, int],
  sampled: Sequence[np.ndarray],
) -> bool:
  """Whether masks number objects: the values are names, not classes.

  Args:
    values: pixels of each value in all masks.
    in_masks: how many masks have it.
    sampled: some of the masks, as stored.
  """
  others = [v for v in values if v not in (0, (0, 0, 0))]
  if len(others) < _FEW_VALUES:
    return False
  num_masks = max(in_masks.values())
  typical = float(np.median([in_masks[v] for v in others]))
  if isinstance(others[0], tuple):
    # Classes have colours of their own, objects random ones.
    return len(others) >= _MANY_COLORS and typical <= _RARE * num_masks
  if max(others) > _LARGEST_CLASS:
    return True
  flat = [mask for mask in sampled if mask.ndim == 2 and mask.any()]
  if not flat:
    return False
  found = [np.unique(mask[mask != 0]) for mask in flat]
  counts = np.array([len(ids) for ids in found])
  if counts.sum() < _ONE_PART * sum(_count_parts(mask) for mask in flat):
    return False
  from_one = np.mean([ids[-1] == len(ids) for ids in found])
  if from_one >= _MOST and counts.max() >= max(2, 1.5 * counts.min()):
    return True
  few = float(_FEW_MASKS)
  if np.median(counts) > 1:  # Else classes may have some images each.
    few = max(few, _RARE * num_masks)
  return typical <= min(few, _TINY_SET * num_masks)


def _count_parts(mask: np.ndarray) -> int:
  """Connected parts (8 neighbours) of equal values other than 0."""
  from skimage import measure  # Slow to import, and few sets need it.

  return int(measure.label(mask, background=0, connectivity=2).max())


def kept_iou(
  sampled: Sequence[np.ndarray],
  size: tuple[int, int] | None,
  data: ml_collections.ConfigDict,
) -> dict[int, float]:
  """IoU that the right masks still reach once they were resized and back.

  Args:
    sampled: some masks, as stored.
    size: that they are stretched to.
    data: its mask_values and num_classes map them.

  Returns:
    {class: dataset IoU} of the classes that occur.
  """
  count = max(data.num_classes, 2)
  both, either = np.zeros(count), np.zeros(count)
  for values in sampled:
    try:
      mask = masks.map_mask(values, data.mask_values, data.num_classes, '')
    except errors.UserError:
      continue
    small = resize.resize_labels(mask, size or mask.shape, 'stretch', 0)
    back = resize.resize_labels(small, mask.shape, 'stretch', 0)
    counted = mask != fields.IGNORE_LABEL
    for c in np.unique(mask[counted]).tolist():
      right, ours = mask == c, (back == c) & counted
      both[c] += np.sum(right & ours)
      either[c] += np.sum(right | ours)
  return {
    c: float(both[c] / either[c]) for c in np.flatnonzero(either).tolist()
  }
