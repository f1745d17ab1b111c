"""Examples of any size to fixed-size uint8 arrays, made once and kept.

A prepared set holds `image` [H, W, C] and `mask` [H, W], both uint8, at random
access. `prepare` makes it in memory, on disk (memory-mapped, keyed by
everything that it depends on, so that it is never stale) or at each access.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import threading

import cv2
import numpy as np
import PIL
import tqdm

from unet_jax import config as config_lib
from unet_jax import errors, locks
from unet_jax.data import sources

_log = logging.getLogger(__name__)

# Raise it when the same sources and config would give other arrays.
_VERSION = 1
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
    table = {int(_as_color(key) @ _COLOR_WEIGHTS): c for key, c in table}
  elif table:
    # A file whose channels are equal comes as one of them.
    table = {
      int(_as_color(key)[0]): c
      for key, c in table
      if len(set(_as_color(key))) == 1
    }
  else:
    table = {i: i for i in (*range(num_names), config_lib.IGNORE_LABEL)}
    # Most likely 255 is the foreground: it must be said, not guessed.
    if num_names == 2 and values.max() == 255 and np.all(values % 255 == 0):
      del table[config_lib.IGNORE_LABEL]
  if values.dtype == np.uint8:
    # The quick way for what most masks are.
    lookup = np.full(256, -1, np.int16)
    for value, c in table.items():
      if 0 <= value < 256:
        lookup[value] = c
    mapped = lookup[values]
  else:
    mapped = np.full(values.shape, -1, np.int16)
    for value, c in table.items():
      mapped[values == value] = c
  if mapped.min() < 0:
    raise _unknown_value_error(values, table, num_names, is_color, name)
  return mapped.astype(np.uint8)


def _as_color(key) -> np.ndarray:
  """The colour that a key of the table stands for: int [3]."""
  return np.broadcast_to(np.array(key, np.int64), 3)


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


def _scaled_size(size, target, resize: str) -> tuple[int, int]:
  """Height and width after scaling, before padding or cropping."""
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
    resize: `stretch`, `pad` (with 0, and 255 in the mask) or `crop`.

  Returns:
    uint8 [*target, C] and uint8 [*target].
  """
  old, size = image.shape[:2], _scaled_size(image.shape[:2], target, resize)
  if size != old:
    # One after the other, since INTER_AREA averages only where no side grows.
    small = tuple(min(n, t) for n, t in zip(old, size))
    image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    image = image.reshape(*size, -1)  # OpenCV drops a single channel.
    # Exact, where OpenCV's fixed-point numbers miss half of the ties.
    rows, columns = (
      (2 * np.arange(t) + 1) * n // (2 * t) for n, t in zip(old, size)
    )
    mask = mask[rows[:, None], columns]
  if size != tuple(target):
    image = _fit(image, target, 0)
    mask = _fit(mask, target, config_lib.IGNORE_LABEL)
  return image, mask


def prepare_example(example: sources.Example, data) -> dict[str, np.ndarray]:
  """Checks and converts one example of a source.

  Args:
    example: see sources.py.
    data: the section `data` of the config.

  Returns:
    `image` uint8 [H, W, C] and `mask` uint8 [H, W] of data.image_size.

  Raises:
    UserError: sizes differ, or a mask value is not in the table.
  """
  image, mask = example['image'], example['mask']
  if image.shape[:2] != mask.shape[:2]:
    hint = ''
    if image.shape[:2] == mask.shape[1::-1]:
      hint = '; the one is the other turned: an EXIF rotation, applied to one?'
    raise errors.UserError(
      f'{example["name"]} is {image.shape[1]} x {image.shape[0]} pixels, '
      f'{example["mask_name"]} {mask.shape[1]} x {mask.shape[0]} (width x '
      f'height); make the mask of the image as it is stored{hint}'
    )
  mask = map_mask(
    mask, data.mask_values, data.num_classes, example['mask_name']
  )
  image, mask = resize_pair(image, mask, data.image_size, data.resize)
  return {'image': image, 'mask': mask}


class OnTheFly:
  """A prepared set that is decoded at each access."""

  def __init__(self, source: sources.Source, data):
    self._source, self._data = source, data

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return prepare_example(self._source[index], self._data)


class Prepared:
  """A prepared set in arrays (in memory, or memory-mapped)."""

  def __init__(self, images: np.ndarray, masks: np.ndarray, kept: np.ndarray):
    # The rows that were decoded: all of them unless on_error is `skip`.
    self._images, self._masks, self._kept = images, masks, kept

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    row = self._kept[index]
    return {'image': self._images[row], 'mask': self._masks[row]}


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
  source = sources.make_source(config, split)
  prepared = _prepare(source, config)
  prepared.split = source.split
  return prepared


def _prepare(source: sources.Source, config) -> 'OnTheFly | Prepared':
  if config.data.cache == 'none':
    return OnTheFly(source, config.data)
  description = f'preparing {source.split}'
  if config.data.cache == 'memory':
    shapes = _array_shapes(len(source), config)
    arrays = [np.empty(shape, np.uint8) for shape in shapes]
    skipped = _fill(source, config, *arrays, description)
    return _checked(Prepared(*arrays, _kept(len(source), skipped)), skipped)
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
  return _load(path)


def _array_shapes(n: int, config):
  size = tuple(config.data.image_size)
  return (n, *size, config.data.num_channels), (n, *size)


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
    arrays = []
    for name, shape in zip(
      ('images', 'masks'), _array_shapes(len(source), config)
    ):
      file = temporary / f'{name}.npy'
      arrays.append(np.lib.format.open_memmap(file, 'w+', np.uint8, shape))
      # Otherwise a full disk is a bus error in the middle of writing.
      with open(file, 'r+b') as f:
        os.posix_fallocate(f.fileno(), 0, file.stat().st_size)
    skipped = _fill(source, config, *arrays, description)
    for array in arrays:
      array.flush()
    meta = {'length': len(source), 'skipped': skipped}
    (temporary / 'meta.json').write_text(json.dumps(meta, indent=2))
    temporary.rename(path)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def _load(path: pathlib.Path) -> Prepared:
  meta = json.loads((path / 'meta.json').read_text())
  arrays = [
    np.load(path / f'{name}.npy', mmap_mode='r') for name in ('images', 'masks')
  ]
  kept = _kept(meta['length'], meta['skipped'])
  return _checked(Prepared(*arrays, kept), meta['skipped'])


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


def _fill(source, config, images, masks, description: str) -> list[dict]:
  """Prepares every example into its row, in parallel, with a bar.

  Returns:
    [{'index', 'reason'}] of what could not be decoded and is left out.
  """
  skipped = []
  stop = threading.Event()

  def work(index):
    if stop.is_set():
      return
    try:
      example = prepare_example(source[index], config.data)
    except errors.DecodeError as e:
      if config.data.on_error == 'stop':
        raise
      skipped.append({'index': index, 'reason': str(e)})
      return
    images[index], masks[index] = example['image'], example['mask']

  _log.info('%s: %d examples', description, len(source))
  bar = tqdm.tqdm(
    total=len(source),
    desc=description,
    unit='image',
    disable=not sys.stderr.isatty(),
  )
  with bar, concurrent.futures.ThreadPoolExecutor(num_workers(config)) as pool:
    try:
      for _ in pool.map(work, range(len(source))):
        bar.update()
    except BaseException:
      stop.set()  # What is queued returns at once.
      raise
  return sorted(skipped, key=lambda s: s['index'])
