"""Which examples the page of an inspection shows, and their pictures."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from unet_jax.data import examples, mask_colors, masks, prepared, resize
from unet_jax.inspection import records, suggest
from unet_jax.runtime import errors

# Longest edge of the pictures that the page is made from, in pixels.
_PICTURE = 480
# Values of a mask without a table that get a colour of their own.
_MOST_VALUES = 200


def pictures(
  by_split: Mapping[str, Sequence[records.Measurement]],
  by_source: Mapping[str, examples.Source],
  found: Iterable[records.Finding],
  suggestions: Iterable[suggest.Suggestion],
  config: ml_collections.ConfigDict,
) -> list[dict[str, Any]]:
  """The examples to show: the worst fits, those of findings, and the first.

  Masks with unknown values are drawn by the suggested table.
  """
  data = config.data.copy_and_resolve_references()
  for s in suggestions:
    if s.field in ('data.mask_values', 'data.num_classes'):
      data[s.field.removeprefix('data.')] = s.value
  limit = config.inspect.num_examples
  every = [m for ms in by_split.values() for m in ms]
  by_name = {name: m for m in every for name in (m.name, m.mask_name)}
  chosen: dict[tuple[str, int], tuple[records.Measurement, str]] = {}

  def choose(m: records.Measurement | None, caption: str) -> None:
    if m is not None and len(chosen) < limit:
      chosen.setdefault((m.split, m.index), (m, caption))

  for m in records.by_suspicion(every)[: limit // 2]:
    caption = f'score {m.fit.score:.2f}; {m.fit.best}: {m.fit.best_score:.2f}'
    if m.owner not in (None, m.index):
      caption += f'; better: {by_split[m.split][m.owner].mask_name}'
    choose(m, caption)
  of_kind: collections.Counter[str] = collections.Counter()
  for f in found:
    # Groups of duplicates are written 'a = b'.
    for name in [n for names in f.names for n in names.split(' = ')][:3]:
      if of_kind[f.kind] < 3:
        choose(by_name.get(name), f.kind)
        of_kind[f.kind] += 1
  for measurements in by_split.values():
    for m in measurements[: max(limit // 8, 1)]:
      choose(m, m.split)
  return [
    picture
    for m, caption in chosen.values()
    if (
      picture := _picture(by_source[m.split], m, caption, [config.data, data])
    )
  ]


def _picture(
  source: examples.Source,
  m: records.Measurement,
  caption: str,
  tables: Sequence[ml_collections.ConfigDict],
) -> dict[str, Any] | None:
  """An example as it is stored; None where it cannot be read.

  Its mask is mapped by the first of the sections `data` that knows its values,
  or else drawn with a colour for each of its values, the rarer ones the later.
  """
  try:
    example = source[m.index]
  except errors.UserError:
    return None
  mask, num_classes, note = None, 0, ''
  try:
    prepared.check_sizes(example, tables[0])
    mask, num_classes, note = _drawn(example['mask'], m.mask_name, tables)
  except errors.UserError:
    pass  # Of another size.
  image = example['image']
  # Not much larger than in the page: two dozen scans of tissue fill a memory.
  scale = _PICTURE / max(image.shape[:2])
  if scale < 1:
    size = tuple(max(round(n * scale), 1) for n in image.shape[:2])
    blank = np.zeros(image.shape[:2], np.uint8) if mask is None else mask
    image, small = resize.resize_pair(image, blank, size, 'stretch')
    mask = None if mask is None else small
  return {
    'name': m.name,
    'caption': caption,
    'note': note,
    'image': image,
    'mask': mask,
    'num_classes': num_classes,
  }


def _drawn(
  values: np.ndarray,
  name: str,
  tables: Sequence[ml_collections.ConfigDict],
) -> tuple[np.ndarray, int, str]:
  """Returns classes, uint8 [H, W], their number, and a note for people."""
  notes = ('', 'classes of the suggested data.mask_values')
  for data, note in zip(tables, notes):
    try:
      mask = masks.map_mask(values, data.mask_values, data.num_classes, name)
    except errors.UserError:
      continue
    return mask, max(data.num_classes, 2), note
  numbers = mask_colors.to_numbers(values) if values.ndim == 3 else values
  _, inverse, counts = np.unique(
    numbers, return_inverse=True, return_counts=True
  )
  rank = np.empty(len(counts), int)
  rank[np.argsort(-counts, kind='stable')] = np.arange(len(counts))
  # Of a photograph in place of a mask, the most frequent values.
  ranks = np.minimum(rank, _MOST_VALUES)[inverse].reshape(numbers.shape)
  number = min(len(counts), _MOST_VALUES + 1)
  return ranks.astype(np.uint8), number, f'a colour for each of {number} values'
