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
  assert program.compiler_options(cpu) != program.compiler_options(cpu, True)
  assert program.compiler_options(cpu, for_init=True) == {
    'xla_backend_optimization_level': 1,
    'xla_cpu_use_fusion_emitters': False,
  }
  tpu = types.SimpleNamespace(platform='tpu')

  class Mesh:
    devices = np.array([[[tpu]]])

  assert program.compiler_options(Mesh()) is None
