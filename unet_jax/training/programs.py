"""The compiled programs of a run: they draw its state and make its steps.

A start that finds them kept neither traces nor lowers anything. They are kept
beside JAX's own compilation cache, which is looked up by the lowered program;
making that takes as long as all the rest of a start. Here the key is what the
program is made from: see `_key`.
"""

import hashlib
import json
import os
import pathlib
import pickle
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import jax
import ml_collections
import optax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from unet_jax.config import fields
from unet_jax.data import prepared
from unet_jax.models import unet
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.runtime import program
from unet_jax.training import state as state_lib
from unet_jax.training import steps

# Libraries, which are known by the dates of their files.
_LIBRARIES = tuple(sysconfig.get_paths()[k] for k in ('stdlib', 'purelib'))
_PACKAGE = str(pathlib.Path(__file__).parents[1])
# Sections and fields that no program depends on.
_NOT_COMPILED = (
  *('log', 'eval', 'inference', 'inspect', 'predict', 'checkpoint', 'summary'),
  *('plan', 'weights', 'export', 'data.dir', 'data.cache', 'data.cache_dir'),
  *('data.num_workers', 'data.on_error', 'data.check', 'data.suggest'),
  'data.skip_checks',
)
# Of the digest with which a file begins.
_DIGEST_BYTES = hashlib.sha256().digest_size
# Events of JAX's compilation cache.
_ASKED = '/jax/compilation_cache/compile_requests_use_cache'
_FOUND = '/jax/compilation_cache/cache_hits'


class Programs(NamedTuple):
  """What a run executes.

  Attributes:
    abstract: shapes, types and shardings of the state.
    draw: key -> state at step 0.
    step: its `result()` waits for `steps.make_train_step`'s function; for ever
      where no step is left.
  """

  abstract: state_lib.TrainState
  draw: Callable[[jax.Array], state_lib.TrainState]
  step: futures.Future


def start(
  config: ml_collections.ConfigDict,
  model: unet.UNet,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  key: jax.Array,
  started: float,
  steps_left: bool = True,
  draws: bool = True,
) -> Programs:
  """Loads the programs of a run, or compiles them in threads.

  Args:
    config, model, optimizer, mesh: of the run.
    key: as the programs take it.
    started: when this process began to import (`time.perf_counter`).
    steps_left: whether there is a step to compile.
    draws: whether the state is to be drawn, and not that of a checkpoint.
  """
  path = _path(config, model, mesh, started)
  step = _load(path, 'step')
  if step:
    abstract = state_lib.with_shardings(step.args_info[0][0], mesh)
    compiled: futures.Future = futures.Future()
    compiled.set_result(step)
  else:
    abstract = state_lib.abstract_train_state(config, model, optimizer, mesh)
    function = steps.make_train_step(config, model, optimizer, mesh, abstract)
    batch = abstract_batch(config, mesh)
    compile = lambda: _compile(path, 'step', function, abstract, batch, key)
    compiled = program.in_thread(compile) if steps_left else futures.Future()
  drawing = state_lib.drawing(config, model, optimizer, abstract, mesh)

  load = lambda: _load(path, 'draw') or _compile(path, 'draw', drawing, key)
  loaded = program.in_thread(load) if draws else None

  def draw(key: jax.Array) -> state_lib.TrainState:
    return (loaded.result() if loaded else load())(key)

  return Programs(abstract, draw, compiled)


def abstract_batch(
  config: ml_collections.ConfigDict, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes, types and shardings of a step's batch, no arrays."""
  size, shardings = config.data.batch_size, mesh_lib.batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=shardings[name])
    for name, (shape, dtype) in prepared.array_specs(config).items()
  }


def _path(
  config: ml_collections.ConfigDict,
  model: unet.UNet,
  mesh: Mesh,
  started: float,
) -> pathlib.Path | None:
  """Returns where the programs are kept; None where that is not safe.

  Only a command may keep them: other programs can change what a step does in
  ways that no file shows. On several devices, arguments may need to be moved.
  Code that was edited while this process starts may not be what it has loaded.
  """
  if mesh.size > 1 or not _is_command():
    return None
  since = time.time() - (time.perf_counter() - started)
  if any(os.stat(file).st_ctime > since for file in _files()):
    return None
  folder = pathlib.Path(fields.cache_dir(config), 'programs')
  return folder / _key(config, model, mesh)


def _is_command() -> bool:
  """Whether this process is `python main.py` or what stands for it."""
  main = getattr(sys.modules['__main__'], 'main', None)
  return getattr(main, '__module__', '') in ('unet_jax.__main__', '__main__')


def _files() -> list[str]:
  """Returns the files of all modules."""
  files = {getattr(m, '__file__', None) for m in list(sys.modules.values())}
  # PyTorch has a module of no file.
  return sorted(file for file in files if file and os.path.isfile(file))


def _key(
  config: ml_collections.ConfigDict, model: unet.UNet, mesh: Mesh
) -> str:
  """A name that changes with whatever the compiled programs depend on.

  That is the code (the files of all modules, the config's own among them), the
  config, and the machine with its settings.
  """
  digest = hashlib.sha256()
  for file in _files():
    if file.startswith(_LIBRARIES) and not file.startswith(_PACKAGE):
      stat = os.stat(file)
      digest.update(f'{file} {stat.st_size} {stat.st_mtime_ns}\n'.encode())
    else:
      digest.update(pathlib.Path(file).read_bytes())
  device = mesh.devices.flat[0]
  about = [
    sys.version,
    {
      name: value
      for name, value in fields.flatten(config).items()
      if not f'{name}.'.startswith(tuple(f'{f}.' for f in _NOT_COMPILED))
    },
    repr(model),
    {k: v for k, v in os.environ.items() if k.startswith(('XLA', 'JAX'))},
    {k: v for k, v in jax.config.values.items() if 'cache_dir' not in k},
    [device.platform, device.device_kind, device.client.platform_version],
    [program.machine(), len(os.sched_getaffinity(0))],
  ]
  digest.update(json.dumps(about, sort_keys=True, default=str).encode())
  return digest.hexdigest()[:20]


def _compile(
  path: pathlib.Path | None,
  name: str,
  function: jax.stages.Wrapped,
  *arguments: Any,
) -> Callable[..., Any]:
  """Compiles a function for arguments of these shapes, and keeps it.

  What comes out of JAX's cache cannot be kept a second time: XLA leaves
  functions out then, which are missed once it runs (seen with jaxlib 0.10.2).
  """
  events, thread = [], threading.get_ident()

  def listen(event: str, **_: Any) -> None:
    if threading.get_ident() == thread:
      events.append(event)

  jax.monitoring.register_event_listener(listen)
  try:
    compiled = function.lower(*arguments).compile()
  finally:
    jax.monitoring.unregister_event_listener(listen)
  if path is None:
    return function  # It moves arguments between devices.
  if _ASKED in events and _FOUND not in events:
    _save(path, name, compiled)
  return compiled


def _load(path: pathlib.Path | None, name: str) -> Any:
  """Returns a kept program; None where it is not there or unusable."""
  try:
    if path is None:
      return None
    content = (path / name).read_bytes()
    digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    # XLA loads most programs with a wrong bit, and would run them.
    if hashlib.sha256(data).digest() != digest:
      return None
    return serialize_executable.deserialize_and_load(*pickle.loads(data))
  # Whatever is wrong with a file, compiling makes it again.
  except Exception:
    return None


def _save(path: pathlib.Path, name: str, compiled: Any) -> None:
  try:
    data = pickle.dumps(serialize_executable.serialize(compiled))
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path, delete=False) as f:
      try:
        f.write(hashlib.sha256(data).digest() + data)
        f.flush()
        os.replace(f.name, path / name)
      except OSError:  # Such as a full disk, which must not get fuller.
        os.unlink(f.name)
        raise
  except (OSError, ValueError, NotImplementedError, RuntimeError):
    return  # It is compiled at each start then, as without a cache.
