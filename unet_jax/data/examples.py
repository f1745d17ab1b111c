"""Where examples come from: tfds, folder or shapes.

A source is random access over one split: `len(source)` and `source[i]`, a dict

  image: uint8 [H, W, C] with C = data.num_channels
  mask:  integers [H, W], or uint8 RGB [H, W, 3], as stored
  name:  str, what a person would call the example
  mask_name: str, the file that the mask came from, where it has one
  instances: where the data has them: integers [H, W], 0 is none, each other
    value is one object

Volumes are [D, H, W, C] and [D, H, W]; only shapes has them.

`source.read(i)` is the same with the bytes of the files in place of the arrays,
where there are files. `source.fingerprint` is a JSON-able value that changes
with the examples. Sources are read from many threads at once.
"""

import dataclasses
import re
from typing import Any, Protocol

import numpy as np

from unet_jax.data import decode
from unet_jax.runtime import errors

Example = dict[str, Any]


class Source(Protocol):
  """Random access over the examples of a split."""

  split: str  # Its name in the source, where `auto` was asked for.
  held_out: bool  # Whether the source chose what is not trained on.
  fingerprint: Any

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def read(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Problem:
  """What is wrong with files as a whole: pairs, stems, lists.

  Attributes:
    kind: one word, such as `unpaired`.
    message: one line: what, where, how to mend it.
    names: every file concerned.
  """

  kind: str
  message: str
  names: tuple[str, ...]


def report(problem: Problem, problems: list[Problem] | None) -> None:
  """Raises the problem, or adds it to those that are collected."""
  if problems is None:
    raise errors.UserError(problem.message)
  problems.append(problem)


def decode_example(example: Example, data) -> Example:
  """Returns what `read` gave with arrays in place of the files' bytes.

  Args:
    example: see `Source.read`.
    data: the section `data` of the config.

  Raises:
    DecodeError: a file is broken.
    UserError: values that cannot be used, see decode.py.
  """
  if isinstance(example['image'], np.ndarray):
    return example
  image = decode.decode_image(
    example['image'], example['name'], data.num_channels, data.intensity
  )
  mask = decode.decode_mask(example['mask'], example['mask_name'])
  result = {**example, 'image': image, 'mask': mask}
  if 'instances' in example:
    instances = decode.decode_mask(
      example['instances'], f'the instance mask of {example["name"]}'
    )
    if instances.ndim == 3:  # A colour is an object; black is none.
      instances = instances.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    result['instances'] = instances
  return result


def natural_key(name: str) -> list:
  """Sorts slice_2 before slice_10."""
  parts = re.split(r'(\d+)', name)
  # The name itself orders slice_1 and slice_01.
  return [[int(s) if s.isdecimal() else s for s in parts], name]
