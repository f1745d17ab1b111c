"""Arguments that name nothing, and where recipes are found."""

import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from tests.refusals import cases, message_of
from unet_jax.config import command_line

pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Arguments, and the message of each.
_REFUSED = """\
--config.model.dept=3
  --config.model.dept: there is no such field (did you mean model.depth?);
  unet_jax/config/default.py lists them all
--config.qqqqqq=3
  --config.qqqqqq: there is no such field; unet_jax/config/default.py lists
  them all
--config.mesh=3
  --config.mesh is a section; set one of its fields: mesh.data, mesh.fsdp,
  mesh.spatial
-config.model.depth=two
  --config.model.depth=two: takes a whole number, such as 3
--config.model.depth=2.5
  --config.model.depth=2.5: takes a whole number, such as 3
--config.optimizer.learning_rate=big
  --config.optimizer.learning_rate=big: takes a number, such as 0.002
--config.model.remat=maybe
  --config.model.remat=maybe: takes True or False
--config=configs/shape.py
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
--config.import_.concat=x
  --config.import_.concat is now --config.weights.concat
--config.log.num_figures=0
  --config.log.num_figures is now --config.log.num_examples
"""


@pytest.mark.parametrize('argument,message', cases(_REFUSED))
def test_arguments_that_name_nothing(argument, message):
  assert message_of(command_line.resolved, [argument]) == message


def test_config_comes_before_its_fields():
  arguments = ['--config.model.depth=2', '--config=configs/shapes.py']
  assert message_of(command_line.resolved, arguments) == (
    '--config=configs/shapes.py comes after --config.model.depth=2; put it '
    'first'
  )


def test_arguments_that_are_right():
  arguments = [
    f'--config={_ROOT}/configs/oxford_pets.py:small',
    '--config.model.depth=2',
    '--config.model.depth',
    '--config.model.remat=true',
    '--config.model.remat',
    '--config.optimizer.learning_rate=1e-3',
    '--config.data.image_size=16,16',
    '--mode=evaluate',
    'model.dept',
  ]
  assert command_line.resolved(arguments) == arguments


def test_recipes_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  argument = '--config=configs/oxford_pets.py:small'
  assert command_line.resolved([argument]) == [
    f'--config={_ROOT}/configs/oxford_pets.py:small'
  ]
  assert command_line.resolved(['--config', 'configs/shapes.py']) == [
    f'--config={_ROOT}/configs/shapes.py'
  ]
  # A file in the current folder wins.
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/oxford_pets.py').touch()
  assert command_line.resolved([argument]) == [argument]


_FROM_DEFAULT = """from unet_jax.config import default
def get_config():
  config = default.get_config()
"""
_GOOD = _FROM_DEFAULT + '  return config'
# Text of a config file, and what follows `FILE` in its one line.
_MISTAKES = {
  'from configs import default': (
    ":1: cannot import name 'default' from 'configs'; the default config is "
    'imported by `from unet_jax.config import default`'
  ),
  'from configs_of_old import default': (
    ":1: ModuleNotFoundError: No module named 'configs_of_old'"
  ),
  'x = 1\ndef get_config(:': ':2: SyntaxError: invalid syntax',
  'hello': ":1: NameError: name 'hello' is not defined",
  _FROM_DEFAULT + "  config.import_.path = 'x'": (
    ':4: AttributeError: "\'import_\'"; config.import_ is now config.weights'
  ),
}


def _load(file, *fields):
  sys.modules.pop('config_config', None)  # Where config_flags keeps the last.
  argv = ['main.py', f'--config={file}', *fields]
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    'config', flag_values=values, sys_argv=argv
  )
  values(argv)
  command_line.check_config(holder.value)


def _line(file, *fields):
  with pytest.raises(Exception) as e:  # noqa: PT011
    _load(file, *fields)
  line = command_line.line_of_flags(e.value)
  assert '\n' not in line
  return line


@pytest.mark.parametrize('text', _MISTAKES)
def test_mistakes_in_a_config_file(text, tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(text)
  assert _line(file) == f'{file}{_MISTAKES[text]}'


def test_a_renamed_field_in_a_config_file(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(_FROM_DEFAULT + '  config.log.num_figures = 3')
  line = _line(file)
  assert line.startswith(f'{file}:4: AttributeError: ')
  assert line.endswith(
    '; config.log.num_figures is now config.log.num_examples'
  )


def test_files_that_give_no_config(tmp_path):
  start = 'start from default.get_config() of unet_jax.config'
  for i, (text, line) in enumerate(
    {
      'x = 1': '--config: the file has no get_config(); configs/ has examples',
      'def get_config(): pass': (
        f'get_config() of --config returns NoneType, no config; {start}'
      ),
      'def get_config(): return {"seed": 1}': (
        f'get_config() of --config returns dict, no config; {start}'
      ),
      'import ml_collections\n'
      'def get_config(): return ml_collections.ConfigDict({"seed": 1})': (
        'get_config() of --config returns no field '
        f'augment.affine.probability; {start}'
      ),
      'def get_config(): open("/no/such/file")': (
        "--config: [Errno 2] No such file or directory: '/no/such/file'"
      ),
    }.items()
  ):
    file = tmp_path / f'mine_{i}.py'
    file.write_text(text)
    assert _line(file) == line
  # Also where a field is set in what could not be loaded.
  assert _line(file, '--config.seed=2') == line
  good = tmp_path / 'good.py'
  good.write_text(_GOOD)
  _load(good)


def test_bugs_keep_their_trace():
  with pytest.raises(KeyError):
    command_line.line_of_flags(KeyError('x'))


def test_versions_of_python():
  for minor in range(11, 15):
    command_line.check_python((3, minor))
  assert message_of(command_line.check_python, (3, 15)) == (
    'Python 3.15: ml-collections 1.1.0 cannot load config files there; use '
    'Python 3.11 to 3.14'
  )


def test_default_workdir():
  assert command_line.default_workdir('a/b.py') == 'runs/b'
  assert command_line.default_workdir('a/b.py:small') == 'runs/b-small'
