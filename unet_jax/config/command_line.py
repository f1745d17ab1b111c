"""The command line: --config and --config.*, flag files, and config files."""

import dataclasses
import importlib.machinery
import importlib.util
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags

from unet_jax.config import fields, values
from unet_jax.runtime import errors

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# The recipes: installed in the package, in a checkout beside it.
CONFIGS = next(
  folder
  for folder in (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')
  if folder.is_dir()
)
USUAL = 'configs/shapes.py'
# The name of a config file's module.
_MODULE = 'config_file'
_CONFIG = re.compile(
  '--?(?:config|(?P<no>no)?config[.](?P<field>[^=]*))(?P<equals>=(?P<text>.*))?',
  re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Asked:
  """What arguments say of the config."""

  # --config: where the file is, with the argument behind it; or the usual one.
  file: str
  has_file: bool
  # {'section.field': value} of --config.*; the last flag of a field counts.
  overrides: dict[str, Any]
  # The other arguments.
  rest: list[str]

  def config(self) -> ml_collections.ConfigDict:
    """Returns the file's config with the overrides; UserError for mistakes."""
    config = load(self.file)
    values.update(config, self.overrides)
    return config


def parse(arguments: Sequence[str]) -> Asked:
  """Reads --config and --config.*, also those in files of --flagfile.

  Raises:
    UserError: an unknown field, a value of another type, or no such file.
  """
  file, overrides, others = '', {}, []
  rest = _with_flag_files(arguments)
  while rest:
    argument = rest.pop(0)
    match = _CONFIG.fullmatch(argument)
    if argument == '--':
      others += [argument, *rest]
      break
    if not match:
      _check_other(argument)
      others.append(argument)
    elif match['field'] is None:
      file = match['text'] if match['equals'] else _next(argument, rest)
      find(file)
    else:
      text = _text_of_field(match, rest)
      overrides[match['field']] = values.parse(match['field'], text)
  return Asked(find(file or USUAL), bool(file), overrides, others)


def _text_of_field(match: re.Match[str], rest: list[str]) -> str:
  """Returns the text of a --config.FIELD, which may be the next argument."""
  field, argument = match['field'], match[0]
  values.check_name(field)
  is_bool = isinstance(values.known()[field], bool)
  if match['no'] and (match['equals'] or not is_bool):
    raise errors.UserError(f'{argument}: write --config.{field}=VALUE')
  if match['no']:
    return 'false'
  if match['equals']:
    return match['text']
  if is_bool and not (rest and rest[0].lower() in values.BOOLS):
    return 'true'  # The flag alone.
  return _next(argument, rest)


def _next(argument: str, rest: list[str]) -> str:
  """Takes the value of a flag without `=` from the arguments behind it."""
  # A number below 0 is a value, other dashes begin a flag.
  if not rest or re.match(r'-[^\d.]', rest[0]):
    raise errors.UserError(f'{argument} has no value; write {argument}=VALUE')
  return rest.pop(0)


def _with_flag_files(arguments: Sequence[str]) -> list[str]:
  """Puts the lines of flag files in the places of their --flagfile."""
  try:
    return flags.FLAGS.read_flags_from_files(list(arguments))
  except (flags.Error, UnicodeDecodeError) as e:
    cause, line = e.__context__, f'--flagfile: {e}'
    if isinstance(cause, OSError):
      line = f'--flagfile={cause.filename}: {cause.strerror}'
    raise errors.UserError(line) from e


def _check_other(argument: str) -> None:
  """Raises UserError for a flag that is a field without its `config.`."""
  name = argument.lstrip('-').partition('=')[0]
  if argument.startswith('-') and name in values.known() and '.' in name:
    raise errors.UserError(f'--{name}: write --config.{name}=VALUE')


def find(value: str) -> str:
  """Returns where the file of a --config is; the argument behind it is kept.

  A configs/NAME.py that is not in the current folder is the recipe NAME.
  """
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


def default_workdir(name: str) -> str:
  """Returns runs/NAME or runs/NAME-ARGUMENT of --config=NAME.py:ARGUMENT."""
  path, _, argument = name.partition(':')
  stem = pathlib.Path(path).stem
  return os.path.join('runs', f'{stem}-{argument}' if argument else stem)


def load(name: str) -> ml_collections.ConfigDict:
  """Returns the checked config of a file, NAME.py or NAME.py:ARGUMENT.

  Raises:
    UserError: a mistake in the file, with its line, or in what it returns.
  """
  path, *argument = name.split(':', 1)
  loader = importlib.machinery.SourceFileLoader(_MODULE, path)
  spec = importlib.util.spec_from_loader(_MODULE, loader)
  assert spec is not None  # There is a loader.
  module = importlib.util.module_from_spec(spec)
  # For classes in it, which ask for their module.
  sys.modules[_MODULE] = module
  try:
    loader.exec_module(module)
    if not hasattr(module, 'get_config'):
      raise errors.UserError(
        f'{path}: it has no get_config(); configs/ has examples'
      )
    config = module.get_config(*argument)
  except errors.UserError:
    raise
  except Exception as e:  # A mistake of another kind is raised again.
    raise errors.UserError(_line_of_config(e, path, name)) from e
  start = 'start from default.get_config() of unet_jax.config'
  if not isinstance(config, ml_collections.ConfigDict):
    raise errors.UserError(
      f'{path}: get_config() returns {type(config).__name__}, no config; '
      + start
    )
  try:
    values.check_all(config)
  except errors.UserError as e:
    raise errors.UserError(f'{path}: get_config(): {e}; {start}') from e
  return config.lock()


def _line_of_config(e: Exception, path: str, name: str) -> str:
  """Returns a line on a mistake in the code of a config file.

  Raises:
    e: it is not in the file, so it is a bug of ours.
  """
  if isinstance(e, SyntaxError):
    return f'{e.filename}:{e.lineno}: SyntaxError: {e.msg}'
  lines = [
    line
    for frame, line in traceback.walk_tb(e.__traceback__)
    if frame.f_code.co_filename == path
  ]
  inner: Any = e
  while isinstance(inner, Exception) and inner.args:
    inner = inner.args[0]  # ml-collections wraps a KeyError.
  words = ' '.join(str(e if isinstance(e, OSError) else inner).split())
  if not lines and isinstance(e, TypeError) and 'get_config()' in words:
    return f'--config={name}: {words}; it takes what is behind the colon'
  if not lines:
    raise e
  return f'{path}:{lines[-1]}: {_explained(e, words)}'


def _explained(e: Exception, words: str) -> str:
  """Returns an exception's words, those of ml-collections in our own."""
  if isinstance(e, ImportError) and f'{e.name}.'.startswith('configs.'):
    return (
      f'{e.msg.partition(" (")[0]}; the default config is imported by '
      '`from unet_jax.config import default`'
    )
  missing = re.match(r'(?:Key ")?(\w+)"? (?:does not exist|Did you)', words)
  missing = missing or re.match(r"'?(\w+)'?( Did you|$)", words)
  if isinstance(e, AttributeError | KeyError) and missing:
    field = missing[1]
    for old, new in fields.RENAMED.items():
      if field == old.rpartition('.')[2]:
        return f'config.{old} is now config.{new}'
    names = [part for name in values.known() for part in name.split('.')]
    return f'there is no such field {field}{fields.nearest(field, names)}'
  other = re.match(
    r"Could not override field '(\w+)'.*?\. (.*) is of original type .* type "
    r"<class '(?:.*\.)?(\w+)'>",
    words,
  )
  if isinstance(e, TypeError) and other:
    text, names = other[2], values.named(other[1], other[3])
    if len(names) == 1:
      return f'--config.{names[0]}={text}: {values.takes(names[0])}'
    return f'the field {other[1]} takes {other[3]}, not {text}'
  return f'{type(e).__name__}: {words}'
