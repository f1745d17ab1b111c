"""The device mesh, and which device holds what.

The mesh has the axes `data`, `fsdp` and `spatial`. A batch is split over data
and fsdp, the rows of an image over spatial, parameters and optimiser state over
fsdp. Parameters are gathered, and their gradients summed, by `gather`; what
joins the rows or all pixels of a batch is in models/rows.py. XLA's partitioner
(GSPMD) inserts the rest of the communication. Every combination gives the
numbers of one device, up to rounding.
"""

import functools
import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unet_jax.runtime import errors

_log = logging.getLogger(__name__)

PyTree = Any
_AXES = ('data', 'fsdp', 'spatial')


def make_mesh(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns the mesh of a config, of all devices of all processes by default.

  Raises:
    UserError: the axes do not multiply to the devices, or the batch, the image
      rows or the processes do not divide.
  """
  m, devices = config.mesh, jax.devices() if devices is None else devices
  others = m.fsdp * m.spatial
  data = m.data if m.data != -1 else len(devices) // others
  shape = (data, m.fsdp, m.spatial)
  if math.prod(shape) != len(devices):
    raise errors.UserError(
      f'mesh data={m.data}, fsdp={m.fsdp}, spatial={m.spatial} does not fit '
      f'{len(devices)} devices; their product must be {len(devices)} (--config.'
      'mesh.data=-1 takes what the others leave)'
    )
  _check_batch(config, data * m.fsdp)
  if m.spatial > 1:
    _check_rows(config)
  mesh = _mesh(shape, devices)
  groups(mesh)  # Raises.
  return mesh


def make_prediction_mesh(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns as many of one process's devices as divide a batch evenly.

  A run may predict on another machine than it was trained on, so its section
  `mesh` is not read here. The devices are by default those of this process.
  """
  devices = jax.local_devices() if devices is None else of_one_process(devices)
  size = config.inference.batch_size or config.data.batch_size
  count = math.gcd(size, len(devices))
  return _mesh((count, 1, 1), devices[:count])


def of_one_process(devices: Sequence[jax.Device]) -> list[jax.Device]:
  """Returns the devices of the process that has the first one."""
  return [d for d in devices if d.process_index == devices[0].process_index]


def _mesh(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> Mesh:
  # Explicit, the default type, does not know all of linen's layers.
  types = (AxisType.Auto,) * len(_AXES)
  return jax.make_mesh(shape, _AXES, axis_types=types, devices=devices)


def _check_batch(config: ml_collections.ConfigDict, parts: int) -> None:
  size = config.data.batch_size
  parts *= config.optimizer.accumulate_steps
  if size % parts:
    raise errors.UserError(
      f'--config.data.batch_size={size} is not divisible by {parts} (devices '
      'along data and fsdp, times optimizer.accumulate_steps); the nearest '
      f'that are: {nearest_multiples(size, parts)}'
    )


def _check_rows(config: ml_collections.ConfigDict) -> None:
  """Raises UserError where rows of images cannot be split."""
  height, spatial = config.data.image_size[0], config.mesh.spatial
  if height % spatial:
    raise errors.UserError(
      f'--config.mesh.spatial={spatial} does not divide the {height} rows of '
      'data.image_size; the nearest that it does: '
      f'{nearest_multiples(height, spatial)}'
    )
  if config.model.padding == 'valid':
    # Each convolution would leave rows that do not split evenly.
    raise errors.UserError(
      f'--config.mesh.spatial={spatial} needs --config.model.padding=same; '
      'with valid, split the batch alone (mesh.spatial=1)'
    )


@functools.lru_cache
def groups(mesh: Mesh) -> list[list[int]]:
  """Returns the processes that hold rows of the same images, as groups.

  They stand in the order of their parts of a batch.

  Raises:
    UserError: two processes share some of their images only.
  """
  held: dict[int, set[int]] = {}
  by_image = mesh.devices.reshape(-1, mesh.shape['spatial'])
  for (image, _), device in np.ndenumerate(by_image):
    held.setdefault(device.process_index, set()).add(image)
  found: dict[tuple[int, ...], list[int]] = {}
  for process in sorted(held):
    found.setdefault(tuple(sorted(held[process])), []).append(process)
  if sum(map(len, found)) != len(by_image):
    local = mesh.size // len(held)
    raise errors.UserError(
      f'--config.mesh.spatial={mesh.shape["spatial"]}: of processes with '
      f'{local} devices, two would share some of their images only; take what '
      f'divides {local}, or a multiple of it'
    )
  return [found[images] for images in sorted(found)]


class Part(NamedTuple):
  """What of each batch a process reads.

  Attributes:
    place, parts: the place-th of all parts, in the order of the batch.
    member, members: the process is the member-th of those with this part, who
      hold different rows of its images.
  """

  place: int
  parts: int
  member: int
  members: int


def part(mesh: Mesh) -> Part:
  """Returns this process's part of each batch."""
  parts, process = groups(mesh), jax.process_index()
  [index] = (i for i, group in enumerate(parts) if process in group)
  group = parts[index]
  return Part(index, len(parts), group.index(process), len(group))


def nearest_multiples(n: int, k: int) -> str:
  """'a or b', the multiples of k around n."""
  below = n // k * k
  return f'{below} or {below + k}' if below else f'{k}'


def batch_sharding(mesh: Mesh) -> dict[str, NamedSharding]:
  """Returns the sharding of each entry of a batch."""
  rows = NamedSharding(mesh, P(('data', 'fsdp'), 'spatial'))
  per_image = NamedSharding(mesh, P(('data', 'fsdp')))
  return {
    'image': rows,
    'mask': rows,
    'weight_map': rows,
    'weight': per_image,
    'example': per_image,
  }


def of_images(mesh: Mesh) -> NamedSharding | None:
  """Sharding by which each process gets whole images; of one process, any."""
  if len({device.process_index for device in mesh.devices.flat}) == 1:
    return None
  return NamedSharding(mesh, P(('data', 'fsdp')))


def local_images(arrays: dict[str, jax.Array]) -> dict[str, np.ndarray]:
  """Returns what this process has of arrays with the sharding `of_images`."""
  if jax.process_count() == 1:
    return jax.device_get(arrays)

  def local(x: jax.Array) -> np.ndarray:
    parts = {s.index[0].start or 0: s.data for s in x.addressable_shards}
    return np.concatenate([parts[start] for start in sorted(parts)])

  return {name: local(x) for name, x in arrays.items()}


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def state_sharding(mesh: Mesh, state: PyTree) -> PyTree:
  """Returns the sharding of each array of a train state.

  Each array is split over fsdp along its largest axis that divides; scalars and
  arrays without such an axis are replicated, as everything is for fsdp = 1. The
  state has arrays, or their shapes from `jax.eval_shape`.
  """
  size = mesh.shape['fsdp']

  def leaf(x: Any) -> NamedSharding:
    axes = [i for i, n in enumerate(x.shape) if n % size == 0 and n >= size]
    if size == 1 or not axes:
      return replicated(mesh)
    axis = max(axes, key=lambda i: x.shape[i])
    return NamedSharding(mesh, P(*[None] * axis, 'fsdp'))

  return jax.tree.map(leaf, state)


def gather(mesh: Mesh, params: PyTree) -> PyTree:
  """Returns parameters whole on each device; their gradients are split again.

  Left to itself, XLA's partitioner splits products by the parameters' axes, and
  sends activations.
  """
  if mesh.shape['fsdp'] == 1:
    return params
  constrain = jax.lax.with_sharding_constraint

  @jax.custom_vjp
  def whole(params: PyTree) -> PyTree:
    return constrain(params, replicated(mesh))

  def split(_: None, gradients: PyTree) -> tuple[PyTree]:
    # Summed whole, then cut. XLA makes a reduce-scatter by splitting the
    # convolution in a ring: of 32 features, libtpu estimates 24.5 ms a step of
    # 64 images on four v5e, and 10.7 ms so (docs/plan.md).
    gradients = constrain(gradients, replicated(mesh))
    gradients = jax.lax.optimization_barrier(gradients)
    return (constrain(gradients, state_sharding(mesh, gradients)),)

  whole.defvjp(lambda params: (whole(params), None), split)
  return whole(params)


def to_devices(
  batch: dict[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
  """Sends this process's part of a batch to its devices.

  Args:
    batch: whole images, of which these devices may hold some rows only.
  """
  shardings, parts = batch_sharding(mesh), len(groups(mesh))
  return {
    name: jax.make_array_from_process_local_data(
      shardings[name], value, (len(value) * parts, *value.shape[1:])
    )
    for name, value in batch.items()
  }


def log_devices(mesh: Mesh, native: bool) -> None:
  """Logs the devices of the run, and whose convolutions, in one line."""
  _log.info(
    '%d %s device(s) in %d process(es), mesh %s, %s convolutions',
    mesh.size,
    mesh.devices.flat[0].platform,
    jax.process_count(),
    dict(mesh.shape),
    'native' if native else "XLA's",
  )
