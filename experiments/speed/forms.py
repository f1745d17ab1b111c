"""Measures the forms of unet_jax/models/forms.py, and forms that it left out.

  python -m experiments.speed.forms [--what=max_pool,...] [--size=64,64]
    [--channels=64] [--dtype=bfloat16] [--tpu=v5e:2x4] [--network=128]

Value and gradient of one operation on 8 images, `size` being that of the
smaller side: on this machine's CPU in milliseconds of its processors, and,
with `--tpu` and the package libtpu (no TPU is needed), by the estimates of the
TPU's compiler: cycles, bytes, and operations that it has no estimate for.
`--network=N` estimates a training step of the 2015 U-Net on 8 images of N x N
pixels instead, in bfloat16. Estimates differ with the compiler's effort and
version: compare within one.
"""

import argparse
import functools
import re
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unet_jax.config import default
from unet_jax.models import forms, unet
from unet_jax.planning import chips
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import state as state_lib
from unet_jax.training import steps

_BATCH = 8


def _max_of_slices(x: jax.Array) -> jax.Array:
  starts = np.ndindex(*(2,) * (x.ndim - 2))
  parts = (x[:, *(slice(i, None, 2) for i in s)] for s in starts)
  return functools.reduce(jnp.maximum, parts)


def _transposed_per_channel(taps: Any, x: jax.Array) -> jax.Array:
  """Doubles an image by a transposed convolution of each channel."""
  n, c = x.ndim - 2, x.shape[-1]
  pad = len(taps) // 2 - 1
  x = jnp.pad(x, ((0, 0), *((pad, pad),) * n, (0, 0)), mode='edge')
  kernel = functools.reduce(np.multiply.outer, [np.asarray(taps)] * n)
  kernel = np.broadcast_to(kernel[..., None, None], (*kernel.shape, 1, c))
  axes = {2: ('NHWC', 'HWIO', 'NHWC'), 3: ('NDHWC', 'DHWIO', 'NDHWC')}[n]
  around = 1 - pad
  return jax.lax.conv_general_dilated(
    x,
    jnp.asarray(kernel, x.dtype),
    (1,) * n,
    ((around, around),) * n,
    lhs_dilation=(2,) * n,
    dimension_numbers=axes,
    feature_group_count=c,
  )


def _resize(method: str, x: jax.Array) -> jax.Array:
  size = (2 * n for n in x.shape[1:-1])
  return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), method)


def _repeat(x: jax.Array) -> jax.Array:
  for axis in range(1, x.ndim - 1):
    x = jnp.repeat(x, 2, axis)
  return x


# Forms that no platform takes.
OTHERS: dict[str, dict[str, Callable[..., jax.Array]]] = {
  'max_pool': {'slices': _max_of_slices},
  'bilinear': {
    'per channel': functools.partial(
      _transposed_per_channel, (0.25, 0.75, 0.75, 0.25)
    ),
    'image.resize': functools.partial(_resize, 'bilinear'),
  },
  'nearest': {
    'per channel': functools.partial(_transposed_per_channel, (1, 1)),
    'repeat': _repeat,
    'image.resize': functools.partial(_resize, 'nearest'),
  },
}


def candidates(operation: str) -> dict[str, Callable[..., jax.Array]]:
  """Returns the forms of an operation by name."""
  row = dict.fromkeys(forms.FORMS[operation])
  names = {f: f.__name__.strip('_') for f in row}
  return {names[f]: f for f in row} | OTHERS.get(operation, {})


def inputs(
  operation: str, size: tuple[int, ...], channels: int
) -> list[tuple[int, ...]]:
  """Returns the shapes of the operation's arguments.

  Args:
    operation: row of the table.
    size: of the smaller side, (H, W) or (D, H, W).
    channels: of the larger side; of a transposed convolution's input twice as
      many, as in a U-Net.
  """
  n, halves = len(size), operation in ('max_pool', 'average_pool')
  halves = halves or operation == 'strided_conv'
  given = {
    'transposed_conv': 2 * channels,
    'depth_to_space': 2**n * channels,
  }.get(operation, channels)
  shapes: list[tuple[int, ...]] = [
    (_BATCH, *(2 * s if halves else s for s in size), given)
  ]
  if operation.endswith('conv'):
    shapes.append((2,) * n + (given, channels))
  return shapes


def _value_and_gradient(
  form: Callable[..., jax.Array], weight: jax.Array, *args: jax.Array
) -> Any:
  value, pullback = jax.vjp(form, *args)
  return value, pullback(weight)


def cpu_milliseconds(
  form: Callable[..., jax.Array], args: list[jax.Array], repeats: int = 5
) -> float:
  """Returns processor time, of all cores, of value and gradient."""
  call = jax.jit(functools.partial(_value_and_gradient, form))
  weight = jnp.ones_like(form(*args))
  jax.block_until_ready(call(weight, *args))
  times = []
  for _ in range(repeats):
    start = time.process_time()
    jax.block_until_ready(call(weight, *args))
    times.append(time.process_time() - start)
  return 1e3 * statistics.median(times)


class Estimate(NamedTuple):
  cycles: int
  megabytes: float
  without: tuple[str, ...]


def read_estimate(program: str, costs: dict[str, float]) -> Estimate:
  """Sums the estimates in an optimised program.

  `without` are operations that move windows and have none.
  """
  cycles, without = 0, []
  for line in program.splitlines():
    found = re.search(r'"estimated_cycles":"(\d+)"', line)
    moves = re.search(r' (reduce-window|select-and-scatter)\(', line)
    if found:
      cycles += int(found[1])
    elif moves:
      without.append(moves[1])
  return Estimate(cycles, costs['bytes accessed'] / 1e6, tuple(sorted(without)))


def _compile_for_tpu(traced: Any) -> Estimate:
  compiled = traced.lower(lowering_platforms=('tpu',)).compile()
  return read_estimate(compiled.as_text(), compiled.cost_analysis())


def _tpu_mesh(name: str) -> jax.sharding.Mesh:
  config = default.get_config()
  config.mesh.data = 1
  return mesh_lib.make_mesh(config, chips.make_slice(name).devices[:1])


def estimate_form(
  form: Callable[..., jax.Array],
  args: list[jax.ShapeDtypeStruct],
  mesh: jax.sharding.Mesh,
) -> Estimate:
  arrays = [jax.eval_shape(form, *args), *args]
  placed = [
    jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=mesh_lib.replicated(mesh))
    for x in arrays
  ]
  call = jax.jit(functools.partial(_value_and_gradient, form))
  return _compile_for_tpu(call.trace(*placed))


def estimate_network(pixels: int, mesh: jax.sharding.Mesh) -> Estimate:
  """Estimates a training step of depth 4 with 64 features and batch norm."""
  config = default.get_config()
  config.data.image_size, config.data.batch_size = (pixels, pixels), _BATCH
  config.data.mean, config.data.std = (0.5,) * 3, (0.25,) * 3
  config.data.num_channels, config.data.num_classes = 3, 3
  config.model.depth, config.model.base_features = 4, 64
  config.model.dtype, config.model.norm = 'bfloat16', 'batch'
  model = unet.create_model(config)
  optimizer = optimizer_lib.make_optimizer(config)
  state = state_lib.abstract_train_state(config, model, optimizer, mesh)
  step = steps.make_train_step(config, model, optimizer, mesh, state)
  place = functools.partial(
    jax.ShapeDtypeStruct, sharding=mesh_lib.replicated(mesh)
  )
  shape = (_BATCH, pixels, pixels)
  batch = {
    'image': place((*shape, 3), jnp.uint8),
    'mask': place(shape, jnp.uint8),
  }
  key = jax.eval_shape(jax.random.key, 0)
  return _compile_for_tpu(step.trace(state, batch, place(key.shape, key.dtype)))


def _show(name: str, *cells: str) -> None:
  print(f'{name:<24}' + ''.join(f'{c:>14}' for c in cells), flush=True)


def _cells(estimate: Estimate) -> tuple[str, ...]:
  cycles = f'{estimate.cycles / 1e6:.3f} M'
  return cycles, f'{estimate.megabytes:.0f} MB', f'  {estimate.without or ""}'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--what', default=','.join(forms.FORMS), help='rows of the table')
  add('--size', default='64,64', help='of the smaller side')
  add('--channels', type=int, default=64)
  add('--dtype', default='bfloat16')
  add('--tpu', default='', help='slice to compile for, as v5e:2x4')
  add('--network', type=int, default=0, help='pixels')
  args = parser.parse_args()
  mesh = _tpu_mesh(args.tpu) if args.tpu else None
  if args.network:
    if mesh is None:
      parser.error('--network needs --tpu')
    _show(
      f'step, {args.network} px', *_cells(estimate_network(args.network, mesh))
    )
    return
  size = tuple(map(int, args.size.split(',')))
  for operation in args.what.split(','):
    shapes = inputs(operation, size, args.channels)
    print(f'\n{operation}, {shapes}, {args.dtype}')
    for name, form in candidates(operation).items():
      structs = [jax.ShapeDtypeStruct(s, args.dtype) for s in shapes]
      if mesh is not None:
        _show(name, *_cells(estimate_form(form, structs, mesh)))
      else:
        rng = np.random.default_rng(0)
        arrays = [jnp.asarray(rng.normal(size=s), args.dtype) for s in shapes]
        _show(name, f'{cpu_milliseconds(form, arrays):.1f} ms')


if __name__ == '__main__':
  main()
