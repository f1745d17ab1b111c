"""What a network costs beyond --mode=summary: compiling it, and inference.

  python -m experiments.costs --config=configs/NAME.py --workdir=DIR

writes DIR/costs.json.
"""

import os
import pathlib
import statistics
import sys
import time

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import files
from unet_jax import errors, runtime, sharding, steps, summary
from unet_jax.models import unet

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Of the network.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of costs.json.')

# Batches before the clock, and timed ones, of which the median counts.
_WARM_UP, _TIMED = 2, 9


def measure(config) -> dict[str, float | str | None]:
  """Compiles train step and inference, and times inference.

  Parameters are random: no figure depends on them.

  Args:
    config: of the network; a batch of inference has inference.batch_size
      images, or data.batch_size where that is 0.

  Returns:
    `compile_seconds` of the train step, without tracing; of inference `flops`
    for an image and `bytes` of memory on a device, by the compiler, and
    `images_per_second`, of uint8 images and logits on the device; and the kind
    of `device`, or its platform where the kind is not told.
  """
  runtime.initialize(config)
  # What compiling takes is measured.
  jax.config.update('jax_enable_compilation_cache', False)
  mesh, model = sharding.make_mesh(config), unet.create_model(config)
  lowered = summary.lower_train_step(config, model, mesh)
  start = time.perf_counter()
  lowered.compile()
  compile_seconds = time.perf_counter() - start

  size = config.inference.batch_size or config.data.batch_size
  shape = (size, *config.data.image_size, config.data.num_channels)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, shape).astype(np.uint8)
  image = sharding.to_devices({'image': image}, mesh)['image']
  variables = jax.device_put(
    _variables(model, shape, rng), sharding.replicated(mesh)
  )
  step = jax.jit(
    lambda variables, image: steps.predict_step(
      variables,
      image,
      model=model,
      mean=config.data.mean,
      std=config.data.std,
    ),
    compiler_options=runtime.compiler_options(),
  )
  compiled = step.lower(variables, image).compile()
  told = summary.costs(compiled)
  seconds = _seconds(lambda: compiled(variables, image))
  flops, device = told['flops'], jax.devices()[0]
  return {
    'compile_seconds': compile_seconds,
    'inference_flops': flops and flops * mesh.size / size,
    'inference_bytes': told['total_bytes'],
    'inference_images_per_second': size / seconds,
    'device': device.device_kind or device.platform,
  }


def _variables(model: unet.UNet, shape, rng):
  """Small random values in place of an initialisation, slow to compile."""
  image = jax.ShapeDtypeStruct((1, *shape[1:]), np.float32)
  abstract = jax.eval_shape(
    lambda image: model.init(jax.random.key(0), image, train=False), image
  )
  return jax.tree.map(
    lambda x: rng.uniform(0.01, 0.1, x.shape).astype(x.dtype), abstract
  )


def _seconds(call) -> float:
  """Returns the median of some calls' seconds."""
  seconds = []
  for _ in range(_WARM_UP + _TIMED):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds[_WARM_UP:])


def main(_) -> None:
  logging.set_verbosity(logging.WARNING)
  try:
    costs = measure(_CONFIG.value)
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  workdir = os.path.abspath(_WORKDIR.value)
  files.write_json(pathlib.Path(workdir, 'costs.json'), costs)


if __name__ == '__main__':
  app.run(main)
