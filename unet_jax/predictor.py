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
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import jax
import numpy as np
from jax.sharding import Mesh

from unet_jax import averaging as averaging_lib
from unet_jax import runtime, sharding, steps, tiling
from unet_jax.data import prepare
from unet_jax.models import unet

PyTree = Any

# Logits of an image that are kept whole until a thread takes them, in bytes;
# larger images are handed on by bands.
_KEPT = 256 * 2**20
# Logits of a band that is enlarged at once, in bytes.
_BAND = 16 * 2**20


class WholeImage:
  """An image in memory, uint8 [H, W, C], as tiling.Raster."""

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
  if small != logits.shape[:2]:
    logits = cv2.resize(logits, small[::-1], interpolation=cv2.INTER_AREA)
    logits = logits.reshape(*small, k)  # OpenCV drops a single channel.
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
    if small[1] != width:
      band = cv2.resize(
        band, (width, len(band)), interpolation=cv2.INTER_LINEAR
      )
    yield band.reshape(-1, width, k)


class _Restored:
  """A sink that brings logits from the network's size back to the image's."""

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

  def abort(self) -> None:
    self._sink.abort()


class _Kept:
  """A sink that keeps all rows, for a thread to hand them on later."""

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

  def abort(self) -> None:
    self._sink.abort()


class _Job:
  """An image on its way through the network."""

  def __init__(self, raster, sink: tiling.Sink, layout, config):
    self.raster, data = raster, config.data
    self._sink = sink
    if data.resize != 'patch':
      scaled, box = prepare.scale_image(
        raster.read(0, raster.size[0]), data.image_size, data.resize
      )
      self.raster = WholeImage(scaled)
      whole = tuple(slice(0, n) for n in raster.size)
      if (scaled.shape[:2], box) != (raster.size, whole):
        sink = _Restored(sink, scaled.shape[:2], box, raster.size)
    num_bytes = 4 * np.prod(self.raster.size) * config.data.num_classes
    self._kept = _Kept(sink) if num_bytes <= _KEPT else None
    self.canvas = tiling.Canvas(layout, self.raster.size, self._kept or sink)
    starts = layout.starts(self.raster.size)
    self._left = len(starts[0]) * len(starts[1])

  def add(self, start, output: np.ndarray) -> Callable[[], None] | None:
    """Adds an output; after the last one, returns what is left to be done."""
    self.canvas.add(start, output)
    self._left -= 1
    if self._left:
      return None
    self.canvas.close()
    return self._kept.hand_on if self._kept else None

  @property
  def is_done(self) -> bool:
    return not self._left

  def abort(self) -> None:
    self._sink.abort()


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
      weights = jax.device_put(weights[..., None], sharding.replicated(mesh))
    self._step = jax.jit(
      functools.partial(
        _window_step,
        model=model,
        mean=config.data.mean,
        std=config.data.std,
        averaging=averaging,
      ),
      compiler_options=runtime.compiler_options(),
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
    open_image: Callable[[Any], tuple[tiling.Raster, tiling.Sink] | None],
  ) -> None:
    """Predicts images, in order.

    Args:
      items: what stands for the images.
      open_image: called with an item in a thread; returns the image and what
        takes its logits, at its own size (in a thread, too), or None to leave
        it out.

    Raises:
      Exception: what `open_image`, an image or a sink raises; the sinks of
        images that were not finished are aborted.
    """
    # Of images that were opened and not finished.
    self._open_jobs: set[_Job] = set()
    workers = prepare.num_workers(self._config)
    with (
      concurrent.futures.ThreadPoolExecutor(workers) as pool,
      concurrent.futures.ThreadPoolExecutor(1) as reader,
    ):
      try:
        load = functools.partial(self._load, open_image)
        batches = self._batches(_ahead(pool, load, items, 2 * workers))
        take = lambda _: next(batches, None)
        ahead = _ahead(reader, take, itertools.repeat(None), 2)
        self._predict(iter(ahead.__next__, None), pool, 2 * workers)
      except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        reader.shutdown(wait=True, cancel_futures=True)
        for job in self._open_jobs:
          job.abort()
        raise

  def logits(self, images: list[np.ndarray]) -> list[np.ndarray]:
    """Returns float32 [H, W, K] of each of the images, uint8 [H, W, C]."""
    sinks = [ArraySink(image.shape[:2]) for image in images]
    self.run(range(len(images)), lambda i: (WholeImage(images[i]), sinks[i]))
    return [sink.array for sink in sinks]

  def _load(self, open_image, item) -> _Job | None:
    opened = open_image(item)
    if opened is None:
      return None
    job = _Job(*opened, self._layout, self._config)
    self._open_jobs.add(job)
    return job

  def _batches(self, jobs: Iterator[_Job | None]):
    """Yields batches of windows and, for each, its image and place."""
    images, places = [], []
    for job in jobs:
      if job is None:
        continue
      for start, window in tiling.read_windows(job.raster, self._layout):
        images.append(window)
        places.append((job, start))
        if len(images) == self._batch_size:
          yield np.stack(images), places
          images, places = [], []
    if images:
      missing = self._batch_size - len(images)
      yield np.stack(images + images[:1] * missing), places

  def _predict(self, batches, pool, most: int) -> None:
    """Runs the batches; the device has one while the one before is read."""
    pending, finishing = collections.deque(), collections.deque()

    def read():
      result, places = pending.popleft()
      start = time.perf_counter()
      outputs = np.asarray(result)
      self.seconds_waiting += time.perf_counter() - start
      for (job, place), output in zip(places, outputs):
        rest = job.add(place, output)
        if rest is not None:
          finishing.append((pool.submit(rest), job))
        elif job.is_done:
          self._open_jobs.discard(job)
      while finishing and (len(finishing) > most or finishing[0][0].done()):
        finish()

    def finish():
      future, job = finishing.popleft()
      future.result()
      self._open_jobs.discard(job)

    for image, places in batches:
      image = sharding.to_devices({'image': image}, self._mesh)['image']
      pending.append(
        (self._step(self._variables, image, self._weights), places)
      )
      if len(pending) > 1:
        read()
    while pending:
      read()
    while finishing:
      finish()


def _window_step(variables, image, weights, **kwargs):
  """Logits of windows, float32 [B, H', W', K], times their weights."""
  logits = steps.predict_step(variables, image, **kwargs)
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
