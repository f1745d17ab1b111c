"""A run that goes on, on other devices than those that it was saved on."""

import contextlib

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests import tiny
from unet_jax.data import pipeline
from unet_jax.models import unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import checkpoint, state
from unet_jax.training import optimizer as optimizer_lib

# (devices, mesh.fsdp, mesh.spatial), one after the other.
_CHAIN = ((8, 4, 1), (4, 2, 2), (1, 1, 1), (8, 8, 1))


def _make_mesh(num_devices, fsdp, spatial):
  config = tiny.make_config(mesh={'fsdp': fsdp, 'spatial': spatial})
  return mesh_lib.make_mesh(config, jax.devices()[:num_devices])


@pytest.mark.eight_devices
def test_state_and_data_position_move_between_meshes(tmp_path):
  config = tiny.make_config(optimizer={'momentum': 0.9, 'ema_decay': 0.9})
  model = unet.create_model(config)
  optimizer = optimizer_lib.make_optimizer(config)
  dataset = tiny.Examples(tiny.make_examples(config, 19))
  one = pipeline.train_batches(dataset, config, tiny.one_device())
  with contextlib.closing(one):
    expected = [jax.tree.map(np.asarray, next(one)) for _ in range(12)]

  values = tiny.make_state(config, model, optimizer, _make_mesh(*_CHAIN[0]))
  saved = values
  saver = checkpoint.Checkpoints(str(tmp_path), config)
  with contextlib.closing(saver):
    for i, about in enumerate(_CHAIN):
      mesh = _make_mesh(*about)
      batches = pipeline.train_batches(dataset, config, mesh)
      with contextlib.closing(batches):
        if i:
          abstract = state.abstract_train_state(config, model, optimizer, mesh)
          saved, position = saver.restore(i, abstract)
          shardings = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
          assert shardings(saved) == shardings(abstract)
          batches.set_state(position)
        jax.tree.map(assert_array_equal, saved, values)
        # Across the end of an epoch, too.
        for batch in expected[3 * i : 3 * i + 3]:
          jax.tree.map(assert_array_equal, next(batches), batch)
        values = saved.replace(step=saved.step + 1)
        saver.save(values, i + 1, batches.get_state())
        saver.wait()
