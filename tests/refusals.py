"""Errors of users: the line that a call raises, and tables of such lines."""

import ast
import re
from typing import Any

import pytest

from unet_jax.runtime import errors


def message_of(call, *args, kind=errors.UserError, **kwargs) -> str:
  """The one line of the error that a call raises."""
  with pytest.raises(errors.UserError) as e:
    call(*args, **kwargs)
  assert type(e.value) is kind
  assert '\n' not in str(e.value)
  return str(e.value)


def cases(table: str) -> list[tuple[str, str]]:
  """Cases of a table: lines, and indented below them the message of each."""
  entries = re.findall(r'((?:^\S.*\n)+)((?: .*\n)+)', table, re.MULTILINE)
  return [
    (line, ' '.join(message.split()))
    for lines, message in entries
    for line in lines.splitlines()
  ]


def parse_fields(text: str) -> dict[str, Any]:
  """{'section.field': value} of `section.field=value section.field=value`."""
  found = {}
  for part in text.split():
    field, _, value = part.partition('=')
    try:
      found[field] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      found[field] = float(value) if value == 'nan' else value
  return found
