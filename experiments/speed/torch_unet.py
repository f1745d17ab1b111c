"""The U-Net as one would write it in PyTorch: the peer of the benchmark.

The same stages, widths and trainable parameters as `unet_jax.models.unet` with
batch norm, transposed convolutions, concatenated skips and `same` padding.
"""

import torch
from torch import nn

# What this network is, in the words of the config.
_FIXED = {
  'upsample': 'transpose',
  'skip': 'concat',
  'norm': 'batch',
  'activation': 'relu',
  'dropout': 0.0,
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


def unsupported(config) -> str | None:
  """What a config asks for that this network is not; None where they agree."""
  for field, value in _FIXED.items():
    if config.model[field] != value:
      return f'model.{field}={config.model[field]}'
  n, sides = config.data.num_classes, config.data.image_size
  if n == 1:
    return 'data.num_classes=1'
  if any(side % 2**config.model.depth for side in sides):
    return f'data.image_size={sides}'
  return None


def create(config) -> UNet:
  """Returns the network of a config that is not `unsupported`."""
  m = config.model
  widths = [
    min(m.base_features * 2**i, m.max_features) for i in range(m.depth + 1)
  ]
  return UNet(config.data.num_channels, config.data.num_classes, widths)
