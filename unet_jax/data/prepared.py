"""Prepared examples: uint8 arrays at random access."""

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import cv2
import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import digests, examples, identity, masks, resize, weight_map
from unet_jax.runtime import errors

Arrays = dict[str, np.ndarray]

# Pixels of each class that are sampled from each image.
_SAMPLED_PIXELS = 1000
# Pixels up to which one thread draws faster than two, who pass a lock.
_SMALL = 96 * 96


def array_specs(config: ml_collections.ConfigDict) -> dict[str, tuple]:
  """Returns {name: (shape, dtype)} of the arrays of one example or window."""
  size = tuple(config.data.image_size)
  specs: dict[str, tuple] = {
    'image': ((*size, config.data.num_channels), np.uint8),
    'mask': (size, np.uint8),
  }
  if weight_map.is_used(config):
    specs['weight_map'] = (size, np.float16)
  return specs


def num_workers(config: ml_collections.ConfigDict) -> int:
  """Threads that decode, draw and read."""
  if config.data.num_workers:
    return config.data.num_workers
  draws = config.data.source == 'shapes'
  if draws and math.prod(config.data.image_size) <= _SMALL:
    return 1
  return len(os.sched_getaffinity(0))


def check_sizes(
  example: examples.Example, data: ml_collections.ConfigDict
) -> None:
  """Raises UserError where image, mask and instances differ in size."""
  image = example['image']
  named = [(example['mask'], example['mask_name'])]
  if 'instances' in example:
    name = f'the instance mask of {example["name"]}'
    named.append((example['instances'], name))
  for mask, name in named:
    if image.shape[:-1] == mask.shape[: image.ndim - 1]:
      continue
    hint = 'make the mask of the image as it is stored'
    if image.shape[:2] == mask.shape[1::-1]:
      files = [example.get('image_file'), example.get('mask_file')]
      tags = [file.orientation if file else 1 for file in files]
      if (tags[0] > 4) != (tags[1] > 4):  # Others keep height and width.
        other = 'stored' if data.orientation == 'upright' else 'upright'
        hint = (
          f'the tags that turn them for display are {tags[0]} and {tags[1]}, '
          'and one of the two was made by a program that applies its tag: set '
          f'--config.data.orientation={other}, or {hint}'
        )
      else:
        hint += '; one is the other turned: an EXIF rotation, applied to one?'
    else:
      hint += ', or resize it by the nearest pixel if it shows the whole image'
    raise errors.UserError(
      f'{example["name"]} is {image.shape[1]} x {image.shape[0]} pixels, '
      f'{name} {mask.shape[1]} x {mask.shape[0]} (width x height); {hint}'
    )


def original_mask(
  example: examples.Example, data: ml_collections.ConfigDict
) -> np.ndarray:
  """Returns the classes of a mask at its stored size: uint8 [H, W].

  Raises:
    UserError: sizes differ, or a mask value is not in the table.
  """
  check_sizes(example, data)
  values = example['mask']
  is_volume = len(data.image_size) == 3
  # To map_mask, three axes are an RGB image.
  mask = masks.map_mask(
    _flat_planes(values) if is_volume else values,
    data.mask_values,
    data.num_classes,
    example['mask_name'],
    examples.has_lossy_mask(example),
  )
  if 'ignored' in example:
    mask[example['ignored']] = fields.IGNORE_LABEL
  return mask.reshape(values.shape) if is_volume else mask


def prepare_example(
  example: examples.Example,
  data: ml_collections.ConfigDict,
  make_weights: weight_map.WeightMap | None = None,
) -> Arrays:
  """Checks and converts one example.

  Returns:
    `image` uint8 [H, W, C], `mask` uint8 [H, W] and, with `make_weights`,
    `weight_map` float16 [H, W], of data.image_size, or of their own size where
    data.resize is `patch`.

  Raises:
    UserError: sizes differ, or a mask value is not in the table.
  """
  image, mask = resize.resize_pair(
    example['image'], original_mask(example, data), data.image_size, data.resize
  )
  result = {'image': image, 'mask': mask}
  if make_weights is not None:
    instances = example.get('instances')
    if instances is not None:
      by = data.image_size, data.resize
      instances = resize.resize_labels(instances, *by, 0)
    result['weight_map'] = make_weights(mask, instances)
  return result


def _flat_planes(array: np.ndarray) -> np.ndarray:
  """[D, H, ...] to [D * H, ...], for functions of images."""
  return array.reshape(math.prod(array.shape[:2]), *array.shape[2:])


@dataclasses.dataclass(frozen=True)
class Stats:
  """Facts about N prepared examples that need no reading of them.

  Attributes:
    names: of the examples, for people.
    sizes: int64 [N, 2]: height and width in pixels; [N, 3] of volumes, D first.
    edges: float32 [N]: of the image as it is stored, the geometric mean.
    origins: str [N]: of the image's file, see `stored.Stored`; or ''.
    class_pixels: int64 [N, C + 1]: pixels of each class, and last those that
      are ignored.
    digests: uint8 [N, 16] of the image's pixels: equal for equal images.
    stds: float32 [N]: standard deviation of the image's values in 0..255, of
      the channel that has the largest.
  """

  names: tuple[str, ...]
  sizes: np.ndarray
  edges: np.ndarray
  origins: np.ndarray
  class_pixels: np.ndarray
  digests: np.ndarray
  stds: np.ndarray

  def arrays(self) -> Arrays:
    """Returns {name: array} of all but the names."""
    fields_ = dataclasses.fields(self)[1:]
    return {f.name: getattr(self, f.name) for f in fields_}

  def select(self, rows: np.ndarray) -> 'Stats':
    """Returns those of some examples: int [K]."""
    names = tuple(self.names[i] for i in rows)
    return Stats(names, **{k: v[rows] for k, v in self.arrays().items()})


@dataclasses.dataclass(frozen=True)
class ClassPixels:
  """Coordinates of up to 1000 pixels of each of C classes in each of N images.

  Attributes:
    points: int32 [M, 2]: rows and columns, by image and then by class.
    starts: int64 [N * C + 1]: those of class c in image i are
      `points[starts[i * C + c] : starts[i * C + c + 1]]`.
  """

  points: np.ndarray
  starts: np.ndarray
  num_classes: int

  @classmethod
  def join(cls, parts: Iterable[np.ndarray], num_classes: int) -> 'ClassPixels':
    """Joins int32 [K, 2] of each class of each image, in this order."""
    parts = [np.zeros((0, 2), np.int32), *parts]
    starts = np.cumsum([len(part) for part in parts])
    return cls(np.concatenate(parts), starts, num_classes)

  def of(self, index: int, c: int) -> np.ndarray:
    """Returns int32 [K, 2]: pixels of class `c` in image `index`."""
    cell = index * self.num_classes + c
    return self.points[self.starts[cell] : self.starts[cell + 1]]

  def select(self, images: np.ndarray) -> 'ClassPixels':
    """Returns those of some images: int [K]."""
    classes = range(self.num_classes)
    parts = [self.of(i, c) for i in images for c in classes]
    return self.join(parts, self.num_classes)


def _sample_pixels(
  mask: np.ndarray, counts: np.ndarray, index: int
) -> list[np.ndarray]:
  """Draws pixels of each class, all equally likely: [int32 [K, 2], ...].

  Row by row, since the coordinates of all pixels may take many times the memory
  of the image. The draw depends on `index` and the class alone.
  """
  found = []
  for c, count in enumerate(counts.tolist()):
    # Ordinals among the pixels of the class, of which each row has some.
    chosen = np.arange(min(count, _SAMPLED_PIXELS))
    if count > _SAMPLED_PIXELS:
      rng = np.random.default_rng((index, c))
      chosen = np.sort(rng.choice(count, _SAMPLED_PIXELS, replace=False))
    points = [np.zeros((0, 2), np.int32)]
    if count:
      in_rows = np.array([np.count_nonzero(row == c) for row in mask])
      ends = np.cumsum(in_rows)
      of_rows = np.searchsorted(ends, chosen, 'right')
      for row in np.unique(of_rows):
        here = chosen[of_rows == row] - (ends[row] - in_rows[row])
        columns = np.flatnonzero(mask[row] == c)[here]
        points.append(np.stack([np.full_like(columns, row), columns], 1))
    found.append(np.concatenate(points).astype(np.int32))
  return found


def stack(rows: Sequence[Arrays]) -> Arrays:
  """Joins examples of one size: [B, H, W, ...]."""
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class Dataset(Protocol):
  """The prepared examples of a split.

  `dataset[i]` has the entries of `prepare_example`. Sets that were not read
  whole have neither `stats` nor `pixels`, nor all of the palette; only those of
  data.resize `patch` have `pixels`.
  """

  split: str
  stats: Stats | None
  pixels: ClassPixels | None
  palette: masks.Palette

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Arrays: ...

  def read_batch(self, indices: Sequence[int] | np.ndarray) -> Arrays:
    """Returns examples of one size, stacked: [B, H, W, ...]."""


class OnTheFly(Dataset):
  """A dataset that decodes at each access."""

  stats = pixels = None

  def __init__(
    self,
    source: examples.Source,
    data: ml_collections.ConfigDict,
    make_weights: weight_map.WeightMap | None,
  ):
    self.split = source.split
    self._source, self._data, self._make_weights = source, data, make_weights
    self._palettes = masks.Palettes(data)
    self.palette = self._palettes.found

  def images(self) -> list[identity.Image]:
    """Returns what each example is; files that are not known are read."""
    return identity.images_of(self._source)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Arrays:
    example = self._source[index]
    self._palettes.add(example)
    return prepare_example(example, self._data, self._make_weights)

  def read_batch(self, indices: Sequence[int] | np.ndarray) -> Arrays:
    return stack([self[index] for index in indices])


class Prepared(Dataset):
  """A dataset in arrays (in memory, or memory-mapped).

  Args:
    arrays: {'image', 'mask'[, 'weight_map']}: each an array or a list of
      arrays, by row; none is read before it is used.
    kept: the rows that were decoded: all unless data.on_error is `skip`.
    stats: of the rows that were decoded.
    pixels: of their classes; None unless data.resize is `patch`.
    palette: of their masks.
  """

  stats: Stats

  def __init__(
    self,
    split: str,
    arrays: dict[str, Any],
    kept: np.ndarray,
    stats: Stats,
    pixels: ClassPixels | None = None,
    palette: masks.Palette | None = None,
  ):
    self.split, self._arrays, self._kept = split, arrays, kept
    self.stats, self.pixels, self.palette = stats, pixels, palette or {}

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, index: int) -> Arrays:
    row = self._kept[index]
    return {name: array[row] for name, array in self._arrays.items()}

  def read_batch(self, indices: Sequence[int] | np.ndarray) -> Arrays:
    rows = self._kept[indices]
    return {name: array[rows] for name, array in self._arrays.items()}

  def select(self, rows: np.ndarray) -> 'Prepared':
    """Returns the examples of some rows, without a copy of their arrays."""
    chosen = np.flatnonzero(np.isin(self._kept, rows))
    return Prepared(
      self.split,
      self._arrays,
      self._kept[chosen],
      self.stats.select(chosen),
      self.pixels and self.pixels.select(chosen),
      self.palette,
    )


def describe(
  arrays: Arrays,
  example: examples.Example,
  index: int,
  config: ml_collections.ConfigDict,
) -> dict[str, Any]:
  """Returns a prepared example's entries of Stats and ClassPixels.

  Args:
    arrays: it, prepared.
    example: it, as its source has it.
    index: in its source.
    config: of the run.
  """
  image, mask = arrays['image'], arrays['mask']
  size, whole = mask.shape, example['image'].shape[:-1]
  file = example.get('image_file')
  if len(size) == 3:
    image, mask = _flat_planes(image), _flat_planes(mask)
  num_names = max(config.data.num_classes, 2)
  counts = masks.class_pixels(mask, num_names)
  # With data.nodata, ignored pixels have no share in statistics.
  counted = None
  if config.data.nodata:
    counted = (mask != fields.IGNORE_LABEL).astype(np.uint8)
  result = {
    'names': example['name'],
    'sizes': size,
    'edges': math.prod(whole) ** (1 / len(whole)),
    'origins': file.origin if file else '',
    'class_pixels': counts,
    'digests': np.frombuffer(digests.digest(image), np.uint8),
    'stds': cv2.meanStdDev(image, mask=counted)[1].max(),
  }
  if config.data.resize == 'patch':
    result['pixels'] = _sample_pixels(mask, counts[:-1], index)
  return result


def collect(
  found: list[dict[str, Any]], config: ml_collections.ConfigDict
) -> tuple[Stats, ClassPixels | None]:
  """Joins the results of `describe`."""
  num_names = max(config.data.num_classes, 2)
  column = lambda key, dtype, *shape: np.array(
    [entry[key] for entry in found], dtype
  ).reshape(-1, *shape)
  stats = Stats(
    names=tuple(entry['names'] for entry in found),
    sizes=column('sizes', np.int64, len(config.data.image_size)),
    edges=column('edges', np.float32),
    origins=column('origins', str),
    class_pixels=column('class_pixels', np.int64, num_names + 1),
    digests=column('digests', np.uint8, 16),
    stds=column('stds', np.float32),
  )
  if config.data.resize != 'patch':
    return stats, None
  parts = (part for entry in found for part in entry['pixels'])
  return stats, ClassPixels.join(parts, num_names)
