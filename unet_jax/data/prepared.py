"""Prepared examples: uint8 arrays at random access."""

import dataclasses
import hashlib
import math
import os
import pathlib
from typing import Any

import cv2
import numpy as np

from unet_jax.config import fields
from unet_jax.data import examples, masks, resize, weight_map
from unet_jax.runtime import errors

# Pixels of each class whose places are kept, of each image.
_NUM_PLACES = 1000


def check_sizes(example: examples.Example) -> None:
  """Raises UserError where image, mask and instances differ in size."""
  image = example['image']
  named = [(example['mask'], example['mask_name'])]
  if 'instances' in example:
    named.append(
      (example['instances'], f'the instance mask of {example["name"]}')
    )
  for mask, name in named:
    if image.shape[:-1] == mask.shape[: image.ndim - 1]:
      continue
    hint = ''
    if image.shape[:2] == mask.shape[1::-1]:
      hint = '; the one is the other turned: an EXIF rotation, applied to one?'
    raise errors.UserError(
      f'{example["name"]} is {image.shape[1]} x {image.shape[0]} pixels, '
      f'{name} {mask.shape[1]} x {mask.shape[0]} (width x '
      f'height); make the mask of the image as it is stored{hint}'
    )


def original_mask(example: examples.Example, data) -> np.ndarray:
  """Returns the classes of an example's mask as it is stored: uint8 [H, W].

  Args:
    example: see sources.py.
    data: the section `data` of the config.

  Raises:
    UserError: sizes differ, or a mask value is not in the table.
  """
  check_sizes(example)
  return masks.map_mask(
    example['mask'], data.mask_values, data.num_classes, example['mask_name']
  )


def prepare_example(
  example: examples.Example,
  data,
  make_weights: weight_map.WeightMap | None = None,
) -> dict[str, np.ndarray]:
  """Checks and converts one example of a source.

  Args:
    example: see sources.py.
    data: the section `data` of the config.
    make_weights: makes the weight map, after resizing.

  Returns:
    `image` uint8 [H, W, C], `mask` uint8 [H, W] and, with `make_weights`,
    `weight_map` float16 [H, W], of data.image_size; or of the size that they
    have, where data.resize is `patch`.

  Raises:
    UserError: sizes differ, or a mask value is not in the table.
  """
  check_sizes(example)
  values = example['mask']
  is_volume = len(data.image_size) == 3
  if is_volume:  # Three axes are an RGB image to map_mask.
    values = _flat_planes(values)
  mask = masks.map_mask(
    values, data.mask_values, data.num_classes, example['mask_name']
  )
  if is_volume:
    mask = mask.reshape(example['mask'].shape)
  image, mask = resize.resize_pair(
    example['image'], mask, data.image_size, data.resize
  )
  result = {'image': image, 'mask': mask}
  if make_weights is not None:
    instances = example.get('instances')
    if instances is not None:
      instances = resize.resize_labels(
        instances, data.image_size, data.resize, 0
      )
    result['weight_map'] = make_weights(mask, instances)
  return result


def _flat_planes(array: np.ndarray) -> np.ndarray:
  """[D, H, ...] to [D * H, ...], for what takes images only."""
  return array.reshape(math.prod(array.shape[:2]), *array.shape[2:])


@dataclasses.dataclass(frozen=True)
class Stats:
  """What is known of the N prepared examples without reading them.

  Attributes:
    names: of the examples, for people.
    sizes: int64 [N, 2]: height and width in pixels; [N, 3] of volumes, with the
      depth first.
    class_pixels: int64 [N, C + 1]: pixels of each class, and last those that
      are ignored.
    digests: uint8 [N, 16] of the image's bytes: equal for equal images.
    stds: float32 [N]: standard deviation of the image's values in 0..255, of
      the channel that has the largest.
  """

  names: tuple[str, ...]
  sizes: np.ndarray
  class_pixels: np.ndarray
  digests: np.ndarray
  stds: np.ndarray


@dataclasses.dataclass(frozen=True)
class Places:
  """Where pixels of each class are, up to 1000 of each in each of N images.

  Attributes:
    points: int32 [M, 2]: rows and columns, by image and then by class.
    starts: int64 [N * C + 1]: those of class c in image i are
      `points[starts[i * C + c] : starts[i * C + c + 1]]`.
  """

  points: np.ndarray
  starts: np.ndarray

  def of(self, index: int, c: int, num_classes: int) -> np.ndarray:
    """Returns int32 [K, 2]: pixels of class `c` in image `index`."""
    cell = index * num_classes + c
    return self.points[self.starts[cell] : self.starts[cell + 1]]

  def select(self, images: np.ndarray, num_classes: int) -> 'Places':
    """Returns those of some images: indices, int [K]."""
    parts = [
      self.of(i, c, num_classes) for i in images for c in range(num_classes)
    ]
    return _join_places(parts)


def _find_places(mask: np.ndarray, counts: np.ndarray, index: int):
  """Draws places of each class, all pixels alike: [int32 [K, 2], ...].

  Row by row, since the coordinates of all pixels may take many times the memory
  of the image. What is drawn depends on `index` and the class alone.
  """
  found = []
  for c, count in enumerate(counts.tolist()):
    # Ordinals among the pixels of the class, of which each row has some.
    chosen = np.arange(min(count, _NUM_PLACES))
    if count > _NUM_PLACES:
      rng = np.random.default_rng((index, c))
      chosen = np.sort(rng.choice(count, _NUM_PLACES, replace=False))
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


class OnTheFly:
  """A prepared set that is decoded at each access."""

  # Only a set that was read whole has them.
  stats = places = None

  def __init__(self, source: examples.Source, config):
    self._source, self._data = source, config.data
    self._make_weights = weight_map.make_weight_map(config)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return prepare_example(self._source[index], self._data, self._make_weights)


class Prepared:
  """A prepared set in arrays (in memory, or memory-mapped).

  Args:
    arrays: {'image', 'mask'[, 'weight_map']}: each an array or a list of them,
      by row; nothing of them is read before it is used.
    kept: the rows that were decoded: all unless data.on_error is `skip`.
    stats: of the rows that were decoded.
    places: where their classes are; None unless data.resize is `patch`.
  """

  def __init__(
    self,
    arrays: dict[str, Any],
    kept: np.ndarray,
    stats: Stats,
    places: Places | None = None,
  ):
    self._arrays, self._kept = arrays, kept
    self.stats, self.places = stats, places

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    row = self._kept[index]
    return {name: array[row] for name, array in self._arrays.items()}

  def select(self, rows: np.ndarray) -> 'Prepared':
    """Returns the examples of some rows, without a copy of their arrays."""
    places = self.places
    chosen = np.flatnonzero(np.isin(self._kept, rows))
    about = {
      f.name: getattr(self.stats, f.name)[chosen]
      for f in dataclasses.fields(Stats)[1:]
    }
    names = tuple(self.stats.names[i] for i in chosen)
    if places is not None:
      places = places.select(chosen, self.stats.class_pixels.shape[1] - 1)
    return Prepared(
      self._arrays, self._kept[chosen], Stats(names, **about), places
    )

  def read_batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns examples of one size, stacked: in one copy for each array."""
    rows = self._kept[indices]
    return {name: array[rows] for name, array in self._arrays.items()}


class Files:
  """Arrays of any size, each in a file that is mapped when it is asked for.

  Mapped anew at each access: a mapping that stays holds a file descriptor, of
  which a process has few.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def _path(self, row: int) -> pathlib.Path:
    return self._folder / f'{row:06d}.npy'

  def __setitem__(self, row: int, array: np.ndarray) -> None:
    np.save(self._path(row), array)

  def __getitem__(self, row: int) -> np.ndarray:
    return np.load(self._path(row), mmap_mode='r')


def num_workers(config) -> int:
  """Threads that decode and read."""
  return config.data.num_workers or len(os.sched_getaffinity(0))


def describe(example, name: str, index: int, config) -> dict[str, Any]:
  """An example's entries of Stats and Places."""
  image, mask = example['image'], example['mask']
  size = mask.shape
  if len(size) == 3:
    image, mask = _flat_planes(image), _flat_planes(mask)
  counts = masks.histogram(mask)
  num_names = max(config.data.num_classes, 2)
  result = {
    'names': name,
    'sizes': size,
    'class_pixels': np.append(counts[:num_names], counts[fields.IGNORE_LABEL]),
    'digests': np.frombuffer(
      # Of those that hashlib has, the one that processors have built in.
      hashlib.sha1(np.ascontiguousarray(image)).digest()[:16],
      np.uint8,
    ),
    'stds': cv2.meanStdDev(image)[1].max(),
  }
  if config.data.resize == 'patch':
    result['places'] = _find_places(mask, counts[:num_names], index)
  return result


def collect(found: list[dict[str, Any]], config):
  """Joins what `describe` found: (Stats, Places or None)."""
  column = lambda key: [entry[key] for entry in found]
  width = max(config.data.num_classes, 2) + 1
  stats = Stats(
    names=tuple(column('names')),
    sizes=np.array(column('sizes'), np.int64).reshape(
      -1, len(config.data.image_size)
    ),
    class_pixels=np.array(column('class_pixels'), np.int64).reshape(-1, width),
    digests=np.array(column('digests'), np.uint8).reshape(-1, 16),
    stds=np.array(column('stds'), np.float32),
  )
  if config.data.resize != 'patch':
    return stats, None
  return stats, _join_places(
    [part for entry in column('places') for part in entry]
  )


def _join_places(parts: list[np.ndarray]) -> Places:
  """Makes one of int32 [K, 2] of each class of each image."""
  starts = np.cumsum([0, *map(len, parts)])
  return Places(np.concatenate([np.zeros((0, 2), np.int32), *parts]), starts)
