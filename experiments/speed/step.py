"""Training and inference steps, ours and PyTorch's, on one random batch."""

import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments.speed import inputs, rounds
from unet_jax.kernels import build
from unet_jax.models import fold, unet
from unet_jax.prediction import probabilities, step
from unet_jax.runtime import mesh, program
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import state
from unet_jax.training import steps as steps_lib

HAS_TORCH = importlib.util.find_spec('torch') is not None
# PyTorch's, as torch_unet.py calls them.
LAYOUTS = ('channels_last', 'default layout')
_OURS = 'unet_jax'


class Ours:
  """The step that main.py trains with, and its state."""

  def __init__(self, config: ml_collections.ConfigDict):
    self.mesh = mesh.make_mesh(config)
    model = unet.create_model(config, build.choose(config, self.mesh))
    optimizer = optimizer_lib.make_optimizer(config)
    self._key = jax.random.key(config.seed)
    self.state = state.create_train_state(
      self._key, config, model, optimizer, self.mesh
    )
    self._step = steps_lib.make_train_step(
      config, model, optimizer, self.mesh, self.state
    )
    mean, std = config.data.mean, config.data.std
    self._model, network = model, fold.without_norms(model)
    self._predict = jax.jit(
      lambda variables, image: probabilities.predict(
        step.predict_step(variables, image, model=network, mean=mean, std=std)
      ),
      compiler_options=program.compiler_options(self.mesh),
    )

  def compile(self, batch: dict[str, jax.Array]) -> None:
    """Compiles the training step as train.py does."""
    arguments = (self.state, batch, self._key)
    program.in_thread(lambda: self._step.lower(*arguments).compile()).result()

  def train(self, batches: Iterator[Any], count: int) -> None:
    """Trains as train.py does: metrics are read one step late."""
    pending = None
    for _ in range(count):
      self.state, metrics = self._step(self.state, next(batches), self._key)
      if pending is not None:
        jax.device_get(pending)
      pending = metrics
    jax.block_until_ready(self.state)

  def predict(self, image: jax.Array, count: int) -> None:
    variables = fold.fold(self._model, self.state.variables())
    for _ in range(count):
      result = self._predict(variables, image)
    result.block_until_ready()


class _Contender(NamedTuple):
  """A network; its calls take the number of steps."""

  num_parameters: int
  train: Callable[[int], None]
  predict: Callable[[int], None]


def _our_contender(
  config: ml_collections.ConfigDict, batch: dict[str, np.ndarray]
) -> _Contender:
  ours = Ours(config)
  placed = mesh.to_devices(batch, ours.mesh)
  return _Contender(
    sum(x.size for x in jax.tree.leaves(ours.state.params)),
    lambda n: ours.train(itertools.repeat(placed), n),
    lambda n: ours.predict(placed['image'], n),
  )


def _torch_contender(
  config: ml_collections.ConfigDict,
  batch: dict[str, np.ndarray],
  layout: str,
  compiles: bool = False,
) -> _Contender:
  """As `_our_contender`, for the steps of torch_unet.py."""
  import torch

  from experiments.speed import torch_unet

  device = torch_unet.set_up()
  model, optimizer = torch_unet.create(config, device, layout)
  placed = torch_unet.to_device(batch, device, layout)
  called: Any = torch.compile(model) if compiles else model
  wait = torch.cuda.synchronize if device.type == 'cuda' else lambda: None

  def train(n: int) -> None:
    model.train()
    for _ in range(n):
      torch_unet.train_step(called, optimizer, placed, config)
    wait()

  def predict(n: int) -> None:
    model.eval()
    for _ in range(n):
      torch_unet.predict(called, placed[0], config)
    wait()

  count = sum(p.numel() for p in model.parameters())
  return _Contender(count, train, predict)


def torch_skipped(config: ml_collections.ConfigDict) -> str | None:
  """Returns why PyTorch is not measured, or None."""
  if not HAS_TORCH:
    return 'it is not installed'
  from experiments.speed import torch_unet

  field = torch_unet.unsupported(config)
  return field and f'its U-Net here has no {field}'


def measure(
  config: ml_collections.ConfigDict,
  repeats: int,
  steps: int,
  torch_compile: bool,
) -> dict[str, Any]:
  """Times training and inference steps on one random batch on the device."""
  batch, size = inputs.random_batch(config), config.data.batch_size
  contenders = {_OURS: _our_contender(config, batch)}
  if reason := torch_skipped(config):
    print(f'PyTorch is skipped: {reason}')
  else:
    theirs = functools.partial(_torch_contender, config, batch)
    for layout in LAYOUTS:
      contenders[f'PyTorch, {layout}'] = theirs(layout)
    if torch_compile:
      contenders['PyTorch, torch.compile'] = theirs(LAYOUTS[0], True)
  counts = {name: c.num_parameters for name, c in contenders.items()}
  if len(set(counts.values())) > 1:
    raise AssertionError(f'the networks differ in parameters: {counts}')
  results: dict[str, Any] = {'parameters': counts[_OURS]}
  for what in ('train', 'inference'):
    calls = {
      name: c.train if what == 'train' else c.predict
      for name, c in contenders.items()
    }
    first = {name: [rounds.clocks(call, 1)] for name, call in calls.items()}
    results[what] = rounds.compare(
      f'{what} step of {size} images, s',
      {
        name: functools.partial(rounds.per_step, call, steps)
        for name, call in calls.items()
      },
      repeats,
      size,
    )
    results[f'{what}_first_call'] = rounds.report(
      f'first {what} call, with compilation, s', first
    )
  return results
