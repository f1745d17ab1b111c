"""Sweep files: points, names, what is refused."""

import dataclasses
import json
import pathlib
import textwrap
import time

import pytest

from experiments.sweep import folder as folders
from experiments.sweep import points, sweep_file
from unet_jax.runtime import errors

_ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def write(tmp_path):
  """A function that writes a sweep file and returns its name."""

  def write(text):
    path = tmp_path / 'sweep.py'
    path.write_text(textwrap.dedent(text))
    return str(path)

  return write


_TWO = """
def sweep():
  for depth in (1, 2):
    yield {'model.depth': depth, 'seed': 0}
"""


def _refused(*args, **kwargs) -> str:
  with pytest.raises(errors.UserError) as e:
    sweep_file.load(*args, **kwargs)
  return str(e.value)


def test_points_are_named_by_what_differs(write):
  sweep = sweep_file.load(write('"""Is deeper better?"""' + _TWO))
  assert sweep.question == 'Is deeper better?'
  assert [p.name for p in sweep.points] == ['depth=1,seed=0', 'depth=2,seed=0']
  assert [p.variant for p in sweep.points] == ['depth=1', 'depth=2']
  assert sweep.points[1].without_seed == {'model.depth': 2}
  assert sweep.fields == ['model.depth', 'seed']
  assert sweep.variants == [[point] for point in sweep.points]


def test_names_are_as_long_as_tells_them_apart():
  assert points.short_names(
    ['augment.blur.probability', 'augment.hue.probability', 'model.depth']
  ) == {
    'augment.blur.probability': 'blur.probability',
    'augment.hue.probability': 'hue.probability',
    'model.depth': 'depth',
  }


def test_names_are_safe_for_file_systems():
  words = {
    (48, 64): '48x64',
    (): 'none',
    1e-3: '0.001',
    'a b/ä:c': 'a-b---c',
    True: 'True',
  }
  for value, word in words.items():
    assert points.point_name({'f': value}, {'f': 'f'}) == f'f={word}'


def test_long_names_are_cut_and_stay_apart():
  cut = {points.point_name({'f': 'x' * 300 + end}, {'f': 'f'}) for end in 'ab'}
  assert len(cut) == 2 and max(map(len, cut)) < 200


def test_values_reach_the_config_as_they_are(write):
  sweep = sweep_file.load(
    write("""
      BASE = 'configs/oxford_pets.py:small'
      OVERRIDES = {'data.image_size': (32, 48), 'data.check': False}
      def sweep():
        yield {'model.features': (4, 8), 'model.depth': 1, 'seed': 3}
      """),
    ('--config.train.num_steps=7', '--config.eval.foreground=("pet",)'),
  )
  assert sweep.config.data.image_size == (32, 48)
  assert sweep.config.train.num_steps == 7
  (point,) = sweep.points
  config = points.resolve(sweep.main_arguments(point.overrides))
  assert config.model.features == (4, 8) and config.seed == 3
  assert config.data.check is False
  assert config.eval.foreground == ('pet',)
  # What the base has, and what every point is named by.
  assert config.data.batch_size == 16
  assert point.name == 'features=4x8,depth=1,seed=3'


def test_numpy_values_are_taken_as_python_values(write):
  sweep = sweep_file.load(
    write("""
      import numpy as np
      OVERRIDES = {'train.num_steps': np.int64(9)}
      TUNE = {'optimizer.learning_rate': np.array([0.5, 1.0])}
      def sweep():
        for depth in np.arange(2):
          yield {'model.depth': depth, 'data.image_size': (np.int32(8),) * 2}
          yield {'model.depth': depth, 'data.image_size': np.array([4, 8])}
      """)
  )
  assert [p.name for p in sweep.points] == [
    'depth=0,image_size=8x8',
    'depth=0,image_size=4x8',
    'depth=1,image_size=8x8',
    'depth=1,image_size=4x8',
  ]
  assert sweep.main_arguments(sweep.points[3].overrides)[1:] == [
    '--config.train.num_steps=9',
    '--config.model.depth=1',
    '--config.data.image_size=(4, 8)',
  ]
  assert repr(sweep.tune.values) == '(0.5, 1.0)'
  # What sweep.json takes.
  assert json.dumps(dataclasses.asdict(sweep.tune))


def test_sizes_replace_constants(write):
  name = write(
    "TUNE = None\nSIZES = {'cpu': {'OVERRIDES': {'train.num_steps': 9}, "
    "'TUNE': {'optimizer.learning_rate': (1.0,), 'steps': 5}}}" + _TWO
  )
  assert sweep_file.load(name).tune is None
  sweep = sweep_file.load(f'{name}:cpu')
  assert sweep.config.train.num_steps == 9
  assert sweep.tune == points.Tune(
    'optimizer.learning_rate', (1.0,), steps=5, seed=1000, num_folds=5
  )
  assert sweep_file.load(f'{name}:cpu', no_tune=True).tune is None
  assert _refused(f'{name}:gpu') == f'{name}:gpu: it has the sizes cpu'


_MISTAKES = {
  "yield {'model.dept': 1}": (
    '--config.model.dept: there is no such field (did you mean model.depth?); '
    'unet_jax/config/default.py lists them all'
  ),
  'return []': 'sweep() yields no point',
  "yield from [{'seed': 0}] * 2": 'sweep() yields seed=0 twice',
  "yield {'seed': 1000}": 'seed 1000 is that of the tuning; choose others',
  "yield {'optimizer.learning_rate': 1e-3}": (
    'sweep() yields optimizer.learning_rate, which is tuned; set TUNE = '
    'None, or give --no_tune'
  ),
  "TUNE = {'stesp': 1}": (
    "TUNE has 'stesp'; it takes one field, such as "
    'optimizer.learning_rate, and steps, seed, num_folds'
  ),
  "TUNE = {'optimizer.eps': 1e-8}": (
    "TUNE has 'optimizer.eps': 1e-08; it takes the values to try, such as "
    '(0.001, 0.002, 0.004, 0.008)'
  ),
  'TUNE = ()': 'TUNE is (); it takes a dict, such as {}, or None',
  'BASE = 3': "BASE is 3; it takes a str, such as 'configs/shapes.py'",
  'SIZES = ()': 'SIZES is (); it takes a dict, such as {}',
  "BUDGET = 'time'": "BUDGET is one of steps, flops, not 'time'",
  "BUDGET = 'flops'\nyield {'train.num_steps': 5}": (
    "train.num_steps follows from BUDGET = 'flops'; remove it from sweep(), "
    "or set BUDGET = 'steps'"
  ),
  "OVERRIDES = {'data.num_folds': 4}": (
    'the tuning holds a fold out of data.train_split; with data.num_folds '
    'set, give --no_tune'
  ),
  "BASE = 'configs/volumes.py'": (
    'volumes (model.spatial_dims=3) have no metrics of each example yet, '
    'which a sweep compares; train them one by one with main.py'
  ),
  # Of the second variant.
  "yield from [{'seed': 0}, {'model.norm': 'bach'}]": (
    'norm=bach: --config.model.norm=bach: not one of none, batch, group, '
    'instance, layer (did you mean batch?)'
  ),
  "yield {'model.depth': 'x'}": (
    "--config.model.depth='x': takes a whole number, such as 3"
  ),
  "OVERRIDES = {'data.image_size': (16, 16)}\nyield {'model.depth': 5}": (
    'depth=5: an image of 16 x 16 pixels cannot be halved 5 times '
    '(model.depth=5); use at least 32 pixels or a smaller depth'
  ),
  "TUNE = {'optimizer.learning_rate': (0.1, 'x')}": (
    "--config.optimizer.learning_rate='x': takes a number, such as 0.002"
  ),
  "TUNE = {'num_folds': 1}": (
    'TUNE: --config.data.num_folds=1 leaves nothing to train on; take 2 or '
    'more, or 0 for no folds'
  ),
  "OVERIDES = {'train.num_steps': 9}": (
    'did you mean OVERRIDES by OVERIDES? Else choose another name'
  ),
  "SIZES = {'cpu': {'OVERIDES': {}}}": (
    "SIZES['cpu'] has 'OVERIDES' (did you mean OVERRIDES?); it takes BASE, "
    'OVERRIDES, TUNE, BUDGET'
  ),
  'return [1]': (
    "sweep() yields 1; it takes a dict of overrides, {'model.depth': 2}"
  ),
}


@pytest.mark.parametrize('text, message', _MISTAKES.items())
def test_mistakes_in_a_sweep_file(write, text, message):
  *constants, body = text.split('\n')
  if not body.startswith(('yield', 'return')):
    constants, body = [body], "yield {'seed': 0}"
  name = write('\n'.join([*constants, 'def sweep():', f'  {body}']))
  assert _refused(name) == f'{name}: {message}'


def test_a_file_may_have_constants_of_its_own(write):
  own = 'REDUCED = {}\nSEEDS = DEPTHS = SIDES = BASELINE = (1, 2)\n'
  assert len(sweep_file.load(write(own + _TWO)).points) == 2


def test_twenty_variants_are_checked_quickly():
  """0.2 s on two cores, once jax is imported; ten times that is too much."""
  name = f'{_ROOT}/experiments/upsampling_depth/sweep.py'
  sweep_file.load(name)
  start = time.process_time()
  sweep_file.load(name)
  assert time.process_time() - start < 2


@pytest.mark.parametrize(
  'text, message',
  [
    (
      'def sweep():\n  yeild 1',
      'SyntaxError: invalid syntax (sweep.py, line 2)',
    ),
    ('def sweep():\n  yield x', "NameError: name 'x' is not defined"),
    ('import json\njson.loads("")', 'JSONDecodeError: Expecting value'),
  ],
)
def test_errors_of_a_sweep_file_s_code(write, text, message):
  name = write(text)
  assert _refused(name).startswith(f'{name}:2: {message}')


def test_the_last_value_of_a_tuple_counts(write):
  name = write("""
    OVERRIDES = {'data.image_size': (64, 64), 'model.deep_supervision': (0.5,)}
    def sweep():
      yield {'model.deep_supervision': (0.4,)}
      yield {'model.deep_supervision': (0.3,)}
  """)
  sweep = sweep_file.load(name, ('--config.data.image_size=32,32',))
  for point, weight in zip(sweep.points, (0.4, 0.3)):
    config = points.resolve(sweep.main_arguments(point.overrides))
    assert config.data.image_size == (32, 32)
    assert config.model.deep_supervision == (weight,)


def test_mistakes_on_the_command_line(write, tmp_path):
  assert _refused(f'{tmp_path}/no.py') == (
    f'{tmp_path}/no.py: no such sweep file; for instance '
    'experiments/upsampling_depth/sweep.py'
  )
  assert _refused(write(_TWO), ('--config.model.depht=2',)) == (
    '--config.model.depht: there is no such field (did you mean model.depth?); '
    'unet_jax/config/default.py lists them all'
  )
  changes = ('--config.model.upsample=no',)
  assert 'not one of transpose' in _refused(write(_TWO), changes)


def test_a_sweep_with_another_base_is_refused(write, tmp_path):
  name, folder = write(_TWO), tmp_path / 'out'
  folders.begin(sweep_file.load(name), folder)
  # Neither a folder for caches nor a further point changes a metric.
  write(_TWO.replace('(1, 2)', '(1, 2, 3)'))
  folders.begin(sweep_file.load(name, ('--config.data.cache_dir=x',)), folder)
  changes = ('--config.model.norm=none', '--config.eval.band=2')
  changed = "eval.band was 3.0, now 2.0; model.norm was 'batch', now 'none'"
  for other, difference in (
    (sweep_file.load(name, changes), changed),
    (sweep_file.load(name, budget='flops'), "BUDGET was 'steps', now 'flops'"),
  ):
    with pytest.raises(errors.UserError) as e:
      folders.begin(other, folder)
    assert str(e.value) == (
      f'{folder} holds a sweep with another base: {difference}. Choose '
      'another --workdir, or undo the change'
    )


@pytest.mark.parametrize(
  'folder, count, first',
  [
    ('upsampling_depth', 60, 'upsample=transpose,depth=1,seed=0'),
    ('skips', 12, 'skip=concat,seed=0'),
    ('norms', 15, 'norm=none,seed=0'),
    ('losses', 9, 'cross_entropy=1.0,dice=0.0,seed=0'),
    ('widths', 15, 'base_features=4,seed=0'),
  ],
)
@pytest.mark.parametrize('size', ['', ':cpu'])
def test_sweeps_of_the_project(folder, count, first, size):
  name = f'{_ROOT}/experiments/{folder}/sweep.py{size}'
  # Raises UserError where a point could not be trained.
  sweep = sweep_file.load(name)
  assert len(sweep.points) == count and sweep.points[0].name == first
  assert sweep.question.endswith('?')
