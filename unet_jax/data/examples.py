"""Examples and the interface of their sources.

`source[i]` is a dict:

  image: uint8 [H, W, C] with C = data.num_channels
  mask:  integers [H, W], or uint8 RGB [H, W, 3], as stored
  name:  str, shown to people
  mask_name: str, the file of the mask, where there is one
  ignored: bool [H, W], pixels of the image or the mask that hold no data, where
    there are any
  image_file, mask_file: `decode.Decoded` of each, where they were files
  page: which image of its files, where these hold several, from 0
  instances: where the data has them: integers [H, W], 0 is none, each other
    value is one object

Volumes are [D, H, W, C] and [D, H, W]; only shapes has them.
"""

import dataclasses
import functools
import logging
import os
import re
from typing import Any, Protocol

import ml_collections
import numpy as np

from unet_jax.config import mask_table
from unet_jax.data import decode, mask_colors
from unet_jax.runtime import errors

_log = logging.getLogger(__name__)

Example = dict[str, Any]


class Source(Protocol):
  """Random access over the examples of a split, from many threads at once."""

  split: str  # Its name in the source, where `auto` was asked for.
  held_out: bool  # Whether the source chose the examples not trained on.

  @property
  def fingerprint(self) -> Any:
    """JSON-able; changes with the examples."""

  @property
  def groups(self) -> np.ndarray | None:
    """int [N]: examples of one number, such as the pages of a file, stay
    together when some are held out; None if each stands alone.
    """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def read(self, index: int) -> Example:
    """As `source[index]`, with the bytes of files in place of arrays."""


@dataclasses.dataclass(frozen=True)
class Problem:
  """A mistake in files as a whole, or what was done with them.

  Attributes:
    kind: one word, such as `unpaired`.
    message: one line: what, where, how to fix it.
    names: every file concerned.
    level: `error`, or `warning` and `note` where the rest can be used.
  """

  kind: str
  message: str
  names: tuple[str, ...]
  level: str = 'error'


def report(problem: Problem, problems: list[Problem] | None) -> None:
  """Adds a problem to the list; without one, raises an error, logs the rest."""
  if problems is not None:
    problems.append(problem)
  elif problem.level == 'error':
    raise errors.UserError(problem.message)
  else:
    _log_once(problem.level, problem.message)


@functools.cache
def _log_once(level: str, message: str) -> None:
  """Logs what each source of a split would say again."""
  _log.log(logging.WARNING if level == 'warning' else logging.INFO, message)


def decode_example(
  example: Example, data: ml_collections.ConfigDict
) -> Example:
  """Decodes the files of an example that `Source.read` returned.

  Raises:
    DecodeError: a file is broken.
    UserError: values that cannot be used, see decode.py.
  """
  if isinstance(example['image'], np.ndarray):
    return example
  page = example.get('page', 0)
  image = decode.decode_image(example['image'], example['name'], data, page)
  mask = decode.decode_mask(example['mask'], example['mask_name'], data, page)
  result = {
    **example,
    'image': image.array,
    'mask': mask.array,
    'image_file': image,
    'mask_file': mask,
  }
  ignored = [d.ignored for d in (image, mask) if d.ignored is not None]
  # Where their sizes differ, `prepared.check_sizes` says so.
  if ignored and image.array.shape[:2] == mask.array.shape[:2]:
    result['ignored'] = np.any(ignored, axis=0)
  if 'instances' in example:
    name = f'the instance mask of {example["name"]}'
    instances = decode.decode_mask(example['instances'], name, data, page).array
    if instances.ndim == 3:  # Each colour is an object; black is none.
      instances = mask_colors.to_numbers(instances)
    elif instances.min() < 0 and not mask_table.of(data).has_transparent:
      _log_once(
        'warning',
        'warning: instance masks of the images in '
        f'{os.path.dirname(example["name"]) or "the data"} have values below 0,'
        ' which are no object; number objects from 1',
      )
    # What is transparent is no object, see `alpha.mark`.
    result['instances'] = np.maximum(instances, 0)
  return result


def has_lossy_mask(example: Example) -> bool:
  """Whether the file of the mask changes values, see `decode.is_lossy`."""
  file = example.get('mask_file')
  return file is not None and decode.is_lossy(file.kind)


def natural_key(name: str) -> list:
  """Sort key that puts slice_2 before slice_10."""
  parts = re.split(r'(\d+)', name)
  # The name itself orders slice_1 and slice_01.
  return [[int(s) if s.isdecimal() else s for s in parts], name]


def holdout_order(count: int, config: ml_collections.ConfigDict) -> np.ndarray:
  """Returns the order in which `count` examples are cut, by data.holdout."""
  if config.data.holdout == 'last':
    return np.arange(count)
  return np.random.default_rng(config.seed).permutation(count)
