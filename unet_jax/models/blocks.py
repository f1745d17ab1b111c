"""The layers of a U-Net, for images [B, H, W, C] and volumes [B, D, H, W, C].

Each takes either: the number of spatial axes is that of its input. Shapes in
docstrings are those of images. Strided and transposed convolutions take the
form that `forms.FORMS` has for the platform; each computes the same function,
from the same parameters, as the stock layer that its docstring names.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unet_jax.kernels import convolution
from unet_jax.models import forms, resample
from unet_jax.models.layers import add_bias, KERNEL_INIT

Array = jax.Array
ModuleDef = Callable[..., Any]

ACTIVATIONS = {
  'relu': nn.relu,
  'leaky_relu': nn.leaky_relu,
  'elu': nn.elu,
  'gelu': nn.gelu,
  'silu': nn.silu,
}


class Conv2x(nn.Module):
  """2x2 convolution of stride 2: [B, H, W, C] to [B, H // 2, W // 2, F].

  The same function and parameters (`kernel` [2, 2, C, F], `bias` [F]) as
  `nn.Conv(F, (2, 2), (2, 2), padding='VALID')`.
  """

  features: int
  use_bias: bool = True
  dtype: Any = jnp.float32
  native: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (*(2,) * (x.ndim - 2), x.shape[-1], self.features)
    kernel = self.param('kernel', KERNEL_INIT, shape, jnp.float32)
    bias = None
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
    (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)
    if self.native and convolution.supports(x, kernel):
      return convolution.convolve_2x(forms.even(x), kernel, bias)
    x = forms.apply('strided_conv', x, kernel)
    return x if bias is None else add_bias(x, bias)


class ConvTranspose2x(nn.Module):
  """2x2 transposed convolution of stride 2: [B, H, W, C] to [B, 2H, 2W, F].

  The same function and parameters (`kernel` [2, 2, C, F], `bias` [F]) as
  `nn.ConvTranspose(F, (2, 2), (2, 2))`.
  """

  features: int
  dtype: Any = jnp.float32
  native: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    n = x.ndim - 2
    shape = (*(2,) * n, x.shape[-1], self.features)
    # An output has C inputs: it sees one place of the kernel, not all 2x2.
    init = nn.initializers.he_normal(batch_axis=tuple(range(n)))
    kernel = self.param('kernel', init, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)
    if self.native and convolution.supports(x, kernel):
      return convolution.convolve_transpose_2x(x, kernel, bias)
    return add_bias(forms.apply('transposed_conv', x, kernel), bias)


class SqueezeExcite(nn.Module):
  """Scales each channel of [B, H, W, C] by a factor from the means of all.

  Hu et al. 2018 (arXiv 1709.01507), eq. 2 to 4: mean over the pixels, a layer
  to C / ratio channels with ReLU, a layer back to C with a sigmoid.
  """

  ratio: int
  conv: ModuleDef

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c, n = x.shape[-1], x.ndim - 2
    # A mean of many values: in float32.
    axes = tuple(range(1, 1 + n))
    scale = jnp.mean(x, axes, jnp.float32, keepdims=True).astype(x.dtype)
    conv = functools.partial(self.conv, kernel_size=(1,) * n, use_bias=True)
    scale = nn.relu(conv(c // self.ratio, name='reduce')(scale))
    return x * nn.sigmoid(conv(c, name='expand')(scale))


class AttentionGate(nn.Module):
  """Weakens a skip where the coarser stage finds nothing relevant.

  The additive gate of Oktay et al. 2018 (arXiv 1804.03999), eq. 1 and 2 and
  figure 2: the skip, brought to half its size by a 2x2 convolution of stride 2,
  and the gating signal are added in as many channels as the skip has; ReLU, one
  channel, sigmoid; the coefficients are interpolated to the skip's size.

  Attributes:
    is_valid: drop the outermost pixels, whose coefficients depend on a
      repeated border.
  """

  conv: ModuleDef
  dtype: Any
  is_valid: bool = False
  native: bool = False

  @nn.compact
  def __call__(self, skip: Array, gating: Array) -> Array:
    """Weighs the skip, each pixel with a number between 0 and 1.

    Args:
      skip: features of the encoder, [B, H, W, C].
      gating: features of the decoder, one stage coarser, [B, H // 2, W // 2,
        F].

    Returns:
      [B, H, W, C], with `is_valid` [B, H - 2, W - 2, C].
    """
    c, n = skip.shape[-1], skip.ndim - 2
    conv = functools.partial(self.conv, kernel_size=(1,) * n, use_bias=True)
    x = Conv2x(c, False, self.dtype, self.native, name='skip')(skip)
    x = nn.relu(x + conv(c, name='gating')(gating))
    # As in the paper, an untrained gate lets (nearly) everything pass.
    opened = nn.initializers.constant(3.0)
    x = nn.sigmoid(conv(1, bias_init=opened, name='psi')(x))
    x = resample.pad_to(resample.bilinear_2x(x), *skip.shape[1:-1], mode='edge')
    if self.is_valid:
      skip, x = resample.drop_border(skip), resample.drop_border(x)
    return skip * x


class ConvBlock(nn.Module):
  """Convolution, norm, activation, `convs` times.

  [B, H, W, C], or arrays that make it along C, to [B, H', W', F]; H' is H with
  `same` padding and H - convs * (kernel_size - 1) with `valid`.

  Attributes:
    features: of all convolutions but the last.
    out_features: F, of the last.
    conv: makes a `layers.Conv`; its dtype and padding are bound.
    norm: makes a norm, see `layers.make_norm`; None: none.
    activation: of arrays.
    kernel_size: pixels along each axis.
    residual: the block's input is added before the last activation (He et al.
      2016, arXiv 1512.03385, figure 2; in a U-Net: Zhang et al. 2018, arXiv
      1711.10684), through a 1x1 convolution and norm where its channels are not
      F, and cropped with `valid` padding.
    squeeze_excite: ratio of a `SqueezeExcite` at the end, in front of the sum
      where there is one (Hu et al., figures 2 and 3); 0: none.
  """

  features: int
  out_features: int
  conv: ModuleDef
  norm: ModuleDef | None
  activation: Callable[[Array], Array]
  convs: int = 2
  kernel_size: int = 3
  residual: bool = False
  squeeze_excite: int = 0

  @nn.compact
  def __call__(self, inputs: Array | tuple[Array, ...]) -> Array:
    x: Any = inputs
    shortcut, n = x, jax.tree.leaves(x)[0].ndim - 2
    for i in range(1, self.convs + 1):
      is_last = i == self.convs
      features = self.out_features if is_last else self.features
      activation = None if is_last and self.residual else self.activation
      conv = functools.partial(
        self.conv, features, (self.kernel_size,) * n, name=f'conv{i}'
      )
      if self.norm is None:
        x = conv(activation=activation)(x)
      else:
        x = self.norm(name=f'norm{i}', activation=activation)(conv()(x))
    if self.squeeze_excite:
      x = SqueezeExcite(self.squeeze_excite, self.conv, name='squeeze_excite')(
        x
      )
    if not self.residual:
      return x
    shortcut = resample.center_crop(shortcut, *x.shape[1:-1])
    if shortcut.shape[-1] != self.out_features:
      conv = self.conv(self.out_features, (1,) * n, name='shortcut')
      shortcut = conv(shortcut)
      if self.norm is not None:
        shortcut = self.norm(name='shortcut_norm')(shortcut)
    return self.activation(x + shortcut)


class Upsample(nn.Module):
  """Doubles height and width: [B, H, W, C] to [B, H', W', F].

  `transpose` learns the upsampling. The others, `resample.UPSAMPLINGS`, are
  fixed and followed by a convolution; with a `kernel_size` of 0 there is none,
  and F = C. H' is 2H, less `output_size.upsampling_loss` without padding.

  Attributes:
    features: F.
    kind: see above.
    kernel_size: pixels along each axis of the convolution.
    conv: makes a convolution; its padding is bound.
    is_valid: drop the outermost pixels of a bilinear interpolation, which
      depend on a repeated border.
  """

  features: int
  kind: str
  kernel_size: int
  conv: ModuleDef
  dtype: Any
  is_valid: bool = False
  native: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.kind == 'transpose':
      return ConvTranspose2x(
        self.features, dtype=self.dtype, native=self.native, name='conv'
      )(x)
    if self.kernel_size == 0:
      return self._resize(x)
    conv = self.conv(
      self.features,
      (self.kernel_size,) * (x.ndim - 2),
      use_bias=True,
      name='conv',
    )
    if self.kernel_size == 1 and self.kind != 'pixel_shuffle':
      # A 1x1 convolution and an interpolation commute, borders and bias too;
      # this order has a quarter of the products.
      return self._resize(conv(x))
    return conv(self._resize(x))

  def _resize(self, x: Array) -> Array:
    x = resample.UPSAMPLINGS[self.kind](x)
    if self.is_valid and self.kind == 'bilinear':
      x = resample.drop_border(x)
    return x
