"""Sinks of an image's rows: arrays, files, and all that lies before files."""

import abc
from collections.abc import Callable
from typing import Protocol

import numpy as np

from unet_jax.data import stored


class RowSink(Protocol):
  """Takes the rows of one image, from top to bottom, from one thread at a time.

  It ends by `close`, or by `abort` after a failure.
  """

  @abc.abstractmethod
  def write(self, rows: np.ndarray) -> None:
    """Takes the next rows, [h, W] or [h, W, C]."""

  @abc.abstractmethod
  def close(self) -> None:
    """Completes the image, after its last row."""

  @abc.abstractmethod
  def abort(self) -> None:
    """Discards the image; does nothing after `close`."""


class ArraySink(RowSink):
  """Collects an image's rows in memory."""

  array: np.ndarray  # float32 [H, W, K], once all rows were written.

  def __init__(
    self,
    size: tuple[int, int],
    take: Callable[[np.ndarray], None] | None = None,
  ):
    """Begins with the first row.

    Args:
      size: height and width of the image.
      take: called with the array by `close`.
    """
    self._size, self._take = size, take
    self._next = 0

  def write(self, rows: np.ndarray) -> None:
    if len(rows) == self._size[0]:
      self.array = rows
      return
    if not self._next:
      self.array = np.empty((*self._size, rows.shape[-1]), np.float32)
    self.array[self._next : self._next + len(rows)] = rows
    self._next += len(rows)

  def close(self) -> None:
    if self._take is not None:
      self._take(self.array)

  def abort(self) -> None:
    pass


class TurnedBack(RowSink):
  """Passes an image's logits on as its file stores it, once they are whole."""

  def __init__(self, sink: RowSink, size: tuple[int, int], orientation: int):
    """Begins with the first row.

    Args:
      sink: takes the rows of the image as stored.
      size: height and width of the image as it is seen.
      orientation: the tag by which it was turned, 1 to 8.
    """
    self._sink, self._orientation = sink, orientation
    self._whole = ArraySink(size)

  def write(self, rows: np.ndarray) -> None:
    self._whole.write(rows)

  def close(self) -> None:
    logits = stored.turn_back(self._whole.array, self._orientation)
    self._sink.write(np.ascontiguousarray(logits))
    self._sink.close()

  def abort(self) -> None:
    self._sink.abort()
