"""Looks again at pairs that are suspicious, of a source or a prepared set."""

import concurrent.futures
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import examples, mask_colors, masks, prepared
from unet_jax.inspection import alignment, records, verdict
from unet_jax.runtime import errors

# Images for which the best mask of the set is searched.
_OWNERS = 32
# Pairs of a prepared set whose fit is measured, unless they are so large (in
# pixels) that this would take long.
_FITTED = 64
_LARGE = 2**22


def look_again(
  source: examples.Source,
  measurements: records.Measurements,
  config: ml_collections.ConfigDict,
) -> None:
  """Looks at images again where the edges speak against masks.

  Searches the mask of the set that fits an image best, and measures what the
  pixels say of some masks. The images are those of the most suspicious pairs
  and others evenly spread over the set.

  Args:
    source: that was scanned.
    measurements: of all its examples, in order; some get their `owner`, `look`
      and `is_suspicious`.
  """
  fits = [m.fit for m in measurements]
  fitted = [m for m in measurements if m.fit is not None]
  odd = [m for m in fitted if alignment.is_suspicious(m.fit)]
  if len(fitted) < verdict.MIN_PAIRS or not (odd or verdict.is_suspected(fits)):
    return
  _find_owners(source, measurements, odd, config)
  owners = {m.index: m.owner for m in fitted if m.owner is not None}

  def load(index: int) -> tuple[np.ndarray, np.ndarray]:
    example = source[index]
    return example['image'], _any_classes(example, config.data)

  looks = verdict.look_again(fits, load, owners)
  known = [look for look in looks if look is not None]
  for m, look in zip(measurements, looks):
    m.look = look
    if look is not None and alignment.is_suspicious(m.fit):
      m.is_suspicious = verdict.is_odd(m.fit, look, known)


def _find_owners(
  source: examples.Source,
  measurements: records.Measurements,
  odd: Sequence[records.Measurement],
  config: ml_collections.ConfigDict,
) -> None:
  fitted = [m for m in measurements if m.fit is not None]
  spread = np.linspace(0, len(fitted) - 1, _OWNERS, dtype=int)
  chosen = {i: fitted[i] for i in spread.tolist()}
  worst = sorted(odd, key=lambda m: -m.fit.suspicion)[:_OWNERS]
  finder = alignment.MaskFinder(
    [m.fit.border if m.fit else None for m in measurements]
  )

  def work(m: records.Measurement) -> None:
    found = finder.find(source[m.index]['image'])
    if found is not None:
      m.owner = found[0]

  with concurrent.futures.ThreadPoolExecutor(prepared.num_workers(config)) as p:
    list(p.map(work, {m.index: m for m in [*chosen.values(), *worst]}.values()))


def _any_classes(
  example: examples.Example, data: ml_collections.ConfigDict
) -> np.ndarray:
  """Returns the mask's classes, or other numbers that tell its values apart."""
  values, ignored = example['mask'], example.get('ignored')
  try:
    classes = masks.map_mask(
      values, data.mask_values, data.num_classes, example['mask_name']
    )
  except errors.UserError:
    if values.ndim == 3:
      values = mask_colors.to_numbers(values)
    # The same in all masks of the set; a prime, so that few values collide.
    classes = (values % 251).astype(np.uint8)
  if ignored is not None:
    classes = np.where(ignored, np.uint8(fields.IGNORE_LABEL), classes)
  return classes


def fit_prepared(dataset: Any, measurements: records.Measurements) -> None:
  """Measures the fit of some pairs of a prepared set."""
  # Evenly spread, since neighbours may be alike.
  spread = np.linspace(0, len(dataset) - 1, _FITTED, dtype=int)
  chosen = []
  for i in np.unique(spread).tolist():
    m = measurements[i]
    if m.image_size is None or np.prod(m.image_size) <= _LARGE:
      chosen.append(m)
      m.fit = alignment.measure(*_flat_pair(dataset, i))
  fits = [m.fit for m in chosen]
  if verdict.is_suspected(fits):
    looks = verdict.look_again(
      fits, lambda k: _flat_pair(dataset, chosen[k].index)
    )
    for m, look in zip(chosen, looks):
      m.look = look


def _flat_pair(dataset: Any, index: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the image and the mask; of a volume, its middle slice."""
  example = dataset[index]
  image, mask = example['image'], example['mask']
  if mask.ndim == 3:
    return image[len(image) // 2], mask[len(mask) // 2]
  return image, mask
