"""Checks, comparison and storage of configs (the fields: configs/default.py).

Only the standard library and ml_collections are imported here, so that a
mistake on the command line is answered at once.
"""

import difflib
import json
import os
import pathlib
import re
from typing import Any

import ml_collections

from unet_jax import errors

# The value of masks that counts in no loss and no metric.
IGNORE_LABEL = 255

# Fields with a fixed set of values.
CHOICES = {
  'data.source': ('tfds', 'folder', 'shapes'),
  'data.num_channels': (1, 3),
  'data.holdout': ('random', 'last'),
  'data.intensity': ('dtype', 'image'),
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
  'optimizer.name': ('adamw', 'sgd'),
  'optimizer.schedule': ('cosine', 'linear', 'constant'),
  'eval.params': ('ema', 'raw'),
  'eval.resolution': ('network', 'original'),
  'inference.blend': ('gaussian', 'constant'),
  'predict.probabilities': ('none', 'npz', 'tiff'),
  'import_.concat': ('auto', 'skip_first', 'up_first'),
  'export.format': ('unet_jax', 'milesial'),
  'checkpoint.which': ('latest', 'best', 'all'),
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
  'loss.weights.dice': 0,
  'loss.border_weight': 0,
  'optimizer.learning_rate': 0,
  'optimizer.warmup_steps': 0,
  'optimizer.eps': 0,
  'optimizer.end_factor': 0,
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
  'log.num_figures': 0,
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

# Ranges (low, high) to draw from, and the least and the greatest value in them.
DRAWN = {
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

# What volumes take where images have a choice, until the rest is written for
# three axes.
_OF_VOLUMES = {
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
  # Split along a spatial axis, XLA's gradients of 3-D networks are wrong on
  # CPUs (jax 0.10.2): 6 % off in their norm.
  'mesh.spatial': 1,
}
_DIMS = {2: 'two', 3: 'three'}

# What a run may change when it continues; whole sections, or fields.
# train.num_steps may grow, see `check_resumable`.
FREE_TO_CHANGE = (
  'log',
  'eval',
  'inference',
  'inspect',
  'predict',
  'checkpoint',
  'summary',
  'mesh',
  'data.check',
  'data.suggest',
  'import_',
  'export',
  'data.cache',
  'data.cache_dir',
  'data.num_workers',
  'model.remat',
  'train.num_steps',
)
# What an evaluation of a checkpoint may not change: what its parameters, and
# the meaning of their inputs and outputs, depend on.
FIXED_IN_EVALUATION = (
  'model',
  'data.num_channels',
  'data.num_classes',
  'data.mean',
  'data.std',
)


def stage_features(model) -> tuple[int, ...]:
  """Returns the channels of each stage, the bottleneck's last.

  Args:
    model: the section of a config, or the network made from it.
  """
  if model.features:
    return tuple(model.features)
  return tuple(
    min(model.base_features * 2**i, model.max_features)
    for i in range(model.depth + 1)
  )


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


def nearest(name: str, valid) -> str:
  """Returns ' (did you mean X?)' for the nearest of `valid`, or ''."""
  names = [str(v) for v in valid]
  matches = difflib.get_close_matches(str(name), names, 1, 0.5)
  return f' (did you mean {matches[0]}?)' if matches else ''


def spelled_for_python(argument: str) -> str:
  """`--config.import.path=X` as `--config.import_.path=X`.

  config_flags reads names of fields with Python's parser, for which `import` is
  a keyword.
  """
  return re.sub(r'^(-*config\.import)\.', r'\1_.', argument)


def check_arguments(arguments, configs: pathlib.Path) -> None:
  """Checks what --config and --config.* name, before they are parsed.

  Args:
    arguments: of the command line, without the program's name.
    configs: the folder of the configs that come with the project.

  Raises:
    UserError: an unknown field, a value of another type, no such file, or
      --config behind the fields that it is to be changed by.
  """
  from configs import default

  fields = flatten(default.get_config())
  first = None
  for argument in arguments:
    name, _, value = spelled_for_python(argument).lstrip('-').partition('=')
    if name == 'config':
      path = value.partition(':')[0]
      if first:
        raise errors.UserError(f'{argument} comes after {first}; put it first')
      if path and not os.path.isfile(path):
        names = sorted(p.stem for p in configs.glob('[a-z]*.py'))
        stem = pathlib.Path(path).stem
        raise errors.UserError(
          f'--config={value}: no such file{nearest(stem, names)}; configs/ '
          f'has {", ".join(names)}'
        )
    elif argument.startswith('-') and name.startswith('config.'):
      first = first or argument
      _check_field(name.removeprefix('config.'), value, fields)


def _check_field(name: str, value: str, fields: dict[str, Any]) -> None:
  """Checks one --config.NAME=VALUE."""
  if any(field.startswith(name + '.') for field in fields):
    raise errors.UserError(
      f'--config.{name} is a section; set one of its fields: '
      + ', '.join(sorted(f for f in fields if f.startswith(name + '.')))
    )
  if name not in fields:
    raise errors.UserError(
      f'--config.{name}: there is no such field{nearest(name, fields)}; '
      'configs/default.py lists them all'
    )
  kind = type(fields[name])
  if kind is bool and value.lower() not in ('', 'true', 'false', '1', '0'):
    raise errors.UserError(f'--config.{name}={value}: takes True or False')
  if value and kind in (int, float):
    try:
      kind(value)
    except ValueError as e:
      what = 'a whole number' if kind is int else 'a number'
      raise errors.UserError(
        f'--config.{name}={value}: takes {what}, such as {fields[name]}'
      ) from e


def _check_lengths(config: ml_collections.ConfigDict) -> None:
  """Checks the tuples that belong to channels, classes and pixels."""
  data = config.data
  num_names = max(data.num_classes, 2)
  dims = config.model.spatial_dims
  lengths = {
    'data.image_size': (
      data.image_size,
      dims,
      'height, width' if dims == 2 else 'depth, height, width of a volume',
    ),
    'data.mean': (data.mean, data.num_channels, 'data.num_channels'),
    'data.std': (data.std, data.num_channels, 'data.num_channels'),
    'data.class_names': (data.class_names, num_names, 'the classes'),
    'loss.class_weights': (config.loss.class_weights, num_names, 'the classes'),
  }
  optional = ('data.class_names', 'loss.class_weights')
  for field, (value, length, what) in lengths.items():
    if len(value) != length and not (field in optional and not value):
      raise errors.UserError(
        f'--config.{field}={value}: takes {length} values ({what}), '
        f'not {len(value)}'
      )
    if field != 'data.class_names' and not all(
      isinstance(v, int | float) for v in value
    ):
      raise errors.UserError(f'--config.{field}={value}: takes numbers')
  if any(not isinstance(n, int) or n < 1 for n in data.image_size):
    raise errors.UserError(
      f'--config.data.image_size={data.image_size}: takes {_DIMS[dims]} '
      'numbers of pixels, at least 1 each'
    )
  if any(s <= 0 for s in data.std):
    raise errors.UserError(f'--config.data.std={data.std}: must be above 0')
  weights = config.loss.class_weights
  if weights and (min(weights) < 0 or not any(weights)):
    raise errors.UserError(
      f'--config.loss.class_weights={weights}: must be at least 0, and not '
      'all 0'
    )
  names = data.class_names
  if len(set(names)) < len(names) or any(not isinstance(n, str) for n in names):
    raise errors.UserError(
      f'--config.data.class_names={names}: takes a different name for each '
      'class; write \'("cat","dog")\''
    )


def _is_table_entry(entry) -> bool:
  """Whether it is (value, class) or ((r, g, b), class)."""
  if not isinstance(entry, tuple) or len(entry) != 2:
    return False
  value, label = entry
  numbers = value if isinstance(value, tuple) and len(value) == 3 else (value,)
  return all(isinstance(n, int) for n in (*numbers, label))


def _check_table(config: ml_collections.ConfigDict) -> None:
  """Checks the table of mask values and the foreground's names."""
  data = config.data
  num_names = max(data.num_classes, 2)
  for entry in data.mask_values:
    if not _is_table_entry(entry):
      raise errors.UserError(
        f'--config.data.mask_values: {entry!r} is not a pair (value, class); '
        "write '((0,0),(255,1))'"
      )
    if not 0 <= entry[1] < num_names and entry[1] != IGNORE_LABEL:
      raise errors.UserError(
        f'--config.data.mask_values: {entry!r} maps to class {entry[1]}; '
        f'with data.num_classes={data.num_classes} the classes are 0 to '
        f'{num_names - 1}, or {IGNORE_LABEL} to ignore'
      )
  names = class_names(config)
  for name in config.eval.foreground:
    if name not in names:
      raise errors.UserError(
        f'--config.eval.foreground: no class is named {name!r}'
        f'{nearest(name, names)}; the classes are {", ".join(names)}'
      )
  name = config.eval.instances
  if name and name not in names:
    raise errors.UserError(
      f'--config.eval.instances: no class is named {name!r}'
      f'{nearest(name, names)}; the classes are {", ".join(names)}'
    )


def _check_augmentation(config: ml_collections.ConfigDict) -> None:
  """Checks probabilities, ranges, and what they ask of the images."""
  data, flat = config.data, flatten(config)
  for field, value in flat.items():
    is_probability = field.startswith('augment.') and (
      field.endswith('.probability')
      or field.startswith(('augment.flip_', 'augment.rotate_'))
    )
    if is_probability and not 0 <= value <= 1:
      raise errors.UserError(
        f'--config.{field}={value}: a probability is between 0 and 1'
      )
  for field, (least, greatest) in DRAWN.items():
    limits = flat[field]
    numbers = [v for v in limits if isinstance(v, int | float)]
    if len(limits) != 2 or len(numbers) != 2 or not limits[0] <= limits[1]:
      raise errors.UserError(
        f'--config.{field}={limits}: takes two numbers, the lower one first, '
        f'such as {least},{greatest}'
      )
    if not least <= limits[0] <= limits[1] <= greatest:
      raise errors.UserError(
        f'--config.{field}={limits}: must lie between {least} and {greatest}'
      )
  if config.augment.rotate_90 and len(set(data.image_size)) > 1:
    raise errors.UserError(
      f'--config.augment.rotate_90={config.augment.rotate_90} needs a square '
      f'data.image_size, not {data.image_size}; flip_horizontal with '
      'flip_vertical gives half turns'
    )
  for name in ('saturation', 'hue'):
    if config.augment[name].probability and data.num_channels == 1:
      raise errors.UserError(
        f'--config.augment.{name}.probability='
        f'{config.augment[name].probability}: grey images (data.num_channels=1)'
        f' have no {name}; set it to 0'
      )


def _check_weight_map(config: ml_collections.ConfigDict) -> None:
  """Checks the fields of the weight map, and what it needs."""
  data, loss = config.data, config.loss
  if not loss.border_sigma > 0:
    raise errors.UserError(
      f'--config.loss.border_sigma={loss.border_sigma}: must be above 0 pixels'
    )
  for field in ('weight_map', 'balance'):
    if loss[field] != 'none' and not loss.weights.cross_entropy:
      raise errors.UserError(
        f'--config.loss.{field}={loss[field]} weighs the cross-entropy, which '
        'is left out (loss.weights.cross_entropy=0); set one of the two'
      )
  if data.instance_key and data.source != 'tfds':
    raise errors.UserError(
      f'--config.data.instance_key={data.instance_key} names a feature of the '
      f'tfds source, not of {data.source}; the folder source takes instances/ '
      'beside masks/'
    )


def _check_windows(config: ml_collections.ConfigDict) -> None:
  """Checks how windows are drawn."""
  data, names = config.data, class_names(config)
  if not 0 <= data.foreground_fraction <= 1:
    raise errors.UserError(
      f'--config.data.foreground_fraction={data.foreground_fraction}: a '
      'fraction is between 0 and 1'
    )
  for name in data.sample_classes:
    if name not in names:
      raise errors.UserError(
        f'--config.data.sample_classes: no class is named {name!r}'
        f'{nearest(name, names)}; the classes are {", ".join(names)}'
      )
  if data.sample_classes and data.resize != 'patch':
    raise errors.UserError(
      f'--config.data.sample_classes={data.sample_classes} chooses windows of '
      f'images, which data.resize={data.resize} does not draw; set '
      '--config.data.resize=patch'
    )
  if data.resize == 'patch' and data.cache == 'none':
    raise errors.UserError(
      '--config.data.resize=patch needs --config.data.cache=disk or memory: '
      'with none, the sizes of the images and the places of their classes are '
      'not known'
    )


def _check_model(config: ml_collections.ConfigDict) -> None:
  """Checks what the fields of the network ask of each other."""
  m = config.model
  if m.features and (
    len(m.features) != m.depth + 1
    or any(not isinstance(n, int) or n < 1 for n in m.features)
  ):
    raise errors.UserError(
      f'--config.model.features={m.features}: takes {m.depth + 1} numbers of '
      f'channels (model.depth={m.depth} and the bottleneck), at least 1 each'
    )
  features, pixels = stage_features(m), 2**m.spatial_dims
  if m.upsample == 'pixel_shuffle' and any(n % pixels for n in features[1:]):
    raise errors.UserError(
      f'--config.model.upsample=pixel_shuffle makes {pixels} pixels of the '
      f'channels of one: those of all stages but the first, {features[1:]}, '
      f'must be multiples of {pixels}; set model.features or base_features'
    )
  if m.upsample_kernel == 0 and m.upsample in ('transpose', 'pixel_shuffle'):
    raise errors.UserError(
      f'--config.model.upsample={m.upsample} changes the channels: '
      'model.upsample_kernel=0 is for bilinear, bilinear_corners and nearest'
    )
  if m.padding == 'valid' and m.upsample == 'bilinear_corners':
    raise errors.UserError(
      '--config.model.upsample=bilinear_corners: where its pixels lie depends '
      'on the size of the image, which model.padding=valid is to do without; '
      'use bilinear'
    )
  if (
    m.padding == 'valid'
    and m.upsample_kernel == 2
    and m.upsample != 'transpose'
  ):
    raise errors.UserError(
      '--config.model.upsample_kernel=2 needs model.padding=same: without '
      'padding, an even kernel moves the image by half a pixel; use 1 or 3'
    )
  if m.kernel_size % 2 == 0:
    raise errors.UserError(
      f'--config.model.kernel_size={m.kernel_size}: must be odd, so that a '
      'convolution has a middle'
    )
  if m.squeeze_excite > min(features):
    raise errors.UserError(
      f'--config.model.squeeze_excite={m.squeeze_excite} leaves nothing of the '
      f'{min(features)} channels of a stage; at most {min(features)}'
    )
  if m.dropout_stages > m.depth + 1:
    raise errors.UserError(
      f'--config.model.dropout_stages={m.dropout_stages}: the encoder has '
      f'{m.depth + 1} (model.depth={m.depth} and the bottleneck)'
    )
  if m.skip == 'attention' and m.depth < 2:
    raise errors.UserError(
      f'--config.model.skip=attention: at model.depth={m.depth} there is no '
      'gate, since the first stage has none; use concat, or a depth of 2'
    )
  weights = m.deep_supervision
  if any(not isinstance(w, int | float) or not w > 0 for w in weights):
    raise errors.UserError(
      f'--config.model.deep_supervision={weights}: takes weights above 0'
    )
  if len(weights) > max(m.depth - 1, 0):
    raise errors.UserError(
      f'--config.model.deep_supervision={weights}: takes a weight for each '
      f'decoder stage but the first, at most {max(m.depth - 1, 0)} at '
      f'model.depth={m.depth}'
    )
  if weights and m.padding == 'valid':
    raise errors.UserError(
      f'--config.model.deep_supervision={weights} needs model.padding=same: '
      'with valid, the coarser logits cover more than the mask that is used'
    )


def _check_inference(config: ml_collections.ConfigDict) -> None:
  """Checks views and windows of predictions."""
  data, inference = config.data, config.inference
  window = inference.window
  for name in inference.flips:
    if name not in ('horizontal', 'vertical'):
      raise errors.UserError(
        f'--config.inference.flips={inference.flips}: takes horizontal and '
        'vertical, or () for none'
      )
  if window and (
    len(window) != 2 or any(not isinstance(n, int) or n < 1 for n in window)
  ):
    raise errors.UserError(
      f'--config.inference.window={window}: takes height and width in pixels, '
      'or () for data.image_size'
    )
  if window and data.resize not in ('patch', 'crop'):
    raise errors.UserError(
      f'--config.inference.window={window}: with data.resize={data.resize} '
      'each image is one window; set it to ()'
    )
  if window and config.mesh.spatial > 1:
    raise errors.UserError(
      f'--config.inference.window={window} with mesh.spatial='
      f'{config.mesh.spatial}: rows of data.image_size are split; set it to '
      '()'
    )
  if inference.rotate_90 and len(set((window or data.image_size)[-2:])) > 1:
    raise errors.UserError(
      '--config.inference.rotate_90=True needs square windows, not '
      f'{window or data.image_size}; flips give half turns'
    )
  scales = inference.scales
  if not scales or any(
    not isinstance(s, int | float) or not 0.1 <= s <= 10 for s in scales
  ):
    raise errors.UserError(
      f'--config.inference.scales={scales}: takes factors from 0.1 to 10, such '
      'as 1.0,1.25'
    )
  if config.model.padding == 'valid' and any(s != 1 for s in scales):
    raise errors.UserError(
      f'--config.inference.scales={scales} needs model.padding=same: with '
      'valid, few sizes fit the network'
    )


def _check_volumes(config: ml_collections.ConfigDict, mode: str) -> None:
  """Refuses what works on images only."""
  if config.model.spatial_dims == 2:
    return
  flat = flatten(config)
  if mode == 'inspect':
    raise errors.UserError(
      '--mode=inspect looks at images, not at volumes (model.spatial_dims=3); '
      'a training run checks what it can (data.check)'
    )
  if mode == 'predict':
    raise errors.UserError(
      '--mode=predict and unet_jax.load take images, not volumes '
      '(model.spatial_dims=3); --mode=evaluate measures the network'
    )
  for field, allowed in _OF_VOLUMES.items():
    if flat[field] != allowed:
      raise errors.UserError(
        f'--config.{field}={flat[field]} is for images: volumes '
        f'(model.spatial_dims=3) take {allowed} only'
      )


def _check_folds(config: ml_collections.ConfigDict, mode: str) -> None:
  """Checks the fields of a cross-validation."""
  data = config.data
  if data.num_folds == 1:
    raise errors.UserError(
      '--config.data.num_folds=1 leaves nothing to train on; take 2 or more, '
      'or 0 for no folds'
    )
  if data.fold >= max(data.num_folds, 1):
    raise errors.UserError(
      f'--config.data.fold={data.fold}: with data.num_folds={data.num_folds} '
      + (
        f'the folds are 0 to {data.num_folds - 1}'
        if data.num_folds
        else 'there are no folds; set data.num_folds'
      )
    )
  if mode != 'cross_validate':
    return
  if not data.num_folds:
    raise errors.UserError(
      '--mode=cross_validate needs the number of folds, for instance '
      '--config.data.num_folds=5'
    )
  if data.eval_split != 'auto':
    raise errors.UserError(
      f'--config.data.eval_split={data.eval_split}: --mode=cross_validate '
      'evaluates each run on its fold; set --config.data.eval_split=auto'
    )


def _check_combinations(config: ml_collections.ConfigDict, mode: str) -> None:
  """Checks fields that only make sense together."""
  data = config.data
  if data.num_classes > IGNORE_LABEL:
    raise errors.UserError(
      f'--config.data.num_classes={data.num_classes}: at most '
      f'{IGNORE_LABEL}, masks are 8 bit'
    )
  if not any(config.loss.weights.values()):
    raise errors.UserError(
      'config.loss.weights: all are 0; set one, for instance '
      '--config.loss.weights.cross_entropy=1'
    )
  if data.train_split == 'auto':
    raise errors.UserError(
      '--config.data.train_split=auto: name the split; auto is for eval_split'
    )
  if data.on_error == 'skip' and data.cache == 'none':
    raise errors.UserError(
      '--config.data.on_error=skip needs --config.data.cache=disk or memory: '
      'with none, files are first opened in the middle of training'
    )
  if data.batch_size % config.optimizer.accumulate_steps:
    raise errors.UserError(
      f'--config.data.batch_size={data.batch_size} cannot be run in '
      f'optimizer.accumulate_steps={config.optimizer.accumulate_steps} equal '
      'parts; choose a multiple'
    )
  # The other modes read no data.
  reads = mode in ('train', 'cross_validate', 'evaluate', 'inspect')
  if reads and data.source == 'folder' and not data.dir:
    raise errors.UserError(
      'the folder source needs --config.data.dir=DIR, a folder with images/ '
      'and masks/'
    )


def validate(config: ml_collections.ConfigDict, mode: str = 'train') -> None:
  """Raises UserError, one line, for the first field that cannot be used.

  Args:
    config: any.
    mode: what is to be done with it, see main.py.
  """
  flat = flatten(config)
  for field, choices in CHOICES.items():
    if flat[field] not in choices:
      raise errors.UserError(
        f'--config.{field}={flat[field]}: not one of '
        f'{", ".join(map(str, choices))}{nearest(flat[field], choices)}'
      )
  for field, low in AT_LEAST.items():
    if not flat[field] >= low:
      raise errors.UserError(
        f'--config.{field}={flat[field]}: must be at least {low}'
      )
  for field, (low, high) in RANGES.items():
    if not low <= flat[field] < high:
      raise errors.UserError(
        f'--config.{field}={flat[field]}: must be at least {low} and below '
        f'{high}'
      )
  _check_volumes(config, mode)
  _check_augmentation(config)
  if config.mesh.data != -1 and config.mesh.data < 1:
    raise errors.UserError(
      f'--config.mesh.data={config.mesh.data}: takes a number of devices, or '
      '-1 for all'
    )
  _check_lengths(config)
  _check_table(config)
  _check_weight_map(config)
  _check_windows(config)
  _check_model(config)
  _check_inference(config)
  _check_combinations(config, mode)
  _check_folds(config, mode)


def class_names(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Returns a name for each class; a sigmoid channel has two classes."""
  if config.data.class_names:
    return tuple(config.data.class_names)
  if config.data.num_classes == 1:
    return ('background', 'foreground')
  return tuple(f'class_{i}' for i in range(config.data.num_classes))


def default_workdir(name: str) -> str:
  """Returns runs/NAME or runs/NAME-ARGUMENT of --config=NAME.py:ARGUMENT."""
  path, _, argument = name.partition(':')
  stem = pathlib.Path(path).stem
  return os.path.join('runs', f'{stem}-{argument}' if argument else stem)


def cache_dir(config: ml_collections.ConfigDict) -> str:
  """Returns the absolute folder of everything that is kept between runs."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  path = config.data.cache_dir or os.path.join(home, 'unet_jax')
  return os.path.abspath(os.path.expanduser(path))


def to_json(config: ml_collections.ConfigDict) -> str:
  """Returns `config` as indented JSON (tuples become lists)."""
  return json.dumps(config.to_dict(), indent=2)


def _tuples(value):
  if isinstance(value, list):
    return tuple(_tuples(v) for v in value)
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return value


def from_json(text: str) -> ml_collections.ConfigDict:
  """The inverse of `to_json`; fields that were added since have their default.

  Raises:
    UserError: a field that is not there any more.
  """
  from configs import default

  config = default.get_config()
  saved = flatten(ml_collections.ConfigDict(_tuples(json.loads(text))))
  unknown = sorted(set(saved) - set(flatten(config)))
  if unknown:
    raise errors.UserError(
      f'the saved config has the field {unknown[0]}, which this version does '
      'not know; use the version that it was made with'
    )
  config.update_from_flattened_dict(saved)
  return config


def read(
  workdir: str, overrides: dict[str, Any]
) -> ml_collections.ConfigDict | None:
  """Returns the config that a workdir's run has, if there is one.

  Args:
    workdir: of the run.
    overrides: {'section.field': value} that are set in it.
  """
  path = pathlib.Path(workdir, 'config.json')
  if not path.exists():
    return None
  try:
    config = from_json(path.read_text())
  except json.JSONDecodeError as e:
    raise errors.UserError(
      f'{path} is not valid JSON ({e}); restore it, or give --config'
    ) from e
  config.update_from_flattened_dict(overrides)
  return config


def set_field(config, name: str, value: Any) -> None:
  """Sets 'section.field' of a config; raises UserError if it cannot be."""
  fields = flatten(config)
  if name not in fields:
    raise errors.UserError(
      f'config.{name}: there is no such field{nearest(name, fields)}; '
      'configs/default.py lists them all'
    )
  try:
    config.update_from_flattened_dict({name: value})
  except (TypeError, ValueError) as e:
    kind = type(fields[name]).__name__
    raise errors.UserError(
      f'config.{name}={value!r}: takes a {kind}, such as {fields[name]!r}'
    ) from e


def _under(field: str, names) -> bool:
  return any(field == name or field.startswith(name + '.') for name in names)


def _difference(old, new, fields) -> str:
  old, new = flatten(old), flatten(new)
  return '; '.join(
    f'{f} was {old.get(f)!r}, now {new.get(f)!r}'
    for f in fields
    if old.get(f) != new.get(f)
  )


def check_resumable(old, new, workdir: str) -> None:
  """Raises UserError where `new` cannot continue a run of `old`.

  Args:
    old: the config that the checkpoint was saved with.
    new: the config that is asked for.
    workdir: named in the message.
  """
  fields = sorted(set(flatten(old)) | set(flatten(new)))
  fixed = [f for f in fields if not _under(f, FREE_TO_CHANGE)]
  differences = _difference(old, new, fixed)
  if differences:
    raise errors.UserError(
      f'{workdir} holds checkpoints of another config: {differences}. Choose '
      'another --workdir, or undo the change'
    )
  if new.train.num_steps < old.train.num_steps:
    raise errors.UserError(
      f'{workdir} was started with train.num_steps={old.train.num_steps}, '
      f'which may grow but not shrink to {new.train.num_steps}. Choose '
      'another --workdir, or undo the change'
    )


def is_of_network(field: str) -> bool:
  """Whether a checkpoint's parameters make no sense with another value."""
  return _under(field, FIXED_IN_EVALUATION) and field != 'model.remat'


def check_evaluable(
  old,
  new,
  workdir: str,
  remedy: str = 'Leave --config out to evaluate with the config of the workdir',
) -> None:
  """Raises UserError where parameters of `old` do not fit `new`."""
  fields = sorted(set(flatten(old)) | set(flatten(new)))
  fixed = [f for f in fields if is_of_network(f)]
  differences = _difference(old, new, fixed)
  if differences:
    raise errors.UserError(
      f'{workdir} holds checkpoints of another network: {differences}. '
      + remedy
    )
