"""Arguments that name nothing, and where recipes are found."""

import pathlib

import pytest

from tests.refusals import cases, message_of
from unet_jax.config import command_line

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
  # A file in the current folder wins.
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/oxford_pets.py').touch()
  assert command_line.resolved([argument]) == [argument]


@pytest.mark.parametrize(
  'source',
  ['from configs import default', 'from configs_of_old import default'],
)
def test_config_of_an_older_version(source, tmp_path):
  file = tmp_path / 'suggested.py'
  file.write_text(source)
  with pytest.raises(ImportError) as e:
    exec(compile(source, file, 'exec'))
  if 'of_old' in source:  # A mistake of another kind.
    with pytest.raises(ModuleNotFoundError, match='configs_of_old'):
      command_line.line_of_flags(e.value)
  else:
    assert command_line.line_of_flags(e.value) == (
      f"{file}: cannot import name 'default' from 'configs'; the default "
      'config is imported by `from unet_jax.config import default`'
    )


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
