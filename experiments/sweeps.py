"""Sweep files: what they say, and the points that follow from it.

A sweep file is a Python module whose docstring's first line is the question,
with a function `sweep()` that yields a dict of dotted overrides for each point,
{'model.depth': 2, 'seed': 0}, and the constants of `DEFAULTS`. Its argument,
SWEEP.py:NAME, takes those of `SIZES[NAME]` in their place.
"""

import collections
import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import pathlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import names
from unet_jax import config as config_lib
from unet_jax import errors

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What a sweep file may set, and what is taken where it does not.
DEFAULTS = {
  # The config that the points change, from the root of the repository.
  'BASE': 'configs/shapes.py',
  # {'section.field': value}: what all points have besides.
  'OVERRIDES': {},
  # How one field is tuned, alike for every variant (all that differs but the
  # seed), or None. Missing entries are those of TUNING.
  'TUNE': {},
  # What is the same for all points: `steps`, train.num_steps of the base; or
  # `flops`, those times the FLOP of the base's train step, by the compiler.
  'BUDGET': 'steps',
  # {'NAME': {constant: value}}, for SWEEP.py:NAME.
  'SIZES': {},
}
TUNING = {
  # A field and the values that are tried; it may be another than this.
  'optimizer.learning_rate': (1e-3, 2e-3, 4e-3, 8e-3),
  # Steps of each of these runs. They have the whole schedule: warm-up and decay
  # are shortened alike. With BUDGET = 'flops', of the base; others in
  # proportion.
  'steps': 300,
  # Of these runs; no point may have it.
  'seed': 1000,
  # They train on all of data.train_split but one of so many parts, and are
  # evaluated on that one; the best by dataset mIoU is taken.
  'num_folds': 5,
}

# Fields that are told of every point, whatever the sweep is about.
LEARNING_RATE = 'optimizer.learning_rate'
TOLD = (LEARNING_RATE, 'train.num_steps')


@dataclasses.dataclass(frozen=True)
class Tune:
  """How a field is tuned, see `TUNING`."""

  field: str
  values: tuple[Any, ...]
  steps: int
  seed: int
  num_folds: int


@dataclasses.dataclass(frozen=True)
class Point:
  """One run of a sweep.

  Attributes:
    index: in the order of the sweep file.
    name: of its folder: what differs, `upsample=bilinear,depth=3,seed=0`.
    variant: the same without the seed.
    overrides: {'section.field': value} on the base.
  """

  index: int
  name: str
  variant: str
  overrides: dict[str, Any]

  @property
  def without_seed(self) -> dict[str, Any]:
    return {k: v for k, v in self.overrides.items() if k != 'seed'}


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A sweep file with the command's changes.

  Attributes:
    path: of the file, absolute.
    size: the argument after its name, or ''.
    question: that it answers, one line.
    arguments: of main.py, which give the base config.
    config: that config.
    tune: how a field is tuned, or None.
    budget: `steps` or `flops`.
    points: in order.
  """

  path: str
  size: str
  question: str
  arguments: tuple[str, ...]
  config: ml_collections.ConfigDict
  tune: Tune | None
  budget: str
  points: tuple[Point, ...]

  @property
  def fields(self) -> list[str]:
    """The fields that differ between points, in the order of the file."""
    return list(dict.fromkeys(f for p in self.points for f in p.overrides))

  @property
  def variants(self) -> list[list[Point]]:
    """The points of each variant, in order."""
    found = {}
    for point in self.points:
      found.setdefault(point.variant, []).append(point)
    return list(found.values())

  def flat(self, overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns {'section.field': value} of the base with overrides."""
    return {**config_lib.flatten(self.config), **overrides}

  def main_arguments(self, overrides: dict[str, Any]) -> list[str]:
    """Returns the arguments of main.py for the base with overrides."""
    return last_of_each(
      [*self.arguments, *(flag(*item) for item in overrides.items())]
    )


def flag(field: str, value: Any) -> str:
  """Returns --config.FIELD=VALUE as config_flags reads it."""
  text = value if isinstance(value, str) else repr(value)
  return f'--config.{field}={text}'


def last_of_each(arguments: Sequence[str]) -> list[str]:
  """Returns --config.FIELD=VALUE flags, the last of each field.

  config_flags would join the tuples of a field that is given twice.
  """
  last = {a.partition('=')[0].lstrip('-'): a for a in arguments}
  return list(last.values())


def resolve(arguments) -> ml_collections.ConfigDict:
  """Returns the config of --config and --config.* flags, as main.py does."""
  config_lib.check_arguments(arguments, ROOT / 'configs')
  argv = ['main.py', *map(config_lib.spelled_for_python, arguments)]
  values = flags.FlagValues()
  # sys_argv: it looks there for the fields, not among the flags.
  holder = config_flags.DEFINE_config_file(
    'config', flag_values=values, sys_argv=argv
  )
  try:
    values(argv)
  except (flags.Error, ValueError, TypeError) as e:
    raise errors.UserError(errors.line_of_flags(e)) from e
  return holder.value


def load(
  name: str,
  arguments: tuple[str, ...] = (),
  no_tune: bool = False,
  budget: str = '',
) -> Sweep:
  """Reads a sweep file.

  Args:
    name: `SWEEP.py` or `SWEEP.py:SIZE`.
    arguments: --config.x=y that change the base.
    no_tune: leaves the tuning out.
    budget: `steps` or `flops`; '' is that of the file.

  Raises:
    UserError: there is no such file, or it says what cannot be done.
  """
  file, _, size = name.partition(':')
  module = _import(file)
  constants = plain({k: getattr(module, k, v) for k, v in DEFAULTS.items()})
  _check_names(file, module, constants['SIZES'])
  if size:
    if size not in constants['SIZES']:
      sizes = ', '.join(constants['SIZES'])
      has = f'the sizes {sizes}' if sizes else 'no sizes'
      raise errors.UserError(f'{file}:{size}: it has {has}')
    constants.update(constants['SIZES'][size])
  arguments = tuple(
    last_of_each(
      [
        f'--config={ROOT / constants["BASE"]}',
        *(flag(*item) for item in constants['OVERRIDES'].items()),
        *arguments,
      ]
    )
  )
  config = resolve(arguments)
  config_lib.validate(config)
  sweep = Sweep(
    path=str(pathlib.Path(file).resolve()),
    size=size,
    question=(module.__doc__ or file).strip().splitlines()[0],
    arguments=arguments,
    config=config,
    tune=None if no_tune else _tune(file, constants['TUNE']),
    budget=budget or constants['BUDGET'],
    points=_points(file, _yielded(file, module)),
  )
  _check(file, sweep)
  _check_values(file, sweep)
  return sweep


def plain(value: Any) -> Any:
  """Returns a value with Python's numbers, and tuples for arrays and lists.

  `np.geomspace(1e-3, 8e-3, 4)` is a natural way to write the values of a field,
  but no flag takes the text of NumPy's numbers.
  """
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  return tuple(map(plain, value)) if isinstance(value, tuple | list) else value


def _import(file: str):
  if not pathlib.Path(file).is_file():
    raise errors.UserError(
      f'{file}: no such sweep file; for instance '
      'experiments/upsampling_depth/sweep.py'
    )
  spec = importlib.util.spec_from_file_location('sweep', file)
  module = importlib.util.module_from_spec(spec)
  with _its_own_mistakes(file):
    spec.loader.exec_module(module)
  if not hasattr(module, 'sweep'):
    raise errors.UserError(f'{file} has no sweep(), which yields the points')
  return module


def _yielded(file: str, module) -> list[dict[str, Any]]:
  with _its_own_mistakes(file):
    found = list(module.sweep())
  for overrides in found:
    if not isinstance(overrides, dict):
      raise errors.UserError(
        f'{file}: sweep() yields {overrides!r}; it takes a dict of overrides, '
        "{'model.depth': 2}"
      )
  return plain(found)


@contextlib.contextmanager
def _its_own_mistakes(file: str) -> Iterator[None]:
  """Makes an exception of a sweep file's code one line that names it."""
  try:
    yield
  except Exception as e:
    frames = traceback.extract_tb(e.__traceback__)
    lines = [f.lineno for f in frames if f.filename == file]
    line = e.lineno if isinstance(e, SyntaxError) else (lines or ['?'])[-1]
    raise errors.UserError(f'{file}:{line}: {type(e).__name__}: {e}') from e


def _check_names(file: str, module, sizes: dict[str, dict[str, Any]]) -> None:
  """Raises UserError for a misspelt constant, which would not be missed."""
  known = [k for k in DEFAULTS if k != 'SIZES']
  for size, constants in sizes.items():
    for name in constants:
      if name not in known:
        raise errors.UserError(
          f'{file}: SIZES[{size!r}] has {name!r}'
          f'{config_lib.nearest(name, known)}; it takes {", ".join(known)}'
        )
  # Others are the file's own: a SEEDS is no misspelt SIZES.
  for name in vars(module):
    near = difflib.get_close_matches(name, DEFAULTS, 1, 0.82)
    if near and name not in DEFAULTS:
      raise errors.UserError(
        f'{file}: did you mean {near[0]} by {name}? Else choose another name'
      )


def _tune(file: str, entries: dict[str, Any] | None) -> Tune | None:
  if entries is None:
    return None
  given = [k for k in entries if '.' in k]
  field = given[0] if given else LEARNING_RATE
  known = {k: v for k, v in TUNING.items() if '.' not in k}
  unknown = [k for k in entries if k not in (*known, field)]
  if unknown:
    raise errors.UserError(
      f'{file}: TUNE has {unknown[0]!r}; it takes one field, such as '
      f'optimizer.learning_rate, and {", ".join(known)}'
    )
  values = {**TUNING, **entries}
  if not isinstance(values[field], tuple) or not values[field]:
    raise errors.UserError(
      f'{file}: TUNE has {field!r}: {values[field]!r}; it takes the values '
      f'that are tried, such as {TUNING[LEARNING_RATE]}'
    )
  return Tune(field, values[field], **{k: values[k] for k in known})


def _points(file: str, yielded: list[dict[str, Any]]) -> tuple[Point, ...]:
  if not yielded:
    raise errors.UserError(f'{file}: sweep() yields no point')
  fields = list(dict.fromkeys(f for overrides in yielded for f in overrides))
  name_of = functools.partial(names.point_name, short=names.short_names(fields))
  points = []
  for i, overrides in enumerate(yielded):
    rest = {k: v for k, v in overrides.items() if k != 'seed'}
    points.append(Point(i, name_of(overrides), name_of(rest), overrides))
  counts = collections.Counter(point.name for point in points)
  twice = next((name for name, count in counts.items() if count > 1), None)
  if twice is not None:
    raise errors.UserError(f'{file}: sweep() yields {twice} twice')
  return tuple(points)


def _check(file: str, sweep: Sweep) -> None:
  """Raises UserError for what would fail in every point alike."""
  flat, fields = config_lib.flatten(sweep.config), sweep.fields
  tune = sweep.tune
  for field in (*fields, *([tune.field] if tune else [])):
    if field not in flat:
      raise errors.UserError(
        f'{file}: there is no field {field}'
        f'{config_lib.nearest(field, flat)}; configs/default.py lists them all'
      )
  if any(
    sweep.flat(p.overrides)['model.spatial_dims'] == 3 for p in sweep.points
  ):
    raise errors.UserError(
      f'{file}: volumes (model.spatial_dims=3) have no figures of each example '
      'yet, from which a sweep concludes; train them one by one with main.py'
    )
  if sweep.budget not in ('steps', 'flops'):
    raise errors.UserError(
      f'{file}: BUDGET is one of steps, flops, not {sweep.budget!r}'
    )
  if sweep.budget == 'flops' and 'train.num_steps' in fields:
    raise errors.UserError(
      f"{file}: train.num_steps follows from BUDGET = 'flops'; leave it out of "
      'sweep(), or take steps'
    )
  if not tune:
    return
  if tune.field in fields:
    raise errors.UserError(
      f'{file}: sweep() yields {tune.field}, which is tuned; set TUNE = None, '
      'or give --no_tune'
    )
  seeds = [p.overrides.get('seed', flat['seed']) for p in sweep.points]
  if tune.seed in seeds:
    raise errors.UserError(
      f'{file}: seed {tune.seed} is that of the tuning; take others'
    )
  if sweep.config.data.num_folds or 'data.num_folds' in fields:
    raise errors.UserError(
      f'{file}: the tuning holds a fold out of data.train_split; with '
      'data.num_folds set, give --no_tune'
    )


def _check_values(file: str, sweep: Sweep) -> None:
  """Raises UserError for values with which a run would fail, hours later.

  A point of each variant is resolved as its programs do it, and each run of the
  tuning: some 10 ms each.
  """
  # Here: it imports jax, which takes a second. It takes no device.
  from unet_jax.models import unet

  runs = [(p.name, p.overrides) for p, *_ in sweep.variants]
  if sweep.tune:
    of_tuning = {
      'train.num_steps': sweep.tune.steps,
      'seed': sweep.tune.seed,
      'data.num_folds': sweep.tune.num_folds,
    }
    runs += [
      ('TUNE', {sweep.tune.field: value, **of_tuning})
      for value in sweep.tune.values
    ]
  for name, overrides in runs:
    try:
      config = resolve(sweep.main_arguments(overrides))
      config_lib.validate(config)
      unet.create_model(config).output_size(config.data.image_size)
    except errors.UserError as e:
      raise errors.UserError(f'{file}: {name}: {e}') from e
