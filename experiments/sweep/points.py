"""A sweep and its points: their names, fields and configs."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import ml_collections

from unet_jax.config import command_line
from unet_jax.config import fields as fields_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
LEARNING_RATE = 'optimizer.learning_rate'
# Fields that results.csv has for every point, whatever the sweep varies.
ALWAYS_REPORTED = (LEARNING_RATE, 'train.num_steps')
# Longer names are cut: file systems take 255 bytes.
_LONGEST_NAME = 180


@dataclasses.dataclass(frozen=True)
class Tune:
  """How a field is tuned, see `sweep_file.TUNING`."""

  field: str
  values: tuple[Any, ...]
  steps: int
  seed: int
  num_folds: int


@dataclasses.dataclass(frozen=True)
class Point:
  """One run of a sweep."""

  # {'section.field': value} on the base.
  overrides: dict[str, Any]
  # Of its folder: what differs, `upsample=bilinear,depth=3,seed=0`; and the
  # same without the seed.
  name: str
  variant: str

  @property
  def without_seed(self) -> dict[str, Any]:
    return {k: v for k, v in self.overrides.items() if k != 'seed'}


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A sweep file with the command's changes."""

  # Of the file, absolute, and the argument after its name, or ''.
  path: str
  size: str
  question: str
  # Of main.py, which give the base config.
  arguments: tuple[str, ...]
  config: ml_collections.ConfigDict
  tune: Tune | None
  # `steps` or `flops`.
  budget: str
  points: tuple[Point, ...]

  @property
  def fields(self) -> list[str]:
    """The fields that differ between points, in the order of the file."""
    return list(dict.fromkeys(f for p in self.points for f in p.overrides))

  @property
  def variants(self) -> list[list[Point]]:
    """The points of each variant, in order."""
    found: dict[str, list[Point]] = {}
    for point in self.points:
      found.setdefault(point.variant, []).append(point)
    return list(found.values())

  def flat(self, overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns {'section.field': value} of the base with overrides."""
    return {**fields_lib.flatten(self.config), **overrides}

  def main_arguments(self, overrides: dict[str, Any]) -> list[str]:
    """Returns the arguments of main.py for the base with overrides."""
    return [*self.arguments, *as_flags(overrides)]


def as_flags(overrides: dict[str, Any]) -> list[str]:
  """Returns --config.FIELD=VALUE flags as main.py reads them."""
  return [
    f'--config.{k}={v if isinstance(v, str) else repr(v)}'
    for k, v in overrides.items()
  ]


def short_names(fields: Sequence[str]) -> dict[str, str]:
  """Returns each field's shortest ending that no other field has."""
  found = {}
  for field in fields:
    parts = field.split('.')
    tails = ['.'.join(parts[i:]) for i in reversed(range(len(parts)))]
    taken = [f'.{f}' for f in fields if f != field]
    is_own = lambda tail: not any(f.endswith(f'.{tail}') for f in taken)
    found[field] = next(filter(is_own, tails), field)
  return found


def point_name(overrides: dict[str, Any], short: dict[str, str]) -> str:
  """Returns the name of a folder from overrides; without any, `base`."""
  words = [f'{short[k]}={_word(v)}' for k, v in overrides.items()]
  name = ','.join(words) or 'base'
  if len(name) > _LONGEST_NAME:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    name = f'{name[:_LONGEST_NAME]}-{digest}'
  return name


def _word(value: Any) -> str:
  """Returns a value in the characters that all file systems take."""
  if isinstance(value, tuple):
    return 'x'.join(map(_word, value)) or 'none'
  return re.sub(r'[^\w.+-]', '-', str(value), flags=re.ASCII)


def resolve(arguments: Sequence[str]) -> ml_collections.ConfigDict:
  """Returns the config of --config and --config.* flags, as main.py does."""
  return command_line.parse(arguments).config()
