"""Tests of training/programs.py: what is kept is what would be compiled."""

import errno
import math
import os
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests import tiny
from unet_jax.models import unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import programs

_KEY = 0
# Later than all code, since tests import files that they write.
_STARTED = math.inf


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The cache folder of a command, with JAX's own cache in it."""
  monkeypatch.setattr(programs, '_is_command', lambda: True)
  values = {
    'jax_compilation_cache_dir': str(tmp_path / 'xla'),
    'jax_persistent_cache_min_compile_time_secs': 0,
  }
  before = {name: getattr(jax.config, name) for name in values}
  for changed in (values, before):
    for name, value in changed.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    if changed is values:
      yield tmp_path


def _start(folder, **sections):
  sections.setdefault('data', {})['cache_dir'] = str(folder)
  config = tiny.make_config(**sections)
  mesh = mesh_lib.make_mesh(config)
  model = unet.create_model(config, False)
  optimizer = optimizer_lib.make_optimizer(config)
  # Another object each time: nothing is in the memory of this process.
  key = jax.random.key(_KEY)
  return programs.start(config, model, optimizer, mesh, key, _STARTED)


def _train(run):
  """Returns the state and the metrics after two steps."""
  rng = np.random.default_rng(0)
  batch = {
    'image': jnp.array(rng.integers(0, 256, (8, 16, 16, 3)), jnp.uint8),
    'mask': jnp.array(rng.integers(0, 3, (8, 16, 16)), jnp.uint8),
  }
  state, step = run.draw(jax.random.key(_KEY)), run.step.result()
  for _ in range(2):
    state, metrics = step(state, batch, jax.random.key(_KEY))
  return jax.tree.leaves((state, metrics))


def _kept(folder):
  return sorted(path.name for path in folder.glob('programs/*/*'))


def test_a_kept_program_does_what_the_compiled_one_did(folder, monkeypatch):
  run = _start(folder)
  drawn, first = run.abstract, _train(run)
  assert _kept(folder) == ['draw', 'step']

  def compile(*_):
    raise AssertionError('compiled again')

  monkeypatch.setattr(programs, '_compile', compile)
  run = _start(folder, log={'every': 7})  # No program depends on it.
  assert run.abstract == drawn
  for got, expected in zip(_train(run), first, strict=True):
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
  'sections',
  [
    {'optimizer': {'learning_rate': 0.2}},
    {'model': {'norm': 'none'}},
    {'loss': {'label_smoothing': 0.1}},
    {'augment': {'flip_vertical': 0.5}},
    {'data': {'mean': (0.4, 0.5, 0.5)}},
    {'train': {'num_steps': 17}},
  ],
  ids=str,
)
def test_another_program_has_another_key(folder, sections):
  keys = []
  for changed in ({}, sections):
    config = tiny.make_config(**changed)
    model, mesh = unet.create_model(config, False), mesh_lib.make_mesh(config)
    keys.append(programs._key(config, model, mesh))
  assert keys[0] != keys[1]


def test_changed_code_has_another_key(folder, tmp_path, monkeypatch):
  config = tiny.make_config()
  model, mesh = unet.create_model(config, False), mesh_lib.make_mesh(config)
  file = tmp_path / 'losses_of_mine.py'
  monkeypatch.syspath_prepend(str(tmp_path))
  keys = set()
  # As of PyTorch's `classes`, which is a module of no file.
  virtual = types.ModuleType('virtual')
  virtual.__file__ = '_virtual.py'
  monkeypatch.setitem(sys.modules, 'virtual', virtual)
  for text in ('FACTOR = 1', 'FACTOR = 2'):
    file.write_text(text)
    __import__('losses_of_mine')
    keys.add(programs._key(config, model, mesh))
  assert len(keys) == 2


def test_code_that_changed_after_the_start_is_not_trusted(
  folder, tmp_path, monkeypatch
):
  config = tiny.make_config(data={'cache_dir': str(folder)})
  model, mesh = unet.create_model(config, False), mesh_lib.make_mesh(config)
  file = tmp_path / 'edited.py'
  file.write_text('FACTOR = 1')
  module = types.ModuleType('edited')
  module.__file__ = str(file)
  monkeypatch.setitem(sys.modules, 'edited', module)
  # As where the process began after the file was written, and before.
  for started, is_kept in ((math.inf, True), (time.perf_counter() - 9, False)):
    path = programs._path(config, model, mesh, started)
    assert (path is not None) == is_kept


def test_a_damaged_file_is_compiled_again(folder):
  first = _train(_start(folder))
  for path in folder.glob('programs/*/*'):
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:1000], flipped):
      path.write_bytes(damaged)
      assert programs._load(path.parent, path.name) is None
  for got, expected in zip(_train(_start(folder)), first, strict=True):
    np.testing.assert_array_equal(got, expected)


def test_a_full_disk_keeps_no_parts(tmp_path, monkeypatch):
  def write(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(
    programs.serialize_executable, 'serialize', lambda compiled: compiled
  )
  programs._save(tmp_path, 'step', 'a program')
  assert [path.name for path in tmp_path.iterdir()] == ['step']
  monkeypatch.setattr(os, 'replace', write)
  programs._save(tmp_path, 'draw', 'a program')
  assert [path.name for path in tmp_path.iterdir()] == ['step']


def test_what_jax_has_kept_is_not_kept_twice(folder):
  _train(_start(folder))
  for path in folder.glob('programs/*/*'):
    path.unlink()
  jax.clear_caches()
  _train(_start(folder))
  assert not _kept(folder)


def test_only_commands_keep_programs(folder, monkeypatch):
  monkeypatch.undo()
  _start(folder).step.result()
  assert not _kept(folder)
