"""README and docs/ against the code: commands, fields, links, recipes."""

import functools
import importlib.util
import pathlib
import re
import shlex

import pytest

from experiments.sweep import __main__ as sweep_program
from experiments.sweep import sweep_file
from unet_jax import __main__ as program
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
# A config that --mode=inspect writes, and one in its place.
_SUGGESTED, _STAND_IN = 'runs/look/suggested.py', 'configs/shapes.py'


# Several commands of a page are of one sweep.
_sweep = functools.cache(sweep_file.load)


def _name(path):
  return str(path.relative_to(_ROOT))


def _fenced(path, language):
  blocks = rf'^```{language}\n(.*?)^```'
  return re.findall(blocks, path.read_text(), re.M | re.S)


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
  """[(main.py or a module, its arguments)] of the bash blocks of a page."""
  found = []
  for block in _fenced(path, 'bash'):
    for words in _words(block.replace(_SUGGESTED, _STAND_IN)):
      for i, word in enumerate(words):
        if word in ('main.py', 'unet-jax'):
          found.append(('main.py', words[i + 1 :]))
        elif word.startswith('experiments.') and words[i - 1] == '-m':
          found.append((word, words[i + 1 :]))
  return found


def _cases(name):
  return [
    pytest.param(arguments, id=f'{_name(path)}: {" ".join(arguments)}')
    for path in _PAGES
    for command, arguments in _commands(path)
    if command == name
  ]


def _mode(arguments):
  modes = [a.removeprefix('--mode=') for a in arguments if '--mode=' in a]
  return modes[-1] if modes else 'train'


@pytest.mark.parametrize('arguments', _cases('main.py'))
def test_commands_of_main(arguments, monkeypatch):
  monkeypatch.chdir(_ROOT)
  names = {re.match(r'--([a-z_]+)', a)[1] for a in arguments}
  assert names <= {'config', 'mode', 'workdir'}
  assert _mode(arguments) in program._MODES
  config = command_line.parse(arguments).config()
  checks.validate(config, _mode(arguments))


@pytest.mark.parametrize('arguments', _cases('experiments.sweep'))
def test_commands_of_sweeps(arguments, monkeypatch):
  monkeypatch.chdir(_ROOT)
  args = sweep_program._parse(arguments)
  assert _sweep(args.sweep, tuple(args.changes)).points


def test_commands_are_found():
  """A parser that finds nothing would pass."""
  commands = [c for path in [_README, *_DOCS] for c in _commands(path)]
  modules = {name for name, _ in commands} - {'main.py'}
  assert modules == {'experiments.sweep', 'experiments.sweep.report'}
  assert all(map(importlib.util.find_spec, modules))
  modes = {_mode(arguments) for name, arguments in commands}
  assert modes == set(program._MODES)
  assert all(_commands(path) for path in [_README, *_DOCS])


@pytest.mark.parametrize('path', [_README, *_DOCS], ids=_name)
def test_pages_begin_with_their_purpose(path):
  title, _, text = path.read_text().partition('\n')
  # In the README a picture comes first.
  text = re.sub(r'^\s*!\[[^]]*\]\([^)]*\)', '', text)
  assert re.match(r'# [A-Za-z]', title)
  # Prose, not a table, a list, a command or a further heading.
  assert re.match(r'\n*[A-Z][^|]+\.\n\n', text), text[:80]


@pytest.mark.parametrize('path', _PAGES, ids=_name)
def test_fields_exist(path):
  # Without the diffs of CONTRIBUTING.md, which add fields.
  text = re.sub(r'^```diff\n.*?^```', '', path.read_text(), flags=re.M | re.S)
  added = re.findall(r'^\+ *([a-z_.]+) = ', path.read_text(), re.M)
  named = set(re.findall(r'--config\.([a-z_0-9.]*[a-z_0-9])', text))
  sections = '|'.join({name.partition('.')[0] for name in _FIELDS})
  # `eval.json` is a file.
  files = r'\w+\.(?:json|csv|html|txt)\b'
  named |= set(re.findall(rf'`(?!{files})((?:{sections})\.[a-z_0-9.]+)', text))
  # `augment.X.probability` is one for each X.
  known = {*_FIELDS, *added, 'section.field', 'augment.'}
  assert not named - known - {name.rpartition('.')[0] for name in known}


@pytest.mark.parametrize('path', _PAGES, ids=_name)
def test_links_lead_somewhere(path):
  text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.M | re.S)
  for target in re.findall(r'\]\(([^)\s]+)\)', text):
    if target.startswith('https:'):
      continue
    file, _, anchor = target.partition('#')
    there = (path.parent / file).resolve() if file else path
    assert there.exists(), target
    if anchor:
      headings = re.findall(r'^#+ (.+)$', there.read_text(), re.M)
      assert anchor in [
        re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') for h in headings
      ], target


def test_readme_has_at_most_150_lines():
  assert len(_README.read_text().splitlines()) <= 150


def test_the_tree_of_the_readme_is_the_real_one():
  text, package, seen = _README.read_text(), _ROOT / 'unet_jax', set()
  tree = re.search(r'^```\n(main.py.*?)^```', text, re.M | re.S)[1]
  for line in tree.splitlines():
    indent, name = re.match(r'( *)([\w/]+)', line).groups()
    inside = package if indent else _ROOT
    if name.endswith('/'):
      folder = inside / name
      assert folder.is_dir(), name
      seen.add(folder)
    else:
      folder = inside
    for file in re.findall(r'[\w/]+\.py', line):
      assert (folder / file).is_file(), (folder, file)
      seen.add(folder / file)
  modes = {package / f'{module}.py' for module in program._MODES.values()}
  folders = {path.parent for path in package.glob('*/__init__.py')}
  assert modes | folders <= seen


def test_the_recipes_of_contributing_fit_the_code():
  """Every line that a diff keeps or removes stands in its file, in order."""
  for diff in _fenced(_ROOT / 'CONTRIBUTING.md', 'diff'):
    for change in re.split(r'^--- .*\n\+\+\+ b/', diff, flags=re.M)[1:]:
      name, *lines = change.splitlines()
      kept = [line[1:] for line in lines if line[:1] in (' ', '-')]
      if not kept:  # A new file.
        assert not (_ROOT / name).exists()
        continue
      rest = iter((_ROOT / name).read_text().splitlines())
      for line in kept:
        assert line in rest, f'{name} does not have, or not here: {line}'
