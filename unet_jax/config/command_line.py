"""The command line: --config and --config.* checked before they are parsed."""

import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from unet_jax.config import default, fields
from unet_jax.runtime import errors

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# The recipes: installed in the package, in a checkout beside it.
CONFIGS = next(
  folder
  for folder in (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')
  if folder.is_dir()
)


def check_python(version: tuple[int, ...] = sys.version_info[:2]) -> None:
  """Raises UserError where ml-collections cannot load config files."""
  if version >= (3, 15):
    raise errors.UserError(
      f'Python {version[0]}.{version[1]}: ml-collections 1.1.0 cannot load '
      'config files there; use Python 3.11 to 3.14'
    )


def resolved(arguments: Sequence[str]) -> list[str]:
  """Checks what --config and --config.* name, before they are parsed.

  Returns:
    The arguments; a `--config=configs/NAME.py` that is not in the current
    folder is the recipe of that name.

  Raises:
    UserError: an unknown field, a value of another type, no such file, or
      --config behind the fields that it is to be changed by.
  """
  known = fields.flatten(default.get_config())
  first, result = None, []
  for argument in arguments:
    name, _, value = argument.lstrip('-').partition('=')
    if name == 'config':
      if first:
        raise errors.UserError(f'{argument} comes after {first}; put it first')
      if value:
        argument = f'--config={find(value)}'
    elif argument.startswith('-') and name.startswith('config.'):
      first = first or argument
      _check_field(name.removeprefix('config.'), value, known)
    result.append(argument)
  return result


def find(value: str) -> str:
  """Returns where the file of a --config is; the argument behind it is kept."""
  path, *argument = value.split(':', 1)
  recipe = CONFIGS.parent / path
  if not os.path.isfile(path) and recipe.parent == CONFIGS:
    path = str(recipe)
  if not os.path.isfile(path):
    names = sorted(p.stem for p in CONFIGS.glob('[a-z]*.py'))
    near = fields.nearest(pathlib.Path(path).stem, names)
    raise errors.UserError(
      f'--config={value}: no such file{near}; configs/ has {", ".join(names)}'
    )
  return ':'.join([path, *argument])


def _check_field(name: str, value: str, known: dict[str, Any]) -> None:
  """Checks one --config.NAME=VALUE."""
  section = sorted(field for field in known if field.startswith(name + '.'))
  if section:
    raise errors.UserError(
      f'--config.{name} is a section; set one of its fields: '
      + ', '.join(section)
    )
  fields.check_name(name, known, '--config.')
  kind = type(known[name])
  if kind is bool and value.lower() not in ('', 'true', 'false', '1', '0'):
    raise errors.UserError(f'--config.{name}={value}: takes True or False')
  if value and kind in (int, float):
    try:
      kind(value)
    except ValueError as e:
      what = 'a whole number' if kind is int else 'a number'
      raise errors.UserError(
        f'--config.{name}={value}: takes {what}, such as {known[name]}'
      ) from e


def default_workdir(name: str) -> str:
  """Returns runs/NAME or runs/NAME-ARGUMENT of --config=NAME.py:ARGUMENT."""
  path, _, argument = name.partition(':')
  stem = pathlib.Path(path).stem
  return os.path.join('runs', f'{stem}-{argument}' if argument else stem)


def line_of_flags(e: Exception) -> str:
  """Returns what to print for a mistake on the command line, or in a config.

  Raises:
    e: an import that fails for another reason than an older version's config.
  """
  if isinstance(e, ImportError):
    if not e.name or e.name.partition('.')[0] != 'configs':
      raise e
    file = traceback.extract_tb(e.__traceback__)[-1].filename
    return (
      f'{file}: {e.msg.partition(" (")[0]}; the default config is imported by '
      '`from unet_jax.config import default`'
    )
  # config_flags wraps a mistake inside get_config() in a whole trace.
  trace = re.findall(r'^ *\w+Error: (.+)$', str(e), re.MULTILINE)
  line = trace[-1] if trace else str(e).splitlines()[0]
  return line.removeprefix('flag ')
