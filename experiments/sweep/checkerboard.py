"""How much of a checkerboard there is in the logits of a network.

Upsampling that treats the pixels of a 2 x 2 block by different weights leaves a
pattern of period 2 in its stage, and so of 2^k pixels in the output (Odena et
al. 2016, https://distill.pub/2016/deconv-checkerboard). A pattern is a peak in
the spectrum along rows or columns, at the frequency 1 / period, above the bins
around it; the spectrum of a picture without a pattern falls smoothly.
"""

import numpy as np

import unet_jax
from unet_jax.data import prepare

# The first ones of a run's eval split are measured.
_NUM_IMAGES = 32
# Periods in pixels: of the last, the last but one, and the third upsampling.
PERIODS = (2, 4, 8)
# Bins on either side of a peak from which the spectrum without it is estimated.
_AROUND = 3


def power(logits: np.ndarray, axis: int) -> np.ndarray:
  """Returns the mean power at each frequency along an axis of [B, H, W, K].

  It is float64 [n // 2 + 1] at the frequencies i / n per pixel, n the axis'
  length cut to a multiple of 16; of Hann-windowed lines without their means, so
  that the image's borders leave little; averaged over lines and channels.
  """
  lines = np.moveaxis(np.asarray(logits, np.float64), axis, -1)
  n = lines.shape[-1] // 16 * 16
  lines = lines[..., :n]
  lines = lines - lines.mean(-1, keepdims=True)
  # Periodic, so that a tone at a frequency i / n has power at i - 1 to i + 1.
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
  spectrum = np.abs(np.fft.rfft(lines * window)) ** 2
  return spectrum.reshape(-1, n // 2 + 1).mean(0)


def share(spectrum: np.ndarray, period: int) -> float:
  """Returns the share of a spectrum (see `power`) that is a pattern.

  It is the power in the bins that a pattern reaches, above the geometric mean
  of the bins next to them, which fits a power law. The period is in pixels, a
  power of 2.

  Returns:
    At most 1; near 0, of either sign, for noise and smooth pictures; NaN where
    the image is too small, or its lines are constant.
  """
  n = 2 * (len(spectrum) - 1)
  centre = n // period
  low = centre - 1 - _AROUND
  # Bins 0 and 1 have the edges of a picture that its borders cut.
  if low < 2:
    return float('nan')
  # A real line has the power of each bin but the first and the last twice.
  times = np.full(len(spectrum), 2.0)
  times[[0, -1]] = 1
  total = (times * spectrum).sum()
  if not total > 0:
    return float('nan')
  # At period 2, the highest frequency, there are bins on one side only.
  beside = [spectrum[low : centre - 1], spectrum[centre + 2 :][:_AROUND]]
  floor = np.finfo(np.float64).tiny
  around = np.exp(np.log(np.maximum(np.concatenate(beside), floor)).mean())
  inside = slice(centre - 1, centre + 2)
  above = times[inside] * (spectrum[inside] - around)
  return float(above.sum() / total)


def measure(logits: np.ndarray) -> dict[str, float]:
  """Returns {'period_2': ..., 'period_4': ..., 'period_8': ...}.

  Each is the mean of `share` over the two axes of logits [B, H, W, K].
  """
  spectra = [power(logits, axis) for axis in (1, 2)]
  return {
    f'period_{period}': float(np.mean([share(s, period) for s in spectra]))
    for period in PERIODS
  }


def of_run(workdir: str) -> dict[str, float | None]:
  """Returns `measure` of a run's network, None where it is not defined."""
  network = unet_jax.load(workdir)
  config = network.config
  dataset = prepare.prepare(config, config.data.eval_split)
  count = min(_NUM_IMAGES, len(dataset))
  # At the network's own size: nothing is resized on the way.
  images = np.stack([dataset[i]['image'] for i in range(count)])
  log = np.log(np.maximum(network(images), np.finfo(np.float32).tiny))
  # The logits, but for a constant at each pixel, which softmax ignores.
  measured = measure(log - log.mean(-1, keepdims=True))
  return {k: v if np.isfinite(v) else None for k, v in measured.items()}
