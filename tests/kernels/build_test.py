"""Tests of unet_jax/kernels/build.py."""

import logging
import pathlib
import platform
from unittest import mock

import jax
import numpy as np
import pytest

from unet_jax.config import default
from unet_jax.kernels import build
from unet_jax.models import unet
from unet_jax.runtime import errors, mesh


@pytest.fixture
def config(tmp_path):
  config = default.get_config()
  config.data.cache_dir = str(tmp_path)
  config.data.batch_size = 8
  return config


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
  """Nothing is kept from another test; the log reaches pytest."""
  build._library.cache_clear()
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)


def _choose(config, kernels):
  config.cpu.kernels = kernels
  return build.choose(config, mesh.make_mesh(config))


def test_xla_builds_nothing(config, tmp_path):
  assert not _choose(config, 'xla')
  assert not list(tmp_path.iterdir())


def test_the_library_is_built_once(config, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  try:
    build.load(str(tmp_path))
  except build.BuildError as e:
    pytest.skip(str(e))
  (library,) = (tmp_path / 'kernels').iterdir()
  written = library.stat().st_mtime_ns
  build._library.cache_clear()
  assert _choose(config, 'native') and _choose(config, 'auto')
  assert [p.name for p in (tmp_path / 'kernels').iterdir()] == [library.name]
  assert library.stat().st_mtime_ns == written
  said = [r.message for r in caplog.records if 'compiled the' in r.message]
  assert len(said) == 1


@pytest.mark.parametrize(
  'compiler,message',
  [
    (None, 'no C++ compiler found; install one (apt-get install g++)'),
    ('#!/bin/sh\necho "x.cc:1: error: bad" >&2\nexit 1', 'error: bad; install'),
    ('#!/bin/sh\nexit 3', 'g++ failed: exit code 3; install'),
  ],
)
def test_without_a_compiler(
  config, tmp_path, monkeypatch, caplog, compiler, message
):
  """`auto` goes on with XLA and says so; `native` is refused."""
  caplog.set_level(logging.INFO)
  folder = tmp_path / 'bin'
  folder.mkdir()
  if compiler:
    (folder / 'g++').write_text(compiler)
    (folder / 'g++').chmod(0o755)
  monkeypatch.setenv('PATH', str(folder))
  monkeypatch.delenv('CXX', raising=False)
  assert not _choose(config, 'auto')
  assert any(
    "convolutions are XLA's" in r.message and message in r.message
    for r in caplog.records
  )
  with pytest.raises(errors.UserError) as e:
    _choose(config, 'native')
  assert str(e.value).startswith('--config.cpu.kernels=native: ')
  assert message in str(e.value)
  assert not list(pathlib.Path(tmp_path).glob('kernels/*'))


def test_another_processor(config, tmp_path, monkeypatch, caplog):
  """The sources refuse to be compiled for what they are not written for."""
  caplog.set_level(logging.INFO)
  if platform.machine() not in ('x86_64', 'AMD64'):
    pytest.skip('its compiler takes no -march=x86-64')
  flags = [f.replace('=native', '=x86-64') for f in build._FLAGS]
  monkeypatch.setattr(build, '_FLAGS', flags)
  try:
    build._compiler()
  except build.BuildError as e:
    pytest.skip(str(e))
  assert not _choose(config, 'auto')
  assert caplog.messages[-1] == (
    "convolutions are XLA's, which are slower: the processor has none of AVX2, "
    "AVX-512 and 64-bit Arm's NEON"
  )


@pytest.mark.parametrize('others', [True, False])
def test_all_processes_take_the_same(config, monkeypatch, others):
  """One that has no kernels decides for all."""
  monkeypatch.setattr(build, 'load', lambda cache_dir: None)
  monkeypatch.setattr(
    build.multihost_utils,
    'process_allgather',
    lambda mine: np.array([mine, others]),
  )
  devices = mesh.make_mesh(config).devices
  among_many = mock.Mock(devices=devices, is_multi_process=True)
  config.cpu.kernels = 'auto'
  assert build.choose(config, among_many) == others


def test_the_network_takes_them(config, tmp_path):
  try:
    build.load(str(tmp_path))
  except build.BuildError as e:
    pytest.skip(str(e))
  config.model.update(base_features=4, depth=1)
  x = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
  xla, native = (unet.create_model(config, b) for b in (False, True))
  variables = xla.init(jax.random.key(1), x, train=False)
  text = jax.jit(native.apply, static_argnames='train').lower(
    variables, x, train=False
  )
  assert 'UnetConvolution' in text.compile().as_text()
  a, b = (m.apply(variables, x, train=False) for m in (xla, native))
  assert abs(a - b).max() <= 1e-5 * abs(a).max()
