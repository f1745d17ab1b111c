"""The U-Net and its steps as one would write them in PyTorch.

The same stages, widths and trainable parameters as `unet_jax.models.unet` with
batch norm, transposed convolutions, concatenated skips and `same` padding.
"""

import os
from typing import Any

import ml_collections
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from unet_jax.config import fields

# Image and mask.
Batch = tuple[torch.Tensor, torch.Tensor]

# The only values that this network has for these fields of `model`.
_FIXED = {
  'spatial_dims': 2,
  'features': (),
  'convs': 2,
  'kernel_size': 3,
  'block': 'plain',
  'squeeze_excite': 0,
  'stem': 'none',
  'downsample': 'max',
  'upsample': 'transpose',
  'skip': 'concat',
  'norm': 'batch',
  'activation': 'relu',
  'dropout': 0.0,
  'deep_supervision': (),
  'padding': 'same',
}


class DoubleConv(nn.Sequential):
  """Twice: 3x3 convolution, batch norm, ReLU. [B, C, H, W] to [B, F, H, W]."""

  def __init__(self, channels: int, features: int):
    layers = []
    for c in (channels, features):
      layers += [
        nn.Conv2d(c, features, 3, padding=1, bias=False),
        nn.BatchNorm2d(features),
        nn.ReLU(inplace=True),
      ]
    super().__init__(*layers)


class UNet(nn.Module):
  """[B, C, H, W] to logits [B, num_classes, H, W].

  Args:
    channels: of the image.
    num_classes: channels of the logits.
    widths: features of each stage; one more than there are downsamplings.
  """

  def __init__(self, channels: int, num_classes: int, widths: list[int]):
    super().__init__()
    self.downs = nn.ModuleList(
      DoubleConv(c, f) for c, f in zip([channels, *widths[:-1]], widths)
    )
    self.pool = nn.MaxPool2d(2)
    self.upsamples = nn.ModuleList(
      nn.ConvTranspose2d(c, f, 2, stride=2)
      for c, f in zip(widths[:0:-1], widths[-2::-1])
    )
    self.ups = nn.ModuleList(DoubleConv(2 * f, f) for f in widths[-2::-1])
    self.head = nn.Conv2d(widths[0], num_classes, 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    skips = []
    for i, down in enumerate(self.downs):
      x = down(self.pool(x) if i else x)
      skips.append(x)
    skips.pop()
    for upsample, up in zip(self.upsamples, self.ups):
      x = up(torch.cat([skips.pop(), upsample(x)], dim=1))
    return self.head(x)


def unsupported(config: ml_collections.ConfigDict) -> str | None:
  """Returns a field of a config that this network does not support, or None."""
  for field, value in _FIXED.items():
    if config.model[field] != value:
      return f'model.{field}={config.model[field]}'
  sides = config.data.image_size
  if config.data.num_classes == 1:
    return 'data.num_classes=1'
  if any(side % 2**config.model.depth for side in sides):
    return f'data.image_size={sides}'
  return None


def create_network(config: ml_collections.ConfigDict) -> UNet:
  """Returns the network of a config that is not `unsupported`."""
  widths = list(fields.stage_features(config.model))
  return UNet(config.data.num_channels, config.data.num_classes, widths)


class Normalize(nn.Module):
  """uint8 [B, C, H, W] to (value / 255 - mean) / std, per channel."""

  mean: torch.Tensor
  std: torch.Tensor

  def __init__(self, mean: Any, std: Any):
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


def create(
  config: ml_collections.ConfigDict,
  device: torch.device,
  layout: torch.memory_format = torch.channels_last,
) -> tuple[nn.Module, torch.optim.Optimizer]:
  """Returns the model (uint8 images to logits) and its optimiser."""
  normalize = Normalize(config.data.mean, config.data.std)
  model: Any = nn.Sequential(normalize, create_network(config))
  model = model.to(device, memory_format=layout)
  o = config.optimizer
  return model, torch.optim.AdamW(
    model.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay
  )


def to_device(
  batch: dict[str, np.ndarray],
  device: torch.device,
  layout: torch.memory_format = torch.channels_last,
) -> Batch:
  """Returns image uint8 [B, C, H, W] and mask uint8 [B, H, W] on the device."""
  image = torch.from_numpy(batch['image']).to(device).permute(0, 3, 1, 2)
  return (
    image.contiguous(memory_format=layout),
    torch.from_numpy(batch['mask']).to(device),
  )


def _autocast(
  device: torch.device, config: ml_collections.ConfigDict
) -> torch.autocast:
  enabled = config.model.dtype == 'bfloat16'
  return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _flip(batch: Batch, axis: int, probability: float) -> Batch:
  image, mask = batch
  chosen = torch.rand(len(image), 1, 1, device=image.device) < probability
  return (
    torch.where(chosen[..., None], image.flip(axis), image),
    torch.where(chosen, mask.flip(axis), mask),
  )


def train_step(
  model: Any, optimizer: Any, batch: Batch, config: ml_collections.ConfigDict
) -> torch.Tensor:
  """One update of the parameters; returns the loss, on the device."""
  for axis, name in ((-1, 'flip_horizontal'), (-2, 'flip_vertical')):
    if config.augment[name]:
      batch = _flip(batch, axis, config.augment[name])
  image, mask = batch
  with _autocast(image.device, config):
    loss = F.cross_entropy(
      model(image), mask.long(), ignore_index=fields.IGNORE_LABEL
    )
  optimizer.zero_grad()
  loss.backward()
  optimizer.step()
  return loss.detach()


@torch.inference_mode()
def predict(
  model: Any, image: torch.Tensor, config: ml_collections.ConfigDict
) -> torch.Tensor:
  """Returns the class of each pixel, [B, H, W]; the model is in eval mode."""
  with _autocast(image.device, config):
    return model(image).argmax(1)
