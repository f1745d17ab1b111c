"""Allowed values of the fields, and what is derived from them.

Only the standard library and ml_collections are imported here, so that a
mistake on the command line is answered at once.
"""

import difflib
import os
from collections.abc import Iterable
from typing import Any

import ml_collections

# The value of masks that counts in no loss and no metric.
IGNORE_LABEL = 255

# Fields and sections of older versions, as in saved configs, and the one of
# `--mode=import` as it was written on the command line; by their name now.
RENAMED = {
  'import_': 'weights',
  'import': 'weights',
  'log.num_figures': 'log.num_examples',
}

# Fields with a fixed set of values.
CHOICES = {
  'data.source': ('tfds', 'folder', 'shapes'),
  'data.num_channels': (1, 3),
  'data.holdout': ('random', 'last', 'folder'),
  'data.intensity': ('dtype', 'range', 'image'),
  'data.pages': ('one', 'images'),
  'data.alpha': ('refuse', 'drop', 'nodata'),
  'data.orientation': ('stored', 'upright'),
  'data.resize': ('stretch', 'pad', 'crop', 'patch'),
  'data.cache': ('disk', 'memory', 'none'),
  'data.on_error': ('stop', 'skip'),
  'augment.interpolation': ('bilinear', 'bicubic'),
  'augment.border': ('mirror', 'ignore'),
  'augment.cutout.mask': ('keep', 'ignore'),
  'loss.weight_map': ('none', 'border'),
  'loss.balance': ('none', 'image'),
  'model.spatial_dims': (2, 3),
  'model.depth': (0, 1, 2, 3, 4, 5, 6),
  'model.block': ('plain', 'residual'),
  'model.stem': ('none', 'space_to_depth'),
  'model.downsample': ('max', 'average', 'conv'),
  'model.upsample': (
    'transpose',
    'bilinear',
    'bilinear_corners',
    'nearest',
    'pixel_shuffle',
  ),
  'model.upsample_kernel': (0, 1, 2, 3),
  'model.skip': ('concat', 'add', 'none', 'attention'),
  'model.norm': ('none', 'batch', 'group', 'instance', 'layer'),
  'model.activation': ('relu', 'leaky_relu', 'elu', 'gelu', 'silu'),
  'model.padding': ('same', 'valid'),
  'model.dtype': ('float32', 'bfloat16'),
  'model.precision': ('default', 'high', 'highest'),
  'optimizer.name': ('adamw', 'sgd'),
  'optimizer.schedule': ('cosine', 'linear', 'constant'),
  'eval.params': ('ema', 'raw'),
  'eval.resolution': ('network', 'original'),
  'inference.blend': ('gaussian', 'constant'),
  'predict.probabilities': ('none', 'npz', 'tiff'),
  'weights.concat': ('auto', 'skip_first', 'up_first'),
  'export.format': ('unet_jax', 'milesial'),
  'checkpoint.which': ('latest', 'best', 'all'),
  'cpu.kernels': ('auto', 'native', 'xla'),
}

# Numbers with a lowest allowed value, and with a range [low, high).
AT_LEAST = {
  'seed': 0,
  'data.num_folds': 0,
  'data.fold': 0,
  'data.num_train': 1,
  'data.num_eval': 1,
  'data.num_classes': 1,
  'data.batch_size': 1,
  'data.num_workers': 0,
  'augment.elastic.grid': 2,
  'model.base_features': 1,
  'model.max_features': 1,
  'model.convs': 1,
  'model.kernel_size': 1,
  'model.squeeze_excite': 0,
  'model.norm_groups': 1,
  'model.dropout_stages': 1,
  'model.norm_epsilon': 0,
  'loss.weights.cross_entropy': 0,
  'loss.weights.focal': 0,
  'loss.weights.hard_pixels': 0,
  'loss.weights.dice': 0,
  'loss.weights.generalized_dice': 0,
  'loss.weights.tversky': 0,
  'loss.weights.lovasz': 0,
  'loss.weights.boundary': 0,
  'loss.weights.cl_dice': 0,
  'loss.focal_gamma': 0,
  'loss.skeleton_steps': 0,
  'loss.border_weight': 0,
  'optimizer.learning_rate': 0,
  'optimizer.warmup_steps': -1,
  'optimizer.eps': 0,
  'optimizer.end_factor': 0,
  'optimizer.decay_steps': 0,
  'optimizer.weight_decay': 0,
  'optimizer.clip_norm': 0,
  'optimizer.accumulate_steps': 1,
  'train.num_steps': 1,
  'eval.every': 0,
  'eval.num_examples': 0,
  'inference.batch_size': 0,
  'eval.band': 1,
  'eval.tolerance': 0,
  'eval.calibration_bins': 1,
  'eval.bootstrap': 0,
  'inspect.num_examples': 0,
  'checkpoint.every': 1,
  'checkpoint.keep_latest': 1,
  'checkpoint.keep_best': 0,
  'checkpoint.step': -1,
  'mesh.fsdp': 1,
  'mesh.spatial': 1,
  'log.every': 1,
  'log.num_examples': 0,
}
RANGES = {
  'data.val_fraction': (0.0, 1.0),
  'model.dropout': (0.0, 1.0),
  'loss.label_smoothing': (0.0, 1.0),
  'inference.overlap': (0.0, 1.0),
  'eval.boundary_ratio': (0.0, 1.0),
  'optimizer.b1': (0.0, 1.0),
  'optimizer.b2': (0.0, 1.0),
  'optimizer.momentum': (0.0, 1.0),
  'optimizer.ema_decay': (0.0, 1.0),
}

# Random ranges (low, high): smallest and largest bound allowed.
RANDOM_RANGES = {
  'augment.affine.rotation': (-180, 180),
  'augment.affine.scale': (0.1, 10),
  'augment.affine.shear': (-60, 60),
  'augment.affine.translation': (-1, 1),
  'augment.elastic.sigma': (0, 1000),
  'augment.crop.area': (0.01, 1),
  'augment.crop.aspect': (0.1, 10),
  'augment.brightness.range': (0, 10),
  'augment.contrast.range': (0, 10),
  'augment.saturation.range': (0, 10),
  'augment.hue.range': (-180, 180),
  'augment.gamma.range': (0.1, 10),
  'augment.blur.range': (0, 50),
  'augment.noise.range': (0, 255),
  'augment.cutout.range': (0, 1),
}

# The only value that 3-D models support for each field.
ONLY_VALUE_IN_3D = {
  'data.source': 'shapes',
  'data.resize': 'stretch',
  'augment.rotate_90': 0.0,
  'augment.affine.probability': 0.0,
  'augment.elastic.probability': 0.0,
  'augment.crop.probability': 0.0,
  'augment.blur.probability': 0.0,
  'augment.cutout.probability': 0.0,
  'loss.weight_map': 'none',
  'loss.balance': 'none',
}


# What is looked for in data, by the names that data.skip_checks takes. Files
# that cannot be used (broken, of other sizes, unknown values) are always found.
CHECKS = {
  'turned': 'masks that fit when flipped or turned',
  'stretched': 'masks that fit when squeezed or stretched',
  'moved': 'masks that fit when moved',
  'shuffled': 'masks that fit the images a few places further on',
  'unfit': 'masks that fit no better than those of other images',
  'edges': 'single masks that do not fit, unlike the others',
  'constant': 'images of nearly one colour',
  'levels': 'images that lose grey levels as they are read',
  'ignored': 'masks of which every pixel is ignored',
  'one_class': 'masks of one class, and empty ones',
  'absent': 'classes that do not occur',
  'duplicates': 'images that occur twice, within a split or in two',
  'near_duplicates': 'images that look the same',
  'neighbours': 'a series of which a part is held out at random',
  'smoothed': 'masks that were resized smoothly',
  'files': 'kinds of files that lose something, or that vary',
  'sizes': 'images that are distorted or shrunk a lot',
}
# Tuples of names; the others are of numbers, and data.mask_values is a table.
NAMES = (
  'data.class_names',
  'data.sample_classes',
  'eval.foreground',
  'inference.flips',
  'inference.ensemble',
  'inspect.splits',
  'data.skip_checks',
  'plan.steps',
  'plan.sweep',
)

# Allowed entries of plan.steps, and kinds of slices with their axes.
STEPS = ('train', 'evaluate', 'predict')
SLICES = {'v4': 3, 'v5e': 2, 'v5p': 3, 'v6e': 2}

# Allowed entries of inference.flips.
FLIPS = ('horizontal', 'vertical')

# The values that the shapes source needs in the section `data`.
OF_SHAPES = {'num_classes': 4, 'num_channels': 3}


def stage_features(model: Any) -> tuple[int, ...]:
  """Returns the channels of each stage, the bottleneck's last.

  The model is the section of a config, or the network made from it.
  """
  if model.features:
    return tuple(model.features)
  return tuple(
    min(model.base_features * 2**i, model.max_features)
    for i in range(model.depth + 1)
  )


# Steps of warm-up where optimizer.warmup_steps is -1, and the largest share of
# a run that they may be.
_WARMUP, _WARMUP_SHARE = 50, 1 / 8


def warmup_steps(warmup: int, num_steps: int) -> int:
  """Returns the steps of warm-up of a run, from optimizer.warmup_steps."""
  return min(_WARMUP, int(num_steps * _WARMUP_SHARE)) if warmup < 0 else warmup


class ConfigDict(ml_collections.ConfigDict):
  """Refuses True and False for a number, as for all other types.

  They are integers to Python, so that a float would become 1.0 in silence.
  """

  def __setitem__(self, key: str, value: Any) -> None:
    if hasattr(value, 'tolist'):  # NumPy's numbers are none of Python's types.
      value = value.tolist()
    if isinstance(value, bool) and type(self.get(key)) in (int, float):
      kind = type(self[key])
      raise TypeError(
        f"Could not override field '{key}'. {value} is of original type "
        f'{bool} and cannot be casted to type {kind}'
      )
    super().__setitem__(key, value)


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns {'section.field': value} for every leaf of `config`."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      for name, leaf in flatten(value).items():
        flat[f'{key}.{name}'] = leaf
    else:
      flat[key] = value
  return flat


def nearest(name: str, valid: Iterable) -> str:
  """Returns ' (did you mean X?)' for the nearest of `valid`, or ''."""
  names = [str(v) for v in valid]
  matches = difflib.get_close_matches(str(name), names, 1, 0.5)
  return f' (did you mean {matches[0]}?)' if matches else ''


def unknown_checks(skipped: Iterable[str]) -> dict[str, bool]:
  """Returns {what is wrong with data.skip_checks: whether it is}."""
  unknown = [name for name in skipped if name not in CHECKS]
  near = nearest(unknown[0], CHECKS) if unknown else ''
  named, there_are = ', '.join(map(repr, unknown)), ', '.join(CHECKS)
  text = f'data.skip_checks: no check {named}{near}; there are {there_are}'
  return {text: bool(unknown)}


def class_names(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Returns a name for each class; a sigmoid channel has two classes."""
  if config.data.class_names:
    return tuple(config.data.class_names)
  if config.data.num_classes == 1:
    return ('background', 'foreground')
  return tuple(f'class_{i}' for i in range(config.data.num_classes))


def metric_names(config: ml_collections.ConfigDict) -> list[str]:
  """Returns the names of the metrics of an evaluation while training."""
  scored = class_names(config)
  if config.eval.foreground:
    scored += ('+'.join(config.eval.foreground),)
  names = ['pixel_accuracy', 'loss']
  for reduction in ('dataset', 'image'):
    for score in ('iou', 'dice'):
      names.append(f'{reduction}_m{score}')
      names += [f'{reduction}_{score}/{name}' for name in scored]
  # A single class as the foreground has its name.
  return [f'eval/{name}' for name in dict.fromkeys(names)]


def renamed(name: str) -> str | None:
  """Returns the name now of an older version's field; None if it has none."""
  for old, new in RENAMED.items():
    if name == old or name.startswith(old + '.'):
      return new + name.removeprefix(old)
  return None


def cache_dir(config: ml_collections.ConfigDict) -> str:
  """Returns the absolute folder of everything that is kept between runs."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  path = config.data.cache_dir or os.path.join(home, 'unet_jax')
  return os.path.abspath(os.path.expanduser(path))
