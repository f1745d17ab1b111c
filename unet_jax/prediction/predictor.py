"""Logits of images of any size: read, windowed, predicted, put together.

Images of any size go through one compiled step in batches of one size: windows
of several images share a batch. Threads read ahead and write the logits. Sums
of windows are on the host, so that the device holds a few batches and the host,
of images that are read by rows, the rows of one window.

The way of an image (see sinks.py for the protocol of sinks):

  Raster -> windows -> step -> tiling.Canvas -> [ArraySink, kept for a thread]
    -> [resize_logits] -> RowSink: ArraySink, or outputs.PredictionFiles
    -> a RowFile for each of its files
"""

import collections
import concurrent.futures
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from unet_jax.data import prepared, rasters, resize, stored, tiling
from unet_jax.models import fold, unet
from unet_jax.models.ensemble import Ensemble
from unet_jax.prediction import resampling, sinks, step
from unet_jax.runtime import errors
from unet_jax.runtime import mesh as mesh_lib

PyTree = Any
# Opens an item's image and the sink of its logits; says whether to skip an item
# whose image is damaged.
_Open = Callable[[Any], tuple[rasters.Raster, sinks.RowSink]]
_Skip = Callable[[Any, errors.DecodeError], bool]

# Bytes of logits that are kept whole until a thread takes them, of all images
# and so of one image; the rows of larger ones are written as they come.
_KEPT = 256 * 2**20
# Images that are opened ahead, at most.
_AHEAD = 32
# Refuse to upscale beyond this multiple of the pixels of the image or window,
# whichever has more.
_ENLARGED = 64


class WholeImage(rasters.ArrayRaster):
  """Pixels as the network takes them, uint8 [H, W, C], as a raster."""

  def __init__(self, array: np.ndarray, ignored: np.ndarray | None = None):
    self._rows, self.size = array, array.shape[:2]
    self.num_channels, self._ignored = array.shape[2], ignored


def as_stored(raster: rasters.Raster) -> rasters.Raster:
  """Returns an image as its file stores it; itself, if it was not turned."""
  if raster.turned == 1:
    return raster
  turn = lambda array: stored.turn_back(array, raster.turned)
  ignored = raster.ignored(0, raster.size[0])
  turned = WholeImage(
    turn(raster.read(0, raster.size[0])),
    None if ignored is None else turn(ignored),
  )
  turned.orientation = raster.orientation
  return turned


class _Job:
  """An image on its way through the network.

  Its logits go through a canvas to the sink by rows; or, where they must be
  resized or are small, are kept whole until `finish`, which a thread calls.

  Attributes:
    raster: the image, at the scale at which the network sees it.
    num_bytes: of its logits, if a thread should finish it; otherwise 0.
    is_damaged: whether its rows could not be read, so that it is skipped.
  """

  def __init__(
    self,
    raster: rasters.Raster,
    sink: sinks.RowSink,
    layout: tiling.Layout,
    config: ml_collections.ConfigDict,
  ):
    self._original, self._sink = raster, sink
    self.raster, self.is_damaged = raster, False
    # The part of the network's image that shows the original, to be resized.
    self._box: tuple[slice, slice] | None = None
    if config.data.resize != 'patch':
      scaled, box = _scale(raster, config.data)
      self.raster = WholeImage(scaled)
      whole = tuple(slice(0, n) for n in raster.size)
      if (self.raster.size, box) != (raster.size, whole):
        self._box = box
    size = self.raster.size
    num_bytes = 4 * math.prod(size) * config.data.num_classes
    self.num_bytes = num_bytes if num_bytes <= _KEPT else 0
    self._kept: sinks.ArraySink | None = None
    if self.num_bytes or self._box:
      self._kept = sinks.ArraySink(size)
    self._canvas = tiling.Canvas(layout, size, (self._kept or sink).write)
    self._left = math.prod(map(len, layout.starts(size)))

  def add(self, start: tuple[int, ...], output: np.ndarray) -> bool:
    """Adds an output; returns whether it was the last one."""
    self._canvas.add(start, output)
    self._left -= 1
    if not self._left:
      self._canvas.close()
    return not self._left

  def finish(self) -> None:
    """Writes the logits that were kept; closes sink and image."""
    if self._kept is not None:
      logits = self._kept.array
      if self._box is None:
        self._sink.write(logits)
      else:
        for band in resampling.resize_logits(
          logits[self._box], self._original.size
        ):
          self._sink.write(band)
    self._sink.close()
    self._original.close()

  def abort(self) -> None:
    self._sink.abort()
    self._original.close()


def _scale(
  raster: rasters.Raster, data: ml_collections.ConfigDict
) -> tuple[np.ndarray, tuple[slice, slice]]:
  """Returns an image at the network's scale, see `resize.scale_image`."""
  size = resize.scaled_size(raster.size, data.image_size, data.resize)
  if math.prod(size) > _ENLARGED * max(
    math.prod(data.image_size), math.prod(raster.size)
  ):
    raise errors.UserError(
      f'an image of {raster.size[0]} x {raster.size[1]} pixels would become '
      f'{size[0]} x {size[1]} with data.resize=crop; skip it, or train '
      'with another data.resize'
    )
  image = raster.read(0, raster.size[0])
  return resize.scale_image(image, data.image_size, data.resize)


class Predictor:
  """A network, or the average of several, on images of any size.

  Images reach the network as training images do, by data.resize: `stretch` and
  `pad` scale them to one window, and logits back to the image's size; `crop`
  scales them so that they cover a window, which then slides over all of the
  image; `patch` slides over the image as it is.

  Args:
    config: of the run; `inference` sets how windows overlap.
    variables: of the network, or of several, stacked.
    mesh: where it runs; of one process.

  Attributes:
    seconds_waiting: time spent only waiting for the device.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    model: unet.UNet,
    variables: PyTree,
    ensemble: Ensemble,
    mesh: Mesh,
  ):
    self._config, self._mesh = config, mesh
    self._variables = fold.fold(model, variables, ensemble.members)
    self._layout = make_layout(config, model)
    self._weights: jax.Array | None = None
    if self._layout.weights is not None:
      # Once on the device, not once for each window on the host.
      self._weights = jax.device_put(
        self._layout.weights[..., None], mesh_lib.replicated(mesh)
      )
    self._step = step.make_window_step(config, model, ensemble, mesh)
    self._batch_size = batch_size(config, mesh)
    self.seconds_waiting = 0.0

  def run(
    self,
    items: Iterable[Any],
    open_image: _Open,
    skip: _Skip = lambda item, error: False,
  ) -> None:
    """Predicts images, in order.

    Args:
      items: any objects that stand for the images.
      open_image: called with an item in a thread; returns the image and the
        sink of its logits, at its own size (used in a thread, too).
      skip: called, in a thread, with an item whose image is damaged; returns
        whether to go on without it.

    Raises:
      Exception: what `open_image`, an image or a sink raises. Each sink is
        either closed or aborted, and then its image closed.
    """
    run = _Run(self._layout, self._config, open_image, skip)
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
        # After a failure, queued work is not begun.
        for threads in (pool, reader):
          threads.shutdown(wait=True, cancel_futures=True)
        run.abort_unfinished()

  def logits(self, images: Sequence[rasters.Raster]) -> list[np.ndarray]:
    """Returns the logits of images, float32 [H, W, K] each."""
    arrays = [sinks.ArraySink(image.size) for image in images]
    self.run(range(len(images)), lambda i: (images[i], arrays[i]))
    return [sink.array for sink in arrays]

  def _predict(
    self,
    batches: Iterator['_Batch'],
    pool: concurrent.futures.Executor,
    run: '_Run',
  ) -> None:
    """Runs the batches; the device has one while the one before is read."""
    pending: collections.deque = collections.deque()
    finishing: collections.deque = collections.deque()

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

    for windows, places in batches:
      batch = mesh_lib.to_devices({'image': windows}, self._mesh)
      result = self._step(self._variables, batch['image'], self._weights)
      pending.append((result, places))
      if len(pending) > 1:
        read()
    while pending:
      read()
    while finishing:
      finish()


# Windows, uint8 [B, H, W, C], and the job and place of each but the padding.
_Batch = tuple[np.ndarray, list[tuple[_Job, tuple[int, ...]]]]


class _Run:
  """The images of one call of `Predictor.run`."""

  def __init__(
    self,
    layout: tiling.Layout,
    config: ml_collections.ConfigDict,
    open_image: _Open,
    skip: _Skip,
  ):
    self._layout, self._config = layout, config
    self._open_image, self._skip = open_image, skip
    # Jobs that were neither finished nor aborted.
    self._unfinished: set[_Job] = set()

  def load(self, item: Any) -> tuple[Any, _Job] | None:
    """Opens an image, and scales it; None where it is skipped."""
    opened = None
    try:
      raster, sink = opened = self._open_image(item)
      job = _Job(raster, sink, self._layout, self._config)
    except BaseException as e:
      if opened is not None:
        sink.abort()
        raster.close()
      if isinstance(e, errors.DecodeError) and self._skip(item, e):
        return None
      raise
    self._unfinished.add(job)
    return item, job

  def batches(
    self, loaded: Iterable[tuple[Any, _Job] | None], size: int
  ) -> Iterator[_Batch]:
    """Yields batches of windows, the last one padded."""
    images: list[np.ndarray] = []
    places: list[tuple[_Job, tuple[int, ...]]] = []
    for item, job in filter(None, loaded):
      windows = tiling.read_windows(job.raster, self._layout)
      while True:
        try:
          window = next(windows, None)
        except errors.DecodeError as e:
          if not self._skip(item, e):
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
    job.finish()
    self._unfinished.discard(job)

  def abort_unfinished(self) -> None:
    """Aborts the other jobs, once no thread works on them."""
    while self._unfinished:
      self._unfinished.pop().abort()


def make_layout(
  config: ml_collections.ConfigDict, model: unet.UNet
) -> tiling.Layout:
  """Returns how windows lie on an image."""
  inference = config.inference
  window = inference.window or config.data.image_size
  return tiling.make_layout(model, window, inference.overlap, inference.blend)


def batch_size(config: ml_collections.ConfigDict, mesh: Mesh) -> int:
  """Returns how many windows a step predicts."""
  size = config.inference.batch_size or config.data.batch_size
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  return -(-size // parts) * parts


def _ahead(
  pool: concurrent.futures.Executor,
  function: Callable[[Any], Any],
  items: Iterable[Any],
  most: int,
) -> Iterator[Any]:
  """Yields function(item) in order; threads are up to `most` items ahead."""
  futures: collections.deque = collections.deque()
  for item in items:
    futures.append(pool.submit(function, item))
    if len(futures) >= most:
      yield futures.popleft().result()
  while futures:
    yield futures.popleft().result()
