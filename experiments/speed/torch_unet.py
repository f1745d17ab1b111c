"""The U-Net and its steps as one would write them in PyTorch.

The same stages, widths and trainable parameters as `unet_jax.models.unet` with
batch or instance norm, transposed convolutions, concatenated skips and `same`
padding, of images and of volumes, whose shapes have D in front of H.
"""

import functools
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
  'convs': 2,
  'kernel_size': 3,
  'block': 'plain',
  'squeeze_excite': 0,
  'downsample': 'max',
  'upsample': 'transpose',
  'skip': 'concat',
  'activation': 'relu',
  'dropout': 0.0,
  'deep_supervision': (),
  'padding': 'same',
}
# By the values of model.norm that it has.
_NORMS = {'batch': 'BatchNorm', 'instance': 'InstanceNorm'}


def _layer(kind: str, spatial_dims: int) -> Any:
  """Returns nn.Conv2d or nn.Conv3d of `Conv`."""
  return getattr(nn, f'{kind}{spatial_dims}d')


def _memory_format(layout: str, spatial_dims: int) -> torch.memory_format:
  if layout == 'default layout':
    return torch.contiguous_format
  return {2: torch.channels_last, 3: torch.channels_last_3d}[spatial_dims]


class DoubleConv(nn.Sequential):
  """Twice: 3x3 convolution, norm, ReLU. [B, C, H, W] to [B, F, H, W]."""

  def __init__(
    self, spatial_dims: int, norm: str, channels: int, features: int
  ):
    conv = _layer('Conv', spatial_dims)
    norm_layer = _layer(_NORMS[norm], spatial_dims)
    layers: list[nn.Module] = []
    for c in (channels, features):
      layers += [
        conv(c, features, 3, padding=1, bias=False),
        norm_layer(features, affine=True),
        nn.ReLU(inplace=True),
      ]
    super().__init__(*layers)


class UNet(nn.Module):
  """[B, C, H, W] to logits [B, num_classes, H, W].

  Args:
    spatial_dims: 2 or 3.
    channels: C.
    num_classes: of the logits.
    widths: features of each stage, one more than there are downsamplings.
    norm: `batch` or `instance`.
  """

  def __init__(
    self,
    spatial_dims: int,
    channels: int,
    num_classes: int,
    widths: list[int],
    norm: str,
  ):
    super().__init__()
    block = functools.partial(DoubleConv, spatial_dims, norm)
    transpose = _layer('ConvTranspose', spatial_dims)
    self.downs = nn.ModuleList(
      block(c, f) for c, f in zip([channels, *widths[:-1]], widths)
    )
    self.pool = _layer('MaxPool', spatial_dims)(2)
    self.upsamples = nn.ModuleList(
      transpose(c, f, 2, stride=2)
      for c, f in zip(widths[:0:-1], widths[-2::-1])
    )
    self.ups = nn.ModuleList(block(2 * f, f) for f in widths[-2::-1])
    self.head = _layer('Conv', spatial_dims)(widths[0], num_classes, 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    skips = []
    for i, down in enumerate(self.downs):
      x = down(self.pool(x) if i else x)
      skips.append(x)
    skips.pop()
    for upsample, up in zip(self.upsamples, self.ups):
      x = up(torch.cat([skips.pop(), upsample(x)], dim=1))
    return self.head(x)


class HalfSize(nn.Module):
  """A network on blocks of 2x2 pixels: space to depth, depth to space."""

  def __init__(self, network: nn.Module):
    super().__init__()
    self.network = network

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    b, c, *size = x.shape
    n = len(size)
    x = x.reshape(b, c, *(m for s in size for m in (s // 2, 2)))
    x = x.permute(0, 1, *range(3, 3 + 2 * n, 2), *range(2, 2 + 2 * n, 2))
    x = self.network(x.reshape(b, -1, *(s // 2 for s in size)))
    x = x.reshape(b, -1, *(2,) * n, *(s // 2 for s in size))
    x = x.permute(0, 1, *(a for i in range(n) for a in (2 + n + i, 2 + i)))
    return x.reshape(b, -1, *size)


def unsupported(config: ml_collections.ConfigDict) -> str | None:
  """Returns a field of a config that this network does not support, or None."""
  for field, value in _FIXED.items():
    if config.model[field] != value:
      return f'model.{field}={config.model[field]}'
  if config.model.norm not in _NORMS:
    return f'model.norm={config.model.norm}'
  sides = config.data.image_size
  if config.data.num_classes == 1:
    return 'data.num_classes=1'
  halvings = config.model.depth + (config.model.stem == 'space_to_depth')
  if any(side % 2**halvings for side in sides):
    return f'data.image_size={sides}'
  return None


def create_network(config: ml_collections.ConfigDict) -> nn.Module:
  """Returns the network of a config that is not `unsupported`."""
  model, data = config.model, config.data
  has_stem = model.stem == 'space_to_depth'
  block = 2**model.spatial_dims if has_stem else 1
  network = UNet(
    model.spatial_dims,
    block * data.num_channels,
    block * data.num_classes,
    list(fields.stage_features(model)),
    model.norm,
  )
  return HalfSize(network) if has_stem else network


class Normalize(nn.Module):
  """uint8 [B, C, H, W] to (value / 255 - mean) / std, per channel."""

  mean: torch.Tensor
  std: torch.Tensor

  def __init__(self, mean: Any, std: Any, spatial_dims: int):
    super().__init__()
    shape = (1, -1, *(1,) * spatial_dims)
    self.register_buffer('mean', torch.tensor(mean).view(shape))
    self.register_buffer('std', torch.tensor(std).view(shape))

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
  layout: str = 'channels_last',
) -> tuple[nn.Module, torch.optim.Optimizer]:
  """Returns the model (uint8 images to logits) and its optimiser."""
  dims = config.model.spatial_dims
  normalize = Normalize(config.data.mean, config.data.std, dims)
  model: Any = nn.Sequential(normalize, create_network(config))
  model = model.to(device, memory_format=_memory_format(layout, dims))
  o = config.optimizer
  return model, torch.optim.AdamW(
    model.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay
  )


def to_device(
  batch: dict[str, np.ndarray],
  device: torch.device,
  layout: str = 'channels_last',
) -> Batch:
  """Returns image uint8 [B, C, H, W] and mask uint8 [B, H, W] on the device."""
  image = torch.from_numpy(batch['image']).to(device).movedim(-1, 1)
  memory_format = _memory_format(layout, image.ndim - 2)
  return (
    image.contiguous(memory_format=memory_format),
    torch.from_numpy(batch['mask']).to(device),
  )


def _autocast(
  device: torch.device, config: ml_collections.ConfigDict
) -> torch.autocast:
  enabled = config.model.dtype == 'bfloat16'
  return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _flip(batch: Batch, axis: int, probability: float) -> Batch:
  image, mask = batch
  shape = (len(mask), *(1,) * (mask.ndim - 1))
  chosen = torch.rand(shape, device=image.device) < probability
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
  weight = None
  if config.loss.class_weights:
    weight = torch.tensor(
      config.loss.class_weights, device=image.device
    ).float()
  with _autocast(image.device, config):
    loss = F.cross_entropy(
      model(image), mask.long(), weight, ignore_index=fields.IGNORE_LABEL
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
