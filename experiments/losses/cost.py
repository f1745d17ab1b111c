"""What each loss costs: value and gradient, beside the whole training step.

python -m experiments.losses.cost [--config=configs/NAME.py[:arg]] [flags]

The default is configs/oxford_pets.py:small, whose data it does not read. Prints
the median of nine calls in processor seconds of all threads, and by the clock.
"""

import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from unet_jax.config import command_line
from unet_jax.training import losses


def measure(function: Callable[..., object], *args: object) -> str:
  """Returns the median milliseconds of a call: of processors, by the clock."""
  jax.block_until_ready(function(*args))
  times = []
  for _ in range(9):
    start = time.process_time(), time.perf_counter()
    jax.block_until_ready(function(*args))
    end = time.process_time(), time.perf_counter()
    times.append([1e3 * (b - a) for a, b in zip(start, end)])
  return ' | '.join(f'{statistics.median(t):.1f}' for t in zip(*times))


def main() -> None:
  arguments = sys.argv[1:]
  if not any(a.startswith('--config=') for a in arguments):
    arguments.insert(0, '--config=configs/oxford_pets.py:small')
  config = command_line.parse(arguments).config()
  classes = config.data.num_classes
  shape = (config.data.batch_size, *config.data.image_size)
  rng = np.random.default_rng(0)
  logits = jax.device_put(rng.normal(size=(*shape, classes)).astype('float32'))
  # Blocks of a class, as masks have them.
  blocks = rng.integers(0, max(classes, 2), [-(-n // 16) for n in shape[1:]])
  for axis in range(blocks.ndim):
    blocks = blocks.repeat(16, axis)
  blocks = blocks[tuple(slice(n) for n in shape[1:])].astype(np.uint8)
  mask = jax.device_put(np.broadcast_to(blocks, shape))
  print(f'{shape} pixels, {classes} classes, {jax.devices()[0].device_kind}')
  print('| loss | processor ms | ms by the clock |\n|---|---|---|')
  for name in losses.LOSSES:
    spec = losses.make_spec(config)._replace(weights=((name, 1.0),))

    @jax.jit
    def both(logits, mask, spec=spec):
      count = losses.counts(mask, spec)
      of = lambda x: losses.weighted_sum(
        losses.totals(x, mask, spec), count, spec
      )
      return jax.value_and_grad(of)(logits)

    print(f'| `{name}` | {measure(both, logits, mask)} |', flush=True)


if __name__ == '__main__':
  main()
