"""Values of fields: read from text, checked and set, for every way in.

Flags, flag files, config files, saved configs, `unet_jax.load` and sweeps all
give their values here, so that a mistake ends in the same line everywhere.
"""

import ast
import functools
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from unet_jax.config import default, fields
from unet_jax.runtime import errors

BOOLS = {'true': True, '1': True, 'false': False, '0': False}
# A table of its own kind: ((value, class), ...).
_TABLE = 'data.mask_values'
# Numbers, and words for those that JSON lacks and that may differ from
# themselves.
_NODATA, _NOT_FINITE = 'data.nodata', ('nan', 'inf', '-inf')
_BITS = 31


@functools.cache
def known() -> dict[str, Any]:
  """Returns {'section.field': default} of every field that there is."""
  return fields.flatten(default.get_config())


def check_name(name: str) -> None:
  """Raises UserError unless `name` is 'section.field' of one that there is."""
  flag, new = f'--config.{name}', fields.renamed(name)
  if new is not None:
    raise errors.UserError(f'{flag} is now --config.{new}')
  section = sorted(field for field in known() if field.startswith(f'{name}.'))
  if section:
    raise errors.UserError(
      f'{flag} is a section; set one of its fields: {", ".join(section)}'
    )
  if name not in known():
    raise errors.UserError(
      f'{flag}: there is no such field{fields.nearest(name, known())}; '
      'unet_jax/config/default.py lists them all'
    )


def parse(name: str, text: str) -> Any:
  """Returns the value that a text, as behind `--config.NAME=`, gives a field.

  Raises:
    UserError: no such field, or a text that is none of its values.
  """
  check_name(name)
  kind, bare = type(known()[name]), _unquoted(text)
  value: Any = bare
  if kind is bool:
    value = BOOLS.get(bare.lower(), bare)
  elif kind in (int, float):
    try:
      value = kind(bare)
    except ValueError:
      pass  # A text, which is refused below.
  elif kind is tuple:
    read = _names if name in fields.NAMES else _literal
    value = bare if read(bare) is None else read(bare)
  return checked(name, value, text)


def checked(name: str, value: Any, text: str | None = None) -> Any:
  """Returns a value of a field's own type; raises UserError if it has none.

  Args:
    name: 'section.field'.
    value: NumPy's numbers and arrays become Python's, lists tuples, paths
      texts, and whole numbers floats where the field is one.
    text: that the value was read from, for the message.
  """
  check_name(name)
  usual, value = known()[name], plain(value)
  if name == _NODATA and isinstance(value, tuple):
    words = [str(v).lower() for v in value]
    value = tuple(w if w in _NOT_FINITE else v for v, w in zip(value, words))
  if isinstance(usual, float) and type(value) is int and abs(value) < 2**63:
    value = float(value)
  if _fits(name, value, usual):
    return value
  shown = repr(value) if text is None else text
  if type(usual) is int and type(value) is int:
    raise errors.UserError(f'--config.{name}={shown}: must be below {2**_BITS}')
  raise errors.UserError(f'--config.{name}={shown}: {takes(name)}')


def update(
  config: ml_collections.ConfigDict, values: Mapping[str, Any]
) -> None:
  """Sets {'section.field': value}; raises UserError for what cannot be set."""
  right = {name: checked(name, value) for name, value in values.items()}
  # Types are those of the default config, which a config file may have changed.
  with config.ignore_type():
    config.update_from_flattened_dict(right)


def check_all(config: ml_collections.ConfigDict) -> None:
  """Checks a whole config, as a file gives it, and puts its types right.

  Raises:
    UserError: a field that does not exist, one that is missing, or a value of
      another type.
  """
  found = fields.flatten(config)
  for name in found:
    check_name(name)
  for name in known():
    if name not in found:
      raise errors.UserError(f'it has no field {name}')
  update(config, found)


def plain(value: Any) -> Any:
  """Returns a value with Python's numbers, and tuples for arrays and lists."""
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  # NumPy's arrays and numbers, and those of JAX, which are not imported here.
  if hasattr(value, 'tolist'):
    value = value.tolist()
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  return tuple(map(plain, value)) if isinstance(value, tuple | list) else value


def _fits(name: str, value: Any, usual: Any) -> bool:
  """Whether a plain value is of the kind of a field's default."""
  if isinstance(usual, bool) or isinstance(value, bool):
    return isinstance(usual, bool) and isinstance(value, bool)
  if not isinstance(value, type(usual)):
    return False
  if isinstance(usual, str):
    # Of somebody who thinks of Python's None: a file of that name is rarer.
    return value != 'None'
  if isinstance(usual, float):
    return math.isfinite(value)
  if isinstance(usual, int):
    return name == 'seed' or abs(value) < 2**_BITS
  if name in fields.NAMES:
    return value != ('None',) and all(isinstance(v, str) and v for v in value)
  return name == _TABLE or all(
    is_number(v) or (name == _NODATA and v in _NOT_FINITE) for v in value
  )


def is_number(value: Any) -> bool:
  """Whether a value is finite, and an integer that files may store."""
  if isinstance(value, float):
    return math.isfinite(value)
  return type(value) is int and abs(value) < 2**64


def named(leaf: str, kind: str) -> list[str]:
  """Returns the fields 'section.LEAF' whose type has the name `kind`."""
  return [
    name
    for name, usual in known().items()
    if name.rpartition('.')[2] == leaf and type(usual).__name__ == kind
  ]


def takes(name: str) -> str:
  """Returns what a field takes, with an example."""
  usual = known()[name]
  if isinstance(usual, bool):
    return 'takes True or False'
  if isinstance(usual, str) and name in fields.CHOICES:
    return f'takes one of {", ".join(map(str, fields.CHOICES[name]))}'
  if isinstance(usual, str):
    return "takes text, '' for none"
  if isinstance(usual, int):
    return f'takes a whole number, such as {usual}'
  if isinstance(usual, float):
    return f'takes a number, such as {usual}'
  if name == _TABLE:
    return "takes pairs (value, class); write '((0,0),(255,1))'"
  if name in fields.NAMES:
    return 'takes names with commas between them, such as one,two'
  example = '-9999,nan' if name == _NODATA else '1,2'
  example = ','.join(map(str, usual)) or example
  return f'takes numbers with commas between them, such as {example}'


def _unquoted(text: str) -> str:
  """Removes a pair of quotes that no shell removed, as in a flag file."""
  quoted = len(text) > 1 and text[0] == text[-1] and text[0] in '\'"'
  if quoted and text[0] not in text[1:-1]:
    return text[1:-1]
  return text


def _literal(text: str) -> tuple | None:
  """Returns the tuple of a text such as `64,64` or `((0,0),(255,1))`, or None.

  A single element is a tuple of one; words need no quotes.
  """
  if not text.strip():
    return ()
  try:
    value = _of_node(ast.parse(text.strip(), mode='eval').body)
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    return None
  return value if isinstance(value, tuple) else (value,)


def _of_node(node: ast.expr) -> Any:
  if isinstance(node, ast.Tuple | ast.List):
    return tuple(map(_of_node, node.elts))
  if isinstance(node, ast.Name):
    return node.id
  if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Name):
    return f'-{node.operand.id}'
  return ast.literal_eval(node)


def _names(text: str) -> tuple | None:
  """Returns the names of `road,crack`, `(road, crack)` or `"a, b","c"`."""
  text = text.strip()
  quoted = _literal(text) if re.search('["\']', text) else None
  if quoted is not None:
    return quoted
  if text[:1] + text[-1:] in ('()', '[]'):
    text = text[1:-1]
  words = [word.strip() for word in text.split(',')]
  if not words[-1]:
    words.pop()  # `a,` is a tuple of one, and nothing is none.
  # Brackets and quotes that have no other half.
  ends = ''.join(word[:1] + word[-1:] for word in words)
  return None if re.search(r'[][(){}"\']', ends) else tuple(words)
