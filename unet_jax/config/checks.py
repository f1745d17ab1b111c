"""What a config may not ask for: every check that needs only the config."""

import ml_collections

from unet_jax.config import fields
from unet_jax.runtime import errors

_DIMS = {2: 'two', 3: 'three'}


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
    if not 0 <= entry[1] < num_names and entry[1] != fields.IGNORE_LABEL:
      raise errors.UserError(
        f'--config.data.mask_values: {entry!r} maps to class {entry[1]}; '
        f'with data.num_classes={data.num_classes} the classes are 0 to '
        f'{num_names - 1}, or {fields.IGNORE_LABEL} to ignore'
      )
  names = fields.class_names(config)
  for name in config.eval.foreground:
    if name not in names:
      raise errors.UserError(
        f'--config.eval.foreground: no class is named {name!r}'
        f'{fields.nearest(name, names)}; the classes are {", ".join(names)}'
      )
  name = config.eval.instances
  if name and name not in names:
    raise errors.UserError(
      f'--config.eval.instances: no class is named {name!r}'
      f'{fields.nearest(name, names)}; the classes are {", ".join(names)}'
    )


def _check_augmentation(config: ml_collections.ConfigDict) -> None:
  """Checks probabilities, ranges, and what they ask of the images."""
  data, flat = config.data, fields.flatten(config)
  for field, value in flat.items():
    is_probability = field.startswith('augment.') and (
      field.endswith('.probability')
      or field.startswith(('augment.flip_', 'augment.rotate_'))
    )
    if is_probability and not 0 <= value <= 1:
      raise errors.UserError(
        f'--config.{field}={value}: a probability is between 0 and 1'
      )
  for field, (least, greatest) in fields.RANDOM_RANGES.items():
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
  data, names = config.data, fields.class_names(config)
  if not 0 <= data.foreground_fraction <= 1:
    raise errors.UserError(
      f'--config.data.foreground_fraction={data.foreground_fraction}: a '
      'fraction is between 0 and 1'
    )
  for name in data.sample_classes:
    if name not in names:
      raise errors.UserError(
        f'--config.data.sample_classes: no class is named {name!r}'
        f'{fields.nearest(name, names)}; the classes are {", ".join(names)}'
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
  features, pixels = fields.stage_features(m), 2**m.spatial_dims
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
  flat = fields.flatten(config)
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
  for field, allowed in fields.ONLY_VALUE_IN_3D.items():
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
  if data.num_classes > fields.IGNORE_LABEL:
    raise errors.UserError(
      f'--config.data.num_classes={data.num_classes}: at most '
      f'{fields.IGNORE_LABEL}, masks are 8 bit'
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
  flat = fields.flatten(config)
  for field, choices in fields.CHOICES.items():
    if flat[field] not in choices:
      raise errors.UserError(
        f'--config.{field}={flat[field]}: not one of '
        f'{", ".join(map(str, choices))}{fields.nearest(flat[field], choices)}'
      )
  for field, low in fields.AT_LEAST.items():
    if not flat[field] >= low:
      raise errors.UserError(
        f'--config.{field}={flat[field]}: must be at least {low}'
      )
  for field, (low, high) in fields.RANGES.items():
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
