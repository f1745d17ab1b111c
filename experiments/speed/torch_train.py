"""A plain PyTorch training script: the peer in quality as well as in speed.

  python -m experiments.speed.torch_train --config=configs/oxford_pets.py:small

It reads the same configs and the same prepared arrays as main.py, and trains
the same network for the same number of steps with flips, AdamW, a one-cycle
schedule and cross-entropy; no EMA, no clipping. The benchmark times its steps.
"""

import os
import time

import numpy as np
import torch
from absl import app
from ml_collections import config_flags
from torch import nn
from torch.nn import functional as F

from experiments.speed import torch_unet
from unet_jax import config as config_lib
from unet_jax.data import prepare


class Normalize(nn.Module):
  """uint8 [B, C, H, W] to (value / 255 - mean) / std, per channel."""

  def __init__(self, mean, std):
    super().__init__()
    self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1))
    self.register_buffer('std', torch.tensor(std).view(-1, 1, 1))

  def forward(self, image: torch.Tensor) -> torch.Tensor:
    return (image / 255 - self.mean) / self.std


def set_up() -> torch.device:
  """Takes all cores, or a GPU, with TF32 as JAX uses it there by default."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.set_float32_matmul_precision('high')
  torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
  return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def create(config, device, layout=torch.channels_last):
  """Returns the model (uint8 images to logits) and its optimiser."""
  model = nn.Sequential(
    Normalize(config.data.mean, config.data.std), torch_unet.create(config)
  ).to(device, memory_format=layout)
  o = config.optimizer
  return model, torch.optim.AdamW(
    model.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay
  )


def to_device(batch, device, layout=torch.channels_last):
  """Returns image uint8 [B, C, H, W] and mask uint8 [B, H, W] on the device."""
  image = torch.from_numpy(batch['image']).to(device).permute(0, 3, 1, 2)
  return (
    image.contiguous(memory_format=layout),
    torch.from_numpy(batch['mask']).to(device),
  )


def _autocast(device, config):
  dtype = getattr(torch, config.model.dtype)
  return torch.autocast(
    device.type, torch.bfloat16, enabled=dtype == torch.bfloat16
  )


def _flip(image, mask, axis: int, probability: float):
  chosen = torch.rand(len(image), 1, 1, device=image.device) < probability
  return (
    torch.where(chosen[..., None], image.flip(axis), image),
    torch.where(chosen, mask.flip(axis), mask),
  )


def train_step(model, optimizer, image, mask, config) -> torch.Tensor:
  """One update of the parameters; returns the loss, on the device."""
  for axis, probability in (
    (-1, config.augment.flip_horizontal),
    (-2, config.augment.flip_vertical),
  ):
    if probability:
      image, mask = _flip(image, mask, axis, probability)
  with _autocast(image.device, config):
    loss = F.cross_entropy(
      model(image), mask.long(), ignore_index=config_lib.IGNORE_LABEL
    )
  optimizer.zero_grad()
  loss.backward()
  optimizer.step()
  return loss.detach()


@torch.inference_mode()
def predict(model, image, config) -> torch.Tensor:
  """Returns the class of each pixel, [B, H, W]; the model is in eval mode."""
  with _autocast(image.device, config):
    return model(image).argmax(1)


def _batches(dataset, orders, size: int):
  """Batches of `size` along each of the orders; the last may be smaller."""
  for order in orders:
    for start in range(0, len(order), size):
      examples = [dataset[i] for i in order[start : start + size]]
      yield {k: np.stack([e[k] for e in examples]) for k in examples[0]}


def main(_) -> None:
  config = _CONFIG.value
  config_lib.validate(config)
  torch.manual_seed(config.seed)
  rng = np.random.default_rng(config.seed)
  device, size = set_up(), config.data.batch_size
  train_set = prepare.prepare(config, config.data.train_split)
  test_set = prepare.prepare(config, config.data.eval_split)
  model, optimizer = create(config, device)
  steps = config.train.num_steps
  schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, config.optimizer.learning_rate, total_steps=steps
  )
  whole = len(train_set) // size * size
  orders = (rng.permutation(len(train_set))[:whole] for _ in iter(int, 1))
  start = time.perf_counter()
  for step, batch in zip(
    range(1, steps + 1), _batches(train_set, orders, size)
  ):
    loss = train_step(model, optimizer, *to_device(batch, device), config)
    schedule.step()
    if step == 1 or step % config.log.every == 0:
      seconds = time.perf_counter() - start
      what = 'first step done' if step == 1 else f'step {step}/{steps}'
      print(f'{what}: loss {loss:.4f}, {seconds:.1f} s', flush=True)
  model.eval()
  predictions, masks = [], []
  for batch in _batches(test_set, [np.arange(len(test_set))], size):
    image, _ = to_device(batch, device)
    predictions.append(predict(model, image, config).cpu().numpy())
    masks.append(batch['mask'])
  from unet_jax import metrics  # Imports jax, which takes a second.

  names = config_lib.class_names(config)
  confusion = [
    metrics.confusion_counts(m, p, len(names))
    for m, p in zip(masks, predictions)
  ]
  scores = metrics.scores(
    np.concatenate(confusion), names, config.eval.foreground
  )
  print('\n'.join(f'{name}: {value:.4f}' for name, value in scores.items()))


if __name__ == '__main__':
  _CONFIG = config_flags.DEFINE_config_file(
    'config', 'configs/oxford_pets.py:small', 'File with get_config().'
  )
  app.run(main)
