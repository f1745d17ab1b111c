"""Configs as JSON in workdirs; the fields that a later run may change."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from unet_jax.config import default, fields, values
from unet_jax.runtime import errors

# Sections and fields that a run may change when it continues. train.num_steps
# may only grow, see `check_resumable`; data.dir may where the run has a record
# of its images, see data/identity.py.
FREE_TO_CHANGE = (
  'log',
  'eval',
  'inference',
  'inspect',
  'predict',
  'checkpoint',
  'summary',
  'plan',
  'mesh',
  'cpu',
  'data.check',
  'data.skip_checks',
  'data.suggest',
  'weights',
  'export',
  'data.cache',
  'data.cache_dir',
  'data.num_workers',
  'data.on_error',
  'model.remat',
  'optimizer.decay_steps',
  'optimizer.end_factor',
  'train.num_steps',
)
# Sections and fields that an evaluation of a checkpoint may not change: its
# parameters, and the meaning of their inputs and outputs, depend on them.
FIXED_IN_EVALUATION = (
  'model',
  'data.num_channels',
  'data.num_classes',
  'data.mean',
  'data.std',
)


def to_json(config: ml_collections.ConfigDict) -> str:
  """Returns `config` as indented JSON (tuples become lists)."""
  return json.dumps(config.to_dict(), indent=2)


def _tuples(value: Any) -> Any:
  if isinstance(value, list):
    return tuple(_tuples(v) for v in value)
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return value


def from_json(text: str) -> ml_collections.ConfigDict:
  """The inverse of `to_json`, also of the JSON of older versions.

  Fields that were added since have their default, those that were renamed their
  new name.

  Raises:
    UserError: a field that does not exist any more, or a value of another type.
  """
  config = default.get_config()
  saved = fields.flatten(ml_collections.ConfigDict(_tuples(json.loads(text))))
  saved = {fields.renamed(k) or k: value for k, value in saved.items()}
  unknown = sorted(set(saved) - set(values.known()))
  if unknown:
    raise errors.UserError(
      f'the saved config has the field {unknown[0]}, which this version does '
      'not know; use the version that it was made with'
    )
  values.update(config, saved)
  return config


def read(
  workdir: str, overrides: Mapping[str, Any]
) -> ml_collections.ConfigDict | None:
  """Returns the config of a workdir's run; None without one.

  The overrides, {'section.field': value}, are set in it.
  """
  path = pathlib.Path(workdir, 'config.json')
  if not path.exists():
    return None
  try:
    config = from_json(path.read_text())
  except json.JSONDecodeError as e:
    raise errors.UserError(
      f'{path} is not valid JSON ({e}); restore it, or give --config'
    ) from e
  except errors.UserError as e:
    raise errors.UserError(f'{path}: {e}') from e
  except (ValueError, TypeError, AttributeError) as e:
    raise errors.UserError(
      f'{path} is no saved config ({e}); restore it, or give --config'
    ) from e
  values.update(config, overrides)
  return config


def _is_under(field: str, names: tuple[str, ...]) -> bool:
  return any(field == name or field.startswith(name + '.') for name in names)


def _differences(
  old: ml_collections.ConfigDict,
  new: ml_collections.ConfigDict,
  is_fixed: Callable[[str], bool],
) -> str:
  """Returns the fixed fields that differ, with both values; '' for none."""
  before, now = fields.flatten(old), fields.flatten(new)
  return '; '.join(
    f'{name} was {before.get(name)!r}, now {now.get(name)!r}'
    for name in sorted(before | now)
    if is_fixed(name) and before.get(name) != now.get(name)
  )


def check_resumable(
  old: ml_collections.ConfigDict, new: ml_collections.ConfigDict, workdir: str
) -> None:
  """Raises UserError where `new` cannot continue a run of `old`.

  Args:
    old: the config that the checkpoint was saved with.
    new: the config that is asked for.
    workdir: named in the message.
  """
  differences = _differences(
    old, new, lambda name: not _is_under(name, FREE_TO_CHANGE)
  )
  if differences:
    raise errors.UserError(
      f'{workdir} holds checkpoints of another config: {differences}. Choose '
      'another --workdir, or undo the change'
    )
  if new.train.num_steps < old.train.num_steps:
    raise errors.UserError(
      f'{workdir} was started with train.num_steps={old.train.num_steps}, '
      f'which may grow but not shrink to {new.train.num_steps}. Choose '
      'another --workdir, or undo the change'
    )


def is_of_network(field: str) -> bool:
  """Whether a checkpoint's parameters make no sense with another value."""
  return _is_under(field, FIXED_IN_EVALUATION) and field != 'model.remat'


def check_evaluable(
  old: ml_collections.ConfigDict,
  new: ml_collections.ConfigDict,
  workdir: str,
  remedy: str = 'Leave --config out to evaluate with the config of the workdir',
) -> None:
  """Raises UserError where parameters of `old` do not fit `new`."""
  differences = _differences(old, new, is_of_network)
  if differences:
    raise errors.UserError(
      f'{workdir} holds checkpoints of another network: {differences}. '
      + remedy
    )
