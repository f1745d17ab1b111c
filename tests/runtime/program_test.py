"""Options of the compiler, by the devices that a program runs on."""

import types

import jax
import numpy as np

from tests import tiny
from unet_jax.runtime import mesh, program


def test_options_depend_on_the_devices_of_the_mesh():
  devices = jax.devices()[:1]
  cpu = mesh.make_mesh(tiny.make_config(), devices)
  assert cpu.devices.tolist() == [[devices]]
  assert program.compiler_options(cpu) != program.compiler_options(cpu, 9)
  for num_drawn, level in ((9, 0), (9_000_000, 1)):
    init = program.compiler_options(cpu, num_drawn)
    assert init['xla_backend_optimization_level'] == level
  tpu = types.SimpleNamespace(platform='tpu')

  class Mesh:
    devices = np.array([[[tpu]]])

  assert program.compiler_options(Mesh()) is None


def test_an_option_that_jaxlib_does_not_know_is_left_out(monkeypatch):
  known = {'xla_backend_optimization_level': 1}
  monkeypatch.setattr(program, '_CPU_INIT', {'xla_cpu_no_such': 2, **known})
  device = mesh.make_mesh(tiny.make_config(), jax.devices()[:1])
  uncached = program.compiler_options.__wrapped__
  assert uncached(device, num_drawn=9_000_000) == known
