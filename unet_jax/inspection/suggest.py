"""The config that fits a data set, from the measurements of its examples."""

import collections
import dataclasses
import pprint
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from unet_jax.config import default, fields, mask_table, output_size
from unet_jax.inspection import classes, plan, records, samples

# Augmentations that grey images do not have.
_OF_COLORS = ('hue', 'saturation')
# A class this much rarer than the most frequent one gets Dice; docs/data.md has
# what that and class weights did on two sets.
_IMBALANCE = 5
# Classes whose values are listed.
_LISTED = 20


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
    levels = [m.levels for m in known if m.levels]
    if any(x.kind != 'uint8' for x in levels):
      why += f' as data.intensity={self.now["data.intensity"]} scales them'
    if 2 * sum(x.are_few for x in levels) > len(levels):
      # Of a range that loses levels they say nothing.
      why += ': set another one first, as is advised, and inspect again'
    files = [m.image_file for m in known if m.image_file]
    needs_color = any(
      self.now[f'augment.{name}.probability'] for name in _OF_COLORS
    )
    grey = all(f.kind.startswith(('grey', '1 bit')) for f in files)
    if files and grey and not needs_color:
      self.add('data.num_channels', 1, 'every image file is grey')
      mean, std = mean[:1], std[:1]
    self.add('data.mean', mean, why)
    self.add('data.std', std, why)

  def add_sizes(
    self, known: records.Measurements, sampled: Sequence[np.ndarray]
  ) -> None:
    """Size of the images, depth and width of the network, and its batch."""
    config, num_images = self.as_config(), len(known)
    found = plan.choose_size(
      [m.image_size for m in known],
      lambda size: samples.kept_iou(sampled, size, config.data),
      fields.class_names(config),
    )
    size, resize, why = found.size, found.resize, found.why
    if config.augment.rotate_90 and size[0] != size[1]:
      side = max(32, round((size[0] * size[1]) ** 0.5 / 32) * 32)
      size, why = (side, side), f'{why}; square for augment.rotate_90'
    depth, reason = plan.choose_depth(size, num_images)
    if config.model.features:  # A number for each stage.
      depth, reason = config.model.depth, 'model.features fixes it'
    if config.model.padding == 'valid':
      size, depth = _valid_size(size, depth, config.model)
      # As the 2015 paper does, instead of losing the image's border.
      resize = 'patch'
      why += '; the nearest that model.padding=valid takes, in mirrored tiles'
      reason = 'at most half of the image is lost at its border'
    self.add('data.image_size', size, why)
    self.add('data.resize', resize, why)
    self.add('model.depth', depth, reason)
    if resize == 'patch' and config.data.cache == 'none':
      self.add('data.cache', 'disk', 'windows are cut from cached arrays')
    elif resize != 'patch' and config.data.sample_classes:
      self.add('data.sample_classes', (), 'it chooses windows')

  def add_training(self, known: records.Measurements, on_cpu: bool) -> None:
    """Width, batch and learning rate, and the time that a training takes."""
    config, num_images = self.as_config(), len(known)
    width, batch = plan.choose_width(config.data.image_size, num_images, on_cpu)
    parts = config.optimizer.accumulate_steps
    machine = 'processors alone' if on_cpu else 'an accelerator'
    why = f'for {num_images} images and {machine}'
    if not config.model.features:
      self.add('model.base_features', width, why)
    self.add('data.batch_size', -(-batch // parts) * parts, why)
    steps = config.train.num_steps
    usual = default.get_config().optimizer
    names = ('name', 'learning_rate')
    if all(config.optimizer[n] == usual[n] for n in names):
      why = (
        f'for a run of {steps} steps: less for a longer one, which '
        'optimizer.warmup_steps follows by itself'
      )
      self.add('optimizer.learning_rate', plan.choose_rate(steps), why)
    why = plan.describe_time(self.as_config(), num_images, on_cpu)
    self.add('train.num_steps', steps, why)

  def add_loss(self, known: records.Measurements) -> None:
    """Dice beside the cross-entropy where classes are rare."""
    data = self.as_config().data
    table = mask_table.of(data)
    pixels = np.zeros(max(data.num_classes, 2))
    for m in known:
      for value, count in (m.values or {}).items():
        c = table.class_of(value)
        if c is not None and c < len(pixels):
          pixels[c] += count
    present = pixels[pixels > 0]
    imbalance = present.max() / present.min() if len(present) else 1
    if imbalance >= _IMBALANCE and not self.now['loss.weights.dice']:
      self.add(
        'loss.weights.dice',
        1.0,
        f'the most frequent class has {imbalance:.3g} times the pixels of the '
        'rarest, and Dice counts classes alike',
      )
    if self.now['loss.class_weights']:
      why = 'weights make rare classes too large; Dice does without'
      self.add('loss.class_weights', (), why)

  def as_config(self) -> ml_collections.ConfigDict:
    """Returns the config with what is suggested so far."""
    config = self.config.copy_and_resolve_references()
    config.update_from_flattened_dict({s.field: s.value for s in self})
    return config


def suggest(
  splits: Mapping[str, records.Measurements],
  sampled: Sequence[np.ndarray],
  config: ml_collections.ConfigDict,
  on_cpu: bool = True,
) -> list[Suggestion]:
  """Returns a value for each field that follows from the data.

  Args:
    splits: measurements of each split, of which the first is trained on.
    sampled: some of its masks as stored, see `samples.read_masks`.
    config: the present one.
    on_cpu: whether there is no accelerator.
  """
  found = _Suggestions(config)
  measurements = next(iter(splits.values()))
  every = [m for measured in splits.values() for m in measured]
  table, num_classes, why = classes.find_table(every, sampled, config)
  meaning = '' if table else f'; () stands for {_default_table(num_classes)}'
  found.add('data.mask_values', table, why + meaning)
  found.add('data.num_classes', num_classes, why)
  found.add_names(num_classes)
  known = [m for m in measurements if m.mean is not None]
  if known:
    found.add_normalization(known)
    found.add_sizes(known, sampled)
    found.add_loss(known)
    found.add_training(known, on_cpu)
  return found


def _default_table(num_classes: int) -> str:
  """Returns the table that () means; of many classes, its ends."""
  entries = [f'({c}, {c})' for c in range(max(num_classes, 2))]
  if len(entries) > _LISTED:
    entries[2:-1] = ['...']
  return f'({", ".join(entries)}, (255, 255)), where 255 is ignored'


def choose_orientation(
  splits: Mapping[str, records.Measurements], data: ml_collections.ConfigDict
) -> tuple[dict[str, Any], str]:
  """Returns data.orientation where masks fit only what a viewer shows, and why.

  That is told by sizes alone: those of some pairs are equal only once both are
  turned by their tags, and those of none only as they are stored.
  """
  only_turned = only_stored = 0
  for m in (m for measured in splits.values() for m in measured):
    if data.orientation == 'stored' and m.image_file and m.mask_size:
      image, mask = (
        tuple(size[:: -1 if file.orientation > 4 else 1])
        for size, file in (
          (m.image_size, m.image_file),
          (m.mask_size, m.mask_file),
        )
      )
      is_stored = tuple(m.image_size) == tuple(m.mask_size)
      only_turned += image == mask and not is_stored
      only_stored += is_stored and image != mask
  if not only_turned or only_stored:
    return {}, ''
  return {'orientation': 'upright'}, (
    f'tags turn the images of {only_turned} pairs for viewers, and only then '
    'do their masks have the same size'
  )


def _valid_size(
  size: tuple[int, int], depth: int, model: ml_collections.ConfigDict
) -> tuple[tuple[int, int], int]:
  """Returns the size and the depth of a network without padding.

  Args:
    size: wanted; the next larger edges that fit are taken.
    depth: at most.
    model: the present one, whose depth is not exceeded either.
  """
  model = model.copy_and_resolve_references()

  def fit(edge: int) -> tuple[int, int]:
    """Returns the next fitting edge, and that of its output."""
    while (output := output_size.valid_output(edge, model)) is None:
      edge += 1
    return edge, output

  model.depth = min(depth, model.depth)
  while model.depth:
    edge, output = fit(min(size))
    if 2 * output >= edge:
      break
    model.depth -= 1
  return (fit(size[0])[0], fit(size[1])[0]), model.depth


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
