"""A plain PyTorch training script: the peer in quality as well as in speed.

  python -m experiments.speed.torch_train --config=configs/oxford_pets.py:small

It reads the same configs and the same prepared arrays as main.py, and trains
the same network for the same number of steps with flips, AdamW, a one-cycle
schedule and cross-entropy; no EMA, no clipping.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from experiments.speed import torch_unet
from experiments.sweep import points
from unet_jax.config import checks, fields
from unet_jax.data import prepare, prepared


def _batches(
  dataset: prepared.Dataset, orders: Iterable[np.ndarray], size: int
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of `size` along each of the orders; the last may be smaller."""
  for order in orders:
    for start in range(0, len(order), size):
      examples = [dataset[i] for i in order[start : start + size]]
      yield {k: np.stack([e[k] for e in examples]) for k in examples[0]}


def main() -> None:
  usual = '--config=configs/oxford_pets.py:small'
  config = points.resolve([usual, *sys.argv[1:]])
  checks.validate(config)
  torch.manual_seed(config.seed)
  rng = np.random.default_rng(config.seed)
  device, size = torch_unet.set_up(), config.data.batch_size
  train_set = prepare.prepare(config, config.data.train_split)
  test_set = prepare.prepare(config, config.data.eval_split)
  model, optimizer = torch_unet.create(config, device)
  steps = config.train.num_steps
  schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, config.optimizer.learning_rate, total_steps=steps
  )
  orders = (rng.permutation(len(train_set)) for _ in iter(int, 1))
  start = time.perf_counter()
  batches = _batches(train_set, orders, size)
  for step, batch in zip(range(1, steps + 1), batches):
    placed = torch_unet.to_device(batch, device)
    loss = torch_unet.train_step(model, optimizer, placed, config)
    schedule.step()
    if step == 1 or step % config.log.every == 0:
      seconds = time.perf_counter() - start
      what = 'first step done' if step == 1 else f'step {step}/{steps}'
      print(f'{what}: loss {loss:.4f}, {seconds:.1f} s', flush=True)
  model.eval()
  from unet_jax.evaluation import confusion  # Importing jax takes a second.

  names, counts = fields.class_names(config), []
  for batch in _batches(test_set, [np.arange(len(test_set))], size):
    image, mask = torch_unet.to_device(batch, device)
    pair: Any = mask, torch_unet.predict(model, image, config)
    in_mask, predicted = (tensor.cpu().numpy() for tensor in pair)
    counts.append(confusion.confusion_counts(in_mask, predicted, len(names)))
  scores = confusion.scores(
    np.concatenate(counts), names, config.eval.foreground
  )
  print('\n'.join(f'{name}: {value:.4f}' for name, value in scores.items()))


if __name__ == '__main__':
  main()
