"""Sweep files: their constants and points, and checks of both.

A sweep file is a Python module whose docstring's first line is the question,
with a function `sweep()` that yields a dict of dotted overrides for each point,
{'model.depth': 2, 'seed': 0}, and the constants of `DEFAULTS`. Its argument,
SWEEP.py:NAME, takes those of `SIZES[NAME]` in their place.
"""

import collections
import contextlib
import difflib
import importlib.util
import pathlib
import traceback
import types
from collections.abc import Iterator
from typing import Any

from experiments.sweep import points as points_lib
from experiments.sweep.points import LEARNING_RATE, Point, ROOT, Sweep, Tune
from unet_jax.config import checks
from unet_jax.config import fields as fields_lib
from unet_jax.config import values as values_lib
from unet_jax.runtime import errors

# The constants of a sweep file, and their defaults.
DEFAULTS: dict[str, Any] = {
  # The config that the points change, from the root of the repository.
  'BASE': 'configs/shapes.py',
  # {'section.field': value}, set in every point.
  'OVERRIDES': {},
  # How one field is tuned, alike for every variant (points that differ in the
  # seed alone), or None. Missing entries are those of TUNING.
  'TUNE': {},
  # Equal for all points: `steps`, train.num_steps of the base; or
  # `flops`, those times the FLOP of the base's train step, by the compiler.
  'BUDGET': 'steps',
  # {'NAME': {constant: value}}, for SWEEP.py:NAME.
  'SIZES': {},
}
TUNING: dict[str, Any] = {
  # A field, this or another, and the values to try.
  LEARNING_RATE: (1e-3, 2e-3, 4e-3, 8e-3),
  # Steps of each tuning run. It has the whole schedule: warm-up and decay are
  # shortened alike. With BUDGET = 'flops', of the base; others in proportion.
  'steps': 300,
  # Of these runs; no point may have it.
  'seed': 1000,
  # They train on all of data.train_split but one of so many folds, and are
  # evaluated on that one; the value with the best dataset mIoU is taken.
  'num_folds': 5,
}


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
    no_tune: skip the tuning.
    budget: '' is that of the file.

  Raises:
    UserError: there is no such file, or it asks for what cannot be done.
  """
  file, _, size = name.partition(':')
  module = _import(file)
  # `np.geomspace(1e-3, 8e-3, 4)` is a natural way to write a field's values.
  constants = values_lib.plain(
    {k: getattr(module, k, v) for k, v in DEFAULTS.items()}
  )
  with _named(file):
    _check_types({'SIZES': constants['SIZES']})
  sizes = constants.pop('SIZES')
  with _named(file):
    _check_names(vars(module), sizes)
  if size and size not in sizes:
    has = f'the sizes {", ".join(sizes)}' if sizes else 'no sizes'
    raise errors.UserError(f'{file}:{size}: it has {has}')
  constants.update(sizes.get(size, {}))
  with _named(file):
    _check_types(constants)
    _check_fields(constants['OVERRIDES'])
  base = f'--config={ROOT / constants["BASE"]}'
  flags = points_lib.as_flags(constants['OVERRIDES'])
  arguments = (base, *flags, *arguments)
  config = points_lib.resolve(arguments)
  checks.validate(config)
  yielded = _yielded(file, module)
  with _named(file):
    for overrides in yielded:
      _check_fields(overrides)
    sweep = Sweep(
      path=str(pathlib.Path(file).resolve()),
      size=size,
      question=(module.__doc__ or file).strip().splitlines()[0],
      arguments=arguments,
      config=config,
      tune=None if no_tune else _tune(constants['TUNE']),
      budget=budget or constants['BUDGET'],
      points=_points(yielded),
    )
    for mistake in _mistakes(sweep):
      raise errors.UserError(mistake)
    _check_values(sweep)
  return sweep


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
  """Puts a name before the UserErrors of its block."""
  try:
    yield
  except errors.UserError as e:
    raise errors.UserError(f'{name}: {e}') from e


@contextlib.contextmanager
def _located(file: str) -> Iterator[None]:
  """Turns an exception of a sweep file's code into one line with its place."""
  try:
    yield
  except Exception as e:
    frames = traceback.extract_tb(e.__traceback__)
    lines = [f.lineno for f in frames if f.filename == file]
    line = e.lineno if isinstance(e, SyntaxError) else (lines or [None])[-1]
    raise errors.UserError(
      f'{file}:{line or "?"}: {type(e).__name__}: {e}'
    ) from e


def _import(file: str) -> types.ModuleType:
  if not pathlib.Path(file).is_file():
    raise errors.UserError(
      f'{file}: no such sweep file; for instance '
      'experiments/upsampling_depth/sweep.py'
    )
  spec = importlib.util.spec_from_file_location('sweep', file)
  if spec is None or spec.loader is None:
    raise errors.UserError(f'{file}: a sweep file is a Python file, NAME.py')
  module = importlib.util.module_from_spec(spec)
  with _located(file):
    spec.loader.exec_module(module)
  if not hasattr(module, 'sweep'):
    raise errors.UserError(f'{file} has no sweep(), which yields the points')
  return module


def _yielded(file: str, module: types.ModuleType) -> list[dict[str, Any]]:
  with _located(file):
    found = list(module.sweep())
  for overrides in found:
    if not isinstance(overrides, dict):
      raise errors.UserError(
        f'{file}: sweep() yields {overrides!r}; it takes a dict of overrides, '
        "{'model.depth': 2}"
      )
  return [values_lib.plain(overrides) for overrides in found]


def _points(yielded: list[dict[str, Any]]) -> tuple[Point, ...]:
  short = points_lib.short_names([f for point in yielded for f in point])
  points = []
  for overrides in yielded:
    rest = {k: v for k, v in overrides.items() if k != 'seed'}
    names = [points_lib.point_name(x, short) for x in (overrides, rest)]
    points.append(Point(overrides, *names))
  return tuple(points)


def _tune(entries: dict[str, Any] | None) -> Tune | None:
  if entries is None:
    return None
  field = next((k for k in entries if '.' in k), LEARNING_RATE)
  known = [k for k in TUNING if '.' not in k]
  for name in entries:
    if name not in (*known, field):
      raise errors.UserError(
        f'TUNE has {name!r}; it takes one field, such as {LEARNING_RATE}, and '
        f'{", ".join(known)}'
      )
  values = {**TUNING, **entries}
  if not isinstance(values[field], tuple) or not values[field]:
    raise errors.UserError(
      f'TUNE has {field!r}: {values[field]!r}; it takes the values to try, '
      f'such as {TUNING[LEARNING_RATE]}'
    )
  for value in values[field]:
    _check_fields({field: value})
  return Tune(field, values[field], **{k: values[k] for k in known})


def _check_names(names: dict[str, Any], sizes: dict[str, Any]) -> None:
  """Raises UserError for a misspelt constant, which would be ignored."""
  known = [k for k in DEFAULTS if k != 'SIZES']
  for size, constants in sizes.items():
    for name in constants:
      if name not in known:
        raise errors.UserError(
          f'SIZES[{size!r}] has {name!r}{fields_lib.nearest(name, known)}; it '
          f'takes {", ".join(known)}'
        )
  # Others are the file's own: a SEEDS is no misspelt SIZES.
  for name in names:
    near = difflib.get_close_matches(name, DEFAULTS, 1, 0.82)
    if near and name not in DEFAULTS:
      raise errors.UserError(
        f'did you mean {near[0]} by {name}? Else choose another name'
      )


def _check_fields(overrides: dict[str, Any]) -> None:
  """Raises UserError for no field, or a value of another type.

  The values stay as they are written: points are named by them.
  """
  for field, value in overrides.items():
    values_lib.checked(field, value)


def _check_types(constants: dict[str, Any]) -> None:
  """Raises UserError for a constant of another type than its default's."""
  for name, value in constants.items():
    kind = type(DEFAULTS[name])
    if not isinstance(value, kind) and (name, value) != ('TUNE', None):
      raise errors.UserError(
        f'{name} is {value!r}; it takes a {kind.__name__}, such as '
        f'{DEFAULTS[name]!r}' + (', or None' if name == 'TUNE' else '')
      )


def _mistakes(sweep: Sweep) -> Iterator[str]:
  """Yields mistakes that would make every point fail alike."""
  fields, tune = sweep.fields, sweep.tune
  if not sweep.points:
    yield 'sweep() yields no point'
  counts = collections.Counter(point.name for point in sweep.points)
  for name, count in counts.items():
    if count > 1:
      yield f'sweep() yields {name} twice'
  all_flat = [sweep.flat(point.overrides) for point in sweep.points]
  if any(of_point['model.spatial_dims'] == 3 for of_point in all_flat):
    yield (
      'volumes (model.spatial_dims=3) have no metrics of each example yet, '
      'which a sweep compares; train them one by one with main.py'
    )
  if sweep.budget not in ('steps', 'flops'):
    yield f'BUDGET is one of steps, flops, not {sweep.budget!r}'
  if sweep.budget == 'flops' and 'train.num_steps' in fields:
    yield (
      "train.num_steps follows from BUDGET = 'flops'; remove it from sweep(), "
      "or set BUDGET = 'steps'"
    )
  if not tune:
    return
  if tune.field in fields:
    yield (
      f'sweep() yields {tune.field}, which is tuned; set TUNE = None, or give '
      '--no_tune'
    )
  if tune.seed in [of_point['seed'] for of_point in all_flat]:
    yield f'seed {tune.seed} is that of the tuning; choose others'
  if sweep.config.data.num_folds or 'data.num_folds' in fields:
    yield (
      'the tuning holds a fold out of data.train_split; with data.num_folds '
      'set, give --no_tune'
    )


def _check_values(sweep: Sweep) -> None:
  """Raises UserError for values with which a run would fail hours later.

  Resolves a point of each variant, and each run of the tuning, as the programs
  do: about 10 ms each.
  """
  # Here, since it imports jax, which takes a second. It takes no device.
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
    with _named(name):
      config = points_lib.resolve(sweep.main_arguments(overrides))
      checks.validate(config)
      unet.create_model(config).output_size(config.data.image_size)
