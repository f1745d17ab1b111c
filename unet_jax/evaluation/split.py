"""The images of a split as they are measured one by one, in any order.

Of many processes, each measures its part.
"""

import os
import tempfile
import threading
import zlib
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from unet_jax.evaluation import measures
from unet_jax.runtime import errors, processes

# Compressed predictions stay in memory up to this many bytes, on disk above.
_IN_MEMORY = 256 * 2**20


class MeasuredSplit:
  """Measures and predictions of a split's images, added from many threads.

  Predictions are kept so that the worst, median and best images, which are
  known at the end, need not be predicted again. A class map shrinks to a few
  per cent.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    self._config, self._spec = config, measures.make_spec(config)
    self._lock = threading.Lock()
    self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)
    # By the image's index: its name, its measures, and where in the file its
    # prediction is: first byte, number of bytes, height and width.
    self._images: dict[int, tuple[str, measures.Measured, tuple]] = {}
    # Of all processes, once there are results.
    self._indices: list[int] = []

  def close(self) -> None:
    self._file.close()

  def add(
    self,
    index: int,
    name: str,
    logits: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray,
    instances: np.ndarray | None = None,
  ) -> None:
    """Measures the image of an index, see `measures.measure_image`."""
    measured = measures.measure_image(
      logits, prediction, mask, self._spec, instances
    )
    stored = zlib.compress(prediction.tobytes(), 1)
    with self._lock:
      self._file.seek(0, os.SEEK_END)
      place = (self._file.tell(), len(stored), prediction.shape)
      self._file.write(stored)
      self._images[index] = (name, measured, place)

  def results(self) -> dict[str, Any]:
    """Returns metrics, and the numbers of the page, of the images in order.

    They are those of all processes, which all call this.

    Raises:
      UserError: there is no image.
    """
    mine = {i: image[:2] for i, image in self._images.items()}
    images: dict[int, tuple[str, measures.Measured]] = {}
    for part in processes.together(lambda: mine):
      images |= part
    if not images:
      raise errors.UserError(
        'no image of the split could be decoded; the log names each'
      )
    self._indices = sorted(images)
    names = [images[i][0] for i in self._indices]
    measured = [images[i][1] for i in self._indices]
    metrics, intervals = measures.summarize(measured, self._spec)
    return {
      'metrics': metrics,
      'intervals': intervals,
      'num_examples': len(measured),
      'rows': measures.image_rows(measured, names, self._spec),
      'confusion': measures.confusion(measured),
      'reliability': measures.reliability(measured),
    }

  def examples(
    self,
    rows: list[dict[str, Any]],
    read: Callable[[int], dict[str, np.ndarray]],
  ) -> dict[str, list[dict[str, Any]]]:
    """Returns the `worst`, `median` and `best` images by their mIoU.

    Args:
      rows: of `results`.
      read: takes the index of an image.

    Returns:
      Up to eval.num_examples images of each kind, each with the entries that
      `read` returns for its index (`image` and `mask`), `prediction`, `name`
      and `score`.
    """
    indices = self._indices
    scores = np.array([row['miou'] for row in rows])
    order = [i for i in np.argsort(scores, kind='stable') if scores[i] >= 0]
    # Of few images, none is shown three times.
    count = min(self._config.eval.num_examples, -(-len(order) // 3))
    middle = (len(order) - count) // 2
    chosen = {
      'worst': order[:count],
      'median': order[middle : middle + count],
      'best': order[::-1][:count],
    }
    shown = {indices[i] for places in chosen.values() for i in places}
    mine = {i: self._prediction(i) for i in shown.intersection(self._images)}
    predictions: dict[int, np.ndarray] = {}
    for part in processes.together(lambda: mine):
      predictions |= part
    return {
      kind: [
        {
          **read(indices[i]),
          'prediction': predictions[indices[i]],
          'name': rows[i]['image'],
          'score': float(scores[i]),
        }
        for i in places
      ]
      for kind, places in chosen.items()
    }

  def _prediction(self, index: int) -> np.ndarray:
    """Returns the prediction of an image: uint8 [H, W]."""
    start, length, shape = self._images[index][2]
    with self._lock:
      self._file.seek(start)
      stored = self._file.read(length)
    return np.frombuffer(zlib.decompress(stored), np.uint8).reshape(shape)
