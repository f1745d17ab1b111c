"""Size of images, network, batch and schedule for a set, and the time it takes.

What is chosen here is a start that trains well, by the number of images, by
what the masks lose when they are resized, and by the machine.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np

from unet_jax.config import fields

# Square roots of the areas of images that are tried, in pixels.
_SIDES = (128, 192, 256, 384, 512)
# The mean IoU over classes, and that of the worst class, that resized masks
# must still reach.
_KEPT_MEAN, _KEPT_WORST = 0.9, 0.75
# Sides that are nearly those of the files are not worth a resize.
_NEARLY = 0.8
# Largest side of whole images of full resolution, and the windows' beyond it.
_WHOLE, _WINDOW = 320, 256
# Sides are multiples of this, which the usual depths divide.
_MULTIPLE = 16
# Smallest edge at the bottom of the U, in pixels; and depths, by the number of
# images.
_BOTTOM = 6
_DEPTHS, _FEW_IMAGES, _MANY_IMAGES = (3, 4, 5), 100, 2000
# Features of the first stage, and pixels in a batch: on CPUs, elsewhere, and
# there for many images. Of few images a batch has half as many: they are seen
# often enough.
_FEATURES = (16, 32, 64)
_BATCH_PIXELS = (2**18, 2**20, 2**20)
_SMALLEST_BATCH, _LARGEST_BATCH = 2, 32
# The learning rate of a run of so many steps; of shorter runs it is higher by
# the square root of the ratio.
_RATE, _RATE_STEPS, _LARGEST_RATE = 2e-3, 2000, 5e-3
# Speed of a training step with native kernels over that of a matrix product:
# 28 GFLOP in 0.153 s, where the product has 165 GFLOP/s (two cores).
_EFFICIENCY = 1.0


@dataclasses.dataclass(frozen=True)
class Size:
  """data.image_size, data.resize, and why."""

  size: tuple[int, int]
  resize: str
  why: str


def choose_size(
  image_sizes: Sequence[tuple[int, int]],
  kept_iou: Callable[[tuple[int, int]], dict[int, float]],
  names: Sequence[str],
) -> Size:
  """Returns the smallest size at which the masks lose little.

  Args:
    image_sizes: height and width of each image.
    kept_iou: see `samples.kept_iou`, of a size.
    names: of the classes.
  """
  sizes = np.array(image_sizes)
  height, width = np.median(sizes, 0)
  same = bool(np.all(sizes == sizes[0]))
  about = (
    f'{"all" if same else "median"} {width:.0f} x {height:.0f} px '
    '(width x height)'
  )
  side = float(np.sqrt(height * width))
  ratio = sizes[:, 1] / sizes[:, 0] / (width / height)
  varied = np.mean(np.maximum(ratio, 1 / ratio) > 1.5) > 0.05
  how = 'pad' if varied else 'stretch'
  aspect = 'their aspect varies' if varied else 'their aspect is much the same'
  lost = ''
  for tried in _SIDES:
    if tried >= _NEARLY * side:
      break
    size = _rounded(height * tried / side, width * tried / side)
    kept = kept_iou(size)
    if not kept:
      continue
    worst = min(kept, key=lambda c: kept[c])
    mean = float(np.mean(list(kept.values())))
    text = (
      f'at {size[1]} x {size[0]} px the right masks themselves still reach an '
      f'IoU of {mean:.2f} ({names[worst]} {kept[worst]:.2f})'
    )
    if mean >= _KEPT_MEAN and kept[worst] >= _KEPT_WORST:
      why = f'{about}; {text}{"; " if lost else ""}{lost}; {aspect}'
      return Size(size, how, why)
    lost = lost or f'{text}, which is too little'
  why = f'{about}{"; " if lost else ""}{lost}'
  if side > _WHOLE:
    window = min(
      _WINDOW,
      *(int(n) // _MULTIPLE * _MULTIPLE or int(n) for n in (height, width)),
    )
    return Size((window, window), 'patch', f'{why}: windows of full resolution')
  if same:
    size = (int(height), int(width))
    return Size(size, 'stretch', f'{why}: nothing to resize')
  size = _rounded(height, width, math.ceil)
  return Size(size, how, f'{why}; {aspect}')


def _rounded(
  height: float, width: float, how: Callable[[float], int] = round
) -> tuple[int, int]:
  rows, columns = (
    max(_MULTIPLE, how(n / _MULTIPLE) * _MULTIPLE) for n in (height, width)
  )
  return rows, columns


def choose_depth(size: tuple[int, int], num_images: int) -> tuple[int, str]:
  """Returns model.depth, and why."""
  kind = (num_images >= _FEW_IMAGES) + (num_images >= _MANY_IMAGES)
  most = _DEPTHS[kind]
  fits = int(np.log2(max(min(size) // _BOTTOM, 1)))
  if fits < most:
    return fits, f'the smaller edge stays at least {_BOTTOM} px at the bottom'
  return most, f'at most {most} for {num_images} images'


def choose_width(
  size: tuple[int, int], num_images: int, on_cpu: bool
) -> tuple[int, int]:
  """Returns model.base_features and data.batch_size."""
  kind = 0 if on_cpu else 1 + (num_images >= _MANY_IMAGES)
  batch = _BATCH_PIXELS[kind] / np.prod(size)
  batch /= 2 if num_images < _FEW_IMAGES else 1
  batch = 2 ** round(np.log2(np.clip(batch, _SMALLEST_BATCH, _LARGEST_BATCH)))
  # Not most of a small set at once.
  most = max(num_images // 2, 1)
  return _FEATURES[kind], int(min(batch, 2 ** int(np.log2(most))))


def choose_rate(num_steps: int) -> float:
  """Returns optimizer.learning_rate for a run of so many steps."""
  rate = _RATE * max(_RATE_STEPS / num_steps, 1) ** 0.5
  return float(f'{min(rate, _LARGEST_RATE):.2g}')


def step_flop(config: ml_collections.ConfigDict) -> float:
  """Floating-point operations of a training step, of its convolutions."""
  model, data = config.model, config.data
  features = fields.stage_features(model)
  pixels = float(np.prod(data.image_size))
  products, channels = 0.0, data.num_channels
  for i, n in enumerate(features):
    area = pixels / 4**i * model.kernel_size**2
    products += area * (channels * n + (model.convs - 1) * n * n)
    channels = n
    if i + 1 < len(features):  # Of the decoder, with its upsampling.
      products += area * (2 * n * n + (model.convs - 1) * n * n)
      products += pixels / 4**i * features[i + 1] * n
  products += pixels * features[0] * data.num_classes
  # Two operations a product; forward, and the gradients of inputs and kernels.
  return 2 * 3 * products * data.batch_size


def cpu_seconds_per_step(config: ml_collections.ConfigDict) -> float:
  """About what a training step takes here, by the speed of a matrix product."""
  n = 2048
  a = np.ones((n, n), np.float32)
  a[:64] @ a  # Starts the threads.
  # Processor time: others may be at work here now.
  start = time.process_time()
  a @ a
  spent = (time.process_time() - start) / len(os.sched_getaffinity(0))
  return step_flop(config) * spent / (_EFFICIENCY * 2 * n**3)


def describe_time(
  config: ml_collections.ConfigDict, num_images: int, on_cpu: bool
) -> str:
  """Returns in words how long a training is."""
  steps = config.train.num_steps
  epochs = steps * config.data.batch_size / max(num_images, 1)
  text = f'{steps} steps see each of {num_images} images '
  text += f'{epochs:.2g} times' if epochs < 10 else f'{epochs:.0f} times'
  if on_cpu:
    seconds = steps * cpu_seconds_per_step(config)
    minutes = f'{seconds / 60:.2g}' if seconds < 6000 else f'{seconds / 60:.0f}'
    cores = len(os.sched_getaffinity(0))
    text += f', in about {minutes} minutes on the {cores} cores of this machine'
  return text
