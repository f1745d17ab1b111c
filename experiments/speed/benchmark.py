"""Measures training and inference against PyTorch, the pipeline, the start.

  python -m experiments.speed.benchmark [--config=configs/NAME.py[:arg]]
    [--what=step,pipeline,start] [--repeats=N] [--output=FILE.json]

What is compared runs in turn in one process, round after round, so that a busy
machine slows all alike. README.md says how to read the tables.
"""

import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from unet_jax import config as config_lib
from unet_jax import errors, metrics, runtime, sharding, steps, train
from unet_jax import optimizer as optimizer_lib
from unet_jax import train_state as train_state_lib
from unet_jax.data import pipeline, prepare, sources
from unet_jax.models import unet

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CORES = len(os.sched_getaffinity(0))
_HAS_TORCH = importlib.util.find_spec('torch') is not None
_OURS = 'unet_jax'

_CONFIG = config_flags.DEFINE_config_file(
  'config', str(_ROOT / 'configs/shapes.py'), 'File with get_config().'
)
_WHAT = flags.DEFINE_list(
  'what', 'step,pipeline,start', 'What to measure, of step, pipeline, start.'
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Rounds.', lower_bound=1)
_STEPS = flags.DEFINE_integer(
  'steps', 10, 'Steps of each contender in a round.', lower_bound=1
)
_TORCH_COMPILE = flags.DEFINE_boolean(
  'torch_compile', False, 'Also measure torch.compile.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write.')


def _in_turn(contenders: dict[str, Callable[[], float]]):
  """Returns {name: [what the contender returned in each round]}."""
  values = {name: [] for name in contenders}
  for _ in range(_REPEATS.value):
    for name, contender in contenders.items():
      values[name].append(contender())
  return values


def _report(title: str, values: dict[str, list[float]], images: int = 0):
  """Prints a table of seconds, and images/s where a value is of `images`.

  The ratio is to the first row, within each round, and then the median.

  Returns:
    {row: {'values', 'median', 'min', 'max', 'ratio'}}, seconds.
  """
  first = next(iter(values.values()))
  width = max(map(len, values))
  heads = ['median', 'min', 'max', 'ratio', *['images/s'] * bool(images)]
  print(f'\n{title}\n' + ' ' * width + ''.join(f'{h:>10}' for h in heads))
  rows = {}
  for name, row in values.items():
    rows[name] = figures = {
      'median': statistics.median(row),
      'min': min(row),
      'max': max(row),
      'ratio': statistics.median(a / b for a, b in zip(row, first)),
    }
    cells = [f'{v:10.4g}' for v in figures.values()]
    if images:
      figures['images_per_second'] = images / figures['median']
      cells.append(f'{figures["images_per_second"]:10.1f}')
    print(f'{name:<{width}}' + ''.join(cells), flush=True)
    figures['values'] = row
  return rows


class _Ours:
  """The step that main.py trains with, and its state."""

  def __init__(self, config):
    self._config = config
    self.mesh = sharding.make_mesh(config)
    model = unet.create_model(config)
    optimizer = optimizer_lib.make_optimizer(config)
    self._key = jax.random.key(config.seed)
    self.state = train_state_lib.create_train_state(
      self._key, config, model, optimizer, self.mesh
    )
    self._step = train.make_train_step(
      config, model, optimizer, self.mesh, self.state
    )
    mean, std = config.data.mean, config.data.std
    self._predict = jax.jit(
      lambda variables, image: metrics.predict_classes(
        steps.predict_step(variables, image, model=model, mean=mean, std=std)
      ),
      compiler_options=runtime.compiler_options(),
    )

  @property
  def num_parameters(self) -> int:
    return sum(x.size for x in jax.tree.leaves(self.state.params))

  def train(self, batches, count: int) -> None:
    """Trains as train.py does: figures are read one step late."""
    pending = None
    for _ in range(count):
      self.state, figures = self._step(self.state, next(batches), self._key)
      if pending is not None:
        jax.device_get(pending)
      pending = figures
    jax.block_until_ready(self.state)

  def predict(self, image, count: int) -> None:
    variables = self.state.variables()
    for _ in range(count):
      result = self._predict(variables, image)
    result.block_until_ready()


def _random_batch(config) -> dict[str, np.ndarray]:
  data, rng = config.data, np.random.default_rng(0)
  shape = (data.batch_size, *data.image_size)
  image = rng.integers(256, size=(*shape, data.num_channels), dtype=np.uint8)
  classes = max(data.num_classes, 2)
  return {
    'image': image,
    'mask': rng.integers(classes, size=shape, dtype=np.uint8),
  }


def _our_contender(config, batch):
  ours = _Ours(config)
  batch = sharding.to_devices(batch, ours.mesh)
  return (
    ours.num_parameters,
    lambda n: ours.train(itertools.repeat(batch), n),
    lambda n: ours.predict(batch['image'], n),
  )


def _torch_contender(config, batch, layout: str, compiles: bool):
  """As `_our_contender`, for the steps of torch_train.py."""
  import torch

  from experiments.speed import torch_train

  device, layout = torch_train.set_up(), getattr(torch, layout)
  model, optimizer = torch_train.create(config, device, layout)
  image, mask = torch_train.to_device(batch, device, layout)
  called = torch.compile(model) if compiles else model
  wait = torch.cuda.synchronize if device.type == 'cuda' else lambda: None

  def train_steps(n):
    model.train()
    for _ in range(n):
      torch_train.train_step(called, optimizer, image, mask, config)
    wait()

  def predict_steps(n):
    model.eval()
    for _ in range(n):
      torch_train.predict(called, image, config)
    wait()

  count = sum(p.numel() for p in model.parameters())
  return count, train_steps, predict_steps


def _torch_contenders(config, batch):
  """{name: contender} of PyTorch; says so where it is left out."""
  if not _HAS_TORCH:
    print('PyTorch is left out: it is not installed')
    return {}
  from experiments.speed import torch_unet

  field = torch_unet.unsupported(config)
  if field:
    print(f'PyTorch is left out: its U-Net here has no {field}')
    return {}
  variants = {
    'PyTorch, channels_last': ('channels_last', False),
    'PyTorch, default layout': ('contiguous_format', False),
  }
  if _TORCH_COMPILE.value:
    variants['PyTorch, torch.compile'] = ('channels_last', True)
  return {
    name: _torch_contender(config, batch, *variant)
    for name, variant in variants.items()
  }


def _seconds(call, *args) -> float:
  start = time.perf_counter()
  call(*args)
  return time.perf_counter() - start


def measure_step(config) -> dict:
  """Times training and inference steps on one random batch on the device."""
  batch, size = _random_batch(config), config.data.batch_size
  contenders = {
    _OURS: _our_contender(config, batch),
    **_torch_contenders(config, batch),
  }
  counts = {name: c[0] for name, c in contenders.items()}
  if len(set(counts.values())) > 1:
    raise AssertionError(f'the networks differ in parameters: {counts}')
  count = _STEPS.value
  results = {'parameters': counts[_OURS]}
  for i, what in ((1, 'train'), (2, 'inference')):
    calls = {name: c[i] for name, c in contenders.items()}
    first = {name: [_seconds(call, 1)] for name, call in calls.items()}

    def round_of(call):
      call(1)  # Brings its threads and caches back.
      return _seconds(call, count) / count

    values = _in_turn({n: lambda c=c: round_of(c) for n, c in calls.items()})
    results[what] = _report(f'{what} step of {size} images, s', values, size)
    results[f'{what}_first_call'] = _report(
      f'first {what} call, with compilation, s', first
    )
  return results


def _fed_round(config, ours: _Ours, dataset) -> float:
  """Seconds per step of training on real batches.

  Each round starts an iterator of its own; the steps before the clock bring it
  into the balance that it has in a long run, whatever was read ahead.
  """
  batches = pipeline.train_batches(dataset, config, ours.mesh)
  try:
    ours.train(batches, _STEPS.value)
    return _seconds(ours.train, batches, _STEPS.value) / _STEPS.value
  finally:
    batches.close()


def _pipeline_round(config, mesh, dataset) -> float:
  """Seconds per batch of the pipeline alone."""
  batches = pipeline.train_batches(dataset, config, mesh)
  # More than what is read ahead, in whole epochs or not.
  warmup, count = 2 * prepare.num_workers(config) + 4, 10 * _STEPS.value

  def take(n):
    for _ in range(n):
      jax.block_until_ready(next(batches))

  try:
    take(warmup)
    return _seconds(take, count) / count
  finally:
    batches.close()


def measure_pipeline(config) -> dict:
  """Times the input pipeline: in training, alone, and preparing the arrays."""
  size, split = config.data.batch_size, config.data.train_split
  sources.make_source(config, split)  # Downloads and builds, if it must.
  datasets, prepare_seconds = {}, 0.0
  for cache in ('memory', 'disk', 'none'):
    own = config.copy_and_resolve_references()
    own.data.cache = cache
    start = time.perf_counter()
    datasets[f'cache {cache}'] = prepare.prepare(own, split)
    if cache == 'memory':
      prepare_seconds = time.perf_counter() - start
  total = len(datasets['cache memory'])
  workers = prepare.num_workers(config)
  results = {
    'prepare': {
      'images': total,
      'seconds': prepare_seconds,
      'images_per_second': total / prepare_seconds,
      'images_per_second_and_worker': total / prepare_seconds / workers,
    }
  }
  print(
    f'\npreparing (decode, check, resize) {total} images: '
    f'{total / prepare_seconds:.1f} images/s, '
    f'{total / prepare_seconds / workers:.1f} per worker of {workers}'
  )
  ours = _Ours(config)
  batch = next(
    pipeline.eval_batches(datasets['cache memory'], config, ours.mesh)
  )
  batch = {k: batch[k] for k in ('image', 'mask')}

  def repeated_round():
    batches = itertools.repeat(batch)
    ours.train(batches, _STEPS.value)
    return _seconds(ours.train, batches, _STEPS.value) / _STEPS.value

  repeated_round()  # Compiles.
  fed = {
    name: lambda d=d: _fed_round(config, ours, d)
    for name, d in datasets.items()
  }
  alone = {
    name: lambda d=d: _pipeline_round(config, ours.mesh, d)
    for name, d in datasets.items()
  }
  results['training'] = rows = _report(
    f'training step of {size} images, s',
    _in_turn({'one batch repeated': repeated_round, **fed}),
    size,
  )
  lost = {name: 1 - 1 / rows[name]['ratio'] for name in fed}
  print(
    'share of the step lost to the pipeline: '
    + ', '.join(f'{name} {share:.1%}' for name, share in lost.items())
  )
  results['lost_share'] = lost
  results['alone'] = _report(
    f'pipeline alone, batch of {size} images, s', _in_turn(alone), size
  )
  return results


def _seconds_to_first_step(command: list[str]) -> float:
  """Runs a command until it reports its first step, and ends it there."""
  environment = dict(os.environ)
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  lines = []
  start = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, *command],
    cwd=_ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  with process:
    for line in process.stdout:
      if 'first step done' in line:
        seconds = time.perf_counter() - start
        process.kill()
        return seconds
      lines.append(line)
  raise RuntimeError(f'{command} made no step:\n' + ''.join(lines[-20:]))


def measure_start(config) -> dict:
  """Times program starts up to the end of the first training step."""
  given = [a for a in sys.argv[1:] if a.startswith('--config')]
  if not any(a.startswith('--config=') for a in given):
    given.insert(0, f'--config={_ROOT / "configs/shapes.py"}')
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    cache, number = folder / 'cache', itertools.count()
    # The last flag of a name counts.
    arguments = [*given, f'--config.data.cache_dir={cache}']

    def ours(*forgotten):
      for path in forgotten:
        shutil.rmtree(path, ignore_errors=True)
      workdir = f'--workdir={folder / str(next(number))}'
      return _seconds_to_first_step(['main.py', workdir, *arguments])

    contenders = {
      'nothing kept': lambda: ours(cache),
      'arrays kept, compiles': lambda: ours(cache / 'xla'),
      'arrays and programs kept': ours,
    }
    if _HAS_TORCH:
      from experiments.speed import torch_unet

      if torch_unet.unsupported(config) is None:
        contenders['PyTorch, arrays kept'] = lambda: _seconds_to_first_step(
          ['-m', 'experiments.speed.torch_train', *arguments]
        )
    return _report(
      'process start to end of first step, s', _in_turn(contenders)
    )


_MEASURES = {
  'step': measure_step,
  'pipeline': measure_pipeline,
  'start': measure_start,
}


def _processor() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  names = [s.partition(':')[2].strip() for s in lines if 'model name' in s]
  return names[0] if names else platform.processor()


def _machine() -> dict:
  """What the figures were measured on."""
  packages = ('jax', 'jaxlib', 'flax', *['torch'] * _HAS_TORCH)
  devices = [d.device_kind for d in jax.devices()]
  if _HAS_TORCH:
    import torch

    if torch.cuda.is_available():
      devices.append(f'torch: {torch.cuda.get_device_name()}')
  return {
    'date': datetime.datetime.now().isoformat(timespec='seconds'),
    'processor': _processor(),
    'cores': _CORES,
    'load_at_start': os.getloadavg()[0],
    'devices': devices,
    'python': platform.python_version(),
    'versions': {name: importlib.metadata.version(name) for name in packages},
  }


def main(_) -> None:
  config = _CONFIG.value
  try:
    config_lib.validate(config)
    for what in _WHAT.value:
      if what not in _MEASURES:
        raise errors.UserError(
          f'--what={what}: not one of {", ".join(_MEASURES)}'
        )
    # On a GPU, PyTorch needs a share of the memory that JAX would take.
    os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.5')
    # Compiled programs are not kept: what compilation takes is measured.
    jax.config.update('jax_enable_compilation_cache', False)
    machine = _machine()
    print(json.dumps(machine, indent=1))
    results = {what: _MEASURES[what](config) for what in _WHAT.value}
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  if _OUTPUT.value:
    arguments = {'repeats': _REPEATS.value, 'steps': _STEPS.value}
    document = {
      'machine': machine,
      'arguments': arguments,
      'config': config.to_dict(),
      'results': results,
    }
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(document, indent=1))
    print(f'\nwrote {_OUTPUT.value}')


if __name__ == '__main__':
  app.run(main)
