"""Logits of images of any size: read, windowed, predicted, put together.

Images go through one compiled step in batches of one size, whatever their own:
windows of several images share a batch. Reading ahead and what is done with
the logits happen in threads; sums of windows are on the host, so that the
device holds a few batches and the host, of images that are read by rows, the
rows of one window.
"""

import collections
import concurrent.futures
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import jax
import numpy as np
from jax.sharding import Mesh

from unet_jax.data import prepared, rasters, resize, tiling
from unet_jax.models import averaging as averaging_lib
from unet_jax.models import unet
from unet_jax.prediction import step
from unet_jax.runtime import errors, program
from unet_jax.runtime import mesh as mesh_lib

PyTree = Any

# Logits of images that are kept whole until a thread takes them, in bytes, and
# so of one image; larger ones are handed on by bands.
_KEPT = 256 * 2**20
# Images that are opened before their turn, at most.
_AHEAD = 32
# How many times as many pixels as it has, or a window has, an image may get.
_ENLARGED = 64
# Logits of a band that is enlarged at once, in bytes.
_BAND = 16 * 2**20


class WholeImage:
  """Pixels as the network takes them, uint8 [H, W, C], as a raster."""

  def __init__(self, array: np.ndarray):
    self._array, self.size = array, array.shape[:2]

  def read(self, start: int, stop: int) -> np.ndarray:
    return self._array[start:stop]


class ArraySink:
  """Keeps an image's rows: float32 [H, W, K] in `array`, once it is closed."""

  def __init__(self, size: tuple[int, int]):
    self._size = size
    self.array = None

  def write(self, start: int, band: np.ndarray) -> None:
    if len(band) == self._size[0]:
      self.array = band
      return
    if self.array is None:
      self.array = np.empty((*self._size, band.shape[-1]), np.float32)
    self.array[start : start + len(band)] = band

  def close(self) -> None:
    pass

  def abort(self) -> None:
    pass


def resize_logits(logits: np.ndarray, size) -> Iterator[np.ndarray]:
  """Yields logits at another size, in bands of rows from top to bottom.

  As images are resized (see `prepare.resize_pair`): averaged over areas along
  sides that shrink, interpolated linearly along sides that grow, the corners of
  the picture aligned.

  Args:
    logits: float32 [H, W, K].
    size: height and width.
  """
  k = logits.shape[-1]
  small = tuple(map(min, logits.shape, size))
  logits = _resize(logits, small, cv2.INTER_AREA)
  height, width = size
  rows = max(_BAND // (4 * width * k), 1)
  at = np.clip((np.arange(height) + 0.5) * small[0] / height - 0.5, 0, None)
  above = np.minimum(at.astype(np.int64), small[0] - 1)
  below = np.minimum(above + 1, small[0] - 1)
  share = (at - above).astype(np.float32)[:, None, None]
  for start in range(0, height, rows):
    part = slice(start, start + rows)
    if small[0] == height:
      band = logits[part]
    else:
      first, weight = logits[above[part]], share[part]
      band = first + weight * (logits[below[part]] - first)
    yield _resize(band, (len(band), width), cv2.INTER_LINEAR)


def _resize(logits: np.ndarray, size, interpolation: int) -> np.ndarray:
  """Resizes float32 [H, W, K]; OpenCV takes 4 channels at once, not more."""
  if logits.shape[:2] == tuple(size):
    return logits
  parts = [
    cv2.resize(
      np.ascontiguousarray(logits[..., i : i + 4]),
      size[::-1],
      interpolation=interpolation,
    ).reshape(*size, -1)  # It drops a single channel.
    for i in range(0, logits.shape[-1], 4)
  ]
  return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)


class _Restored:
  """Brings the logits of a scaled image back to the image's own size."""

  def __init__(self, sink: tiling.Sink, scaled, box, size):
    self._sink, self._box, self._size = sink, box, size
    self._whole = ArraySink(scaled)

  def write(self, start: int, band: np.ndarray) -> None:
    self._whole.write(start, band)

  def close(self) -> None:
    start = 0
    for band in resize_logits(self._whole.array[self._box], self._size):
      self._sink.write(start, band)
      start += len(band)
    self._sink.close()


class _Kept:
  """Keeps an image's rows, for a thread to hand them on later."""

  def __init__(self, sink: tiling.Sink):
    self._sink, self._bands = sink, []

  def write(self, start: int, band: np.ndarray) -> None:
    self._bands.append((start, band))

  def close(self) -> None:
    pass

  def hand_on(self) -> None:
    for start, band in self._bands:
      self._sink.write(start, band)
    self._sink.close()


class _Job:
  """An image on its way through the network.

  Attributes:
    raster: the image, at the scale at which the network sees it.
    num_bytes: of its logits, if these are kept whole; otherwise 0.
    is_damaged: whether its rows could not be read, and it is left out.
  """

  def __init__(self, raster, sink: tiling.Sink, layout, config):
    self.raster, self.is_damaged = raster, False
    self._sink = sink
    if config.data.resize != 'patch':
      scaled, box = _scale(raster, config.data)
      self.raster = WholeImage(scaled)
      whole = tuple(slice(0, n) for n in raster.size)
      if (scaled.shape[:2], box) != (raster.size, whole):
        sink = _Restored(sink, scaled.shape[:2], box, raster.size)
    size = self.raster.size
    num_bytes = 4 * math.prod(size) * config.data.num_classes
    self.num_bytes = num_bytes if num_bytes <= _KEPT else 0
    self._kept = _Kept(sink) if self.num_bytes else None
    self._canvas = tiling.Canvas(layout, size, self._kept or sink)
    self._left = math.prod(map(len, layout.starts(size)))

  def add(self, start, output: np.ndarray) -> bool:
    """Adds an output; returns whether it was the last one."""
    self._canvas.add(start, output)
    self._left -= 1
    if not self._left:
      self._canvas.close()
    return not self._left

  def hand_on(self) -> None:
    """Hands on what is kept of an image whose outputs are all there."""
    if self._kept:
      self._kept.hand_on()

  def abort(self) -> None:
    self._sink.abort()


def _scale(raster, data) -> tuple[np.ndarray, tuple[slice, slice]]:
  """Returns an image at the network's scale, see `prepare.scale_image`."""
  size = resize.scaled_size(raster.size, data.image_size, data.resize)
  if math.prod(size) > _ENLARGED * max(
    math.prod(data.image_size), math.prod(raster.size)
  ):
    raise errors.UserError(
      f'an image of {raster.size[0]} x {raster.size[1]} pixels would become '
      f'{size[0]} x {size[1]} with data.resize=crop; leave it out, or train '
      'with another data.resize'
    )
  image = raster.read(0, raster.size[0])
  return resize.scale_image(image, data.image_size, data.resize)


class Predictor:
  """A network, or the average of several, on images of any size.

  How an image gets to the network is what the config says of training images:
  `stretch` and `pad` scale it to one window, and its logits are brought back
  to its size; `crop` scales it so that it covers a window, which then slides
  over all of it; `patch` slides over the image as it is.

  Args:
    config: of the run; `inference` says how windows overlap.
    model: see `unet.create_model`.
    variables: of the network, or of several, stacked.
    averaging: what is averaged.
    mesh: where it runs; of one process.
  """

  def __init__(
    self,
    config,
    model: unet.UNet,
    variables: PyTree,
    averaging: averaging_lib.Averaging,
    mesh: Mesh,
  ):
    self._config, self._variables, self._mesh = config, variables, mesh
    inference = config.inference
    self._layout = tiling.make_layout(
      model,
      inference.window or config.data.image_size,
      inference.overlap,
      inference.blend,
    )
    weights = self._layout.weights
    if weights is not None:
      # Once on the device, not once for each window on the host.
      weights = jax.device_put(weights[..., None], mesh_lib.replicated(mesh))
    self._step = jax.jit(
      functools.partial(
        _window_step,
        model=model,
        mean=config.data.mean,
        std=config.data.std,
        averaging=averaging,
      ),
      compiler_options=program.compiler_options(mesh),
    )
    self._weights = weights
    size = inference.batch_size or config.data.batch_size
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    self._batch_size = -(-size // parts) * parts
    # Seconds in which there was nothing to do but to wait for the device.
    self.seconds_waiting = 0.0

  def run(
    self,
    items: Iterable[Any],
    open_image: Callable[[Any], tuple[rasters.Raster, tiling.Sink]],
    leave_out: Callable[[Any, errors.DecodeError], bool] | None = None,
  ) -> None:
    """Predicts images, in order.

    Args:
      items: what stands for the images.
      open_image: called with an item in a thread; returns the image and what
        takes its logits, at its own size (in a thread, too).
      leave_out: called, in a thread, with an item whose image is damaged;
        returns whether to go on without it.

    Raises:
      Exception: what `open_image`, an image or a sink raises. Each sink is
        either closed or aborted.
    """
    run = _Run(self._layout, self._config, open_image, leave_out)
    workers = prepared.num_workers(self._config)
    ahead = min(2 * workers, _AHEAD)
    with (
      concurrent.futures.ThreadPoolExecutor(workers) as pool,
      concurrent.futures.ThreadPoolExecutor(1) as reader,
    ):
      try:
        loaded = _ahead(pool, run.load, items, ahead)
        batches = run.batches(loaded, self._batch_size)
        take = lambda _: next(batches, None)
        ready = _ahead(reader, take, itertools.repeat(None), 2)
        self._predict(iter(ready.__next__, None), pool, run)
      finally:
        # Of what is queued, nothing is begun once something has failed.
        for threads in (pool, reader):
          threads.shutdown(wait=True, cancel_futures=True)
        run.abort_unfinished()

  def logits(self, images: list[np.ndarray]) -> list[np.ndarray]:
    """Returns float32 [H, W, K] of each of the images, uint8 [H, W, C]."""
    sinks = [ArraySink(image.shape[:2]) for image in images]
    self.run(range(len(images)), lambda i: (WholeImage(images[i]), sinks[i]))
    return [sink.array for sink in sinks]

  def _predict(self, batches, pool, run: '_Run') -> None:
    """Runs the batches; the device has one while the one before is read."""
    pending, finishing = collections.deque(), collections.deque()

    def read():
      result, places = pending.popleft()
      start = time.perf_counter()
      outputs = np.asarray(result)
      self.seconds_waiting += time.perf_counter() - start
      for (job, place), output in zip(places, outputs):
        if job.is_damaged or not job.add(place, output):
          continue
        if job.num_bytes:
          finishing.append((pool.submit(run.finish, job), job.num_bytes))
        else:
          run.finish(job)
      while sum(n for _, n in finishing) > _KEPT:
        finish()
      while finishing and finishing[0][0].done():
        finish()

    def finish():
      finishing.popleft()[0].result()

    for image, places in batches:
      image = mesh_lib.to_devices({'image': image}, self._mesh)['image']
      result = self._step(self._variables, image, self._weights)
      pending.append((result, places))
      if len(pending) > 1:
        read()
    while pending:
      read()
    while finishing:
      finish()


class _Run:
  """The images of one call of `Predictor.run`."""

  def __init__(self, layout, config, open_image, leave_out):
    self._layout, self._config = layout, config
    self._open_image, self._leave_out = open_image, leave_out
    # Jobs that were neither finished nor aborted.
    self._unfinished: set[_Job] = set()

  def load(self, item) -> tuple[Any, _Job | None]:
    """Opens an image, and scales it; None where it is left out."""
    sink = None
    try:
      raster, sink = self._open_image(item)
      job = _Job(raster, sink, self._layout, self._config)
    except BaseException as e:
      if sink is not None:
        sink.abort()
      if not self._is_left_out(item, e):
        raise
      return item, None
    self._unfinished.add(job)
    return item, job

  def _is_left_out(self, item, e: BaseException) -> bool:
    if not isinstance(e, errors.DecodeError) or self._leave_out is None:
      return False
    return self._leave_out(item, e)

  def batches(self, loaded, size: int):
    """Yields batches of windows and, for each, its job and place."""
    images, places = [], []
    for item, job in loaded:
      if job is None:
        continue
      windows = tiling.read_windows(job.raster, self._layout)
      while True:
        try:
          window = next(windows, None)
        except errors.DecodeError as e:
          if not self._is_left_out(item, e):
            raise
          job.is_damaged = True
          break
        if window is None:
          break
        places.append((job, window[0]))
        images.append(window[1])
        if len(images) == size:
          yield np.stack(images), places
          images, places = [], []
    if images:
      yield np.stack(images + images[:1] * (size - len(images))), places

  def finish(self, job: _Job) -> None:
    """Hands on an image's logits; its sink is closed from now on."""
    job.hand_on()
    self._unfinished.discard(job)

  def abort_unfinished(self) -> None:
    """Aborts what is left, once no thread is at work any more."""
    while self._unfinished:
      self._unfinished.pop().abort()


def _window_step(variables, image, weights, **kwargs):
  """Logits of windows, float32 [B, H', W', K], times their weights."""
  logits = step.predict_step(variables, image, **kwargs)
  return logits if weights is None else logits * weights


def _ahead(pool, function, items, most: int) -> Iterator[Any]:
  """Yields function(item) in order; threads are up to `most` items ahead."""
  futures = collections.deque()
  for item in items:
    futures.append(pool.submit(function, item))
    if len(futures) >= most:
      yield futures.popleft().result()
  while futures:
    yield futures.popleft().result()
