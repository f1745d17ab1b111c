"""Measures of a point, in as few processes as there are occasions.

  python -m experiments.sweep.measure network DIR --config=configs/NAME.py ...
  python -m experiments.sweep.measure run WORKDIR

`network` writes what --mode=summary does and DIR/costs.json. `run` evaluates
the network of a training run, as --mode=evaluate does, and writes
WORKDIR/checkerboard.json.
"""

import functools
import os
import pathlib
import statistics
import sys
import timeit
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from experiments.sweep import checkerboard, folder, points
from unet_jax import evaluate, summary
from unet_jax.config import checks, saved
from unet_jax.kernels import build
from unet_jax.models import unet
from unet_jax.planning import programs
from unet_jax.prediction import step as step_lib
from unet_jax.runtime import errors, logs, program
from unet_jax.runtime import mesh as mesh_lib

# Batches of inference before the clock, and timed ones, whose median counts.
_WARM_UP, _TIMED = 2, 9


def network(directory: str, arguments: list[str]) -> None:
  """Writes summary.* and costs.json of the config that arguments give."""
  config = points.resolve(arguments)
  # The tables have the costs of a step.
  config.summary.compile = True
  checks.validate(config, 'summary')
  summary.run(config, directory)
  folder.write_json(pathlib.Path(directory, 'costs.json'), costs(config))


def run(workdir: str) -> None:
  """Writes eval.* and checkerboard.json of a training run."""
  config = saved.read(workdir, {})
  if config is None:
    raise errors.UserError(f'{workdir} has no config.json; train first')
  checks.validate(config, 'evaluate')
  evaluate.run(config, workdir)
  path = pathlib.Path(workdir, 'checkerboard.json')
  folder.write_json(path, checkerboard.of_run(workdir))


def costs(config: ml_collections.ConfigDict) -> dict[str, float | str | None]:
  """Compiles train step and inference of a network, and times inference.

  From here on the process compiles without its cache, since the compiler is
  timed. Parameters are random: no result depends on them.

  Args:
    config: of the network; a batch of inference has inference.batch_size
      images, or data.batch_size where that is 0.

  Returns:
    `compile_seconds` of the train step, without tracing; of inference `flops`
    for an image and `bytes` of memory on a device, by the compiler, and
    `images_per_second`, of uint8 images and logits on the device; and the kind
    of `device`, or its platform where the kind is not reported.
  """
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  mesh = mesh_lib.make_mesh(config)
  native = build.choose(config, mesh)
  model = unet.create_model(config, native)
  lowered = programs.lower_train_step(config, model, mesh)
  compile_seconds = timeit.timeit(lowered.compile, number=1)
  size = config.inference.batch_size or config.data.batch_size
  shape = (size, *config.data.image_size, config.data.num_channels)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, shape).astype(np.uint8)
  image = mesh_lib.to_devices({'image': images}, mesh)['image']
  variables = jax.device_put(
    _variables(model, shape, rng), mesh_lib.replicated(mesh)
  )

  def compiled_step(model: unet.UNet) -> Any:
    mean, std = config.data.mean, config.data.std
    step = jax.jit(
      functools.partial(step_lib.predict_step, model=model, mean=mean, std=std),
      compiler_options=program.compiler_options(mesh),
    )
    return step.lower(variables, image).compile()

  compiled = compiled_step(model)
  seconds = timeit.repeat(
    lambda: jax.block_until_ready(compiled(variables, image)),
    repeat=_WARM_UP + _TIMED,
    number=1,
  )[_WARM_UP:]
  # The compiler does not look into native kernels.
  counted = compiled_step(unet.create_model(config)) if native else compiled
  by_compiler, device = summary.costs(counted), jax.devices()[0]
  flops = by_compiler['flops']
  return {
    'compile_seconds': compile_seconds,
    'inference_flops': flops and flops * mesh.size / size,
    'inference_bytes': by_compiler['total_bytes'],
    'inference_images_per_second': size / statistics.median(seconds),
    'device': device.device_kind or device.platform,
  }


def _variables(
  model: unet.UNet, shape: tuple[int, ...], rng: np.random.Generator
) -> Any:
  """Returns small random values; an initialisation is slow to compile.

  The shape is that of a batch of images, [B, H, W, C].
  """
  image = jax.ShapeDtypeStruct((1, *shape[1:]), np.float32)
  abstract = jax.eval_shape(
    lambda image: model.init(jax.random.key(0), image, train=False), image
  )
  return jax.tree.map(
    lambda x: rng.uniform(0.01, 0.1, x.shape).astype(x.dtype), abstract
  )


def main(what: str, directory: str, *arguments: str) -> None:
  logs.set_up()
  # Names of files may be no text.
  sys.stdout.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
  directory = os.path.abspath(directory)
  try:
    if what == 'network':
      network(directory, list(arguments))
    else:
      run(directory)
  except (errors.UserError, OSError) as e:
    errors.exit_with(f'error: {errors.one_line(e, directory)}', 1)


if __name__ == '__main__':
  main(*sys.argv[1:])
