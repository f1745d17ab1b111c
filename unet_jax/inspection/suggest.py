"""The config that fits a data set, from the measurements of its examples."""

import collections
import dataclasses
import pprint
import textwrap
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from unet_jax.config import default, fields
from unet_jax.inspection import classes, records
from unet_jax.models import unet
from unet_jax.runtime import errors

# Largest edge of whole images, and edge of the windows that are cut from larger
# ones, in pixels.
_LARGEST_IMAGE, _WINDOW = 512, 256
# Smallest edge at the bottom of the U, in pixels.
_SMALLEST_BOTTOM = 4
_LARGEST_DEPTH = 6
# Augmentations that grey images do not have.
_OF_COLORS = ('hue', 'saturation')
# Mean of values in 0..1 below which deep images most likely use fewer bits.
_DARK = 0.1


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """A value for a field, `section.name`."""

  field: str
  now: Any
  value: Any
  why: str


class _Suggestions(list[Suggestion]):
  """Suggestions for a config."""

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__()
    self.config = config
    self.now = fields.flatten(config)

  def add(self, field: str, value: Any, why: str) -> None:
    self.append(Suggestion(field, self.now[field], value, why))

  def add_names(self, num_classes: int) -> None:
    """Names of classes; without them, no field can refer to one."""
    now = tuple(self.config.data.class_names)
    names = now if len(now) == max(num_classes, 2) else ()
    why = 'one for each class, or () to number them'
    self.add('data.class_names', names, why)
    if names != now:
      why = 'it named a class that the data do not have'
      for field in ('eval.foreground', 'data.sample_classes'):
        if self.now[field]:
          self.add(field, (), why)
      if self.now['checkpoint.best_metric'].count('/') > 1:
        self.add('checkpoint.best_metric', 'eval/dataset_miou', why)

  def add_normalization(self, known: records.Measurements) -> None:
    mean, std = normalization(known)
    why = f'measured over {len(known)} images'
    files = [m.image_file for m in known if m.image_file]
    needs_color = any(
      self.now[f'augment.{name}.probability'] for name in _OF_COLORS
    )
    grey = all(f.kind.startswith(('grey', '1 bit')) for f in files)
    if files and grey and not needs_color:
      self.add('data.num_channels', 1, 'every image file is grey')
      mean, std = mean[:1], std[:1]
    deep = [
      m.mean.max() for m in known if m.image_file and m.image_file.is_deep
    ]
    # Most images have more than 8 bits and are nearly black.
    fill_little = len(deep) > len(known) / 2 and np.median(deep) < _DARK
    if self.config.data.intensity == 'dtype' and fill_little:
      # Once each image fills its range.
      mean, std = (0.5,) * len(mean), (0.25,) * len(std)
      why = 'typical values; measure again with data.intensity=image'
      self.add(
        'data.intensity',
        'image',
        'the images fill a small part of the range of their type',
      )
    self.add('data.mean', mean, why)
    self.add('data.std', std, why)

  def add_sizes(self, known: records.Measurements) -> None:
    """Size of the images, and the depth and the cache that it needs."""
    size, resize, why = _image_size([m.image_size for m in known])
    if self.config.augment.rotate_90 and size[0] != size[1]:
      side = max(32, round((size[0] * size[1]) ** 0.5 / 32) * 32)
      size, why = (side, side), f'{why}; square for augment.rotate_90'
    depth = int(np.log2(max(min(size) // _SMALLEST_BOTTOM, 1)))
    depth = min(depth, _LARGEST_DEPTH)
    reason = (
      f'the smaller edge stays at least {_SMALLEST_BOTTOM} px; take less for '
      'few images or little memory'
    )
    if self.config.model.features:  # A number for each stage.
      depth, reason = self.config.model.depth, 'model.features fixes it'
    if self.config.model.padding == 'valid':
      size, depth = _valid_size(size, depth, self.config)
      # As the 2015 paper does, instead of losing the image's border.
      resize = 'patch'
      why += '; the nearest that model.padding=valid takes, in mirrored tiles'
      reason = 'at most half of the image is lost at its border'
    self.add('data.image_size', size, why)
    self.add('data.resize', resize, why)
    self.add('model.depth', depth, reason)
    if resize == 'patch' and self.config.data.cache == 'none':
      self.add('data.cache', 'disk', 'windows are cut from cached arrays')


def suggest(
  measurements: records.Measurements, config: ml_collections.ConfigDict
) -> list[Suggestion]:
  """Returns a value for each field that follows from the split to train on."""
  found = _Suggestions(config)
  table, num_classes, why, order = classes.find_table(measurements, config)
  found.add('data.mask_values', table, why)
  found.add('data.num_classes', num_classes, why)
  found.add_names(num_classes)
  known = [m for m in measurements if m.mean is not None]
  if known:
    found.add_normalization(known)
    found.add_sizes(known)
  weights, why = classes.find_weights(measurements, order, num_classes)
  found.add('loss.class_weights', weights, why)
  return found


def _valid_size(
  size: tuple[int, int], depth: int, config: ml_collections.ConfigDict
) -> tuple[tuple[int, int], int]:
  """Returns the size and the depth of a network without padding.

  Args:
    size: wanted; the next larger edges that fit are taken.
    depth: at most.
    config: the present one, whose depth is not exceeded either.
  """

  def fit(edge: int, depth: int) -> tuple[int, int]:
    """Returns the next fitting edge, and that of its output."""
    while True:
      try:
        output = model.clone(depth=depth).output_size((edge, edge))
      except errors.UserError:
        edge += 1
      else:
        return edge, output[0]

  model = unet.create_model(config)
  depth = min(depth, model.depth)
  while depth:
    edge, output = fit(min(size), depth)
    if 2 * output >= edge:
      break
    depth -= 1
  return (fit(size[0], depth)[0], fit(size[1], depth)[0]), depth


def normalization(
  measurements: records.Measurements,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Returns mean and standard deviation over the pixels of all images.

  These are numbers per channel, of values in 0..1. There must be a measurement,
  and each of an image that could be decoded.
  """
  weights = np.prod([m.image_size for m in measurements], axis=1)
  mean = np.average([m.mean for m in measurements], 0, weights)
  squares = [m.mean**2 + m.std**2 for m in measurements]
  second = np.average(squares, 0, weights)
  std = np.maximum(np.sqrt(np.maximum(second - mean**2, 0)), 1 / 255)
  as_tuple = lambda x: tuple(round(float(v), 3) for v in x)
  return as_tuple(mean), as_tuple(std)


def _image_size(
  image_sizes: Sequence[tuple[int, int]],
) -> tuple[tuple[int, int], str, str]:
  """Returns image_size, resize and the reason."""
  sizes = np.array(image_sizes)
  height, width = np.median(sizes, 0)
  same = np.all(sizes == sizes[0])
  about = f'{"all" if same else "median"} {width:.0f} x {height:.0f} px'
  if min(height, width) >= 2 * _LARGEST_IMAGE:
    return (
      (_WINDOW, _WINDOW),
      'patch',
      f'{about} (width x height): windows of full resolution',
    )
  if same and max(height, width) <= _LARGEST_IMAGE:
    return (
      (int(height), int(width)),
      'stretch',
      f'{about} (width x height): nothing to resize',
    )
  # The median aspect, in multiples of 32, which all depths divide well.
  scale = min(1, _WINDOW / np.sqrt(height * width))
  rows, columns = (
    max(32, int(round(n * scale / 32)) * 32) for n in (height, width)
  )
  size = (rows, columns)
  ratio = (sizes[:, 1] / sizes[:, 0]) / (size[1] / size[0])
  varied = np.mean(np.maximum(ratio, 1 / ratio) > 1.5) > 0.05
  resize = 'pad' if varied else 'stretch'
  reason = 'their aspect varies' if varied else 'their aspect is much the same'
  return size, resize, f'{about} (width x height); {reason}'


def config_text(
  suggestions: Sequence[Suggestion],
  config: ml_collections.ConfigDict,
  source: str,
) -> str:
  """Returns the Python text of a config file with the suggestions in it.

  Args:
    config: the present one; its changes of the defaults are kept.
    source: names the data set, for the docstring.
  """
  base = fields.flatten(default.get_config())
  values = {
    field: value
    for field, value in fields.flatten(config).items()
    if value != base[field]
  }
  # The switch that asks for suggestions.
  values.pop('data.suggest', None)
  values.update({s.field: s.value for s in suggestions})
  sections: dict[str, dict] = collections.defaultdict(dict)
  for field, value in values.items():
    section, _, name = field.rpartition('.')
    sections[section][name] = value
  why = {s.field: s.why for s in suggestions}
  # Names of files may hold anything.
  source = ascii(source)[1:-1].replace('"', '\\"')
  lines = [
    f'"""Suggested by --mode=inspect for {source}."""',
    '',
    'from unet_jax.config import default',
    '',
    '',
    'def get_config():',
    '  config = default.get_config()',
  ]
  for section, changed in sections.items():
    path = f'config.{section}' if section else 'config'
    for name, value in changed.items():
      reason = why.get(f'{section}.{name}')
      if reason:
        text = f'{reason[0].upper()}{reason[1:]}.'
        lines += textwrap.wrap(
          text, 80, initial_indent='  # ', subsequent_indent='  # '
        )
      text = pprint.pformat(value, width=70, compact=True)
      lines.append(f'  {path}.{name} = ' + text.replace('\n', '\n  '))
  return '\n'.join([*lines, '  return config', ''])
