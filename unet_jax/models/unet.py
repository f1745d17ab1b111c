"""The U-Net (Ronneberger et al. 2015, arXiv 1505.04597) and its variants.

One module for all of them, on images [B, H, W, C] and volumes [B, D, H, W, C]
(Çiçek et al. 2016, arXiv 1606.06650). Shapes are written for images.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from unet_jax.config import fields, output_size
from unet_jax.models import blocks, layers, resample
from unet_jax.runtime import errors

Array = jax.Array


class UNet(nn.Module):
  """A U-Net; unet_jax/config/default.py, section model, explains the fields.

  Attributes:
    num_classes: channels of the logits (1: one sigmoid channel).
    depth: number of 2x downsamplings; 4 in the 2015 paper.
    base_features: channels of the first stage, doubled at each further one up
      to `max_features`, unless `features` lists them one by one.
    dtype: of activations and products; parameters and logits are float32.
    native: take the convolutions of unet_jax/kernels, which must be loaded.
  """

  num_classes: int
  spatial_dims: int = 2
  depth: int = 4
  base_features: int = 64
  max_features: int = 1024
  features: tuple[int, ...] = ()
  convs: int = 2
  kernel_size: int = 3
  block: str = 'plain'
  squeeze_excite: int = 0
  stem: str = 'none'
  downsample: str = 'max'
  upsample: str = 'transpose'
  upsample_kernel: int = 1
  skip: str = 'concat'
  norm: str = 'none'
  norm_groups: int = 8
  norm_epsilon: float = 1e-5
  activation: str = 'relu'
  dropout: float = 0.0
  dropout_stages: int = 1
  deep_supervision: tuple[float, ...] = ()
  padding: str = 'same'
  dtype: Any = jnp.float32
  precision: str = 'default'
  remat: bool = False
  native: bool = False

  @nn.compact
  def __call__(
    self, x: Array, *, train: bool
  ) -> Array | tuple[Array, tuple[Array, ...]]:
    """Returns logits.

    Args:
      x: images, [B, H, W, C], normalised floats.
      train: use the batch's own statistics and dropout (which needs an rng
        named `dropout`), and return the logits of all heads.

    Returns:
      float32 [B, H', W', num_classes]; H', W' are `output_size((H, W))`.

      With `train` and `deep_supervision` a pair of these and of a tuple with
      the logits of decoder stages i = 1, 2, ..., float32 [B, h, w,
      num_classes], whose losses `deep_supervision[i - 1]` weighs. Their pixel
      (y, x) covers 2**i x 2**i pixels of the image from (2**i * y, 2**i * x)
      on. Compare it with the pixel of a mask [B, H, W] that is nearest to the
      middle of those: `mask[:, s // 2 :: s, s // 2 :: s][:, :h, :w]` with
      s = 2**i. h and w are at most H // s and W // s, and smaller by one at
      most, where an odd size was halved.

    Raises:
      UserError: the number of axes is not that of `spatial_dims`, or H or W
        does not fit depth and padding.
    """
    if x.ndim != self.spatial_dims + 2:
      raise errors.UserError(
        f'model.spatial_dims={self.spatial_dims} takes a batch of '
        f'{self.spatial_dims + 2} axes (the first of images, the last of '
        f'channels), not one of shape {x.shape}'
      )
    size = x.shape[1:-1]
    logits_size = self.output_size(size)
    conv = self._conv()
    block = self._block(conv, train)
    features = fields.stage_features(self)
    # Output channels of each stage. With upsample_kernel=0 upsampling keeps the
    # channel count, so a stage must already output the next one's.
    out_features = features
    if self.upsample_kernel == 0:
      out_features = (features[0], *features)

    x = x.astype(self.dtype)
    if self.stem == 'space_to_depth':
      x = resample.pad_to(x, *(n + n % 2 for n in size))
      x = resample.space_to_depth_2x(x)
    skips: list[Array] = []
    coarse_logits: list[Array] = []
    for i in range(self.depth):
      x = block(features[i], features[i], name=f'down_{i}')(x)
      if i > self.depth - self.dropout_stages:
        x = self._dropout(train, name=f'dropout_{i}')(x)
      x, skip = self._downsample(x, f'downsample_{i}')
      skips.append(skip)
    x = block(features[-1], out_features[self.depth], name='bottleneck')(x)
    x = self._dropout(train)(x)
    for i in reversed(range(self.depth)):
      joined = self._upsample(x, skips.pop(), features[i], conv, i)
      x = block(features[i], out_features[i], name=f'up_{i}')(joined)
      if 0 < i <= len(self.deep_supervision):
        # In evaluation too, so that `init` makes their parameters; the compiler
        # drops logits that are not returned.
        logits = self._head(x, f'head_{i}', [n // 2**i for n in size])
        coarse_logits.insert(0, logits)
    logits = self._head(x, 'head', logits_size)
    if train and self.deep_supervision:
      return logits, tuple(coarse_logits)
    return logits

  @nn.nowrap
  def apply(self, *args: Any, **kwargs: Any) -> Any:
    if self.precision == 'default':  # JAX's, which a process may have set.
      return super().apply(*args, **kwargs)
    with jax.default_matmul_precision(self.precision):
      return super().apply(*args, **kwargs)

  def _conv(self) -> Callable[..., nn.Module]:
    """Makes convolutions: `conv(features, kernel_size, name=...)`."""
    return functools.partial(
      layers.Conv,
      padding=self.padding.upper(),
      # These norms subtract the mean of each channel, which cancels a bias
      # before them. The others subtract a mean over several channels.
      use_bias=self.norm not in ('batch', 'instance'),
      kernel_init=layers.KERNEL_INIT,
      native=self.native,
      dtype=self.dtype,
    )

  def _block(
    self, conv: Callable[..., nn.Module], train: bool
  ) -> Callable[..., nn.Module]:
    """Makes the blocks of stages: `block(features, out_features, name=...)`."""
    return functools.partial(
      nn.remat(blocks.ConvBlock) if self.remat else blocks.ConvBlock,
      conv=conv,
      norm=layers.make_norm(
        self.norm,
        self.norm_groups,
        self.norm_epsilon,
        train,
        self.dtype,
        self.native,
      ),
      activation=blocks.ACTIVATIONS[self.activation],
      convs=self.convs,
      kernel_size=self.kernel_size,
      residual=self.block == 'residual',
      squeeze_excite=self.squeeze_excite,
    )

  def _dropout(self, train: bool, name: str | None = None) -> nn.Module:
    return nn.Dropout(self.dropout, deterministic=not train, name=name)

  def _downsample(self, x: Array, name: str) -> tuple[Array, Array]:
    """Halves height and width, without an odd last row; returns x too."""
    if self.downsample == 'conv':
      return blocks.Conv2x(
        x.shape[-1], dtype=self.dtype, native=self.native, name=name
      )(x), x
    if self.native and self.downsample == 'max':
      return resample.max_pool_and_skip(x)
    return resample.POOLINGS[self.downsample](x), x

  def _upsample(
    self,
    coarse: Array,
    skip: Array,
    features: int,
    conv: Callable[..., nn.Module],
    stage: int,
  ) -> Array | tuple[Array, Array]:
    """Doubles height and width, and joins the encoder's features.

    Args:
      coarse: [B, h, w, F] of the stage below.
      skip: [B, H, W, C] of the encoder.

    Returns:
      [B, H', W', C'], or arrays that make it along C: the input of the stage's
      block.
    """
    is_valid = self.padding == 'valid'
    x = blocks.Upsample(
      features,
      self.upsample,
      self.upsample_kernel,
      conv,
      self.dtype,
      is_valid,
      self.native,
      name=f'upsample_{stage}',
    )(coarse)
    if is_valid:
      double = (2 * n for n in coarse.shape[1:-1])
      skip = resample.center_crop(skip, *double)
    else:
      # Pooling dropped an odd last row or column; the mask still has it.
      x = resample.pad_to(x, *skip.shape[1:-1])
    # As in the paper, the skip of the first stage, whose receptive field is
    # smallest, has no gate.
    if self.skip == 'attention' and stage > 0:
      gate = blocks.AttentionGate(
        conv, self.dtype, is_valid, self.native, name=f'gate_{stage}'
      )
      skip = gate(skip, coarse)
    return self._join(*resample.crop_to_common(x, skip))

  def _join(self, x: Array, skip: Array) -> Array | tuple[Array, Array]:
    """Joins the decoder's features and the skip, of one size."""
    if self.skip in ('concat', 'attention'):
      is_native = self.native and x.dtype == jnp.float32
      if is_native and self.block == 'plain':
        return skip, x  # Its first convolution reads both.
      return jnp.concatenate([skip, x], axis=-1)
    return x + skip if self.skip == 'add' else x

  def _head(self, x: Array, name: str, size: Any) -> Array:
    """Returns the logits, at most as large as `size`, of a stage's features."""
    has_stem = self.stem == 'space_to_depth'
    channels = self.num_classes * (2**self.spatial_dims if has_stem else 1)
    head = layers.Conv(
      channels,
      (1,) * self.spatial_dims,
      kernel_init=layers.KERNEL_INIT,
      native=self.native,
      name=name,
    )
    # Logits in float32: the loss exponentiates them. One cast, here.
    logits = head(x.astype(jnp.float32))
    if has_stem:
      logits = resample.depth_to_space_2x(logits)
      logits = logits[(slice(None), *(slice(n) for n in size))]
    return logits

  @nn.nowrap
  def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the logits' height and width, see config/output_size.py.

    Raises:
      UserError: the size does not fit; the message names the nearest that do.
    """
    return output_size.output_size(size, self)


def create_model(
  config: ml_collections.ConfigDict, native: bool = False
) -> UNet:
  """Returns the network of a config.

  Args:
    config: of the run.
    native: see `UNet`; the parameters are the same.
  """
  values = config.model.to_dict()
  values['dtype'] = jnp.dtype(values['dtype'])
  return UNet(num_classes=config.data.num_classes, native=native, **values)
