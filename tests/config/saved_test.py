"""Configs survive JSON, also of older versions; what a later run may change."""

import json

import pytest

from tests.config import recipes
from tests.refusals import message_of
from unet_jax.config import default, fields, saved

_FIELDS = fields.flatten(default.get_config())


def _changed(**values):
  config = default.get_config()
  config.update_from_flattened_dict(values)
  return config


_NESTED = _changed(**{'data.mask_values': (((255, 0, 0), 1), (7, 255))})
_CONFIGS = {**recipes.CONFIGS, 'nested tuples': _NESTED}


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


def test_read_config_of_a_workdir(tmp_path):
  shapes = recipes.CONFIGS['shapes']
  assert saved.read(str(tmp_path), {}) is None
  path = tmp_path / 'config.json'
  path.write_text(saved.to_json(shapes))
  again = saved.read(str(tmp_path), {'eval.split': 'train'})
  assert again.eval.split == 'train'
  again.eval.split = ''
  assert again.to_dict() == shapes.to_dict()
  path.write_text('{"seed": ')
  message = message_of(saved.read, str(tmp_path), {})
  assert message.startswith(f'{path} is not valid JSON (')
  assert message.endswith('; restore it, or give --config')
  path.write_text('{"model": {"depth": "two"}}')
  assert message_of(saved.read, str(tmp_path), {}) == (
    f"{path}: --config.model.depth='two': takes a whole number, such as 3"
  )
  for damaged in (b'[]', b'\xff\xfe'):
    path.write_bytes(damaged)
    message = message_of(saved.read, str(tmp_path), {})
    assert message.startswith(f'{path} is no saved config (')
    assert message.endswith('; restore it, or give --config')


def test_json_of_older_versions():
  old = json.loads(saved.to_json(default.get_config()))
  # Added since.
  del old['model']['skip']
  # Renamed since.
  del old['weights'], old['log']['num_examples']
  old['import_'] = {'path': 'a.pth', 'concat': 'up_first'}
  old['log']['num_figures'] = 3
  new = saved.from_json(json.dumps(old))
  assert new.model.skip == 'concat'
  assert new.weights.to_dict() == {'path': 'a.pth', 'concat': 'up_first'}
  assert new.log.num_examples == 3
  saved.check_resumable(new, default.get_config(), 'w')
  assert set(fields.RENAMED.values()) <= {'weights', *_FIELDS}


def test_field_that_does_not_exist_any_more_is_named():
  old = json.loads(saved.to_json(default.get_config()))
  old['model']['dilation'] = 2
  assert message_of(saved.from_json, json.dumps(old)) == (
    'the saved config has the field model.dilation, which this version does '
    'not know; use the version that it was made with'
  )


def test_every_rule_names_a_field_or_a_section():
  sections = {f.partition('.')[0] for f in _FIELDS}
  for name in (*saved.FREE_TO_CHANGE, *saved.FIXED_IN_EVALUATION):
    assert name in _FIELDS or name in sections, name


def _unlike(value):
  if isinstance(value, bool):
    return not value
  if isinstance(value, int | float):
    return value + 1
  return (*value, 1) if isinstance(value, tuple) else value + 'x'


def test_continued_run_may_change_the_free_fields_alone():
  free = (
    'log eval inference inspect predict checkpoint summary plan mesh cpu '
    'weights export data.check data.skip_checks data.suggest '
    'data.cache data.cache_dir data.num_workers data.on_error '
    'model.remat optimizer.decay_steps optimizer.end_factor train.num_steps'
  ).split()
  for field, value in _FIELDS.items():
    check = lambda: saved.check_resumable(
      default.get_config(), _changed(**{field: _unlike(value)}), 'runs/a'
    )
    if field in free or field.partition('.')[0] in free:
      check()
    else:
      assert message_of(check) == (
        'runs/a holds checkpoints of another config: '
        f'{field} was {value!r}, now {_unlike(value)!r}. Choose another '
        '--workdir, or undo the change'
      )


def test_evaluation_may_change_all_but_the_network():
  fixed = ('data.num_channels', 'data.num_classes', 'data.mean', 'data.std')
  for field, value in _FIELDS.items():
    check = lambda: saved.check_evaluable(
      default.get_config(), _changed(**{field: _unlike(value)}), 'w'
    )
    is_network = field.startswith('model.') and field != 'model.remat'
    if is_network or field in fixed:
      assert message_of(check) == (
        'w holds checkpoints of another network: '
        f'{field} was {value!r}, now {_unlike(value)!r}. Leave --config out to '
        'evaluate with the config of the workdir'
      )
    else:
      check()


def test_runs_that_cannot_continue():
  """All changes are named; the number of steps may not shrink."""
  for values, message in (
    (
      {'model.depth': 2, 'data.batch_size': 4},
      'w holds checkpoints of another config: data.batch_size was 16, now 4; '
      'model.depth was 3, now 2',
    ),
    (
      {'train.num_steps': 399},
      'w was started with train.num_steps=400, which may grow but not shrink '
      'to 399',
    ),
  ):
    old, new = default.get_config(), _changed(**values)
    assert message_of(saved.check_resumable, old, new, 'w') == (
      f'{message}. Choose another --workdir, or undo the change'
    )
