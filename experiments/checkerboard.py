"""How much of a checkerboard there is in the logits of a network.

Upsampling that treats the pixels of a 2 x 2 block by different weights leaves a
pattern of period 2 in its stage, and so of 2^k pixels in the output (Odena et
al. 2016, https://distill.pub/2016/deconv-checkerboard). A pattern is a peak in
the spectrum, at the frequency 1 / period along rows or columns, over the
frequencies around it, through which the spectrum of any picture falls smoothly.

  python -m experiments.checkerboard --workdir=WORKDIR

writes WORKDIR/checkerboard.json: of the logits of the first images of a run's
eval split.
"""

import os
import pathlib
import sys

import numpy as np
from absl import app, flags

import unet_jax
from experiments import sweeps
from unet_jax import errors
from unet_jax.data import prepare

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of a training run.')
# Images that are looked at.
_NUM_IMAGES = 32
# Periods in pixels: of the last, the last but one, and the third upsampling.
PERIODS = (2, 4, 8)


def power(logits: np.ndarray, axis: int) -> np.ndarray:
  """Returns the mean power at each frequency along an axis.

  Args:
    logits: [B, H, W, K].
    axis: 1, of the rows, or 2, of the columns.

  Returns:
    float64 [n // 2 + 1] at the frequencies i / n per pixel, n the axis' length
    cut to a multiple of 16; of Hann-windowed lines without their means, so that
    the borders of the image leave little, summed over lines and channels.
  """
  lines = np.moveaxis(np.asarray(logits, np.float64), axis, -1)
  n = lines.shape[-1] // 16 * 16
  lines = lines[..., :n]
  lines = lines - lines.mean(-1, keepdims=True)
  # Periodic, so that a tone at a frequency i / n has power at i - 1 to i + 1.
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
  spectrum = np.abs(np.fft.rfft(lines * window)) ** 2
  return spectrum.reshape(-1, n // 2 + 1).mean(0)


def peak(spectrum: np.ndarray, period: int) -> float:
  """Returns the power at a period over the mean power around it.

  1 for noise, a little less where the spectrum falls smoothly, and far above 1
  for a pattern.

  Args:
    spectrum: see `power`.
    period: in pixels, a power of 2.

  Returns:
    The mean of the bins that a pattern reaches, over that of n / 16, at least
    3, bins on either side (at period 2, the highest frequency: on the one that
    there is); NaN where the image is too small for them, or has no power there.
  """
  n = 2 * (len(spectrum) - 1)
  centre, width = n // period, max(n // 16, 3)
  low = centre - 1 - width
  # Bins 0 and 1 hold what the window makes of the mean.
  if low < 2:
    return float('nan')
  around = np.r_[spectrum[low : centre - 1], spectrum[centre + 2 :][:width]]
  mean = around.mean()
  inside = spectrum[centre - 1 : centre + 2].mean()
  return float(inside / mean) if mean > 0 else float('nan')


def measure(logits: np.ndarray) -> dict[str, float]:
  """Returns {'period_2': ..., 'period_4': ..., 'period_8': ...}.

  Args:
    logits: [B, H, W, K].

  Returns:
    See `peak`, the mean over the two axes.
  """
  spectra = [power(logits, axis) for axis in (1, 2)]
  return {
    f'period_{period}': float(np.mean([peak(s, period) for s in spectra]))
    for period in PERIODS
  }


def of_run(workdir: str) -> dict[str, float]:
  """Returns `measure` of a trained network on the first evaluation images."""
  network = unet_jax.load(workdir)
  config = network.config
  dataset = prepare.prepare(config, config.data.eval_split)
  count = min(_NUM_IMAGES, len(dataset))
  # At the network's own size: nothing is resized on the way.
  images = np.stack([dataset[i]['image'] for i in range(count)])
  log = np.log(np.maximum(network(images), np.finfo(np.float32).tiny))
  # The logits, up to what they have in common at each pixel, which softmax
  # takes no notice of.
  return measure(log - log.mean(-1, keepdims=True))


def main(_) -> None:
  workdir = os.path.abspath(_WORKDIR.value)
  try:
    figures = of_run(workdir)
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  figures = {k: v if np.isfinite(v) else None for k, v in figures.items()}
  sweeps.write_json(pathlib.Path(workdir, 'checkerboard.json'), figures)


if __name__ == '__main__':
  app.run(main)
