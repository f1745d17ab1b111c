"""Processes, the device mesh, and who holds what.

The mesh has the axes `data`, `fsdp` and `spatial`. A batch is split over data
and fsdp, the rows of an image over spatial, parameters and optimiser state over
fsdp; GSPMD inserts the communication. Every combination gives the numbers of
one device, up to rounding.
"""

import logging
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unet_jax.runtime import errors

_log = logging.getLogger(__name__)

PyTree = Any


def make_mesh(config) -> Mesh:
  """Returns the mesh of a config over all devices of all processes.

  Raises:
    UserError: the axes do not multiply to the devices, or the batch or the
      image rows do not divide.
  """
  m, devices = config.mesh, jax.device_count()
  others = m.fsdp * m.spatial
  data = m.data if m.data != -1 else devices // others
  if data * others != devices:
    raise errors.UserError(
      f'mesh data={m.data}, fsdp={m.fsdp}, spatial={m.spatial} does not fit '
      f'{devices} devices; their product must be {devices} (--config.mesh.'
      'data=-1 takes what the others leave)'
    )
  parts = data * m.fsdp * config.optimizer.accumulate_steps
  if config.data.batch_size % parts:
    raise errors.UserError(
      f'--config.data.batch_size={config.data.batch_size} is not divisible '
      f'by {parts} (devices along data and fsdp, times optimizer.'
      f'accumulate_steps); the nearest that are: '
      f'{nearest_multiples(config.data.batch_size, parts)}'
    )
  if config.data.image_size[0] % m.spatial:
    raise errors.UserError(
      f'--config.mesh.spatial={m.spatial} does not divide the '
      f'{config.data.image_size[0]} rows of data.image_size'
    )
  rows = 2 ** (config.model.depth + (config.model.stem == 'space_to_depth'))
  if m.spatial > 1 and config.data.image_size[0] % (m.spatial * rows):
    # With fewer rows on a device, XLA's gradients were wrong by 20 % (jax
    # 0.10.2 on CPUs), and the loss was right, so that nothing told.
    raise errors.UserError(
      f'--config.mesh.spatial={m.spatial}: at model.depth={config.model.depth} '
      f'each device needs a multiple of {rows} rows, data.image_size a height '
      f'of {nearest_multiples(config.data.image_size[0], m.spatial * rows)}'
    )
  if m.spatial > 1 and jax.local_device_count() % m.spatial:
    raise errors.UserError(
      f'--config.mesh.spatial={m.spatial} must divide the '
      f'{jax.local_device_count()} devices of one process'
    )
  return jax.make_mesh(
    (data, m.fsdp, m.spatial),
    ('data', 'fsdp', 'spatial'),
    # Explicit, the default, does not know all of linen's layers.
    axis_types=(AxisType.Auto,) * 3,
  )


def nearest_multiples(n: int, k: int) -> str:
  """'a or b', the multiples of k around n."""
  below = n // k * k
  return f'{below} or {below + k}' if below else f'{k}'


def batch_sharding(mesh: Mesh) -> dict[str, NamedSharding]:
  """Where each entry of a batch lives."""
  rows = NamedSharding(mesh, P(('data', 'fsdp'), 'spatial'))
  per_image = NamedSharding(mesh, P(('data', 'fsdp')))
  return {
    'image': rows,
    'mask': rows,
    'weight_map': rows,
    'weight': per_image,
    'example': per_image,
  }


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def state_sharding(mesh: Mesh, state: PyTree) -> PyTree:
  """Where each array of a train state lives.

  Each array is split over fsdp along its largest axis that divides; scalars and
  arrays without such an axis are replicated, as everything is for fsdp = 1.

  Args:
    mesh: see `make_mesh`.
    state: arrays, or their shapes from `jax.eval_shape`.

  Returns:
    A NamedSharding for each leaf.
  """
  size = mesh.shape['fsdp']

  def leaf(x):
    axes = [i for i, n in enumerate(x.shape) if n % size == 0 and n >= size]
    if size == 1 or not axes:
      return replicated(mesh)
    axis = max(axes, key=lambda i: x.shape[i])
    return NamedSharding(mesh, P(*[None] * axis, 'fsdp'))

  return jax.tree.map(leaf, state)


def to_devices(
  batch: dict[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
  """Sends this process's part of a batch to its devices."""
  shardings = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(shardings[name], value)
    for name, value in batch.items()
  }


def log_devices(mesh: Mesh) -> None:
  """One line on what the run has."""
  _log.info(
    '%d %s device(s) in %d process(es), mesh %s',
    jax.device_count(),
    jax.devices()[0].platform,
    jax.process_count(),
    dict(mesh.shape),
  )
