"""The command line: --config and --config.* checked before they are parsed."""

import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags

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
  first, result, rest = None, [], list(arguments)
  while rest:
    argument = rest.pop(0)
    if argument in ('-config', '--config') and rest:
      argument = f'--config={rest.pop(0)}'
    name, equals, value = argument.lstrip('-').partition('=')
    if argument.startswith('-') and name == 'config':
      if first:
        raise errors.UserError(f'{argument} comes after {first}; put it first')
      if equals:
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


def check_config(config: Any) -> None:
  """Raises UserError where a get_config() returns no config of this program."""
  start = 'start from default.get_config() of unet_jax.config'
  # Raises OSError for a file that could not be loaded.
  if not hasattr(config, 'to_dict'):
    raise errors.UserError(
      f'get_config() of --config returns {type(config).__name__}, no config; '
      + start
    )
  known, found = map(fields.flatten, (default.get_config(), config))
  for field in known:
    if field not in found:
      raise errors.UserError(
        f'get_config() of --config returns no field {field}; {start}'
      )


def line_of_flags(e: Exception) -> str:
  """Returns what to print for a mistake on the command line, or in a config.

  Raises:
    e: what is neither, a bug of ours.
  """
  if isinstance(e, OSError):  # config_flags wraps it.
    return f'--config: {e.__cause__ or e}'.splitlines()[0]
  if not isinstance(e, flags.Error | ValueError | TypeError):
    return _line_of_config(e)
  # config_flags wraps a mistake inside get_config() in a whole trace.
  trace = re.findall(r'^ *\w+Error: (.+)$', str(e), re.MULTILINE)
  line = trace[-1] if trace else str(e).splitlines()[0]
  return line.removeprefix('flag ')


def _line_of_config(e: Exception) -> str:
  """Returns a line on a mistake in the code of a config file."""
  if isinstance(e, SyntaxError):
    return f'{e.filename}:{e.lineno}: SyntaxError: {e.msg}'
  if isinstance(e, AttributeError) and e.name == 'get_config':
    return '--config: the file has no get_config(); configs/ has examples'
  # config_flags gives the module of the file this name.
  frames = [
    (frame.f_code.co_filename, line)
    for frame, line in traceback.walk_tb(e.__traceback__)
    if frame.f_globals.get('__name__') == 'config_config'
  ]
  if not frames:
    raise e
  file, line = frames[-1]
  words = ' '.join(str(e).split())
  where, hint = f'{file}:{line}: {type(e).__name__}: {words}', ''
  if isinstance(e, ImportError) and f'{e.name}.'.startswith('configs.'):
    where = f'{file}:{line}: {e.msg.partition(" (")[0]}'
    hint = (
      'the default config is imported by `from unet_jax.config import default`'
    )
  for old, new in fields.RENAMED.items():
    name = old.rpartition('.')[2]
    if f"'{name}'" in words or f'"{name}"' in words:
      hint = f'config.{old} is now config.{new}'
  return '; '.join(filter(None, [where, hint]))
