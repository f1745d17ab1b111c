"""Modes that run in one process only."""

import jax
import pytest

from unet_jax.config import default
from unet_jax.runtime import errors, mesh

_ALONE = 'runs in one process; start it on one machine, without'


@pytest.mark.parametrize(
  'mode,resolution,line',
  [
    (
      'predict',
      'network',
      f'--mode=predict {_ALONE} JAX_NUM_PROCESSES or srun, for each part of '
      'the images',
    ),
    (
      'inspect',
      'network',
      f'--mode=inspect {_ALONE} JAX_NUM_PROCESSES or srun',
    ),
    (
      'evaluate',
      'original',
      '--config.eval.resolution=original runs in one process; start it without '
      'JAX_NUM_PROCESSES or srun, or evaluate at the resolution of the network',
    ),
    ('evaluate', 'network', None),
    ('cross_validate', 'network', None),
  ],
)
def test_modes_of_one_process(mode, resolution, line, monkeypatch):
  config = default.get_config()
  config.eval.resolution = resolution
  mesh.check_processes(config, mode)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  if line is None:
    mesh.check_processes(config, mode)
    return
  with pytest.raises(errors.UserError) as e:
    mesh.check_processes(config, mode)
  assert str(e.value) == line
