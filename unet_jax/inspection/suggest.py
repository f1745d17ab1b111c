"""The config that fits a data set, from the measurements of its examples."""

import collections
import dataclasses
import pprint
import textwrap
from typing import Any

import numpy as np

from unet_jax.config import default
from unet_jax.config import fields as fields_lib
from unet_jax.inspection import scan
from unet_jax.models import unet
from unet_jax.runtime import errors

# The edge that whole images are brought to, at most, and the edge of windows
# that are cut from larger ones, in pixels.
_LARGEST_IMAGE, _WINDOW = 512, 256
# The smaller edge at the bottom of the U, in pixels, at least.
_SMALLEST_BOTTOM = 4
_LARGEST_DEPTH = 6
# Values of classes are most likely below this where 255 is what is ignored.
_SMALL = 64
# A table stays that fits this share of the masks. A value that is in less than
# these shares of pixels and of masks is most likely a slip of the pen.
_MOST = 0.9
_STRAY_PIXELS, _STRAY_MASKS = 1e-3, 0.05
# No class weighs more than this, or less than its inverse.
_LARGEST_WEIGHT = 10
# Augmentations that grey images do not have.
_OF_COLORS = ('hue', 'saturation')
# Mean of values in 0..1 below which deep images most likely use fewer bits.
_DARK = 0.1
# A class this much rarer than the most frequent one is worth a weight.
_IMBALANCE = 5


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """A value for a field.

  Attributes:
    field: `section.name`.
    now: its value in the config at hand.
    value: the suggested one.
    why: from what it follows.
  """

  field: str
  now: Any
  value: Any
  why: str


def suggest(measurements: list[scan.Measurement], config) -> list[Suggestion]:
  """Returns a value for each field that follows from the data.

  Args:
    measurements: of the split to train on.
    config: at hand.
  """
  flat = fields_lib.flatten(config)
  found = []

  def add(field: str, value, why: str):
    found.append(Suggestion(field, flat[field], value, why))

  table, num_classes, why, order = _table(measurements, config)
  add('data.mask_values', table, why)
  add('data.num_classes', num_classes, why)
  names = tuple(config.data.class_names)
  if len(names) != max(num_classes, 2):
    names = ()
  add('data.class_names', names, 'one for each class, or () to number them')
  if names != tuple(config.data.class_names):
    # What names classes that are no longer there.
    why = 'it named a class that the data do not have'
    for field in ('eval.foreground', 'data.sample_classes'):
      if flat[field]:
        add(field, (), why)
    if flat['checkpoint.best_metric'].count('/') > 1:
      add('checkpoint.best_metric', 'eval/dataset_miou', why)
  known = [m for m in measurements if m.mean is not None]
  if known:
    mean, std = normalization(known)
    why = f'measured over {len(known)} images'
    files = [m.image_file for m in known if m.image_file]
    needs_color = any(flat[f'augment.{n}.probability'] for n in _OF_COLORS)
    grey = all(f.kind.startswith(('grey', '1 bit')) for f in files)
    if files and grey and not needs_color:
      add('data.num_channels', 1, 'every image file is grey')
      mean, std = mean[:1], std[:1]
    if config.data.intensity == 'dtype' and _fills_little(known):
      # What they will be: each image fills its range.
      mean, std = (0.5,) * len(mean), (0.25,) * len(std)
      why = 'the usual ones, until it was looked at with data.intensity=image'
      add(
        'data.intensity',
        'image',
        'the images fill a small part of the range of their type',
      )
    add('data.mean', mean, why)
    add('data.std', std, why)
    size, resize, why = _image_size([m.image_size for m in known])
    if config.augment.rotate_90 and size[0] != size[1]:
      side = max(32, round((size[0] * size[1]) ** 0.5 / 32) * 32)
      size, why = (side, side), f'{why}; square for augment.rotate_90'
    depth = int(np.log2(max(min(size) // _SMALLEST_BOTTOM, 1)))
    depth = min(depth, _LARGEST_DEPTH)
    reason = (
      f'the smaller edge stays at least {_SMALLEST_BOTTOM} px; take less for '
      'few images or little memory'
    )
    if config.model.features:  # A number for each stage.
      depth, reason = config.model.depth, 'model.features says it'
    if config.model.padding == 'valid':
      size, depth = _valid_size(size, depth, config)
      # As the 2015 paper does, instead of losing the image's border.
      resize = 'patch'
      why += '; the nearest that model.padding=valid takes, in mirrored tiles'
      reason = 'at most half of the image is lost at its border'
    add('data.image_size', size, why)
    add('data.resize', resize, why)
    add('model.depth', depth, reason)
    if resize == 'patch' and config.data.cache == 'none':
      add('data.cache', 'disk', 'windows are cut from kept arrays')
  add('loss.class_weights', *_class_weights(measurements, order, num_classes))
  return found


def _fills_little(known) -> bool:
  """Whether most images of more than 8 bits are nearly black."""
  deep = [m.mean.max() for m in known if m.image_file and m.image_file.is_deep]
  return len(deep) > len(known) / 2 and np.median(deep) < _DARK


def _valid_size(size, depth: int, config):
  """Returns the size and the depth of a network without padding.

  Args:
    size: wanted; the next larger ones that fit are taken.
    depth: at most.
    config: at hand, whose depth is not exceeded either.
  """

  def fit(edge, depth):
    """The next fitting edge, and that of its output."""
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
  return tuple(fit(edge, depth)[0] for edge in size), depth


def _table(measurements, config):
  """Returns mask_values, num_classes, the reason, and {value: class}."""
  values, masks = collections.Counter(), 0
  for m in measurements:
    if m.values:
      values.update(m.values)
      masks += 1
  colors = any(isinstance(v, tuple) for v in values)
  if colors:
    # A mask of grey pixels alone comes as one channel.
    values = _as_colors(values)
  now = config.data
  order = _as_order(now.mask_values, max(now.num_classes, 2))
  same = lambda why: (now.mask_values, now.num_classes, why, order)
  mapped = [m for m in measurements if m.class_pixels is not None]
  occurring = np.sum([m.class_pixels for m in mapped], 0) if mapped else None
  if mapped and len(mapped) >= _MOST * masks:
    if occurring[:-1].all() or len(values) > 1 and now.mask_values:
      left = masks - len(mapped)
      return same(
        f'fits all masks but {left}, to be mended'
        if left
        else 'fits the masks as it is'
      )
  if any(m.mask_file and 'JPEG' in m.mask_file.kind for m in measurements):
    return same('masks that are JPEGs have lost their values')
  in_masks = collections.Counter(
    v for m in measurements for v in m.values or ()
  )
  if colors:
    in_masks = _as_colors(in_masks)
  stray = [
    v
    for v, pixels in values.items()
    if pixels < _STRAY_PIXELS * values.total()
    and in_masks[v] <= max(_STRAY_MASKS * masks, 1)
  ]
  for v in stray:
    del values[v]
  if len(values) > fields_lib.IGNORE_LABEL or not values:
    return same(
      f'{len(values)} different values in the masks: not a map of classes'
    )
  # Of colours the most frequent is most likely the background.
  ordered = sorted(values)
  if colors:
    ordered = [v for v, _ in values.most_common()]
  ignored = []
  # 255 beside small numbers is what many sets do not label.
  if (
    not colors
    and len(ordered) > 2
    and ordered[-1] == fields_lib.IGNORE_LABEL
    and ordered[-2] < _SMALL
  ):
    ignored = [ordered.pop()]
  num_classes = max(len(ordered), 2)
  order = {v: i for i, v in enumerate(ordered)}
  order.update({v: fields_lib.IGNORE_LABEL for v in ignored})
  listed = ', '.join(map(str, list(order)[:12]))
  why = f'the values in {masks} masks: {listed}'
  if stray:
    why += (
      f'; left out, since they are in few pixels of few masks: '
      f'{", ".join(map(str, sorted(stray)[:12]))}: mend those masks'
    )
  plain = all(v == c for v, c in order.items())
  return (() if plain else tuple(order.items())), num_classes, why, order


def _as_color(value) -> tuple[int, int, int]:
  return value if isinstance(value, tuple) else (value,) * 3


def _as_colors(values) -> collections.Counter:
  """{value or (r, g, b): count} with colours alone."""
  colors = collections.Counter()
  for value, count in values.items():
    colors[_as_color(value)] += count
  return colors


def _as_order(table, num_names: int) -> dict:
  if table:
    return dict(table)
  return {i: i for i in (*range(num_names), fields_lib.IGNORE_LABEL)}


def normalization(measurements):
  """Returns mean and standard deviation over the pixels of all images.

  Args:
    measurements: at least one, each of an image that could be decoded.

  Returns:
    Two tuples of a number per channel, of values in 0..1.
  """
  weights = np.prod([m.image_size for m in measurements], axis=1)
  mean = np.average([m.mean for m in measurements], 0, weights)
  second = [m.mean**2 + m.std**2 for m in measurements]
  second = np.average(second, 0, weights)
  std = np.maximum(np.sqrt(np.maximum(second - mean**2, 0)), 1 / 255)
  as_tuple = lambda x: tuple(round(float(v), 3) for v in x)
  return as_tuple(mean), as_tuple(std)


def _image_size(sizes):
  """Returns image_size, resize and the reason."""
  sizes = np.array(sizes)
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
  size = tuple(
    max(32, int(round(n * scale / 32)) * 32) for n in (height, width)
  )
  ratio = (sizes[:, 1] / sizes[:, 0]) / (size[1] / size[0])
  varied = np.mean(np.maximum(ratio, 1 / ratio) > 1.5) > 0.05
  resize = 'pad' if varied else 'stretch'
  reason = 'their aspect varies' if varied else 'their aspect is much the same'
  return size, resize, f'{about} (width x height); {reason}'


def _class_weights(measurements, order: dict, num_classes: int):
  """Median-frequency balancing (Eigen and Fergus 2015, arXiv 1411.4734)."""
  pixels = np.zeros(max(num_classes, 2))
  present = np.zeros_like(pixels)  # Pixels of the masks that have the class.
  for m in measurements:
    mine = np.zeros_like(pixels)
    for value, count in (m.values or {}).items():
      c = order.get(value, order.get(_as_color(value), fields_lib.IGNORE_LABEL))
      if c < len(mine):
        mine[c] += count
    pixels += mine
    present += np.where(mine > 0, mine.sum(), 0)
  if not pixels.all():
    return (), 'a class does not occur, so that there is nothing to balance'
  imbalance = pixels.max() / pixels.min()
  if imbalance < _IMBALANCE:
    return (), (
      f'the most frequent class has {imbalance:.1f} times the pixels of the '
      f'rarest: below {_IMBALANCE}, no weights'
    )
  frequency = pixels / present
  weights = np.median(frequency) / frequency
  weights = weights.clip(1 / _LARGEST_WEIGHT, _LARGEST_WEIGHT)
  rounded = tuple(float(f'{w:.3g}') for w in weights)
  return rounded, (
    f'median-frequency balancing, at most {_LARGEST_WEIGHT}; the most frequent '
    f'class has {imbalance:.1f} times the pixels of the rarest'
  )


def config_text(suggestions: list[Suggestion], config, source: str) -> str:
  """Returns the Python text of a config file with the suggestions in it.

  Args:
    suggestions: see `suggest`.
    config: at hand; what it changes of the defaults is kept.
    source: what was inspected, for the docstring.
  """
  base = fields_lib.flatten(default.get_config())
  values = {
    field: value
    for field, value in fields_lib.flatten(config).items()
    if value != base[field]
  }
  # It is the suggestion's own switch.
  values.pop('data.suggest', None)
  values.update({s.field: s.value for s in suggestions})
  sections = collections.defaultdict(dict)
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
  for section, fields in sections.items():
    path = f'config.{section}' if section else 'config'
    for name, value in fields.items():
      reason = why.get(f'{section}.{name}')
      if reason:
        text = f'{reason[0].upper()}{reason[1:]}.'
        lines += textwrap.wrap(
          text, 80, initial_indent='  # ', subsequent_indent='  # '
        )
      text = pprint.pformat(value, width=70, compact=True)
      lines.append(f'  {path}.{name} = ' + text.replace('\n', '\n  '))
  return '\n'.join([*lines, '  return config', ''])
