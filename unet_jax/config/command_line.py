"""The command line: --config and --config.* checked before they are parsed."""

import os
import pathlib
import re
from typing import Any

from unet_jax.config import fields as fields_lib
from unet_jax.runtime import errors


def spelled_for_python(argument: str) -> str:
  """`--config.import.path=X` as `--config.import_.path=X`.

  config_flags reads names of fields with Python's parser, for which `import` is
  a keyword.
  """
  return re.sub(r'^(-*config\.import)\.', r'\1_.', argument)


def check_arguments(arguments, configs: pathlib.Path) -> None:
  """Checks what --config and --config.* name, before they are parsed.

  Args:
    arguments: of the command line, without the program's name.
    configs: the folder of the configs that come with the project.

  Raises:
    UserError: an unknown field, a value of another type, no such file, or
      --config behind the fields that it is to be changed by.
  """
  from unet_jax.config import default

  fields = fields_lib.flatten(default.get_config())
  first = None
  for argument in arguments:
    name, _, value = spelled_for_python(argument).lstrip('-').partition('=')
    if name == 'config':
      path = value.partition(':')[0]
      if first:
        raise errors.UserError(f'{argument} comes after {first}; put it first')
      if path and not os.path.isfile(path):
        names = sorted(p.stem for p in configs.glob('[a-z]*.py'))
        stem = pathlib.Path(path).stem
        raise errors.UserError(
          f'--config={value}: no such file{fields_lib.nearest(stem, names)}; '
          f'configs/ has {", ".join(names)}'
        )
    elif argument.startswith('-') and name.startswith('config.'):
      first = first or argument
      _check_field(name.removeprefix('config.'), value, fields)


def _check_field(name: str, value: str, fields: dict[str, Any]) -> None:
  """Checks one --config.NAME=VALUE."""
  if any(field.startswith(name + '.') for field in fields):
    raise errors.UserError(
      f'--config.{name} is a section; set one of its fields: '
      + ', '.join(sorted(f for f in fields if f.startswith(name + '.')))
    )
  if name not in fields:
    raise errors.UserError(
      f'--config.{name}: there is no such field'
      f'{fields_lib.nearest(name, fields)}; unet_jax/config/default.py lists '
      'them all'
    )
  kind = type(fields[name])
  if kind is bool and value.lower() not in ('', 'true', 'false', '1', '0'):
    raise errors.UserError(f'--config.{name}={value}: takes True or False')
  if value and kind in (int, float):
    try:
      kind(value)
    except ValueError as e:
      what = 'a whole number' if kind is int else 'a number'
      raise errors.UserError(
        f'--config.{name}={value}: takes {what}, such as {fields[name]}'
      ) from e


def default_workdir(name: str) -> str:
  """Returns runs/NAME or runs/NAME-ARGUMENT of --config=NAME.py:ARGUMENT."""
  path, _, argument = name.partition(':')
  stem = pathlib.Path(path).stem
  return os.path.join('runs', f'{stem}-{argument}' if argument else stem)


def line_of_flags(e: Exception) -> str:
  """Returns what to print for a mistake on the command line.

  config_flags wraps one inside get_config() in a whole trace.
  """
  trace = re.findall(r'^ *\w+Error: (.+)$', str(e), re.MULTILINE)
  line = trace[-1] if trace else str(e).splitlines()[0]
  return line.removeprefix('flag ')
