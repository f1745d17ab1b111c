"""README and docs/ against the code: commands, fields, links."""

import importlib
import pathlib
import re
import shlex

import pytest
from absl import flags
from ml_collections import config_flags

from unet_jax.config import checks, command_line, default, fields

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_README = _ROOT / 'README.md'
_DOCS = sorted((_ROOT / 'docs').glob('*.md'))
_PAGES = [
  _README,
  _ROOT / 'CONTRIBUTING.md',
  *_DOCS,
  *sorted((_ROOT / 'experiments').rglob('*.md')),
  *sorted((_ROOT / 'findings').glob('*.md')),
]
_FIELDS = fields.flatten(default.get_config())
_SECTIONS = {name.partition('.')[0] for name in _FIELDS if '.' in name}
# The last word of a command before its flags, and where these are defined.
_PROGRAMS = {
  'main.py': 'unet_jax/__main__.py',
  'unet-jax': 'unet_jax/__main__.py',
  'experiments.sweep': 'experiments/sweep/__main__.py',
}
_SUFFIXES = ('json', 'csv', 'html', 'txt')
# A config that --mode=inspect writes, and one in its place.
_SUGGESTED, _STAND_IN = 'runs/look/suggested.py', 'configs/shapes.py'


def _id(path):
  return str(path.relative_to(_ROOT)) if isinstance(path, pathlib.Path) else ''


def _fenced(text, language):
  return re.findall(
    rf'^```{language}\n(.*?)^```', text, re.MULTILINE | re.DOTALL
  )


def _words(block):
  """The words of each command of a block, of those inside quotes too."""
  text = re.sub(r'(^|\s)#.*', r'\1', block.replace('\\\n', ' '), flags=re.M)
  lexer = shlex.shlex(text, None, True, ';&|<>\n')
  lexer.whitespace, lexer.whitespace_split = ' \t', True
  lexer.commenters = ''
  command = []
  for word in lexer:
    if set(word) <= set(';&|<>\n'):
      yield command
      command = []
      continue
    command.append(word)
    if ' ' in word and 'main.py' in word:
      yield from _words(word)
  yield command


def _commands(path):
  """[(program, its arguments)] of the bash blocks of a page."""
  found = []
  for block in _fenced(path.read_text(), 'bash'):
    for words in _words(block):
      for i, word in enumerate(words):
        if word in _PROGRAMS:
          arguments = words[i + 1 :]
          found.append(
            (word, [a.replace(_SUGGESTED, _STAND_IN) for a in arguments])
          )
  return found


_COMMANDS = [
  pytest.param(program, arguments, id=f'{path.name}: {" ".join(arguments)}')
  for path in _PAGES
  for program, arguments in _commands(path)
]


def _value(arguments, name, otherwise=''):
  found = [a for a in arguments if a.startswith(f'--{name}=')]
  return found[-1].partition('=')[2] if found else otherwise


@pytest.fixture
def make_config(monkeypatch):
  """A function of a command line that returns its config, as main.py does."""
  monkeypatch.chdir(_ROOT)

  def make(arguments):
    command_line.check_arguments(arguments, _ROOT / 'configs')
    path, _, argument = _value(
      arguments, 'config', 'configs/shapes.py'
    ).partition(':')
    recipe = importlib.import_module(path.removesuffix('.py').replace('/', '.'))
    config = recipe.get_config(*filter(None, [argument]))
    # config_flags looks at sys.argv.
    argv = ['main.py', *(a for a in arguments if a.startswith('--config.'))]
    monkeypatch.setattr('sys.argv', argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict('config', config, flag_values=values)
    assert values(argv) == ['main.py']
    return values['config'].value

  return make


@pytest.mark.parametrize('program,arguments', _COMMANDS)
def test_commands(program, arguments, make_config):
  if program == 'experiments.sweep':
    path, _, size = arguments[0].partition(':')
    text = (_ROOT / path).read_text()
    assert not size or f"'{size}'" in text
    assert 'BASE = ' in text
    arguments = arguments[1:]
  source = (_ROOT / _PROGRAMS[program]).read_text()
  for argument in arguments:
    assert argument.startswith('--'), argument
    name = re.match(r'--(no)?([a-z_.]+)', argument)[2]
    if not name.startswith('config'):
      assert f"'{name}'" in source, f'{argument}: no such flag'
  mode = _value(arguments, 'mode', 'train')
  assert f"'{mode}':" in (_ROOT / _PROGRAMS['main.py']).read_text()
  checks.validate(make_config(arguments), mode)


def test_the_commands_of_readme_and_docs_are_found():
  """A parser that finds nothing would pass."""
  count = {path.name: len(_commands(path)) for path in [_README, *_DOCS]}
  assert all(count.values()), count
  modes = {_value(param.values[1], 'mode', 'train') for param in _COMMANDS}
  assert modes == {
    'train',
    'evaluate',
    'predict',
    'cross_validate',
    'inspect',
    'summary',
    'import',
    'export',
  }


@pytest.mark.parametrize('path', [_README, *_DOCS], ids=_id)
def test_pages_begin_with_their_purpose(path):
  title, _, text = path.read_text().partition('\n')
  # In the README a picture comes first.
  text = re.sub(r'^\s*!\[[^]]*\]\([^)]*\)', '', text)
  assert re.match(r'# [A-Za-z]', title)
  # Prose, not a table, a list, a command or a further heading.
  assert re.match(r'\n*[A-Z][^|]+\.\n\n', text), text[:80]


@pytest.mark.parametrize('path', _PAGES, ids=_id)
def test_fields_exist(path):
  text = path.read_text()
  # A diff of CONTRIBUTING.md adds fields.
  added = set(re.findall(r'^\+ *([a-z_.]+) = ', text, re.MULTILINE))
  text = re.sub(r'^```(diff|python)\n.*?^```', '', text, flags=re.M | re.S)
  named = set(re.findall(r'--config\.([a-z_0-9.]*[a-z_0-9])', text))
  sections = '|'.join(sorted(_SECTIONS))
  named |= set(re.findall(rf'`((?:{sections})\.[a-z_0-9.]+)[`=]', text))
  names = set(_FIELDS) | added | {'section.field'}
  names |= {f.rpartition('.')[0] for f in _FIELDS}
  # `eval.json` is a file.
  unknown = {n for n in named - names if n.rpartition('.')[2] not in _SUFFIXES}
  assert not unknown


@pytest.mark.parametrize('path', _PAGES, ids=_id)
def test_links_lead_somewhere(path):
  text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.M | re.S)
  for target in re.findall(r'\]\(([^)\s]+)\)', text):
    if target.startswith('https:'):
      continue
    file, _, anchor = target.partition('#')
    there = (path.parent / file).resolve() if file else path
    assert there.exists(), target
    if anchor:
      headings = re.findall(r'^#+ (.+)$', there.read_text(), re.MULTILINE)
      assert anchor in [
        re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') for h in headings
      ], target


def test_readme_has_at_most_150_lines():
  assert len(_README.read_text().splitlines()) <= 150


def test_the_recipes_of_contributing_fit_the_code():
  """Every line that a diff keeps or removes stands in its file, in order."""
  for diff in _fenced((_ROOT / 'CONTRIBUTING.md').read_text(), 'diff'):
    for change in re.split(r'^--- .*\n\+\+\+ b/', diff, flags=re.MULTILINE)[1:]:
      name, *lines = change.splitlines()
      kept = [line[1:] for line in lines if line[:1] in (' ', '-')]
      if not kept:  # A new file.
        assert not (_ROOT / name).exists()
        continue
      rest = iter((_ROOT / name).read_text().splitlines())
      for line in kept:
        assert line in rest, f'{name} does not have, or not here: {line}'
