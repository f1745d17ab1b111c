"""Rates of each 3x3 convolution of a network: XLA's, the kernels', PyTorch's.

  python -m experiments.speed.layers [--config=configs/NAME.py[:arg]]
    [--config.section.field=value ...] [--repeats=N] [--steps=N]

For the value and the gradients of input and kernel, in float32, on the CPU and
the config's batch: GFLOP in a second by the clock, and in brackets in a second
of one core.
The first row is a matrix product, the limit of all forms but Winograd's, which
saves products; the FLOP are those of the sum as it is defined.
"""

import argparse
import functools
import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.speed import rounds, step
from experiments.sweep import points
from unet_jax.config import checks
from unet_jax.kernels import build, convolution
from unet_jax.models import layers, trace, unet
from unet_jax.runtime import errors
from unet_jax.runtime import mesh as mesh_lib

CONTENDERS = ('XLA', 'native', 'PyTorch')
DIRECTIONS = ('value', 'input', 'kernel')
_SIDE = 1024

# {contender: call}, and {contender: seconds of a call}.
Calls = dict[str, Callable[[], Any]]
Row = dict[str, rounds.Seconds]


class Layer(NamedTuple):
  """A convolution: shapes of input, kernel and value; zeros on each side."""

  x: tuple[int, ...]
  kernel: tuple[int, ...]
  y: tuple[int, ...]
  pad: int

  @property
  def flop(self) -> int:
    return 2 * math.prod(self.y[:-1]) * math.prod(self.kernel)


def find(config: ml_collections.ConfigDict) -> dict[str, Layer]:
  """Returns the 3x3 convolutions of a network, on the config's batch."""
  image = (*config.data.image_size, config.data.num_channels)
  traced = trace.Trace(unet.create_model(config), image)
  found = {}
  for path, call in traced.calls.items():
    if isinstance(call.module, layers.Conv) and 3 in call.module.kernel_size:
      kernel = traced.parameters[path]['kernel'].shape
      pad = 1 if call.module.padding == 'SAME' else 0
      y = (config.data.batch_size, *call.output.shape)
      x = (y[0], *(n + 2 - 2 * pad for n in y[1:-1]), kernel[-2])
      found['/'.join(path)] = Layer(x, kernel, y, pad)
  return found


def _takes(layer: Layer) -> bool:
  """Whether the kernels take a layer; a volume as planes, layers.convolve."""
  x, kernel = layer.x, layer.kernel
  if len(x) == 5:
    x, kernel = x[1:], (*kernel[1:3], 3 * kernel[3], kernel[4])
  struct: Any = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  return convolution.supports(struct(x), struct(kernel))


def _jax_call(
  layer: Layer, direction: str, native: bool, arrays: list[np.ndarray]
) -> Callable[[], Any]:
  convolve = functools.partial(
    layers.convolve,
    bias=None,
    padding='SAME' if layer.pad else 'VALID',
    native=native,
  )

  def compute(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
    # The compiler leaves out what is not returned.
    y, pullback = jax.vjp(convolve, x, kernel)
    return y if direction == 'value' else pullback(dy)[direction == 'kernel']

  return functools.partial(jax.jit(compute), *map(jnp.asarray, arrays))


def _torch_call(
  layer: Layer, direction: str, arrays: list[np.ndarray]
) -> Callable[[], Any]:
  import torch

  n = len(layer.x) - 2
  layout = (torch.channels_last, torch.channels_last_3d)[n - 2]
  x, kernel, dy = map(torch.from_numpy, arrays)
  x, dy = x.movedim(-1, 1), dy.movedim(-1, 1)
  kernel = kernel.permute(n + 1, n, *range(n)).contiguous(memory_format=layout)
  options = (1,) * n, (layer.pad,) * n, (1,) * n, False, (0,) * n, 1
  if direction == 'value':
    return lambda: torch.ops.aten.convolution(x, kernel, None, *options)
  wanted = [direction == d for d in ('input', 'kernel', 'bias')]
  return lambda: torch.ops.aten.convolution_backward(
    dy, x, kernel, None, *options, wanted
  )[direction == 'kernel']


def calls(layer: Layer, direction: str, native: bool) -> Calls:
  """Returns the contenders; `native`: the kernels are loaded.

  Their results are [B, H, W, F], [B, H, W, C] and [3, 3, C, F]; PyTorch's have
  its order of axes.
  """
  rng = np.random.default_rng(0)
  shapes = layer.x, layer.kernel, layer.y
  arrays = [rng.standard_normal(s, np.float32) for s in shapes]
  found = {'XLA': _jax_call(layer, direction, False, arrays)}
  if native and _takes(layer):
    found['native'] = _jax_call(layer, direction, True, arrays)
  if step.HAS_TORCH:
    found['PyTorch'] = _torch_call(layer, direction, arrays)
  return found


def _product() -> Calls:
  shape = (_SIDE, _SIDE)
  a = np.random.default_rng(0).standard_normal(shape, np.float32)
  found: Calls = {'XLA': functools.partial(jax.jit(jnp.matmul), *[a] * 2)}
  if step.HAS_TORCH:
    import torch

    found['PyTorch'] = functools.partial(torch.matmul, *[torch.tensor(a)] * 2)
  return found


def _time(contenders: Calls, repeats: int, steps: int) -> Row:
  """Returns the medians of rounds in which contenders run in turn."""

  def run(call: Callable[[], Any], count: int) -> None:
    for _ in range(count):
      jax.block_until_ready(call())

  values: dict[str, list[rounds.Seconds]] = {name: [] for name in contenders}
  for _ in range(repeats):
    for name, call in contenders.items():
      values[name].append(rounds.per_step(functools.partial(run, call), steps))
  return {
    name: rounds.Seconds(*map(statistics.median, zip(*row)))
    for name, row in values.items()
  }


def _show(name: str, flop: int, row: Mapping[str, rounds.Seconds]) -> None:
  cells = {
    c: f'{flop / s.wall / 1e9:.0f} ({flop / s.processor / 1e9:.0f})'
    for c, s in row.items()
  }
  columns = ''.join(f'{cells.get(c, "-"):>12}' for c in CONTENDERS)
  print(f'{name:<56}{flop / 1e9:>8.2f}{columns}', flush=True)


def measure(
  config: ml_collections.ConfigDict, repeats: int, steps: int
) -> dict[str, Row]:
  """Prints the table and returns the seconds of its rows."""
  if step.HAS_TORCH:
    from experiments.speed import torch_unet

    torch_unet.set_up()
  native = build.choose(config, mesh_lib.make_mesh(config))
  print(f'{"":<56}{"GFLOP":>8}' + ''.join(f'{c:>12}' for c in CONTENDERS))
  rows = {'product': _time(_product(), repeats, steps)}
  _show(f'product of {_SIDE} x {_SIDE}', 2 * _SIDE**3, rows['product'])
  found = find(config)
  for direction in DIRECTIONS:
    measured, total = [], 0
    for i, (path, layer) in enumerate(found.items()):
      if i == 0 and direction == 'input':
        continue  # Images need no gradient.
      contenders = calls(layer, direction, native)
      measured.append(_time(contenders, repeats, steps))
      rows[f'{direction} {path}'], total = measured[-1], total + layer.flop
      size = 'x'.join(map(str, layer.x[1:-1]))
      shape = f'{size}, {layer.kernel[-2]} to {layer.kernel[-1]}'
      _show(f'{direction:<8}{path:<24}{shape}', layer.flop, measured[-1])
    rows[f'{direction} total'] = {
      c: rounds.Seconds(*map(sum, zip(*(row[c] for row in measured))))
      for c in CONTENDERS
      if all(c in row for row in measured)
    }
    _show(f'{direction:<8}all', total, rows[f'{direction} total'])
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--repeats', type=int, default=3, help='rounds')
  parser.add_argument('--steps', type=int, default=5, help='calls in a round')
  args, rest = parser.parse_known_args()
  # As in benchmark.py.
  os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
  jax.config.update('jax_platforms', 'cpu')
  try:
    usual = '--config=configs/oxford_pets.py:small'
    config = points.resolve([usual, *rest])
    checks.validate(config)
    measure(config, args.repeats, args.steps)
  except errors.UserError as e:
    sys.exit(f'error: {e}')


if __name__ == '__main__':
  main()
