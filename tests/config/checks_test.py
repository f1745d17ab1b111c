"""Fields that are read, mistakes that are named, configs that survive JSON."""

import ast
import importlib
import json
import pathlib
import re

import pytest

from configs import (
  folder,
  isbi_2012,
  keras_lesson,
  oxford_pets,
  shapes,
  volumes,
)
from unet_jax.config import checks, command_line, default, fields, saved
from unet_jax.models import unet
from unet_jax.runtime import errors

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_CONFIGS = {
  'default': default.get_config(),
  'folder': folder.get_config(),
  'isbi_2012': isbi_2012.get_config(),
  'isbi_2012:small': isbi_2012.get_config('small'),
  'keras_lesson': keras_lesson.get_config(),
  'keras_lesson:bilinear': keras_lesson.get_config('bilinear'),
  'oxford_pets': oxford_pets.get_config(),
  'oxford_pets:small': oxford_pets.get_config('small'),
  'shapes': shapes.get_config(),
  'volumes': volumes.get_config(),
}
_FIELDS = fields.flatten(default.get_config())


def _error(call, *args):
  with pytest.raises(errors.UserError) as e:
    call(*args)
  assert '\n' not in str(e.value)
  return str(e.value)


def _changed(field, value, config=None):
  config = config or default.get_config()
  config.update_from_flattened_dict({field: value})
  return config


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
    for function in ast.walk(ast.parse(path.read_text())):
      if not isinstance(function, ast.FunctionDef):
        continue
      if path.name == 'config.py' and re.match(
        '_?check|validate', function.name
      ):
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
  # What reads a whole section, and so all of its fields.
  whole = {f'model.{name}' for name in unet.UNet.__dataclass_fields__}
  assert is_read('model.to_dict') and is_read('loss.weights.items')
  whole |= {f for f in _FIELDS if f.startswith('loss.weights.')}
  unread = [f for f in _FIELDS if f not in whole and not is_read(f)]
  assert not unread
  assert not is_read('data.no_such_field')


def test_every_field_of_the_model_section_is_one_of_the_network():
  section = {f.partition('.')[2] for f in _FIELDS if f.startswith('model.')}
  assert section == set(unet.UNet.__dataclass_fields__) - {
    'num_classes',
    'parent',
    'name',
  }


def test_every_checked_field_exists_with_an_allowed_default():
  checked = [
    *fields.CHOICES,
    *fields.AT_LEAST,
    *fields.RANGES,
    *fields.RANDOM_RANGES,
  ]
  assert len(checked) == len(set(checked))
  assert set(checked) <= set(_FIELDS)
  sections = {f.partition('.')[0] for f in _FIELDS}
  for name in (
    *saved.FREE_TO_CHANGE,
    *saved.FIXED_IN_EVALUATION,
  ):
    assert name in _FIELDS or name in sections, name


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


@pytest.mark.parametrize('name', _CONFIGS)
def test_configs_are_valid(name):
  config = _CONFIGS[name].copy_and_resolve_references()
  # There is no default for a folder.
  if config.data.source == 'folder':
    assert _error(checks.validate, config) == (
      'the folder source needs --config.data.dir=DIR, a folder with images/ '
      'and masks/'
    )
    config.data.dir = '/somewhere'
  checks.validate(config)
  assert set(fields.flatten(config)) == set(_FIELDS)


def test_every_config_of_the_project_is_tested():
  stems = {p.stem for p in (_ROOT / 'configs').glob('[a-z]*.py')}
  assert stems == {name.partition(':')[0] for name in _CONFIGS}
  for stem in stems:
    module = importlib.import_module(f'configs.{stem}')
    assert module.__doc__ and '.' in module.__doc__.splitlines()[0]


def test_unknown_upsampling_of_the_lesson():
  with pytest.raises(ValueError) as e:
    keras_lesson.get_config('nearest')
  assert str(e.value) == (
    'configs/keras_lesson.py:nearest: the upsampling is one of transpose, '
    'bilinear'
  )


def test_unknown_size_of_oxford_pets():
  with pytest.raises(ValueError) as e:
    oxford_pets.get_config('tiny')
  assert str(e.value) == (
    'configs/oxford_pets.py:tiny: the size is one of large, small'
  )


@pytest.mark.parametrize('name', _CONFIGS)
def test_json_round_trip(name):
  config = _CONFIGS[name]
  again = saved.from_json(saved.to_json(config))
  assert again.to_dict() == config.to_dict()
  # Lists would be equal to no tuple, and make a module unhashable.
  for field, value in fields.flatten(again).items():
    assert type(value) is type(fields.flatten(config)[field]), field
  assert again.is_locked
  with pytest.raises(AttributeError, match='no_such'):
    again.model.no_such = 1


def test_nested_tuples_survive_json():
  config = _changed('data.mask_values', (((255, 0, 0), 1), (7, 255)))
  again = saved.from_json(saved.to_json(config))
  assert again.data.mask_values == (((255, 0, 0), 1), (7, 255))


def test_read_config_of_a_workdir(tmp_path):
  assert saved.read(str(tmp_path), {}) is None
  path = tmp_path / 'config.json'
  path.write_text(saved.to_json(_CONFIGS['shapes']))
  again = saved.read(str(tmp_path), {'eval.split': 'train'})
  assert again.eval.split == 'train'
  again.eval.split = ''
  assert again.to_dict() == _CONFIGS['shapes'].to_dict()
  path.write_text('{"seed": ')
  message = _error(saved.read, str(tmp_path), {})
  assert message.startswith(f'{path} is not valid JSON (')
  assert message.endswith('; restore it, or give --config')


@pytest.mark.parametrize('field', fields.CHOICES)
def test_choices(field):
  choices = fields.CHOICES[field]
  listed = ', '.join(map(str, choices))
  assert _error(checks.validate, _changed(field, _other(choices))) == (
    f'--config.{field}={_other(choices)}: not one of {listed}'
  )


def _other(choices):
  return 'qqq' if isinstance(choices[0], str) else 77


@pytest.mark.parametrize(
  'field,value,message',
  [
    (
      'model.upsample',
      'bilinar',
      '--config.model.upsample=bilinar: not one of transpose, bilinear, '
      'bilinear_corners, nearest, pixel_shuffle (did you mean bilinear?)',
    ),
    (
      'data.source',
      'shape',
      '--config.data.source=shape: not one of tfds, folder, shapes (did you '
      'mean shapes?)',
    ),
  ],
)
def test_nearest_choice(field, value, message):
  assert _error(checks.validate, _changed(field, value)) == message


@pytest.mark.parametrize('field', fields.AT_LEAST)
def test_lowest_values(field):
  low = fields.AT_LEAST[field]
  value = type(_FIELDS[field])(low - 1)
  assert _error(checks.validate, _changed(field, value)) == (
    f'--config.{field}={value}: must be at least {low}'
  )


@pytest.mark.parametrize('field', fields.RANGES)
def test_ranges(field):
  for value in (-0.1, 1.0, float('nan')):
    assert _error(checks.validate, _changed(field, value)) == (
      f'--config.{field}={value}: must be at least 0.0 and below 1.0'
    )
  checks.validate(_changed(field, 0.0))


@pytest.mark.parametrize('field', fields.RANDOM_RANGES)
def test_ranges_to_draw_from(field):
  least, greatest = fields.RANDOM_RANGES[field]
  for value in ((least - 1.0, greatest), (least, greatest + 1.0)):
    assert _error(checks.validate, _changed(field, value)) == (
      f'--config.{field}={value}: must lie between {least} and {greatest}'
    )
  for value in (
    (greatest, least),
    (),
    (least,),
    (least, least, greatest),
    ('a', greatest),
    (least, float('nan')),
  ):
    assert _error(checks.validate, _changed(field, value)) == (
      f'--config.{field}={value}: takes two numbers, the lower one first, '
      f'such as {least},{greatest}'
    )
  checks.validate(_changed(field, (least, greatest)))
  checks.validate(_changed(field, (greatest, greatest)))


@pytest.mark.parametrize(
  'values,message',
  [
    (
      {'augment.flip_vertical': 1.5},
      '--config.augment.flip_vertical=1.5: a probability is between 0 and 1',
    ),
    (
      {'augment.flip_horizontal': -0.5},
      '--config.augment.flip_horizontal=-0.5: a probability is between 0 and 1',
    ),
    (
      {'augment.rotate_90': float('nan')},
      '--config.augment.rotate_90=nan: a probability is between 0 and 1',
    ),
    (
      {'augment.elastic.probability': 2.0},
      '--config.augment.elastic.probability=2.0: a probability is between 0 '
      'and 1',
    ),
    (
      {'augment.rotate_90': 0.5, 'data.image_size': (64, 48)},
      '--config.augment.rotate_90=0.5 needs a square data.image_size, not '
      '(64, 48); flip_horizontal with flip_vertical gives half turns',
    ),
    (
      {
        'augment.hue.probability': 0.25,
        'data.num_channels': 1,
        'data.mean': (0,),
        'data.std': (1,),
      },
      '--config.augment.hue.probability=0.25: grey images (data.num_channels=1)'
      ' have no hue; set it to 0',
    ),
    (
      {
        'augment.saturation.probability': 1.0,
        'data.num_channels': 1,
        'data.mean': (0,),
        'data.std': (1,),
      },
      '--config.augment.saturation.probability=1.0: grey images '
      '(data.num_channels=1) have no saturation; set it to 0',
    ),
    (
      {'mesh.data': 0},
      '--config.mesh.data=0: takes a number of devices, or -1 for all',
    ),
    (
      {'data.image_size': (16, 16, 16)},
      '--config.data.image_size=(16, 16, 16): takes 2 values (height, width), '
      'not 3',
    ),
    (
      {'data.image_size': (16, 0)},
      '--config.data.image_size=(16, 0): takes two numbers of pixels, at least '
      '1 each',
    ),
    (
      {'data.image_size': (16.5, 16)},
      '--config.data.image_size=(16.5, 16): takes two numbers of pixels, at '
      'least 1 each',
    ),
    (
      {'data.num_channels': 1},
      '--config.data.mean=(0.5, 0.5, 0.5): takes 1 values '
      '(data.num_channels), not 3',
    ),
    (
      {'data.mean': ('a', 'b', 'c')},
      "--config.data.mean=('a', 'b', 'c'): takes numbers",
    ),
    (
      {'data.std': (0.5, 0.5)},
      '--config.data.std=(0.5, 0.5): takes 3 values (data.num_channels), not 2',
    ),
    (
      {'data.std': (0.5, 0.0, 0.5)},
      '--config.data.std=(0.5, 0.0, 0.5): must be above 0',
    ),
    (
      {'data.class_names': ('a', 'b')},
      "--config.data.class_names=('a', 'b'): takes 4 values (the classes), not "
      '2',
    ),
    (
      {'data.class_names': ('a', 'b', 'c', 'a')},
      "--config.data.class_names=('a', 'b', 'c', 'a'): takes a different name "
      'for each class; write \'("cat","dog")\'',
    ),
    (
      {'data.class_names': (0, 1, 2, 3)},
      '--config.data.class_names=(0, 1, 2, 3): takes a different name for each '
      'class; write \'("cat","dog")\'',
    ),
    (
      {'data.num_classes': 1, 'loss.class_weights': (1.0,)},
      '--config.loss.class_weights=(1.0,): takes 2 values (the classes), not 1',
    ),
    (
      {'loss.class_weights': (1, 1, -1, 1)},
      '--config.loss.class_weights=(1, 1, -1, 1): must be at least 0, and not '
      'all 0',
    ),
    (
      {'loss.class_weights': (0, 0, 0, 0)},
      '--config.loss.class_weights=(0, 0, 0, 0): must be at least 0, and not '
      'all 0',
    ),
    (
      {'data.mask_values': (0, 1)},
      '--config.data.mask_values: 0 is not a pair (value, class); write '
      "'((0,0),(255,1))'",
    ),
    (
      {'data.mask_values': ((0, 'a'),)},
      "--config.data.mask_values: (0, 'a') is not a pair (value, class); write "
      "'((0,0),(255,1))'",
    ),
    (
      {'data.mask_values': (((0, 0), 1),)},
      '--config.data.mask_values: ((0, 0), 1) is not a pair (value, class); '
      "write '((0,0),(255,1))'",
    ),
    (
      {'data.mask_values': ((0, 0), (255, 4))},
      '--config.data.mask_values: (255, 4) maps to class 4; with '
      'data.num_classes=4 the classes are 0 to 3, or 255 to ignore',
    ),
    (
      {'data.num_classes': 1, 'data.mask_values': ((0, 0), (255, 2))},
      '--config.data.mask_values: (255, 2) maps to class 2; with '
      'data.num_classes=1 the classes are 0 to 1, or 255 to ignore',
    ),
    (
      {'eval.foreground': ('clas_1',)},
      "--config.eval.foreground: no class is named 'clas_1' (did you mean "
      'class_1?); the classes are class_0, class_1, class_2, class_3',
    ),
    (
      {'eval.instances': 'cell'},
      "--config.eval.instances: no class is named 'cell'; the classes are "
      'class_0, class_1, class_2, class_3',
    ),
    (
      {'data.num_classes': 256},
      '--config.data.num_classes=256: at most 255, masks are 8 bit',
    ),
    (
      {'loss.weights.cross_entropy': 0.0},
      'config.loss.weights: all are 0; set one, for instance '
      '--config.loss.weights.cross_entropy=1',
    ),
    (
      {'model.features': (8, 16)},
      '--config.model.features=(8, 16): takes 4 numbers of channels '
      '(model.depth=3 and the bottleneck), at least 1 each',
    ),
    (
      {'model.features': (8, 16, 0, 8)},
      '--config.model.features=(8, 16, 0, 8): takes 4 numbers of channels '
      '(model.depth=3 and the bottleneck), at least 1 each',
    ),
    (
      {'model.upsample': 'pixel_shuffle', 'model.features': (3, 8, 6, 8)},
      '--config.model.upsample=pixel_shuffle makes 4 pixels of the channels of '
      'one: those of all stages but the first, (8, 6, 8), must be multiples of '
      '4; set model.features or base_features',
    ),
    (
      {'model.upsample': 'bilinear_corners', 'model.padding': 'valid'},
      '--config.model.upsample=bilinear_corners: where its pixels lie depends '
      'on the size of the image, which model.padding=valid is to do without; '
      'use bilinear',
    ),
    (
      {
        'model.upsample': 'nearest',
        'model.upsample_kernel': 2,
        'model.padding': 'valid',
      },
      '--config.model.upsample_kernel=2 needs model.padding=same: without '
      'padding, an even kernel moves the image by half a pixel; use 1 or 3',
    ),
    (
      {'model.dropout_stages': 5},
      '--config.model.dropout_stages=5: the encoder has 4 (model.depth=3 and '
      'the bottleneck)',
    ),
    (
      {'model.kernel_size': 4},
      '--config.model.kernel_size=4: must be odd, so that a convolution has a '
      'middle',
    ),
    (
      {'model.squeeze_excite': 17},
      '--config.model.squeeze_excite=17 leaves nothing of the 16 channels of a '
      'stage; at most 16',
    ),
    (
      {'model.skip': 'attention', 'model.depth': 1},
      '--config.model.skip=attention: at model.depth=1 there is no gate, since '
      'the first stage has none; use concat, or a depth of 2',
    ),
    (
      {'model.deep_supervision': (0.5, 0.0)},
      '--config.model.deep_supervision=(0.5, 0.0): takes weights above 0',
    ),
    (
      {'model.deep_supervision': (0.5, 0.25, 0.1)},
      '--config.model.deep_supervision=(0.5, 0.25, 0.1): takes a weight for '
      'each decoder stage but the first, at most 2 at model.depth=3',
    ),
    (
      {'model.deep_supervision': (0.5,), 'model.depth': 0},
      '--config.model.deep_supervision=(0.5,): takes a weight for each decoder '
      'stage but the first, at most 0 at model.depth=0',
    ),
    (
      {'model.deep_supervision': (0.5,), 'model.padding': 'valid'},
      '--config.model.deep_supervision=(0.5,) needs model.padding=same: with '
      'valid, the coarser logits cover more than the mask that is used',
    ),
    (
      {'data.on_error': 'skip', 'data.cache': 'none'},
      '--config.data.on_error=skip needs --config.data.cache=disk or memory: '
      'with none, files are first opened in the middle of training',
    ),
    (
      {'optimizer.accumulate_steps': 3},
      '--config.data.batch_size=16 cannot be run in optimizer.accumulate_steps'
      '=3 equal parts; choose a multiple',
    ),
    (
      {'loss.border_sigma': 0.0},
      '--config.loss.border_sigma=0.0: must be above 0 pixels',
    ),
    (
      {
        'loss.balance': 'image',
        'loss.weights.cross_entropy': 0.0,
        'loss.weights.dice': 1.0,
      },
      '--config.loss.balance=image weighs the cross-entropy, which is left out '
      '(loss.weights.cross_entropy=0); set one of the two',
    ),
    (
      {'data.instance_key': 'panoptic'},
      '--config.data.instance_key=panoptic names a feature of the tfds source, '
      'not of shapes; the folder source takes instances/ beside masks/',
    ),
    (
      {'data.foreground_fraction': 1.5},
      '--config.data.foreground_fraction=1.5: a fraction is between 0 and 1',
    ),
    (
      {'data.sample_classes': ('clas_1',), 'data.resize': 'patch'},
      "--config.data.sample_classes: no class is named 'clas_1' (did you mean "
      'class_1?); the classes are class_0, class_1, class_2, class_3',
    ),
    (
      {'data.sample_classes': ('class_1',)},
      "--config.data.sample_classes=('class_1',) chooses windows of images, "
      'which data.resize=stretch does not draw; set --config.data.resize=patch',
    ),
    (
      {'data.resize': 'patch', 'data.cache': 'none'},
      '--config.data.resize=patch needs --config.data.cache=disk or memory: '
      'with none, the sizes of the images and the places of their classes are '
      'not known',
    ),
    (
      {'data.source': 'folder'},
      'the folder source needs --config.data.dir=DIR, a folder with images/ '
      'and masks/',
    ),
    (
      {'data.num_folds': 1},
      '--config.data.num_folds=1 leaves nothing to train on; take 2 or more, '
      'or 0 for no folds',
    ),
    (
      {'data.num_folds': 5, 'data.fold': 5},
      '--config.data.fold=5: with data.num_folds=5 the folds are 0 to 4',
    ),
    (
      {'data.fold': 1},
      '--config.data.fold=1: with data.num_folds=0 there are no folds; set '
      'data.num_folds',
    ),
  ],
)
def test_values_that_cannot_be_used(values, message):
  config = default.get_config()
  for field, value in values.items():
    # Locked types: integers where the default is a float, and so on.
    with config.ignore_type():
      config.update_from_flattened_dict({field: value})
  assert _error(checks.validate, config) == message


@pytest.mark.parametrize(
  'values',
  [
    {'data.mask_values': (((255, 0, 0), 1), (7, 255))},
    {
      'data.num_classes': 1,
      'data.class_names': ('ground', 'cell'),
      'loss.class_weights': (1, 2.5),
      'eval.foreground': ('cell',),
      'eval.instances': 'cell',
    },
    {'data.num_channels': 1, 'data.mean': (0,), 'data.std': (1,)},
    {'optimizer.accumulate_steps': 4, 'mesh.data': 2},
    {
      'augment.flip_vertical': 1.0,
      'augment.affine.rotation': (-180, 180),
      'data.image_size': (64, 48),
    },
    {
      'data.resize': 'patch',
      'data.sample_classes': ('class_3',),
      'data.foreground_fraction': 1.0,
      'loss.weight_map': 'border',
    },
    {'data.num_folds': 2, 'data.fold': 1, 'data.eval_split': 'test'},
  ],
)
def test_values_that_can_be_used(values):
  config = default.get_config()
  config.update_from_flattened_dict(values)
  checks.validate(config)


def test_cross_validation_needs_folds_to_evaluate_on():
  config = default.get_config()
  check = lambda: checks.validate(config, 'cross_validate')
  assert _error(check) == (
    '--mode=cross_validate needs the number of folds, for instance '
    '--config.data.num_folds=5'
  )
  config.data.num_folds = 5
  check()
  config.data.eval_split = 'test'
  assert _error(check) == (
    '--config.data.eval_split=test: --mode=cross_validate evaluates each run '
    'on its fold; set --config.data.eval_split=auto'
  )


@pytest.mark.parametrize(
  'argument,message',
  [
    (
      '--config.model.dept=3',
      '--config.model.dept: there is no such field (did you mean '
      'model.depth?); unet_jax/config/default.py lists them all',
    ),
    (
      '--config.qqqqqq=3',
      '--config.qqqqqq: there is no such field; unet_jax/config/default.py '
      'lists them all',
    ),
    (
      '--config.mesh=3',
      '--config.mesh is a section; set one of its fields: mesh.data, '
      'mesh.fsdp, mesh.spatial',
    ),
    (
      '-config.model.depth=two',
      '--config.model.depth=two: takes a whole number, such as 3',
    ),
    (
      '--config.model.depth=2.5',
      '--config.model.depth=2.5: takes a whole number, such as 3',
    ),
    (
      '--config.optimizer.learning_rate=big',
      '--config.optimizer.learning_rate=big: takes a number, such as 0.002',
    ),
    (
      '--config.model.remat=maybe',
      '--config.model.remat=maybe: takes True or False',
    ),
    (
      '--config=configs/shape.py',
      '--config=configs/shape.py: no such file (did you mean shapes?); '
      'configs/ has default, folder, isbi_2012, keras_lesson, oxford_pets, '
      'shapes, volumes',
    ),
    (
      '--config=qqq.py:small',
      '--config=qqq.py:small: no such file; configs/ has default, folder, '
      'isbi_2012, keras_lesson, oxford_pets, shapes, volumes',
    ),
  ],
)
def test_arguments_that_name_nothing(argument, message):
  check = lambda: command_line.check_arguments([argument], _ROOT / 'configs')
  assert _error(check) == message


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
  command_line.check_arguments(arguments, _ROOT / 'configs')


def test_class_names():
  config = default.get_config()
  assert fields.class_names(config) == (
    'class_0',
    'class_1',
    'class_2',
    'class_3',
  )
  config.data.num_classes = 1
  assert fields.class_names(config) == ('background', 'foreground')
  config.data.class_names = ('sky', 'bird')
  assert fields.class_names(config) == ('sky', 'bird')


def test_cache_dir(monkeypatch):
  config = default.get_config()
  monkeypatch.setenv('HOME', '/home/ada')
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  assert fields.cache_dir(config) == '/home/ada/.cache/unet_jax'
  monkeypatch.setenv('XDG_CACHE_HOME', '/cache')
  assert fields.cache_dir(config) == '/cache/unet_jax'
  config.data.cache_dir = '~/mine'
  assert fields.cache_dir(config) == '/home/ada/mine'


def _value_unlike(value):
  if isinstance(value, bool):
    return not value
  if isinstance(value, int | float):
    return value + 1
  return (*value, 1) if isinstance(value, tuple) else value + 'x'


@pytest.mark.parametrize('field', _FIELDS)
def test_continued_run_may_change_the_free_fields_alone(field):
  old = default.get_config()
  value = _value_unlike(_FIELDS[field])
  new = _changed(field, value)
  free = field.partition('.')[0] in (
    'log',
    'eval',
    'inference',
    'inspect',
    'predict',
    'checkpoint',
    'summary',
    'mesh',
    'import_',
    'export',
  ) or field in (
    'data.check',
    'data.suggest',
    'data.cache',
    'data.cache_dir',
    'data.num_workers',
    'model.remat',
    'train.num_steps',
  )
  check = lambda: saved.check_resumable(old, new, 'runs/a')
  if free:
    check()
  else:
    assert _error(check) == (
      'runs/a holds checkpoints of another config: '
      f'{field} was {_FIELDS[field]!r}, now {value!r}. Choose another '
      '--workdir, or undo the change'
    )


def test_all_differences_are_named():
  new = default.get_config()
  new.update_from_flattened_dict({'model.depth': 2, 'data.batch_size': 4})
  check = lambda: saved.check_resumable(default.get_config(), new, 'w')
  assert _error(check) == (
    'w holds checkpoints of another config: data.batch_size was 16, now 4; '
    'model.depth was 3, now 2. Choose another --workdir, or undo the change'
  )


def test_field_that_an_older_workdir_did_not_have_has_its_default():
  old = json.loads(saved.to_json(default.get_config()))
  del old['model']['skip']
  old = saved.from_json(json.dumps(old))
  saved.check_resumable(old, default.get_config(), 'w')
  assert old.model.skip == 'concat'


def test_field_that_is_not_there_any_more_is_named():
  old = json.loads(saved.to_json(default.get_config()))
  old['model']['dilation'] = 2
  assert _error(saved.from_json, json.dumps(old)) == (
    'the saved config has the field model.dilation, which this version does '
    'not know; use the version that it was made with'
  )


@pytest.mark.parametrize('base,largest', [(3, 1024), (4, 30)])
def test_pixel_shuffle_needs_multiples_of_four(base, largest):
  config = default.get_config()
  config.model.update(
    upsample='pixel_shuffle', base_features=base, max_features=largest
  )
  assert 'must be multiples of 4' in _error(checks.validate, config)


def test_steps_may_not_shrink():
  new = _changed('train.num_steps', 399)
  check = lambda: saved.check_resumable(default.get_config(), new, 'w')
  assert _error(check) == (
    'w was started with train.num_steps=400, which may grow but not shrink to '
    '399. Choose another --workdir, or undo the change'
  )


@pytest.mark.parametrize('field', _FIELDS)
def test_evaluation_may_change_what_is_not_the_network(field):
  value = _value_unlike(_FIELDS[field])
  new = _changed(field, value)
  fixed = (
    'data.num_channels',
    'data.num_classes',
    'data.mean',
    'data.std',
  )
  is_network = field.startswith('model.') and field != 'model.remat'
  check = lambda: saved.check_evaluable(default.get_config(), new, 'w')
  if is_network or field in fixed:
    assert _error(check) == (
      'w holds checkpoints of another network: '
      f'{field} was {_FIELDS[field]!r}, now {value!r}. Leave --config out to '
      'evaluate with the config of the workdir'
    )
  else:
    check()
