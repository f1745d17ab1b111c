"""What an output folder says of its files; runs of it: predict_test."""

import hashlib
import json
import pathlib

import numpy as np
import pytest

from unet_jax.config import default, fields
from unet_jax.data import digests
from unet_jax.prediction import index as index_lib
from unet_jax.prediction import network as network_lib
from unet_jax.runtime import errors


def _network(variables=None, **changes):
  config = default.get_config()
  config.update_from_flattened_dict(
    {k.replace('__', '.'): v for k, v in changes.items()}
  )
  variables = variables or {'params': {'a': np.arange(4.0)}}
  about = [{'step': 3, 'workdir': '/run', 'params': 'ema', 'fold': None}]
  return network_lib.describe(config, variables, about)


def _images(folder, *names):
  folder.mkdir(exist_ok=True)
  paths = [folder / name for name in names]
  for path in paths:
    path.write_bytes(path.name.encode())
  return paths


def _plan(index, paths):
  return index.plan(paths, default.get_config())


def _make(item):
  item.paths.mask.parent.mkdir(exist_ok=True)
  item.paths.mask.write_text('mask')


def test_parameters_are_known_by_their_values():
  one = _network()
  assert one == _network({'params': {'a': np.arange(4.0)}})
  for other in (
    {'params': {'a': np.arange(4.0) + 1e-15}},
    {'params': {'a': np.arange(4.0).reshape(2, 2)}},
    {'params': {'b': np.arange(4.0)}},
    {'params': {'a': np.arange(4.0, dtype=np.float32)}},
  ):
    assert _network(other).parameters != one.parameters


def test_settings_are_fields_that_change_the_result():
  one = _network()
  same = dict(data__dir='x', data__on_error='skip', inference__batch_size=2)
  same |= dict(data__skip_checks=('moved',))
  same |= dict(predict__overlay=True, train__num_steps=1, cpu__kernels='xla')
  assert _network(**same) == one
  found = _network(data__mask_values=((0, 0), (9, 1)), inference__overlap=0.25)
  assert found.settings == {
    'data.mask_values': '((0, 0), (9, 1))',
    'inference.overlap': '0.25',
  }
  # A name that no field has would be a misprint.
  assert set(network_lib._WITHOUT_EFFECT) <= set(
    fields.flatten(default.get_config())
  )


def test_two_runs_share_a_folder(tmp_path):
  a, b = _images(tmp_path / 'in', 'a.png', 'b.png')
  one = index_lib.Index(tmp_path / 'out', _network())
  other = index_lib.Index(tmp_path / 'out', _network(inference__overlap=0.25))
  (first,), (second,) = _plan(one, [a]), _plan(other, [b])
  for index, item in ((one, first), (other, second)):
    assert not item.is_done
    _make(item)
    index.finish(item, digests.of_file(item.source))
  other.write()
  one.write()
  again = index_lib.Index(tmp_path / 'out', _network())
  assert [item.is_done for item in _plan(again, [a, b])] == [True, False]
  found = json.loads((tmp_path / 'out/index.json').read_text())
  assert found['images']['a'] == {
    'source': str(a),
    'content': digests.of_file(a),
    'network': again._key,
  }
  assert found['images']['b'] == {'source': str(b), 'run': again._run}
  assert found['networks'][again._key] == {
    'parameters': _network().parameters,
    'steps': [3],
    'workdirs': ['/run'],
    'files': [],
    'settings': {},
  }


def test_two_runs_do_not_make_one_image(tmp_path):
  paths = _images(tmp_path / 'in', 'a.png', 'b.png', 'c.png')
  make = lambda: index_lib.Index(
    tmp_path / 'out', _network(inference__overlap=0.25)
  )
  one, refused = index_lib.Index(tmp_path / 'out', _network()), make()
  item, *_ = _plan(one, paths[:2])
  with pytest.raises(errors.UserError) as e:
    _plan(refused, paths)
  assert str(e.value) == (
    f'predicting a, b into {tmp_path / "out"}: another run does it; wait for '
    'it, or stop it'
  )
  third, others = make(), make()
  assert not any(item.is_done for item in _plan(third, paths[2:]))
  _make(item)
  one.finish(item, digests.of_file(item.source))
  one.write()
  one.close()  # As the system does where it is killed.
  assert not any(item.is_done for item in _plan(others, paths[:2]))
  for index in (third, others):
    index.close()
  found = [path.name for path in (tmp_path / 'out').glob('.*')]
  assert found == ['.index.lock']


def test_files_that_are_added_are_made_by_one_run(tmp_path):
  paths = _images(tmp_path / 'in', 'a.png')
  for name in 'one', 'other':
    index = index_lib.Index(tmp_path / 'out', _network())
    (item,) = _plan(index, paths)
    assert not item.is_done
    if name == 'one':
      index.finish(item, digests.of_file(item.source))
      index.write()
      index.close()
  # Its files are missing, and so it is made again.
  with pytest.raises(errors.UserError, match='another run does it'):
    _plan(index_lib.Index(tmp_path / 'out', _network()), paths)


def test_finished_images_are_written_at_intervals(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(index_lib.time, 'monotonic', lambda: now[0])
  paths = _images(tmp_path / 'in', *(f'{i}.png' for i in range(30)))
  index = index_lib.Index(tmp_path / 'out', _network())
  for item in _plan(index, paths):
    now[0] += 1
    _make(item)
    index.finish(item, digests.of_file(item.source))
  index.close()  # Here the run is killed.
  again = index_lib.Index(tmp_path / 'out', _network())
  assert 20 <= sum(item.is_done for item in _plan(again, paths)) < 30


def test_a_new_image_at_the_place_of_one_that_is_gone(tmp_path):
  (path,) = _images(tmp_path / 'old', 'a.png')
  index = index_lib.Index(tmp_path / 'out', _network())
  (item,) = _plan(index, [path])
  _make(item)
  index.finish(item, digests.of_file(path))
  index.write()
  path.unlink()
  (path,) = _images(tmp_path / 'new', 'a.png')
  again = index_lib.Index(tmp_path / 'out', _network())
  assert [(i.name, i.is_done) for i in _plan(again, [path])] == [('a', True)]
  (tmp_path / 'third').mkdir()
  path = path.rename(tmp_path / 'third/a.png')
  path.write_text('another image')
  assert [(i.name, i.is_done) for i in _plan(again, [path])] == [
    ('third__a', False)
  ]


def test_a_network_is_known_by_the_files_of_its_checkpoints(tmp_path):
  config, files = default.get_config(), ['ema', 'digest of a manifest']
  one = _network()
  one.about['files'] = files
  index = index_lib.Index(tmp_path, one)
  (item,) = _plan(index, _images(tmp_path / 'in', 'a.png'))
  index.finish(item, digests.of_file(item.source))
  index.write()
  assert network_lib.known(tmp_path, config, files) == one
  for other in (['raw', files[1]], ['ema', 'another'], [*files, files[1]]):
    assert network_lib.known(tmp_path, config, other) is None
  config.inference.overlap = 0.25
  assert network_lib.known(tmp_path, config, files) is None
  for text in ('{', '[]', '{"networks": [1]}', '{"networks": {"a": 1}}'):
    (tmp_path / 'index.json').write_text(text)
    assert network_lib.known(tmp_path, config, files) is None


def test_entries_of_older_versions_have_other_digests(tmp_path):
  """They were the SHA-256 of a file."""
  paths = _images(tmp_path / 'in', 'a.png', 'b.png', 'c.png')
  index = index_lib.Index(tmp_path / 'out', _network())
  for item in _plan(index, paths):
    _make(item)
    content = hashlib.sha256(item.source.read_bytes()).hexdigest()
    index.finish(item, content)
  index.write()
  paths[1].write_text('another image')
  (tmp_path / 'moved').mkdir()
  paths[2] = paths[2].rename(tmp_path / 'moved/c.png')
  again = index_lib.Index(tmp_path / 'out', _network())
  done = {item.name: item.is_done for item in _plan(again, paths)}
  assert done == {'a': True, 'b': False, 'c': True}


def test_stale_files_are_those_of_the_image_alone(tmp_path):
  paths = _images(tmp_path / 'in', 'a.png', 'a.page_0001.png', 'b.png')
  index = index_lib.Index(tmp_path / 'out', _network())
  for item in _plan(index, paths):
    _make(item)
    index.finish(item, digests.of_file(item.source))
  index.write()
  overlays = tmp_path / 'out/overlays'
  overlays.mkdir()
  for name in ('a', 'a.page_0001', 'a.page_0002', 'ab', 'b.page_0001'):
    (overlays / f'{name}.jpg').write_text('picture')
  paths[0].write_text('another image')
  again = index_lib.Index(tmp_path / 'out', _network())
  stale = [item.stale for item in _plan(again, paths)]
  assert stale == [(overlays / 'a.jpg', overlays / 'a.page_0002.jpg'), (), ()]


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"images": 1}', '{"imag'])
def test_no_index(text, tmp_path):
  (tmp_path / 'index.json').write_text(text)
  index = index_lib.Index(tmp_path, _network())
  with pytest.raises(errors.UserError) as e:
    _plan(index, [pathlib.Path('a.png')])
  assert str(e.value).startswith(
    f'{tmp_path}/index.json is no index of predictions ('
  )
