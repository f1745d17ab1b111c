"""What predicts: parameters and settings, by which predictions are known."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from unet_jax.config import default, fields

# Sections whose fields change what is predicted, unless they are named below.
# Of a field that is new here, files are made again rather than kept wrongly.
_SECTIONS = ('data', 'model', 'inference')
_WITHOUT_EFFECT = (
  'data.source',
  'data.dir',
  'data.cache_dir',
  'data.name',
  'data.image_key',
  'data.mask_key',
  'data.instance_key',
  'data.train_split',
  'data.eval_split',
  'data.val_fraction',
  'data.holdout',
  'data.num_folds',
  'data.fold',
  'data.num_train',
  'data.num_eval',
  'data.foreground_fraction',
  'data.sample_classes',
  'data.batch_size',
  'data.cache',
  'data.num_workers',
  'data.on_error',
  'data.image_pattern',
  'data.mask_pattern',
  'data.check',
  'data.skip_checks',
  'data.suggest',
  'model.remat',
  'model.dropout',
  'model.dropout_stages',
  'model.deep_supervision',
  # Their parameters count.
  'inference.ensemble',
  'inference.batch_size',
)


class Network(NamedTuple):
  """What predicts: the digest of all parameters, and settings by field."""

  parameters: str
  settings: dict[str, str]
  about: dict[str, Any]


def describe(
  config: ml_collections.ConfigDict,
  variables: Any,
  members: Sequence[Mapping[str, Any]],
  files: Sequence[str] = (),
) -> Network:
  """Describes a network, or the average of several.

  Args:
    variables: of all of them, see `restore.restore`.
    members: what it says of each; for people.
    files: see `restore.fingerprints`.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    array = np.asarray(jax.device_get(leaf))
    about = f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'
    digest.update(about.encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
  return Network(
    digest.hexdigest(),
    _settings(config),
    {
      'steps': [member['step'] for member in members],
      'workdirs': [member['workdir'] for member in members],
      'files': list(files),
    },
  )


def _settings(config: ml_collections.ConfigDict) -> dict[str, str]:
  usual = fields.flatten(default.get_config())
  return {
    name: repr(value)
    for name, value in fields.flatten(config).items()
    if name.partition('.')[0] in _SECTIONS
    and name not in _WITHOUT_EFFECT
    and value != usual[name]
  }


def known(
  folder: pathlib.Path, config: ml_collections.ConfigDict, files: Sequence[str]
) -> Network | None:
  """Returns the network of a folder's index, where it has such files.

  Its parameters take long to restore, only to learn that all is done.
  """
  try:
    networks = json.loads((folder / 'index.json').read_text())['networks']
    for entry in networks.values() if all(files) else ():
      settings = entry.pop('settings')
      if entry.get('files') == files and settings == _settings(config):
        return Network(entry.pop('parameters'), settings, entry)
  except (OSError, ValueError, TypeError, KeyError, AttributeError):
    pass  # `Index` says so.
  return None
