"""Training and inference steps, ours and PyTorch's, on one random batch."""

import importlib.util
import itertools

import jax
import numpy as np

from experiments.speed import rounds
from unet_jax.models import unet
from unet_jax.prediction import probabilities, step
from unet_jax.runtime import mesh, program
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import state
from unet_jax.training import steps as steps_lib

HAS_TORCH = importlib.util.find_spec('torch') is not None
_OURS = 'unet_jax'


class Ours:
  """The step that main.py trains with, and its state."""

  def __init__(self, config):
    self.mesh = mesh.make_mesh(config)
    model = unet.create_model(config)
    optimizer = optimizer_lib.make_optimizer(config)
    self._key = jax.random.key(config.seed)
    self.state = state.create_train_state(
      self._key, config, model, optimizer, self.mesh
    )
    self._step = steps_lib.make_train_step(
      config, model, optimizer, self.mesh, self.state
    )
    mean, std = config.data.mean, config.data.std
    self._predict = jax.jit(
      lambda variables, image: probabilities.predict(
        step.predict_step(variables, image, model=model, mean=mean, std=std)
      ),
      compiler_options=program.compiler_options(self.mesh),
    )

  @property
  def num_parameters(self) -> int:
    return sum(x.size for x in jax.tree.leaves(self.state.params))

  def train(self, batches, count: int) -> None:
    """Trains as train.py does: metrics are read one step late."""
    pending = None
    for _ in range(count):
      self.state, metrics = self._step(self.state, next(batches), self._key)
      if pending is not None:
        jax.device_get(pending)
      pending = metrics
    jax.block_until_ready(self.state)

  def predict(self, image, count: int) -> None:
    variables = self.state.variables()
    for _ in range(count):
      result = self._predict(variables, image)
    result.block_until_ready()


def random_batch(config) -> dict[str, np.ndarray]:
  data, rng = config.data, np.random.default_rng(0)
  shape = (data.batch_size, *data.image_size)
  image = rng.integers(256, size=(*shape, data.num_channels), dtype=np.uint8)
  classes = max(data.num_classes, 2)
  return {
    'image': image,
    'mask': rng.integers(classes, size=shape, dtype=np.uint8),
  }


def _our_contender(config, batch):
  ours = Ours(config)
  batch = mesh.to_devices(batch, ours.mesh)
  return (
    ours.num_parameters,
    lambda n: ours.train(itertools.repeat(batch), n),
    lambda n: ours.predict(batch['image'], n),
  )


def _torch_contender(config, batch, layout: str, compiles: bool):
  """As `_our_contender`, for the steps of torch_unet.py."""
  import torch

  from experiments.speed import torch_unet

  device, layout = torch_unet.set_up(), getattr(torch, layout)
  model, optimizer = torch_unet.create(config, device, layout)
  image, mask = torch_unet.to_device(batch, device, layout)
  called = torch.compile(model) if compiles else model
  wait = torch.cuda.synchronize if device.type == 'cuda' else lambda: None

  def train_steps(n):
    model.train()
    for _ in range(n):
      torch_unet.train_step(called, optimizer, image, mask, config)
    wait()

  def predict_steps(n):
    model.eval()
    for _ in range(n):
      torch_unet.predict(called, image, config)
    wait()

  count = sum(p.numel() for p in model.parameters())
  return count, train_steps, predict_steps


def _torch_contenders(config, batch, compiles: bool):
  """{name: contender} of PyTorch; reports where it is skipped."""
  if not HAS_TORCH:
    print('PyTorch is skipped: it is not installed')
    return {}
  from experiments.speed import torch_unet

  field = torch_unet.unsupported(config)
  if field:
    print(f'PyTorch is skipped: its U-Net here has no {field}')
    return {}
  variants = {
    'PyTorch, channels_last': ('channels_last', False),
    'PyTorch, default layout': ('contiguous_format', False),
  }
  if compiles:
    variants['PyTorch, torch.compile'] = ('channels_last', True)
  return {
    name: _torch_contender(config, batch, *variant)
    for name, variant in variants.items()
  }


def measure(config, repeats: int, steps: int, torch_compile: bool) -> dict:
  """Times training and inference steps on one random batch on the device."""
  batch, size = random_batch(config), config.data.batch_size
  contenders = {
    _OURS: _our_contender(config, batch),
    **_torch_contenders(config, batch, torch_compile),
  }
  counts = {name: c[0] for name, c in contenders.items()}
  if len(set(counts.values())) > 1:
    raise AssertionError(f'the networks differ in parameters: {counts}')
  results = {'parameters': counts[_OURS]}
  for i, what in ((1, 'train'), (2, 'inference')):
    calls = {name: c[i] for name, c in contenders.items()}
    first = {name: [rounds.seconds(call, 1)] for name, call in calls.items()}

    def round_of(call):
      call(1)  # Brings its threads and caches back.
      return rounds.seconds(call, steps) / steps

    values = rounds.in_turn(
      {n: lambda c=c: round_of(c) for n, c in calls.items()}, repeats
    )
    results[what] = rounds.report(
      f'{what} step of {size} images, s', values, size
    )
    results[f'{what}_first_call'] = rounds.report(
      f'first {what} call, with compilation, s', first
    )
  return results
