"""Every check that needs only the config, and its message.

A table maps a message, `section.field: why`, to whether it applies. What needs
devices or processes is checked in runtime/mesh.py.
"""

import re
from typing import Any

import ml_collections

from unet_jax.config import fields, loss_checks, output_size, value_checks
from unet_jax.runtime import errors

Table = dict[str, Any]

# Modes that read data.
_READING = ('train', 'cross_validate', 'evaluate', 'inspect')
_PROBABILITY = re.compile(r'augment\.(flip_|rotate_|\w+\.probability$)')


def _are_numbers(values: tuple) -> bool:
  return all(isinstance(v, int | float) for v in values)


def _are_counts(values: tuple, length: int) -> bool:
  """Whether these are `length` whole numbers of at least 1."""
  whole = all(isinstance(v, int) and v >= 1 for v in values)
  return whole and len(values) == length


def _single_fields(config: ml_collections.ConfigDict, mode: str) -> Table:
  """Each field alone."""
  flat, table = fields.flatten(config), {}
  for field, choices in fields.CHOICES.items():
    allowed = ', '.join(map(str, choices))
    near = fields.nearest(flat[field], choices)
    table[f'{field}: not one of {allowed}{near}'] = flat[field] not in choices
  for field, least in fields.AT_LEAST.items():
    table[f'{field}: must be at least {least}'] = not flat[field] >= least
  for field, (low, high) in fields.RANGES.items():
    text = f'{field}: must be at least {low} and below {high}'
    table[text] = not low <= flat[field] < high
  for field in filter(_PROBABILITY.match, flat):
    text = f'{field}: a probability is between 0 and 1'
    table[text] = not 0 <= flat[field] <= 1
  for field, (low, high) in fields.RANDOM_RANGES.items():
    bounds = flat[field]
    is_pair = len(bounds) == 2 and _are_numbers(bounds)
    is_pair = is_pair and bounds[0] <= bounds[1]
    text = f'{field}: takes two numbers, the lower one first, such as '
    table[f'{text}{low},{high}'] = not is_pair
    text = f'{field}: must lie between {low} and {high}'
    table[text] = is_pair and not low <= bounds[0] <= bounds[1] <= high
  for field in ('data.image_pattern', 'data.mask_pattern'):
    is_set = flat[field] != ''
    table[f'{field}: must hold {{stem}} once'] = (
      flat[field].count('{stem}') != is_set
    )
  table |= fields.unknown_checks(config.data.skip_checks)
  fraction, flips = config.data.foreground_fraction, config.inference.flips
  return table | {
    'mesh.data: takes a number of devices, or -1 for all': (
      config.mesh.data != -1 and config.mesh.data < 1
    ),
    'data.foreground_fraction: a fraction is between 0 and 1': (
      not 0 <= fraction <= 1
    ),
    'model.kernel_size: must be odd, so that a convolution has a middle': (
      config.model.kernel_size % 2 == 0
    ),
    f'inference.flips: takes {" and ".join(fields.FLIPS)}, or () for none': (
      set(flips) - set(fields.FLIPS)
    ),
  }


def _volumes(config: ml_collections.ConfigDict, mode: str) -> Table:
  if config.model.spatial_dims == 2:
    return {}
  flat = fields.flatten(config)
  return {
    '--mode=inspect looks at images, not at volumes (model.spatial_dims=3); a '
    'training run checks what it can (data.check)': mode == 'inspect',
    '--mode=predict and unet_jax.load take images, not volumes '
    '(model.spatial_dims=3); --mode=evaluate measures the network': (
      mode in ('predict', 'load')
    ),
  } | {
    f'{field} is for images: volumes (model.spatial_dims=3) take {only} only': (
      flat[field] != only
    )
    for field, only in fields.ONLY_VALUE_IN_3D.items()
  }


def _tuples(config: ml_collections.ConfigDict, mode: str) -> Table:
  """Lengths and types of tuples."""
  data, m, flat = config.data, config.model, fields.flatten(config)
  axes = {2: 'height, width', 3: 'depth, height, width of a volume'}
  channels = (data.num_channels, 'data.num_channels')
  classes = (max(data.num_classes, 2), 'the classes; data.num_classes')
  table = {}
  for field, (length, what) in {
    'data.image_size': (m.spatial_dims, axes[m.spatial_dims]),
    'data.bands': channels,
    'data.mean': channels,
    'data.std': channels,
    'data.class_names': classes,
    'loss.class_weights': classes,
  }.items():
    value = flat[field]
    text = f'{field}: takes {length} values ({what}), not {len(value)}'
    is_needed = field in ('data.image_size', 'data.mean', 'data.std')
    table[text] = len(value) != length and (value or is_needed)
    is_text = field == 'data.class_names'
    table[f'{field}: takes numbers'] = not is_text and not _are_numbers(value)
  window, scales = config.inference.window, config.inference.scales
  are_scales = _are_numbers(scales) and all(0.1 <= s <= 10 for s in scales)
  weights, stages = m.deep_supervision, m.depth + 1
  return table | {
    'data.bands: takes numbers of bands, the first of which is 1': (
      not _are_counts(data.bands, len(data.bands))
    ),
    f'data.image_size: takes {({2: "two", 3: "three"})[m.spatial_dims]} '
    'numbers of pixels, at least 1 each': (
      not _are_counts(data.image_size, m.spatial_dims)
    ),
    'data.class_names: takes a different name for each class, as in cat,dog': (
      len(set(data.class_names)) < len(data.class_names)
    ),
    f'model.features: takes {stages} numbers of channels (model.depth={m.depth}'
    ' and the bottleneck), at least 1 each': (
      m.features and not _are_counts(m.features, stages)
    ),
    'model.deep_supervision: takes weights above 0': (
      not _are_numbers(weights) or not all(w > 0 for w in weights)
    ),
    'inference.window: takes height and width in pixels, or () for '
    'data.image_size': window and not _are_counts(window, 2),
    'inference.scales: takes factors from 0.1 to 10, such as 1.0,1.25': (
      not scales or not are_scales
    ),
  }


def _names(config: ml_collections.ConfigDict, mode: str) -> Table:
  """Names of classes and of the metric."""
  known, metrics = fields.class_names(config), fields.metric_names(config)
  best = config.checkpoint.best_metric
  named = [
    *(('eval.foreground', name) for name in config.eval.foreground),
    *(('eval.instances', name) for name in (config.eval.instances,) if name),
    *(('data.sample_classes', name) for name in config.data.sample_classes),
  ]
  return {
    f'--config.{field}: no class is named {name!r}'
    f'{fields.nearest(name, known)}; the classes are {", ".join(known)}': (
      name not in known
    )
    for field, name in named
  } | {
    'checkpoint.best_metric: an evaluation has no such metric'
    f'{fields.nearest(best, metrics)}; it has {", ".join(metrics)}': (
      mode in ('train', 'cross_validate')
      and best.removeprefix('-') not in metrics
    )
  }


def _augmentation(config: ml_collections.ConfigDict, mode: str) -> Table:
  data, augment = config.data, config.augment
  return {
    f'augment.rotate_90 needs a square data.image_size, not {data.image_size}; '
    'flip_horizontal with flip_vertical gives half turns': (
      augment.rotate_90 and len(set(data.image_size)) > 1
    ),
  } | {
    f'augment.{name}.probability: grey images (data.num_channels=1) have no '
    f'{name}; set it to 0': (
      augment[name].probability and data.num_channels == 1
    )
    for name in ('saturation', 'hue')
  }


def _model(config: ml_collections.ConfigDict, mode: str) -> Table:
  """Fields of the network that do not go together."""
  m = config.model
  features, pixels = fields.stage_features(m), 2**m.spatial_dims
  is_valid, most = m.padding == 'valid', max(m.depth - 1, 0)
  return {
    f'model.upsample makes {pixels} pixels of the channels of one: those of all'
    f' stages but the first, {features[1:]}, must be multiples of {pixels}; '
    'set model.features or base_features': (
      m.upsample == 'pixel_shuffle' and any(n % pixels for n in features[1:])
    ),
    'model.upsample changes the channels: model.upsample_kernel=0 is for '
    'bilinear, bilinear_corners and nearest': (
      m.upsample_kernel == 0 and m.upsample in ('transpose', 'pixel_shuffle')
    ),
    'model.upsample: where its pixels lie depends on the size of the image, '
    'which model.padding=valid is to do without; use bilinear': (
      is_valid and m.upsample == 'bilinear_corners'
    ),
    'model.upsample_kernel needs model.padding=same: without padding, an even '
    'kernel moves the image by half a pixel; use 1 or 3': (
      is_valid and m.upsample_kernel == 2 and m.upsample != 'transpose'
    ),
    f'model.squeeze_excite leaves nothing of the {min(features)} channels of a '
    f'stage; at most {min(features)}': m.squeeze_excite > min(features),
    f'model.dropout_stages: the encoder has {m.depth + 1} (model.depth='
    f'{m.depth} and the bottleneck)': m.dropout_stages > m.depth + 1,
    f'model.skip: at model.depth={m.depth} there is no gate, since the first '
    'stage has none; use concat, or a depth of 2': (
      m.skip == 'attention' and m.depth < 2
    ),
    'model.deep_supervision: takes a weight for each decoder stage but the '
    f'first, at most {most} at model.depth={m.depth}': (
      len(m.deep_supervision) > most
    ),
    'model.deep_supervision needs model.padding=same: with valid, the coarser '
    'logits cover more than the mask that is used': (
      m.deep_supervision and is_valid
    ),
  }


def _inference(config: ml_collections.ConfigDict, mode: str) -> Table:
  """Views and windows of predictions."""
  data, inference, spatial = config.data, config.inference, config.mesh.spatial
  window = inference.window
  size = window or data.image_size
  return {
    f'inference.window: with data.resize={data.resize} each image is one '
    'window; set it to ()': window and data.resize not in ('patch', 'crop'),
    f'inference.window with mesh.spatial={spatial}: rows of data.image_size are'
    ' split; set it to ()': window and spatial > 1,
    f'inference.rotate_90 needs square windows, not {size}; flips give half '
    'turns': inference.rotate_90 and len(set(size[-2:])) > 1,
    'inference.scales needs model.padding=same: with valid, few sizes fit the '
    'network': (
      config.model.padding == 'valid' and any(s != 1 for s in inference.scales)
    ),
  }


def _data(config: ml_collections.ConfigDict, mode: str) -> Table:
  """Splits, files, batches and sources."""
  data, parts = config.data, config.optimizer.accumulate_steps
  reads, drawn = mode in _READING, fields.OF_SHAPES
  downloads = data.source == 'tfds' and data.name != 'oxford_iiit_pet'
  return {
    'data.sample_classes chooses windows of images, which data.resize='
    f'{data.resize} does not draw; set --config.data.resize=patch': (
      data.sample_classes and data.resize != 'patch'
    ),
    'data.resize needs --config.data.cache=disk or memory: with none, the '
    'sizes of the images and the places of their classes are not known': (
      data.resize == 'patch' and data.cache == 'none'
    ),
    'data.train_split: name the split; auto is for eval_split': (
      data.train_split == 'auto'
    ),
    'data.on_error needs --config.data.cache=disk or memory: with none, files '
    'are first opened in the middle of training': (
      data.on_error == 'skip' and data.cache == 'none'
    ),
    f'data.batch_size cannot be run in optimizer.accumulate_steps={parts} '
    'equal parts; choose a multiple': data.batch_size % parts,
    f'data.dir with the TFDS set {data.name}: only oxford_iiit_pet is read from'
    ' a local copy; remove data.dir to download, or use --config=configs/'
    'folder.py': reads and downloads and data.dir,
    'export.path: takes the name of a .safetensors file': (
      mode == 'export' and not config.export.path.endswith('.safetensors')
    ),
    'the folder source needs --config.data.dir=DIR, a folder with images/ and '
    'masks/': reads and data.source == 'folder' and not data.dir,
    f'the shapes source draws {drawn["num_classes"]} classes in RGB: '
    f'data.num_classes must be {drawn["num_classes"]} and data.num_channels '
    f'{drawn["num_channels"]}': (
      reads
      and data.source == 'shapes'
      and any(data[k] != n for k, n in drawn.items())
    ),
  }


def _training(config: ml_collections.ConfigDict, mode: str) -> Table:
  """Runs that would learn nothing, or not what is asked for."""
  trains, o = mode in ('train', 'cross_validate'), config.optimizer
  return {
    # jax.random.key takes it modulo 2**32.
    'seed: must be below 4294967296 (2**32); a larger one would give the '
    'weights of a smaller one': trains and config.seed >= 2**32,
    'optimizer.decay_steps: the learning rate is 0 from there on, and '
    f'train.num_steps={config.train.num_steps}; set --config.optimizer.'
    'end_factor=0.01 or the like': (
      trains
      and 0 < o.decay_steps < config.train.num_steps
      and o.schedule != 'constant'
      and not o.end_factor
    ),
  }


def _folds(config: ml_collections.ConfigDict, mode: str) -> Table:
  """Cross-validation."""
  data, is_mode = config.data, mode == 'cross_validate'
  there = 'there are no folds; set data.num_folds'
  if data.num_folds:
    there = f'the folds are 0 to {data.num_folds - 1}'
  return {
    'data.num_folds leaves nothing to train on; take 2 or more, or 0 for no '
    'folds': data.num_folds == 1,
    f'data.fold: with data.num_folds={data.num_folds} {there}': (
      data.fold >= max(data.num_folds, 1)
    ),
    '--mode=cross_validate needs the number of folds, for instance '
    '--config.data.num_folds=5': is_mode and not data.num_folds,
    'data.eval_split: --mode=cross_validate evaluates each run on its fold; set'
    ' --config.data.eval_split=auto': is_mode and data.eval_split != 'auto',
  }


def _planning(config: ml_collections.ConfigDict, mode: str) -> Table:
  """What --mode=plan compiles."""
  plan, kinds = config.plan, ', '.join(fields.SLICES)
  kind, _, size = plan.topology.partition(':')
  axes = fields.SLICES.get(kind, 0)
  shapes = {k: ':' + 'x'.join('2' * n) for k, n in fields.SLICES.items()}
  known = ', '.join(k + v for k, v in shapes.items())
  number = r'[1-9]\d*'
  entry = rf'grid|({number}x){{2}}{number}(:{number})?'
  return {
    'plan.topology: GPUs cannot be planned (docs/plan.md says why); TPU slices '
    f'are {kinds}': bool(re.match('gpu|cuda|rocm|[abh][12]?00', kind.lower())),
    f'plan.topology: a kind of chip and chips along each axis, as {known}': (
      not re.fullmatch('x'.join([number] * axes) or '-', size)
    ),
    f'plan.steps: takes {", ".join(fields.STEPS)}': (
      not plan.steps or set(plan.steps) - set(fields.STEPS)
    ),
    'plan.sweep: takes DATAxFSDPxSPATIAL or DATAxFSDPxSPATIAL:BATCH, as in '
    '8x1x1:64, or grid': not all(re.fullmatch(entry, e) for e in plan.sweep),
  }


# A table may rely on those before it.
_TABLES = (
  _single_fields,
  _volumes,
  _tuples,
  *value_checks.TABLES,
  _names,
  _augmentation,
  loss_checks.table,
  _model,
  _inference,
  _data,
  _training,
  _folds,
  _planning,
)


def validate(config: ml_collections.ConfigDict, mode: str = 'train') -> None:
  """Raises UserError, one line, for the first field that cannot be used.

  The mode is a value of --mode, or `load`.
  """
  for table in _TABLES:
    for text, applies in table(config, mode).items():
      if applies:
        flat = fields.flatten(config)
        field = next((f for f in flat if re.match(rf'{f}\b', text)), None)
        if field:
          text = f'--config.{field}={flat[field]}{text.removeprefix(field)}'
        raise errors.UserError(text)
  if mode in ('train', 'cross_validate', 'summary', 'plan'):
    output_size.output_size(config.data.image_size, config.model)
