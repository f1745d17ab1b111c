"""Every field is read and commented; every recipe is valid."""

import ast
import importlib
import pathlib
import re

import pytest

from tests.config import recipes
from unet_jax.config import checks, default, fields
from unet_jax.models import unet
from unet_jax.runtime import errors

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_FIELDS = fields.flatten(default.get_config())


def _names_of(node, aliases):
  """'a.b.c' of an attribute, with local names of sections replaced."""
  parts = []
  while isinstance(node, ast.Attribute):
    parts.insert(0, node.attr)
    node = node.value
  if isinstance(node, ast.Name):
    parts.insert(0, aliases.get(node.id, node.id))
  return '.'.join(parts)


def _pairs(target, value):
  """The single assignments of an assignment."""
  if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
    return list(zip(target.elts, value.elts))
  return [(target, value)]


def _fields_read():
  """Every 'section.field' that an expression of the program reads.

  Checks do not count: a field that is only checked does nothing.
  """
  read = set()
  for path in sorted((_ROOT / 'unet_jax').rglob('*.py')):
    if path.name == 'checks.py':
      continue
    for function in ast.walk(ast.parse(path.read_text())):
      if not isinstance(function, ast.FunctionDef):
        continue
      aliases = {}
      for node in ast.walk(function):
        if isinstance(node, ast.Assign):
          for target, value in _pairs(node.targets[0], node.value):
            if isinstance(target, ast.Name):
              aliases[target.id] = _names_of(value, {})
      for node in ast.walk(function):
        if isinstance(node, ast.Attribute):
          read |= {_names_of(node, aliases), _names_of(node, {})}
  return read


def test_every_field_is_read():
  read = _fields_read()
  is_read = lambda field: any(
    name == field or name.endswith('.' + field) for name in read
  )
  # Expressions that read a whole section, and so all of its fields.
  whole = {f'model.{name}' for name in unet.UNet.__dataclass_fields__}
  assert is_read('model.to_dict') and is_read('loss.weights.items')
  whole |= {f for f in _FIELDS if f.startswith('loss.weights.')}
  unread = [f for f in _FIELDS if f not in whole and not is_read(f)]
  assert not unread
  assert not is_read('data.no_such_field')


def test_every_field_of_the_model_section_is_one_of_the_network():
  section = {f.partition('.')[2] for f in _FIELDS if f.startswith('model.')}
  assert section == set(unet.UNet.__dataclass_fields__) - {
    *('num_classes', 'native', 'parent', 'name')
  }


def test_every_field_has_a_comment_above_it():
  lines = (_ROOT / 'unet_jax/config/default.py').read_text().splitlines()
  commented, above = set(), False
  for line in lines:
    field = re.match(r'  (\w+(?:\.\w+)+) = ', line)
    if line.startswith('  #'):
      above = True
    elif not line.strip() or 'ConfigDict' in line:
      above = above and 'ConfigDict' in line
    elif field and above:
      commented.add(field[1].removeprefix('config.').split('.')[-1])
  assert {f.split('.')[-1] for f in _FIELDS} == commented


@pytest.mark.parametrize('name', recipes.CONFIGS)
def test_configs_are_valid(name):
  config = recipes.CONFIGS[name].copy_and_resolve_references()
  # There is no default for a folder.
  if config.data.source == 'folder':
    with pytest.raises(errors.UserError, match='needs --config.data.dir=DIR'):
      checks.validate(config)
    config.data.dir = '/somewhere'
  checks.validate(config)
  assert set(fields.flatten(config)) == set(_FIELDS)


def test_every_recipe_is_tested():
  stems = {p.stem for p in (_ROOT / 'configs').glob('[a-z]*.py')}
  assert stems | {'default'} == {n.partition(':')[0] for n in recipes.CONFIGS}
  for stem in stems:
    module = importlib.import_module(f'configs.{stem}')
    assert module.__doc__ and '.' in module.__doc__.splitlines()[0]


@pytest.mark.parametrize(
  'name,argument,allowed',
  [
    ('keras_lesson', 'nearest', 'the upsampling is one of transpose, bilinear'),
    ('oxford_pets', 'tiny', 'the size is one of large, small'),
    ('isbi_2012', 'big', 'the recipe is one of paper, small'),
  ],
)
def test_unknown_arguments_of_recipes(name, argument, allowed):
  with pytest.raises(ValueError) as e:
    importlib.import_module(f'configs.{name}').get_config(argument)
  assert str(e.value) == f'configs/{name}.py:{argument}: {allowed}'
