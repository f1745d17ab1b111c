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

# Roles of a convolution and of a norm in Keras and in PyTorch.
_KERAS_CONV = {'kernel': 'kernel', 'bias': 'bias'}
_KERAS_NORM = {
  'gamma': 'scale',
  'beta': 'bias',
  'moving_mean': 'mean',
  'moving_variance': 'var',
}
_TORCH_CONV = {'weight': 'kernel', 'bias': 'bias'}
_TORCH_NORM = {
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
  names = _milesial_names(depth)
  for name, (theirs, array) in named.items():
    if name.endswith('.num_batches_tracked'):
      weights.others.append(theirs)
    elif name in names:
      path = names[name]
      weights.add(path, theirs, _from_torch(array, path.startswith('upsample')))
    else:
      weights.rest[theirs] = array
  _fold_biases(weights)
  return weights


def _milesial_names(depth: int) -> dict[str, str]:
  """Returns {milesial's name: ours} of all parameters of a network."""
  downs = [f'down{i}.maxpool_conv.1' for i in range(1, depth + 1)]
  stages = [*(f'down_{i}' for i in range(depth)), 'bottleneck']
  blocks = dict(zip(['inc', *downs], stages))
  # `outc` is read too; the last name of a module is the one written.
  modules = {'outc': 'head', 'outc.conv': 'head'}
  for i in range(depth):
    blocks[f'up{depth - i}.conv'] = f'up_{i}'
    modules[f'up{depth - i}.up'] = f'upsample_{i}/conv'
  layers = {0: 'conv1', 1: 'norm1', 3: 'conv2', 4: 'norm2'}
  for theirs, ours in blocks.items():
    for i, layer in layers.items():
      modules[f'{theirs}.double_conv.{i}'] = f'{ours}/{layer}'
  return {
    f'{theirs}.{role}': f'{ours}/{our_role}'
    for theirs, ours in modules.items()
    for role, our_role in (
      _TORCH_NORM if '/norm' in ours else _TORCH_CONV
    ).items()
  }


def _from_torch(array: np.ndarray, is_transposed: bool) -> np.ndarray:
  """[out, in, k, k] or, transposed, [in, out, k, k] to [k, k, in, out]."""
  if array.ndim < 3:
    return array
  if is_transposed:
    array = np.flip(array, tuple(range(2, array.ndim)))
  return np.moveaxis(array, (0, 1) if is_transposed else (1, 0), (-2, -1))


def _to_torch(array: np.ndarray, is_transposed: bool) -> np.ndarray:
  """The inverse of `_from_torch`."""
  if array.ndim < 3:
    return array
  if is_transposed:
    array = np.flip(array, tuple(range(array.ndim - 2)))
  return np.moveaxis(array, (-2, -1), (0, 1) if is_transposed else (1, 0))


def to_milesial(
  arrays: dict[str, np.ndarray], depth: int
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns a state dict in milesial's names, and our names that have none."""
  names = {ours: theirs for theirs, ours in _milesial_names(depth).items()}
  state = {
    names[name]: _to_torch(array, name.startswith('upsample'))
    for name, array in arrays.items()
    if name in names
  }
  return state, [name for name in arrays if name not in names]


def from_keras(
  file: files.WeightFile, order: list[tuple[str, str]], up_first: bool = False
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
    roles = _KERAS_NORM if kind == 'norm' else _KERAS_CONV
    for role, array in layer.weights.items():
      theirs = f'{layer.name}/{role}'
      if path is None or role not in roles:
        weights.rest[theirs] = array
        continue
      if kind == 'transpose' and array.ndim > 2:
        # [k, k, out, in], against lax's mirrored [k, k, in, out].
        spatial = tuple(range(array.ndim - 2))
        array = np.flip(array, spatial).swapaxes(-1, -2)
      weights.add(f'{path}/{roles[role]}', theirs, array)
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
