"""Names of points: of their folders, and of their fields in the report."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

# Longer names are cut: file systems take 255 bytes.
_LONGEST = 180


def short_names(fields: Sequence[str]) -> dict[str, str]:
  """Returns the last parts of each field's name, as many as tell it apart."""
  short = {}
  for field in fields:
    parts = field.split('.')
    for i in range(len(parts)):
      tail = '.'.join(parts[len(parts) - 1 - i :])
      others = (f'.{f}' for f in fields if f != field)
      if not any(other.endswith(f'.{tail}') for other in others):
        break
    short[field] = tail
  return short


def point_name(overrides: dict[str, Any], short: dict[str, str]) -> str:
  """Returns what differs as the name of a folder; of nothing, `base`."""
  words = [f'{short[k]}={_word(v)}' for k, v in overrides.items()]
  name = ','.join(words) or 'base'
  if len(name) > _LONGEST:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    name = f'{name[:_LONGEST]}-{digest}'
  return name


def _word(value: Any) -> str:
  """A value with the characters that all file systems take."""
  if isinstance(value, tuple):
    return 'x'.join(map(_word, value)) or 'none'
  return re.sub(r'[^\w.+-]', '-', str(value), flags=re.ASCII)
