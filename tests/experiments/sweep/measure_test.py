"""What inference costs, by the compiler, as a sweep asks for it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tiny

from unet_jax.models import graph, unet

_ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.mark.whole_runs
def test_the_flop_of_inference_are_those_of_an_image(tmp_path):
  """Alike by the compiler, of a batch on two devices, and by our count."""
  model = {'depth': 0, 'base_features': 16}
  # Pixels at borders, which the compiler does not multiply, are few.
  config = tiny.make_config(data={'image_size': (64, 64)}, model=model)
  process = subprocess.run(
    [
      sys.executable,
      *('-m', 'experiments.sweep.measure', 'network', tmp_path),
      f'--config={_ROOT}/configs/default.py',
      '--config.data.image_size=64,64',
      '--config.data.num_classes=3',
      '--config.data.batch_size=4',
      '--config.model.depth=0',
      '--config.model.base_features=16',
      f'--config.data.cache_dir={tmp_path}',
    ],
    cwd=_ROOT,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': '2',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    },
    capture_output=True,
    text=True,
    # A machine that trains beside it is several times slower.
    timeout=240,
  )
  assert process.returncode == 0, process.stderr
  costs = json.loads((tmp_path / 'costs.json').read_text())
  expected = graph.read(unet.create_model(config), (64, 64, 3)).flops
  assert costs['inference_flops'] == pytest.approx(expected, rel=0.05)
  # uint8 images and float32 logits of the two images on a device are in it.
  assert costs['inference_bytes'] > 2 * 64 * 64 * (3 + 4 * 3)
  assert costs['inference_images_per_second'] > 0
