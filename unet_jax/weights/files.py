"""Reads files of weights, of any format: arrays with names."""

import dataclasses
import json
import os
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from unet_jax.runtime import errors

# Keys under which training scripts keep the state dict beside other things.
_STATE_DICTS = ('state_dict', 'model_state_dict', 'model')


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer of a Keras network, in the order in which it is called.

  Attributes:
    kind: its class in snake case, `conv2d_transpose`; '' where unknown.
    weights: array per role: `kernel`, `bias`, `gamma`, `moving_mean`, ...
  """

  name: str
  kind: str
  weights: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class WeightFile:
  """The content of a file.

  Attributes:
    arrays: by name, in the file's order and layout. {} for Keras.
    layers: of Keras' files; () for the others.
    graph: Keras' description of the network, where the file has one.
    metadata: text by name, of safetensors.
    others: entries that are no arrays, by name (or a few words on them).
  """

  path: str
  arrays: dict[str, np.ndarray]
  layers: tuple[Layer, ...] = ()
  graph: dict[str, Any] | None = None
  metadata: dict[str, str] = dataclasses.field(default_factory=dict)
  others: dict[str, Any] = dataclasses.field(default_factory=dict)


def read(path: str) -> WeightFile:
  """Reads a file of PyTorch, safetensors, NumPy (.npz) or Keras.

  The content shows the format; no code in it is run.

  Raises:
    UserError: there is no such file, it is none of these, it is damaged, or
      the package that reads it is not installed.
  """
  if not os.path.isfile(path):
    raise errors.UserError(
      f'--config.weights.path={path}: no such file; give a .pth, .safetensors, '
      '.npz, .keras or .h5 file'
    )
  reader = _reader(path)
  try:
    return reader(path)
  except ImportError as e:
    package = (e.name or '').partition('.')[0]
    raise errors.UserError(
      f'{path}: reading it needs the package {package}: pip install {package}'
    ) from e
  except errors.UserError:
    raise
  except Exception as e:
    reason = ' '.join(str(e).split())[:200]
    raise errors.UserError(
      f'{path}: cannot be read ({type(e).__name__}: {reason}); it is damaged, '
      'or holds more than arrays'
    ) from e


def _reader(path: str) -> Callable[[str], WeightFile]:
  """Returns the function that reads a file, by its first bytes."""
  with open(path, 'rb') as f:
    start = f.read(16)
  if start.startswith(b'\x89HDF'):
    return _read_hdf5
  if start[8:9] == b'{':
    return _read_safetensors
  if start.startswith(b'PK') and zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
    if 'model.weights.h5' in names:
      return _read_keras
    if names and all(n.endswith('.npy') for n in names):
      return _read_npz
  # Pickles, too, of PyTorch before 1.6.
  return _read_torch


def _read_npz(path: str) -> WeightFile:
  with np.load(path, allow_pickle=False) as f:
    return WeightFile(path, {k: f[k] for k in f.files})


def _read_safetensors(path: str) -> WeightFile:
  import safetensors

  with safetensors.safe_open(path, framework='numpy') as f:
    arrays = {k: f.get_tensor(k) for k in f.keys()}
    return WeightFile(path, arrays, metadata=f.metadata() or {})


def _read_torch(path: str) -> WeightFile:
  """A state dict, alone or in a dictionary."""
  import torch

  # Only tensors and plain values; a pickle that asks for more is refused.
  tree = torch.load(path, map_location='cpu', weights_only=True)
  others = {}
  if isinstance(tree, dict):
    for key in _STATE_DICTS:
      if isinstance(tree.get(key), dict):
        others = {k: v for k, v in tree.items() if k != key}
        tree = tree[key]
        break
  if not isinstance(tree, dict):
    raise errors.UserError(
      f'{path}: holds a {type(tree).__name__}, not a state dict; save '
      'model.state_dict()'
    )
  arrays = {}
  for name, value in tree.items():
    if not isinstance(value, torch.Tensor):
      others[name] = value
    elif value.dtype == torch.bfloat16:  # Which NumPy does not have.
      arrays[name] = value.detach().float().numpy()
    else:
      arrays[name] = value.detach().numpy()
  return WeightFile(path, arrays, others=others)


def _read_keras(path: str) -> WeightFile:
  import h5py

  with zipfile.ZipFile(path) as archive:
    graph = json.loads(archive.read('config.json'))
    # A network written as a class has no description.
    graph = graph if 'layers' in graph['config'] else None
    with archive.open('model.weights.h5') as f, h5py.File(f) as h5:
      return _keras_weights(path, h5, graph)


def _read_hdf5(path: str) -> WeightFile:
  import h5py

  with h5py.File(path) as h5:
    if 'layers' in h5:
      return _keras_weights(path, h5, None)
    root = h5['model_weights'] if 'model_weights' in h5 else h5
    if 'layer_names' not in root.attrs:
      raise errors.UserError(
        f'{path}: an HDF5 file that is not one of Keras; it has neither layers '
        'nor layer_names'
      )
    graph = None
    if 'model_config' in h5.attrs:
      graph = json.loads(_text(h5.attrs['model_config']))
    return _keras_legacy_weights(path, root, graph)


def _text(value: str | bytes) -> str:
  return value.decode() if isinstance(value, bytes) else value


def _snake(name: str) -> str:
  """`Conv2DTranspose` to `conv2d_transpose`, as Keras does."""
  name = re.sub('(.)([A-Z][a-z]+)', r'\1_\2', name)
  return re.sub('([a-z])([A-Z])', r'\1_\2', name).lower()


# The roles of the numbered variables of a layer in Keras 3's files.
_ROLES = {
  'conv': ('kernel', 'bias'),
  'batch_normalization': ('gamma', 'beta', 'moving_mean', 'moving_variance'),
  'group_normalization': ('gamma', 'beta'),
}


def _roles(kind: str, count: int) -> tuple[str, ...]:
  roles = _ROLES.get('conv' if kind.startswith('conv') else kind, ())
  # A norm without scale or centre has fewer; which, the numbers do not say.
  if len(roles) == count or kind.startswith('conv') and count == 1:
    return roles[:count]
  return tuple(map(str, range(count)))


def _class_and_number(group: str) -> tuple[str, int]:
  """`conv2d_transpose_12` to (`conv2d_transpose`, 12)."""
  kind, _, number = group.rpartition('_')
  return (kind, int(number)) if kind and number.isdigit() else (group, 0)


def _keras_weights(
  path: str, h5: Any, graph: dict[str, Any] | None
) -> WeightFile:
  """Keras 3's layout: layers/CLASS_NUMBER/vars/0, numbered in their order."""
  if 'layers' not in h5:
    raise errors.UserError(
      f'{path}: of a Keras network that is a class of its own; build it from '
      'layers (keras.Model(inputs, outputs)) and save that'
    )
  layers = []
  for group in sorted(h5['layers'], key=_class_and_number):
    node = h5['layers'][group]
    arrays, name = [], group
    if 'vars' in node:
      values = node['vars']
      arrays = [np.asarray(values[i]) for i in sorted(values, key=int)]
      name = _text(values.attrs.get('name', group))
    kind, _ = _class_and_number(group)
    weights = dict(zip(_roles(kind, len(arrays)), arrays))

    def add_deeper(path: str, item: Any) -> None:
      if hasattr(item, 'shape') and not path.startswith('vars/'):
        weights[path] = np.asarray(item)

    # Layers of networks within networks keep their path.
    node.visititems(add_deeper)
    if weights:
      layers.append(Layer(name, kind, weights))
  others = {k: 'not of the layers' for k in h5 if k not in ('layers', 'vars')}
  return WeightFile(path, {}, tuple(layers), graph, others=others)


def _keras_legacy_weights(
  path: str, root: Any, graph: dict[str, Any] | None
) -> WeightFile:
  """The layout of Keras 2 and of Keras 3's .h5: names, in their order."""
  kinds = {}
  if graph is not None:
    kinds = {
      layer['config']['name']: _snake(layer['class_name'])
      for layer in graph['config']['layers']
    }
  layers = []
  for name in map(_text, root.attrs['layer_names']):
    weights = {}
    for weight in map(_text, root[name].attrs['weight_names']):
      role = weight.rpartition('/')[2].partition(':')[0]
      weights[role] = np.asarray(root[name][weight])
    if weights:
      kind = kinds.get(name) or _kind_of(name, weights)
      layers.append(Layer(name, kind, weights))
  return WeightFile(path, {}, tuple(layers), graph)


def _kind_of(name: str, weights: dict[str, np.ndarray]) -> str:
  """The class of a layer, where only its name and weights are known."""
  if 'moving_mean' in weights:
    return 'batch_normalization'
  if 'gamma' in weights and name.startswith('group_normalization'):
    return 'group_normalization'
  if 'kernel' in weights and weights['kernel'].ndim > 2:
    dims = weights['kernel'].ndim - 2
    return f'conv{dims}d' + ('_transpose' if 'transpose' in name else '')
  return ''


def write_safetensors(
  path: str, arrays: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
  """Writes a file whole or not at all; raises UserError if it cannot."""
  from safetensors import numpy as safetensors
  from safetensors import SafetensorError

  # safetensors takes the buffer as it lies in memory.
  arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
  try:
    safetensors.save_file(arrays, path + '.tmp', metadata)
    os.replace(path + '.tmp', path)
  except (OSError, SafetensorError) as e:
    raise errors.UserError(
      f'{path} cannot be written ({e}); fix that, or choose another'
    ) from e
