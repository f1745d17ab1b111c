"""Arrays of a weight file as variables of our network."""

import collections
import logging
from typing import Any

import jax
import ml_collections
import numpy as np

from unet_jax.config import default, saved
from unet_jax.config import fields as fields_lib
from unet_jax.models import unet
from unet_jax.runtime import errors
from unet_jax.weights import deduce, files, keras_graph, naming

_log = logging.getLogger(__name__)

# By weights.concat: whether `Concatenate` takes the features from below first;
# None: as the file shows.
UP_FIRST = {'auto': None, 'skip_first': False, 'up_first': True}


def variables_of_file(
  file: files.WeightFile, config: ml_collections.ConfigDict
) -> dict[str, Any]:
  """Returns `params` and `batch_stats` of a config's network from a file.

  Raises:
    UserError: it does not fit. What is missing, left over or of another shape
      is logged, name by name.
  """
  model = unet.create_model(config)
  shape = (*config.data.image_size, config.data.num_channels)
  wanted = naming.abstract_variables(model, shape)
  if file.graph is not None:
    _check_same_network(file, config, keras_graph.fields(file.graph))
  weights = _named(file, config)
  naming.match_biases(weights, naming.flatten(wanted), config.model.norm)
  if weights.others:
    _log.info('not part of the network, skipped: %s', _counted(weights.others))
  for note in weights.notes:
    _log.info('%s', note)
  _check_fit(file, config, weights, naming.flatten(wanted))
  if weights.naming == 'milesial':
    _check_milesial(file, config)
  arrays = {k: _float32(v, k) for k, v in weights.arrays.items()}
  return naming.unflatten(arrays, wanted)


def _named(
  file: files.WeightFile, config: ml_collections.ConfigDict
) -> naming.Weights:
  """Returns a file's arrays under our names."""
  if naming.is_milesial(file.arrays):
    return naming.from_milesial(file)
  if not file.layers:
    return naming.from_ours(file)
  up_first = UP_FIRST[config.weights.concat]
  if up_first is None and file.graph is not None:
    up_first = keras_graph.concat_has_up_first(file.graph)
  if up_first is None and config.model.skip == 'concat' and config.model.depth:
    _log.info(
      "%s leaves open the order of Concatenate's inputs: taken as skip "
      'first (otherwise: --config.weights.concat=up_first)',
      file.path,
    )
  return naming.from_keras(file, _order(config), bool(up_first))


def _order(config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
  # As small as fits: only names matter.
  size = (2**config.model.depth,) * config.model.spatial_dims
  if config.model.padding == 'valid':
    size = config.data.image_size
  return naming.modules_in_order(
    unet.create_model(config), (*size, config.data.num_channels)
  )


def _check_same_network(
  file: files.WeightFile,
  config: ml_collections.ConfigDict,
  shown: deduce.Fields,
) -> None:
  """Raises where the config's network computes something else than the file's.

  Args:
    config: given for it.
    shown: fields by Keras' description, or by the names of a known program.
  """
  ours = fields_lib.flatten(config)
  differing = {
    k: v
    for k, v in shown.items()
    if k.startswith(('model.', 'data.mean', 'data.std'))
    and not _same(ours[k], v)
  }
  if differing:
    raise errors.UserError(
      f"{file.path}: the file's network is another one than the config's; it "
      f'fits with {flags(differing)}'
    )


def _check_milesial(
  file: files.WeightFile, config: ml_collections.ConfigDict
) -> None:
  """Checks fields that its names imply, and no shape: raises, or logs."""
  shown, _ = deduce.of_milesial(file)
  checked = [f for f in (*deduce.UNRECOVERABLE, 'model.upsample') if f in shown]
  # The images that a program was trained on are less certain than its layers.
  data = {f: shown[f] for f in checked if f.startswith('data.')}
  network = {f: shown[f] for f in checked if f not in data}
  _check_same_network(file, config, network)
  ours = fields_lib.flatten(config)
  data = {f: v for f, v in data.items() if not _same(ours[f], v)}
  if data:
    _log.info(
      '%s: the program that its names are of takes %s; the config has %s',
      file.path,
      flags(data),
      flags({f: ours[f] for f in data}),
    )


def _same(a: Any, b: Any) -> bool:
  if isinstance(b, tuple):
    return len(a) == len(b) and all(map(_same, a, b))
  return bool(np.isclose(a, b)) if isinstance(b, float) else a == b


def _check_fit(
  file: files.WeightFile,
  config: ml_collections.ConfigDict,
  weights: naming.Weights,
  wanted: dict[str, jax.ShapeDtypeStruct],
) -> None:
  """Logs every name that does not match; raises if there is any."""
  found = weights.arrays
  lines = {
    'in the file, not in the network': [
      *(f'{theirs} {array.shape}' for theirs, array in weights.rest.items()),
      *(
        f'{_both(weights, name)} {array.shape}'
        for name, array in found.items()
        if name not in wanted
      ),
    ],
    'in the network, not in the file': [
      f'{name} {leaf.shape}'
      for name, leaf in wanted.items()
      if name not in found
    ],
    'of another shape, the file': [
      f'{_both(weights, name)} {found[name].shape}, the network {leaf.shape}'
      for name, leaf in wanted.items()
      if name in found and found[name].shape != leaf.shape
    ],
  }
  for title, names in lines.items():
    for name in names:
      _log.info('%s: %s', title, name)
  left, lacking, other = map(len, lines.values())
  if not (left or lacking or other):
    return
  fields, unsure = _deduced(file, config)
  ours = fields_lib.flatten(config)
  different = {
    k: v
    for k, v in fields.items()
    if k.startswith(('model.', 'data.num_')) and not _same(ours[k], v)
  }
  advice = 'choose the config that it was trained with'
  if different:
    advice = f'try {flags(different)}'
  elif unsure:
    advice = '; '.join(unsure)
  raise errors.UserError(
    f"{file.path} does not fit the config's network: {left} arrays of the "
    f'file are not in the network, {lacking} of the network are not in the '
    f'file, {other} have another shape (all listed above); {advice}'
  )


def _drop_idle_cap(fields: deduce.Fields, ours: dict[str, Any]) -> None:
  """Removes a deduced model.max_features where ours gives the same widths."""
  base, depth = fields['model.base_features'], fields['model.depth']
  widest = lambda cap: min(base * 2**depth, cap)
  cap = fields['model.max_features']
  if 'model.features' in fields or widest(cap) == widest(
    ours['model.max_features']
  ):
    del fields['model.max_features']


def _both(weights: naming.Weights, name: str) -> str:
  """Our name and the file's."""
  theirs = weights.names[name]
  return name if theirs == name else f'{theirs} ({name})'


def _counted(names: list[str]) -> str:
  """The names, those that end alike as one."""
  counts = collections.Counter(name.rpartition('.')[2] for name in names)
  return ', '.join(
    name if count == 1 else f'{count} {name}' for name, count in counts.items()
  )


def _float32(array: np.ndarray, name: str) -> np.ndarray:
  if array.dtype != np.float32:
    _log.info('%s: %s to float32', name, array.dtype)
  return np.asarray(array, np.float32)


def flags(fields: dict[str, Any]) -> str:
  """Returns fields as they are written on the command line."""
  flags = []
  for field, value in fields.items():
    if isinstance(value, tuple):
      value = str(value).replace(' ', '')
      value = f"'{value}'"
    flags.append(f'--config.{field}={value}')
  return ' '.join(flags) or 'no further flag'


def _deduced(
  file: files.WeightFile, config: ml_collections.ConfigDict
) -> tuple[deduce.Fields, list[str]]:

  def order_of(fields: deduce.Fields) -> list[tuple[str, str]]:
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(fields)
    return _order(changed)

  if naming.is_milesial(file.arrays):
    fields, unsure = deduce.of_milesial(file)
  elif file.layers:
    fields, unsure = deduce.of_keras(file, order_of)
  else:
    arrays = naming.from_ours(file).arrays
    fields, unsure = deduce.fields_of_arrays(arrays)
  if fields:
    _drop_idle_cap(fields, fields_lib.flatten(config))
  return fields, unsure


def _open_fields(file: files.WeightFile, fields: deduce.Fields) -> list[str]:
  """Fields that the file's network depends on and that it leaves open."""
  fields_left = [f for f in deduce.UNRECOVERABLE if f not in fields]
  is_ours = not file.layers and not naming.is_milesial(file.arrays)
  if is_ours and fields.get('model.upsample') == 'transpose':
    # A convolution of 2x2 behind another upsampling has the same shape.
    fields_left.append('model.upsample')
  return fields_left


def deduced_config(overrides: dict[str, Any]) -> ml_collections.ConfigDict:
  """Returns the config that a file shows, for an import without --config.

  The overrides, {'section.field': value} of the command line, win.

  Raises:
    UserError: the file shows too little.
  """
  config = default.get_config()
  config.update_from_flattened_dict(overrides)
  file = files.read(config.weights.path)
  if 'config' in file.metadata:
    config = saved.from_json(file.metadata['config'])
    config.update_from_flattened_dict(overrides)
    return config
  fields, unsure = _deduced(file, config)
  if not fields:
    raise errors.UserError(
      f'{config.weights.path}: its {len(file.arrays) or len(file.layers)} '
      'names show no network; give its --config'
    )
  assumed = [f for f in _open_fields(file, fields) if f not in overrides]
  channels = fields['data.num_channels']
  # The default's, of as many channels.
  for name in ('mean', 'std'):
    value = config.data[name]
    fields.setdefault(f'data.{name}', (value * channels)[:channels])
  config.update_from_flattened_dict({**fields, **overrides})
  _log.info('deduced from the file: %s', flags(fields))
  if assumed:
    flat = fields_lib.flatten(config)
    _log.info(
      'not in the file, assumed: %s', flags({f: flat[f] for f in assumed})
    )
  for line in unsure:
    _log.info('%s', line)
  return config
