"""Names and layouts that other programs give to the U-Net's parameters.

Our names are paths in the network: `down_0/conv1/kernel`, without the
collection (`params` or `batch_stats`), which the last word implies. Kernels are
[k, k, in, out], those of transposed convolutions in the order of lax
(mirrored).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from unet_jax.weights import files

# Roles of a norm in Keras and in PyTorch.
_KERAS_ROLES = {
  'gamma': 'scale',
  'beta': 'bias',
  'moving_mean': 'mean',
  'moving_variance': 'var',
}
_TORCH_ROLES = {
  'weight': 'scale',
  'bias': 'bias',
  'running_mean': 'mean',
  'running_var': 'var',
}
# Prefixes that wrappers put before all names of a state dict.
_WRAPPERS = ('module.', '_orig_mod.', 'model.', 'net.', 'params/', 'params.')


@dataclasses.dataclass
class Weights:
  """Arrays under our names.

  Attributes:
    arrays: by our name, in our layout.
    names: the file's name of each.
    rest: arrays of the file that have no name of ours, by the file's name.
    others: entries of the file that are no parameters; they are not used.
    notes: changes beyond names and layout; one line each.
    naming: whose names the file has: `ours`, `milesial` or `keras`.
  """

  naming: str
  arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  names: dict[str, str] = dataclasses.field(default_factory=dict)
  rest: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  others: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)

  def add(self, name: str, theirs: str, array: np.ndarray) -> None:
    self.arrays[name], self.names[name] = array, theirs


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {name: leaf} of `params` and `batch_stats`."""
  flat: dict[str, Any] = {}
  for tree in variables.values():
    flat |= traverse_util.flatten_dict(tree, sep='/')
  return flat


def unflatten(
  arrays: Mapping[str, np.ndarray], variables: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns a tree as `variables` with the arrays as leaves."""
  return {
    collection: traverse_util.unflatten_dict(
      {k: arrays[k] for k in traverse_util.flatten_dict(tree, sep='/')}, sep='/'
    )
    for collection, tree in variables.items()
  }


def abstract_variables(
  model: nn.Module, image_shape: tuple[int, ...]
) -> dict[str, Any]:
  """Returns shapes and types of a network's `params` and `batch_stats`."""
  shapes = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, *image_shape)), train=False),
    jax.random.key(0),
  )
  return {'params': shapes['params'], 'batch_stats': {}, **shapes}


def modules_in_order(
  model: nn.Module, image_shape: tuple[int, ...]
) -> list[tuple[str, str]]:
  """Returns the modules that have parameters, in the order of their calls.

  Args:
    image_shape: [H, W, C] of an image that it takes.

  Returns:
    (path, kind); `conv`, `transpose` (a transposed convolution) or `norm`.
  """
  called: dict[str, str] = {}

  def record(
    call: Callable,
    args: Any,
    kwargs: Any,
    context: nn.module.InterceptorContext,
  ) -> Any:
    path = '/'.join(context.module.path)
    called.setdefault(path, type(context.module).__name__)
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    names = flatten(abstract_variables(model, image_shape))
  owners = {name.rpartition('/')[0] for name in names}
  order = []
  for path, kind in called.items():
    if path in owners:
      if f'{path}/scale' in names:
        kind = 'norm'
      elif kind.startswith('ConvTranspose'):
        kind = 'transpose'
      else:
        kind = 'conv'
      order.append((path, kind))
  return order


def is_milesial(arrays: dict[str, np.ndarray]) -> bool:
  return any(re.search(r'\bdouble_conv\.\d', name) for name in arrays)


def without_wrappers(
  arrays: dict[str, np.ndarray],
) -> dict[str, tuple[str, np.ndarray]]:
  """Returns {name: (name in the file, array)}, without a common prefix.

  DataParallel, torch.compile and training frameworks put one before all names.
  """
  named = {name: (name, array) for name, array in arrays.items()}
  for _ in _WRAPPERS:
    for prefix in _WRAPPERS:
      if named and all(name.startswith(prefix) for name in named):
        named = {k.removeprefix(prefix): v for k, v in named.items()}
  return named


def from_ours(file: files.WeightFile) -> Weights:
  """Takes our own names, joined by dots or slashes.

  With `params/` and `batch_stats/` in front, or without.
  """
  weights = Weights('ours', others=[str(name) for name in file.others])
  for name, (theirs, array) in without_wrappers(file.arrays).items():
    path = name.replace('.', '/')
    path = path.removeprefix('params/').removeprefix('batch_stats/')
    weights.add(path, theirs, array)
  return weights


def from_milesial(file: files.WeightFile) -> Weights:
  """Takes a state dict in the names of github.com/milesial/Pytorch-UNet.

  `inc`, `down1` to `downN` (the last is the bottleneck), `up1` (the coarsest)
  to `upN`, `outc`; in each double convolution 0 and 3 are the convolutions, 1
  and 4 their batch norms.
  """
  weights = Weights('milesial', others=[str(name) for name in file.others])
  named = without_wrappers(file.arrays)
  downs = [re.match(r'down(\d+)\.', name) for name in named]
  depth = max((int(m[1]) for m in downs if m), default=0)
  for name, (theirs, array) in named.items():
    if name.endswith('.num_batches_tracked'):
      weights.others.append(theirs)
      continue
    path = _milesial_path(name, array.ndim, depth)
    if path is None:
      weights.rest[theirs] = array
    else:
      is_transposed = path.startswith('upsample_') and array.ndim > 2
      weights.add(path, theirs, _from_torch(array, is_transposed))
  _fold_biases(weights)
  return weights


def _milesial_path(name: str, ndim: int, depth: int) -> str | None:
  """Our name of one of milesial's; None for what is no parameter of it."""
  *parents, role = name.split('.')
  parent = '.'.join(parents)
  if parent in ('outc.conv', 'outc'):
    return f'head/{"kernel" if role == "weight" else role}'
  m = re.fullmatch(r'up(\d+)\.up', parent)
  if m:
    role = 'kernel' if role == 'weight' else role
    return f'upsample_{depth - int(m[1])}/conv/{role}'
  m = re.fullmatch(
    r'(?:inc|down(\d+)\.maxpool_conv\.1|up(\d+)\.conv)\.double_conv\.(\d+)',
    parent,
  )
  if not m:
    return None
  block = f'down_{m[1] or 0}'
  if m[2]:
    block = f'up_{depth - int(m[2])}'
  elif int(m[1] or 0) == depth:
    block = 'bottleneck'
  number, is_norm = int(m[3]) // 3 + 1, int(m[3]) % 3 == 1
  if is_norm and role in _TORCH_ROLES:
    return f'{block}/norm{number}/{_TORCH_ROLES[role]}'
  return f'{block}/conv{number}/{"kernel" if ndim > 1 else role}'


def _from_torch(array: np.ndarray, is_transposed: bool) -> np.ndarray:
  """[out, in, k, k] or, transposed, [in, out, k, k] to [k, k, in, out]."""
  if array.ndim < 3:
    return array
  spatial = tuple(range(2, array.ndim))
  if is_transposed:
    return np.flip(array, spatial).transpose(*spatial, 0, 1)
  return array.transpose(*spatial, 1, 0)


def _to_torch(array: np.ndarray, is_transposed: bool) -> np.ndarray:
  """The inverse of `_from_torch`."""
  if array.ndim < 3:
    return array
  spatial = tuple(range(array.ndim - 2))
  if is_transposed:
    return np.flip(array, spatial).transpose(-2, -1, *spatial)
  return array.transpose(-1, -2, *spatial)


def to_milesial(
  arrays: dict[str, np.ndarray], depth: int
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns a state dict in milesial's names, and our names that have none.

  Args:
    arrays: by our name.
  """
  roles = {v: k for k, v in _TORCH_ROLES.items()} | {'kernel': 'weight'}
  state, nameless = {}, []
  for name, array in arrays.items():
    block, *middle, role = name.split('/')
    stage = int(block.rpartition('_')[2]) if block[-1].isdigit() else 0
    double = re.fullmatch('(conv|norm)([12])', '/'.join(middle))
    is_transposed = block.startswith('upsample_')
    if block == 'head' and not middle:
      parent = 'outc.conv'
    elif is_transposed and middle == ['conv']:
      parent = f'up{depth - stage}.up'
    elif double and re.fullmatch(r'(down|up)_\d+|bottleneck', block):
      parent = {
        'down': f'down{stage}.maxpool_conv.1' if stage else 'inc',
        'up': f'up{depth - stage}.conv',
        'bottleneck': f'down{depth}.maxpool_conv.1',
      }[block.partition('_')[0]]
      index = 3 * (int(double[2]) - 1) + (double[1] == 'norm')
      parent += f'.double_conv.{index}'
    else:
      nameless.append(name)
      continue
    state[f'{parent}.{roles[role]}'] = _to_torch(array, is_transposed)
  return state, nameless


def from_keras(
  file: files.WeightFile,
  order: list[tuple[str, str]],
  up_first: bool = False,
) -> Weights:
  """Takes Keras' layers, the n-th of a kind for our n-th of that kind.

  Args:
    file: its layers are in the order of their calls within each kind.
    order: `modules_in_order` of the network.
    up_first: the features from below come first in `Concatenate`; ours have
      the skip first.
  """
  weights = Weights('keras', others=[str(name) for name in file.others])
  waiting = {
    kind: iter([path for path, k in order if k == kind])
    for kind in ('conv', 'transpose', 'norm')
  }
  for layer in file.layers:
    kind = keras_kind(layer)
    path = next(waiting[kind], None) if kind else None
    for role, array in layer.weights.items():
      theirs = f'{layer.name}/{role}'
      ours = _KERAS_ROLES.get(role, role) if kind == 'norm' else role
      if path is None or ours not in (
        ('scale', 'bias', 'mean', 'var')
        if kind == 'norm'
        else ('kernel', 'bias')
      ):
        weights.rest[theirs] = array
      else:
        if kind == 'transpose' and array.ndim > 2:
          # [k, k, out, in], against lax's mirrored [k, k, in, out].
          spatial = tuple(range(array.ndim - 2))
          array = np.flip(array, spatial).swapaxes(-1, -2)
        weights.add(f'{path}/{ours}', theirs, array)
  if up_first:
    _put_skip_first(weights)
  _fold_biases(weights)
  return weights


def keras_kind(layer: files.Layer) -> str | None:
  """The kind of a layer as in `modules_in_order`; None for others."""
  if layer.kind.endswith('_normalization'):
    return 'norm'
  if re.fullmatch(r'conv\dd_transpose', layer.kind):
    return 'transpose'
  return 'conv' if re.fullmatch(r'conv\dd', layer.kind) else None


def _put_skip_first(weights: Weights) -> None:
  """Exchanges the two parts of the inputs of each decoder stage."""
  for name, array in weights.arrays.items():
    m = re.fullmatch(r'up_(\d+)/conv1/kernel', name)
    if m:
      last = [k for k in weights.arrays if f'down_{m[1]}/conv' in k]
      kernels = [k for k in last if k.endswith('kernel')]
      skip = weights.arrays[max(kernels)].shape[-1] if kernels else 0
      weights.arrays[name] = np.roll(array, skip, axis=-2)


def _fold_biases(weights: Weights) -> None:
  """Folds biases of convolutions into the batch norms behind them.

  Our convolutions have no bias there. The norm subtracts the mean, and with it
  the bias. Subtracting the bias from the running mean instead changes no output
  and no gradient of another parameter, in training and in evaluation.
  """
  folded = 0
  for name in list(weights.arrays):
    mean = re.sub(r'/conv(\d+)/bias$', r'/norm\1/mean', name)
    if mean != name and mean in weights.arrays:
      bias = weights.arrays.pop(name)
      weights.arrays[mean] = weights.arrays[mean] - bias
      weights.names[mean] += f' - {weights.names.pop(name)}'
      folded += 1
  if folded:
    weights.notes.append(
      f'{folded} biases of convolutions went into the running means of the '
      'batch norms behind them, which changes no output'
    )


def match_biases(
  weights: Weights, wanted: dict[str, jax.ShapeDtypeStruct], norm: str
) -> None:
  """Fits the biases of the stages' convolutions to those of the network.

  Args:
    weights: changed in place, without a change of the network's function:
      biases that instance norm subtracts again are dropped; where the file
      lacks only the biases of all stages (`use_bias=False`), they are 0.
    wanted: the network's arrays, by our name.
  """
  is_bias = lambda name: re.search(r'/(conv\d+|shortcut)/bias$', name)
  spare = [k for k in weights.arrays if is_bias(k) and k not in wanted]
  if norm == 'instance' and spare:
    for name in spare:
      del weights.arrays[name], weights.names[name]
    weights.notes.append(
      f'{len(spare)} biases of convolutions are dropped: the instance norms '
      'behind them subtract them again'
    )
  lacking = set(wanted) - set(weights.arrays)
  if (
    lacking
    and lacking == set(filter(is_bias, wanted))
    and not set(weights.arrays) - set(wanted)
  ):
    for name in sorted(lacking):
      weights.add(name, 'no bias', np.zeros(wanted[name].shape, np.float32))
    weights.notes.append(
      f'{len(lacking)} biases of convolutions, which the file does not have, '
      'are 0'
    )
