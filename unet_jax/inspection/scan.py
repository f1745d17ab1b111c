"""Measures every example of a set, in parallel, for --mode=inspect.

A bad example raises nothing: its measurement holds all that could be measured
and, as `error`, why the rest could not be.
"""

import collections
import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence

import cv2
import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import (
  decode,
  digests,
  examples,
  image_levels,
  mask_colors,
  masks,
  prepare,
  prepared,
  resize,
  smoothed,
)
from unet_jax.inspection import alignment, records
from unet_jax.runtime import errors, processes

# Edge of the thumbnails that find near duplicates, in pixels.
_THUMBNAIL = 16
# Edge of what tells candidates apart.
_DETAIL = 64
# An orthonormal basis of constant and evenly sloping light, which is removed
# from thumbnails: float32 [16 * 16, 3].
_PLANES = np.linalg.qr(
  np.stack(
    [np.ones((_THUMBNAIL,) * 2), *np.mgrid[:_THUMBNAIL, :_THUMBNAIL]], -1
  ).reshape(-1, 3)
)[0].astype(np.float32)
# Most values of a mask that are kept.
_MANY_VALUES = 300
# Masks of other images that are tried on each image.
_TRIED = 4


def scan(
  source: examples.Source, config: ml_collections.ConfigDict
) -> tuple[list[records.Measurement], dict[str, float]]:
  """Measures every example of a source, in threads, with a progress bar.

  Of many processes, each measures its part.

  Returns:
    A measurement for each example, and the seconds of processor time that
    `decode` and `measure` took, and those that all of it took on the `wall`.
  """
  start = time.perf_counter()
  results: dict[int, tuple[records.Measurement, float, float]] = {}

  def work(index: int) -> None:
    results[index] = _measure(source, index, config, borders)

  with warnings.catch_warnings():
    # Warnings about odd metadata of files that can be decoded.
    warnings.simplefilter('ignore')
    # The masks of some pairs, to be tried on the images of all others.
    borders = {}
    spread = np.linspace(0, len(source) - 1, _TRIED + 1, dtype=int).tolist()
    for index in dict.fromkeys(spread):
      fit = _measure(source, index, config, {})[0].fit
      borders[index] = fit.border if fit else None
    mine, what = processes.share(range(len(source))), source.split
    measure = lambda i: work(mine[i])

    def work_through() -> dict[int, tuple[records.Measurement, float, float]]:
      prepare.in_threads(measure, len(mine), config, f'inspecting {what}')
      return results

    for part in processes.together(work_through):
      results |= part
  measurements, decoding, measuring = zip(
    *(results[i] for i in sorted(results))
  )
  return list(measurements), {
    'decode': sum(decoding),
    'measure': sum(measuring),
    'wall': time.perf_counter() - start,
  }


def _measure(
  source: examples.Source,
  index: int,
  config: ml_collections.ConfigDict,
  borders: Mapping[int, np.ndarray | None],
) -> tuple[records.Measurement, float, float]:
  """Returns a measurement, and the seconds to decode and to measure.

  The borders are {index: border of its mask}; those of other pairs are tried.
  """
  result = records.Measurement(source.split, index, f'{source.split}[{index}]')
  start = decoded = time.thread_time()
  try:
    files = source.read(index)
    result.name, result.mask_name = files['name'], files['mask_name']
    example, unread = _decode(files, config.data)
    if unread:
      result.error = ('range of values', unread)
    decoded = time.thread_time()
    if 'image_file' in example:
      result.image_file = _file_info(example['image_file'])
      result.mask_file = _file_info(example['mask_file'])
    _measure_image(result, example, config.data)
    others = [b for i, b in borders.items() if i != index][:_TRIED]
    _measure_mask(result, example, config, others)
  except errors.DecodeError as e:
    result.error = ('broken', str(e))
  except errors.UserError as e:
    result.error = ('unusable values', str(e))
  end = time.thread_time()
  return result, decoded - start, end - decoded


def _file_info(file: decode.Decoded) -> records.FileInfo:
  return records.FileInfo(file.kind, file.orientation, file.pages)


def _decode(
  files: examples.Example, data: ml_collections.ConfigDict
) -> tuple[examples.Example, str]:
  """Decodes an example; by its own range if data.intensity has none for it.

  Returns:
    The example, and why no training could read it, or ''.
  """
  try:
    return examples.decode_example(files, data), ''
  except errors.DecodeError:
    raise
  except errors.UserError as e:
    data = data.copy_and_resolve_references()
    data.update(intensity='image', nodata=(*data.nodata, 'nan', 'inf', '-inf'))
    # Raises again if it is something else.
    example = examples.decode_example(files, data)
    levels = example['image_file'].levels
    stray = levels and levels.stray
    if stray is not None:
      data.nodata = (*data.nodata, stray)
      example = examples.decode_example(files, data)
      example['image_file'] = dataclasses.replace(
        example['image_file'], measure=lambda: levels
      )
    return example, str(e)


class Readable:
  """A source of which images can be looked at that no training could read."""

  def __init__(self, source: examples.Source, data: ml_collections.ConfigDict):
    self._source, self._data = source, data
    self.split, self.held_out = source.split, source.held_out
    self.fingerprint, self.groups = source.fingerprint, source.groups

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> examples.Example:
    return _decode(self._source.read(index), self._data)[0]

  def read(self, index: int) -> examples.Example:
    return self._source.read(index)


def _measure_image(
  result: records.Measurement,
  example: examples.Example,
  data: ml_collections.ConfigDict,
) -> None:
  image, ignored = example['image'], example.get('ignored')
  result.image_size = image.shape[:2]
  prepared_image = resize.resize_image(image, data.image_size, data.resize)
  result.digest = digests.digest(prepared_image)
  file = example.get('image_file')
  result.levels = file and file.levels
  if result.levels is None:
    result.levels = image_levels.measure(image, data, ignored=ignored)
  counted = None if ignored is None else (~ignored).astype(np.uint8)
  mean, std = cv2.meanStdDev(image, mask=counted)
  result.mean, result.std = mean.ravel() / 255, std.ravel() / 255
  if ignored is not None:
    # So that images are not alike by the shape of what they lack.
    image = np.where(ignored[..., None], mean.ravel(), image).astype(np.uint8)
  shrink(result, image)


def shrink(result: records.Measurement, image: np.ndarray) -> None:
  """Fills in the thumbnail and the detail of an image uint8 [H, W, C]."""
  # Eight pixels along each edge of a thumbnail's pixel are enough.
  edges = (8 * _THUMBNAIL, 8 * _THUMBNAIL)
  if min(image.shape[:2]) > edges[0]:
    image = cv2.resize(image, edges, interpolation=cv2.INTER_NEAREST)
  edges = (_DETAIL, _DETAIL)
  grey = image if image.ndim == 2 or image.shape[2] == 1 else image[..., 1]
  result.detail = cv2.resize(grey, edges, interpolation=cv2.INTER_AREA)
  edges = (_THUMBNAIL, _THUMBNAIL)
  small = cv2.resize(image, edges, interpolation=cv2.INTER_AREA)
  grey = small.reshape(_THUMBNAIL**2, -1).mean(1, dtype=np.float32)
  grey -= _PLANES @ (_PLANES.T @ grey)
  norm = np.linalg.norm(grey)
  # Less than a level of contrast is noise, and all noise looks alike.
  result.thumbnail = grey / norm if norm > _THUMBNAIL else 0 * grey


def _measure_mask(
  result: records.Measurement,
  example: examples.Example,
  config: ml_collections.ConfigDict,
  others: Sequence[np.ndarray | None],
) -> None:
  values = example['mask']
  result.mask_size = values.shape[:2]
  result.values = count_values(values)
  file, ignored = example.get('mask_file'), example.get('ignored')
  result.palette = file and file.palette
  if values.ndim == 2 and len(result.values) > 2:
    result.smoothed = smoothed.find(values)
    result.drawn = smoothed.drawn_values(values)
  classes = None
  try:
    classes = masks.map_mask(
      values,
      config.data.mask_values,
      config.data.num_classes,
      result.mask_name,
      examples.has_lossy_mask(example),
    )
  except errors.UserError as e:
    result.error = ('unknown values', str(e))
  try:
    prepared.check_sizes(example, config.data)
  except errors.UserError as e:
    result.error = ('different sizes', str(e))
    return
  if classes is None:
    # The fit of borders does not depend on the classes of the values.
    if values.ndim == 2 and 1 < len(result.values) < 256:
      _, inverse = np.unique(values, return_inverse=True)
      classes = inverse.reshape(values.shape).astype(np.uint8)
      result.fit = alignment.measure(example['image'], classes, others)
    return
  result.class_pixels = _class_pixels(result, config.data)
  if ignored is not None:
    classes[ignored] = fields.IGNORE_LABEL
    counts, number = masks.histogram(classes), len(result.class_pixels) - 1
    ignored_pixels = counts[fields.IGNORE_LABEL]
    result.class_pixels = np.append(counts[:number], ignored_pixels)
  result.instances = _count_instances(
    classes, example.get('instances'), result.class_pixels[:-1]
  )
  result.fit = alignment.measure(example['image'], classes, others)


def use_colors(
  measurements: records.Measurements, config: ml_collections.ConfigDict
) -> None:
  """Where palettes differ in a set, counts colours in place of indices.

  Args:
    measurements: of all splits. Masks with palettes get an `error` then.
    config: its data.mask_values says which indices matter.
  """
  palettes, message = masks.Palettes(config.data), ''
  of_palettes = [m for m in measurements if m.palette is not None and m.values]
  for m in of_palettes:
    try:
      palettes.add_values(m.values, m.palette, m.mask_name)
    except errors.UserError as e:
      message = message or str(e)
  if not message:
    return
  for m in of_palettes:
    colors = collections.Counter[records.Value]()
    for value, count in m.values.items():
      if value < len(m.palette):
        colors[tuple(m.palette[value].tolist())] += count
    m.values, m.class_pixels = dict(colors), None
    m.error = m.error or ('palettes differ', message)


def count_values(values: np.ndarray) -> records.Values:
  """Counts the pixels of each value or (r, g, b) of a mask as stored.

  Only the most frequent values are kept: all values of photographs or JPEGs
  would fill the memory.
  """
  is_color = values.ndim == 3
  if is_color:
    values = mask_colors.to_numbers(values)
  if values.dtype == np.uint8:
    counts = masks.histogram(values)
    found = np.flatnonzero(counts)
    counts = counts[found]
  else:
    found, counts = np.unique(values, return_counts=True)
  if len(found) > _MANY_VALUES:
    order = np.argsort(-counts, kind='stable')[:_MANY_VALUES]
    found, counts = found[order], counts[order]
  keys: list[records.Value] = found.tolist()
  if is_color:
    keys = [mask_colors.of_number(v) for v in keys]
  return dict(zip(keys, counts.tolist()))


def _class_pixels(
  result: records.Measurement, data: ml_collections.ConfigDict
) -> np.ndarray:
  """Pixels of each class and, last, of those ignored: int64 [classes + 1]."""
  num_names = max(data.num_classes, 2)
  # The table is applied to each value once: their counts are known.
  values = np.array([list(result.values)])
  classes = masks.map_mask(
    values, data.mask_values, data.num_classes, result.mask_name
  )[0]
  columns = np.where(classes == fields.IGNORE_LABEL, num_names, classes)
  counts = np.zeros(num_names + 1, np.int64)
  np.add.at(counts, columns, list(result.values.values()))
  return counts


def _count_instances(
  classes: np.ndarray, instances: np.ndarray | None, class_pixels: np.ndarray
) -> np.ndarray:
  """Objects of each class: int64 [classes]."""
  counts = np.zeros(len(class_pixels), np.int64)
  present = np.flatnonzero(class_pixels)
  if instances is not None:
    inside = instances != 0
    pairs = np.unique(np.stack([classes[inside], instances[inside]]), axis=1)
    return np.bincount(pairs[0].astype(np.intp), minlength=256)[: len(counts)]
  for c in present:
    # Outlines that are no hole's: quicker than to label each pixel.
    _, hierarchy = cv2.findContours(
      (classes == c).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    counts[c] = np.sum(hierarchy[0, :, 3] < 0)
  return counts
