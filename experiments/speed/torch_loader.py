"""A plain PyTorch DataLoader over image files, and one over arrays.

As a user would write them: Pillow opens and resizes, NumPy looks the classes
up, torch makes batches, uint8 as ours (floats would take it longer). Worker
processes import this file, so it imports little.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image


class Files(torch.utils.data.Dataset):
  """Pairs of files as uint8 tensors [H, W(, C)].

  Args:
    pairs: ((image path, mask path), ...).
    mode: Pillow's, `L` or `RGB`.
    size: height and width to resize to; None leaves the files as they are.
    classes: uint8 [256], the class of each value of a mask, used with `size`.
  """

  def __init__(
    self,
    pairs: Sequence[tuple[str, str]],
    mode: str,
    size: tuple[int, int] | None = None,
    classes: np.ndarray | None = None,
  ):
    self._pairs, self._mode = pairs, mode
    self._size, self._classes = size, classes

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    image_path, mask_path = self._pairs[index]
    image: Any = Image.open(image_path).convert(self._mode)
    mask: Any = Image.open(mask_path)
    if self._size:
      size = self._size[::-1]
      image = image.resize(size, Image.Resampling.BILINEAR)
      mask = mask.resize(size, Image.Resampling.NEAREST)
    mask = np.array(mask)
    if self._classes is not None:
      mask = self._classes[mask]
    return torch.from_numpy(np.array(image)), torch.from_numpy(mask)


class Arrays(torch.utils.data.Dataset):
  """Prepared arrays, mapped from their .npy files.

  Args:
    paths: of the images, uint8 [N, H, W, C], and of the masks, uint8 [N, H, W].
  """

  def __init__(self, paths: Sequence[str]):
    self._paths = paths
    self._arrays: list[np.ndarray] = []

  def __len__(self) -> int:
    return len(np.load(self._paths[0], mmap_mode='r'))

  def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
    if not self._arrays:  # In each worker: pickling would read it all.
      self._arrays = [np.load(path, mmap_mode='r') for path in self._paths]
    return tuple(torch.from_numpy(np.array(a[index])) for a in self._arrays)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
  """Keeps PyTorch from dividing the copy of a batch among threads.

  Its workers never do; in the main process that is slower on a busy machine.
  """
  before = torch.get_num_threads()
  torch.set_num_threads(1)
  try:
    yield
  finally:
    torch.set_num_threads(before)


def as_list(examples: list[Any]) -> list[Any]:
  """Makes a batch of images that differ in size."""
  return examples


def make_loader(
  dataset: Any, batch_size: int, workers: int, **options: Any
) -> torch.utils.data.DataLoader:
  """Returns a DataLoader whose workers stay until it is dropped."""
  if workers:
    # JAX has threads, with which a fork may hang.
    options.update(multiprocessing_context='spawn', persistent_workers=True)
  return torch.utils.data.DataLoader(
    dataset, batch_size, num_workers=workers, **options
  )


def endless(loader: Iterable[Any]) -> Iterator[list[torch.Tensor]]:
  """Yields batches, epoch after epoch, on the GPU where there is one."""
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  while True:
    for batch in loader:
      yield [tensor.to(device) for tensor in batch]
