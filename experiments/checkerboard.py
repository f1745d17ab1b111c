"""How much of a checkerboard there is in the logits of a network.

Upsampling that treats the pixels of a 2 x 2 block by different weights leaves a
pattern of period 2 in its stage, and so of 2^k pixels in the output (Odena et
al. 2016, https://distill.pub/2016/deconv-checkerboard). A pattern is a peak in
the spectrum along rows or columns, at the frequency 1 / period, above what lies
around it, where the spectrum of a picture without falls smoothly.

  python -m experiments.checkerboard WORKDIR

writes WORKDIR/checkerboard.json: of the logits of the first images of a run's
eval split.
"""

import os
import pathlib
import sys

import numpy as np
from absl import logging

import unet_jax
from experiments import files
from unet_jax import errors
from unet_jax.data import prepare

# Images that are looked at.
_NUM_IMAGES = 32
# Periods in pixels: of the last, the last but one, and the third upsampling.
PERIODS = (2, 4, 8)
# Bins on either side of a peak that tell of the spectrum without it.
_AROUND = 3


def power(logits: np.ndarray, axis: int) -> np.ndarray:
  """Returns the mean power at each frequency along an axis.

  Args:
    logits: [B, H, W, K].
    axis: 1, of the rows, or 2, of the columns.

  Returns:
    float64 [n // 2 + 1] at the frequencies i / n per pixel, n the axis' length
    cut to a multiple of 16; of Hann-windowed lines without their means, so that
    the borders of the image leave little; the mean over lines and channels.
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
  """Returns the share of the power that is a pattern of a period.

  That is the power in the bins that a pattern reaches, above what the bins next
  to them say of a spectrum without: their geometric mean, that of a power law.

  Args:
    spectrum: see `power`.
    period: in pixels, a power of 2.

  Returns:
    At most 1; for noise and smooth pictures nearly 0, on either side of it;
    NaN where the image is too small, or its lines are constant.
  """
  n = 2 * (len(spectrum) - 1)
  centre = n // period
  low = centre - 1 - _AROUND
  # What is cut off a picture at its borders lies in bins 0 and 1.
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

  Args:
    logits: [B, H, W, K].

  Returns:
    See `share`, the mean over the two axes.
  """
  spectra = [power(logits, axis) for axis in (1, 2)]
  return {
    f'period_{period}': float(np.mean([share(s, period) for s in spectra]))
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


def main(workdir: str) -> None:
  logging.set_verbosity(logging.WARNING)
  try:
    figures = of_run(workdir)
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  figures = {k: v if np.isfinite(v) else None for k, v in figures.items()}
  files.write_json(pathlib.Path(workdir, 'checkerboard.json'), figures)


if __name__ == '__main__':
  main(os.path.abspath(sys.argv[1]))
