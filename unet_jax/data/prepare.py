"""Examples of any size to uint8 arrays, made once and kept.

A prepared set holds `image` [H, W, C] and `mask` [H, W], both uint8, and the
`weight_map` [H, W], float16, where the config asks for one, at random access:
all of one size, or with data.resize `patch` each of its own. `prepare` makes it
in memory, on disk (memory-mapped, keyed by everything that it depends on, so
that it is never stale) or at each access. Of volumes, all have an axis D before
H; they are not resized.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
import sys
import tempfile
import threading
from typing import Any

import cv2
import numpy as np
import PIL
import tqdm

from unet_jax import config as config_lib
from unet_jax import errors, locks
from unet_jax.data import sources, weight_map

_log = logging.getLogger(__name__)

# Raise it when the same sources and config would give other arrays.
_VERSION = 3
# Fields that prepared arrays depend on, besides the source's fingerprint.
_FIELDS = (
  'image_size',
  'num_channels',
  'num_classes',
  'mask_values',
  'intensity',
  'resize',
  'on_error',
)

# Examples that a thread prepares before it takes others.
_CHUNK = 8
# Pixels of each class whose places are kept, of each image.
_NUM_PLACES = 1000

# Threads are ours, a level above; OpenCV's own would fight them.
cv2.setNumThreads(1)

# Makes one number of a colour.
_COLOR_WEIGHTS = np.array([1 << 16, 1 << 8, 1])


def map_mask(
  values: np.ndarray, table, num_classes: int, name: str
) -> np.ndarray:
  """Returns the classes of a mask's values.

  Args:
    values: integers [H, W], or of RGB [H, W, 3].
    table: ((value or (r, g, b), class), ...), or () where values are classes.
      A value v in a table of colours is the colour (v, v, v).
    num_classes: 1 (then classes are 0 and 1) or more.
    name: of the file, for messages.

  Returns:
    uint8 [H, W] of 0..num_classes-1 or 255 (ignored).

  Raises:
    UserError: a value is not in the table; names it, its number of pixels, and
      the line that would fix it.
  """
  num_names = max(num_classes, 2)
  is_color = values.ndim == 3
  if is_color:
    if not any(isinstance(key, tuple) for key, _ in table):
      raise _color_mask_error(values, name)
    values = values.astype(np.int64) @ _COLOR_WEIGHTS
    table = _color_table(table)
  elif table:
    table = _grey_table(table)
  else:
    table = {i: i for i in (*range(num_names), config_lib.IGNORE_LABEL)}
    # Most likely 255 is the foreground: it must be said, not guessed.
    if num_names == 2 and values.max() == 255 and np.all(values % 255 == 0):
      del table[config_lib.IGNORE_LABEL]
  if values.dtype == np.uint8:
    # The quick way for what most masks are: OpenCV's tables are four times as
    # fast as an index.
    lookup, unknown = np.zeros(256, np.uint8), np.ones(256, np.uint8)
    for value, c in table.items():
      if 0 <= value < 256:
        lookup[value], unknown[value] = c, 0
    mapped = cv2.LUT(values, lookup)
    any_unknown = cv2.countNonZero(cv2.LUT(values, unknown))
  else:
    mapped = np.zeros(values.shape, np.uint8)
    known = np.zeros(values.shape, bool)
    for value, c in table.items():
      at = values == value
      mapped[at] = c
      known |= at
    any_unknown = not known.all()
  if any_unknown:
    raise _unknown_value_error(values, table, num_names, is_color, name)
  return mapped


def unknown_values(found: dict, data) -> dict:
  """Returns those of a mask's values that `map_mask` would not take.

  Args:
    found: {value or (r, g, b): pixels} of one mask.
    data: the section `data` of the config.
  """
  num_names = max(data.num_classes, 2)
  if any(isinstance(value, tuple) for value in found):
    known = _color_table(data.mask_values)
    key = lambda value: int(np.array(value) @ _COLOR_WEIGHTS)
    return {v: n for v, n in found.items() if key(v) not in known}
  if data.mask_values:
    known = _grey_table(data.mask_values)
  else:
    known = {*range(num_names), config_lib.IGNORE_LABEL}
    if num_names == 2 and set(found) <= {0, 255}:
      known = {0}
  return {v: n for v, n in found.items() if v not in known}


# Kept, since they are asked for with each mask.
@functools.cache
def _color_table(table) -> dict[int, int]:
  """{the number that stands for a colour: class}"""
  colors = [np.broadcast_to(np.array(key, np.int64), 3) for key, _ in table]
  return {int(k @ _COLOR_WEIGHTS): c for k, (_, c) in zip(colors, table)}


@functools.cache
def _grey_table(table) -> dict[int, int]:
  """{value: class}; a file whose channels are equal comes as one of them."""
  keys = [key if isinstance(key, tuple) else (key,) for key, _ in table]
  return {k[0]: c for k, (_, c) in zip(keys, table) if len(set(k)) == 1}


def _unknown_value_error(values, table, num_names, is_color, name):
  """The error for the most frequent value that is not in the table."""
  found, counts = np.unique(values, return_counts=True)
  unknown = ~np.isin(found, list(table))
  value = int(found[unknown][np.argmax(counts[unknown])])
  count = int(counts[found == value][0])
  if is_color:
    value = (value >> 16, value >> 8 & 255, value & 255)
  hint = (
    f'add ({value}, CLASS) to data.mask_values, CLASS in '
    f'0..{num_names - 1} or {config_lib.IGNORE_LABEL} to ignore'
  )
  if not is_color and set(found.tolist()) <= {0, 255} and num_names == 2:
    hint = (
      "a mask of 0 and 255 needs --config.data.mask_values='((0,0),(255,1))', "
      "or '((0,0),(1,1),(255,255))' where 255 is to be ignored"
    )
  return errors.UserError(
    f'{name}: value {value} in {count} of {values.size} pixels is not in '
    f'data.mask_values; {hint}'
  )


def _color_mask_error(values, name):
  """The error for an RGB mask without a table of colours."""
  found, counts = np.unique(values.reshape(-1, 3), axis=0, return_counts=True)
  order = np.argsort(-counts, kind='stable')[:6]
  lines = ''.join(
    f'(({",".join(map(str, found[k].tolist()))}),{i}),'
    for i, k in enumerate(order)
  )
  more = ' and so on' if len(found) > len(order) else ''
  return errors.UserError(
    f'{name}: the mask is an RGB image of {len(found)} colours, not a map of '
    'classes; give each colour its class, such as '
    f"--config.data.mask_values='({lines})'{more}"
  )


def scaled_size(size, target, resize: str) -> tuple[int, int]:
  """Returns height and width after scaling, before padding or cropping."""
  size = size[: len(target)]
  if resize == 'stretch':
    return tuple(target)
  ratios = [t / s for s, t in zip(size, target)]
  ratio = min(ratios) if resize == 'pad' else max(ratios)
  pick = min if resize == 'pad' else max
  return tuple(pick(max(round(s * ratio), 1), t) for s, t in zip(size, target))


def _fit(array: np.ndarray, target, fill: int) -> np.ndarray:
  """Pads with `fill` or crops [H, W, ...] at the centre to `target`."""
  for axis, t in enumerate(target):
    n = array.shape[axis]
    if n > t:
      start = (n - t) // 2
      array = np.take(array, range(start, start + t), axis)
    elif n < t:
      widths = [(0, 0)] * array.ndim
      widths[axis] = ((t - n) // 2, t - n - (t - n) // 2)
      array = np.pad(array, widths, constant_values=fill)
  return array


def resize_pair(
  image: np.ndarray, mask: np.ndarray, target: tuple[int, int], resize: str
) -> tuple[np.ndarray, np.ndarray]:
  """Brings an image and its mask to one size, pixel on pixel.

  Images are averaged over areas where they shrink and interpolated linearly
  where they grow; masks take the value at the centre of each new pixel. Both
  align the corners of the picture, so that neither moves against the other.

  Args:
    image: uint8 [H, W, C].
    mask: uint8 [H, W].
    target: height and width.
    resize: `stretch`, `pad` (with 0, and 255 in the mask), `crop`, or `patch`,
      which changes nothing.

  Returns:
    uint8 [*target, C] and uint8 [*target].
  """
  mask = _resize_labels(mask, target, resize, config_lib.IGNORE_LABEL)
  if resize == 'patch':
    return image, mask
  image = _resize_image(image, scaled_size(image.shape, target, resize))
  return _fit(image, target, 0), mask


def _resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes uint8 [H, W, C], see `resize_pair`."""
  if size == image.shape[:-1]:
    return image
  # One after the other, since INTER_AREA averages only where no side grows.
  small = tuple(min(n, t) for n, t in zip(image.shape, size))
  image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
  image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
  return image.reshape(*size, -1)  # OpenCV drops a single channel.


def scale_image(
  image: np.ndarray, target: tuple[int, int], resize: str
) -> tuple[np.ndarray, tuple[slice, slice]]:
  """Brings a whole image to the scale at which the network sees it.

  As `resize_pair`, but `crop` cuts nothing off.

  Args:
    image: uint8 [H, W, C].
    target: height and width of what enters the network.
    resize: `stretch`, `pad` or `crop`.

  Returns:
    uint8 [H', W', C], and the rows and columns of it that show the image.
  """
  size = scaled_size(image.shape, target, resize)
  image = _resize_image(image, size)
  if resize == 'pad':
    image = _fit(image, target, 0)
  starts = [(n - s) // 2 for n, s in zip(image.shape, size)]
  return image, tuple(slice(a, a + s) for a, s in zip(starts, size))


def _resize_labels(labels: np.ndarray, target, resize: str, fill: int):
  """The part of `resize_pair` for integers [H, W]; `fill` is around them."""
  if resize == 'patch':
    return labels
  old, size = labels.shape, scaled_size(labels.shape, target, resize)
  if size != old:
    # Exact, where OpenCV's fixed-point numbers miss half of the ties.
    rows, columns = (
      (2 * np.arange(t) + 1) * n // (2 * t) for n, t in zip(old, size)
    )
    # Whole rows first: five times as fast as one index for both.
    labels = labels[rows][:, columns]
  return _fit(labels, target, fill)


def check_sizes(example: sources.Example) -> None:
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


def original_mask(example: sources.Example, data) -> np.ndarray:
  """Returns the classes of an example's mask as it is stored: uint8 [H, W].

  Args:
    example: see sources.py.
    data: the section `data` of the config.

  Raises:
    UserError: sizes differ, or a mask value is not in the table.
  """
  check_sizes(example)
  return map_mask(
    example['mask'], data.mask_values, data.num_classes, example['mask_name']
  )


def prepare_example(
  example: sources.Example,
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
  mask = map_mask(
    values, data.mask_values, data.num_classes, example['mask_name']
  )
  if is_volume:
    mask = mask.reshape(example['mask'].shape)
  image, mask = resize_pair(
    example['image'], mask, data.image_size, data.resize
  )
  result = {'image': image, 'mask': mask}
  if make_weights is not None:
    instances = example.get('instances')
    if instances is not None:
      instances = _resize_labels(instances, data.image_size, data.resize, 0)
    result['weight_map'] = make_weights(mask, instances)
  return result


def _flat_planes(array: np.ndarray) -> np.ndarray:
  """[D, H, ...] to [D * H, ...], for what takes images only."""
  return array.reshape(math.prod(array.shape[:2]), *array.shape[2:])


def histogram(mask: np.ndarray) -> np.ndarray:
  """Returns how often each value occurs in uint8 [H, W]: int64 [256]."""
  # OpenCV's is the fastest, and counts in float32: exact up to 2**24.
  rows = max(2**24 // max(mask.shape[1], 1), 1)
  parts = [
    cv2.calcHist([mask[i : i + rows]], [0], None, [256], [0, 256]).ravel()
    for i in range(0, len(mask), rows)
  ]
  return np.sum(parts, axis=0, dtype=np.int64)


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

  def __init__(self, source: sources.Source, config):
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


class _Files:
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


def prepare(config, split: str):
  """Returns the prepared set of a split, building it where it is not there.

  Args:
    config: of the run.
    split: named as in data.train_split; the result's `split` is its name in
      the source, where this is `auto`.

  Raises:
    UserError: any example is bad (see `prepare_example` and the sources), or
      the cache cannot be written.
  """
  return prepare_source(sources.make_source(config, split), config)


def prepare_source(source: sources.Source, config) -> 'OnTheFly | Prepared':
  """As `prepare`, of examples that are at hand."""
  prepared = _prepare(source, config)
  prepared.split = source.split
  return prepared


def _prepare(source: sources.Source, config) -> 'OnTheFly | Prepared':
  if config.data.cache == 'none':
    return OnTheFly(source, config)
  description = f'preparing {source.split}'
  if config.data.cache == 'memory':
    if config.data.resize == 'patch':
      arrays = {name: [None] * len(source) for name in _array_names(config)}
    else:
      arrays = {
        name: np.empty(shape, dtype)
        for name, (shape, dtype) in _array_specs(len(source), config).items()
      }
    skipped, about = _fill(source, config, arrays, description)
    kept = _kept(len(source), skipped)
    return _checked(Prepared(arrays, kept, *about), skipped)
  rows = None
  if isinstance(source, sources.Subset):
    # What is on disk is shared by all folds.
    source, rows = source.whole, source.rows
    description = f'preparing {source.split}'
  folder = pathlib.Path(config_lib.cache_dir(config), 'prepared')
  path = folder / cache_key(source, config)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with locks.lock(path.with_suffix('.lock'), description):
      if not path.exists():
        _build(source, config, path, description)
  except OSError as e:
    raise errors.UserError(
      f'{path}: cannot keep the prepared arrays there '
      f'({e.strerror or e}); free space, set --config.data.cache_dir=DIR, or '
      'use --config.data.cache=memory'
    ) from e
  return _load(path, rows)


def _array_names(config) -> tuple[str, ...]:
  has_weights = weight_map.make_weight_map(config) is not None
  return ('image', 'mask', 'weight_map')[: 2 + has_weights]


def _array_specs(n: int, config) -> dict[str, tuple]:
  """Shape and type of each array, where all images have one size."""
  shape = (n, *config.data.image_size)
  specs = {
    'image': ((*shape, config.data.num_channels), np.uint8),
    'mask': (shape, np.uint8),
    'weight_map': (shape, np.float16),
  }
  return {name: specs[name] for name in _array_names(config)}


def _kept(n: int, skipped) -> np.ndarray:
  return np.setdiff1d(np.arange(n), [s['index'] for s in skipped])


def cache_key(source: sources.Source, config) -> str:
  """A name that changes with whatever the arrays depend on."""
  depends_on = {
    'version': _VERSION,
    'libraries': [PIL.__version__, cv2.__version__],
    'source': source.fingerprint,
    **{field: config.data[field] for field in _FIELDS},
  }
  if config.data.resize == 'patch':
    del depends_on['image_size']  # Of the windows, not of what is kept.
  make_weights = weight_map.make_weight_map(config)
  if make_weights is not None:
    depends_on['weight_map'] = [
      weight_map.VERSION,
      dataclasses.astuple(make_weights),
      config.data.instance_key,
    ]
  text = json.dumps(depends_on, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:20]


def _build(source, config, path: pathlib.Path, description: str) -> None:
  """Builds the arrays beside `path` and renames them; the lock is held."""
  for leftover in path.parent.glob(path.name + '.tmp-*'):
    shutil.rmtree(leftover)  # Of a run that was killed.
  temporary = pathlib.Path(
    tempfile.mkdtemp(prefix=path.name + '.tmp-', dir=path.parent)
  )
  try:
    arrays = _create_arrays(temporary, len(source), config)
    skipped, (stats, places) = _fill(source, config, arrays, description)
    for array in arrays.values():
      if isinstance(array, np.memmap):
        array.flush()
    found = {
      f.name: getattr(stats, f.name) for f in dataclasses.fields(Stats)[1:]
    }
    if places is not None:
      found.update(points=places.points, starts=places.starts)
    np.savez(temporary / 'stats.npz', **found)
    meta = {
      'length': len(source),
      'skipped': skipped,
      'arrays': list(arrays),
      'names': stats.names,
    }
    (temporary / 'meta.json').write_text(json.dumps(meta, indent=2))
    temporary.rename(path)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def _create_arrays(folder: pathlib.Path, n: int, config) -> dict[str, Any]:
  """The arrays of a cache, to be filled."""
  arrays = {}
  if config.data.resize == 'patch':
    for name in _array_names(config):
      (folder / f'{name}s').mkdir()
      arrays[name] = _Files(folder / f'{name}s')
    return arrays
  for name, (shape, dtype) in _array_specs(n, config).items():
    file = folder / f'{name}s.npy'
    arrays[name] = np.lib.format.open_memmap(file, 'w+', dtype, shape)
    # Otherwise a full disk is a bus error in the middle of writing.
    with open(file, 'r+b') as f:
      os.posix_fallocate(f.fileno(), 0, file.stat().st_size)
  return arrays


def _load(path: pathlib.Path, rows: np.ndarray | None) -> Prepared:
  """Opens what `_build` wrote: all of it, or the examples of some rows."""
  meta = json.loads((path / 'meta.json').read_text())
  arrays = {}
  for name in meta['arrays']:
    files = path / f'{name}s'
    arrays[name] = (
      _Files(files)
      if files.is_dir()
      else np.load(files.with_suffix('.npy'), mmap_mode='r')
    )
  with np.load(path / 'stats.npz') as found:
    found = dict(found)
  places = None
  if 'points' in found:
    places = Places(found.pop('points'), found.pop('starts'))
  stats = Stats(tuple(meta['names']), **found)
  skipped = meta['skipped']
  prepared = Prepared(arrays, _kept(meta['length'], skipped), stats, places)
  if rows is not None:
    prepared = prepared.select(rows)
    skipped = [s for s in skipped if s['index'] in rows]
  return _checked(prepared, skipped)


def _checked(prepared: Prepared, skipped) -> Prepared:
  """Lists what was left out, and refuses an empty rest."""
  for entry in skipped:
    _log.warning('left out: %s', entry['reason'])
  if not len(prepared):
    raise errors.UserError(
      f'none of the {len(skipped)} pairs could be decoded; the first: '
      f'{skipped[0]["reason"]}'
    )
  return prepared


def _fill(source, config, arrays: dict[str, Any], description: str):
  """Prepares every example into its row, in parallel, with a bar.

  Returns:
    [{'index', 'reason'}] of what could not be decoded and is left out, and
    (Stats, Places or None) of the rest.
  """
  skipped, found = [], {}
  # Places are drawn by these, so that they are the same in any kind of cache.
  is_part = isinstance(source, sources.Subset)
  rows = source.rows if is_part else np.arange(len(source))
  make_weights = weight_map.make_weight_map(config)
  stop = threading.Event()

  def work(index):
    try:
      example = source[index]
      name = example['name']
      example = prepare_example(example, config.data, make_weights)
    except errors.DecodeError as e:
      if config.data.on_error == 'stop':
        raise
      skipped.append({'index': index, 'reason': str(e)})
      return
    for key, array in arrays.items():
      array[index] = example[key]
    found[index] = _describe(example, name, int(rows[index]), config)

  def work_through(indices):
    for index in indices:
      if not stop.is_set():
        work(index)
    return len(indices)

  # Several at once: to hand one over takes as long as to decode a small one.
  chunks = [
    range(i, min(i + _CHUNK, len(source)))
    for i in range(0, len(source), _CHUNK)
  ]
  _log.info('%s: %d examples', description, len(source))
  bar = tqdm.tqdm(
    total=len(source),
    desc=description,
    unit='image',
    disable=not sys.stderr.isatty(),
  )
  with bar, concurrent.futures.ThreadPoolExecutor(num_workers(config)) as pool:
    try:
      for count in pool.map(work_through, chunks):
        bar.update(count)
    except BaseException:
      stop.set()  # What is queued returns at once.
      raise
  found = [found[index] for index in sorted(found)]
  return sorted(skipped, key=lambda s: s['index']), _collect(found, config)


def _describe(example, name: str, index: int, config) -> dict[str, Any]:
  """An example's entries of Stats and Places."""
  image, mask = example['image'], example['mask']
  size = mask.shape
  if len(size) == 3:
    image, mask = _flat_planes(image), _flat_planes(mask)
  counts = histogram(mask)
  num_names = max(config.data.num_classes, 2)
  result = {
    'names': name,
    'sizes': size,
    'class_pixels': np.append(
      counts[:num_names], counts[config_lib.IGNORE_LABEL]
    ),
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


def _collect(found: list[dict[str, Any]], config):
  """Joins what `_describe` found: (Stats, Places or None)."""
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
