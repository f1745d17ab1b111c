"""Shared by the tests of unet_jax/data."""

import jax
import numpy as np
from numpy.testing import assert_array_equal

from unet_jax.config import default
from unet_jax.runtime import mesh as mesh_lib


def cannot_decode(name: str, reason: str) -> str:
  return (
    f'{name} cannot be decoded ({reason}); replace it, or skip such files with '
    '--config.data.on_error=skip'
  )


def make_config(**fields):
  """The default config, then {field: value}: `seed`, `a.b`, or of `data`."""
  config = default.get_config()
  for name, value in fields.items():
    if '.' not in name and name != 'seed':
      name = f'data.{name}'
    config.update_from_flattened_dict({name: value})
  return config


def make_mesh(devices: int = 1):
  """A mesh that splits batches alone."""
  return jax.make_mesh(
    (devices, 1, 1),
    ('data', 'fsdp', 'spatial'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[:devices],
  )


def of_processes(monkeypatch, count, make):
  """What `make` returns in each of some processes."""
  made = []
  for i in range(count):
    part = mesh_lib.Part(i, count, 0, 1)
    monkeypatch.setattr(mesh_lib, 'part', lambda mesh, part=part: part)
    made.append(make())
  return made


def rows_of(dataset) -> dict[str, np.ndarray]:
  """All examples of a dataset, stacked."""
  rows = [dataset[i] for i in range(len(dataset))]
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def assert_same(a, b):
  jax.tree.map(assert_array_equal, a, b)


def random_variables(model, size, channels=1):
  """Parameters of a network without compiling an initialisation."""
  x = np.zeros((1, *size, channels), np.float32)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
  rng = np.random.default_rng(0)
  scale = lambda x: (2 / np.prod(x.shape[:-1])) ** 0.5  # Of biases, 2**0.5.
  return jax.tree.map(
    lambda x: rng.normal(0, scale(x), x.shape).astype(np.float32), shapes
  )
