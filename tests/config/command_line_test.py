"""Arguments that name nothing, flag files, and mistakes in config files."""

import pathlib

import pytest

from tests.refusals import cases, message_of
from unet_jax.config import command_line, default

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Arguments, and the message of each.
_REFUSED = """\
--config.model.dept=3
--config.model.dept
--config.model.dept 3
--flagfile=FLAGS --config.model.dept=3
  --config.model.dept: there is no such field (did you mean model.depth?);
  unet_jax/config/default.py lists them all
--config.qqqqqq=3
  --config.qqqqqq: there is no such field; unet_jax/config/default.py lists
  them all
--config.=3
  --config.: there is no such field; unet_jax/config/default.py lists them all
--config.mesh=3
  --config.mesh is a section; set one of its fields: mesh.data, mesh.fsdp,
  mesh.spatial
-config.model.depth=two
--config.model.depth two
--config.model.depth=two --config.model.depth=3
  --config.model.depth=two: takes a whole number, such as 3
--config.model.depth
--config.model.depth --mode=summary
--config.model.depth -mode=summary
  --config.model.depth has no value; write --config.model.depth=VALUE
--config
--config --mode=summary
  --config has no value; write --config=VALUE
--noconfig.model.depth
  --noconfig.model.depth: write --config.model.depth=VALUE
--noconfig.model.remat=True
  --noconfig.model.remat=True: write --config.model.remat=VALUE
-model.depth=3
--model.depth 3
  --model.depth: write --config.model.depth=VALUE
--config=configs/shape.py
--config configs/shape.py
  --config=configs/shape.py: no such file (did you mean shapes?); configs/ has
  folder, isbi_2012, keras_lesson, oxford_pets, shapes, volumes
--config=
  --config=: no such file; configs/ has folder, isbi_2012, keras_lesson,
  oxford_pets, shapes, volumes
--config=qqq.py:small
  --config=qqq.py:small: no such file; configs/ has folder, isbi_2012,
  keras_lesson, oxford_pets, shapes, volumes
--config.import.path=x
  --config.import.path is now --config.weights.path
--flagfile=/no/flags
  --flagfile=/no/flags: No such file or directory
--flagfile
  --flagfile: --flagfile with no argument
"""


@pytest.mark.parametrize('arguments,message', cases(_REFUSED))
def test_arguments_that_name_nothing(arguments, message, tmp_path):
  _, is_in_file, line = arguments.partition('--flagfile=FLAGS ')
  if is_in_file:
    (tmp_path / 'inner').write_text(f'# a comment\n\n{line}\n')
    (tmp_path / 'outer').write_text(f'--flagfile={tmp_path}/inner\n')
    arguments = f'--flagfile={tmp_path}/outer'
  assert message_of(command_line.parse, arguments.split()) == message


def test_a_flag_file_that_is_no_text(tmp_path):
  (tmp_path / 'flags').write_bytes(b'\xff\xfe--config.seed=1')
  flag = f'--flagfile={tmp_path}/flags'
  assert message_of(command_line.parse, [flag]).startswith('--flagfile: ')
  flag = f'--flagfile={tmp_path}'
  assert message_of(command_line.parse, [flag]) == f'{flag}: Is a directory'


# Arguments, and the fields that they set.
_TAKEN = [
  (['--config.model.depth', '2', '--mode=evaluate'], {'model.depth': 2}),
  (['-config.checkpoint.step', '-1'], {'checkpoint.step': -1}),
  (['--config.model.remat', '--mode=evaluate'], {'model.remat': True}),
  (['--config.model.remat', 'False', '--mode=a'], {'model.remat': False}),
  (['--noconfig.model.remat'], {'model.remat': False}),
  (['--config.data.dir=a=b'], {'data.dir': 'a=b'}),
  (['--config.data.dir='], {'data.dir': ''}),
  # The last one counts; tuples are not joined.
  (['--config.model.depth=2', '--config.model.depth=4'], {'model.depth': 4}),
  (
    ['--config.data.image_size=8,8', '--config.data.image_size=16,16'],
    {'data.image_size': (16, 16)},
  ),
  (
    [
      '--config.data.mask_values=((0,0),(255,1))',
      '--config.data.mask_values=((0,1),(255,0))',
    ],
    {'data.mask_values': ((0, 1), (255, 0))},
  ),
  (
    ['--config.data.class_names=a,b', '--config.data.class_names=road,crack'],
    {'data.class_names': ('road', 'crack')},
  ),
  # Behind `--` there are no flags.
  (['--', '--config.model.dept=3'], {}),
]


@pytest.mark.parametrize('arguments,overrides', _TAKEN)
def test_arguments_that_are_right(arguments, overrides):
  asked = command_line.parse(arguments)
  assert asked.overrides == overrides and not asked.has_file
  assert asked.file == f'{_ROOT}/configs/shapes.py' or asked.file == (
    'configs/shapes.py'
  )
  rest = [a for a in arguments if '-mode' in a or '--' in arguments]
  assert asked.rest == rest


def test_a_flag_file(tmp_path):
  (tmp_path / 'inner').write_text(
    '// what a shell would do is done\n'
    "--config.data.mask_values='((0,0),(255,1))'\n"
    '--config.data.dir="/a b"\n--config.model.depth=5\n'
  )
  (tmp_path / 'outer').write_text(
    f'--config=configs/oxford_pets.py:small\n--flagfile={tmp_path}/inner\n'
    '  --config.model.remat\n--mode=evaluate\n'
  )
  asked = command_line.parse(
    [f'--flagfile={tmp_path}/outer', '--config.model.depth=2']
  )
  assert asked.overrides == {
    'data.mask_values': ((0, 0), (255, 1)),
    'data.dir': '/a b',
    'model.depth': 2,
    'model.remat': True,
  }
  assert asked.has_file and asked.file.endswith('configs/oxford_pets.py:small')
  assert asked.rest == ['--mode=evaluate']


def test_a_config_may_come_after_its_fields():
  asked = command_line.parse(
    ['--config.model.depth=2', '--config', 'configs/oxford_pets.py:small']
  )
  config = asked.config()
  assert config.model.depth == 2 and config.data.source == 'tfds'
  assert config.is_locked


def test_recipes_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name = 'configs/oxford_pets.py:small'
  assert command_line.find(name) == f'{_ROOT}/{name}'
  # A file in the current folder wins.
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/oxford_pets.py').touch()
  assert command_line.find(name) == name


_FROM_DEFAULT = """from unet_jax.config import default
def get_config():
  config = default.get_config()
"""
_START = 'start from default.get_config() of unet_jax.config'
_IMPORT = 'from unet_jax.config import default; import ml_collections\n'
# Text of a config file, and its line, in which FILE is the file.
_MISTAKES = {
  'from configs import default': (
    "FILE:1: cannot import name 'default' from 'configs'; the default config "
    'is imported by `from unet_jax.config import default`'
  ),
  'from configs_of_old import default': (
    "FILE:1: ModuleNotFoundError: No module named 'configs_of_old'"
  ),
  'x = 1\ndef get_config(:': 'FILE:2: SyntaxError: invalid syntax',
  'hello': "FILE:1: NameError: name 'hello' is not defined",
  'raise ValueError("one\\ntwo")': 'FILE:1: ValueError: one two',
  _FROM_DEFAULT + "  config.import_.path = 'x'": (
    'FILE:4: config.import_ is now config.weights'
  ),
  _FROM_DEFAULT + '  config.log.num_figures = 3': (
    'FILE:4: config.log.num_figures is now config.log.num_examples'
  ),
  _FROM_DEFAULT + '  config.model.dept = 3': (
    'FILE:4: there is no such field dept (did you mean depth?)'
  ),
  _FROM_DEFAULT + '  config.model.update(dept=3)': (
    'FILE:4: there is no such field dept (did you mean depth?)'
  ),
  _FROM_DEFAULT + '  print(config.modle.depth)': (
    'FILE:4: there is no such field modle (did you mean model?)'
  ),
  _FROM_DEFAULT + '  config.model.depth = 2.5': (
    'FILE:4: --config.model.depth=2.5: takes a whole number, such as 3'
  ),
  _FROM_DEFAULT + "  config.data.image_size = 'big'": (
    'FILE:4: --config.data.image_size=big: takes numbers with commas between '
    'them, such as 64,64'
  ),
  _FROM_DEFAULT + '  config.data.image_size = ("a", "b")\n  return config': (
    "FILE: get_config(): --config.data.image_size=('a', 'b'): takes numbers "
    'with commas between them, such as 64,64'
  ),
  _FROM_DEFAULT + '  config.model.depth = True\n  return config': (
    'FILE:4: --config.model.depth=True: takes a whole number, such as 3'
  ),
  _FROM_DEFAULT + '  config.augment.flip_horizontal = True\n  return config': (
    'FILE:4: --config.augment.flip_horizontal=True: takes a number, such as 0.5'
  ),
  _FROM_DEFAULT
  + '  import numpy as np\n  config.seed = np.int64(3)\n  config.seed = "a"': (
    'FILE:6: --config.seed=a: takes a whole number, such as 0'
  ),
  _FROM_DEFAULT + '  config.augment.update(flip_horizontal=True)': (
    'FILE:4: --config.augment.flip_horizontal=True: takes a number, such as 0.5'
  ),
  _FROM_DEFAULT + '  config.model.depth = None\n  return config': (
    'FILE: get_config(): --config.model.depth=None: takes a whole number, '
    'such as 3'
  ),
  _FROM_DEFAULT
  + '  with config.ignore_type(): config.model.depth = "3"\n  return config': (
    "FILE: get_config(): --config.model.depth='3': takes a whole number, "
    'such as 3'
  ),
  _FROM_DEFAULT
  + '  with config.unlocked(): config.model.dept = 3\n  return config': (
    'FILE: get_config(): --config.model.dept: there is no such field (did you '
    'mean model.depth?); unet_jax/config/default.py lists them all'
  ),
  _FROM_DEFAULT
  + '  with config.unlocked(): del config.model.depth\n  return config': (
    f'FILE: get_config(): it has no field model.depth; {_START}'
  ),
  _FROM_DEFAULT
  + '  with config.ignore_type(): config.model = 3\n  return config': (
    'FILE: get_config(): --config.model is a section; set one of its fields: '
    'model.activation'
  ),
  _IMPORT + 'def get_config(): return ml_collections.ConfigDict({"seed": 1})': (
    'FILE: get_config(): it has no field augment.affine.probability'
  ),
  'x = 1': 'FILE: it has no get_config(); configs/ has examples',
  'def get_config(): pass': (
    f'FILE: get_config() returns NoneType, no config; {_START}'
  ),
  'def get_config(): return {"seed": 1}': (
    f'FILE: get_config() returns dict, no config; {_START}'
  ),
  'def get_config(): open("/no/such/file")': (
    'FILE:1: FileNotFoundError: [Errno 2] No such file or directory: '
    "'/no/such/file'"
  ),
  'def get_config(size): pass': (
    '--config=FILE: get_config() missing 1 required positional argument: '
    "'size'; it takes what is behind the colon"
  ),
}


@pytest.mark.parametrize('text', _MISTAKES)
def test_mistakes_in_a_config_file(text, tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(text)
  line = _MISTAKES[text].replace('FILE', str(file))
  # Also where a field is set in what could not be loaded.
  for more in ([], ['--config.seed=2']):
    asked = command_line.parse([f'--config={file}', *more])
    assert message_of(asked.config).startswith(line)


def test_a_config_file_with_other_types(tmp_path):
  file = tmp_path / 'mine.txt'
  file.write_text(
    'import dataclasses, numpy\n'
    '@dataclasses.dataclass\nclass Own:\n  size: int = 32\n'
    + _FROM_DEFAULT
    + '  config.data.image_size = [Own().size, 48]\n'
    '  config.optimizer.learning_rate = 1\n'
    '  with config.ignore_type(): config.model.depth = numpy.int64(2)\n'
    '  return config\n'
  )
  config = command_line.load(str(file))
  assert config.data.image_size == (32, 48)
  assert repr(config.model.depth) == '2'
  assert repr(config.optimizer.learning_rate) == '1.0'
  line = message_of(command_line.load, f'{file}:small')
  assert 'takes 0 positional arguments but 1 was given' in line


def test_references_of_a_config_file_stay(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    _FROM_DEFAULT + '  with config.ignore_type():\n'
    '    config.eval.every = config.train.get_ref("num_steps")\n'
    '  return config\n'
  )
  flags = [f'--config={file}', '--config.train.num_steps=70']
  assert command_line.parse(flags).config().eval.every == 70


def test_bugs_keep_their_trace(tmp_path, monkeypatch):
  def fail(*unused):
    raise KeyError('x')

  file = tmp_path / 'mine.py'
  file.write_text(_FROM_DEFAULT + '  return config')
  monkeypatch.setattr(command_line.values, 'check_all', fail)
  with pytest.raises(KeyError):
    command_line.load(str(file))


def test_the_default_config_is_right():
  command_line.values.check_all(default.get_config())


def test_default_workdir():
  assert command_line.default_workdir('a/b.py') == 'runs/b'
  assert command_line.default_workdir('a/b.py:small') == 'runs/b-small'
